"""What all first-order methods share: start, step, safeguard, stop, per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.objective import Objective, Point
from implicit_bregman.per_sample import all_rows, iterate
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.basin import can_certify, certified_radius
from implicit_bregman.solvers.exact.result import ExactResult, exact_point, exact_status
from implicit_bregman.solvers.exact.solve import can_solve_exactly, solve_exactly
from implicit_bregman.solvers.inverse import InverseEstimate, assembled
from implicit_bregman.solvers.motion import drifts, leap, moves, returns
from implicit_bregman.solvers.progress import Ended, Progress, State, dual_step
from implicit_bregman.solvers.recorder import Recorder
from implicit_bregman.solvers.safeguard import balanced, judged, returned
from implicit_bregman.status import Status

#: Iterations without any progress after which a sample counts as stalled.
_PATIENCE = 100
#: The critical point ahead is looked for every so many iterations at most; the intervals grow with the iteration and,
#: by the energy's costs, with the width.
_EXACT_EVERY = 3
#: The residual from which on Newton's method takes over where γ > 0 and there is one critical point.
_NEWTON_FROM = 1e-4
#: The residual from which on a field without objective is accelerated, where it may have several zeros.
_NEAR = 1e-3
#: Plain steps made first where an exact solve is to follow: they halve the number of active sets it has to try.
_WALK = 24
#: MM steps after which, where only MM's own may be made, some are made at a time before one is looked at.
_MANY, _UNSEEN = 40, 8
#: The most MM steps that are made at once.
_LONGEST = 2.0**20
#: A step for which this share of the surrogate's distance is enough may be doubled.
_AMPLE = 0.25
#: Smallest step that backtracking tries before it gives up.
_LEAST_STEP = 2.0**-60


class Accelerator(Protocol):
    """A faster method: it proposes the next dual from the accepted iterates. The loop safeguards the proposals."""

    def start(self, objective: Objective, point: Point) -> Any:
        """An empty memory (with `select`) for the batch of `point`."""
        ...

    def propose(
        self, objective: Objective, memory: Any, point: Point, fresh: Bool[Tensor, " batch"]
    ) -> tuple[Any, Float[Tensor, "batch d"]]:
        """The next dual of each sample; `fresh` marks the samples whose past has to be forgotten."""
        ...


#: What an accelerator's memory says, where its sample stopped, of the inverse Jacobian. The last argument marks the
#: samples whose last proposal was rejected or that have made no step.
ReadInverse = Callable[[Objective, Any, Point, Tensor], InverseEstimate]


def run(
    solver: Solver,
    objective: Objective,
    dual: Float[Tensor, "batch d"],
    accelerator: Accelerator | None,
    read_inverse: ReadInverse | None = None,
) -> Outcome:
    """Iterate from `dual` until each sample has stopped.

    Args:
        solver: tolerances and limits.
        objective: F at the batch's inputs.
        dual: y⁰, (B, d).
        accelerator: what proposes the iterates; None for MM's own.
        read_inverse: reads the outcome's `inverse` off the accelerator's memory; None: it is not wanted.
    """
    with torch.no_grad():
        return _Loop(solver, objective, dual.detach(), accelerator, read_inverse).result()


class _Loop:
    """The steps of a solver, and what ends them."""

    def __init__(
        self,
        solver: Solver,
        objective: Objective,
        dual: Tensor,
        accelerator: Accelerator | None,
        read_inverse: ReadInverse | None,
    ) -> None:
        self.solver = solver
        self.read_inverse = read_inverse
        self.accelerator = accelerator
        self.tol = solver.tolerance(dual.dtype)
        self.certifies = not objective.unique and can_certify(objective)
        self.ends_exactly = (
            solver.ends_exactly and can_solve_exactly(objective) and (objective.unique or self.certifies)
        )
        self.exact_every = max(_EXACT_EVERY, dual.shape[-1] // objective.energy.costs.exact_width)
        # Where one exact solve ends it all, plain steps are the cheapest way to the right active set.
        self.walks = self.ends_exactly and objective.unique and not (objective.backtracks or objective.regularization)
        self.recorder = Recorder(dual) if solver.trace else None
        self.inverses: list[tuple[Tensor, InverseEstimate]] = []
        self.start = self._start(objective, dual)

    def result(self) -> Outcome:
        recorder = self.recorder
        record = None if recorder is None else lambda state: recorder.add(state.rows, state.point)
        ended = iterate(self.start, self.step, self.going, self.end, record if len(self.start.rows) else None)
        trace = None if recorder is None else recorder.trace()
        return ended.outcome(trace, None if self.read_inverse is None else assembled(self.inverses, ended.dual))

    def _start(self, objective: Objective, dual: Tensor) -> State:
        point = objective.evaluate(dual, objective.initial_step(dual))
        limit = _limit(objective, point)
        return State(
            rows=all_rows(dual),
            objective=objective,
            point=point,
            progress=Progress.at_start(objective, point),
            lowest_point=point,
            limit=limit,
            depth=_depth(objective, limit),
            memory=None if self.accelerator is None else self.accelerator.start(objective, point),
            ended=None,
            iteration=0,
            exact_at=self.exact_every,
            stale=False,
        )

    def step(self, state: State, _: int) -> State:
        """The next state that is looked at, one step or some steps on."""
        state = replace(state, ended=None)
        if state.iteration == 0 and self.walks:
            state = self._opened(state)
        else:
            proposes = self._proposes(state)
            unseen = min(self._unseen(state, proposes), self.solver.max_iter - state.iteration - 1)
            state = self._stepped(_walked(state, unseen) if unseen > 0 else state, proposes)
        if state.iteration >= state.exact_at:
            state = replace(state, exact_at=state.iteration + max(self.exact_every, state.iteration // 2))
            state = self._ahead(state, torch.ones_like(state.progress.restart))
        return state

    # One step -------------------------------------------------------------------------------------------------

    def _stepped(self, state: State, proposes: bool) -> State:
        """Propose, evaluate, and keep what the safeguard lets through."""
        objective, point, progress, memory = state.objective, state.point, state.progress, state.memory
        candidate, proposed = point.next_dual, torch.zeros_like(progress.restart)
        if self.accelerator is not None and proposes:
            fresh = progress.restart | ~progress.free_to_run | (progress.rest > 0) | state.stale
            memory, dual = self.accelerator.propose(objective, memory, point, fresh)
            proposed = ~fresh & torch.isfinite(dual.sum(-1))
            if not objective.geometry.has_every_dual:
                ends = objective.geometry.dual_bounds(dual.dtype)
                proposed = proposed & ((dual > ends[0]) & (dual < ends[1])).all(-1)
            candidate = torch.where(proposed[:, None], dual, candidate)
        if self.ends_exactly and self.certifies and not objective.regularization:
            # A step of MM's own, or many of them at once where z stands still.
            far, still = leap(objective, point, progress.stride)
            still = still & ~proposed
            candidate = torch.where(still[:, None], far, candidate)
            stride = torch.where(still, 2 * progress.stride, 0.25 * progress.stride).clamp(1.0, _LONGEST)
            progress = replace(progress, stride=stride)
        new = objective.evaluate(candidate, point.step)
        merit, accepted = judged(state, new, proposed, self.certifies)
        fell = merit < progress.lowest if objective.energy.symmetric else torch.zeros_like(accepted)
        length = dual_step(new)
        # Slow progress is progress: the marks to beat stay until they are beaten clearly, however many steps it takes.
        closer = accepted & (new.residual < 0.999 * progress.best)
        shorter = accepted & (length < 0.999 * progress.shortest)
        gained = closer | shorter | (fell & accepted)
        lowest_point = state.lowest_point
        if proposes:
            height = torch.where(accepted, merit, progress.window[:, -1])
            progress, first = balanced(objective, point, new, progress, height, proposed, gained)
            if objective.energy.symmetric and bool(first.any()):
                lowest_point = point.where(first, lowest_point)
        under_way = returns(objective, new) | moves(objective, new)  # although nothing gets better
        progress = replace(
            progress,
            evaluations=progress.evaluations + 1,
            lowest=torch.where(accepted, torch.minimum(merit, progress.lowest), progress.lowest),
            best=torch.where(closer, new.residual, progress.best),
            shortest=torch.where(shorter, length, progress.shortest),
            idle=torch.where(gained | under_way, 0, progress.idle + 1),
            window=torch.where(
                accepted[:, None], torch.cat([progress.window[:, 1:], merit[:, None]], 1), progress.window
            ),
            restart=~accepted,
            lost=~accepted & ~proposed & ~new.finite & (not objective.backtracks),
        )
        state = replace(
            state,
            point=_restepped(objective, point, new, accepted, proposed),
            progress=progress,
            lowest_point=lowest_point,
            memory=memory,
            iteration=state.iteration + 1,
            stale=self.accelerator is not None and not proposes,
        )
        return returned(state) if proposes else state

    def _proposes(self, state: State) -> bool:
        """Whether any sample may follow proposals; else the accelerator forgets, and its work is saved."""
        if self.accelerator is None:
            return False
        return state.objective.unique or bool(state.progress.free_to_run.any())

    def _opened(self, state: State) -> State:
        """After the first steps on the way to the right active set."""
        state = _walked(state, min(_WALK, self.solver.max_iter))
        return replace(state, progress=replace(state.progress, best=state.point.residual, anchor=state.point.value))

    def _unseen(self, state: State, proposes: bool) -> int:
        """How many steps may be made before the next that is looked at: MM's own, of which there will be many."""
        if self.accelerator is None or self.solver.trace or state.objective.backtracks or proposes:
            return 0
        return _UNSEEN if state.iteration >= _MANY else 0

    # The exact solve ------------------------------------------------------------------------------------------

    def _ahead(self, state: State, due: Bool[Tensor, " batch"]) -> State:
        """The state after a look at the critical points that the iterates point to.

        Where such a point passes its test and is certain to be MM's limit, the sample ends there, or, if
        the solver makes no exact solve, is set free to run towards it.
        """
        progress = state.progress
        if not self.ends_exactly and not self.certifies:
            if state.objective.energy.symmetric:
                return state
            # Without an objective nothing can be proved: let the proposals start once MM is near an equilibrium.
            near = state.point.residual <= _NEAR
            return replace(state, progress=replace(progress, free_to_run=progress.free_to_run | near))
        if state.objective.regularization and state.objective.unique:
            # Newton's steps cost a factorization each: worth it near the end, or where the iteration fails.
            narrow = state.point.value.shape[-1] <= state.objective.energy.costs.newton_width
            near = (state.point.residual <= _NEWTON_FROM) & narrow
            due = due & (near | (progress.idle >= _PATIENCE) | (state.iteration >= self.solver.max_iter))
        rows = due.nonzero().squeeze(-1)
        if len(rows) == 0:
            return state
        objective, point = state.objective.select(rows), state.point.select(rows)
        found = solve_exactly(objective, point, self.tol)
        sure = found.accepted
        progress = replace(progress, evaluations=progress.evaluations.index_add(0, rows, found.tries))
        if self.certifies:
            radius = certified_radius(objective, point, found)
            sure = sure & (radius > 0)
            known = rows[sure]
            progress = replace(
                progress,
                free_to_run=progress.free_to_run.index_fill(0, known, True),
                anchor=progress.anchor.index_copy(0, known, found.value[sure]),
                radius=progress.radius.index_copy(0, known, radius[sure]),
            )
        state = replace(state, progress=progress)
        return (
            self._taken_over(state, rows[sure], found.select(sure.nonzero().squeeze(-1)))
            if self.ends_exactly
            else state
        )

    def _taken_over(self, state: State, rows: Int[Tensor, " done"], found: ExactResult) -> State:
        """The state with some samples ended at exact points."""
        if len(rows) == 0:
            return state
        part = state.select(rows)
        point = exact_point(part.objective, part.point, found)
        end = _ended(part, exact_status(found), point)
        if not part.objective.regularization:
            end = replace(end, exact=torch.ones_like(end.exact), free=found.free)
        ended = state.ended
        if ended is None:
            ended = _ended(state, torch.full_like(state.rows, -1), state.point)
        return replace(state, ended=ended.replace_rows(rows, end))

    # Stop -----------------------------------------------------------------------------------------------------

    def going(self, state: State, _: int) -> Bool[Tensor, " batch"]:
        """The samples that have not converged, failed, or run out of iterations, and have not been taken over."""
        if state.iteration >= self.solver.max_iter:
            return torch.zeros_like(state.progress.restart)
        stalled, running_away, converged = self._verdict(state)
        over = stalled | running_away | converged
        return ~over if state.ended is None else ~(over | state.ended.over)

    def _verdict(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Who has stalled, who is running away, and who has converged, (b,) each."""
        point, progress = state.point, state.progress
        patience = _PATIENCE
        if not state.objective.energy.symmetric:
            # A residual may rise for long while the iterates spiral in, and there is no objective to look at instead.
            # (a network's evaluations are not made a thousand at a time in vain)
            patience = max(patience if state.objective.energy.is_field else 10 * patience, state.iteration // 2)
        stalled = progress.idle >= patience
        if state.objective.backtracks:
            stalled = stalled | (point.step.squeeze(-1) < _LEAST_STEP)
        broken = progress.lost | ~point.finite
        converged = (point.residual <= self.tol) & ~broken
        running_away = broken | (~converged & (point.value.abs().amax(-1) > state.limit))
        if state.depth is not None and point.objective is not None:
            running_away = running_away | (~converged & (point.objective < state.depth))
        return stalled, running_away, converged

    def end(self, state: State, _: int) -> Ended:
        """Where samples have ended that do not go on."""
        stalled, running_away, converged = self._verdict(state)
        ended = None if state.ended is None else state.ended.over
        solved = converged if ended is None else converged | ended
        running_away = running_away | (~solved & drifts(state.objective, state.point, state.progress.opening))
        if self.ends_exactly:
            state = self._ahead(state, ~(solved | running_away))
        status = torch.where(stalled, int(Status.STALLED), int(Status.MAX_ITER))
        status = torch.where(running_away, int(Status.DIVERGED), status)
        thin = state.objective.degenerate(state.point, 10 * self.tol).to(status.dtype)  # (CONVERGED or DEGENERATE)
        end = _ended(state, torch.where(converged, thin, status), state.point)
        if self.read_inverse is not None and len(state.rows):
            inverse = self.read_inverse(state.objective, state.memory, state.point, state.progress.restart)
            self.inverses.append((state.rows, inverse.trimmed()))
        return end if state.ended is None else state.ended.where(state.ended.over, end)


def _ended(state: State, status: Tensor, point: Point) -> Ended:
    return Ended(
        **vars(point),
        status=status,
        iterations=torch.full_like(state.rows, state.iteration),
        evaluations=state.progress.evaluations,
        exact=torch.zeros_like(state.progress.restart),
        free=torch.ones_like(point.value, dtype=torch.bool),
    )


def _walked(state: State, count: int) -> State:
    """After plain MM steps, with nothing computed that they do not need."""
    dual, step = state.point.next_dual, state.point.step
    for _ in range(count - 1):
        dual = state.objective.iterate(dual, step)
    progress = replace(state.progress, evaluations=state.progress.evaluations + count)
    point = state.objective.evaluate(dual, step)
    return replace(state, point=point, progress=progress, iteration=state.iteration + count)


def _restepped(objective: Objective, old: Point, new: Point, accepted: Tensor, proposed: Tensor) -> Point:
    """The accepted iterates, else the old ones, with the step that is to be tried next."""
    point = new.where(accepted, old)
    if not objective.backtracks:
        return point
    step = torch.where((~accepted & ~proposed)[:, None], 0.5 * point.step, point.step)
    if objective.lengthens:
        ample = accepted & ~proposed & objective.majorized(old, new, _AMPLE)
        step = torch.where(ample[:, None], (2 * step).clamp_max(1.0), step)
    return objective.restep(point, step)


def _limit(objective: Objective, point: Point) -> Tensor:
    """The largest |z| that is not taken for running away, (b,)."""
    if objective.is_coercive:
        return torch.full_like(point.residual, torch.inf)
    far = torch.finfo(point.value.dtype).eps ** (-1.0 if objective.unique else -0.75)
    return far * (1 + point.value.abs().amax(-1))


def _depth(objective: Objective, limit: Tensor) -> Tensor | None:
    """F below which every critical point is farther out than `limit`, (b,); None: no such number is known.

    γ = 0, f quadratic and C a cone: there ⟨∇f, z⟩ = 0 and F = −½⟨c, z⟩, and MM never climbs.
    """
    energy = objective.energy.factored
    if objective.regularization or not objective.geometry.is_cone or energy is None or not energy.symmetric:
        return None
    return -0.5 * limit * energy.offset.detach().abs().sum(-1)
