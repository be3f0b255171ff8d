"""γ = 0 and a quadratic f that is convex, but not strictly: a minimiser, whether it is the only one, and MM's limit.

All minimisers share Hz, hence the multipliers g = Hz − c. Let N be the coordinates that no multiplier holds at a bound:
the minimisers are the z ∈ C with these coordinates at their bounds and with the same H_NN z_N. Where H_NN is definite
there is one. Else MM goes to the one that is nearest to z⁰ in the sense of D: every MM step adds to y an element of
range(H) and a multiple of g, and ⟨·, z⟩ of both is the same for all minimisers z, so that all iterates, and the limit,
have the Bregman projection onto the minimisers in common. It is found in the dual: y_N = y⁰_N + Qλ, where Q is an
orthonormal basis of range(H_NN), and Qᵀz_N is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.energy.bound import BoundQuadratic
from implicit_bregman.legendre.mirror import Ends
from implicit_bregman.linalg.nullspace import null_part
from implicit_bregman.linalg.semidefinite import same_sets
from implicit_bregman.objective import Objective
from implicit_bregman.projection.newton import nearest
from implicit_bregman.solvers.exact.active_set import within_rounding
from implicit_bregman.solvers.exact.interior_point import minimise_convex, runaway
from implicit_bregman.solvers.exact.projected_newton import projected_newton
from implicit_bregman.solvers.exact.result import ExactResult
from implicit_bregman.solvers.exact.solve import rounding_accepted
from implicit_bregman.status import Status

#: The residual that is asked of the minimiser: where a set is wrong, the conditions may be violated by very little.
_EXACT = 1e-10
#: It is not less than so many rounding errors of W, which decide at random where H has no say.
_ROUNDING = 4
#: Most steps from there to the tolerance.
_MORE_STEPS = 50
#: A multiplier or a distance to a bound below so many times this is no more than 0.
_MARGIN = 10
#: Products for each coordinate after which a null space that is not found counts as not there.
_PRODUCTS = 10
#: A sample is running away if f falls on for so many times the way it has come, and if its slope is so clear.
_RUNAWAY, _CLEARLY = 100.0, 0.1


@dataclass(frozen=True)
class _Problem:
    """The quadratic problem in float64, and what is the same for all steps.

    Attributes:
        objective: F.
        energy: f in float64.
        tol: what the conditions may be violated by.
        eps: the rounding error of W as it was given.
    """

    objective: Objective
    energy: BoundQuadratic
    tol: float
    eps: float

    @property
    def bounds(self) -> Ends:
        return self.objective.geometry.bounds(self.objective.energy.dtype)

    def judge(self, z: Float[Tensor, "batch d"], gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The scale of ∇f, (B, d), and the residual, (B,)."""
        scale = self.objective.scale(self.energy.terms(gradient))
        return scale, self.objective.residual(z, gradient, scale, self.bounds)

    def at(self, found: ExactResult, z: Float[Tensor, "batch d"]) -> ExactResult:
        """What was found, with another point."""
        gradient = self.energy.gradient(z)
        scale, residual = self.judge(z, gradient)
        return replace(found, unrounded=z, gradient=gradient, scale=scale, residual=residual, tries=found.tries + 1)

    def select(self, rows: Tensor) -> _Problem:
        """The problem of some samples."""
        return replace(self, objective=self.objective.select(rows), energy=self.energy.select(rows))


def limit_of_mm(
    objective: Objective, dual: Float[Tensor, "batch d"], tol: float, max_steps: int
) -> tuple[ExactResult, Tensor]:
    """The minimiser of F that MM goes to from y⁰ = `dual`, and its `Status`, (B,).

    Args:
        objective: F with γ = 0 and a quadratic f that is convex.
        dual: y⁰.
        tol: bound on the residual; the solver tries for less.
        max_steps: bound on the number of steps to a minimiser.
    """
    start = objective.geometry.activation(dual)
    energy, eps = objective.energy.factored, torch.finfo(objective.energy.dtype).eps
    assert energy is not None
    asked, tol = max(_EXACT, _ROUNDING * eps), max(tol, _ROUNDING * eps)
    found = minimise_convex(objective, start, asked, max_steps)
    problem = _Problem(objective, energy.double(), asked, eps)
    free = ~_held(problem, found)
    found, definite = _sharpened(problem, replace(found, residual=found.residual.double()), free)
    found = _closer(problem, found, tol, max_steps)
    off = free & ~_near_bounds(problem, found.unrounded)
    status = torch.where((off != free).any(-1), int(Status.DEGENERATE), int(Status.CONVERGED))
    found = _with_duals(problem, replace(found, free=free))
    several = found.accepted & ~definite
    if bool(several.any()):
        # Bounds that no multiplier holds may still leave no way off the minimiser, which interior points end at.
        alone = problem.energy.operator.solve_definite_on(off, found.gradient, problem.eps)[1]
        found, moved = _nearest_to_start(problem, found, dual, several, alone, tol)
        status = torch.where(several & (moved | ~alone), int(Status.NONUNIQUE), status)
    found = replace(found, accepted=found.residual <= tol)
    if not found.complete:
        found = replace(found, accepted=found.accepted | within_rounding(objective, problem.energy, found, tol))
    status = torch.where(found.accepted, status, failure(objective, found, max_steps))
    return replace(found, residual=found.residual.to(energy.dtype), degenerate=status == Status.DEGENERATE), status


def minimised_by_products(
    objective: Objective, value: Float[Tensor, "batch d"], tol: float, max_steps: int
) -> tuple[ExactResult, Int[Tensor, " batch"]]:
    """A minimiser of F by products with H alone, next to where MM has got to, and its `Status`, (B,).

    Where there are several, it need not be the one that MM would go to.

    Args:
        objective: F with γ = 0 and a quadratic f that is convex.
        value: z, MM's iterates.
        tol: bound on the residual.
        max_steps: bound on the number of steps.
    """
    found = projected_newton(objective, value, tol, max_steps, far=far_from(value))
    found = rounding_accepted(objective, found, tol)
    status = torch.where(has_others(objective, found.free), int(Status.NONUNIQUE), found.degenerate.long())
    return found, torch.where(found.accepted, status, failure(objective, found, max_steps))


def off_bounds(objective: Objective, value: Float[Tensor, "batch d"], tol: float) -> Bool[Tensor, "batch d"]:
    """The coordinates of critical points that are farther from their bounds than the tolerance explains."""
    lo, hi = objective.geometry.bounds(value.dtype)
    return torch.minimum(value - lo, hi - value) > _MARGIN * tol * objective.unit


def has_others(objective: Objective, off: Bool[Tensor, "batch d"]) -> Bool[Tensor, " batch"]:
    """Whether minimisers with the coordinates `off` their bounds are not the only ones, by products with H, (B,).

    The null space of H_FF, F these coordinates, leads to others.
    """
    energy = objective.energy.double()
    zero, eps = torch.zeros_like(off, dtype=torch.float64), torch.finfo(objective.energy.dtype).eps
    hessian, mask = energy.hessian(zero), off.double()
    ends = hessian.bounds()
    assert ends is not None  # F is known to be convex
    number = torch.arange(off.numel(), dtype=torch.float64, device=off.device)
    some = mask * torch.sin(1.7 * number + 0.3).reshape(off.shape)
    return null_part(lambda v: mask * hessian.product(mask * v), some, ends[1], eps, _PRODUCTS * off.shape[-1])[1]


def failure(objective: Objective, found: ExactResult, max_steps: int) -> Int[Tensor, " batch"]:
    """The status of samples that have not converged, (B,).

    Args:
        objective: F with γ = 0, convex.
        found: where they ended.
        max_steps: the bound on the number of steps.
    """
    away = _runs_away(objective, found)
    unsolved = torch.where(found.steps < max_steps, int(Status.STALLED), int(Status.MAX_ITER))
    return torch.where(away, int(Status.DIVERGED), unsolved)


def far_from(start: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
    """How large z is, (B,), where it has to be running away if it has not converged from z⁰ = `start`."""
    return (1 + start.abs().amax(-1)) * torch.finfo(start.dtype).eps ** -0.75


def _runs_away(objective: Objective, found: ExactResult) -> Bool[Tensor, " batch"]:
    z = found.unrounded
    energy = objective.energy.factored
    if energy is None:
        return z.abs().amax(-1) > far_from(torch.zeros_like(found.value))
    energy = energy.double()
    open_lo, open_hi = objective.geometry.open_ends
    # Far out along z without bounds and curvature, and still downhill.
    ray = torch.where((z > 0) & open_hi | (z < 0) & open_lo, z, 0.0)
    slope = -torch.linalg.vecdot(ray, found.gradient)
    curvature = torch.linalg.vecdot(ray, energy.operator.product(ray))
    away = (slope > _RUNAWAY * curvature.abs()) & (slope > _CLEARLY * (ray * found.gradient).abs().sum(-1))
    return away | (z.abs().amax(-1) > runaway(energy, objective.unit, torch.finfo(objective.energy.dtype).eps))


def _held(problem: _Problem, found: ExactResult) -> Bool[Tensor, "batch d"]:
    """The coordinates that a multiplier clearly holds at a bound."""
    lo, hi = problem.bounds
    z, g = found.unrounded, found.gradient
    strict = g.abs() > _MARGIN * problem.tol * found.scale
    held, pinned = strict & (((z <= lo) & (g > 0)) | ((z >= hi) & (g < 0))), problem.objective.geometry.pinned
    return held if pinned is None else held | pinned


def _near_bounds(problem: _Problem, z: Tensor) -> Bool[Tensor, "batch d"]:
    lo, hi = problem.bounds
    return torch.minimum(z - lo, hi - z) <= _MARGIN * problem.tol * problem.objective.unit


def _sharpened(
    problem: _Problem, found: ExactResult, free: Bool[Tensor, "batch d"]
) -> tuple[ExactResult, Bool[Tensor, " batch"]]:
    """The minimisers after one exact solve on their free sets, where these are definite, and where they are."""
    step, definite = problem.energy.operator.solve_definite_on(free, -found.gradient, problem.eps)
    moved = problem.at(found, (found.unrounded + step).clamp(*problem.bounds))
    better = definite & found.accepted & (moved.residual <= found.residual)
    return moved.where(better, replace(found, tries=moved.tries)), definite


def _closer(problem: _Problem, found: ExactResult, tol: float, max_steps: int) -> ExactResult:
    """The minimisers with a residual of at most `tol`: with more steps where one exact solve did not give that."""
    found = replace(found, accepted=found.residual <= tol)
    left = min(_MORE_STEPS, max_steps - int(found.steps.max()))
    rows = (~found.accepted & (found.residual <= problem.tol)).nonzero().squeeze(-1)
    if len(rows) == 0 or left < 1:
        return found
    part = found.select(rows)
    again = projected_newton(problem.objective.select(rows), part.unrounded, tol, left)
    again = replace(again, residual=again.residual.double(), steps=part.steps + again.steps)
    return found.replace_rows(rows, replace(again, tries=part.tries + again.tries))


def _with_duals(problem: _Problem, found: ExactResult, dual: Tensor | None = None) -> ExactResult:
    """What was found, with `value` and the duals of its point; those of the free coordinates may be given."""
    geometry, dtype = problem.objective.geometry, problem.objective.energy.dtype
    known = geometry.finite_dual(found.unrounded, dtype)
    if dual is not None:
        known = torch.where(found.free, dual.clamp(*geometry.dual_bounds(dtype)), known)
    value = found.unrounded.to(dtype).clamp(*geometry.bounds(dtype))
    return replace(found, value=value, dual=known.to(dtype), unrounded_dual=known)


def _nearest_to_start(
    problem: _Problem, found: ExactResult, start: Tensor, several: Tensor, alone: Tensor, tol: float
) -> tuple[ExactResult, Bool[Tensor, " batch"]]:
    """The minimisers with the dual y⁰ = `start` + range(H_NN) on N, and which samples have got one, (B,).

    Args:
        problem: see there.
        found: minimisers.
        start: y⁰.
        several: the samples with a singular H_NN, (B,).
        alone: those that may have one minimiser nevertheless: they have to end off all bounds, (B,).
        tol: bound on the residual.
    """
    operator, geometry = problem.energy.operator, problem.objective.geometry
    changed = torch.zeros_like(several)
    for rows, columns in same_sets(found.free, several.nonzero().squeeze(-1)):
        part, inside = problem.select(rows), found.select(rows)
        basis, left = operator.solve_in_range(columns, inside.gradient[:, columns], problem.eps)
        y = start[rows].double()
        known = inside.unrounded[:, columns] @ basis - left
        y[:, columns], steps = nearest(geometry.on(columns), basis, y[:, columns], known)
        z = torch.where(inside.free, geometry.activation(y), inside.unrounded).clamp(*problem.bounds)
        moved = part.at(inside, z)
        # (where it does not exist, or rounding leaves it farther off than the minimiser that is known, that one stays)
        good = moved.residual <= inside.residual.clamp_min(tol)
        good &= ~(alone[rows] & (inside.free & _near_bounds(part, z)).any(-1))
        moved = _with_duals(part, replace(moved, steps=moved.steps + steps), y)
        found = found.replace_rows(rows, moved.where(good, replace(inside, steps=moved.steps)))
        changed = changed.index_copy(0, rows, good)
    return found, changed
