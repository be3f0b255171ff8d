"""Newton's method for the dual problem of the Bregman projection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.legendre import MirrorMap
from implicit_bregman.objective import RowsOfTensors
from implicit_bregman.per_sample import Running, all_rows, iterate
from implicit_bregman.projection.basis import Basis
from implicit_bregman.projection.problem import At, ProjectionProblem, dual_problem

#: Newton steps within which the smallest gradient of a sample has to halve.
_PATIENCE = 150
#: So many steps are made before it is asked whether the system has no solution.
_HOPEFUL = 2
#: A Newton step with the ridge c‖gradient‖ is at most 1/c long; so long is the first one.
_FIRST_REACH = 10.0
#: Bounds of that length: below, no step is worth trying any more; above, it overflows.
_LEAST_REACH, _MOST_REACH = 1e-14, 1e307
#: Trial lengths along one direction.
_TRIALS = 40
#: Within this factor of the rounding error a gradient that no longer halves is as small as it gets.
_NEAR_ROUNDING = 1e3
#: The tolerance of equations that are to hold as far as rounding lets them, and the steps that this may take.
_ROUNDING, _STEPS = 1e-15, 300


@dataclass(frozen=True)
class Minimiser(RowsOfTensors):
    """Where the minimisation ended.

    Attributes:
        dual: y, (B, d).
        steps, evaluations: (B,).
        refuted: whether the system was proved to have no solution, (B,).
        limited: whether `max_iter` ended it, (B,).
    """

    dual: Tensor
    steps: Tensor
    evaluations: Tensor
    refuted: Tensor
    limited: Tensor


@dataclass(frozen=True)
class _State(Running):
    """The samples that are still running.

    Attributes:
        problem: what is minimised.
        at: the iterates.
        evaluations: (b,).
        best, idle: the smallest gradient, and the steps since it was last halved, (b,).
        reach: how long a Newton step may be, (b,).
        stuck: the samples whose last step did not halve the gradient, (b,); None: it halved all, or there was none.
    """

    problem: ProjectionProblem
    at: At
    evaluations: Tensor
    best: Tensor
    idle: Tensor
    reach: Tensor
    stuck: Tensor | None

    @cached_property
    def near(self) -> Bool[Tensor, " batch"]:
        """Whether the equations hold, or the gradient is about as small as rounding lets it be."""
        return (self.at.size <= _NEAR_ROUNDING * self.at.rounding) | self.problem.holds(self.at)


def minimise(
    problem: ProjectionProblem, max_iter: int, record: Callable[[Tensor, Tensor], None] | None = None
) -> Minimiser:
    """Newton's method with a ridge of c‖gradient‖, and a search along its direction for the slope to end.

    The ridge keeps saturation in one direction (a curvature near 0) from shortening the step in the others, as a
    search along Newton's direction alone would; the convergence is superlinear (Li, Fukushima, Qi and Yamashita, 2004).
    The search goes far where the curvature changes by orders of magnitude on the way (exp, arcsinh). Slopes decide it,
    which unlike values neither cancel nor overflow. Most steps need none of this: they halve the gradients of all.

    Args:
        problem: what is minimised.
        max_iter: bound on the number of steps.
        record: called with the duals and their rows before every step, and at the end.
    """
    at = problem.begin()
    count = torch.zeros_like(at.size, dtype=torch.int64)
    reach = torch.full_like(at.size, _FIRST_REACH)
    state = _State(all_rows(count), problem, at, count + 1, at.size, count, reach, None)
    write = None if record is None else lambda state: record(state.at.dual, state.rows)
    return iterate(state, _step, partial(_goes_on, max_iter), partial(_end, max_iter), write)


def _goes_on(max_iter: int, state: _State, count: int) -> Bool[Tensor, " batch"]:
    over = _is_over(state)
    if state.stuck is not None:
        over |= state.idle >= _PATIENCE
        # (which takes as much as a step, and most samples are solved in a few)
        if count >= _HOPEFUL:
            over |= state.problem.is_infeasible(state.at)
    return ~over if count < max_iter else torch.zeros_like(over)


def _is_over(state: _State) -> Bool[Tensor, " batch"]:
    """Whether the gradient is as small as it has to be, or as it gets, or no step leads any further."""
    at = state.at
    # (NaN is over)
    over = ~((at.size > torch.maximum(at.rounding, state.problem.nothing)) & (at.size < torch.inf))
    return over if state.stuck is None else over | (state.near & state.stuck) | (state.reach < _LEAST_REACH)


def _end(max_iter: int, state: _State, count: int) -> Minimiser:
    problem, at, none = state.problem, state.at, torch.zeros_like(state.rows, dtype=torch.bool)
    ended = torch.full_like(state.rows, count)
    refuted = none if count < _HOPEFUL or bool(problem.holds(at).all()) else problem.is_infeasible(at)
    limited = none if count < max_iter else ~(_is_over(state) | refuted)
    return Minimiser(at.dual, ended, state.evaluations, refuted, limited)


def _step(state: _State, count: int) -> _State:
    problem, at = state.problem, state.at
    step = _newton_step(problem, at, state.reach)
    new = problem.moved(at, step.move, step.change)
    if not bool((new.size <= 0.5 * at.size).all()):
        return _careful_step(state, step, new)
    return replace(
        state,
        at=new,
        evaluations=state.evaluations + 1,
        best=torch.minimum(state.best, new.size),
        reach=(8 * state.reach).clamp_max_(_MOST_REACH),
        stuck=None,
    )


def _careful_step(state: _State, step: _Step, new: At) -> _State:
    """The next state where Newton's step, to `new`, did not halve the gradient of every sample."""
    problem, at, near = state.problem, state.at, state.near
    usable = (step.info == 0) & torch.isfinite(step.move.sum(-1)) & ((at.gradient * step.move).sum(-1) < 0)
    if not bool(usable.all()):
        # Where rounding spoils it, the step of the ridge alone.
        move = torch.where(usable[:, None], step.move, at.gradient * (-state.reach / at.size)[:, None])
        step = _limited(problem, at, move, step.info)
        new = problem.moved(at, step.move, step.change)
    new, length, trials = _search(problem, at, step, new)
    # Where the equations hold as far as they can, a step that brings nothing is not made.
    worse = near & ~(new.size < at.size)
    new, length = at.where(worse, new), torch.where(worse, 0.0, length)
    moved = (length[:, None] * step.move).abs().amax(-1)
    longer = torch.maximum(8 * state.reach, 8 * moved).clamp_max(_MOST_REACH)
    shorter = torch.where(length >= 0.25, state.reach, state.reach * length.clamp_min(0.05))
    halved = new.size <= 0.5 * state.best
    return replace(
        state,
        at=new,
        evaluations=state.evaluations + trials,
        best=torch.where(halved, new.size, state.best),
        idle=torch.where(halved, 0, state.idle + 1),
        reach=torch.where(length >= 1, longer, shorter),
        stuck=new.size > 0.5 * at.size,
    )


def nearest(
    geometry: MirrorMap,
    basis: Float[Tensor, "d k"],
    start: Float[Tensor, "batch d"],
    target: Float[Tensor, "batch k"],
) -> tuple[Float[Tensor, "batch d"], Tensor]:
    """The dual of the point with Qᵀz = `target` that is nearest to ρ(y⁰) in the sense of D, and the steps taken, (B,).

    As far as rounding lets it; where no point inside C has Qᵀz = `target`, y ends far out.

    Args:
        geometry: φ.
        basis: Q, with orthonormal columns, in float64.
        start: y⁰, in float64.
        target: Qᵀz.
    """
    if not basis.shape[1]:
        return start, torch.zeros_like(start[:, 0], dtype=torch.int64)
    problem = dual_problem(Basis.of(basis), target, geometry, start, 0.0, _ROUNDING)
    found = minimise(problem, _STEPS)
    return found.dual, found.steps


@dataclass(frozen=True)
class _Step(RowsOfTensors):
    """A step of the dual problem.

    Attributes:
        move: of μ, (b, k).
        change: of y, (b, d).
        info: not 0 where the system of the step could not be factorized, (b,).
    """

    move: Tensor
    change: Tensor
    info: Tensor


def _newton_step(problem: ProjectionProblem, at: At, reach: Tensor) -> _Step:
    """Newton's step with the ridge."""
    move, info = problem.direction(at, reach)
    return _limited(problem, at, move, info)


def _limited(problem: ProjectionProblem, at: At, move: Tensor, info: Tensor) -> _Step:
    """The step, no longer than it may be."""
    change = problem.across(move)
    length = problem.most_length(at, change).clamp_max_(1.0)[:, None]
    return _Step(move * length, change * length, info)


def _search(problem: ProjectionProblem, at: At, step: _Step, new: At) -> tuple[At, Tensor, Tensor]:
    """The iterate at t·`step`, t (0 where none was found), and the number of trials, (B,); `new` is that at t = 1.

    By convexity the objective has fallen where the slope along the way is still negative at its end. A t is accepted
    if at least half of the slope is gone then, or half of the gradient.
    """
    opening = (at.gradient * step.move).sum(-1)
    slope = (new.gradient * step.move).sum(-1)
    length = torch.ones_like(opening)
    trials = torch.ones_like(opening, dtype=torch.int64)
    done = _is_accepted(at, new, opening, slope)
    if bool(done.all()):
        return new, length, trials
    length = torch.where(done, length, 0.0)
    new = new.where(done, at)
    rows = (~done).nonzero().squeeze(-1)
    low, high = torch.zeros_like(opening), torch.full_like(opening, torch.inf)
    trial, factor = torch.ones_like(opening), torch.full_like(opening, 4.0)
    most = problem.most_length(at, step.change)
    for _ in range(_TRIALS):
        falls = slope[rows] <= 0
        low[rows] = torch.where(falls, trial[rows], low[rows])
        high[rows] = torch.where(falls, high[rows], trial[rows])
        trial[rows] = _next_length(low[rows], high[rows], factor[rows]).minimum(most[rows])
        factor[rows] = factor[rows].square().clamp_max(1e16)
        rows = rows[(trial[rows] > low[rows]) & (trial[rows] < high[rows]) & (trial[rows] > 1e-30)]
        if len(rows) == 0:
            break
        start, t, part = at.select(rows), trial[rows, None], step.select(rows)
        tried = problem.select(rows).moved(start, t * part.move, t * part.change)
        slope[rows] = (tried.gradient * part.move).sum(-1)
        trials[rows] += 1
        accepted = _is_accepted(start, tried, opening[rows], slope[rows])
        # The farthest descent so far is kept for the case that nothing better turns up.
        better = accepted | (slope[rows] <= 0)
        new = new.replace_rows(rows, tried.where(better, new.select(rows)))
        length[rows] = torch.where(better, trial[rows], length[rows])
        rows = rows[~accepted]
    return new, length, trials


def _is_accepted(at: At, new: At, opening: Tensor, slope: Tensor) -> Tensor:
    return torch.isfinite(new.size) & (((slope <= 0) & (slope >= 0.5 * opening)) | (new.size <= 0.5 * at.size))


def _next_length(low: Tensor, high: Tensor, factor: Tensor) -> Tensor:
    """Out by growing factors, or in between: geometrically while the ends are far apart."""
    between = torch.where(high > 4 * low, (low * high).sqrt(), 0.5 * (low + high))
    between = torch.where(low > 0, between, high / factor)
    return torch.where(torch.isinf(high), low * factor, between)
