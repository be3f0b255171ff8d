"""A layer of several resolutions: the tiers of monDEQ, coupled by strided convolutions.

The state is z = (fine, coarse). Each tier has an H of its own, H_i = m·I + A_i*A_i, and sees the other through
the strided convolution D, once as D and once as −D*: the couplings are skew and leave the bounds of the
spectrum alone. So there is one equilibrium whatever A₁, A₂ and D are, and operator splitting finds it.
"""

import torch
from torch import nn

import implicit_bregman as ib

Convolution = ib.operators.Convolution


class MultiTier(nn.Module):
    """x, (B, 1, 8, 8) → the equilibria of both tiers, (B, 3, 8, 8) and (B, 4, 4, 4)."""

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin
        self.fine, self.coarse, self.down = (
            nn.Parameter(0.2 * torch.randn(c_out, c_in, 3, 3)) for c_out, c_in in ((3, 3), (4, 4), (4, 3))
        )
        self.injection = nn.Conv2d(1, 3, 3, padding=1)

    def operator(self) -> ib.operators.Blocks:
        fine = Convolution.gram(self.fine, (8, 8), margin=self.margin)
        coarse = Convolution.gram(self.coarse, (4, 4), margin=self.margin)
        up = Convolution(-self.down, (8, 8), stride=2).transposed()
        return ib.operators.Blocks([[fine, up], [Convolution(self.down, (8, 8), stride=2), coarse]])

    def solve(self, x: torch.Tensor) -> ib.Solution:
        """x enters the fine tier alone."""
        c = nn.functional.pad(self.injection(x).flatten(1), (0, 4 * 4 * 4))
        return ib.find_critical_point(ib.QuadraticEnergy.from_operator(self.operator()), "softplus", c)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine, coarse = self.solve(x).value.split([3 * 8 * 8, 4 * 4 * 4], dim=-1)
        return fine.reshape(-1, 3, 8, 8), coarse.reshape(-1, 4, 4, 4)


def main() -> None:
    torch.manual_seed(0)
    model = MultiTier().double()
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64)

    low, _ = model.operator().bounds()
    solution = model.solve(x)
    print(f"no eigenvalue of the symmetric part is below {low:.3f}")
    print(f"converged: {int(solution.converged.sum())} of {len(x)}")

    fine, coarse = model(x)
    print(
        f"zeros: {float((fine == 0).double().mean()):.2f} of the fine tier, {float((coarse == 0).double().mean()):.2f} "
        "of the coarse one"
    )
    coarse.sum().backward()
    length = float(model.injection.weight.grad.norm())
    print(f"the coarse tier sees x through D: the gradient at the injection has the length {length:.3f}")


if __name__ == "__main__":
    main()
