"""A network of your own

The fixed point z = tanh(N(z, x)) of a multilayer perceptron N is a layer. It learns to
tell two spirals apart, with a penalty on the Jacobian of its map. While the spectral
radius of that map is below 1, plain iteration would converge too.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import implicit_bregman as ib


class Network(ib.Field):
    def __init__(self, n: int, d: int) -> None:
        super().__init__(d)
        self.inject, self.inner = nn.Linear(n, d), nn.Linear(d, d)
        self.outer = nn.Linear(d, d)

    def field(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return -self.outer(torch.tanh(self.inner(z) + self.inject(x)))  # this is −N


# %% Train
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
label = torch.arange(64) % 2
radius = 1 + 4 * torch.rand(64).sqrt()
turned = radius + torch.pi * label
x = radius[:, None] / 2 * torch.stack([turned.cos(), turned.sin()], 1)
layer = ib.CriticalPoint(Network(2, 24), "tanh", regularization=1.0)
model = nn.Sequential(layer, nn.Linear(24, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for step in range(51):
    z = layer(x)
    score = model[1](z)
    if step % 25 == 0:
        right = (score.argmax(-1) == label).double().mean()
        radius = layer.spectral_radius(z, x).max()
        print(
            f"step {step}: accuracy {right:.2f}, spectral radius at most {radius:.2f}"
        )
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(score, label)
    (loss + 3.0 * layer.jacobian_penalty(z, x)).backward()
    optimizer.step()

# %% Figure
line = torch.linspace(-3, 3, 60)
with torch.no_grad():
    share = model(torch.cartesian_prod(line, line)).softmax(-1)[:, 1]
figure, axes = plt.subplots(figsize=(4, 4), layout="constrained")
axes.contourf(line, line, share.reshape(60, 60).T, cmap="RdBu", alpha=0.7)
axes.scatter(*x.T, c=label, cmap="RdBu", edgecolors="black", s=20)
axes.set(aspect="equal", xticks=[], yticks=[])
figure.savefig("network_field.png")
