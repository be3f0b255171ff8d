"""Steps along the graph of the mirror map, z = ρ(y), that suit both variables.

Where ρ is steep an equation is nearly linear in z, where it is flat in y. w = y + κz stands for both (Minty's
parametrization of a monotone graph): for κ = H_jj/γ the optimality condition γy + Hz = c is *linear* in w_j but for
the other coordinates, however ρ bends, and in the limit γ → 0 it becomes Robinson's normal map, whose Newton step is
that of an active-set method.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.legendre import MirrorMap

#: Corrections of a point that is to lie on a line. Newton's method around it corrects the rest.
_CORRECTIONS = 3
#: κρ' below which a coordinate is held by a bound, and what it may grow to in one step, in which it leaves that.
_HELD, _LEAVING = 0.1, 3.0
#: Bisections, of the logarithm of a large |y|, that look for the place where it does, at most.
_BISECTIONS = 40
#: How far from the line, relative to the step, a point may stay.
_CLOSE = 0.05


def move_along(
    geometry: MirrorMap,
    dual: Float[Tensor, "batch d"],
    value: Float[Tensor, "batch d"],
    slope: Float[Tensor, "batch d"],
    weight: Float[Tensor, "#batch d"],
    move: Float[Tensor, "batch d"],
) -> Float[Tensor, "batch d"]:
    """y⁺ with y⁺ + κρ(y⁺) = y + κρ(y) + Δw, to a few digits of Δw; no coordinate leaves a bound and goes on.

    Args:
        geometry: φ.
        dual: y.
        value: ρ(y).
        slope: ρ'(y), or what stands for it.
        weight: κ ≥ 0.
        move: Δw.
    """
    target = _on_line(geometry, dual, value, slope, weight, move)
    # In a C that is bounded on both sides ρ is steepest at 0, which a coordinate passes on its way to the other bound.
    passed = torch.where((target * dual < 0) & (weight * geometry.slope(target) <= _LEAVING), 0.0, target)
    leaving = (weight * slope < _HELD) & (weight * geometry.slope(passed) > _LEAVING)
    if not bool(leaving.any()):
        return target
    return torch.where(leaving, _where_it_leaves(geometry, dual, passed, weight, leaving), target)


def _on_line(geometry: MirrorMap, dual: Tensor, value: Tensor, slope: Tensor, weight: Tensor, move: Tensor) -> Tensor:
    w = torch.addcmul(dual, weight, value).add_(move)
    guess = dual + move / (1 + weight * slope)
    enough = _CLOSE * move.abs() + 4 * torch.finfo(w.dtype).eps * w.abs()
    excess = torch.addcmul(guess, weight, geometry.activation(guess)).sub_(w)
    if bool((excess.abs() <= enough).all()):
        return guess
    least, most = _bracket(geometry, w, weight)
    guess = guess.clamp(least, most)
    for _ in range(_CORRECTIONS):
        value = geometry.activation(guess)
        excess = torch.addcmul(guess, weight, value).sub_(w)
        if bool((excess.abs() <= enough).all()):
            break
        least, most = torch.where(excess <= 0, guess, least), torch.where(excess >= 0, guess, most)
        guess = _correct(geometry, guess, value, weight, excess).clamp(least, most)
    return guess


def _bracket(geometry: MirrorMap, w: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Ends between which y + κρ(y) = w has its solution.

    It is between 0 and either end of the line's part that lies between y = 0 and z = ρ(0), and no farther from 0 than
    ρ⁻¹(w/κ), whose point lies on the other side of the line.
    """
    middle = geometry.activation(torch.zeros_like(w))
    offset = torch.addcmul(w, weight, middle, value=-1)
    lo, hi = geometry.inner_bounds(w.dtype)
    ratio = w / weight
    inside = (ratio > lo) & (ratio < hi)
    crossing = geometry.inverse_activation(torch.where(inside, ratio, middle))
    crossing = torch.where(inside, crossing.abs(), torch.inf)
    reach = torch.minimum(offset.abs(), crossing).copysign(offset)
    return reach.clamp_max(0), reach.clamp_min(0)


def _correct(geometry: MirrorMap, dual: Tensor, value: Tensor, weight: Tensor, excess: Tensor) -> Tensor:
    """One Newton step towards the line: in z where ρ is steep and z stays inside C, else in y."""
    slope = geometry.slope(dual)
    step = excess / (1 + weight * slope)
    target = torch.addcmul(value, slope, step, value=-1)
    lo, hi = geometry.inner_bounds(dual.dtype)
    steep = (weight * slope > 1) & (target > lo) & (target < hi)
    inverse = geometry.inverse_activation(torch.where(steep, target, value.clamp(lo, hi)))
    return torch.where(steep, inverse, dual - step)


def _where_it_leaves(geometry: MirrorMap, held: Tensor, steep: Tensor, weight: Tensor, leaving: Tensor) -> Tensor:
    """The dual between two where κρ' is between 1 and 3, or just above 1, for the coordinates that leave a bound.

    As long as a bound held it a coordinate's direction was computed without its motion in z. To go on would move z
    by what nobody has asked of it.
    """
    near, far = torch.asinh(steep), torch.asinh(held)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (near + far)
        growth = weight * geometry.slope(torch.sinh(middle))
        near, far = torch.where(growth >= 1, middle, near), torch.where(growth <= _LEAVING, middle, far)
        if bool(((growth >= 1) & (growth <= _LEAVING) | ~leaving).all()):
            break
    return torch.sinh(near)
