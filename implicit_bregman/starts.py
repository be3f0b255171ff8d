"""Where a solve starts: y⁰ from a point of C, from a dual, or from an earlier solution."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre.coupling import Coupling

#: A start for each sample, and which samples have a usable one; None: all.
Start = tuple[Float[Tensor, "N d"], Bool[Tensor, " N"] | None]


def from_dual(phi: MirrorMap, dual: Float[Tensor, "N d"], dtype: torch.dtype, name: str) -> Start:
    """y⁰ in another precision; for a φ that is not Legendre, projected.

    Raises:
        ValueError: for duals, called `name`, for which there is no ρ(y).
    """
    if not phi.has_every_dual:
        _refuse_beyond(phi, dual.detach(), name)
    dual = dual.to(dtype)
    usable = torch.isfinite(dual).all(-1)
    if not phi.has_every_dual:  # (which another precision may round to its end)
        usable = usable & phi.in_dual_domain(dual).all(-1)
    return phi.project_dual(torch.where(usable[:, None], dual, phi.middle)), usable


def from_solution(phi: MirrorMap, dual: Float[Tensor, "N d"], dtype: torch.dtype) -> Start:
    """A solution's dual, without gradient."""
    # One far beyond saturation in float64 must not become infinite in float32.
    return dual.detach().double().clamp_(*phi.dual_bounds(dtype)).to(dtype), None


def from_point(phi: MirrorMap, rows: Float[Tensor, "N d"], dtype: torch.dtype) -> Start:
    """ρ⁻¹(z⁰), computed in float64: next to a bound, and where it is tiny, z⁰ keeps its digits.

    A start is kept as it is or refused, never moved: see `find_critical_point`.

    Raises:
        ValueError: for points outside C.
    """
    eps, z = torch.finfo(rows.dtype).eps, rows.double()
    _refuse_outside(phi, z.detach(), eps)
    if phi.coupling is not None:
        _refuse_other_sums(phi, phi.coupling, z.detach(), eps)
    usable = (torch.isfinite(z) & phi.is_interior(z)).all(-1)
    z = torch.where(usable[:, None], z, phi.activation(torch.full_like(z, phi.middle)))
    dual = _InverseActivation.apply(z, phi, torch.finfo(rows.dtype).max)
    if phi.requires_grad:
        dual = dual + phi.followed_inverse(dual.detach())
    lowest, highest = phi.dual_bounds(dtype)
    cut = (dual.detach() < lowest) | (dual.detach() > highest)
    if bool(cut.any()):
        dual = dual.clamp(lowest, highest)
        usable = usable & ~(cut & _is_moved(phi, dual.detach(), z.detach(), dtype)).any(-1)
    return dual.to(dtype), usable


def _refuse_outside(phi: MirrorMap, z: Tensor, eps: float) -> None:
    """Refuse points beyond a bound. One on it, or beyond it by rounding, is its sample's fault alone."""
    lo, hi = phi.domain
    outside = torch.isfinite(z) & ((z < lo - eps * abs(lo)) | (z > hi + eps * abs(hi)))
    if bool(outside.any()):
        raise ValueError(
            f"initial must lie in the interior of the domain {phi.domain} of {phi.name}, got entries such as "
            f"{float(z[outside][0]):g}: map it there first, for example with geometry.activation, or give the start "
            "in the dual (initial_dual=)"
        )


def _refuse_other_sums(phi: MirrorMap, coupling: Coupling, z: Tensor, eps: float) -> None:
    """Refuse points whose blocks have another sum than C asks for, but for rounding."""
    blocks = coupling.split(z)
    sums = blocks.sum(-1)
    off = (sums - coupling.total).abs() > 4 * eps * blocks.shape[-1] * coupling.total
    off &= torch.isfinite(sums)
    if bool(off.any()):
        raise ValueError(
            f"initial must have the sum {coupling.total:g} in each block, as {phi.name} has it; got the sum "
            f"{float(sums[off][0]):g}: divide by it first, or give the start in the dual (initial_dual=)"
        )


def _refuse_beyond(phi: MirrorMap, dual: Tensor, name: str) -> None:
    """Refuse duals without a ρ(y). What is not finite is its sample's fault alone."""
    beyond = torch.isfinite(dual) & ~phi.in_dual_domain(dual)
    if bool(beyond.any()):
        raise ValueError(
            f"{name} must lie between the ends {phi.dual_domain} of the duals of {phi.name}, got entries such as "
            f"{float(dual[beyond][0]):g}: take ρ⁻¹ of a point inside C, as geometry.inverse_activation does, or give "
            "the point itself (initial=)"
        )


def _is_moved(phi: MirrorMap, dual: Tensor, z: Tensor, dtype: torch.dtype) -> Bool[Tensor, "batch d"]:
    """Whether the largest finite dual stands for another point: z⁰ and ρ of it differ by a normal number."""
    return (phi.activation(dual) - z).abs() > torch.finfo(dtype).smallest_normal


class _InverseActivation(torch.autograd.Function):
    """ρ⁻¹ whose backward divides by ρ'(y): φ'' overflows next to a bound where the quotient does not."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, phi: MirrorMap, largest: float) -> Tensor:
        ctx.phi, ctx.largest = phi, largest
        dual = phi.inverse_activation(z)
        ctx.save_for_backward(dual)
        return dual

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (dual,) = ctx.saved_tensors
        slope = ctx.phi.slope(dual)
        # (cut to the range of z⁰'s precision)
        quotient = (gradient / torch.where(slope > 0, slope, 1.0)).clamp(-ctx.largest, ctx.largest)
        return torch.where((slope > 0) & torch.isfinite(dual), quotient, 0.0), None, None
