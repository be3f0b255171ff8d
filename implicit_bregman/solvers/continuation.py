"""Equilibria of fields without an objective, where fixed-point steps go round in circles: continuation in γ.

For a γ above ‖W‖ sup ρ' the equation γy + Hρ(y) − c = 0 has one solution, and every method finds it. From there its
solutions form a curve in (y, γ). On a bounded C the curve cannot end and cannot come back to where it began, so that it
passes every smaller γ (Allgower and Georg, Numerical Continuation Methods, 1990, chapter 11). To follow it by arc
length, round the turns that γ takes, leads to an equilibrium. So it is for a network's field F in place of Hz − c,
where GMRES solves the linear systems.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.linalg.gmres import gmres
from implicit_bregman.objective import Objective, RowsOfTensors
from implicit_bregman.operators import LinearOperator

#: Newton steps that bring a predicted point back to the curve, and how close they have to bring it.
_CORRECTIONS, _CLOSE = 6, 1e-8
#: So many rounding errors are as close as a point can be brought.
_ROUNDING = 100
#: Relative residual and products of GMRES's systems.
_SOLVED, _PRODUCTS = 1e-3, 100
#: Where the curve of a field begins, of whose slope nothing is known: above log γ.
_FAR_ABOVE = math.log(64)
#: Fixed-point steps at the first γ.
_HALVINGS = 50
#: First, least and largest length of a step along the curve, in log γ and in y relative to 1 + |y|.
_FIRST, _LEAST, _LONGEST = 0.1, 1e-6, 1.0
#: How far from its tangent, relative to its length, a step may lead.
_BENT = 0.3
#: γ to which the curve is followed where γ = 0 is wanted, relative to ‖W‖.
_SMALL = 1e-6


@dataclass(frozen=True)
class _Curve(RowsOfTensors):
    """Where each sample is on its curve.

    Attributes:
        index: the rows in the whole batch, (b,).
        dual: y, (b, d).
        level: log γ, (b,).
        direction: the unit tangent of (y, log γ), (b, d + 1).
        length: the length of the next step, (b,).
    """

    index: Tensor
    dual: Tensor
    level: Tensor
    direction: Tensor
    length: Tensor


def can_continue(objective: Objective) -> bool:
    """Whether there is a field without an objective, and its width allows for a factorization per step."""
    if objective.energy.is_field:
        return objective.regularization > 0
    energy = objective.energy.factored
    return energy is not None and not energy.symmetric and energy.operator.size <= energy.costs.curve_width


class _Equation(Protocol):
    """E(y, log γ) = y + F(ρ(y))/γ for some samples."""

    def error(self, dual: Tensor, level: Tensor) -> Tensor:
        """E, (b, d)."""
        ...

    def bordered(self, dual: Tensor, level: Tensor, weight: Tensor | None, row: Tensor, right: Tensor) -> Tensor:
        """u, (b, d + 1), with the derivative of E, and below it `row`, times u equal to `right`.

        Where there is a `weight` the first d entries of u are those of y times it.
        """
        ...

    def select(self, index: Tensor) -> _Equation:
        """The same for some of the samples."""
        ...


@dataclass(frozen=True)
class _LinearEquation:
    """F(z) = Hz − c, with one factorization per sample."""

    geometry: MirrorMap
    operator: LinearOperator
    offset: Tensor

    def error(self, dual: Tensor, level: Tensor) -> Tensor:
        return dual + self._pull(dual, level)

    def bordered(self, dual: Tensor, level: Tensor, weight: Tensor | None, row: Tensor, right: Tensor) -> Tensor:
        damp, slope = torch.exp(-level)[:, None], self.geometry.slope(dual)
        unit = torch.ones_like(dual) if weight is None else 1 / weight
        change = self.operator.systems(unit, damp, slope * unit)
        return change.solve_bordered(-self._pull(dual, level), row, right)

    def select(self, index: Tensor) -> _LinearEquation:
        return replace(self, offset=self.offset[index])

    def _pull(self, dual: Tensor, level: Tensor) -> Tensor:
        """(Hρ(y) − c)/γ."""
        return torch.exp(-level)[:, None] * self.operator.add_product(
            self.offset, self.geometry.activation(dual), beta=-1.0
        )


@dataclass(frozen=True)
class _FieldEquation:
    """Any field F, by products with its Jacobian."""

    geometry: MirrorMap
    energy: BoundEnergy

    def error(self, dual: Tensor, level: Tensor) -> Tensor:
        gradient = self.energy.gradient(self.geometry.activation(dual)).detach()
        return dual + torch.exp(-level)[:, None] * gradient

    def bordered(self, dual: Tensor, level: Tensor, weight: Tensor | None, row: Tensor, right: Tensor) -> Tensor:
        damp, slope, value = torch.exp(-level)[:, None], self.geometry.slope(dual), self.geometry.activation(dual)
        hessian, by_level = self.energy.hessian(value), -damp * self.energy.gradient(value).detach()

        def product(u: Tensor) -> Tensor:
            move = u[:, :-1] if weight is None else u[:, :-1] / weight
            inside = move + damp * hessian.product(slope * move) + u[:, -1:] * by_level
            return torch.cat([inside, torch.linalg.vecdot(row, u)[:, None]], -1)

        return gmres(product, right, torch.Tensor.clone, _SOLVED, _PRODUCTS).value

    def select(self, index: Tensor) -> _FieldEquation:
        return replace(self, energy=self.energy.select(index))


def follow_curve(
    objective: Objective, like: Float[Tensor, "batch d"], max_steps: int
) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"], Tensor]:
    """The dual of a solution at γ to some digits, whether one was reached, and the steps that it took, (B,).

    For γ = 0 it is one at a γ that is small against ‖W‖.

    Args:
        objective: F, without an objective.
        like: duals, of whatever value.
        max_steps: bound on the number of steps.
    """
    is_field = objective.energy.is_field
    equation, dual, goal, start = _of_field(objective, like) if is_field else _of_quadratic(objective)
    batch, d = dual.shape
    found = torch.zeros_like(dual)
    reached = torch.zeros(batch, dtype=torch.bool, device=dual.device)
    steps = torch.zeros(batch, dtype=torch.int64, device=dual.device)

    level = torch.full_like(dual[:, 0], start)
    dual, good = _beginning(equation, dual, level)
    down = torch.zeros(batch, d + 1, dtype=dual.dtype, device=dual.device)
    down[:, -1] = -1.0
    at = _Curve(torch.arange(batch, device=dual.device), dual, level, down, torch.full_like(level, _FIRST))
    kept = good.nonzero().squeeze(-1)
    at, equation = at.select(kept), equation.select(kept)
    for step in range(max_steps):
        if len(at.index) == 0:
            break
        steps[at.index] = step + 1
        at, arrived = _advance(equation, at, goal)
        found[at.index[arrived]], reached[at.index[arrived]] = at.dual[arrived], True
        # (what comes back to where it began has jumped to another part of its curve)
        kept = (~arrived & (at.length >= _LEAST) & (at.level <= start + _LONGEST)).nonzero().squeeze(-1)
        at, equation = at.select(kept), equation.select(kept)
    return found, reached, steps


def _of_quadratic(objective: Objective) -> tuple[_Equation, Tensor, float, float]:
    """The equation, y about where the curve begins, and log γ at its end and its beginning."""
    energy, geometry = objective.energy.factored, objective.geometry
    assert energy is not None
    operator, offset = energy.operator.wide, energy.offset.detach().double()
    slope = 1 / geometry.strong_convexity if geometry.strong_convexity > 0 else 1.0
    norm = operator.norm() * slope or 1.0
    goal = math.log(objective.regularization or _SMALL * norm)
    start = max(math.log(2 * norm), goal)
    return _LinearEquation(geometry, operator, offset), offset * math.exp(-start), goal, start


def _of_field(objective: Objective, like: Tensor) -> tuple[_Equation, Tensor, float, float]:
    """The same for a field, of whose slope nothing is known."""
    goal = math.log(objective.regularization)
    return _FieldEquation(objective.geometry, objective.energy), torch.zeros_like(like), goal, goal + _FAR_ABOVE


def _advance(equation: _Equation, at: _Curve, goal: float) -> tuple[_Curve, Bool[Tensor, " batch"]]:
    """One step along the curve, or a shorter length where it failed, and who is at the goal."""
    weight = 1 / (1 + at.dual.abs())
    tangent = _tangent(equation, at, weight)
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
    (dual, level), good = _corrected_along(equation, dual, level, hold, _BENT * at.length)
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


def _tangent(equation: _Equation, at: _Curve, weight: Tensor) -> Float[Tensor, "batch d+1"]:
    """The unit tangent in (weighted y, log γ), on the side of the last one."""
    # The last direction as the normalising row keeps the bordered system regular at a turn.
    right = torch.zeros_like(at.direction)
    right[:, -1] = 1.0
    tangent = equation.bordered(at.dual, at.level, weight, at.direction, right)
    size = torch.linalg.vector_norm(tangent, ord=torch.inf, dim=-1, keepdim=True)
    usable = torch.isfinite(size) & (size > 0)
    return torch.where(usable, tangent / torch.where(usable, size, 1.0), at.direction)


def _corrected_along(
    equation: _Equation, dual: Tensor, level: Tensor, hold: Tensor, reach: Tensor
) -> tuple[tuple[Tensor, Tensor], Bool[Tensor, " batch"]]:
    """Newton's steps back to the curve, orthogonal to `hold`.

    The first has to be within `reach`, or else this may be another curve, and each much shorter than the one before.
    """
    before = 2 * reach
    good = torch.zeros_like(level, dtype=torch.bool)
    running = torch.ones_like(good)
    for _ in range(_CORRECTIONS):
        right = torch.cat([-equation.error(dual, level), torch.zeros_like(level)[:, None]], -1)
        move = equation.bordered(dual, level, None, hold, right)
        size = (move[:, :-1].abs() / (1 + dual.abs())).amax(-1) + move[:, -1].abs()
        running = running & torch.isfinite(size) & (size <= 0.5 * before)
        dual = torch.where(running[:, None], dual + move[:, :-1], dual)
        level = torch.where(running, level + move[:, -1], level)
        before = size
        good = good | (running & (size <= _close(dual.dtype)))
        running = running & ~good
        if not bool(running.any()):
            break
    return (dual, level), good


def _beginning(equation: _Equation, dual: Tensor, level: Tensor) -> tuple[Tensor, Bool[Tensor, " batch"]]:
    """y at the first γ by fixed-point steps, which halve the error there, and whether that worked."""
    for _ in range(_HALVINGS):
        dual = dual - equation.error(dual, level)
    error = equation.error(dual, level)
    return dual, (error.abs() / (1 + dual.abs())).amax(-1) <= _close(dual.dtype)


def _close(dtype: torch.dtype) -> float:
    return max(_CLOSE, _ROUNDING * torch.finfo(dtype).eps)
