"""Blocks of a shared matrix on sets of coordinates, one set per sample, as one padded batch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def members(
    sets: Bool[Tensor, "batch d"], size: int | None = None
) -> tuple[Int[Tensor, "batch m"], Bool[Tensor, "batch m"]]:
    """The members of each set, padded to the largest, and which of these are not padding.

    Args:
        sets: (B, d).
        size: m, the number of members of the largest set; None: it is counted.
    """
    if size is None:
        size = int(sets.sum(-1).max()) if len(sets) else 0
    ranked, index = sets.to(torch.float32).topk(size, dim=-1)
    return index, ranked > 0


def padded_blocks(
    matrix: Float[Tensor, "d d"], index: Int[Tensor, "rows m"], valid: Bool[Tensor, "rows m"] | None
) -> Float[Tensor, "rows m m"]:
    """The blocks of a matrix on the members of the sets, the identity on padding; `valid` None: there is none."""
    rows, size = index.shape
    # (one flat index is gathered two to three times as fast as a pair)
    flat = (index * matrix.shape[1])[:, :, None] + index[:, None, :]
    block = matrix.reshape(-1).index_select(0, flat.reshape(-1)).view(rows, size, size)
    if valid is None:
        return block
    identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    return torch.where(valid[:, :, None] & valid[:, None, :], block, identity)
