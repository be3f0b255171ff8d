"""Solves with the free block of a shared matrix, one free set per sample."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.linalg.cg import conjugate_gradient
from implicit_bregman.linalg.gmres import gmres

#: Up to this many (free sets × width) per sample, factorizing every free set is cheaper than iterating.
_DENSE_WORK = 1024


def solve_on_free_set(
    matrix: Float[Tensor, "d d"],
    free: Bool[Tensor, "batch d"],
    rhs: Float[Tensor, "batch d"],
    symmetric: bool,
) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
    """x with x_A = 0 and (A x)_F = b_F, F the free set of each sample and A the shared matrix.

    Samples with the same free set share one factorization. For a symmetric matrix A_FF must be positive definite.

    Args:
        matrix: A, (d, d).
        free: F, (B, d).
        rhs: b, (B, d); its entries outside F do not matter.
        symmetric: whether A is symmetric.

    Returns:
        x, (B, d), and whether each sample could be solved: A_FF ≻ 0 for a symmetric A, nonsingular otherwise.
    """
    sets, owner = torch.unique(free, dim=0, return_inverse=True)
    if len(sets) * matrix.shape[0] <= _DENSE_WORK * max(len(free), 1):
        return _dense(matrix, sets, owner, rhs, symmetric)
    return _iterative(matrix, free, rhs, symmetric)


def _dense(
    matrix: Tensor, sets: Tensor, owner: Tensor, rhs: Tensor, symmetric: bool
) -> tuple[Tensor, Tensor]:
    x = torch.zeros_like(rhs)
    solved = torch.ones(len(rhs), dtype=torch.bool, device=rhs.device)
    for number, mask in enumerate(sets):
        rows = (owner == number).nonzero().squeeze(-1)
        columns = mask.nonzero().squeeze(-1)
        if len(columns) == 0:
            continue
        block = matrix[columns][:, columns]
        right = rhs[rows][:, columns].mT
        if symmetric:
            factor, info = torch.linalg.cholesky_ex(block)
            part = torch.cholesky_solve(right, factor)
        else:
            part, info = torch.linalg.solve_ex(block, right)
        good = (info == 0) & torch.isfinite(part).all(0)
        solved[rows] = good
        x[rows[:, None], columns] = torch.where(good, part, 0.0).mT
    return x, solved


def _iterative(matrix: Tensor, free: Tensor, rhs: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    mask = free.to(rhs.dtype)
    diagonal = torch.where(free, matrix.diagonal(), 1.0)
    diagonal = torch.where(diagonal > 0, diagonal, 1.0)

    def operator(v: Tensor) -> Tensor:
        return mask * ((mask * v) @ matrix.mT) + (1 - mask) * v

    method = conjugate_gradient if symmetric else gmres
    tol = 64 * torch.finfo(rhs.dtype).eps
    solution = method(operator, mask * rhs, lambda r: r / diagonal, tol, 20 * matrix.shape[0])
    return mask * solution.value, solution.converged
