"""The one loop that all iterative solvers share: start, step, safeguard, stop, per sample.

A sample that has stopped is written out and leaves the batch, so that it costs nothing any more and later
iterations cannot touch it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.objective import Objective, Point, RowsOfTensors
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.basin import can_test_basin, newton_radius, next_test
from implicit_bregman.solvers.polish import Polished, PolishSchedule, can_polish, polish
from implicit_bregman.solvers.recorder import Recorder
from implicit_bregman.status import Status

#: Iterations without any progress after which a sample counts as stalled.
_PATIENCE = 100
#: An accelerated iterate may rise above the current one, but not above the worst of so many before it.
_WINDOW = 5
#: Without an objective, the residual may exceed the worst of the window by this factor.
_RESIDUAL_GROWTH = 2.0
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


@dataclass(frozen=True)
class _Progress(RowsOfTensors):
    """Bookkeeping of the samples that are still running.

    Attributes:
        index: their rows in the whole batch, (b,).
        evaluations: (b,).
        best: smallest residual so far, (b,).
        idle: iterations since the last progress, (b,).
        window: the last merits (F relative to the start, or the residual where there is no objective), (b, w).
        restart: whether the next step has to be MM's own and the past forgotten, (b,).
        free_to_run: whether proposals may be followed: F has one critical point, or MM is in its basin, (b,).
        anchor, radius: where the basin was entered and how far from there proposals may go, (b, d), (b,).
        test_at: the iteration of the next basin test, (b,).
        lost: whether MM's own step led to something that is not finite, (b,).
    """

    index: Tensor
    evaluations: Tensor
    best: Tensor
    idle: Tensor
    window: Tensor
    restart: Tensor
    free_to_run: Tensor
    anchor: Tensor
    radius: Tensor
    test_at: Tensor
    lost: Tensor


def run(
    solver: Solver, objective: Objective, dual: Float[Tensor, "batch d"], accelerator: Accelerator | None
) -> Outcome:
    """Iterate from `dual` until each sample has stopped.

    Args:
        solver: tolerances and limits.
        objective: F at the batch's inputs.
        dual: y⁰, (B, d).
        accelerator: what proposes the iterates; None for MM's own.
    """
    with torch.no_grad():
        return _Run(solver, objective, dual.detach(), accelerator).result()


class _Run:
    def __init__(
        self, solver: Solver, objective: Objective, dual: Tensor, accelerator: Accelerator | None
    ) -> None:
        self.solver = solver
        self.objective = objective
        self.accelerator = accelerator
        self.tol = solver.tolerance(dual.dtype)
        self.point = objective.evaluate(dual, objective.initial_step(dual))
        self.limit = 1 / torch.finfo(dual.dtype).eps * (1 + self.point.value.abs().amax(-1))
        self.progress = self._start(self.point)
        self.memory = None if accelerator is None else accelerator.start(objective, self.point)
        self.schedule = (
            PolishSchedule.start(len(dual), dual.device) if solver.polishes and can_polish(objective) else None
        )
        self.tests_basin = not objective.unique and can_test_basin(objective)
        self.recorder = Recorder(self.point, trace=solver.trace)

    def result(self) -> Outcome:
        iteration = 0
        while len(self.progress.index):
            self.recorder.record(self.progress.index, self.point)
            if self.tests_basin:
                self._test_basin(iteration)
            if self.schedule is not None:
                self.schedule = self.schedule.update(self.objective, self.point)
                self._polish(self.schedule.due & self.progress.free_to_run, iteration)
            self._stop(iteration)
            if len(self.progress.index):
                self._step()
                iteration += 1
        return self.recorder.outcome()

    def _start(self, point: Point) -> _Progress:
        like = point.residual
        count = torch.zeros_like(like, dtype=torch.int64)
        window = like if self._merit_is_residual else torch.zeros_like(like)
        return _Progress(
            index=torch.arange(len(like), device=like.device),
            evaluations=count + 1,
            best=like.clone(),
            idle=count,
            window=window[:, None].expand(-1, _WINDOW),
            restart=torch.ones_like(like, dtype=torch.bool),
            free_to_run=torch.full_like(like, self.objective.unique, dtype=torch.bool),
            anchor=point.value,
            radius=torch.full_like(like, torch.inf),
            test_at=count + 8,
            lost=torch.zeros_like(like, dtype=torch.bool),
        )

    @property
    def _merit_is_residual(self) -> bool:
        return not self.objective.energy.symmetric

    # One step -------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Propose, evaluate, and keep what the safeguard lets through."""
        point, progress = self.point, self.progress
        candidate, proposed = point.next_dual, torch.zeros_like(progress.restart)
        if self.accelerator is not None:
            self.memory, dual = self.accelerator.propose(
                self.objective, self.memory, point, progress.restart | ~progress.free_to_run
            )
            proposed = progress.free_to_run & ~progress.restart & torch.isfinite(dual.sum(-1))
            candidate = torch.where(proposed[:, None], dual, candidate)
        new = self.objective.evaluate(candidate, point.step)
        merit, accepted = self._judge(new, proposed)
        fell = merit < progress.window[:, -1] if not self._merit_is_residual else torch.zeros_like(accepted)
        improved = (new.residual < 0.999 * progress.best) & accepted
        self.progress = replace(
            progress,
            evaluations=progress.evaluations + 1,
            best=torch.where(accepted, torch.minimum(progress.best, new.residual), progress.best),
            idle=torch.where(improved | (fell & accepted), 0, progress.idle + 1),
            window=torch.where(
                accepted[:, None], torch.cat([progress.window[:, 1:], merit[:, None]], 1), progress.window
            ),
            restart=~accepted,
            lost=~accepted & ~proposed & ~new.finite & (not self.objective.backtracks),
        )
        rejected_step = ~accepted & ~proposed
        self.point = new.where(accepted, point)
        if self.objective.backtracks:
            halved = torch.where(rejected_step[:, None], 0.5 * self.point.step, self.point.step)
            self.point = self.objective.restep(self.point, halved)

    def _judge(self, new: Point, proposed: Tensor) -> tuple[Tensor, Tensor]:
        """The merit of each candidate, and whether it is accepted."""
        old, progress = self.point, self.progress
        if self._merit_is_residual:
            merit = new.residual
            below = merit <= _RESIDUAL_GROWTH * progress.window.amax(-1)
        else:
            increase, noise = self.objective.increase(old, new)
            # A change within the rounding error counts as none.
            merit = progress.window[:, -1] + torch.where(increase.abs() <= noise, 0.0, increase)
            below = merit <= progress.window.amax(-1)
        near = torch.linalg.vector_norm(new.value - progress.anchor, dim=-1) <= progress.radius
        accepted = below & near
        if self.objective.backtracks:
            plain = self.objective.majorized(old, new)
        else:
            plain = torch.ones_like(proposed)
        return merit, torch.where(proposed, accepted, plain) & new.finite

    # Basin and polish -----------------------------------------------------------------------------------------

    def _test_basin(self, iteration: int) -> None:
        progress = self.progress
        due = ~progress.free_to_run & (progress.test_at <= iteration)
        if not bool(due.any()):
            return
        rows = due.nonzero().squeeze(-1)
        passed, length = newton_radius(self.objective.select(rows), self.point.select(rows))
        entered = rows[passed]
        free, anchor, radius = progress.free_to_run.clone(), progress.anchor.clone(), progress.radius.clone()
        free[entered] = True
        anchor[entered] = self.point.value[entered]
        radius[entered] = 3 * length[passed]
        test_at = torch.where(due, next_test(torch.full_like(progress.test_at, iteration)), progress.test_at)
        self.progress = replace(progress, free_to_run=free, anchor=anchor, radius=radius, test_at=test_at)

    def _polish(self, due: Bool[Tensor, " batch"], iteration: int) -> None:
        """Polish the samples that are due; those that pass leave the batch."""
        if self.schedule is None or not bool(due.any()):
            return
        rows = due.nonzero().squeeze(-1)
        found = polish(self.objective.select(rows), self.point.select(rows), self.tol)
        evaluations = self.progress.evaluations.clone()
        evaluations[rows] += found.tries
        self.progress = replace(self.progress, evaluations=evaluations)
        near = torch.linalg.vector_norm(found.value - self.progress.anchor[rows], dim=-1)
        accepted = found.accepted & (near <= self.progress.radius[rows])
        refused = torch.zeros_like(due)
        refused[rows[~accepted]] = True
        self.schedule = self.schedule.failed(refused)
        self._finish_polished(rows[accepted], found.select(accepted.nonzero().squeeze(-1)), iteration)

    def _finish_polished(self, rows: Int[Tensor, " done"], found: Polished, iteration: int) -> None:
        if len(rows) == 0:
            return
        point = self.point.select(rows)
        objective = self.objective.select(rows)
        final = replace(point, value=found.value, dual=found.dual, gradient=found.gradient.to(point.value.dtype))
        final = replace(final, residual=found.residual, next_dual=found.dual)
        if point.objective is not None:
            increase, _ = objective.increase(point, final)
            final = replace(final, objective=point.objective + increase)
        status = torch.where(found.degenerate, int(Status.DEGENERATE), int(Status.CONVERGED))
        self.recorder.finish(self.progress.select(rows), final, status, iteration, found.free)
        done = torch.zeros(len(self.progress.index), dtype=torch.bool, device=rows.device)
        done[rows] = True
        self._keep(~done)

    # Stop -----------------------------------------------------------------------------------------------------

    def _stop(self, iteration: int) -> None:
        """Write out the samples that have converged, failed, or run out of iterations."""
        if len(self.progress.index) == 0:
            return
        point, progress = self.point, self.progress
        status = torch.full_like(progress.index, -1)
        if iteration >= self.solver.max_iter:
            status[:] = int(Status.MAX_ITER)
        stalled = progress.idle >= _PATIENCE
        if self.objective.backtracks:
            stalled = stalled | (point.step.squeeze(-1) < _LEAST_STEP)
        status = torch.where(stalled, int(Status.STALLED), status)
        running_away = progress.lost | ~point.finite | (point.value.abs().amax(-1) > self.limit)
        status = torch.where(running_away, int(Status.DIVERGED), status)
        converged = point.residual <= self.tol
        status = torch.where(converged, int(Status.CONVERGED), status)
        done = status >= 0
        if not bool(done.any()):
            return
        if self.schedule is not None:
            last_chance = done & ~converged & ~running_away & progress.free_to_run
            before = progress.index
            self._polish(last_chance, iteration)
            left = torch.isin(before, self.progress.index)
            status, done = status[left], done[left]
            if len(status) == 0:
                return
        rows = done.nonzero().squeeze(-1)
        final = self.point.select(rows)
        status = status[rows]
        degenerate = (status == int(Status.CONVERGED)) & self.objective.select(rows).degenerate(final, 10 * self.tol)
        status = torch.where(degenerate, int(Status.DEGENERATE), status)
        self.recorder.finish(self.progress.select(rows), final, status, iteration, None)
        self._keep(~done)

    def _keep(self, mask: Bool[Tensor, " batch"]) -> None:
        index = mask.nonzero().squeeze(-1)
        self.objective = self.objective.select(index)
        self.point = self.point.select(index)
        self.progress = self.progress.select(index)
        self.limit = self.limit[index]
        if self.memory is not None:
            self.memory = self.memory.select(index)
        if self.schedule is not None:
            self.schedule = self.schedule.select(index)
