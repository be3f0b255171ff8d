"""BFGS that also works where the function has kinks: the optimizer of the study of the infimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Function = Callable[[Vector], tuple[float, Vector]]

_ARMIJO, _WOLFE, _HALVINGS = 1e-4, 0.9, 40


@dataclass(frozen=True)
class Descent:
    """Where a descent ended.

    Attributes:
        place: The point, (p,).
        value: Of the function there.
        gradient: Largest entry of the gradient there; it does not vanish at a kink.
    """

    place: Vector
    value: float
    gradient: float


def descend(function: Function, start: Vector, evaluations: int, tolerance: float = 1e-10) -> Descent:
    """BFGS with a bisection for the weak Wolfe conditions (Lewis and Overton, 2013).

    The strong condition, which SciPy asks for, cannot be met at a kink, and limited memory forgets how steep a valley
    with a kink is.

    Args:
        function: Value and gradient.
        start: (p,).
        evaluations: Stop after about so many.
        tolerance: Stop where no entry of the gradient is larger.
    """
    place, (value, gradient) = start, function(start)
    identity = np.eye(len(start))
    inverse, fresh, left = identity, True, evaluations - 1
    while left > 0 and np.abs(gradient).max() > tolerance:
        direction = -inverse @ gradient
        if direction @ gradient >= 0:
            inverse, fresh, direction = identity, True, -gradient
        length = min(1.0, 0.1 / np.abs(gradient).max()) if fresh else 1.0
        found, used = _search(function, place, value, gradient, direction, length)
        left -= used
        if found is None:
            if fresh:
                break
            inverse, fresh = identity, True
            continue
        shift, value, change = found[0] - place, found[1], found[2] - gradient
        place, gradient = found[0], found[2]
        bend = shift @ change
        if bend > 0:
            if fresh:
                inverse, fresh = identity * (bend / (change @ change)), False
            image = inverse @ change
            cross = np.outer(image, shift)
            inverse = inverse - (cross + cross.T) / bend
            inverse = inverse + (change @ image / bend + 1) / bend * np.outer(shift, shift)
    return Descent(place, value, float(np.abs(gradient).max()))


def _search(
    function: Function, place: Vector, value: float, gradient: Vector, direction: Vector, length: float
) -> tuple[tuple[Vector, float, Vector] | None, int]:
    """A point with the weak Wolfe conditions, or at least a lower one, and the evaluations used."""
    slope = float(direction @ gradient)
    lower, upper, best = 0.0, math.inf, None
    for used in range(1, _HALVINGS + 1):
        there = place + length * direction
        reached, steepness = function(there)
        # (a NaN counts as too high)
        if not reached <= value + _ARMIJO * length * slope:
            upper = length
        else:
            best = (there, reached, steepness)
            if steepness @ direction >= _WOLFE * slope:
                return best, used
            lower = length
        length = 0.5 * (lower + upper) if math.isfinite(upper) else 2 * lower
    return best, _HALVINGS
