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
    if len(weight) <= size:
        return (vectors.mT * weight[:, None]) @ vectors
    return torch.cat([(vectors.mT * rows[:, None]) @ vectors for rows in weight.split(size)])
