"""The Bregman projection as a function of V, β, y⁰ and ε, with derivatives of every order.

Its multiplier λ is the root of K(λ) = Vᵀρ(y⁰ + Vλ) + ελ − β, so that dλ = −S⁻¹ dK with S = VᵀDV + εI, which depends on
all of them in turn; and z = ρ(y⁰ + Vλ). The systems have r unknowns: PyTorch's own solve has their derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.legendre import MirrorMap
from implicit_bregman.transforms import batched_again, map_over_samples, numbers, primals, pull, push

Record = tuple[Tensor, Tensor, Tensor, Tensor]
"""z (B, d), λ (B, r) in float64, and which samples have ε > 0 and a derivative, (B,) each."""


def follow(
    geometry: MirrorMap,
    record: Record,
    vectors: Float[Tensor, "d r"],
    target: Float[Tensor, "batch r"],
    start: Float[Tensor, "batch d"],
    softness: Float[Tensor, ""],
) -> Float[Tensor, "batch d"]:
    """z as a function of V, β, y⁰ and ε.

    Args:
        geometry: φ.
        record: the solution.
        vectors: V.
        target: β.
        start: y⁰.
        softness: ε, where it counts.
    """
    value, multiplier, soft, known = record
    of = vectors.double(), target.double(), torch.where(known[:, None], start, 0.0).double(), softness.double()
    lam = _Multiplier.apply(geometry, multiplier, soft, *of)
    z = geometry.activation(_dual(lam, of[0], of[2]))
    # (the number is the one that was found)
    z = torch.where(known[:, None], z - z.detach(), 0.0).to(value.dtype)
    followed: Tensor = value + z
    return followed


class _Multiplier(torch.autograd.Function):
    @staticmethod
    def forward(geometry: MirrorMap, multiplier: Tensor, soft: Tensor, *of: Tensor) -> Tensor:
        return multiplier.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.geometry = inputs[0]
        ctx.save_for_backward(output, *inputs[2:])
        ctx.save_for_forward(output, *inputs[2:])

    @staticmethod
    @batched_again
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        lam, soft, *of = ctx.saved_tensors
        w = _solve(ctx.geometry, lam, soft, *of, right=gradient)
        return None, None, None, *pull(lambda *t: _excess(ctx.geometry, lam, soft, *t), of, -w)

    @staticmethod
    @batched_again
    def jvp(ctx: Any, _: None, __: None, ___: None, *tangents: Tensor | None) -> Tensor:
        with primals(ctx.saved_tensors) as (lam, soft, *of):
            moved = push(lambda *t: _excess(ctx.geometry, lam, soft, *t), of, tangents)
            return _solve(ctx.geometry, lam, soft, *of, right=-moved)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        rows = (False, True, True, False, True, True, False)
        return map_over_samples(_Multiplier.apply, info.batch_size, in_dims, arguments, rows)


def _dual(lam: Tensor, vectors: Tensor, start: Tensor) -> Float[Tensor, "batch d"]:
    return start + lam @ vectors.mT


def _excess(
    geometry: MirrorMap,
    lam: Tensor,
    soft: Tensor,
    vectors: Tensor,
    target: Tensor,
    start: Tensor,
    softness: Tensor,
) -> Float[Tensor, "batch r"]:
    """K(λ)."""
    z = geometry.activation(_dual(lam, vectors, start))
    return z @ vectors + torch.where(soft[:, None], softness * lam, 0.0) - target


def _solve(
    geometry: MirrorMap,
    lam: Tensor,
    soft: Tensor,
    vectors: Tensor,
    target: Tensor,
    start: Tensor,
    softness: Tensor,
    *,
    right: Tensor,
) -> Float[Tensor, "batch r"]:
    """S⁻¹ times the right-hand side, or the shortest solution where V's columns are dependent."""
    slope = geometry.slope(_dual(lam, vectors, start))
    eye = torch.eye(vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    matrix = vectors.mT @ (slope[:, :, None] * vectors)
    matrix = matrix + torch.where(soft[:, None, None], softness * eye, 0.0)
    # At a unit diagonal saturated samples are as good as any.
    diagonal = matrix.detach().diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    scaled = scale[:, :, None] * matrix * scale[:, None, :]
    right = (scale * right)[:, :, None]
    if bool((torch.linalg.matrix_rank(numbers(vectors)) < vectors.shape[1]).any()):
        found = torch.linalg.pinv(scaled, hermitian=True) @ right
    else:
        found = torch.linalg.solve_ex(scaled, right).result
    return scale * found.squeeze(-1)
