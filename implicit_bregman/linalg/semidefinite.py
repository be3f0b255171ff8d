"""Solves with the free blocks of a shared matrix that is positive semidefinite up to rounding, in float64.

Whether a block is definite is judged after scaling it to a unit diagonal, so that it does not depend on the units of
the coordinates, and against the rounding error of the precision in which the matrix was given.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.linalg.blocks import members, padded_blocks
from implicit_bregman.linalg.chunks import chunk_slices

#: An eigenvalue of a block with unit diagonal counts as 0 up to so many rounding errors of the block's norm.
_ROUNDING = 4
#: The least damping, relative to the diagonal, and what it is multiplied by as long as a factorization fails.
_LEAST_DAMPING, _MORE_DAMPING = 16 * torch.finfo(torch.float64).eps, 1e3
#: How often it may fail.
_TRIES = 4


def solve_damped(
    matrix: Float[Tensor, "d d"],
    free: Bool[Tensor, "batch d"],
    rhs: Float[Tensor, "batch d"],
    damping: Float[Tensor, "batch d"],
) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
    """x with x_A = 0 and (H x)_F + damping·x_F = b_F, and whether the sum could be factorized, (B,).

    Args:
        matrix: H, (d, d).
        free: F, (B, d).
        rhs: b, (B, d).
        damping: (B, d), not negative. A few rounding errors of the diagonal are added, more where they do not do.
    """
    index, valid = members(free)
    b, own = rhs.gather(1, index) * valid, damping.gather(1, index)
    x, solved = torch.zeros_like(b), torch.zeros_like(free[:, 0])
    level = _LEAST_DAMPING * max(1, index.shape[1])
    for _ in range(_TRIES):
        left = (~solved).nonzero().squeeze(-1)
        if len(left) == 0:
            break
        for rows in left.split(_rows_at_once(index)):
            block = padded_blocks(matrix, index[rows], valid[rows])
            diagonal = block.diagonal(dim1=-2, dim2=-1)
            diagonal.add_(own[rows] + level * diagonal.abs())
            factor, info = torch.linalg.cholesky_ex(block)
            found = torch.cholesky_solve(b[rows, :, None], factor).squeeze(-1)
            good = (info == 0) & torch.isfinite(found).all(-1)
            x[rows] = torch.where(good[:, None], found, 0.0)
            solved[rows] = good
        level *= _MORE_DAMPING
    return torch.zeros_like(rhs).scatter_add(1, index, x * valid), solved


def solve_minimum_norm(
    matrix: Float[Tensor, "d d"], free: Bool[Tensor, "batch d"], rhs: Float[Tensor, "batch d"], eps: float
) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
    """The shortest x with x_A = 0 that minimises ‖(H x − b)_F‖, and whether H_FF is definite, (B,).

    Args:
        matrix: H, (d, d), positive semidefinite up to its rounding error.
        free: F, (B, d).
        rhs: b, (B, d); its entries outside F do not matter.
        eps: the rounding error of the precision in which H was given.
    """
    x, definite = solve_definite(matrix, free, rhs, eps)
    for rows, columns in same_sets(free, (~definite).nonzero().squeeze(-1)):
        basis, inside = solve_in_range(matrix[columns][:, columns], rhs[rows][:, columns], eps)
        x[rows[:, None], columns] = inside @ basis.mT
    return x, definite


def solve_definite(
    matrix: Float[Tensor, "d d"], free: Bool[Tensor, "batch d"], rhs: Float[Tensor, "batch d"], eps: float
) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
    """x with x_A = 0 and (H x)_F = b_F where H_FF is positive definite beyond rounding, else 0; and where it is."""
    index, valid = members(free)
    b = rhs.gather(1, index) * valid
    x, definite = torch.zeros_like(b), torch.ones_like(free[:, 0])
    if index.shape[1] == 0:
        return torch.zeros_like(rhs), definite
    for rows in torch.arange(len(free), device=free.device).split(_rows_at_once(index)):
        block, scale = unit_diagonal(padded_blocks(matrix, index[rows], valid[rows]))
        factor, info = torch.linalg.cholesky_ex(block)
        right = (scale * b[rows])[:, :, None]
        found = torch.cholesky_solve(right, factor)
        # one round of refinement
        found += torch.cholesky_solve(right - block @ found, factor)
        block.diagonal(dim1=-2, dim2=-1).sub_(rounding(block, eps)[:, None])
        good = (info == 0) & (torch.linalg.cholesky_ex(block).info == 0)
        x[rows] = torch.where(good[:, None], scale * found.squeeze(-1), 0.0)
        definite[rows] = good
    return torch.zeros_like(rhs).scatter_add(1, index, x * valid), definite


def solve_in_range(
    block: Float[Tensor, "n n"], rhs: Float[Tensor, "batch n"], eps: float
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "batch k"]]:
    """An orthonormal basis Q of the range of a block H, and x with QᵀHQ x = Qᵀb."""
    basis = range_basis(block, eps)
    factor, _ = torch.linalg.cholesky_ex(basis.mT @ block @ basis)
    return basis, torch.cholesky_solve(basis.mT @ rhs.mT, factor).mT


def range_basis(block: Float[Tensor, "n n"], eps: float) -> Float[Tensor, "n k"]:
    """An orthonormal basis of the range of a matrix that is positive semidefinite up to rounding."""
    scaled, scale = unit_diagonal(block)
    values, vectors = torch.linalg.eigh(scaled)
    kept = values > rounding(scaled, eps)
    return torch.linalg.qr(vectors[:, kept] / scale[:, None]).Q


def unit_diagonal(block: Float[Tensor, "*batch n n"]) -> tuple[Float[Tensor, "*batch n n"], Float[Tensor, "*batch n"]]:
    """S A S with a diagonal of ones (0 where that of A is not positive), and the diagonal of S."""
    diagonal = block.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    return scale[..., :, None] * block * scale[..., None, :], scale


def rounding(block: Float[Tensor, "*batch n n"], eps: float) -> Float[Tensor, "*batch"]:
    """What an eigenvalue of a block with unit diagonal has to exceed to be told from 0."""
    return _ROUNDING * eps * torch.linalg.matrix_norm(block)


def same_sets(
    free: Bool[Tensor, "batch d"], rows: Int[Tensor, " some"]
) -> Iterator[tuple[Int[Tensor, " same"], Int[Tensor, " n"]]]:
    """The rows of some samples, those with the same free set together, and the members of that set."""
    if len(rows) == 0:
        return
    sets, owner = torch.unique(free[rows], dim=0, return_inverse=True)
    for number, mask in enumerate(sets):
        yield rows[owner == number], mask.nonzero().squeeze(-1)


def _rows_at_once(index: Tensor) -> int:
    part = chunk_slices(len(index), index.shape[1] ** 2)[0]
    return int(part.stop - part.start)
