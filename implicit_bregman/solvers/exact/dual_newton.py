"""γ > 0: Newton's method on the optimality condition in dual coordinates, E(y) = γy + ∇f(ρ(y)) = 0.

The direction Δy solves (γ + H D) Δy = −E with D = ρ'(y); v = DΔy is its direction in z, with (γD⁻¹ + H) v = −E. The
step is made in w = y + κz (see `graph`) with κ = H_jj/γ: it is linear in y for coordinates that a bound holds and in z
for the others, so that the number of steps does not grow as γ → 0.
Beyond the clamp of a φ that is not Legendre ρ' is 0, y runs on, and γ times the excess is the multiplier: one
equation covers interior and active coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.energy.bound import BoundQuadratic
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.linearization import Linearization
from implicit_bregman.objective import Objective
from implicit_bregman.per_sample import Running, all_rows, iterate
from implicit_bregman.solvers.exact.chebyshev import chebyshev_steps
from implicit_bregman.solvers.exact.dual_direction import can_factorize, newton_move
from implicit_bregman.solvers.exact.dual_state import NEAR, Budget, Course, Iterate, evaluate
from implicit_bregman.solvers.exact.graph import move_along
from implicit_bregman.solvers.exact.result import ExactResult

#: A step is shortened to a quarter so often at most: then it is below the rounding of where it starts.
_SHORTENINGS = 26
#: Shortenings that make one ask what was wrong with the whole step.
_MUCH = 3
#: How far below the tolerance the error is driven: the last step is nearly always much better than asked.
_BELOW = 0.1
#: γ/λ_max from which on a step that is not needed for E is not needed for z.
_WELL = 0.05
#: A sample whose error is below this part of the tolerance before the last steps is left as it is.
_CLOSE = 0.9
#: Newton steps after the Chebyshev steps, from errors up to so many times the goal, by so many products, to such a part
#: of it.
_REFINEMENTS, _FAR, _MOST_PRODUCTS, _PART = 2, 1e4, 30, 0.7
#: Part of the decrease that the slope promises which a step has to bring.
_ARMIJO = 1e-4
#: The error up to which a step along whose slope little is left, and that halves it, needs no other test.
_CLEAR = 0.1


def newton(
    objective: Objective,
    dual: Float[Tensor, "batch d"],
    tol: float,
    max_steps: int,
    record: Callable[[Tensor, Tensor], None] | None = None,
) -> ExactResult:
    """Newton's method from y = `dual`, each sample until its own stop.

    For a quadratic f the last steps are in float64, whatever its precision.

    Args:
        objective: F with γ > 0 and a quadratic f, or any f if F is convex.
        dual: the start y.
        tol: bound on the error E, each entry relative to its own terms.
        max_steps: bound on the number of steps, and on that of the products with H inside them.
        record: called with the duals and their rows before every step, and at the end.
    """
    energy, quadratic = objective.energy, objective.energy.factored
    coupled = objective.geometry.coupling is not None
    # A trace ends where the tolerance is met.
    enough = _CLOSE * tol if _is_well_conditioned(objective) else 0.0
    swept, limit = None, max(_BELOW * tol, enough)
    if record is None and objective.unique and quadratic is not None and quadratic.symmetric and not coupled:
        swept = _swept(objective, quadratic, _unclamped(objective, energy, dual), limit, max_steps)
        if swept is not None and bool((swept.size <= limit).all()):
            return dual_result(objective, swept, tol)
    if energy.affine:
        energy, dual = energy.double(), dual.double()
    at = _start(objective, energy, dual)
    if swept is not None:
        at = _better(at, swept)
    ended = _iterate(objective, energy, at, _BELOW * tol if record is None else tol, max_steps, record, enough)
    return dual_result(objective, ended, tol, ended.stuck)


def _is_well_conditioned(objective: Objective) -> bool:
    """Whether an error E is no great error of z: γ is no small part of λ_max."""
    energy = objective.energy.factored
    return energy is not None and objective.regularization * energy.gradient_step >= _WELL


def _unclamped(objective: Objective, energy: BoundEnergy, dual: Tensor) -> Tensor:
    """The same points, with the duals of active coordinates where the equation wants them, beyond the clamp."""
    gamma, geometry = objective.regularization, objective.geometry
    if geometry.is_legendre or geometry.coupling is not None:
        return dual
    active = geometry.slope(dual) == 0
    if not bool(active.any()):
        return dual
    wanted = energy.gradient(geometry.activation(dual)).detach() / -gamma
    active &= geometry.project_dual(wanted) == geometry.project_dual(dual)
    return torch.where(active, wanted, dual)


def _start(objective: Objective, energy: BoundEnergy, dual: Tensor) -> Iterate:
    """The first iterate: `dual`, or the middle where z is so large that what follows would overflow."""
    none = torch.zeros(len(dual), dtype=torch.int64, device=dual.device)
    at = evaluate(objective, energy, _unclamped(objective, energy, dual), none, none + 1)
    usable = torch.isfinite(at.size) & (at.value.abs().amax(-1) < torch.finfo(dual.dtype).max ** 0.5)
    if bool(usable.all()):
        return at
    return at.where(
        usable, evaluate(objective, energy, torch.full_like(dual, objective.geometry.middle), none, none + 2)
    )


def _swept(objective: Objective, energy: BoundQuadratic, dual: Tensor, tol: float, max_steps: int) -> Iterate | None:
    """The iterates after a few Chebyshev steps, in float64, where there is a use for them.

    In the samples' precision y itself is rounded: the last digits are those of a Newton step from float64 errors, whose
    linear system Chebyshev's steps solve again.
    """
    found = chebyshev_steps(objective, energy, dual, tol)
    if found is None:
        return None
    y, count, evaluations = found
    steps = torch.full_like(dual[:, 0], count, dtype=torch.int64)
    wide, gamma = energy.double(), objective.regularization
    at = evaluate(objective, wide, y.double(), steps, steps + (evaluations + 1 - count))
    for _ in range(min(_REFINEMENTS, max_steps - count)):
        worst = float(at.size.max())
        if not tol < worst <= _FAR * tol:
            break
        slope = objective.geometry.slope(at.dual).to(dual.dtype)
        system = Linearization(energy.hessian(at.value), slope, torch.full_like(slope, gamma), damping=gamma)
        move = system.sweep(at.error.neg().to(dual.dtype), _PART * tol / worst, min(_MOST_PRODUCTS, max_steps))
        if move is None:
            break
        at = evaluate(objective, wide, at.dual + move[0].double(), at.steps + 1, at.tries + 1)
    return at


def _better(at: Iterate, swept: Iterate) -> Iterate:
    """The iterates after the Chebyshev steps where these have gained something, else the start."""
    gained = torch.isfinite(swept.size) & (swept.size < 0.1 * at.size)
    tries = at.tries + swept.tries
    return replace(swept, tries=tries).where(gained, replace(at, tries=tries))


@dataclass(frozen=True)
class _Run(Running):
    """The samples that are still running: their energy, where they are, and how their steps have gone."""

    energy: BoundEnergy
    at: Iterate
    course: Course


@dataclass(frozen=True)
class _Ended(Iterate):
    """Where samples have ended, and which could not go on, (B,)."""

    stuck: Tensor


def _iterate(
    objective: Objective,
    energy: BoundEnergy,
    at: Iterate,
    target: float,
    max_steps: int,
    record: Callable[[Tensor, Tensor], None] | None = None,
    enough: float = 0.0,
) -> _Ended:
    """Newton steps until |E| ≤ target · scale (or `enough` · scale at the start), or as far as rounding lets them."""
    limit, budget = max(target, 8 * torch.finfo(at.dual.dtype).eps), Budget(max_steps)

    def going(run: _Run, count: int) -> Bool[Tensor, " batch"]:
        goal = limit if count else max(limit, enough)
        if budget.left <= 0 and not can_factorize(objective):
            return torch.zeros_like(run.course.stuck)
        return (run.at.size > goal) & ~run.course.stuck & (run.at.steps < max_steps)

    def step(run: _Run, count: int) -> _Run:
        at, course = run.at, run.course
        slope = objective.geometry.slope(at.dual)
        slope = torch.where(torch.isnan(course.chord), slope, course.chord)
        weight, move = newton_move(objective, run.energy, at, slope, course, target, budget)
        new, moved, chord = _search(objective, run.energy, at, slope, weight, move)
        return replace(run, at=new, course=course.after(at.size, new, moved, chord, objective.convex, run.energy))

    def end(run: _Run, count: int) -> _Ended:
        return _Ended(**vars(run.at), stuck=run.course.stuck)

    run = _Run(all_rows(at.size), energy, at, Course.at_start(at))
    return iterate(run, step, going, end, None if record is None else lambda run: record(run.at.dual, run.rows))


def _search(
    objective: Objective, energy: BoundEnergy, at: Iterate, slope: Tensor, weight: Tensor, move: Tensor
) -> tuple[Iterate, Bool[Tensor, " batch"], Tensor]:
    """The step along Δw that is accepted, shortened as often as needed; which samples moved at all; `Course.chord`."""
    accepted, good = at, torch.zeros_like(at.size, dtype=torch.bool)
    rows = torch.arange(len(at.size), device=at.size.device)
    start, weight, chord, whole = at, weight.expand_as(move), torch.full_like(move, torch.nan), at
    for trial in range(1 + _SHORTENINGS):
        dual = move_along(objective.geometry.elementwise, start.dual, start.value, slope, weight, move)
        new = evaluate(objective, energy, dual, start.steps + 1, start.tries + 1 + trial)
        better = _is_accepted(objective, start, new)
        if trial == 0:
            if bool(better.all()):
                return new, better, chord
            whole = new
        if trial == _MUCH:
            chord = chord.index_copy(0, rows, _chord(at.select(rows), whole.select(rows)))
        accepted = accepted.replace_rows(rows, new.where(better, replace(start, tries=new.tries)))
        good = good.index_copy(0, rows, better)
        left = (~better).nonzero().squeeze(-1)
        if len(left) == 0:
            break
        rows, start, energy = rows[left], start.select(left), energy.select(left)
        slope, weight, move = slope[left], weight[left], 0.25 * move[left]
    return accepted, good, chord


def _chord(start: Iterate, end: Iterate) -> Tensor:
    """The mean of ρ' from one iterate to another; NaN where y is the same."""
    return (end.value - start.value) / (end.dual - start.dual)


def _is_accepted(objective: Objective, old: Iterate, new: Iterate) -> Bool[Tensor, " batch"]:
    """Whether F has fallen, or a small E is half of what it was. Where F is not convex, E alone decides.

    Along Δz the slope of F is ⟨E, Δz⟩: by convexity F has fallen where that is still negative at the end. Else the
    decrease is −⟨E⁺, Δz⟩ + D_F(z, z⁺), where nothing cancels, and is asked to be a small part of what the slope at
    the start promised.
    """
    finite = torch.isfinite(new.size) & torch.isfinite(new.dual.sum(-1))
    if not objective.unique or not objective.energy.symmetric:
        return finite & (torch.linalg.vector_norm(new.error, dim=-1) < torch.linalg.vector_norm(old.error, dim=-1))
    shift = new.value - old.value
    before, after = torch.linalg.vecdot(old.error, shift), torch.linalg.vecdot(new.error, shift)
    halved = new.size <= 0.5 * old.size.clamp_max(NEAR)
    descends = (before < 0) | ((before == 0) & (new.size < old.size))
    nearly = (after <= -0.1 * before) & (new.size <= 0.5 * old.size) & (old.size <= _CLEAR)
    accepted = finite & ((descends & (after <= 0)) | halved | nearly)
    if bool(accepted.all()):
        return accepted
    # (the trapezoidal rule, exact for a quadratic f)
    rise = 0.5 * torch.linalg.vecdot(new.gradient - old.gradient, shift)
    divergence = objective.geometry.dual_divergence(old.dual, new.dual)
    decrease = rise + objective.regularization * divergence - after
    return accepted | (finite & (before < 0) & (decrease >= -_ARMIJO * before))


def dual_result(objective: Objective, at: Iterate, tol: float, stuck: Tensor | None = None) -> ExactResult:
    """The result that consists of these iterates, accepted where E and the residual are within the tolerance.

    Args:
        objective: F with γ > 0.
        at: the iterates.
        tol: bound on both.
        stuck: which samples no step led any further, (B,), if that is known.
    """
    geometry, gamma, dtype = objective.geometry, objective.regularization, objective.energy.dtype
    dual = geometry.project_dual(at.dual)
    lo, hi = geometry.bounds(dual.dtype)
    if geometry.is_legendre:
        error, free = at.error, torch.ones_like(dual, dtype=torch.bool)
    else:
        error, free = objective.total(at.gradient, dual), _off_clamp(objective, at.dual, dual)
    residual = objective.residual(at.value, error, at.scale, (lo, hi))
    # The residual alone is held down by the distance to a bound: ask it of the equation as well.
    accepted = (residual <= tol) & (at.size <= tol)
    degenerate = torch.zeros_like(accepted)
    if not geometry.is_legendre:
        multiplier = gamma * (at.dual - dual).abs()
        degenerate = objective.movable(~free & (multiplier <= 10 * tol * at.scale)).any(-1) & accepted
    # A dual in float64 may be beyond the range of float32, where ρ need not be saturated: the value is not lost.
    limit = torch.finfo(dtype).max
    lowered = dual.clamp(*geometry.dual_bounds(dtype)).to(dtype)
    value = at.value.clamp(-limit, limit).to(dtype).clamp(*geometry.bounds(dtype))
    return ExactResult(
        value=value,
        dual=lowered,
        unrounded=at.value,
        unrounded_dual=dual,
        free=free,
        gradient=at.gradient,
        scale=at.scale,
        residual=residual.to(dtype),
        accepted=accepted,
        degenerate=degenerate,
        steps=at.steps,
        tries=at.tries,
        stuck=stuck,
    )


def _off_clamp(objective: Objective, dual: Tensor, clamped: Tensor) -> Bool[Tensor, "batch d"]:
    """The coordinates whose dual lies within the range of φ'."""
    geometry = objective.geometry
    return dual == clamped if geometry.coupling is None else geometry.slope(dual) > 0
