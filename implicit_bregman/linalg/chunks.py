"""Dense work on a batch, in parts of bounded size."""

from __future__ import annotations

from jaxtyping import Shaped
from torch import Tensor

#: Elements of a batch of dense matrices that are held at once.
_ELEMENTS = 2**24


def chunks(rows: Shaped[Tensor, "batch d"]) -> list[slice]:
    """Slices of a batch whose (d, d) matrices together stay within a bounded amount of memory."""
    batch, d = rows.shape
    size = max(1, _ELEMENTS // (d * d))
    return [slice(start, start + size) for start in range(0, batch, size)]
