"""What happened at every iteration, one row per sample of the whole batch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.objective import Point
from implicit_bregman.solvers.base import Trace


class Recorder:
    """Builds a `Trace`.

    Args:
        like: a tensor of the batch's shape (B, d) and precision.
    """

    def __init__(self, like: Float[Tensor, "batch d"]) -> None:
        self._missing = torch.full_like(like, torch.nan)
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, rows: Int[Tensor, " running"], point: Point) -> None:
        """One iteration, of the samples that are still running."""
        missing = self._missing[:, 0]
        value = missing[rows] if point.objective is None else point.objective
        self._rows.append(
            (
                missing.index_copy(0, rows, point.residual),
                missing.index_copy(0, rows, value),
                self._missing.index_copy(0, rows, point.dual),
            )
        )

    def trace(self) -> Trace:
        """All iterations so far."""
        if not self._rows:  # an empty batch makes none
            none = self._missing[None][:0]
            return Trace(none.sum(-1), none.sum(-1), none)
        return Trace(*(torch.stack(column) for column in zip(*self._rows, strict=True)))
