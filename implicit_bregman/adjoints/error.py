"""How wrong an implicit gradient is: one more Newton step from where the solver stopped, and the gradient there.

With dL/dW = v zᵀ at the iterate and v₂z₂ᵀ after the step, the relative error of what was returned is about

    ‖v₂ − v‖/‖v₂‖ + ‖v‖/‖v₂‖ · ‖z₂ − z‖/‖z₂‖ + the relative residual of the backward solve.

The change of v is what φ'' and the active set still change, amplified by the adjoint system as the gradient itself is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.legendre import MirrorMap
from implicit_bregman.linalg.cg import normalized
from implicit_bregman.linalg.gmres import gmres
from implicit_bregman.linalg.norms import norm, ratio
from implicit_bregman.linearization import Linearization, linearize, linearize_on_free_set
from implicit_bregman.majorization import mm_step
from implicit_bregman.objective import Objective, Point
from implicit_bregman.operators import LinearOperator

#: So many eps are rounding.
_ROUNDING = 100
#: An error below this is not refined where each product with the Hessian differentiates an energy of the user's.
_COSTLY = 1e-6
#: Newton steps are made until the gradient changes less than this from the iterate on, and so many at most:
_FAR = 0.1
_STEPS = 4
#: a step that raises the residual is shortened by this factor, so many times.
_SHORTER = 0.3
_SHORTENED = 4
#: The Newton step's own linear system: the relative residual, the products between two looks at it, and most of them,
#: where it is not factorized; and the width beyond which all products at once cost more than they save.
_COARSE = 0.03
_CYCLE, _PRODUCTS = 8, 50
_WIDE = 512
#: A gradient that grows by this factor within the last digits of z has no limit that it could be near to.
_GROWTH = 1.5


def quick_estimate(
    g: Tensor, v: Tensor, residual: Tensor, leftover: Tensor, leaving: Tensor | None, spread: Tensor | None = None
) -> Tensor:
    """The relative error of the gradient to the order of magnitude, from the residuals alone, (B,).

    Args:
        g: dL/dz.
        v: dL/dc.
        residual: of the backward solve, relative, (B,).
        leftover: the forward residual relative to z, (B,).
        leaving: the coordinates that are on their way to a bound, where v is 0 in the limit, (B, d); None: none.
        spread: what ρ'(y) may be off by, relative to itself, (B, d); None: nothing.
    """
    size = norm(v)
    of_value = ratio(size, norm(g)) * leftover
    # (relative to the value that is to be, which may be far from 0 where z is 0)
    error = residual + (1 - 1 / (1 + of_value))
    if spread is not None:
        error = error + ratio(norm(v * spread), size)
    if leaving is not None:
        error = error + ratio(norm(v * leaving), size)
    return error.to(v.dtype)


def or_infinite(error: Tensor) -> Tensor:
    """`error`, infinite where nothing is known of it."""
    return torch.where(torch.isnan(error), torch.inf, error)


def is_worth_refining(estimate: Float[Tensor, " batch"], system: Linearization) -> bool:
    """Whether some error is above rounding and, where products are costly, not small."""
    limit = _ROUNDING * torch.finfo(estimate.dtype).eps
    if not system.hessian.factorizes:
        limit = max(limit, _COSTLY)
    return not bool((estimate <= limit).all())


@dataclass(frozen=True)
class Iterate:
    """Where a solver stopped, as far as the next Newton step needs it.

    Attributes:
        geometry, regularization: φ and γ.
        dual, value, gradient: y, z and ∇f(z), (B, d).
        step: τ, (B, 1).
        exact: the samples at an exact point, whose system is that of their free set, (B, 1).
        solved: whether the residual is as small as it is asked to be by default, (B,).
    """

    geometry: MirrorMap
    regularization: float
    dual: Tensor
    value: Tensor
    gradient: Tensor
    step: Tensor
    exact: Tensor
    solved: Tensor

    @classmethod
    def of(cls, objective: Objective, point: Point, exact: Bool[Tensor, " batch"], tol: float) -> Iterate:
        """From an outcome's point; `tol` is the residual from which on a point counts as solved."""
        return cls(
            objective.geometry,
            objective.regularization,
            point.dual,
            point.value,
            point.gradient,
            torch.where(torch.isfinite(point.step), point.step, 1.0),
            exact[:, None],
            point.residual <= tol,
        )

    def pack(self) -> tuple[tuple[Tensor, ...], Callable[..., Iterate]]:
        """Its tensors but for z, and a function that makes the same of z and them and holds none itself."""
        tensors = (self.dual, self.gradient, self.step, self.exact, self.solved)
        return tensors, partial(_rebuild, self.geometry, self.regularization)

    @property
    def error(self) -> Float[Tensor, "batch d"]:
        """E = ∇f(z) + γy."""
        return self.gradient + self.regularization * self.dual if self.regularization else self.gradient

    def moved(self, system: Linearization, dual_step: Tensor) -> Iterate:
        """The point after a step in y (at exact samples: in z), with ∇f as its linear model."""
        geometry = self.geometry
        dual = geometry.project_dual(self.dual + dual_step)
        along = (self.value + system.slope * dual_step).clamp(*geometry.bounds(self.value.dtype))
        value = torch.where(self.exact, along, geometry.activation(dual))
        gradient = self.gradient + system.hessian.product(value - self.value)
        return replace(self, dual=dual, value=value, gradient=gradient)

    def spread(self, slope: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """About how wrong `slope` = ρ'(y) is relative to itself: |d log ρ'/dy| times the error of y.

        That is what E and rounding leave. It matters for saturated units, whose y is (c − Hz)/γ, and whose share of
        the gradient is ρ'(y)g/γ.
        """
        eps = torch.finfo(slope.dtype).eps
        error = self.error.abs_().add_(self.dual.abs().mul_(eps * self.regularization))
        change = error.div_((slope / self.step).add_(self.regularization))
        # (finite, since it is multiplied by what may be 0)
        return change.clamp_(max=1 / eps).mul_(self.geometry.log_curvature_slope(self.dual))

    @property
    def next_dual(self) -> Float[Tensor, "batch d"]:
        """The MM iterate after this one."""
        return mm_step(self.geometry, self.dual, self.gradient, self.step, self.regularization)

    @property
    def smooth(self) -> bool:
        """Whether the solution is a zero of E(y), with no coordinate at a bound."""
        return self.regularization > 0 and self.geometry.is_legendre

    def linearize(self, hessian: LinearOperator, slope: Tensor) -> Linearization:
        """The adjoint system here; `slope` is D₊ of the one before, which tells the free sets of exact samples."""
        if self.smooth:
            inverse = self.geometry.slope(self.dual)
            return Linearization(hessian, inverse, torch.full_like(inverse, self.regularization))
        here = linearize(hessian, self.geometry, self.regularization, self)
        if not bool(self.exact.any()):
            return here
        exact = linearize_on_free_set(hessian, self._free(slope > 0), self.value.dtype)
        return Linearization(
            hessian,
            torch.where(self.exact, exact.slope, here.slope),
            torch.where(self.exact, exact.shift, here.shift),
        )

    def _free(self, free: Bool[Tensor, "batch d"]) -> Bool[Tensor, "batch d"]:
        """The free sets of exact samples: without who has reached a bound, with who is driven away from one."""
        lo, hi = self.geometry.bounds(self.value.dtype)
        pull = (self.value - self.error).clamp(lo, hi) - self.value
        noise = _ROUNDING * torch.finfo(self.value.dtype).eps * (1 + self.value.abs() + self.error.abs())
        return torch.where(free, (self.value > lo) & (self.value < hi), pull.abs() > noise)


def refined_estimate(
    iterate: Iterate,
    system: Linearization,
    g: Float[Tensor, "batch d"],
    v: Float[Tensor, "batch d"],
    residual: Float[Tensor, " batch"],
    solve: Callable[[Linearization, Tensor], Tensor],
) -> tuple[Float[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """The estimate of the module's docstring, and whether the gradient has no limit at a solved point, (B,).

    Args:
        iterate: where the solver stopped.
        system: the adjoint system there.
        g: dL/dz.
        v: dL/dc.
        residual: of the backward solve, relative.
        solve: the backward solve, from a system and g to v.
    """
    here, size = iterate, norm(v)
    if iterate.smooth:
        system = iterate.linearize(system.hessian, system.slope)
    for _ in range(_STEPS):
        here = _newton(here, system)
        system = here.linearize(system.hessian.at(here.value), system.slope)
        other = solve(system, g)
        moved = norm(here.value - iterate.value)
        of_value = torch.where(moved > 0, ratio(size, norm(other)) * ratio(moved, norm(here.value)), 0.0)
        error = ratio(norm(other - v), norm(other)) + of_value + residual
        if not bool((error > _FAR).any()):
            break
    error = or_infinite(error)
    return error.to(v.dtype), iterate.solved & (error > _FAR) & (norm(other) > _GROWTH * size)


def _newton(here: Iterate, system: Linearization) -> Iterate:
    """The point after one Newton step, shortened where it would raise the residual."""
    step = _newton_step(system, here.error)
    if not here.smooth:
        # Where φ'' is about to change by orders of magnitude, its linear model says in which direction, no more.
        reach = torch.where(here.exact, torch.inf, 1 + here.dual.abs())
        return here.moved(system, step.clamp(-reach, reach))
    before = _size(here)
    for _ in range(_SHORTENED):
        there = here.moved(system, step)
        better = _size(there) <= before
        if bool(better.all()):
            break
        step = torch.where(better[:, None], step, _SHORTER * step)
    return there


def _size(here: Iterate) -> Float[Tensor, " batch"]:
    """‖√D E‖₂, E in the metric of the point."""
    return norm(here.geometry.slope(here.dual).sqrt() * here.error)


def _newton_step(system: Linearization, error: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
    """Δy with (shift + HD₊)Δy = −E; 0 for a sample where there is none."""
    hessian = system.hessian
    right, unit, _ = normalized(-error)
    if hessian.factorizes and error.shape[-1] <= hessian.costs.adjoint_width:
        step = hessian.systems(system.shift, None, system.slope).solve(right)[0].to(error.dtype)
    else:
        step = gmres(
            lambda u: torch.addcmul(hessian.product(system.slope * u), system.shift, u),
            right,
            (1 / system.diagonal()).mul,
            _COARSE,
            _PRODUCTS,
            _CYCLE if error.shape[-1] > _WIDE else _PRODUCTS,
        ).value
    return unit * torch.where(torch.isfinite(step.sum(-1))[:, None], step, 0.0)


def _rebuild(geometry: MirrorMap, regularization: float, value: Tensor, dual: Tensor, *rest: Tensor) -> Iterate:
    return Iterate(geometry, regularization, dual, value, *rest)
