"""The Bregman projection as a function of V, β, y⁰ and ε, with derivatives of every order.

Its multiplier λ is the root of K(λ) = Vᵀρ(y⁰ + Vλ) + ελ − β, so that dλ = −S⁻¹ dK with S = VᵀDV + εI, which depends on
all of them in turn; and z = ρ(y⁰ + Vλ). The systems have r unknowns, and V says how they are solved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.legendre import MirrorMap
from implicit_bregman.linalg.norms import norm
from implicit_bregman.operators.linear_map import LinearMap, RebuildMap
from implicit_bregman.transforms import batched_again, map_over_samples, primals, pull, push

Record = tuple[Tensor, Tensor, Tensor, Tensor]
"""z (B, d), λ (B, r) in float64, and which samples have ε > 0 and a derivative, (B,) each."""

#: Steps of iterative refinement at most, and the relative residual that needs none.
_REFINEMENTS, _EXACT = 4, 1e-14


def recorded(value: Tensor, multiplier: Tensor, soft: Tensor, usable: Tensor | None) -> Record:
    """The record of a solution. `usable` are the samples that may have a derivative; None: all."""
    known = torch.isfinite(multiplier.to(value.dtype)).all(-1)
    known = known if usable is None else known & usable
    return value, torch.where(known[:, None], multiplier, 0.0), soft, known


def follow(
    geometry: MirrorMap,
    rebuild: RebuildMap,
    record: Record,
    target: Float[Tensor, "batch r"],
    start: Float[Tensor, "batch d"],
    softness: Float[Tensor, ""],
    *tensors: Tensor,
) -> Float[Tensor, "batch d"]:
    """z as a function of β, y⁰, ε and V's tensors.

    Args:
        geometry: φ.
        rebuild: V of its tensors.
        record: the solution.
        target: β.
        start: y⁰.
        softness: ε, where it counts.
        tensors: those of V.
    """
    value, multiplier, soft, known = record
    tensors = tuple(t.double() if t.is_floating_point() else t for t in tensors)
    start = torch.where(known[:, None], start, 0.0).double()
    of = target.double(), start, softness.double(), *tensors
    lam = _Multiplier.apply(geometry, rebuild, multiplier, soft, *of)
    z = geometry.activation(start + rebuild(*tensors).product(lam))
    # (the number is the one that was found)
    z = torch.where(known[:, None], z - z.detach(), 0.0).to(value.dtype)
    followed: Tensor = value + z
    return followed


class _Multiplier(torch.autograd.Function):
    """λ, the root of K(λ) = Vᵀρ(y⁰ + Vλ) + ελ − β."""

    @staticmethod
    def forward(geometry: MirrorMap, rebuild: RebuildMap, multiplier: Tensor, soft: Tensor, *of: Tensor) -> Tensor:
        return multiplier.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.geometry, ctx.rebuild = inputs[:2]
        ctx.save_for_backward(output, *inputs[3:])
        ctx.save_for_forward(output, *inputs[3:])

    @staticmethod
    @batched_again
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        lam, soft, *of = ctx.saved_tensors
        w = _root_move(ctx, lam, soft, *of, right=gradient)
        return None, None, None, None, *pull(lambda *t: _excess(ctx, lam, soft, *t), of, -w)

    @staticmethod
    @batched_again
    def jvp(ctx: Any, _: None, __: None, ___: None, ____: None, *tangents: Tensor | None) -> Tensor:
        with primals(ctx.saved_tensors) as (lam, soft, *of):
            moved = push(lambda *t: _excess(ctx, lam, soft, *t), of, tangents)
            return _root_move(ctx, lam, soft, *of, right=-moved)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        rows = (False, False, True, True, True, True, False, *(False for _ in arguments[7:]))
        return map_over_samples(_Multiplier.apply, info.batch_size, in_dims, arguments, rows)


def _excess(
    ctx: Any, lam: Tensor, soft: Tensor, target: Tensor, start: Tensor, softness: Tensor, *tensors: Tensor
) -> Float[Tensor, "batch r"]:
    """K(λ)."""
    equations = ctx.rebuild(*tensors)
    z = ctx.geometry.activation(start + equations.product(lam))
    return equations.product(z, adjoint=True) + torch.where(soft[:, None], softness * lam, 0.0) - target


def _root_move(
    ctx: Any,
    lam: Tensor,
    soft: Tensor,
    target: Tensor,
    start: Tensor,
    softness: Tensor,
    *tensors: Tensor,
    right: Tensor,
) -> Float[Tensor, "batch r"]:
    """S⁻¹ times the right-hand side."""
    slope = ctx.geometry.slope(start + ctx.rebuild(*tensors).product(lam))
    shift = torch.where(soft, softness, 0.0)
    return _System.apply(ctx.rebuild, slope, shift, right, *tensors)


class _System(torch.autograd.Function):
    """x with (VᵀDV + shift) x = b as a function of D, the shift, b and V's tensors."""

    @staticmethod
    def forward(rebuild: RebuildMap, weights: Tensor, shift: Tensor, right: Tensor, *tensors: Tensor) -> Tensor:
        with torch.no_grad():
            equations = rebuild(*tensors).detach()
            solve = equations.inverted_gram(weights, shift[:, None])
            x = solved(equations, weights, shift, solve, right)[0]
            return torch.where((shift > 0)[:, None], x, equations.shortest(x))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.rebuild = inputs[0]
        ctx.save_for_backward(output, *inputs[1:])
        ctx.save_for_forward(output, *inputs[1:])

    @staticmethod
    @batched_again
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *of = ctx.saved_tensors
        w = _System.apply(ctx.rebuild, of[0], of[1], gradient, *of[3:])
        return None, *pull(lambda *t: _left_over(ctx.rebuild, x, *t), of, w)

    @staticmethod
    @batched_again
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:
        with primals(ctx.saved_tensors) as (x, *of):
            moved = push(lambda *t: _left_over(ctx.rebuild, x, *t), of, tangents)
            found: Tensor = _System.apply(ctx.rebuild, of[0], of[1], moved, *of[3:])
            return found

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        rows = (False, True, True, True, *(False for _ in arguments[4:]))
        return map_over_samples(_System.apply, info.batch_size, in_dims, arguments, rows)


def _left_over(
    rebuild: RebuildMap, x: Tensor, weights: Tensor, shift: Tensor, right: Tensor, *tensors: Tensor
) -> Tensor:
    equations = rebuild(*tensors)
    return right - equations.product(weights * equations.product(x), adjoint=True) - shift[:, None] * x


def solved(
    equations: LinearMap,
    weights: Tensor,
    shift: Tensor,
    solve: Callable[[Tensor], Tensor],
    right: Tensor,
) -> tuple[Float[Tensor, "batch r"], Float[Tensor, " batch"]]:
    """x with (VᵀDV + shift) x = b, refined, and its relative residual, (B,)."""
    size = norm(right)
    unit = torch.where(size > 0, size, 1.0)
    x = solve(right)
    for _ in range(_REFINEMENTS):
        left = right - equations.product(weights * equations.product(x), adjoint=True) - shift[:, None] * x
        residual = norm(left) / unit
        if bool(((residual <= _EXACT) | residual.isnan()).all()):
            break
        better = x + solve(left)
        x = torch.where(torch.isfinite(better), better, x)
    return x, torch.where(size > 0, residual, 0.0)
