"""Chebyshev's semi-iteration against a dense solve, and the number of steps that it promises."""

import math

import pytest
import torch

from implicit_bregman.linalg.chebyshev import semi_iteration, steps_needed
from tests.problems import matrix_with

D, BATCH = 12, 5


@pytest.mark.parametrize("condition", [1.0, 1.5, 4.0, 20.0])
@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-8])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_steps_that_are_promised_reach_the_tolerance(
    condition: float, tol: float, preconditioned: bool, generator: torch.Generator
) -> None:
    eigenvalues = torch.logspace(0, -math.log10(condition), D, dtype=torch.float64)
    matrix = matrix_with(eigenvalues, generator)
    inverse = None
    if preconditioned:
        # P = M⁻¹ for a badly scaled M, and the matrix M A, whose preconditioned spectrum is that of A.
        scale = matrix_with(torch.logspace(0, 3, D, dtype=torch.float64), generator)
        matrix, inverse = scale @ matrix, torch.linalg.inv(scale)
        inverse = 0.5 * (inverse + inverse.mT)
    rhs = torch.randn(BATCH, D, generator=generator, dtype=torch.float64)
    exact = torch.linalg.solve(matrix, rhs.mT).mT
    interval = (1 / condition, 1.0)
    count = steps_needed(interval, tol, 200)
    assert count is not None
    precondition = inverse if inverse is None else lambda b, v, beta, alpha: beta * b + alpha * v @ inverse
    found = semi_iteration(lambda x: rhs - x @ matrix.mT, torch.zeros_like(rhs), rhs, precondition, interval, count)
    # In the norm in which A is symmetric; 2 for the change of norm.
    assert float((found - exact).norm() / exact.norm()) <= 2 * tol * condition


def test_more_steps_than_allowed_are_none() -> None:
    assert steps_needed((1e-4, 1.0), 1e-6, 20) is None
    assert steps_needed((1e-4, 1.0), 1e-6, 10_000) is not None
    few, many = steps_needed((0.5, 1.0), 1e-2, 100), steps_needed((0.5, 1.0), 1e-8, 100)
    assert few is not None
    assert many is not None
    assert 1 <= few < many


@pytest.mark.parametrize("interval", [(0.0, 1.0), (-0.5, 1.0), (math.nan, 1.0)])
def test_an_interval_that_is_not_positive_has_no_rate(interval: tuple[float, float]) -> None:
    assert steps_needed(interval, 1e-6, 100) is None
