"""What an iterate of MM is doing where its residual does not tell: drifting, coming back, standing still."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.objective import Objective, Point

#: ρ'(y) below which a coordinate counts as saturated, and may make many MM steps at once.
_SATURATED = 1e-6
#: How far z may move, relative to its size, while MM steps are made many at once.
_STILL = 1e-5


def drifts(objective: Objective, point: Point, opening: Float[Tensor, "batch d"]) -> Bool[Tensor, " batch"]:
    """Whether a coordinate is on its way to an infinite end of C, with steps as long as at the start.

    Args:
        objective: F.
        point: the iterates.
        opening: the first dual steps y¹ − y⁰.
    """
    if objective.is_coercive:
        return torch.zeros_like(point.residual, dtype=torch.bool)
    open_lo, open_hi = objective.geometry.open_ends
    step = point.next_dual - point.dual
    outward = torch.zeros_like(step, dtype=torch.bool)
    if open_lo is not False:
        outward = outward | ((step < 0) & open_lo)
    if open_hi is not False:
        outward = outward | ((step > 0) & open_hi)
    unabated = (opening != 0) & (step.abs() >= 0.5 * opening.abs())
    return (outward & unabated & (point.value.abs() > 1)).any(-1)


def returns(objective: Objective, point: Point) -> Bool[Tensor, " batch"]:
    """Whether a coordinate comes back from a bound that it is not to stay at.

    Its dual runs back at a constant speed, for as many steps as it took to get there, while z is rounded to the
    bound and nothing else changes.
    """
    eps = torch.finfo(point.dual.dtype).eps
    saturated = objective.movable(objective.geometry.slope(point.dual) < 1e3 * eps)
    gain = point.dual.abs() - point.next_dual.abs()
    return (saturated & (gain > 16 * eps * (point.dual.abs() + point.scale))).any(-1)


def moves(objective: Objective, point: Point) -> Bool[Tensor, " batch"]:
    """Whether MM's step is more than rounding where it should be 0 in the end: γ > 0 and an objective.

    Far out on an algebraic φ the dual may move for long while z, F and the residual stand still to rounding.
    """
    if not objective.regularization or not objective.energy.symmetric:
        return torch.zeros_like(point.residual, dtype=torch.bool)
    eps = torch.finfo(point.dual.dtype).eps
    rounding = 1e3 * eps * (point.dual.abs() + point.step * point.scale)
    return ((point.next_dual - point.dual).abs() > rounding).any(-1)


def leap(
    objective: Objective, point: Point, stride: Float[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
    """The saturated coordinates' next `stride` MM steps at once, and one step of the others (γ = 0).

    While z, and with it ∇f, stands still, the steps of a coordinate that comes back from a bound are equal and can be
    added up. The others would overshoot.

    Returns:
        The dual after the leap, (B, d), and whether z stays within 1e-5 of where it is, relative to its size, (B,):
        only then may the leap be made. MM's path is left by no more than that.
    """
    saturated = objective.geometry.slope(point.dual) < _SATURATED
    length = torch.where(saturated, stride[:, None], 1.0)
    far = objective.geometry.project_dual(point.dual + length * (point.next_dual - point.dual))
    moved = (objective.geometry.activation(far) - point.value).abs().amax(-1)
    return far, moved <= _STILL * (1 + point.value.abs().amax(-1))
