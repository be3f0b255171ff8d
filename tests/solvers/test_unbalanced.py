"""Unbalanced transport as one's own energy, against scaling iterations in logarithms, POT and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import implicit_bregman as ib

D = torch.float64


class Unbalanced(ib.Energy):
    """⟨C, P⟩ + w KL(P1 | a) + w KL(Pᵀ1 | b)."""

    def __init__(self, rows: int, columns: int, weight: float) -> None:
        super().__init__(features=(rows, columns), convex=True)
        self.weight = weight

    def value(self, z: Tensor, x: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        cost, a, b = x
        off = sum(self.divergence(sums, mass) for sums, mass in ((z.sum(2), a), (z.sum(1), b)))
        return (cost * z).sum((1, 2)) + self.weight * off

    @staticmethod
    def divergence(sums: Tensor, mass: Tensor) -> Tensor:
        return (torch.xlogy(sums, sums / mass) - sums + mass).sum(1)


def problem(rows: int = 6, columns: int = 5, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    cost = torch.rand(batch, rows, columns, generator=draw, dtype=D)
    a, b = (0.1 + torch.rand(batch, size, generator=draw, dtype=D) for size in (rows, columns))
    return cost, a, b


def solve(x: tuple[Tensor, Tensor, Tensor], weight: float, epsilon: float) -> ib.Solution:
    energy = Unbalanced(*x[0].shape[1:], weight)
    return ib.find_critical_point(energy, "exp", x, regularization=epsilon, initial_dual=(-x[0] / epsilon).detach())


def scaled(cost: np.ndarray, a: np.ndarray, b: np.ndarray, weight: float, epsilon: float) -> np.ndarray:
    """Chizat and others, 2018: alternating scalings, damped by w/(w + ε), in logarithms."""
    f, g, damping = np.zeros_like(a), np.zeros_like(b), weight / (weight + epsilon)
    for _ in range(4_000):
        f = damping * (np.log(a) - np.logaddexp.reduce(g - cost / epsilon, axis=1))
        g = damping * (np.log(b) - np.logaddexp.reduce(f[:, None] - cost / epsilon, axis=0))
    return np.exp(f[:, None] + g - cost / epsilon)


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.02])
@pytest.mark.parametrize("weight", [0.2, 5.0])
def test_the_plan_is_that_of_scaling_iterations(weight: float, epsilon: float) -> None:
    x = problem()
    found = solve(x, weight, epsilon)
    assert found.converged.all()
    for plan, *given in zip(found.value, *x, strict=True):
        expected = scaled(*(part.numpy() for part in given), weight, epsilon)
        np.testing.assert_allclose(plan.numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore:If reg_type = entropy:UserWarning")
def test_the_plan_is_that_of_pot() -> None:
    ot = pytest.importorskip("ot")
    x = problem(batch=1)
    cost, a, b = (part[0].numpy() for part in x)
    expected = ot.unbalanced.sinkhorn_unbalanced(
        a, b, cost, 0.2, 1.0, reg_type="entropy", numItermax=100_000, stopThr=1e-15
    )
    np.testing.assert_allclose(solve(x, 1.0, 0.2).value[0].numpy(), expected, rtol=0, atol=1e-9)


def test_a_heavy_penalty_gives_the_balanced_plan() -> None:
    cost, a, b = problem(4, 4, 1)
    a, b = a / a.sum(), b / b.sum()
    balanced = scaled(cost[0].numpy(), a[0].numpy(), b[0].numpy(), 1e12, 0.5)
    plan = solve((cost, a, b), 1e4, 0.5).value[0].numpy()
    np.testing.assert_allclose(plan, balanced, rtol=0, atol=1e-4)


def test_gradients_to_costs_and_masses() -> None:
    x = problem(4, 3)

    def plan(*given: Tensor) -> Tensor:
        return solve(given, 0.7, 0.3).value  # type: ignore[arg-type]

    leaves = tuple(part.clone().requires_grad_() for part in x)
    assert torch.autograd.gradcheck(plan, leaves, eps=1e-5, atol=1e-7, rtol=1e-6)
