"""Traces of methods that have no MM steps: made of their iterates, as these come."""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_bregman.objective import Objective
from implicit_bregman.solvers.recorder import Recorder


def last(rows: Tensor, steps: Tensor) -> Tensor:
    """Of each sample, (B,), the row of its last step: (K, B, d) → (B, d)."""
    return rows[steps, torch.arange(len(steps), device=steps.device)]


class TraceLog(Recorder):
    """Builds a `Trace` from the iterates of a method."""

    def __init__(self, objective: Objective, like: Tensor) -> None:
        super().__init__(like)
        self.objective = objective
        self.dtype = like.dtype

    def add_duals(self, dual: Tensor, index: Tensor) -> None:
        """One iteration, in dual coordinates."""
        dual = self.objective.geometry.project_dual(dual.to(self.dtype))
        part = self.objective.select(index)
        self.add(index, part.evaluate(dual, part.initial_step(dual)))

    def add_values(self, value: Tensor, index: Tensor) -> None:
        """One iteration, in primal coordinates."""
        self.add_duals(self.objective.geometry.finite_dual(value, self.dtype), index)
