"""The r × r system of the projection's adjoint, solved so that small slopes keep their digits."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.linalg.graded import graded_least_squares
from implicit_bregman.projection.basis import Basis, column_lengths
from implicit_bregman.tensors import rows_where

#: Where a pivot of a system with a unit diagonal is smaller, or the part of Dg that is left over, the system is solved
#: from its factors, without their product.
_THIN = 1e-5
#: A relative residual that a solved system does not exceed.
_SOLVED = 1e-8


def solve_projection_system(
    basis: Basis,
    slope: Float[Tensor, "batch d"],
    epsilon: Float[Tensor, " batch"],
    gradient: Float[Tensor, "batch d"],
) -> tuple[Float[Tensor, "batch r"], Float[Tensor, "batch d"], Bool[Tensor, " batch"], Float[Tensor, " batch"]]:
    """S w = VᵀDg and p = D(g − Vw) with S = VᵀDV + εI, in the orthonormal coordinates of V's range.

    Where V's columns are dependent, w is the shortest solution. Where the system is singular, it is one of them, p is
    unique all the same, and the sample is marked.

    Returns:
        w (B, r), p (B, d), whether the system is singular (B,), its relative residual (B,).
    """
    pulled = slope * gradient
    right = pulled @ basis.range
    matrix = basis.gram(slope) + epsilon[:, None, None] * basis.metric
    s, thin = _solve_scaled(matrix, right)
    error = torch.linalg.vector_norm((matrix @ s[:, :, None]).squeeze(-1) - right, dim=-1)
    size = torch.linalg.vector_norm(right, dim=-1)
    residual = error / torch.where(size > 0, size, 1.0)
    p = slope * (gradient - s @ basis.range.mT)
    w, singular = basis.multiplier(s), torch.zeros_like(thin)
    # What of Dg the constraints leave over has lost its digits where it is small.
    lost = torch.linalg.vector_norm(p, dim=-1) <= _THIN * torch.linalg.vector_norm(pulled, dim=-1)
    rows = rows_where(thin | ~(residual <= _SOLVED) | (lost & (s.shape[1] < p.shape[1])))
    if len(rows):
        exact = _solve_factored(basis, slope[rows], epsilon[rows], gradient[rows])
        w, p, singular = (old.index_copy(0, rows, new) for old, new in zip((w, p, singular), exact, strict=True))
        residual = residual.index_fill(0, rows, torch.finfo(residual.dtype).eps)
    return w, p, singular, residual


def _solve_scaled(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """x with A x = b, A positive semidefinite and scaled to a unit diagonal, and whether A is nearly singular, (B,).

    The scaling makes saturated samples, whose A is tiny as a whole, as good as any.
    """
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    scaled = scale[:, :, None] * matrix * scale[:, None, :]
    factor, info = torch.linalg.cholesky_ex(scaled)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    thin = (info != 0) | (pivots <= _THIN).any(-1) | ~torch.isfinite(pivots.sum(-1))
    x = torch.cholesky_solve((scale * right)[:, :, None], factor)
    return scale * x.squeeze(-1), thin


def _solve_factored(
    basis: Basis, slope: Tensor, epsilon: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Bool[Tensor, " batch"]]:
    """The same as the solution and the residual of a least squares problem, √D(Vw − g) and √ε w.

    Where the entries of D differ by orders of magnitude, S has lost the small ones. V itself, at unit length, is used
    instead of the orthonormal Q, in which what depends on what is rounded.

    Returns:
        w (B, r), p (B, d), whether S is singular to rounding where V is not (B,).
    """
    root, lengths = slope.sqrt(), column_lengths(basis.vectors)
    matrix = root[:, :, None] * (basis.vectors / lengths)
    right, spare = root * gradient, basis.null.shape[1]
    if bool((epsilon > 0).any()):
        below = epsilon.sqrt()[:, None, None] * (1 / lengths).diag()
        matrix = torch.cat([matrix, below], 1)
        right = torch.cat([right, right.new_zeros(len(right), len(lengths))], 1)
    unit, left, dependent = graded_least_squares(matrix, right)
    w = unit / lengths
    # Of all solutions the shortest; with ε > 0 there is one.
    w = torch.where((epsilon > 0)[:, None], w, w - (w @ basis.null) @ basis.null.mT)
    return w, root * left[:, : slope.shape[1]], dependent > torch.where(epsilon > 0, 0, spare)
