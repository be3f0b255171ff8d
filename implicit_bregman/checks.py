"""Refusing what cannot be solved, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from implicit_bregman.energy.base import BoundEnergy, Energy
from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.tensors import check_dense, check_numbers


def check_input(energy: Energy, x: Tensor) -> int:
    """d, the width of z, for an input that fits the energy.

    Raises:
        TypeError: unless x is a floating-point tensor.
        ValueError: if its last dimension, dtype, layout or device does not fit the energy.
    """
    check_dense("x", x)
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {x.dtype}: call x.float()")
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension, the features; got a 0-d tensor")
    if energy.in_features not in (None, x.shape[-1]):
        raise ValueError(f"x must have {energy.in_features} features in its last dimension, got shape {tuple(x.shape)}")
    half = x.dtype.itemsize == 2
    for name, tensor in [*energy.named_parameters(), *energy.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if tensor.device != x.device:
            raise ValueError(f"x is on {x.device}, but {name} of the energy is on {tensor.device}: move one of them")
        if tensor.dtype.itemsize == 2 and not energy.lifts_half:
            raise ValueError(f"{name} of the energy is {tensor.dtype}: only a QuadraticEnergy can be half precision")
        if tensor.dtype != x.dtype and not (half and torch.is_autocast_enabled(x.device.type)):
            raise ValueError(f"x is {x.dtype}, but {name} of the energy is {tensor.dtype}: convert one of them")
    check_numbers("x", x)
    return x.shape[-1] if energy.features is None else energy.features


def check_initial(initial: Tensor, shape: Sequence[int], like: Tensor, name: str = "initial") -> None:
    """A start that fits the batch, called `name` in messages.

    Raises:
        TypeError: unless it is a floating-point tensor.
        ValueError: if its shape, layout or device does not fit.
    """
    if not isinstance(initial, Tensor) or not initial.is_floating_point():
        kind = initial.dtype if isinstance(initial, Tensor) else type(initial).__name__
        kinds = "a floating-point tensor or a Solution" if name == "initial" else "a floating-point tensor"
        raise TypeError(f"{name} must be {kinds}, got {kind}")
    check_dense(name, initial)
    if tuple(initial.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(initial.shape)}")
    if initial.device != like.device:
        raise ValueError(f"{name} is on {initial.device}, but x is on {like.device}: move one of them")


def check_existence(energy: BoundEnergy, geometry: LegendreFunction, regularization: float) -> None:
    """Refuse a quadratic objective that is provably unbounded below on C.

    Raises:
        ValueError: naming the direction of descent and the remedies.
    """
    lo, hi = geometry.domain
    shared = energy.shared
    if shared is None or not energy.symmetric or (math.isfinite(lo) and math.isfinite(hi)) or shared.is_definite():
        return
    hessian, lowest = shared.matrix, shared.spectrum.lowest
    # Far out, γφ adds this much curvature.
    growth = regularization * geometry.curvature_at_infinity if regularization else 0.0
    if math.isinf(growth):
        return
    ray = "along a coordinate axis"
    if math.isinf(lo) and math.isinf(hi):
        least, ray = lowest, "along an eigenvector of W"
    else:
        least = torch.minimum(hessian.diagonal().min(), hessian.mean() * len(hessian))
    rounding = 64 * torch.finfo(hessian.dtype).eps * float(hessian.abs().max()) * len(hessian)
    if float(least) + growth < -rounding:
        raise ValueError(
            f"the objective is unbounded below on the domain {geometry.domain} of {geometry.name} ({ray} its "
            f"curvature is {float(least) + growth:.3g}): use weight='convex', a larger regularization, or a "
            "geometry with a bounded domain"
        )
