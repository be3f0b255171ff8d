"""What a first-order loop knows of its samples: where they are, how they got there, where they ended."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from implicit_bregman.objective import Objective, Point, RowsOfTensors
from implicit_bregman.per_sample import Running
from implicit_bregman.solvers.base import Outcome, Trace
from implicit_bregman.solvers.inverse import InverseEstimate

#: An accelerated iterate may rise above the current one, but not above the worst of so many before it.
_WINDOW = 5


@dataclass(frozen=True)
class Progress(RowsOfTensors):
    """Bookkeeping of the samples that are still running.

    Attributes:
        evaluations: (b,).
        best: smallest residual so far, (b,).
        shortest: smallest dual step ‖y⁺ − y‖∞ so far, (b,): for γ > 0 it goes on falling where the residual is
            held up by the distance to a bound.
        idle: iterations since the last progress, (b,).
        window: the last merits, F relative to the start (where there is no objective: the residual), (b, w).
        lowest: the least merit so far, (b,).
        balance: how many proposals in vain may follow, (b,).
        astray: whether the iterate is a proposal's above the lowest point, (b,).
        rest: MM's own steps to be made before the next proposal, (b,).
        patience: the length of the next rest, (b,).
        restart: whether the next step has to be MM's own and the past forgotten, (b,).
        free_to_run: whether proposals may be followed: F has one critical point, or MM is in its basin, (b,).
        anchor, radius: the critical point that MM is certain to reach, and how far from it proposals may go,
            (b, d), (b,).
        lost: whether MM's own step led to something that is not finite, (b,).
        opening: the first dual step of MM, (b, d).
        stride: how many MM steps to make at once where z stands still, (b,).
    """

    evaluations: Tensor
    best: Tensor
    shortest: Tensor
    idle: Tensor
    window: Tensor
    lowest: Tensor
    balance: Tensor
    astray: Tensor
    rest: Tensor
    patience: Tensor
    restart: Tensor
    free_to_run: Tensor
    anchor: Tensor
    radius: Tensor
    lost: Tensor
    opening: Tensor
    stride: Tensor

    @classmethod
    def at_start(cls, objective: Objective, point: Point) -> Progress:
        """No step has been made."""
        like = point.residual
        count = torch.zeros_like(like, dtype=torch.int64)
        merit = torch.zeros_like(like) if objective.energy.symmetric else like
        return cls(
            evaluations=count + 1,
            best=like.clone(),
            shortest=dual_step(point),
            idle=count,
            window=merit[:, None].expand(-1, _WINDOW),
            lowest=merit,
            balance=count,
            astray=count > 0,
            rest=count,
            patience=count + 1,
            restart=torch.ones_like(like, dtype=torch.bool),
            free_to_run=torch.full_like(like, objective.unique or objective.energy.is_field, dtype=torch.bool),
            anchor=point.value,
            radius=torch.full_like(like, torch.inf),
            lost=torch.zeros_like(like, dtype=torch.bool),
            opening=point.next_dual - point.dual,
            stride=torch.ones_like(like),
        )


def dual_step(point: Point) -> Tensor:
    """‖y⁺ − y‖∞, (b,)."""
    return (point.next_dual - point.dual).abs().amax(-1)


@dataclass(frozen=True)
class Ended(Point):
    """Where samples have ended, and how: see `Outcome`; the status is negative where a sample is still running."""

    status: Tensor
    iterations: Tensor
    evaluations: Tensor
    exact: Tensor
    free: Tensor

    @property
    def over(self) -> Bool[Tensor, " batch"]:
        """Which samples have ended."""
        return self.status >= 0

    def outcome(self, trace: Trace | None, inverse: InverseEstimate | None) -> Outcome:
        """The result of the whole batch."""
        point = Point(**{field.name: getattr(self, field.name) for field in fields(Point)})
        return Outcome(
            point, self.status, self.iterations, self.evaluations, self.exact, self.free, trace, inverse=inverse
        )


@dataclass(frozen=True)
class State(Running):
    """The samples that are still running.

    Attributes:
        objective: F.
        point: the iterates.
        progress: how they have got there.
        lowest_point: the iterates to which those that are astray may return.
        limit: the largest |z| that is not taken for running away, (b,).
        depth: F below which every critical point is farther out than `limit`, (b,); None: no such number is known.
        memory: that of the accelerator.
        ended: where samples have ended that the exact solve has taken over since the last step; None: there are none.
        iteration: the number of steps made.
        exact_at: the iteration from which on the critical point ahead is looked for again.
        stale: whether the memory misses steps.
    """

    objective: Objective
    point: Point
    progress: Progress
    lowest_point: Point
    limit: Tensor
    depth: Tensor | None
    memory: Any
    ended: Ended | None
    iteration: int
    exact_at: int
    stale: bool
