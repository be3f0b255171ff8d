"""Gram matrices of shared vectors with weights per sample."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: Elements of weighted copies of the vectors that are held at once.
_ELEMENTS = 2**24


def weighted_gram(vectors: Float[Tensor, "d k"], weight: Float[Tensor, "batch d"]) -> Float[Tensor, "batch k k"]:
    """QᵀDQ for a shared Q and one diagonal D per sample, in parts of bounded size."""
    size = max(1, _ELEMENTS // max(1, vectors.numel()))
    parts = [(vectors.mT * rows[:, None, :]) @ vectors for rows in weight.split(size)] if len(weight) else []
    return torch.cat(parts) if parts else weight.new_zeros(0, vectors.shape[1], vectors.shape[1])
