"""The objective's second-order model at an iterate: what forward solvers and adjoints share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre.coupling import Coupling
from implicit_bregman.linalg.cg import LinearSolution, conjugate_gradient
from implicit_bregman.linalg.chebyshev import Preconditioner, semi_iteration, steps_needed
from implicit_bregman.linalg.gmres import gmres
from implicit_bregman.linalg.updates import apply_updates
from implicit_bregman.operators import LinearOperator
from implicit_bregman.operators.free import FreeBlocks
from implicit_bregman.operators.packing import packed
from implicit_bregman.operators.splitter import Ends

#: Coordinates whose D₊ exceeds this share of the largest are preconditioned together,
_STEEP = 0.1
#: and those whose D₊ does not exceed this one are flat: dividing by D₊ would cost digits.
_NOT_FLAT = 1e-3
#: The diagonal is preconditioner enough where the mean of shift/D₊ exceeds this share of λ_max(H).
_DIAGONAL_WILL_DO = 0.5
#: The share of coordinates that have to be steep.
_MOST = 0.9
#: Most Chebyshev steps: conjugate gradients need fewer, but three times as many operations for each.
_MOST_SWEEPS = 28
#: γ/λ_max, relative to the largest D, from which on these need no preconditioner.
_NO_NEED = 0.4


class Stepped(Protocol):
    """An iterate y, ∇f there, τ and the next MM iterate."""

    @property
    def dual(self) -> Float[Tensor, "batch d"]: ...

    @property
    def gradient(self) -> Float[Tensor, "batch d"]: ...

    @property
    def step(self) -> Float[Tensor, "batch 1"]: ...

    @property
    def next_dual(self) -> Float[Tensor, "batch d"]: ...


@dataclass(frozen=True)
class UpdatedIdentity:
    """r ↦ κ(r + Σ right_i ⟨left_i, r⟩): about the inverse of the operator below, as a quasi-Newton method knows it.

    Attributes:
        scale: κ, (B, 1).
        left, right: (B, m, d).
    """

    scale: Tensor
    left: Tensor
    right: Tensor

    def __call__(self, r: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return self.scale * (r + apply_updates(self.right, self.left, r))


@dataclass(frozen=True)
class Linearization:
    """The adjoint system at z with its next MM iterate z⁺, scaled so that nothing overflows at a bound.

    With H = ∇²f(z), D₊ = 1/φ''(z⁺) and r = φ''(z)/((1 + τγ) φ''(z⁺)), the derivative v = dL/dc for g = dL/dz solves

        [ diag((1 + τγ)(1 − r)/τ) + Hᵀ D₊ ] u = g,    v = D₊ u.

    Inside C and at a fixed point the first term is γ D₊⁻¹ D₊ = γ; on an active bound D₊ → 0, so that v → 0 by
    itself. At an exact point D₊ is 1 on the free set and 0 elsewhere, and the first term the reverse.

    Attributes:
        hessian: H.
        slope: D₊, (B, d).
        shift: (1 + τγ)(1 − r)/τ, (B, d).
        on_free_sets: whether every sample's system is known to be the free block of H and the identity.
        blocks: then the factors of these, if they are known.
        splitting: else the ends of the spectrum by which `Splitter` solves them, or a system with one `damping`, where
            that is known to be cheap.
        damping: the number that the shift is known to be everywhere (γ, at an exact point), if so.
        estimate: about the inverse of the operator, to precondition GMRES with, if there is one that is worth it.
        coupling: how the coordinates of C depend on each other, if they do: D₊ is then `coupling.derivative(slope, ·)`,
            and `TangentSystem` solves.
    """

    hessian: LinearOperator
    slope: Tensor
    shift: Tensor
    on_free_sets: bool = False
    blocks: FreeBlocks | None = None
    damping: float | None = None
    splitting: Ends | None = None
    estimate: UpdatedIdentity | None = None
    coupling: Coupling | None = None

    def pack(self) -> tuple[tuple[Tensor, ...], Callable[..., Linearization]]:
        """Its tensors, and a function that makes the same of them and holds none itself."""
        hessian, rebuild = self.hessian.pack_known(splits=self.splitting is not None)
        blocks = None if self.blocks is None else self.blocks.to_keep(self.slope.shape[-1], self.hessian.costs)
        kept, remake = packed((blocks, self.splitting, self.estimate))
        make = partial(_rebuild, rebuild, remake, len(kept), self.on_free_sets, self.damping, self.coupling)
        return (self.slope, self.shift, *kept, *hessian), make

    def apply(self, u: Float[Tensor, "batch d"], adjoint: bool = True) -> Float[Tensor, "batch d"]:
        """The operator above, or with H in place of Hᵀ, in u's precision (where H `factorizes`)."""
        return self.shift.to(u.dtype) * u + self.hessian.product(self.slope.to(u.dtype) * u, adjoint)

    def forward_step(
        self, right: Float[Tensor, "batch d"], tol: Float[Tensor, " batch"], max_iter: int
    ) -> LinearSolution:
        """Δy with (shift + HD)Δy = `right`, the step of a Newton method without symmetry, by GMRES.

        Args:
            right: the right-hand side.
            tol: relative residual, per sample.
            max_iter: bound on the number of products.
        """
        return gmres(lambda u: self.apply(u, adjoint=False), right, self._scaling(), tol, max_iter)

    def solve_symmetric(
        self, g: Float[Tensor, "batch d"], tol: float | Float[Tensor, " batch"], max_iter: int
    ) -> LinearSolution:
        """v with (diag(shift/D₊) + H) v = g, by preconditioned CG; H symmetric.

        In this form where no coordinate is flat, else in the symmetric form (diag(shift) + S H S) p = S g, v = S p.
        The preconditioner is the diagonal or, where the shift is small against D₊H, the inverse of H + κI that all
        samples share, κ the mean of shift/D₊; flat coordinates keep their diagonal.

        Args:
            g: the right-hand side.
            tol: relative residual of the form that is solved, one for all samples or one for each.
            max_iter: bound on the number of products.
        """
        least = _NOT_FLAT * self.slope.amax(-1, keepdim=True)
        return (
            self._solve_plain(g, tol, max_iter)
            if bool((self.slope > least).all())
            else self._solve_scaled(g, tol, max_iter)
        )

    def sweep(
        self, g: Float[Tensor, "batch d"], tol: float, max_iter: int
    ) -> tuple[Float[Tensor, "batch d"], int] | None:
        """u with (γ + HD₊) u = g by Chebyshev's semi-iteration, and the products it took; v = D₊u.

        None where that would take many steps, or is not possible.

        The shift has to be one number γ. With P = (γ + s̄H)⁻¹ the eigenvalues of P(γ + HD) are between
        (a + D_min)/(a + s̄) and (a + D_max)/(a + s̄), or 1, with a = γ/λ_max.

        Args:
            g: the right-hand side.
            tol: about the relative residual that is wanted; the result has to be judged.
            max_iter: bound on the number of products.
        """
        hessian, gamma = self.hessian, self.damping
        if gamma is None or not (hessian.factorizes and hessian.symmetric):
            return None
        length = hessian.gradient_step or 1.0
        flattest, steepest = self.slope_range
        a = gamma * length
        precondition: Preconditioner | None = None
        interval = (gamma, gamma * (1 + steepest / a))
        if a < _NO_NEED * steepest:
            damped = hessian.damped
            if damped is None:
                return None
            middle = gamma / damped.shift
            precondition = damped.scaled(1 / middle, g.dtype)
            interval = min(1.0, (a + flattest) / (a + middle)), max(1.0, (a + steepest) / (a + middle))
        count = steps_needed(interval, tol, min(_MOST_SWEEPS, max_iter))
        if count is None:
            return None
        slope = self.slope.to(g.dtype)

        def residual(u: Tensor) -> Tensor:
            return hessian.add_product(g, slope * u, alpha=-1.0).sub_(u, alpha=gamma)

        u = semi_iteration(residual, torch.zeros_like(g), g, precondition, interval, count)
        return u, count

    @cached_property
    def slope_range(self) -> tuple[float, float]:
        """The least and the largest D₊; 1 where there is none."""
        if self.slope.numel() == 0:
            return 1.0, 1.0
        least, largest = self.slope.aminmax()
        return float(least), float(largest)

    def _solve_plain(self, g: Tensor, tol: float | Tensor, max_iter: int) -> LinearSolution:
        ratio, hessian = self.shift / self.slope, self.hessian
        inverse = self._shared_inverse(float(ratio.mean()))

        def operator(v: Tensor) -> Tensor:
            return hessian.add_product(ratio * v, v)

        if inverse is not None:
            return conjugate_gradient(operator, g, inverse, tol, max_iter)
        scale = self.slope / self.diagonal()
        return conjugate_gradient(operator, g, lambda r: r * scale, tol, max_iter)

    def _solve_scaled(self, g: Tensor, tol: float | Tensor, max_iter: int) -> LinearSolution:
        root, reciprocal = self.slope.sqrt(), 1 / self.diagonal()
        steep = self.slope > _STEEP * self.slope.amax(-1, keepdim=True)
        ratio = torch.where(steep, self.shift / self.slope, 0.0)
        inverse = self._inverse_on(steep, ratio)
        product = self.hessian.product

        def operator(p: Tensor) -> Tensor:
            return torch.addcmul(self.shift * p, root, product(root * p))

        if inverse is None:
            found = conjugate_gradient(operator, root * g, lambda r: r * reciprocal, tol, max_iter)
        else:
            outer = torch.where(steep, root, 1.0).reciprocal() * steep
            rest = torch.where(steep, 0.0, reciprocal)
            found = conjugate_gradient(
                operator, root * g, lambda r: torch.addcmul(rest * r, outer, inverse(outer * r)), tol, max_iter
            )
        return replace(found, value=root * found.value)

    def _inverse_on(self, steep: Bool[Tensor, "batch d"], ratio: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The same for the mean of `ratio` on steep coordinates; None where many are flat.

        The part of an inverse is then far from the inverse of a part, and costs more iterations than it saves.
        """
        total, count = torch.stack([ratio.sum(dtype=torch.float64), steep.sum().double()]).tolist()
        return None if count < _MOST * steep.numel() else self._shared_inverse(total / max(count, 1))

    def _shared_inverse(self, kappa: float) -> Callable[[Tensor], Tensor] | None:
        """About (H + κI)⁻¹, if it is worth having."""
        hessian = self.hessian
        if not hessian.symmetric or not hessian.has_resolvent(len(self.slope)):
            return None
        # (a mean that is negative, or not a number, is no shift; without one H is inverted only if it is no matrix)
        if not 0 <= kappa * (hessian.gradient_step or torch.nan) < _DIAGONAL_WILL_DO:
            return None
        if kappa == 0 and hessian.factorizes:
            return None
        return hessian.resolvent(kappa)

    def newton_step(
        self,
        error: Float[Tensor, "batch d"],
        curvature: Float[Tensor, "#batch #d"],
        tol: Float[Tensor, " batch"],
        max_iter: int,
    ) -> LinearSolution:
        """v = DΔy for the Newton step (γ + H D) Δy = −E, by conjugate gradients.

        For (diag(shift/D) + H) v = −E scaled by its diagonal, in the Hessian's own precision: the residual then
        counts flat coordinates and steep ones alike. Preconditioned, where that helps, with an inverse that all
        samples share, on the steepest coordinates.

        Args:
            error: E.
            curvature: the diagonal of H or what stands for it, not negative.
            tol: relative residual of the scaled system, per sample.
            max_iter: bound on the number of products.
        """
        product, dtype = self.hessian.product, self.hessian.dtype
        smallest = torch.finfo(error.dtype).tiny
        ratio = self.shift / self.slope.clamp_min(smallest)
        root = (ratio + curvature).clamp_min(smallest).rsqrt()
        diagonal = (ratio * root * root).to(dtype)
        # Both scaled to 1, for single precision's sake.
        length, size = root.amax(-1, keepdim=True), error.abs().amax(-1, keepdim=True).clamp_min(smallest)
        scaling, square = (root / length).to(dtype), (length * length).to(dtype)
        right = scaling * (error / size).neg_().to(dtype)

        def operator(p: Tensor) -> Tensor:
            return torch.addcmul(diagonal * p, scaling * square, product(scaling * p))

        steep = self.slope > _STEEP * self.slope.amax(-1, keepdim=True)
        inverse = self._inverse_on(steep, torch.where(steep, ratio, 0.0))
        if inverse is None:
            found = conjugate_gradient(operator, right, torch.Tensor.clone, tol.to(dtype), max_iter)
        else:
            outer = torch.where(steep, root, 1.0).reciprocal().mul_(steep).to(dtype)
            rest = (~steep).to(dtype)
            found = conjugate_gradient(
                operator,
                right,
                lambda r: torch.addcmul(rest * r, outer, inverse(outer * r)),
                tol.to(dtype),
                max_iter,
            )
        return replace(found, value=(scaling * found.value).to(error.dtype) * (length * length * size))

    def preconditioner(self) -> Callable[[Tensor], Tensor]:
        """About the inverse of the adjoint operator, for GMRES: an estimate, or the diagonal's."""
        return self._scaling() if self.estimate is None else self.estimate

    def _scaling(self) -> Callable[[Tensor], Tensor]:
        """The inverse of the diagonal, where that is known."""
        return _unchanged if self.hessian.diagonal() is None else (1 / self.diagonal()).mul

    def diagonal(self) -> Float[Tensor, "batch d"]:
        """The operator's diagonal, made positive for use as a preconditioner."""
        entries = self.hessian.diagonal()
        if entries is None:
            return torch.ones_like(self.shift)
        diagonal = self.shift + self.slope * entries.to(self.slope.dtype)
        size = diagonal.abs().amax(-1, keepdim=True)
        return torch.where(diagonal > 1e-6 * size, diagonal, torch.where(size > 0, size, 1.0))


def _unchanged(r: Tensor) -> Tensor:
    return r


def _rebuild(
    rebuild: Callable[..., LinearOperator],
    remake: Callable[..., tuple[FreeBlocks | None, Ends | None, UpdatedIdentity | None]],
    count: int,
    on_free_sets: bool,
    damping: float | None,
    coupling: Coupling | None,
    slope: Tensor,
    shift: Tensor,
    *tensors: Tensor,
) -> Linearization:
    blocks, splitting, estimate = remake(*tensors[:count])
    hessian = rebuild(*tensors[count:])
    return Linearization(hessian, slope, shift, on_free_sets, blocks, damping, splitting, estimate, coupling)


def linearize(
    hessian: LinearOperator,
    geometry: MirrorMap,
    regularization: float,
    point: Stepped,
) -> Linearization:
    """The second-order model at an iterate, from its next MM iterate."""
    dual, step = point.dual, point.step
    with torch.no_grad():
        grow = 1 + step * regularization
        slope = geometry.slope(point.next_dual)
        # y⁺ − y before rounding: a saturated y may be so large that y⁺ rounds to it, and the coordinate would look
        # interior. For short steps the midpoint rule keeps all digits of the change of log φ''.
        move = -step * (point.gradient + regularization * dual) / grow
        # (where coordinates are coupled a level is taken off y⁺, which the move does not know of)
        short = (move.abs() <= 1e-3 * (1 + dual.abs())) & (geometry.coupling is None)
        growth = torch.where(
            short,
            move * geometry.log_curvature_slope(dual + 0.5 * move),
            geometry.log_curvature(point.next_dual) - geometry.log_curvature(dual),
        )
        # (1 + τγ)(1 − r)/τ with (1 + τγ) r = exp(−growth), without the cancellation that would round γ away.
        # An iterate that has not converged may be far more saturated than its successor: keep the ratio finite.
        shift = regularization - torch.expm1((-growth).clamp_max(40.0)) / step
        # Where ρ' is 0 (beyond the clamp of a φ that is not Legendre, or by underflow) the coordinate is active.
        shift = torch.where(slope > 0, shift, grow / step)
    return Linearization(hessian, slope, shift, coupling=geometry.coupling)


def linearize_on_free_set(
    hessian: LinearOperator,
    free: Bool[Tensor, "batch d"],
    dtype: torch.dtype,
    blocks: FreeBlocks | None = None,
    splitting: Ends | None = None,
    coupling: Coupling | None = None,
) -> Linearization:
    """The second-order model at exact points: the Hessian's free block, the identity on active coordinates."""
    inside = free.to(dtype)
    return Linearization(
        hessian, inside, 1 - inside, on_free_sets=True, blocks=blocks, splitting=splitting, coupling=coupling
    )
