"""Tiers of several resolutions

The state is z = (fine, coarse), as in the multi-tier layer of monDEQ. Each tier has an
H of its own, m·I + A*A. It sees the other through the strided convolution D, once as D
and once as −D*. These couplings are skew and leave the bounds of the spectrum alone. So
there is one equilibrium, whatever the weights are, and operator splitting finds it.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import implicit_bregman as ib

Convolution = ib.operators.Convolution


class MultiTier(nn.Module):
    """x (B, 1, 8, 8) → both equilibria, (B, 3, 8, 8) and (B, 4, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        shapes, scale = ((3, 3), (4, 4), (4, 3)), 0.2
        weights = (nn.Parameter(scale * torch.randn(*shape, 3, 3)) for shape in shapes)
        self.fine, self.coarse, self.down = weights
        self.injection = nn.Conv2d(1, 3, 3, padding=1)

    def operator(self) -> ib.operators.Blocks:
        fine = Convolution.gram(self.fine, (8, 8), margin=1.0)
        coarse = Convolution.gram(self.coarse, (4, 4), margin=1.0)
        down = Convolution(self.down, (8, 8), stride=2)
        up = Convolution(-self.down, (8, 8), stride=2).transposed()
        return ib.operators.Blocks([[fine, up], [down, coarse]])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        c = nn.functional.pad(
            self.injection(x).flatten(1), (0, 64)
        )  # into the fine tier
        energy = ib.QuadraticEnergy.from_operator(self.operator())
        z = ib.find_critical_point(energy, "softplus", c).value
        return z[:, :192].unflatten(1, (3, 8, 8)), z[:, 192:].unflatten(1, (4, 4, 4))


# %% Solve
torch.manual_seed(0)
model, x = MultiTier().double(), torch.randn(6, 1, 8, 8).double()
fine, coarse = model(x)
print(f"symmetric part: eigenvalues from {model.operator().bounds()[0]:.3f}")
for name, tier in (("fine", fine), ("coarse", coarse)):
    print(f"zeros in the {name} tier: {(tier == 0).double().mean():.2f}")
coarse.sum().backward()  # x reaches the coarse tier through D alone
print(f"gradient of the injection: {model.injection.weight.grad.norm():.3f}")

# %% Figure
figure, axes = plt.subplots(1, 8, figsize=(9, 1.5), layout="constrained")
names = ["x", "fine 1", "fine 2", "fine 3"] + [f"coarse {k}" for k in (1, 2, 3, 4)]
for axis, name, part in zip(axes, names, [*x[0], *fine[0], *coarse[0]], strict=True):
    axis.imshow(part.detach().numpy())
    axis.set(title=name, xticks=[], yticks=[])
figure.savefig("multi_tier.png")
