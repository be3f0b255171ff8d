"""A network as a layer: an MLP fixed point z = tanh(N(z, x)), trained with a penalty on its Jacobian.

The network learns to tell two spirals apart. Its implicit gradient is checked against finite differences, and the
spectral radius of the fixed-point map is printed: below 1, plain iteration would converge.
"""

import torch
from torch import nn

import implicit_bregman as ib


class Network(ib.Field):
    def __init__(self, n: int, d: int) -> None:
        super().__init__(d)
        self.inject, self.inner, self.outer = nn.Linear(n, d), nn.Linear(d, d), nn.Linear(d, d)

    def field(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return -(self.outer(torch.tanh(self.inner(z) + self.inject(x))))  # −N: what vanishes at z = tanh(N(z, x))


def spirals(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    angle, label = 1 + 4 * torch.rand(count).sqrt(), torch.arange(count) % 2
    turned = angle + torch.pi * label
    return angle[:, None] / 2 * torch.stack([turned.cos(), turned.sin()], 1), label


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    layer = ib.CriticalPoint(Network(2, 24), "tanh", regularization=1.0)
    model, (x, label) = nn.Sequential(layer, nn.Linear(24, 2)), spirals(64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(101):
        z = layer(x)
        score = model[1](z)
        if step % 50 == 0:
            correct, radius = (score.argmax(-1) == label).double().mean(), layer.spectral_radius(z, x).max()
            print(f"step {step}: accuracy {correct:.2f}, spectral radius at most {radius:.2f}")
        optimizer.zero_grad()
        (nn.functional.cross_entropy(score, label) + 3.0 * layer.jacobian_penalty(z, x)).backward()
        optimizer.step()

    weight = layer.energy.inner.weight
    (gradient,) = torch.autograd.grad(layer(x).sum(), weight)
    ends, along = [], torch.randn_like(weight)
    with torch.no_grad():
        for shift in (1e-5, -2e-5, 1e-5):  # the last one goes back to the start
            weight += shift * along
            ends.append(layer(x).sum())
    print(f"implicit {(gradient * along).sum():.4f}, finite differences {(ends[0] - ends[1]) / 2e-5:.4f}")


if __name__ == "__main__":
    main()
