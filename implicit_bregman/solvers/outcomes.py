"""Outcomes put together: some samples of one solver, the others of another."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from implicit_bregman.objective import Objective, Point
from implicit_bregman.solvers.base import Outcome
from implicit_bregman.status import Status
from implicit_bregman.tensors import rows_where


def unsolved(outcome: Outcome) -> Int[Tensor, " some"]:
    """The samples that more steps, or others, may still bring to an equilibrium."""
    return rows_where((outcome.status == Status.MAX_ITER) | (outcome.status == Status.STALLED))


def steps_left(max_iter: int, outcome: Outcome, rows: Int[Tensor, " some"]) -> int:
    """How many of `max_iter` steps may still be made by some of the samples."""
    return max(0, max_iter - int(outcome.iterations[rows].max())) if len(rows) else 0


def merged(objective: Objective, first: Outcome, rows: Int[Tensor, " some"], second: Outcome) -> Outcome:
    """`first` with some of its rows replaced by those of `second`, whose cost is added."""
    if len(rows) == 0:
        return first

    def put(old: Tensor, new: Tensor) -> Tensor:
        return old.index_copy(0, rows, new.to(old.dtype))

    return replace(
        first,
        point=with_steps(objective, first).point.replace_rows(rows, with_steps(objective, second).point),
        without_steps=False,
        complete=False,
        without_potential=False,
        blocks=None,
        splitter=None,
        status=put(first.status, second.status),
        iterations=put(first.iterations, first.iterations[rows] + second.iterations),
        evaluations=put(first.evaluations, first.evaluations[rows] + second.evaluations),
        exact=put(first.exact, second.exact),
        free=put(first.free, second.free),
    )


def with_steps(objective: Objective, outcome: Outcome) -> Outcome:
    """The same, to go with outcomes of MM steps: τ is known, and F is."""
    point = outcome.point
    if outcome.without_potential and point.objective is not None:
        point = replace(point, objective=point.objective + objective.potential(point.dual))
    if outcome.without_steps:
        point = replace(point, step=objective.initial_step(point.dual))
    return replace(outcome, point=point, without_steps=False, without_potential=False)


def joined(solved: list[tuple[Objective, Outcome]]) -> Outcome:
    """The outcomes of several batches as that of one."""
    exact = all(outcome.without_steps for _, outcome in solved)
    outcomes = [outcome if exact else with_steps(part, outcome) for part, outcome in solved]

    return replace(
        outcomes[0],
        point=Point.cat([outcome.point for outcome in outcomes]),
        status=torch.cat([outcome.status for outcome in outcomes]),
        iterations=torch.cat([outcome.iterations for outcome in outcomes]),
        evaluations=torch.cat([outcome.evaluations for outcome in outcomes]),
        exact=torch.cat([outcome.exact for outcome in outcomes]),
        free=torch.cat([outcome.free for outcome in outcomes]),
        complete=all(outcome.complete for outcome in outcomes),
        blocks=None,
        splitter=None,
    )
