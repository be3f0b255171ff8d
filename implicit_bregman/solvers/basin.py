"""Proof that MM, from an iterate, can only converge to a given critical point.

Where F has several critical points, h is MM's own limit. A faster way to it is open as soon as that limit is certain.
MM with τ λ_max(∇²f) ≤ σ minimises a convex majorant in every step, so F is nowhere on the segment from one iterate to
the next above its value at the first: the iterates never leave the connected component of {F ≤ F(z_k)} they are in.
If that component lies in a ball that contains one critical point, it is the limit.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.legendre import MirrorMap
from implicit_bregman.objective import Objective, Point
from implicit_bregman.solvers.exact.result import ExactResult

#: What stands for the curvature of a coordinate that does not move.
_STIFF = 1e150
#: Radii that are tried, as multiples of the distance between iterate and limit.
_RADII = (1.05, 1.6, 2.5, 4.0, 8.0, 20.0, 100.0)


def can_certify(objective: Objective) -> bool:
    """Whether the certificate below exists: it needs an objective, a Hessian that factorizes and τ that majorizes."""
    if objective.geometry.coupling is not None:
        return False
    return objective.energy.symmetric and objective.energy.factored is not None and not objective.backtracks


def certified_radius(objective: Objective, point: Point, limit: ExactResult) -> Float[Tensor, " batch"]:
    """The radius of a ball round `limit` that holds MM for ever and no other critical point, (B,); 0 if unproven.

    Write d = z − limit, H = ∇²f, m for the multipliers at the limit and κ for a lower bound of γφ'' in the ball of
    radius R round it. In the ball F(z) − F(limit) ≥ ½ dᵀMd and ⟨F'(z), d⟩ ≥ dᵀMd with M = H + diag(κ + m/R). Hence
    M ≻ μI with μ ≥ 0 leaves no other critical point in the ball, and ½μR² bounds F − F(limit) from below on its
    surface: an iterate inside with a smaller F stays inside.

    Args:
        objective: F.
        point: the iterates.
        limit: critical points that passed their test; rows that did not are refused.
    """
    geometry, gamma = objective.geometry, objective.regularization
    energy = objective.energy.factored
    assert energy is not None  # can_certify
    operator = energy.operator
    dual = point.dual.double()
    shift = geometry.activation(dual) - limit.unrounded
    distance = torch.linalg.vector_norm(shift, dim=-1)
    multiplier = limit.gradient + gamma * limit.unrounded_dual
    multiplier = torch.where(limit.free, 0.0, multiplier.abs())
    excess = 0.5 * (shift * operator.product(shift)).sum(-1) + (multiplier * shift.abs()).sum(-1)
    if gamma:
        excess = excess + gamma * geometry.dual_divergence(dual, limit.unrounded_dual)

    radius = torch.zeros_like(distance)
    open_ = limit.accepted & torch.isfinite(excess)
    for factor in _RADII:
        rows = (open_ & (radius == 0)).nonzero().squeeze(-1)
        if len(rows) == 0:
            break
        reach = factor * distance[rows].clamp_min(1e-8)
        diagonal = multiplier[rows] / reach[:, None]
        if gamma:
            diagonal = diagonal + gamma * _least_curvature(geometry, limit.unrounded[rows], reach[:, None])
        if geometry.pinned is not None:
            diagonal = torch.where(geometry.pinned, _STIFF, diagonal)
        # A margin keeps rounding from proving anything.
        mu = (2 * excess[rows] / reach.square()).clamp_min(0) * 1.01 + 1e-12
        held = operator.systems(diagonal - mu[:, None]).are_definite()
        radius[rows] = torch.where(held, reach, 0.0)
    return radius.to(point.value.dtype)


def _least_curvature(
    geometry: MirrorMap, centre: Float[Tensor, "batch d"], radius: Float[Tensor, "batch 1"]
) -> Float[Tensor, "batch d"]:
    """The least φ'' within `radius` of `centre`; φ'' grows away from the middle of C, from +∞ on a half-line."""
    nearest = (torch.zeros_like(centre) + geometry.flattest).clamp(centre - radius, centre + radius)
    # At the bound itself φ'' is infinite (or undefined): step inside.
    bounds = geometry.bounds(torch.float64)
    # (infinite where lo = hi)
    return geometry.curvature(geometry.inverse_activation(nearest.clamp(*bounds)).clamp(-1e150, 1e150)).clamp_max(
        _STIFF
    )
