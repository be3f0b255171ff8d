"""Dense work on a batch, in parts of bounded size."""

from __future__ import annotations

from jaxtyping import Shaped
from torch import Tensor

#: Elements of a batch of dense matrices that are held at once.
_ELEMENTS = 2**24


def chunks(rows: Shaped[Tensor, "batch d"]) -> list[slice]:
    """Slices of a batch whose (d, d) matrices together stay within a bounded amount of memory."""
    batch, d = rows.shape
    return chunk_slices(batch, d * d)


def chunk_slices(batch: int, elements: int) -> list[slice]:
    """Slices of a batch of so many elements per sample that stay within the same bound; at least one."""
    size = max(1, _ELEMENTS // max(1, elements))
    return [slice(start, start + size) for start in range(0, max(batch, 1), size)]
