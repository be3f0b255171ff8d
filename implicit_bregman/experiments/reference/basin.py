"""Proof that an MM iterate can only converge to a given critical point.

MM with `τ λ_max(-W) ≤ σ` minimises a convex majorant in every step, so the objective on the whole segment
from one iterate to the next is at most its value at the first one: the iterates never leave the connected
component of `{F ≤ F(z_k)}` they are in. If that component lies in a ball that contains one critical point, it
is the limit.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.legendre import MirrorMap

_RADII = 24  # radii tried, each 1.5 times the one before, the first just beyond the distance to the iterate


def in_basin(
    weight: Float[Tensor, "features features"],
    offset: Float[Tensor, "batch features"],
    geometry: MirrorMap,
    regularization: float,
    limit: Float[Tensor, "batch features"],
    active: Bool[Tensor, "batch features"],
    dual: Float[Tensor, "batch features"],
) -> Bool[Tensor, " batch"]:
    """Whether MM from `dual` is certain to converge to `limit`.

    Write d = z - limit, H = -W, m for the multipliers at `limit` and κ for a lower bound of γφ'' in the ball
    of radius R round it. In the ball, F(z) - F(limit) ≥ ½ dᵀMd and ⟨F'(z), d⟩ ≥ dᵀMd with M = H + diag(κ +
    m/R). Hence M ≽ μI with μ > 0 leaves no other critical point in the ball, and ½μR² bounds F from below on
    its surface.

    Args:
        weight: Symmetric W.
        offset: c.
        geometry: φ, with φ'' increasing away from the middle of C (from +∞ if C is a half-line), as all of
            the catalogue have it.
        regularization: γ.
        limit: A point that satisfies the optimality conditions to rounding.
        active: Which of its coordinates are at a bound.
        dual: The MM iterate in dual coordinates.

    Returns:
        True where the certificate holds. False proves nothing.
    """
    point = geometry.activation(dual)
    shift = point - limit
    distance = torch.linalg.vector_norm(shift, dim=-1)
    slack = limit @ weight.T + offset
    gap = -0.5 * (shift * (shift @ weight.T)).sum(-1)
    if regularization > 0:
        limit_dual = geometry.project_dual(slack / regularization)
        slack = slack - regularization * limit_dual
        gap = gap + regularization * geometry.dual_divergence(dual, limit_dual)
    multiplier = torch.where(active, slack.abs(), torch.zeros_like(slack))
    gap = gap + (multiplier * shift.abs()).sum(-1)

    found = torch.zeros_like(distance, dtype=torch.bool)
    radius = 1.05 * distance.clamp_min(1e-8)
    for _ in range(_RADII):
        reach = radius.unsqueeze(-1)
        diagonal = multiplier / reach
        if regularization > 0:
            diagonal = diagonal + regularization * _least_curvature(geometry, limit, reach)
        bound = torch.linalg.eigvalsh(torch.diag_embed(diagonal) - weight)[..., 0]
        found = found | ((bound > 0) & (gap < 0.5 * bound * radius**2))
        radius = 1.5 * radius
    return found


def _least_curvature(geometry: MirrorMap, centre: Tensor, radius: Tensor) -> Tensor:
    """Smallest φ'' at most `radius` away from `centre`, elementwise."""
    low, high = geometry.domain
    flattest = 0.5 * (low + high) if math.isfinite(high - low) else (0.0 if low == -high else high)
    if not math.isfinite(low) and math.isfinite(high):
        flattest = low
    nearest = torch.clamp(torch.full_like(centre, flattest), centre - radius, centre + radius)
    return geometry.curvature(geometry.inverse_activation(nearest))
