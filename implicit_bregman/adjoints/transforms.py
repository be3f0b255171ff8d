"""Refusing derivatives that an adjoint does not have."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


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
    if torch._C._functorch.is_batchedtensor(gradient) or torch._C._functorch.is_legacy_batchedtensor(gradient):
        raise RuntimeError(
            f"the {adjoint} adjoint has no batched backward (is_grads_batched=True, vectorize=True, vmap): "
            "call torch.autograd.grad once per cotangent"
        )


class _FirstOrder(torch.autograd.Function):
    """The identity, differentiable once."""

    @staticmethod
    def forward(value: Tensor, adjoint: str) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.adjoint = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        refuse_higher_order(ctx.adjoint)
        return gradient, None


def first_order(value: Float[Tensor, "batch d"], adjoint: str) -> Float[Tensor, "batch d"]:
    """`value`, whose gradient is an approximation that must not be differentiated again."""
    result: Tensor = _FirstOrder.apply(value, adjoint)
    return result
