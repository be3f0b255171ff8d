"""Least squares with rows of very different sizes, whose normal equations lose the small ones."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: What is left of an entry counts as 0 below this part of the size of its row.
_ROUNDING = 64 * torch.finfo(torch.float64).eps


def graded_least_squares(
    matrix: Float[Tensor, "batch m k"], right: Float[Tensor, "batch m"]
) -> tuple[Float[Tensor, "batch k"], Float[Tensor, "batch m"], Int[Tensor, " batch"]]:
    """The x that minimises ‖Ax − b‖ for each sample, with errors relative to each row of A and b.

    Householder's method with the largest entry left as the pivot, which is stable row by row (Powell and Reid, 1969;
    Cox and Higham, 1998).

    Args:
        matrix: A, with m ≥ k, in float64.
        right: b.

    Returns:
        x (B, k), with 0 for the columns that depend on others; b − Ax (B, m); the number of such columns, (B,).
    """
    n, m, k = matrix.shape
    # One array: what is applied to A is applied to b.
    work = torch.cat([matrix, right[:, :, None]], -1)
    sizes = matrix.abs().amax(-1)
    rows = torch.arange(m, device=matrix.device).expand(n, m).contiguous()
    columns = torch.arange(k, device=matrix.device).expand(n, k).contiguous()
    dependent = torch.zeros(n, k, dtype=torch.bool, device=matrix.device)
    reflectors = torch.zeros_like(matrix)
    for j in range(k):
        pivot = work[:, j:, j:k].abs().flatten(1).argmax(-1)
        row = j + pivot // (k - j)
        work, rows, sizes, reflectors = (_swapped(t, 1, j, row) for t in (work, rows, sizes, reflectors))
        work, columns = _swapped(work, 2, j, j + pivot % (k - j)), _swapped(columns, 1, j, j + pivot % (k - j))
        column = work[:, j:, j]
        dependent[:, j] = (column == 0).all(-1)
        v = _reflector(column)
        reflectors[:, j:, j] = v
        work = torch.cat([work[:, :j], _reflected(work[:, j:], v)], 1)
        # What rounding leaves of a large row must not pass for a small one.
        noise = work[:, j:, :k].abs() <= _ROUNDING * sizes[:, j:, None]
        work[:, j:, :k] = torch.where(noise, 0.0, work[:, j:, :k])
    upper, rotated = work[:, :k, :k], work[:, :k, k]
    x = _back_substituted(upper, rotated, dependent)
    # The residual is what the triangle does not reach, turned back.
    rest = torch.cat([torch.where(dependent, rotated, 0.0), work[:, k:, k]], 1)[:, :, None]
    for j in reversed(range(k)):
        rest = torch.cat([rest[:, :j], _reflected(rest[:, j:], reflectors[:, j:, j])], 1)
    solution = torch.zeros_like(x).scatter(1, columns, x)
    residual = torch.zeros_like(right).scatter(1, rows, rest.squeeze(-1))
    return solution, residual, dependent.sum(-1)


def _swapped(tensor: Tensor, dim: int, here: int, there: Tensor) -> Tensor:
    """The tensor with two slices of a dimension exchanged, another pair for each sample."""
    order = torch.arange(tensor.shape[dim], device=tensor.device).expand(len(tensor), -1).clone()
    order[:, here] = there
    order.scatter_(1, there[:, None], here)
    shape = [len(tensor), *[1] * (tensor.dim() - 1)]
    shape[dim] = -1
    return tensor.gather(dim, order.reshape(shape).expand_as(tensor))


def _reflector(column: Tensor) -> Tensor:
    """v with ‖v‖² = 2 whose reflection I − vvᵀ leaves the first entry of a column alone; 0 for a column of zeros."""
    size = column.abs().amax(-1, keepdim=True)
    x = column / torch.where(size > 0, size, 1.0)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    first = x[:, :1] + norm.copysign(x[:, :1])
    v = torch.cat([first, x[:, 1:]], -1)
    # ‖v‖² = 2 ‖x‖ |v₁|
    return v / torch.where(norm > 0, (norm * first.abs()).sqrt(), 1.0)


def _reflected(block: Tensor, v: Tensor) -> Tensor:
    return block - v[:, :, None] * (v[:, None, :] @ block)


def _back_substituted(upper: Tensor, right: Tensor, dependent: Tensor) -> Tensor:
    diagonal = upper.diagonal(dim1=-2, dim2=-1)
    # Rows with a unit diagonal, so that nothing overflows; a dependent column has the solution 0.
    scale = torch.where(dependent | (diagonal == 0), 1.0, diagonal)
    triangle = torch.where(dependent[:, :, None], 0.0, upper.triu(1) / scale[:, :, None])
    rhs = torch.where(dependent, 0.0, right / scale)
    x: Tensor = torch.linalg.solve_triangular(triangle, rhs[:, :, None], upper=True, unitriangular=True)
    return x.squeeze(-1)
