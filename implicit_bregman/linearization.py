"""The objective's second-order model at an iterate: what forward solvers and adjoints share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.energy.base import Hessian
from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.objective import Point


@dataclass(frozen=True)
class Linearization:
    """The adjoint system at z with its next MM iterate z⁺, scaled so that nothing overflows at a bound.

    With H = ∇²f(z), D₊ = 1/φ''(z⁺) and r = φ''(z)/((1 + τγ) φ''(z⁺)), the derivative v = dL/dc for g = dL/dz solves

        [ diag((1 + τγ)(1 − r)/τ) + Hᵀ D₊ ] u = g,    v = D₊ u.

    Inside C and at a fixed point the first term is γ D₊⁻¹ D₊ = γ; on an active bound D₊ → 0, so that v → 0 by
    itself. At a polished point D₊ is 1 on the free set and 0 elsewhere, and the first term the reverse.

    Attributes:
        hessian: H.
        slope: D₊, (B, d).
        shift: (1 + τγ)(1 − r)/τ, (B, d).
    """

    hessian: Hessian
    slope: Tensor
    shift: Tensor

    def apply(self, u: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The adjoint operator above, in u's precision (where H is a matrix)."""
        return self.shift.to(u.dtype) * u + self.hessian.product(self.slope.to(u.dtype) * u, transpose=True)

    def apply_symmetric(self, p: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The symmetric form diag(shift) + S H S with S = √D₊, where p = S u."""
        root = self.slope.to(p.dtype).sqrt()
        return self.shift.to(p.dtype) * p + root * self.hessian.product(root * p)

    def dense(self, symmetric: bool, rows: slice, dtype: torch.dtype) -> Float[Tensor, "rows d d"]:
        """The operator (or its symmetric form) as one matrix per sample, for a part of the batch.

        Raises:
            ValueError: if H is not a shared matrix.
        """
        if self.hessian.matrix is None:
            raise ValueError("the Hessian of this energy is not a matrix that all samples share")
        matrix = self.hessian.matrix.to(dtype)
        slope, shift = self.slope[rows].to(dtype), self.shift[rows].to(dtype)
        if symmetric:
            root = slope.sqrt()
            return torch.diag_embed(shift) + root[:, :, None] * matrix * root[:, None, :]
        return torch.diag_embed(shift) + matrix.mT * slope[:, None, :]

    def diagonal(self) -> Float[Tensor, "batch d"]:
        """The operator's diagonal, made positive for use as a preconditioner."""
        if self.hessian.matrix is None:
            return torch.ones_like(self.shift)
        diagonal = self.shift + self.slope * self.hessian.matrix.diagonal().to(self.slope.dtype)
        size = diagonal.abs().amax(-1, keepdim=True)
        return torch.where(diagonal > 1e-6 * size, diagonal, torch.where(size > 0, size, 1.0))


def linearize(
    hessian: Hessian,
    geometry: LegendreFunction,
    regularization: float,
    point: Point,
) -> Linearization:
    """The second-order model at an iterate, from its next MM iterate."""
    dual, step = point.dual, point.step
    with torch.no_grad():
        grow = 1 + step * regularization
        slope = geometry.slope(point.next_dual)
        # y⁺ − y before rounding: a saturated y may be so large that y⁺ rounds to it, and the coordinate would look
        # interior. For short steps the midpoint rule keeps all digits of the change of log φ''.
        move = -step * (point.gradient + regularization * dual) / grow
        short = move.abs() <= 1e-3 * (1 + dual.abs())
        growth = torch.where(
            short,
            move * geometry.log_curvature_slope(dual + 0.5 * move),
            geometry.log_curvature(point.next_dual) - geometry.log_curvature(dual),
        )
        # An iterate that has not converged may be far more saturated than its successor: keep the ratio finite.
        shift = -grow * torch.expm1((-growth - grow.log()).clamp_max(40.0)) / step
        # Where ρ' is 0 (beyond the clamp of a φ that is not Legendre, or by underflow) the coordinate is active.
        shift = torch.where(slope > 0, shift, grow / step)
    return Linearization(hessian, slope, shift)


def linearize_on_free_set(hessian: Hessian, free: Bool[Tensor, "batch d"], dtype: torch.dtype) -> Linearization:
    """The second-order model at polished points: the Hessian's free block, the identity on active coordinates."""
    inside = free.to(dtype)
    return Linearization(hessian, inside, 1 - inside)
