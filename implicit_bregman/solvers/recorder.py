"""Where the loop writes its results: one row per sample of the whole batch."""

from __future__ import annotations

from dataclasses import fields
from typing import Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from implicit_bregman.objective import Point
from implicit_bregman.solvers.base import Outcome, Trace
from implicit_bregman.solvers.inverse import InverseEstimate


class Counted(Protocol):
    """Rows of the whole batch, and what they have cost."""

    @property
    def index(self) -> Int[Tensor, " batch"]:
        """Rows in the whole batch."""
        ...

    @property
    def evaluations(self) -> Int[Tensor, " batch"]:
        """Evaluations of ∇f."""
        ...


class Recorder:
    """Collects samples that have stopped, and the trace if one is wanted.

    Args:
        start: the first iterates of the whole batch.
        trace: whether to keep residual, objective and iterate of every iteration.
        inverse: whether inverse estimates will be given.
    """

    def __init__(self, start: Point, trace: bool, inverse: bool = False) -> None:
        self._rows = {
            field.name: None if getattr(start, field.name) is None else torch.empty_like(getattr(start, field.name))
            for field in fields(start)
        }
        batch, device = len(start.value), start.value.device
        self._status = torch.zeros(batch, dtype=torch.int64, device=device)
        self._iterations = torch.zeros_like(self._status)
        self._evaluations = torch.zeros_like(self._status)
        self._exact = torch.zeros(batch, dtype=torch.bool, device=device)
        self._free = torch.ones(start.value.shape, dtype=torch.bool, device=device)
        self._batch = batch
        self._dtype = start.value.dtype
        self._trace: list[tuple[Tensor, Tensor, Tensor]] | None = [] if trace else None
        self._inverses: list[tuple[Tensor, InverseEstimate]] | None = [] if inverse else None

    def record(self, index: Int[Tensor, " running"], point: Point) -> None:
        """Add one iteration to the trace."""
        if self._trace is None:
            return
        missing = torch.full((self._batch,), torch.nan, dtype=point.value.dtype, device=point.value.device)
        residual, objective = missing.clone(), missing.clone()
        dual = missing[:, None].repeat(1, point.value.shape[-1])
        residual[index] = point.residual
        if point.objective is not None:
            objective[index] = point.objective
        dual[index] = point.dual
        self._trace.append((residual, objective, dual))

    def write(
        self,
        who: Counted,
        point: Point,
        status: Int[Tensor, " done"],
        iterations: int,
        free: Bool[Tensor, "done d"] | None,
    ) -> None:
        """Write out samples that have stopped; `free` is given for exact ones."""
        index = who.index
        for name, rows in self._rows.items():
            if rows is not None:
                rows[index] = getattr(point, name)
        self._status[index] = status
        self._iterations[index] = iterations
        self._evaluations[index] = who.evaluations
        if free is not None:
            self._exact[index] = True
            self._free[index] = free

    def keep(self, index: Int[Tensor, " done"], inverse: InverseEstimate) -> None:
        """Write out the inverse estimates of samples that have stopped."""
        if self._inverses is not None:
            self._inverses.append((index, inverse.trimmed()))

    def outcome(self) -> Outcome:
        """Everything, once all samples have stopped."""
        trace = None
        if self._trace is not None:
            trace = self._stacked(self._trace)
        return Outcome(
            Point(**self._rows),  # type: ignore[arg-type]
            self._status,
            self._iterations,
            self._evaluations,
            self._exact,
            self._free,
            trace,
            inverse=None if self._inverses is None else self._assembled(self._inverses),
        )

    def _assembled(self, parts: list[tuple[Tensor, InverseEstimate]]) -> InverseEstimate:
        """The estimates of the whole batch; without updates for samples that have none."""
        most = max((part.left.shape[1] for _, part in parts), default=0)
        left = torch.zeros(self._batch, most, self._free.shape[-1], dtype=self._dtype, device=self._free.device)
        right, count = torch.zeros_like(left), torch.zeros_like(self._status)
        for index, part in parts:
            rows = part.left.shape[1]
            left[index, :rows], right[index, :rows], count[index] = part.left, part.right, part.count
        return InverseEstimate(left, right, count)

    def _stacked(self, rows: list[tuple[Tensor, Tensor, Tensor]]) -> Trace:
        if not rows:  # an empty batch makes no iteration
            empty = self._free.new_zeros(0, self._batch, dtype=self._dtype)
            return Trace(empty, empty, empty[:, :, None].expand(0, self._batch, self._free.shape[-1]))
        return Trace(*(torch.stack(column) for column in zip(*rows, strict=True)))
