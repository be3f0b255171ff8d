"""Rounding Python floats to a dtype, without a tensor (and hence without a device)."""

from __future__ import annotations

import math
import struct

import torch


def round_nearest(value: float, dtype: torch.dtype) -> float:
    """The number of `dtype` nearest to `value`; infinities kept, and an overflow cut to the largest number."""
    if dtype == torch.float64 or math.isinf(value):
        return value
    limit = float(torch.finfo(dtype).max)
    (rounded,) = struct.unpack("<f", struct.pack("<f", max(-limit, min(limit, value))))
    return float(rounded)


def next_up(value: float, dtype: torch.dtype) -> float:
    """The smallest number of `dtype` above `value`, which is one itself."""
    if dtype == torch.float64 or math.isinf(value):
        return math.nextafter(value, math.inf)
    # (adding 0 makes a positive zero of a negative one)
    (bits,) = struct.unpack("<i", struct.pack("<f", value + 0.0))
    return float(struct.unpack("<f", struct.pack("<i", bits + 1 if bits >= 0 else bits - 1))[0])


def round_down(value: float, dtype: torch.dtype) -> float:
    """The largest number of `dtype` not above `value`."""
    rounded = round_nearest(value, dtype)
    if rounded <= value:
        return rounded
    (bits,) = struct.unpack("<i", struct.pack("<f", rounded))
    return float(struct.unpack("<f", struct.pack("<i", bits - 1 if rounded > 0 else bits + 1))[0])
