"""The estimate of an inverse Jacobian that a quasi-Newton solver ends with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.objective import RowsOfTensors


@dataclass(frozen=True)
class InverseEstimate(RowsOfTensors):
    """B = B₀ + Σ left_i ⟨right_i, ·⟩, which maps r(y) = ρ(y⁺) − ρ(y) to a dual step: −B estimates (dr/dy)⁻¹.

    B₀ is the MM step, r ↦ y⁺ − y. It is no linear map of r, and is left to those who use the estimate.

    Attributes:
        left, right: (B, m, d); rows not filled are 0.
        count: the rows that are filled, (B,).
    """

    left: Tensor
    right: Tensor
    count: Tensor

    def trimmed(self) -> InverseEstimate:
        """The same, with only as many rows as the sample with the most updates has."""
        most = int(self.count.max()) if len(self.count) else 0
        # Copies: a view would keep the whole memory alive.
        return InverseEstimate(self.left[:, :most].clone(), self.right[:, :most].clone(), self.count)


def assembled(parts: list[tuple[Tensor, InverseEstimate]], like: Float[Tensor, "batch d"]) -> InverseEstimate:
    """The estimates of a whole batch, from those of some rows each; without updates for samples that have none."""
    most = max((part.left.shape[1] for _, part in parts), default=0)
    left = like.new_zeros(len(like), most, like.shape[-1])
    right, count = torch.zeros_like(left), torch.zeros(len(like), dtype=torch.int64, device=like.device)
    for index, part in parts:
        rows = part.left.shape[1]
        left[index, :rows], right[index, :rows], count[index] = part.left, part.right, part.count
    return InverseEstimate(left, right, count)
