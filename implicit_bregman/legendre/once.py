"""Derivatives that exist once, and not twice."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

#: Of the bounds of `Boxes` and the order of `Simplex`.
IN_BOUNDS = (
    "in the bounds lo and hi, or the order, with regularization > 0, nor where a start z⁰ depends on them: ask for the "
    "derivatives in other tensors alone, or detach these"
)


def once(value: Float[Tensor, "*shape"], where: str = IN_BOUNDS) -> Float[Tensor, "*shape"]:
    """`value`, whose gradient must not be differentiated again.

    Args:
        value: what is passed on.
        where: in what it cannot be, and what to do instead.
    """
    result: Tensor = _Once.apply(value, where)
    return result


def never(value: Float[Tensor, "*shape"], where: str = IN_BOUNDS) -> Float[Tensor, "*shape"]:
    """`value`, which must not be differentiated."""
    result: Tensor = _Never.apply(value, where)
    return result


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, where: str) -> Tensor:
        ctx.save_for_backward(value)
        ctx.where = where
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if not torch.is_grad_enabled():
            return gradient, None
        (value,) = ctx.saved_tensors
        return gradient + never(value - value.detach(), ctx.where), None


class _Never(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, where: str) -> Tensor:
        ctx.where = where
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> NoReturn:
        raise RuntimeError(f"the gradient cannot be differentiated a second time {ctx.where}")
