"""What a first-order loop knows of its samples besides where they are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from implicit_bregman.objective import RowsOfTensors


@dataclass(frozen=True)
class Progress(RowsOfTensors):
    """Bookkeeping of the samples that are still running.

    Attributes:
        index: their rows in the whole batch, (b,).
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

    index: Tensor
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
