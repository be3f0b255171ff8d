"""The inverse of a linear map that depends on tensors: found without autograd, and differentiable to every order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.transforms import batched_again, map_over_samples, on_numbers, primals, pull, push, transformed

if TYPE_CHECKING:
    from implicit_bregman.operators.base import LinearOperator


class Invertible(ABC):
    """M(t): a linear map of rows v, (B, d), that depends on tensors t.

    With v = M⁻¹ g its derivatives are dv = M⁻¹(dg − dM v), and backward w = M⁻ᵀ v̄ for g and −⟨w, M(t) v⟩ for t. They
    are made of the same two methods again.

    Attributes:
        rows: which of the tensors have a row for each sample; None: the samples must stay as they are.
    """

    rows: Sequence[bool] | None

    @abstractmethod
    def product(self, v: Float[Tensor, "batch d"], *tensors: Tensor) -> Float[Tensor, "batch d"]:
        """M v, differentiable in v and the tensors, also by torch.func."""

    @abstractmethod
    def solve(self, right: Float[Tensor, "batch d"], *tensors: Tensor) -> Float[Tensor, "batch d"]:
        """M⁻¹ g, without gradient."""

    @abstractmethod
    def transposed(self) -> Invertible:
        """Mᵀ, of the same tensors."""


def inverse(system: Invertible, right: Float[Tensor, "batch d"], *tensors: Tensor) -> Float[Tensor, "batch d"]:
    """M⁻¹ g, (B, d): differentiable in g and in M's tensors to every order and in every mode."""
    if not transformed() and not (torch.is_grad_enabled() and any(t.requires_grad for t in (right, *tensors))):
        return system.solve(right, *tensors)
    solution: Tensor = _Inverse.apply(system, right, *tensors)
    return solution


class _Inverse(torch.autograd.Function):
    @staticmethod
    def forward(system: Invertible, right: Tensor, *tensors: Tensor) -> Tensor:
        with on_numbers():
            return system.solve(*(tensor.detach() for tensor in (right, *tensors))).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.system = inputs[0]
        ctx.save_for_backward(output, *inputs[2:])
        ctx.save_for_forward(output, *inputs[2:])

    @staticmethod
    @batched_again
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        v, *tensors = ctx.saved_tensors
        system: Invertible = ctx.system
        w = inverse(system.transposed(), gradient, *tensors)
        if not any(ctx.needs_input_grad[2:]):
            return None, w, *(None for _ in tensors)
        return None, w, *pull(lambda *t: system.product(v, *t), tensors, -w)

    @staticmethod
    @batched_again
    def jvp(ctx: Any, _: None, right: Tensor | None, *tangents: Tensor | None) -> Tensor:
        system: Invertible = ctx.system
        with primals(ctx.saved_tensors) as (v, *tensors):
            moved = torch.zeros_like(v) if right is None else right
            if any(tangent is not None for tangent in tangents):
                moved = moved - push(lambda *t: system.product(v, *t), tensors, tangents)
            return inverse(system, moved, *tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], system: Invertible, *tensors: Tensor) -> tuple[Any, Any]:
        rows = (False,) * len(in_dims) if system.rows is None else (False, True, *system.rows)
        return map_over_samples(_Inverse.apply, info.batch_size, in_dims, (system, *tensors), rows)


@dataclass(frozen=True)
class Shifted(Invertible):
    """shift·I + H, or with Hᵀ, of the tensors that H is made of."""

    rebuild: Callable[..., LinearOperator]
    shift: float
    adjoint: bool
    rows: tuple[bool, ...] | None

    def product(self, v: Tensor, *tensors: Tensor) -> Tensor:
        return torch.add(self.rebuild(*tensors).product(v, self.adjoint), v, alpha=self.shift)

    def solve(self, right: Tensor, *tensors: Tensor) -> Tensor:
        return self.rebuild(*tensors).inverted(self.shift, self.adjoint)(right)

    def transposed(self) -> Shifted:
        return replace(self, adjoint=not self.adjoint)
