"""Solves with the free block of a shared matrix, one free set per sample."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.linalg.chunks import chunks
from implicit_bregman.linalg.dense import solve_general


def solve_on_free_set(
    matrix: Float[Tensor, "d d"],
    free: Bool[Tensor, "batch d"],
    rhs: Float[Tensor, "batch d"],
    definite: bool,
    widest: int,
) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]] | None:
    """x with x_A = 0 and (A x)_F = b_F, F the free set of each sample and A the shared matrix.

    Samples that share a free set share one factorization.

    Args:
        matrix: A, (d, d).
        free: F, (B, d).
        rhs: b, (B, d); its entries outside F do not matter.
        definite: whether to refuse blocks that are not positive definite (of a symmetric A).
        widest: the d beyond which a factorization for every sample costs too much.

    Returns:
        x, (B, d), and whether each sample could be solved: A_FF nonsingular, or A_FF ≻ 0 if `definite`. None where it
        costs too much.
    """
    if len(free) == 0:
        return torch.zeros_like(rhs), free.any(-1)
    sets, owner = torch.unique(free, dim=0, return_inverse=True)
    if 8 * len(sets) <= len(free):
        return _by_set(matrix, sets, owner, rhs, definite)
    if matrix.shape[0] <= widest:
        return _by_sample(matrix, free, rhs, definite)
    return None


def _by_set(matrix: Tensor, sets: Tensor, owner: Tensor, rhs: Tensor, definite: bool) -> tuple[Tensor, Tensor]:
    """One factorization per set, of its free block alone."""
    x = torch.zeros_like(rhs)
    solved = torch.ones(len(rhs), dtype=torch.bool, device=rhs.device)
    for number, mask in enumerate(sets):
        rows = (owner == number).nonzero().squeeze(-1)
        columns = mask.nonzero().squeeze(-1)
        if len(columns) == 0:
            continue
        part, good = _solve(matrix[columns][:, columns], rhs[rows][:, columns].mT, definite)
        good = good & torch.isfinite(part).all(0)
        solved[rows] = good
        x[rows[:, None], columns] = torch.where(good, part, 0.0).mT
    return x, solved


def _by_sample(matrix: Tensor, free: Tensor, rhs: Tensor, definite: bool) -> tuple[Tensor, Tensor]:
    """One batched factorization, with the identity in place of the active rows and columns."""
    values, goods = [], []
    identity = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    for rows in chunks(free):
        mask = free[rows]
        system = torch.where(mask[:, :, None] & mask[:, None, :], matrix, identity)
        part, good = _solve(system, torch.where(mask, rhs[rows], 0.0)[:, :, None], definite)
        part = part.squeeze(-1)
        good = good & torch.isfinite(part).all(-1)
        values.append(torch.where(good[:, None] & mask, part, 0.0))
        goods.append(good)
    return torch.cat(values), torch.cat(goods)


def _solve(system: Tensor, rhs: Tensor, definite: bool) -> tuple[Tensor, Tensor]:
    """Cholesky or LU, and whether it succeeded. LU is the faster of the two in a batch of small systems."""
    if definite:
        factor, info = torch.linalg.cholesky_ex(system)
        return torch.cholesky_solve(rhs, factor), info == 0
    return solve_general(system, rhs)
