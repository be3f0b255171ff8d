"""A trace made of the iterates of a method that is not the loop of `loop`."""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_bregman.objective import Objective
from implicit_bregman.solvers.base import Trace


def last(rows: Tensor, steps: Tensor) -> Tensor:
    """Of each sample, (B,), the row of its last step: (K, B, d) → (B, d)."""
    return rows[steps, torch.arange(len(steps), device=steps.device)]


class Log:
    """Builds a `Trace` from the iterates of a method."""

    def __init__(self, objective: Objective, like: Tensor) -> None:
        self.objective = objective
        self.like = like
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def add_duals(self, dual: Tensor, index: Tensor) -> None:
        """One iteration, in dual coordinates."""
        dual = self.objective.geometry.project_dual(dual.to(self.like.dtype))
        part = self.objective.select(index)
        point = part.evaluate(dual, part.initial_step(dual))
        missing = torch.full_like(self.like[:, 0], torch.nan)
        value = missing[index] if point.objective is None else point.objective
        self.rows.append(
            (
                missing.index_copy(0, index, point.residual),
                missing.index_copy(0, index, value),
                torch.full_like(self.like, torch.nan).index_copy(0, index, dual),
            )
        )

    def add_values(self, value: Tensor, index: Tensor) -> None:
        """One iteration, in primal coordinates."""
        self.add_duals(self.objective.geometry.finite_dual(value, self.like.dtype), index)

    def trace(self) -> Trace | None:
        """The trace; None where not a step was needed."""
        if not self.rows:
            return None
        return Trace(*(torch.stack(column) for column in zip(*self.rows, strict=True)))
