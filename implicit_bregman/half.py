"""Results in half precision: rounded to a number inside C."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.legendre import MirrorMap
from implicit_bregman.status import Status


def round_into(
    geometry: MirrorMap,
    value: Float[Tensor, "batch d"],
    dtype: torch.dtype,
    status: Int[Tensor, " batch"],
) -> tuple[Float[Tensor, "batch d"], Int[Tensor, " batch"]]:
    """z in half precision, never outside C, and the statuses: OVERFLOW where an entry is beyond its range.

    Such an entry is infinite, as everywhere in half precision, so that a loss scaler skips the step.

    Args:
        geometry: φ, whose C is kept to.
        value: z.
        dtype: float16 or bfloat16.
        status: `Status` values.

    Raises:
        ValueError: if no number of `dtype` lies in C, or the coordinates have bounds of their own.
    """
    low, high = geometry.rounded_domain(dtype)
    if low > high:
        raise ValueError(
            f"the domain {geometry.domain} of {geometry.name} holds no number of {dtype}: compute in float32"
        )
    rounded = _RoundInto.apply(value, dtype, low, high)
    beyond = (torch.isinf(rounded) & torch.isfinite(value)).any(-1) & (status <= int(Status.TRUNCATED))
    return rounded, torch.where(beyond, int(Status.OVERFLOW), status)


class _RoundInto(torch.autograd.Function):
    """Rounding to the nearest number between the ends; its derivative counts as 1, also at an end."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, dtype: torch.dtype, low: float, high: float) -> Tensor:
        ctx.dtype = value.dtype
        return value.to(dtype).clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient.to(ctx.dtype), None, None, None
