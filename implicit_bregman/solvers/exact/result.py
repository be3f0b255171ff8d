"""What an exact method found: the points, whether the optimality conditions hold there, and the outcome of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.objective import Objective, Point, RowsOfTensors
from implicit_bregman.operators.free import FreeBlocks
from implicit_bregman.operators.splitter import Splitter
from implicit_bregman.solvers.base import Outcome, Trace
from implicit_bregman.status import Status


@dataclass(frozen=True)
class ExactResult(RowsOfTensors):
    """What an exact method found, one row per sample.

    Attributes:
        value, dual: z and y, (B, d). An active coordinate sits on the float next to its bound inside C; its dual
            is finite and saturated.
        unrounded: the float64 point before rounding to `value`, possibly outside C if not accepted, (B, d).
        unrounded_dual: its dual in float64, (B, d).
        free: which coordinates are not at a bound, (B, d).
        gradient: ∇f at `unrounded`, in float64, (B, d).
        scale: what the entries of ∇f are measured against, (B, d).
        residual: as in `Point`, (B,).
        accepted: whether the optimality conditions hold within the tolerance, (B,).
        degenerate: whether one of them holds without margin, (B,).
        steps: Newton steps, or active sets solved for, (B,).
        tries: evaluations of ∇f, (B,).
        stuck: whether no step led any further, though the tolerance is not met, (B,), if that is known.
        blocks: the factors with which these points were found, for all samples, if there are such.
        splitter: else the splitting by which they were found.
    """

    value: Tensor
    dual: Tensor
    unrounded: Tensor
    unrounded_dual: Tensor
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
    splitter: Splitter | None = None

    @cached_property
    def complete(self) -> bool:
        """Whether every sample is accepted."""
        return bool(self.accepted.all())

    def select(self, index: Int[Tensor, " kept"]) -> ExactResult:
        """The rows of some samples."""
        return super().select(index) if self.blocks is None else replace(self, blocks=None).select(index)

    def where(self, mask: Bool[Tensor, " batch"], other: ExactResult) -> ExactResult:
        """Rows of `self` where `mask` holds, of `other` elsewhere."""
        return super().where(mask, other) if self.blocks is None else replace(self, blocks=None).where(mask, other)

    def replace_rows(self, index: Int[Tensor, " some"], other: ExactResult) -> ExactResult:
        """These rows, with those of some samples replaced by the rows of `other`."""
        if self.blocks is None:
            return super().replace_rows(index, other)
        return replace(self, blocks=None).replace_rows(index, other)


def exact_point(objective: Objective, point: Point, found: ExactResult) -> Point:
    """The iterate `point` with what was found from it."""
    final = replace(
        point,
        value=found.value,
        dual=found.dual,
        next_dual=found.dual,
        gradient=found.gradient.to(found.value.dtype),
        residual=found.residual,
    )
    value = _value(objective, found)
    if value is None:
        return final
    # (not by what has changed since `point`, which may be far out)
    value = value.to(found.value.dtype)
    if objective.regularization:
        value = value + objective.potential(found.dual)
    return replace(final, objective=value)


def _value(objective: Objective, found: ExactResult) -> Float[Tensor, " batch"] | None:
    """f at what was found, (B,); None for a field."""
    energy = objective.energy
    if not energy.symmetric:
        return None
    known = energy.value_with(found.unrounded, found.gradient)
    return energy.evaluate(found.value).value if known is None else known


def exact_status(found: ExactResult) -> Tensor:
    """`Status` values of samples that passed their test, (B,)."""
    # (the two are 1 and 0)
    return found.degenerate.to(torch.int64)


def exact_outcome(objective: Objective, found: ExactResult, trace: Trace | None) -> Outcome:
    """The result of a method that makes no MM steps, so that τ is not asked for."""
    energy, gamma, dtype = objective.energy, objective.regularization, found.value.dtype
    if trace is not None:
        value = objective.evaluate(found.dual, torch.ones_like(found.dual[:, :1])).objective
    else:
        value = _value(objective, found)
        if energy.symmetric and not energy.affine:
            found = replace(found, tries=found.tries + 1)
    point = Point(
        dual=found.dual,
        value=found.value,
        gradient=found.gradient.to(dtype),
        objective=None if value is None else value.to(dtype),
        residual=found.residual,
        scale=found.scale.to(dtype),
        step=torch.full_like(found.value[:, :1], torch.nan),
        next_dual=found.dual,
    )
    status = exact_status(found)
    if not found.complete:
        failed = torch.full_like(status, int(Status.MAX_ITER))
        if found.stuck is not None:
            failed = torch.where(found.stuck, int(Status.STALLED), failed)
        if not objective.geometry.has_every_dual:
            # Newton's steps have gone to the end of the duals, z to infinity.
            ends = objective.geometry.dual_bounds(dtype)
            gone = ((found.dual <= ends[0]) | (found.dual >= ends[1])).any(-1)
            failed = torch.where(gone, int(Status.DIVERGED), failed)
        status = torch.where(found.accepted, status, failed)
    exact = found.accepted if gamma == 0 and trace is None else torch.zeros_like(found.accepted)
    return Outcome(
        point,
        status,
        found.steps,
        found.tries,
        exact,
        found.free,
        trace,
        without_steps=True,
        complete=found.complete,
        without_potential=gamma > 0 and trace is None,
        blocks=found.blocks,
        splitter=found.splitter,
    )
