"""Derivatives in the bounds of `Boxes` that exist once, and not twice."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor


def once(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`value`, whose gradient in the bounds must not be differentiated again."""
    result: Tensor = _Once.apply(value)
    return result


def never(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`value`, which must not be differentiated in the bounds."""
    result: Tensor = _Never.apply(value)
    return result


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return gradient
        (value,) = ctx.saved_tensors
        return gradient + never(value - value.detach())


class _Never(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> NoReturn:
        raise RuntimeError(
            "the gradient cannot be differentiated a second time in the bounds lo and hi with regularization > 0, nor "
            "where a start z⁰ depends on them: ask for the derivatives in other tensors alone, or detach lo and hi"
        )
