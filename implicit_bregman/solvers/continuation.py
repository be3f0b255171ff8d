"""Equilibria of fields without an objective, where fixed-point steps go round in circles: continuation in γ.

For a γ above ‖W‖ sup ρ' the equation γy + Hρ(y) − c = 0 has one solution, and every method finds it. From there its
solutions form a curve in (y, γ). On a bounded C the curve cannot end and cannot come back to where it began, so that it
passes every smaller γ (Allgower and Georg, Numerical Continuation Methods, 1990, chapter 11). To follow it by arc
length, round the turns that γ takes, leads to an equilibrium.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.objective import Objective, RowsOfTensors
from implicit_bregman.operators import LinearOperator
from implicit_bregman.operators.systems import Systems

#: Newton steps that bring a predicted point back to the curve, and how close they have to bring it.
_CORRECTIONS, _CLOSE = 6, 1e-8
#: Fixed-point steps at the first γ.
_HALVINGS = 50
#: First, least and largest length of a step along the curve, in log γ and in y relative to 1 + |y|.
_FIRST, _LEAST, _LONGEST = 0.1, 1e-6, 1.0
#: γ to which the curve is followed where γ = 0 is wanted, relative to ‖W‖.
_SMALL = 1e-6


@dataclass(frozen=True)
class _Curve(RowsOfTensors):
    """Where each sample is on its curve.

    Attributes:
        index: the rows in the whole batch, (b,).
        offset: c, (b, d).
        dual: y, (b, d).
        level: log γ, (b,).
        direction: the unit tangent of (y, log γ), (b, d + 1).
        length: the length of the next step, (b,).
    """

    index: Tensor
    offset: Tensor
    dual: Tensor
    level: Tensor
    direction: Tensor
    length: Tensor


def can_continue(objective: Objective) -> bool:
    """Whether there is a field without an objective, and its width allows for a factorization per step."""
    energy = objective.energy.factored
    return energy is not None and not energy.symmetric and energy.operator.size <= energy.costs.curve_width


def follow_curve(
    objective: Objective, max_steps: int
) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"], Tensor]:
    """The dual of a solution at γ to some digits, whether one was reached, and the steps that it took, (B,).

    For γ = 0 it is one at a γ that is small against ‖W‖.

    Args:
        objective: F, without an objective.
        max_steps: bound on the number of steps.
    """
    energy, geometry = objective.energy.factored, objective.geometry
    assert energy is not None
    operator, offset = energy.operator.wide, energy.offset.detach().double()
    slope = 1 / geometry.strong_convexity if geometry.strong_convexity > 0 else 1.0
    norm = operator.norm() * slope or 1.0
    goal = math.log(objective.regularization or _SMALL * norm)
    start = max(math.log(2 * norm), goal)
    batch, d = offset.shape
    found = torch.zeros_like(offset)
    reached = torch.zeros(batch, dtype=torch.bool, device=offset.device)
    steps = torch.zeros(batch, dtype=torch.int64, device=offset.device)

    level = torch.full_like(offset[:, 0], start)
    dual, good = _beginning(objective, operator, offset, level)
    down = torch.zeros(batch, d + 1, dtype=offset.dtype, device=offset.device)
    down[:, -1] = -1.0
    at = _Curve(torch.arange(batch, device=offset.device), offset, dual, level, down, torch.full_like(level, _FIRST))
    at = at.select(good.nonzero().squeeze(-1))
    for step in range(max_steps):
        if len(at.index) == 0:
            break
        steps[at.index] = step + 1
        at, arrived = _advance(objective, operator, at, goal)
        found[at.index[arrived]], reached[at.index[arrived]] = at.dual[arrived], True
        at = at.select((~arrived & (at.length >= _LEAST)).nonzero().squeeze(-1))
    return found, reached, steps


def _advance(
    objective: Objective, operator: LinearOperator, at: _Curve, goal: float
) -> tuple[_Curve, Bool[Tensor, " batch"]]:
    """One step along the curve, or a shorter length where it failed, and who is at the goal."""
    weight = 1 / (1 + at.dual.abs())
    tangent = _tangent(objective, operator, at, weight)
    move = at.length[:, None] * tangent
    # (in y, lengths count relative to 1 + |y|)
    dual, level = at.dual + move[:, :-1] / weight, at.level + move[:, -1]
    # A step that would pass the goal ends there, with γ held.
    passes = level <= goal
    share = torch.where(passes, (at.level - goal) / (at.level - level).clamp_min(1e-300), 1.0)
    dual = at.dual + share[:, None] * (dual - at.dual)
    level = torch.where(passes, goal, level)
    hold = torch.cat([tangent[:, :-1] * weight, tangent[:, -1:]], -1)
    only_level = torch.zeros_like(hold)
    only_level[:, -1] = 1.0
    hold = torch.where(passes[:, None], only_level, hold)
    (dual, level), good = _corrected_along(objective, operator, at.offset, dual, level, hold)
    turned = torch.where(good[:, None], tangent, at.direction)
    longer = torch.where(good, 1.5 * at.length, 0.5 * at.length).clamp_max(_LONGEST)
    moved = replace(
        at,
        dual=torch.where(good[:, None], dual, at.dual),
        level=torch.where(good, level, at.level),
        direction=turned,
        length=longer,
    )
    return moved, good & passes


def _tangent(objective: Objective, operator: LinearOperator, at: _Curve, weight: Tensor) -> Float[Tensor, "batch d+1"]:
    """The unit tangent in (weighted y, log γ), on the side of the last one."""
    change, by_level = _derivatives(objective, operator, at.offset, at.dual, at.level, 1 / weight)
    right = torch.zeros_like(at.direction)
    right[:, -1] = 1.0
    # The last direction as the normalising row keeps the bordered system regular at a turn.
    tangent = change.solve_bordered(by_level, at.direction, right)
    size = torch.linalg.vector_norm(tangent, ord=torch.inf, dim=-1, keepdim=True)
    usable = torch.isfinite(size) & (size > 0)
    return torch.where(usable, tangent / torch.where(usable, size, 1.0), at.direction)


def _derivatives(
    objective: Objective, operator: LinearOperator, offset: Tensor, dual: Tensor, level: Tensor, unit: Tensor
) -> tuple[Systems, Float[Tensor, "batch d"]]:
    """Derivatives of y + (Hρ(y) − c)/γ in y, in this unit, and in log γ."""
    damp, slope = torch.exp(-level)[:, None], objective.geometry.slope(dual)
    return operator.systems(unit, damp, slope * unit), -_pull(objective, operator, offset, dual, level)


def _equation(objective: Objective, operator: LinearOperator, offset: Tensor, dual: Tensor, level: Tensor) -> Tensor:
    return dual + _pull(objective, operator, offset, dual, level)


def _pull(objective: Objective, operator: LinearOperator, offset: Tensor, dual: Tensor, level: Tensor) -> Tensor:
    """(Hρ(y) − c)/γ."""
    return torch.exp(-level)[:, None] * operator.add_product(offset, objective.geometry.activation(dual), beta=-1.0)


def _corrected_along(
    objective: Objective, operator: LinearOperator, offset: Tensor, dual: Tensor, level: Tensor, hold: Tensor
) -> tuple[tuple[Tensor, Tensor], Bool[Tensor, " batch"]]:
    """Newton's steps back to the curve, orthogonal to `hold`; each has to be much shorter than the one before."""
    before = torch.full_like(level, torch.inf)
    good = torch.zeros_like(level, dtype=torch.bool)
    running = torch.ones_like(good)
    for _ in range(_CORRECTIONS):
        change, by_level = _derivatives(objective, operator, offset, dual, level, torch.ones_like(dual))
        error = _equation(objective, operator, offset, dual, level)
        move = change.solve_bordered(by_level, hold, torch.cat([-error, torch.zeros_like(level)[:, None]], -1))
        size = (move[:, :-1].abs() / (1 + dual.abs())).amax(-1) + move[:, -1].abs()
        running = running & torch.isfinite(size) & (size <= 0.5 * before)
        dual = torch.where(running[:, None], dual + move[:, :-1], dual)
        level = torch.where(running, level + move[:, -1], level)
        before = size
        good = good | (running & (size <= _CLOSE))
        running = running & ~good
        if not bool(running.any()):
            break
    return (dual, level), good


def _beginning(
    objective: Objective, operator: LinearOperator, offset: Tensor, level: Tensor
) -> tuple[Tensor, Bool[Tensor, " batch"]]:
    """y at the first γ by fixed-point steps, which halve the error there, and whether that worked."""
    dual = offset * torch.exp(-level)[:, None]
    for _ in range(_HALVINGS):
        dual = dual - _equation(objective, operator, offset, dual, level)
    error = _equation(objective, operator, offset, dual, level)
    return dual, (error.abs() / (1 + dual.abs())).amax(-1) <= _CLOSE
