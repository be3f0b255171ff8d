"""Refusing derivatives that an adjoint does not have."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.transforms import is_batched, primals


def refuse_twice(adjoint: str) -> NoReturn:
    """Refuse to be differentiated once more.

    Raises:
        RuntimeError: naming what to do instead.
    """
    raise RuntimeError(
        f"the {adjoint} adjoint cannot be differentiated twice: its gradient is no derivative of its value. Use "
        'adjoint="implicit", or Unrolled(steps=...), for second derivatives'
    )


def refuse_higher_order(adjoint: str) -> None:
    """To be called in a custom backward: refuse to be differentiated once more.

    Raises:
        RuntimeError: naming what to do instead.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"the {adjoint} adjoint cannot be differentiated twice (create_graph=True or torch.func.grad): "
            "use adjoint=Unrolled(steps=...) for second derivatives"
        )


def refuse_batched(adjoint: str, gradient: Tensor) -> None:
    """To be called in a custom backward: refuse a whole batch of cotangents at once.

    Raises:
        RuntimeError: naming what to do instead.
    """
    if is_batched(gradient):
        raise RuntimeError(
            f"the {adjoint} adjoint has no batched backward (is_grads_batched=True, vectorize=True, vmap): "
            "call torch.autograd.grad once per cotangent"
        )


class _FirstOrder(torch.autograd.Function):
    """The identity, differentiable once: its derivatives are handed on by what cannot be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, adjoint: str) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.adjoint = inputs[1]
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if not torch.is_grad_enabled():
            return gradient, None
        return _Last.apply(gradient, *ctx.saved_tensors, ctx.adjoint), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        with primals(ctx.saved_tensors) as (value,):
            last: Tensor = _Last.apply(tangent, value, ctx.adjoint)
            return last


class _Last(torch.autograd.Function):
    """A derivative that must not be differentiated, in itself or by the point that it was taken at."""

    generate_vmap_rule = True

    @staticmethod
    def forward(derivative: Tensor, at: Tensor, adjoint: str) -> Tensor:
        return derivative.view_as(derivative)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.adjoint = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        refuse_twice(ctx.adjoint)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        refuse_twice(ctx.adjoint)


def first_order(value: Float[Tensor, "*shape"], adjoint: str) -> Float[Tensor, "*shape"]:
    """`value`, whose gradient is an approximation that must not be differentiated again."""
    result: Tensor = _FirstOrder.apply(value, adjoint)
    return result
