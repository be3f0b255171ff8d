"""The share that an operator has in a splitting, and the linear systems that it solves on free sets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from implicit_bregman.operators import Dense, Diagonal, Kronecker, LinearOperator
from implicit_bregman.operators.splitter import Ends, Splitter
from tests.problems import normal

B = 7


def dense(d: int = 12, least: float = 0.1, skew: float = 0.0) -> Tensor:
    root, other = normal(d, d), normal(d, d, seed=1)
    return root @ root.mT / d + least * torch.eye(d).double() + skew * (other - other.mT) / d**0.5


OPERATORS = {
    "symmetric": lambda dtype: Dense(dense().to(dtype)),
    "general": lambda dtype: Dense(dense(skew=1.0).to(dtype)),
    "Kronecker": lambda dtype: Kronecker(dense(3).to(dtype), dense(4, 0.3).to(dtype)),
    "diagonal": lambda dtype: Diagonal(torch.linspace(0.5, 4.0, 12).to(dtype)),
}


def masked_solution(operator: LinearOperator, free: Tensor, right: Tensor, fixed: Tensor, adjoint: bool) -> Tensor:
    """z with z_A = fixed_A and (H z)_F = b_F, by one dense solve for each sample."""
    matrix = operator.dense().double()
    matrix = matrix.mT if adjoint else matrix
    inside = free.double()
    system = inside[:, :, None] * matrix + torch.diag_embed(1 - inside)
    return torch.linalg.solve(system, torch.where(free, right, fixed)[:, :, None]).squeeze(-1)


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_systems_on_free_sets(name: str, adjoint: bool, dtype: torch.dtype) -> None:
    operator = OPERATORS[name](dtype)
    splitter = Splitter.of(operator)
    splitter = Splitter(operator, splitter.ends, splitter.condition, adjoint=adjoint)
    free, right = normal(B, 12, seed=2) > -0.3, normal(B, 12, seed=3).to(dtype)
    free[0], free[1], right[2] = True, False, 0.0
    tol = 1e-6 if dtype == torch.float32 else 1e-12
    found = splitter.solve_on(free, right, tol)
    assert float(found.left.max()) <= tol
    expected = masked_solution(operator, free, right.double(), torch.zeros(B, 12).double(), adjoint)
    torch.testing.assert_close(found.value, expected, rtol=0, atol=100 * tol)
    assert float(found.value[~free].abs().max()) == 0.0


@pytest.mark.parametrize("name", OPERATORS)
def test_refinement_keeps_what_is_fixed_and_reaches_float64(name: str, dtype: torch.dtype) -> None:
    operator = OPERATORS[name](dtype)
    splitter = Splitter.of(operator)
    free, right, start = normal(B, 12, seed=2) > -0.3, normal(B, 12, seed=3), normal(B, 12, seed=4)
    found = splitter.refine_on(free, right, start, 1e-13, floor=1.0)
    expected = masked_solution(operator.to(torch.float64), free, right, start, False)
    torch.testing.assert_close(found.value, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.excess, operator.to(torch.float64).dense().matmul(found.value.mT).mT - right)
    assert torch.equal(found.value[~free], start[~free])


@pytest.mark.parametrize("least", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_any_step_is_used_as_it_is(least: float, skew: float) -> None:
    operator = Dense(dense(least=least, skew=skew))
    assert Splitter.of(operator, step=0.4).alpha == 0.4
    splitter = Splitter.of(operator)
    assert splitter.alpha > 0
    assert splitter.condition >= 1
    assert splitter.iterations(1e-6) >= splitter.iterations(1e-3) >= 2


def test_what_is_not_definite_is_left_unsolved() -> None:
    operator = Dense(torch.diag(torch.tensor([1.0, -0.5, 2.0])).double())
    found = Splitter(operator, Ends(0.5, 2.0)).solve_on(torch.ones(1, 3).bool(), torch.ones(1, 3).double(), 1e-12)
    assert not float(found.left.max()) <= 1e-12
