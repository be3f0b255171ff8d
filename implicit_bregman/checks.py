"""Refusing what cannot be solved, before anything is computed."""

from __future__ import annotations

import math

import torch

from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.legendre import MirrorMap


def check_energy(energy: object) -> Energy:
    """The energy, if it is one.

    Raises:
        TypeError: if it is something else.
    """
    if not isinstance(energy, Energy):
        raise TypeError(f"energy must be an Energy, got {type(energy).__name__}: subclass implicit_bregman.Energy")
    return energy


def check_existence(energy: BoundEnergy, geometry: MirrorMap, regularization: float) -> None:
    """Refuse a quadratic objective that is provably unbounded below on C.

    Raises:
        ValueError: naming the direction of descent and the remedies.
    """
    quadratic = energy.factored
    if quadratic is None or not quadratic.symmetric or geometry.is_bounded:
        return
    known = quadratic.operator.factor
    if known.is_definite():
        return
    hessian, lowest = known.matrix, known.spectrum.lowest
    # Far out, γφ adds this much curvature.
    growth = regularization * geometry.curvature_at_infinity if regularization else 0.0
    if math.isinf(growth):
        return
    ray = "along a coordinate axis"
    open_lo, open_hi = geometry.open_ends
    if geometry.is_everything:
        least, ray = lowest, "along an eigenvector of W"
    elif isinstance(open_lo, torch.Tensor):
        least = hessian.diagonal()[open_lo | open_hi].min()
    else:
        least = torch.minimum(hessian.diagonal().min(), hessian.mean() * len(hessian))
    rounding = 64 * torch.finfo(hessian.dtype).eps * float(hessian.abs().max()) * len(hessian)
    if float(least) + growth < -rounding:
        raise ValueError(
            f"the objective is unbounded below on the domain {geometry.domain} of {geometry.name} ({ray} its "
            f"curvature is {float(least) + growth:.3g}): use weight='convex', a larger regularization, or a "
            "geometry with a bounded domain"
        )
