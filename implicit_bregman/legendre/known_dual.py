"""The inverse mirror map at a point whose dual is known."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.legendre.mirror import MirrorMap
from implicit_bregman.transforms import primals


def dual_at(geometry: MirrorMap, z: Float[Tensor, "*shape"], dual: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """y, as it is known, as a function of z: with the derivative of ρ⁻¹, 1/ρ'(y), and 0 where that overflows."""
    attached: Tensor = _KnownDual.apply(z, dual, geometry)
    return attached


def moves(slope: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Whether 1/ρ' and its derivative are within the range of the precision: elsewhere a coordinate does not move."""
    return slope > torch.finfo(slope.dtype).eps ** 2


class _KnownDual(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, dual: Tensor, geometry: MirrorMap) -> Tensor:
        return dual.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.geometry = inputs[2]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _over_slope(ctx.geometry, gradient, *ctx.saved_tensors), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> Tensor:
        with primals(ctx.saved_tensors) as (y,):
            return torch.zeros_like(y) if tangent is None else _over_slope(ctx.geometry, tangent, y)


def _over_slope(geometry: MirrorMap, v: Tensor, y: Tensor) -> Tensor:
    slope = geometry.slope(y)
    inside = moves(slope)
    return torch.where(inside, v / torch.where(inside, slope, 1.0), 0.0)
