"""The one loop that all iterative solvers share: start, step, safeguard, stop, per sample.

A sample that has stopped is written out and leaves the batch, so that it costs nothing any more and later
iterations cannot touch it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.objective import Objective, Point
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.basin import can_certify, certified_radius
from implicit_bregman.solvers.exact.result import ExactResult, exact_point, exact_status
from implicit_bregman.solvers.exact.solve import can_solve_exactly, solve_exactly
from implicit_bregman.solvers.inverse import InverseEstimate
from implicit_bregman.solvers.motion import drifts, leap, moves, returns
from implicit_bregman.solvers.progress import Progress
from implicit_bregman.solvers.recorder import Recorder
from implicit_bregman.status import Status

#: Iterations without any progress after which a sample counts as stalled.
_PATIENCE = 100
#: An accelerated iterate may rise above the current one, but not above the worst of so many before it.
_WINDOW = 5
#: The most proposals in vain that may follow one another.
_CREDIT = 20
#: A proposal that lowers F by less than this share of what MM's step promises, and does not reduce the residual by this
#: factor, was in vain.
_SHARE, _CLEARLY = 0.5, 0.9
#: Without an objective, the residual of an accelerated iterate may exceed the least so far by this factor.
_RESIDUAL_GROWTH = 2.0
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
        return _Run(solver, objective, dual.detach(), accelerator, read_inverse).result()


def _dual_step(point: Point) -> Tensor:
    return (point.next_dual - point.dual).abs().amax(-1)


class _Run:
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
        self.objective = objective
        self.accelerator = accelerator
        self.tol = solver.tolerance(dual.dtype)
        self.point = objective.evaluate(dual, objective.initial_step(dual))
        self.limit = self._limit(self.point)
        self.depth = self._depth()
        self.lowest_point = self.point
        self.progress = self._start(self.point)
        self.memory = None if accelerator is None else accelerator.start(objective, self.point)
        self.stale = False
        self.certifies = not objective.unique and can_certify(objective)
        self.ends_exactly = (
            solver.ends_exactly and can_solve_exactly(objective) and (objective.unique or self.certifies)
        )
        self.exact_every = max(_EXACT_EVERY, dual.shape[-1] // objective.energy.costs.exact_width)
        self.exact_at = self.exact_every
        # Where one exact solve ends it all, plain steps are the cheapest way to the right active set.
        self.walks = self.ends_exactly and objective.unique and not (objective.backtracks or objective.regularization)
        self.recorder = Recorder(self.point, trace=solver.trace, inverse=read_inverse is not None)

    def result(self) -> Outcome:
        iteration = 0
        while len(self.progress.index):
            self.recorder.record(self.progress.index, self.point)
            if iteration >= self.exact_at:
                self.exact_at = iteration + max(self.exact_every, iteration // 2)
                self._look_ahead(torch.ones_like(self.progress.restart), iteration)
            self._stop(iteration)
            if len(self.progress.index) == 0:
                break
            if iteration == 0 and self.walks:
                iteration = self._open()
                continue
            unseen = min(self._unseen(iteration), self.solver.max_iter - iteration - 1)
            if unseen > 0:
                self._walk(unseen)
                iteration += unseen
            self._step()
            iteration += 1
        return self.recorder.outcome()

    def _start(self, point: Point) -> Progress:
        like = point.residual
        count = torch.zeros_like(like, dtype=torch.int64)
        window = like if self._merit_is_residual else torch.zeros_like(like)
        return Progress(
            index=torch.arange(len(like), device=like.device),
            evaluations=count + 1,
            best=like.clone(),
            shortest=_dual_step(point),
            idle=count,
            window=window[:, None].expand(-1, _WINDOW),
            lowest=window,
            balance=count,
            astray=count > 0,
            rest=count,
            patience=count + 1,
            restart=torch.ones_like(like, dtype=torch.bool),
            free_to_run=torch.full_like(like, self.objective.unique, dtype=torch.bool),
            anchor=point.value,
            radius=torch.full_like(like, torch.inf),
            lost=torch.zeros_like(like, dtype=torch.bool),
            opening=point.next_dual - point.dual,
            stride=torch.ones_like(like),
        )

    def _limit(self, point: Point) -> Tensor:
        """The largest |z| that is not taken for running away, (b,)."""
        if self.objective.is_coercive:
            return torch.full_like(point.residual, torch.inf)
        far = torch.finfo(point.value.dtype).eps ** (-1.0 if self.objective.unique else -0.75)
        return far * (1 + point.value.abs().amax(-1))

    def _depth(self) -> Tensor | None:
        """F below which every critical point is farther out than `limit`, (b,); None: no such number is known.

        γ = 0, f quadratic and C a cone: there ⟨∇f, z⟩ = 0 and F = −½⟨c, z⟩, and MM never climbs.
        """
        energy, ends = self.objective.energy.factored, self.objective.geometry.domain
        cone = all(end == 0.0 or math.isinf(end) for end in ends)
        if self.objective.regularization or not cone or energy is None or not energy.symmetric:
            return None
        return -0.5 * self.limit * energy.offset.detach().abs().sum(-1)

    @property
    def _merit_is_residual(self) -> bool:
        return not self.objective.energy.symmetric

    # One step -------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Propose, evaluate, and keep what the safeguard lets through."""
        point, progress = self.point, self.progress
        candidate, proposed = point.next_dual, torch.zeros_like(progress.restart)
        proposes = self._proposes()
        if self.accelerator is not None and proposes:
            fresh = progress.restart | ~progress.free_to_run | (progress.rest > 0) | self.stale
            self.stale = False
            self.memory, dual = self.accelerator.propose(self.objective, self.memory, point, fresh)
            proposed = ~fresh & torch.isfinite(dual.sum(-1))
            candidate = torch.where(proposed[:, None], dual, candidate)
        if self.ends_exactly and self.certifies and not self.objective.regularization:
            # A step of MM's own, or many of them at once where z stands still.
            far, still = leap(self.objective, point, progress.stride)
            still = still & ~proposed
            candidate = torch.where(still[:, None], far, candidate)
            stride = torch.where(still, 2 * progress.stride, 0.25 * progress.stride).clamp(1.0, _LONGEST)
            progress = replace(progress, stride=stride)
        new = self.objective.evaluate(candidate, point.step)
        merit, accepted = self._judge(new, proposed)
        fell = merit < progress.lowest if not self._merit_is_residual else torch.zeros_like(accepted)
        length = _dual_step(new)
        # Slow progress is progress: the marks to beat stay until they are beaten clearly, however many steps it takes.
        closer = accepted & (new.residual < 0.999 * progress.best)
        shorter = accepted & (length < 0.999 * progress.shortest)
        gained = closer | shorter | (fell & accepted)
        if proposes:
            height = torch.where(accepted, merit, progress.window[:, -1])
            progress = self._balanced(progress, new, height, proposed, gained)
        self.progress = replace(
            progress,
            evaluations=progress.evaluations + 1,
            lowest=torch.where(accepted, torch.minimum(merit, progress.lowest), progress.lowest),
            best=torch.where(closer, new.residual, progress.best),
            shortest=torch.where(shorter, length, progress.shortest),
            idle=torch.where(gained | self._is_under_way(new), 0, progress.idle + 1),
            window=torch.where(
                accepted[:, None], torch.cat([progress.window[:, 1:], merit[:, None]], 1), progress.window
            ),
            restart=~accepted,
            lost=~accepted & ~proposed & ~new.finite & (not self.objective.backtracks),
        )
        rejected_step = ~accepted & ~proposed
        self.point = new.where(accepted, point)
        if self.objective.backtracks:
            step = torch.where(rejected_step[:, None], 0.5 * self.point.step, self.point.step)
            if self.objective.unique:
                # A step that had to be short far out may be longer again; several critical points ask for the path as
                # it is.
                ample = accepted & ~proposed & self.objective.majorized(point, new, _AMPLE)
                step = torch.where(ample[:, None], (2 * step).clamp_max(1.0), step)
            self.point = self.objective.restep(self.point, step)
        if proposes:
            self._return()

    def _proposes(self) -> bool:
        """Whether any sample may follow proposals; else the accelerator forgets, and its work is saved."""
        if self.accelerator is None:
            return False
        if self.objective.unique or bool(self.progress.free_to_run.any()):
            return True
        self.stale = True
        return False

    def _is_under_way(self, point: Point) -> Bool[Tensor, " batch"]:
        """Whether a sample moves although nothing of it gets better."""
        return returns(self.objective, point) | moves(self.objective, point)

    def _balanced(self, progress: Progress, new: Point, merit: Tensor, proposed: Tensor, gained: Tensor) -> Progress:
        """What proposals in vain have cost, against the steps that were progress; those who have none left rest.

        A safeguard that lets the merit rise for a while cannot keep proposals from going round in a circle. Never
        more of them in vain than other steps, and a return to the lowest point when they are given up, bound the time
        of an accelerated method by about twice that of MM.
        """
        if self._merit_is_residual:  # a residual may rise for long, of MM too
            return progress
        # Of what MM's step promises, a proposal has to bring a share, or else come clearly closer.
        promise, noise = self.objective.promised_decrease(self.point)
        worthwhile = (merit <= progress.lowest - _SHARE * promise) & (merit < progress.lowest)
        worthwhile = worthwhile | (new.residual < _CLEARLY * progress.best)
        # (where F is as low as rounding lets it be seen, any progress will do)
        vain = proposed & ~torch.where(promise <= noise, gained, worthwhile)
        first = vain & ~progress.astray & (merit > progress.lowest)
        if bool(first.any()):
            self.lowest_point = self.point.where(first, self.lowest_point)
        balance = torch.where(vain, progress.balance - 1, progress.balance + 1).clamp_max(_CREDIT)
        tired = vain & (balance <= 0)
        return replace(
            progress,
            balance=balance,
            astray=(progress.astray | first) & (merit > progress.lowest),
            rest=torch.where(tired, progress.patience, (progress.rest - 1).clamp_min(0)),
            patience=torch.where(tired, 2 * progress.patience, progress.patience),
        )

    def _return(self) -> None:
        """Go back to the lowest point where proposals are given up above it."""
        progress = self.progress
        back = progress.astray & (progress.rest > 0)
        if not bool(back.any()):
            return
        self.point = self.lowest_point.where(back, self.point)
        window = torch.where(back[:, None], progress.lowest[:, None], progress.window)
        self.progress = replace(
            progress, window=window, astray=progress.astray & ~back, restart=progress.restart | back
        )

    def _open(self) -> int:
        """The first steps on the way to the right active set, and their number."""
        count = min(_WALK, self.solver.max_iter)
        self._walk(count)
        self.progress = replace(self.progress, best=self.point.residual, anchor=self.point.value)
        return count

    def _unseen(self, iteration: int) -> int:
        """How many steps may be made before the next that is looked at: MM's own, of which there will be many."""
        if self.accelerator is None or self.solver.trace or self.objective.backtracks or self._proposes():
            return 0
        return _UNSEEN if iteration >= _MANY else 0

    def _walk(self, count: int) -> None:
        """Plain MM steps, with nothing computed that they do not need."""
        dual, step = self.point.next_dual, self.point.step
        for _ in range(count - 1):
            dual = self.objective.iterate(dual, step)
        self.point = self.objective.evaluate(dual, step)
        self.progress = replace(self.progress, evaluations=self.progress.evaluations + count)

    def _judge(self, new: Point, proposed: Tensor) -> tuple[Tensor, Tensor]:
        """The merit of each candidate, and whether it is accepted."""
        old, progress = self.point, self.progress
        if self._merit_is_residual:
            merit = new.residual
            below = merit <= _RESIDUAL_GROWTH * progress.best
        else:
            increase, noise = self.objective.increase(old, new)
            # A change within the rounding error counts as none; one that overflows, as a rise.
            change = torch.where(increase.abs() <= noise, 0.0, increase)
            merit = progress.window[:, -1] + torch.where(torch.isfinite(increase + noise), change, torch.inf)
            # The certificate holds for points that do not lie above the one it was given at.
            below = merit <= (progress.window[:, -1] if self.certifies else progress.window.amax(-1))
        near = torch.linalg.vector_norm(new.value - progress.anchor, dim=-1) <= progress.radius
        accepted = below & near
        plain = self.objective.majorized(old, new) if self.objective.backtracks else torch.ones_like(proposed)
        return merit, torch.where(proposed, accepted, plain) & new.finite

    # The exact solve ------------------------------------------------------------------------------------------

    def _look_ahead(self, due: Bool[Tensor, " batch"], iteration: int) -> None:
        """Find the critical points that the iterates point to.

        Where such a point passes its test and is certain to be MM's limit, the sample ends there, or, if
        the solver makes no exact solve, is set free to run towards it.
        """
        if not self.ends_exactly and not self.certifies:
            if not self.objective.energy.symmetric:
                self._free_near_equilibrium()
            return
        if self.objective.regularization and self.objective.unique:
            # Newton's steps cost a factorization each: worth it near the end, or where the iteration fails.
            narrow = self.point.value.shape[-1] <= self.objective.energy.costs.newton_width
            near = (self.point.residual <= _NEWTON_FROM) & narrow
            due = due & (near | (self.progress.idle >= _PATIENCE) | (iteration >= self.solver.max_iter))
        rows = due.nonzero().squeeze(-1)
        if len(rows) == 0:
            return
        objective, point = self.objective.select(rows), self.point.select(rows)
        found = solve_exactly(objective, point, self.tol)
        sure = found.accepted
        self.progress = replace(self.progress, evaluations=self.progress.evaluations.index_add(0, rows, found.tries))
        if self.certifies:
            radius = certified_radius(objective, point, found)
            sure = sure & (radius > 0)
            known = rows[sure]
            progress = self.progress
            self.progress = replace(
                progress,
                free_to_run=progress.free_to_run.index_fill(0, known, True),
                anchor=progress.anchor.index_copy(0, known, found.value[sure]),
                radius=progress.radius.index_copy(0, known, radius[sure]),
            )
        if self.ends_exactly:
            self._end_exactly(rows[sure], found.select(sure.nonzero().squeeze(-1)), iteration)

    def _free_near_equilibrium(self) -> None:
        """Without an objective nothing can be proved: let the proposals start once MM is near an equilibrium."""
        near = self.point.residual <= _NEAR
        self.progress = replace(self.progress, free_to_run=self.progress.free_to_run | near)

    def _end_exactly(self, rows: Int[Tensor, " done"], found: ExactResult, iteration: int) -> None:
        if len(rows) == 0:
            return
        objective = self.objective.select(rows)
        final = exact_point(objective, self.point.select(rows), found)
        status = exact_status(found)
        free = None if objective.regularization else found.free
        self.recorder.write(self.progress.select(rows), final, status, iteration, free)
        self._keep(torch.ones_like(self.progress.restart).index_fill(0, rows, False))

    # Stop -----------------------------------------------------------------------------------------------------

    def _stop(self, iteration: int) -> None:
        """Write out the samples that have converged, failed, or run out of iterations."""
        if len(self.progress.index) == 0:
            return
        point, progress = self.point, self.progress
        status = torch.full_like(progress.index, -1)
        if iteration >= self.solver.max_iter:
            status[:] = int(Status.MAX_ITER)
        patience = _PATIENCE
        if self._merit_is_residual:
            # A residual may rise for long while the iterates spiral in, and there is no objective to look at instead.
            patience = max(10 * patience, iteration // 2)
        stalled = progress.idle >= patience
        if self.objective.backtracks:
            stalled = stalled | (point.step.squeeze(-1) < _LEAST_STEP)
        status = torch.where(stalled, int(Status.STALLED), status)
        broken = progress.lost | ~point.finite
        converged = (point.residual <= self.tol) & ~broken
        running_away = broken | (~converged & (point.value.abs().amax(-1) > self.limit))
        if self.depth is not None and point.objective is not None:
            running_away = running_away | (~converged & (point.objective < self.depth))
        done = (status >= 0) | running_away | converged
        if not bool(done.any()):
            return
        running_away = running_away | ((status >= 0) & ~converged & drifts(self.objective, point, progress.opening))
        status = torch.where(running_away, int(Status.DIVERGED), status)
        status = torch.where(converged, int(Status.CONVERGED), status)
        if self.ends_exactly:
            before = progress.index
            self._look_ahead(done & ~converged & ~running_away, iteration)
            left = torch.isin(before, self.progress.index)
            status, done = status[left], done[left]
            if len(status) == 0:
                return
        rows = done.nonzero().squeeze(-1)
        final = self.point.select(rows)
        status = status[rows]
        degenerate = (status == int(Status.CONVERGED)) & self.objective.select(rows).degenerate(final, 10 * self.tol)
        status = torch.where(degenerate, int(Status.DEGENERATE), status)
        who = self.progress.select(rows)
        self.recorder.write(who, final, status, iteration, None)
        if self.read_inverse is not None:
            part = self.objective.select(rows)
            memory = None if self.memory is None else self.memory.select(rows)
            self.recorder.keep(who.index, self.read_inverse(part, memory, final, who.restart))
        self._keep(~done)

    def _keep(self, mask: Bool[Tensor, " batch"]) -> None:
        index = mask.nonzero().squeeze(-1)
        self.objective = self.objective.select(index)
        self.point = self.point.select(index)
        self.progress = self.progress.select(index)
        self.limit = self.limit[index]
        self.depth = None if self.depth is None else self.depth[index]
        self.lowest_point = self.lowest_point.select(index)
        if self.memory is not None:
            self.memory = self.memory.select(index)
