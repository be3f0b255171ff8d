"""What an exact method found: the points, and whether the optimality conditions hold there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from jaxtyping import Bool, Int
from torch import Tensor

from implicit_bregman.objective import RowsOfTensors
from implicit_bregman.operators.free import FreeBlocks


@dataclass(frozen=True)
class Finished(RowsOfTensors):
    """What an exact method found, one row per sample.

    Attributes:
        value, dual: z and y, (B, d). An active coordinate sits on the float next to its bound inside C; its dual
            is finite and saturated.
        exact: the float64 point before rounding to `value`, possibly outside C if not accepted, (B, d).
        exact_dual: its dual in float64, (B, d).
        free: which coordinates are not at a bound, (B, d).
        gradient: ∇f at `exact`, in float64, (B, d).
        scale: what the entries of ∇f are measured against, (B, d).
        residual: as in `Point`, (B,).
        accepted: whether the optimality conditions hold within the tolerance, (B,).
        degenerate: whether one of them holds without margin, (B,).
        steps: Newton steps, or active sets solved for, (B,).
        tries: evaluations of ∇f, (B,).
        stuck: whether no step led any further, though the tolerance is not met, (B,), if that is known.
        blocks: the factors with which these points were found, for all samples, if there are such.
    """

    value: Tensor
    dual: Tensor
    exact: Tensor
    exact_dual: Tensor
    free: Tensor
    gradient: Tensor
    scale: Tensor
    residual: Tensor
    accepted: Tensor
    degenerate: Tensor
    steps: Tensor
    tries: Tensor
    stuck: Tensor | None = None
    blocks: FreeBlocks | None = None

    @cached_property
    def complete(self) -> bool:
        """Whether every sample is accepted."""
        return bool(self.accepted.all())

    def select(self, index: Int[Tensor, " kept"]) -> Finished:
        """The rows of some samples."""
        return super().select(index) if self.blocks is None else replace(self, blocks=None).select(index)

    def where(self, mask: Bool[Tensor, " batch"], other: Finished) -> Finished:
        """Rows of `self` where `mask` holds, of `other` elsewhere."""
        return super().where(mask, other) if self.blocks is None else replace(self, blocks=None).where(mask, other)

    def replace_rows(self, index: Int[Tensor, " some"], other: Finished) -> Finished:
        """These rows, with those of some samples replaced by the rows of `other`."""
        if self.blocks is None:
            return super().replace_rows(index, other)
        return replace(self, blocks=None).replace_rows(index, other)
