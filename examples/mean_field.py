"""The mean field of a random field

Pixels of noisy digits have shares of two labels and agree with their neighbours. Their
marginals solve z = softmax((unary − Hz)/γ), a critical point on one simplex per pixel.
H is a Kronecker product. How strongly pixels agree, and how far, is learned through it.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import implicit_bregman as ib

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
truth = torch.from_numpy(load_digits().images[:12] > 7).flatten(1).long()
unary = 1.2 * torch.nn.functional.one_hot(truth, 2) + torch.randn(12, 64, 2)
place = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
distance = torch.cdist(place, place).square() + 1e9 * torch.eye(64)  # (not itself)
differ = 1 - torch.eye(2)  # the cost of two labels that are not the same
pixels = ib.geometry("simplex", size=2)


def marginals(strength: torch.Tensor, reach: torch.Tensor) -> ib.Solution:
    kernel = strength.exp() * torch.exp(-distance / reach.exp())
    energy = ib.QuadraticEnergy.from_operator(ib.operators.Kronecker(kernel, differ))
    return ib.find_critical_point(energy, pixels, unary.flatten(1), regularization=1.0)


# %% Learn the couplings
p = [torch.tensor(start, requires_grad=True) for start in (-2.0, 0.0)]
optimizer = torch.optim.Adam(p, lr=0.1)
print(f"noise alone: {(unary.argmax(-1) == truth).double().mean():.3f} right")
for step in range(41):
    z = marginals(*p).value.unflatten(1, (64, 2))
    loss = torch.nn.functional.nll_loss(z.log().flatten(0, 1), truth.flatten())
    if step % 20 == 0:
        right = (z.argmax(-1) == truth).double().mean()
        print(f"step {step:2d}: {right:.3f} right, loss {loss.item():.3f}")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% The usual iteration, damped, reaches the same marginals
with torch.no_grad():
    kernel = p[0].exp() * torch.exp(-distance / p[1].exp())
    for _ in range(400):
        z = 0.5 * z + 0.5 * torch.softmax(unary - kernel @ z @ differ, -1)
    gap = (z.flatten(1) - marginals(*p).value).abs().max()
print(f"against 400 plain iterations: {gap:.1e}")

# %% Figure
figure, axes = plt.subplots(3, 6, figsize=(7, 3.7), layout="constrained")
shown = {"truth": truth, "noisy": unary.softmax(-1)[..., 1], "marginal": z[..., 1]}
for line, (name, picture) in zip(axes, shown.items(), strict=True):
    line[0].set_ylabel(name)
    for axis, digit in zip(line, picture, strict=False):
        axis.imshow(digit.reshape(8, 8).numpy(), vmin=0, vmax=1, cmap="gray_r")
        axis.set(xticks=[], yticks=[])
figure.savefig("mean_field.png")
