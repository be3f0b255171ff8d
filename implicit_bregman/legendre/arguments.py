"""What a Legendre function accepts: dtypes and parameters."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

SUPPORTED_DTYPES = (torch.float32, torch.float64)


def check_dtype(x: Tensor, argument: str) -> None:
    """Raises TypeError unless `x` is a float32 or float64 tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{argument}: got {type(x).__name__}; give a float32 or float64 tensor")
    if x.dtype not in SUPPORTED_DTYPES:
        raise TypeError(f"{argument}: got dtype {x.dtype}; convert to torch.float32 or torch.float64")


def positive_float(value: float, argument: str) -> float:
    """`value` as a float; raises ValueError unless it is a finite positive number."""
    number = real_float(value, argument)
    if not number > 0:
        raise ValueError(f"{argument} must be positive, got {value!r}")
    return number


def real_float(value: float, argument: str) -> float:
    """`value` as a float; raises TypeError for a non-number and ValueError for inf or NaN."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{argument} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{argument} must be finite, got {value!r}")
    return float(value)
