"""The proximal map of a multiple of φ: one scalar equation per coordinate."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.legendre.mirror import MirrorMap

#: Most steps: bisection halves what Newton's method does not reduce.
_STEPS = 200
#: The equation holds to so many rounding errors of its terms.
_ROUNDING = 4


def prox_dual(
    geometry: MirrorMap,
    v: Float[Tensor, "*shape"],
    weight: float,
    start: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """y with ρ(y) + weight·y = v, elementwise; ρ(y) is the z in C that minimises weight·φ(z) + (z − v)²/2.

    Newton's method from `start`, inside a bracket: with m the `middle` of the duals, the root is between m and
    (v − ρ(m))/weight, and between 0 and φ'(v). Not differentiable.

    Args:
        geometry: φ, without a coupling.
        v: any finite numbers.
        weight: > 0.
        start: where to begin, such as the y of a nearby v; None: at the end of the bracket.
    """
    with torch.no_grad():
        eps = torch.finfo(v.dtype).eps
        anchor = torch.full_like(v, geometry.middle)
        middle = geometry.activation(anchor)
        far = ((v - middle) / weight).clamp(*geometry.dual_bounds(v.dtype))
        inside = geometry.is_interior(v)
        near = torch.where(inside, geometry.inverse_activation(torch.where(inside, v, middle)), far)
        # (φ'(v) is on the far side of the root from 0, which may be that of m)
        end = torch.where((near.abs() < far.abs()) & (near.abs() >= anchor.abs()), near, far)
        lo, hi = torch.minimum(end, anchor), torch.maximum(end, anchor)
        y = end if start is None else torch.minimum(torch.maximum(start, lo), hi)
        if geometry.pinned is not None:
            # (where ρ is constant the root is that end)
            y = torch.where(geometry.pinned, far, y)
        for _ in range(_STEPS):
            z, pull = geometry.activation(y), weight * y
            excess = (z - v) + pull
            terms = torch.maximum(torch.maximum(z.abs(), pull.abs()), v.abs())
            done = (excess.abs() <= _ROUNDING * eps * terms) | (hi - lo <= eps * y.abs())
            if bool(done.all()):
                break
            lo, hi = torch.where(excess < 0, y, lo), torch.where(excess > 0, y, hi)
            moved = y - excess / (geometry.slope(y) + weight)
            moved = torch.where((moved > lo) & (moved < hi), moved, 0.5 * (lo + hi))
            y = torch.where(done, y, moved)
        return y
