"""What an exact method found: the points, and whether the optimality conditions hold there."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from implicit_bregman.objective import RowsOfTensors


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
        scale: 1 + the size of the terms of ∇f, (B,).
        residual: as in `Point`, (B,).
        accepted: whether the optimality conditions hold within the tolerance, (B,).
        degenerate: whether one of them holds without margin, (B,).
        steps: Newton steps, or active sets solved for, (B,).
        tries: evaluations of ∇f, (B,).
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
