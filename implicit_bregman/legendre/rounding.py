"""Rounding Python floats to a dtype, without a tensor (and hence without a device)."""

from __future__ import annotations

import math
import struct

import torch

#: How a dtype below float64 is written, as a float and as an integer, and the integer of its last digit. bfloat16 is
#: the upper half of a float32.
_FORMATS = {
    torch.float32: ("<f", "<i", 1),
    torch.bfloat16: ("<f", "<i", 1 << 16),
    torch.float16: ("<e", "<h", 1),
}


def round_nearest(value: float, dtype: torch.dtype) -> float:
    """The number of `dtype` nearest to `value`; infinities kept, and an overflow cut to the largest number."""
    if dtype == torch.float64 or math.isinf(value):
        return value
    limit = float(torch.finfo(dtype).max)
    real, integer, unit = _FORMATS[dtype]
    (bits,) = struct.unpack(integer, struct.pack(real, max(-limit, min(limit, value))))
    return _number((bits + unit // 2) // unit * unit, dtype)


def next_up(value: float, dtype: torch.dtype) -> float:
    """The smallest number of `dtype` above `value`, which is one itself."""
    if dtype == torch.float64 or math.isinf(value):
        return math.nextafter(value, math.inf)
    real, integer, unit = _FORMATS[dtype]
    # (adding 0 makes a positive zero of a negative one)
    (bits,) = struct.unpack(integer, struct.pack(real, value + 0.0))
    return _number(bits + unit if bits >= 0 else bits - unit, dtype)


def round_down(value: float, dtype: torch.dtype) -> float:
    """The largest number of `dtype` not above `value`."""
    rounded = round_nearest(value, dtype)
    return rounded if rounded <= value else -next_up(-rounded, dtype)


def _number(bits: int, dtype: torch.dtype) -> float:
    real, integer, _ = _FORMATS[dtype]
    return float(struct.unpack(real, struct.pack(integer, bits))[0])
