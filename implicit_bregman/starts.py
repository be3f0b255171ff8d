"""Where a solve starts: y⁰ from a point of C, from a dual, or from an earlier solution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.checks import check_initial
from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.solution import Solution

#: A start for each sample, and which samples have a usable one; None: all.
Start = tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"] | None]


def start_dual(
    phi: LegendreFunction,
    initial: Tensor | Solution | None,
    initial_dual: Tensor | None,
    flat: Float[Tensor, "batch n"],
    shape: Sequence[int],
) -> Start:
    """y⁰, (B, d), in the precision of `flat`, and which samples have a usable start, (B,); None: all.

    A start is kept as it is or refused, never moved: see `find_critical_point`.

    Args:
        phi: φ.
        initial: z⁰, or a `Solution`.
        initial_dual: y⁰.
        flat: the inputs.
        shape: what the start has to have.

    Raises:
        TypeError: unless it is a floating-point tensor (or a `Solution`).
        ValueError: if two starts are given, for a shape or device that does not fit, and for points outside C.
    """
    if initial is not None and initial_dual is not None:
        raise ValueError("initial and initial_dual both give the start: give one of them")
    size = (len(flat), shape[-1])
    if initial_dual is not None:
        check_initial(initial_dual, shape, flat, "initial_dual")
        return _from_dual(phi, initial_dual.reshape(size).to(flat.dtype))
    if initial is None:
        return flat.new_zeros(size), None
    if isinstance(initial, Solution):
        check_initial(initial.dual, shape, flat)
        # A dual far beyond saturation in float64 must not become infinite in float32.
        largest = torch.finfo(flat.dtype).max
        return initial.dual.detach().reshape(size).double().clamp_(-largest, largest).to(flat.dtype), None
    check_initial(initial, shape, flat)
    return _from_point(phi, initial.reshape(size), flat.dtype)


def _from_dual(phi: LegendreFunction, dual: Tensor) -> Start:
    usable = torch.isfinite(dual).all(-1)
    return phi.project_dual(torch.where(usable[:, None], dual, 0.0)), usable


def _from_point(phi: LegendreFunction, rows: Tensor, dtype: torch.dtype) -> Start:
    """ρ⁻¹(z⁰), computed in float64: next to a bound, and where it is tiny, z⁰ keeps its digits."""
    eps, z = torch.finfo(rows.dtype).eps, rows.double()
    _refuse_outside(phi, z.detach(), eps)
    usable = (torch.isfinite(z) & phi.is_interior(z)).all(-1)
    z = torch.where(usable[:, None], z, phi.activation(torch.zeros_like(z)))
    dual = _InverseActivation.apply(z, phi, torch.finfo(rows.dtype).max)
    largest = torch.finfo(dtype).max
    cut = dual.detach().abs() > largest
    if bool(cut.any()):
        dual = dual.clamp(-largest, largest)
        usable = usable & ~(cut & _is_moved(phi, dual.detach(), z.detach(), dtype)).any(-1)
    return dual.to(dtype), usable


def _refuse_outside(phi: LegendreFunction, z: Tensor, eps: float) -> None:
    """Refuse points beyond a bound. One on it, or beyond it by rounding, is its sample's fault alone."""
    lo, hi = phi.domain
    outside = torch.isfinite(z) & ((z < lo - eps * abs(lo)) | (z > hi + eps * abs(hi)))
    if bool(outside.any()):
        raise ValueError(
            f"initial must lie in the interior of the domain {phi.domain} of {phi.name}, got entries such as "
            f"{float(z[outside][0]):g}: map it there first, for example with geometry.activation, or give the start "
            "in the dual (initial_dual=)"
        )


def _is_moved(phi: LegendreFunction, dual: Tensor, z: Tensor, dtype: torch.dtype) -> Bool[Tensor, "batch d"]:
    """Whether the largest finite dual stands for another point: z⁰ and ρ of it differ by a normal number."""
    return (phi.activation(dual) - z).abs() > torch.finfo(dtype).smallest_normal


class _InverseActivation(torch.autograd.Function):
    """ρ⁻¹ whose backward divides by ρ'(y): φ'' overflows next to a bound where the quotient does not."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, phi: LegendreFunction, largest: float) -> Tensor:
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
