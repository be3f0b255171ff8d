"""Norms of rows, and ratios of them, that neither overflow nor divide by 0."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: The least norm that is divided by.
_LEAST = 1e-200


def norm(rows: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
    """‖·‖₂ in float64, (B,), where no square of a float32 overflows or vanishes."""
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64)


def ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """top / bottom of norms in float64; 0 where both are 0, and finite where the bottom alone is."""
    return top / bottom.clamp_min(_LEAST)
