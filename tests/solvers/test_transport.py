"""Optimal transport as a Bregman projection, against the closed form of 2 × 2 plans and Sinkhorn in logs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import implicit_bregman as ib


def marginals(rows: int, columns: int, dtype: torch.dtype = torch.float64) -> ib.QuadraticEnergy:
    """The energy of the row and column sums of a plan: rows + columns equations, one of them redundant."""
    row = torch.kron(torch.eye(rows), torch.ones(columns, 1))
    column = torch.kron(torch.ones(rows, 1), torch.eye(columns))
    vectors = torch.cat([row, column], 1).to(dtype)
    r = vectors.shape[1]
    energy = ib.QuadraticEnergy(rows * columns, r, "low_rank", rank=r, bias=False, dtype=dtype)
    with torch.no_grad():
        energy.weight_map.vectors.copy_(vectors)
        energy.input_weight.copy_(torch.eye(r))
    return energy.requires_grad_(False)


# At a smaller ε the points underflow: this is what initial_dual is for.
POINTS = {torch.float32: (1.0, 1e-1, 2e-2), torch.float64: (1.0, 1e-1, 1e-2, 3e-3)}
DUALS = (1.0, 1e-1, 1e-2, 3e-3, 1e-3)


@pytest.mark.parametrize(
    ("dtype", "given", "epsilon"),
    [
        *((dtype, "initial", epsilon) for dtype, all_of in POINTS.items() for epsilon in all_of),
        *((dtype, "initial_dual", epsilon) for dtype in POINTS for epsilon in DUALS),
    ],
)
def test_two_by_two(epsilon: float, given: str, dtype: torch.dtype) -> None:
    """p₁₁ = ½σ(s) with s = (C₁₂ + C₂₁ − C₁₁ − C₂₂)/(2ε)."""
    cost = torch.tensor([[0.0, 0.5], [0.42, 0.9]], dtype=dtype, requires_grad=True)
    dual = (-cost / epsilon).reshape(1, 4)
    start = dual if given == "initial_dual" else dual.exp()
    half = torch.full((1, 4), 0.5, dtype=dtype)
    found = ib.find_critical_point(marginals(2, 2, dtype), "exp", half, **{given: start})
    assert found.status.tolist() == [ib.Status.CONVERGED]
    sigma = 1 / (1 + math.exp(-0.01 / epsilon))
    # s is a difference of numbers of size 1/ε, rounded to the precision.
    tolerance = 10 * torch.finfo(dtype).eps * (10 + 1 / epsilon)
    expected = torch.tensor([[sigma, 1 - sigma, 1 - sigma, sigma]], dtype=dtype) / 2
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.value.detach(), expected, rtol=tolerance, atol=2 * eps)
    found.value[0, 0].backward()
    slope = sigma * (1 - sigma) / (4 * epsilon)
    signs = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=dtype)
    torch.testing.assert_close(cost.grad, slope * signs, rtol=4 * tolerance, atol=eps / epsilon)


def sinkhorn(cost: np.ndarray, a: np.ndarray, b: np.ndarray, epsilon: float, sweeps: int = 200_000) -> np.ndarray:
    """The plan exp((f ⊕ g − C)/ε) with the given marginals, in logs."""

    def log_sum(x: np.ndarray, axis: int) -> np.ndarray:
        top = x.max(axis, keepdims=True)
        return (top + np.log(np.exp(x - top).sum(axis, keepdims=True))).squeeze(axis)

    f, g = np.zeros(len(a)), np.zeros(len(b))
    for _ in range(sweeps):
        f = epsilon * np.log(a) - epsilon * log_sum((g[None] - cost) / epsilon, 1)
        new = epsilon * np.log(b) - epsilon * log_sum((f[:, None] - cost) / epsilon, 0)
        moved, g = np.abs(new - g).max(), new
        if moved < 1e-16:
            break
    return np.exp((f[:, None] + g[None] - cost) / epsilon)


@pytest.mark.parametrize("epsilon", [1e-1, 3e-2, 1e-2])
def test_against_sinkhorn(epsilon: float) -> None:
    random = np.random.default_rng(3)
    cost, a, b = random.random((4, 5)), random.random(4) + 0.1, random.random(5) + 0.1
    a, b = a / a.sum(), b / b.sum()
    target = torch.from_numpy(np.concatenate([a, b]))[None]
    dual = torch.from_numpy(-cost / epsilon).reshape(1, 20)
    found = ib.find_critical_point(marginals(4, 5), "exp", target, initial_dual=dual)
    assert bool(found.converged.all())
    np.testing.assert_allclose(found.value.reshape(4, 5).numpy(), sinkhorn(cost, a, b, epsilon), rtol=0, atol=1e-10)


def test_a_small_epsilon_finds_the_optimal_assignment() -> None:
    """ε = 1e-3, where all of exp(−C/ε) underflows in float32: next to the vertex, and optimal to O(ε)."""
    for dtype in (torch.float32, torch.float64):
        cost = torch.tensor([[0.9, 0.5, 0.8], [0.4, 0.9, 0.7], [0.8, 0.7, 0.3]], dtype=dtype)
        third = torch.full((1, 6), 1 / 3, dtype=dtype)
        found = ib.find_critical_point(marginals(3, 3, dtype), "exp", third, initial_dual=(-cost / 1e-3).reshape(1, 9))
        assert bool(found.converged.all())
        plan = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=dtype) / 3
        torch.testing.assert_close(found.value.reshape(3, 3), plan, rtol=0, atol=1e-6)


def test_redundant_equations_are_not_infeasible_by_rounding() -> None:
    """Marginals in float32 that agree to rounding; the same, and their sums apart: a plan does not exist."""
    random = np.random.default_rng(0)
    energy = marginals(3, 4, torch.float32)
    plan = torch.from_numpy(random.random((8, 3, 4))).float()
    target = torch.cat([plan.sum(2), plan.sum(1)], 1)
    start = torch.zeros(8, 12)
    found = ib.find_critical_point(energy, "exp", target, initial_dual=start)
    assert set(found.status.tolist()) == {ib.Status.CONVERGED}
    apart: Tensor = target.clone()
    apart[0, 0] += 1e-2
    with pytest.warns(ib.ConvergenceWarning, match="INFEASIBLE"):
        found = ib.find_critical_point(energy, "exp", apart, initial_dual=start)
    assert found.status.tolist() == [ib.Status.INFEASIBLE, *[0] * 7]
