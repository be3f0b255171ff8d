"""A sum of a quadratic energy and another beside the same energy in one `value`: time of the forward pass.

Run

    OMP_NUM_THREADS=1 python docs/scripts/sums.py

d = 400, eigenvalues of H from 1 to 10⁴, 32 samples, float64. Times are the least of three, in seconds of processor
time.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

import implicit_bregman as ib

WIDTH, SAMPLES, DIGITS = 400, 32, 4
GAMMAS = (1e-3, 0.1, 0.0)


class Robust(ib.Energy):
    """Σ √(1 + (z/0.3)²)."""

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return (1 + (z / 0.3) ** 2).sqrt().sum(-1)


class Whole(Robust):
    """½zᵀHz − xᵀz and the above."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(convex=True)
        self.matrix = matrix

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.5 * (z * (z @ self.matrix)).sum(-1) - (x * z).sum(-1) + super().value(z, x)


def main() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64))[0]
    matrix = (basis * torch.logspace(DIGITS, 0, WIDTH, dtype=torch.float64)) @ basis.mT
    x = 100 * torch.randn(SAMPLES, WIDTH, dtype=torch.float64)
    quadratic = ib.QuadraticEnergy.from_matrices(-matrix, torch.eye(WIDTH, dtype=torch.float64))
    for gamma in GAMMAS:
        for name, energy in (("sum", quadratic + Robust(convex=True)), ("one value", Whole(matrix))):
            best = float("inf")
            for _ in range(3):
                before = time.process_time()
                solution = ib.find_critical_point(energy, "tanh", x, regularization=gamma)
                best = min(best, time.process_time() - before)
            print(f"γ = {gamma:g}, {name}: {best:.2f} s, converged: {bool(solution.converged.all())}")


if __name__ == "__main__":
    main()
