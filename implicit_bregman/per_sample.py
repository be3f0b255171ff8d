"""The loop that all iterative solvers share: each sample of a batch runs until it stops by itself.

A solver brings the state of its first iterates, a step, and a test of which samples go on. A sample that has stopped is
put aside as it is and leaves the batch: it costs nothing any more, and later steps cannot touch it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from implicit_bregman.objective import RowsOfTensors

State = TypeVar("State", bound="Running")
End = TypeVar("End", bound=RowsOfTensors)


@dataclass(frozen=True)
class Running(RowsOfTensors):
    """What a solver knows of the samples that are still running.

    A subclass adds fields that have one row per sample, or do not depend on samples. Those with rows are tensors, and
    whatever has a `select` of its own: objectives, energies, dataclasses of tensors.

    Attributes:
        rows: which samples of the whole batch they are, (b,).
    """

    rows: Tensor

    def select(self: State, index: Int[Tensor, " kept"]) -> State:
        """Some of the samples."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen = {
            name: part[index] if isinstance(part, Tensor) else part.select(index)
            for name, part in parts.items()
            if hasattr(part, "select")
        }
        return replace(self, **chosen)

    def leaving(self: State, index: Int[Tensor, " stopped"]) -> State:
        """Some of the samples, to be asked where they have ended: what only steps need may be left as it is."""
        return self.select(index)


def all_rows(like: Tensor) -> Int[Tensor, " batch"]:
    """The rows of a whole batch, that of this tensor."""
    return torch.arange(len(like), device=like.device)


class Stopped(Generic[End]):
    """Where samples have ended, in the order in which they stopped."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._ends: list[End] = []

    def add(self, rows: Int[Tensor, " stopped"], end: End) -> None:
        """Put some samples aside.

        Args:
            rows: which they are of the whole batch.
            end: where they ended.
        """
        self._rows.append(rows)
        self._ends.append(end)

    def whole(self) -> End:
        """The whole batch in its own order, once all of its samples have stopped."""
        if len(self._ends) == 1:
            return self._ends[0]
        return self._ends[0].cat(self._ends).select(torch.cat(self._rows).argsort())


def iterate(
    state: State,
    step: Callable[[State, int], State],
    going: Callable[[State, int], Bool[Tensor, " batch"]],
    end: Callable[[State, int], End],
    record: Callable[[State], None] | None = None,
    crowd: float = 0.0,
) -> End:
    """Make steps until every sample has stopped, and return where each of them ended.

    Args:
        state: the first iterates, and whatever else the steps need of each sample.
        step: the next state, from a state and the number of steps made so far.
        going: which samples go on, from the same; every one has to stop at some number.
        end: what is kept of samples that have stopped, from the same.
        record: called with the running samples before every test.
        crowd: samples that have stopped leave the batch once they are more than this share of it, since
            leaving takes a copy of all others. Until then nothing that happens to them counts; but `record` sees them.
    """
    stopped: Stopped[End] = Stopped()
    count, running, over = 0, len(state.rows), None
    while True:
        if record is not None:
            record(state)
        goes = going(state, count)
        goes = goes if over is None else goes & ~over
        left = int(goes.sum())
        if left < running or not running:
            ends = ~goes if over is None else ~(goes | over)
            done = state.leaving(ends.nonzero().squeeze(-1)) if left or over is not None else state
            stopped.add(done.rows, end(done, count))
            if not left:
                return stopped.whole()
            running, over = left, ~goes
            if len(goes) - left > crowd * len(goes):
                state, over = state.select(goes.nonzero().squeeze(-1)), None
        state = step(state, count)
        count += 1
