"""Least squares with graded rows, against many digits."""

from __future__ import annotations

import mpmath
import torch
from torch import Tensor

from implicit_bregman.linalg.graded import graded_least_squares


def exact(matrix: Tensor, right: Tensor) -> list[mpmath.mpf]:
    a, b = mpmath.matrix(matrix.tolist()), mpmath.matrix(right.tolist())
    return list(mpmath.lu_solve(a.T * a, a.T * b))


def test_rows_of_very_different_sizes() -> None:
    torch.manual_seed(0)
    n, m, k = 6, 8, 4
    # Powers of two and small integers, so that nothing is rounded.
    sizes = 2.0 ** (-500 * torch.rand(n, m, dtype=torch.float64).square()).round()
    matrix = torch.randint(-9, 10, (n, m, k)).double()
    # (two columns that only the small rows tell apart)
    matrix[:, :5, 3] = matrix[:, :5, 0] + matrix[:, :5, 1]
    sizes[:, 5:] *= 2.0**-60
    matrix, right = matrix * sizes[:, :, None], torch.randint(-9, 10, (n, m)) * sizes
    x, residual, dependent = graded_least_squares(matrix, right)
    assert not bool(dependent.any())
    with mpmath.workdps(700):
        for row in range(n):
            expected = exact(matrix[row], right[row])
            for found, truth in zip(x[row].tolist(), expected, strict=True):
                assert abs(found - truth) <= 1e-7 * max(map(abs, expected))
                left = mpmath.matrix(right[row].tolist()) - mpmath.matrix(matrix[row].tolist()) * mpmath.matrix(
                    expected
                )
                for found, truth in zip(residual[row].tolist(), left, strict=True):
                    assert abs(found - truth) <= 1e-10 * mpmath.norm(left)


def test_plain_systems_agree_with_lstsq() -> None:
    torch.manual_seed(1)
    matrix, right = torch.randn(5, 7, 3, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    x, residual, dependent = graded_least_squares(matrix, right)
    expected = torch.linalg.lstsq(matrix, right[:, :, None]).solution.squeeze(-1)
    torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(residual, right - (matrix @ x[:, :, None]).squeeze(-1), rtol=0, atol=1e-13)
    assert not bool(dependent.any())


def test_dependent_columns_are_told() -> None:
    matrix = torch.tensor([[[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]], [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]]).double()
    right = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]).double()
    x, residual, dependent = graded_least_squares(matrix, right)
    assert dependent.tolist() == [1, 0]
    torch.testing.assert_close((matrix @ x[:, :, None]).squeeze(-1) + residual, right)
    torch.testing.assert_close(residual, torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 3.0]]).double(), rtol=0, atol=1e-15)
    nothing, residual, dependent = graded_least_squares(torch.zeros(1, 3, 2).double(), right[:1])
    assert nothing.tolist() == [[0.0, 0.0]]
    assert dependent.tolist() == [2]
    torch.testing.assert_close(residual, right[:1])
