"""The objective's second-order model at an iterate: what forward solvers and adjoints share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.energy.base import Hessian
from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.linalg.cg import conjugate_gradient
from implicit_bregman.objective import Point

#: Coordinates whose D₊ exceeds this share of the largest are preconditioned together.
_STEEP = 0.1
#: The diagonal is preconditioner enough where the mean of shift/D₊ exceeds this share of λ_max(H).
_DIAGONAL_WILL_DO = 0.02
#: Most products in the linear system of one Newton step.
_MOST_PRODUCTS = 1000


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

    def preconditioner(self) -> Callable[[Tensor], Tensor]:
        """p ↦ M⁻¹p for the symmetric form: its diagonal or, where that would not do, the shared factor.

        Where D₊ spans little and the shift is small against S H S, (κ + H)⁻¹, κ the mean of shift/D₊ over those
        coordinates, stands for the form on all of them at once; the flat coordinates keep their diagonal.
        """
        diagonal = 1 / self.diagonal()
        shared = self.hessian.shared
        if shared is None or not shared.symmetric or not shared.is_worth_inverting(len(self.slope)):
            return lambda r: diagonal * r
        steep = self.slope > _STEEP * self.slope.amax(-1, keepdim=True)
        inverse_root = torch.where(steep, self.slope, 1.0).rsqrt() * steep
        share = float((self.shift * inverse_root.square()).sum() / steep.sum().clamp_min(1))
        if not share * shared.gradient_step < _DIAGONAL_WILL_DO:
            return lambda r: diagonal * r
        inverse = shared.damped_inverse(share)
        if inverse is None:
            return lambda r: diagonal * r
        rest = torch.where(steep, 0.0, diagonal)
        inverse = inverse.to(self.slope.dtype)
        return lambda r: inverse_root * ((inverse_root * r) @ inverse) + rest * r

    def newton_step(
        self, error: Float[Tensor, "batch d"], tol: Float[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
        """v = DΔy for the Newton step (γ + H D) Δy = −E, H v, and whether a negative curvature was met.

        Args:
            error: E.
            tol: relative residual of the symmetric form, per sample.
        """
        # CG in the Hessian's own precision: it stops long before its digits end, and E is scaled to 1.
        shared = self.hessian.shared
        dtype = error.dtype if shared is None else shared.weight.dtype
        system = Linearization(self.hessian, self.slope.to(dtype), self.shift.to(dtype))
        root, size = system.slope.sqrt(), error.abs().amax(-1, keepdim=True)
        size = torch.where(size > 0, size, 1.0)
        right = root * (error / size).neg().to(dtype)
        found = conjugate_gradient(
            system.apply_symmetric, right, system.preconditioner(), tol.to(dtype), _MOST_PRODUCTS
        )
        v = (root * found.value).to(error.dtype) * size
        return v, self.hessian.product(v), ~found.positive

    def dense(self, symmetric: bool, rows: slice, dtype: torch.dtype) -> Float[Tensor, "rows d d"]:
        """The operator (or its symmetric form) as one matrix per sample, for a part of the batch.

        Raises:
            ValueError: if H is not a shared matrix.
        """
        if self.hessian.shared is None:
            raise ValueError("the Hessian of this energy is not a matrix that all samples share")
        matrix = self.hessian.shared.matrix.to(dtype)
        slope, shift = self.slope[rows].to(dtype), self.shift[rows].to(dtype)
        if symmetric:
            root = slope.sqrt()
            return torch.diag_embed(shift) + root[:, :, None] * matrix * root[:, None, :]
        return torch.diag_embed(shift) + matrix.mT * slope[:, None, :]

    def diagonal(self) -> Float[Tensor, "batch d"]:
        """The operator's diagonal, made positive for use as a preconditioner."""
        if self.hessian.shared is None:
            return torch.ones_like(self.shift)
        diagonal = self.shift - self.slope * self.hessian.shared.weight.diagonal().to(self.slope.dtype)
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
