"""The objective's second-order model at an iterate: what forward solvers and adjoints share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.energy.base import Hessian
from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.linalg.cg import LinearSolution, conjugate_gradient
from implicit_bregman.objective import Point

#: Coordinates whose D₊ exceeds this share of the largest are preconditioned together,
_STEEP = 0.1
#: and those whose D₊ does not exceed this one are flat: dividing by D₊ would cost digits.
_NOT_FLAT = 1e-3
#: The diagonal is preconditioner enough where the mean of shift/D₊ exceeds this share of λ_max(H).
_DIAGONAL_WILL_DO = 0.5
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
        return torch.addcmul(self.shift.to(p.dtype) * p, root, self.hessian.product(root * p))

    def solve_symmetric(
        self, right: Float[Tensor, "batch d"], tol: float | Float[Tensor, " batch"], max_iter: int
    ) -> LinearSolution:
        """v = S p, where (diag(shift) + S H S) p = `right`, by preconditioned CG; H symmetric.

        Where no coordinate is flat, by the equivalent form diag(shift/D₊) + H in v itself, which takes fewer
        operations. The preconditioner is the diagonal or, where the shift is small against S H S, the inverse of
        H + κI that all samples share, κ the mean of shift/D₊; flat coordinates keep their diagonal.
        """
        root, least = self.slope.sqrt(), _NOT_FLAT * self.slope.amax(-1, keepdim=True)
        inverse = self._shared_inverse()
        shared = self.hessian.shared
        if bool((self.slope > least).all()):
            ratio = self.shift / self.slope
            if shared is None:
                operator = lambda v: torch.addcmul(self.hessian.product(v), ratio, v)  # noqa: E731
                diagonal = ratio.clamp_min(torch.finfo(ratio.dtype).tiny)
            else:
                weight = shared.weight.to(ratio.dtype)
                operator = lambda v: torch.addmm(ratio * v, v, weight, alpha=-1)  # noqa: E731
                diagonal = self.diagonal() / self.slope
            precondition = (lambda r: r @ inverse) if inverse is not None else (lambda r: r / diagonal)
            return conjugate_gradient(operator, right / root, precondition, tol, max_iter)
        diagonal = self.diagonal()
        precondition = lambda r: r / diagonal  # noqa: E731
        if inverse is not None:
            steep = self.slope > _STEEP * self.slope.amax(-1, keepdim=True)
            reciprocal = torch.where(steep, root, 1.0).reciprocal() * steep
            rest = torch.where(steep, 0.0, 1 / diagonal)
            precondition = lambda r: torch.addcmul(rest * r, reciprocal, (reciprocal * r) @ inverse)  # noqa: E731
        product = self.hessian.product
        found = conjugate_gradient(
            lambda p: torch.addcmul(self.shift * p, root, product(root * p)), right, precondition, tol, max_iter
        )
        return replace(found, value=root * found.value)

    def _shared_inverse(self) -> Float[Tensor, "d d"] | None:
        """(H + κI)⁻¹ with κ the mean of shift/D₊ where D₊ is not small, if it is worth having."""
        shared = self.hessian.shared
        if shared is None or not shared.symmetric or not shared.is_worth_inverting(len(self.slope)):
            return None
        steep = self.slope > _STEEP * self.slope.amax(-1, keepdim=True)
        ratio = torch.where(steep, self.shift / self.slope, 0.0)
        mean = float(ratio.sum() / steep.sum().clamp_min(1))
        # (a mean that is not positive, or not a number, is no shift either)
        if not 0 < mean * shared.gradient_step < _DIAGONAL_WILL_DO:
            return None
        inverse = shared.damped_inverse(mean)
        return None if inverse is None else inverse.to(self.slope.dtype)

    def newton_step(
        self, error: Float[Tensor, "batch d"], tol: Float[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
        """v = DΔy for the Newton step (γ + H D) Δy = −E, and whether a negative curvature was met.

        Args:
            error: E.
            tol: relative residual of the linear system, per sample.
        """
        # CG in the Hessian's own precision: it stops long before its digits end, and E is scaled to 1.
        shared = self.hessian.shared
        dtype = error.dtype if shared is None else shared.weight.dtype
        system = Linearization(self.hessian, self.slope.to(dtype), self.shift.to(dtype))
        size = error.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
        right = system.slope.sqrt() * (error / size).neg().to(dtype)
        found = system.solve_symmetric(right, tol.to(dtype), _MOST_PRODUCTS)
        return found.value.to(error.dtype) * size, ~found.positive

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
