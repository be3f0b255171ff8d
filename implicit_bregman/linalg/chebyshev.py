"""Chebyshev's semi-iteration: no inner products, and one preconditioner for the whole batch.

For E(x) = b − A x with a preconditioned matrix P A whose eigenvalues are real and in a known interval, the error falls
by (√κ − 1)/(√κ + 1) a step, κ the ratio of the interval's ends (Saad, Iterative Methods for Sparse Linear Systems,
algorithm 12.1). Where A varies a little from point to point it is still a good iteration, whose result has to be
judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

Preconditioner = Callable[[Tensor, Tensor, float, float], Tensor]
"""(b, v, beta, alpha) ↦ beta·b + alpha·Pv, in one pass."""

#: The least half-width of the interval, relative to its middle.
_LEAST_WIDTH = 1e-2


def steps_needed(interval: tuple[float, float], tol: float, most: int) -> int | None:
    """How many steps reduce the error by the factor `tol`; None for more than `most`, or where no number does."""
    center, radius = _disc(interval)
    ratio = radius / center
    if not 0 < ratio < 1:
        return None
    rate = ratio / (1 + math.sqrt(1 - ratio * ratio))
    count = math.ceil(math.log(2 / tol) / -math.log(rate))
    return max(1, count) if count <= most else None


def semi_iteration(
    residual: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch d"],
    first: Float[Tensor, "batch d"],
    precondition: Preconditioner | None,
    interval: tuple[float, float],
    count: int,
) -> Float[Tensor, "batch d"]:
    """x after `count` steps.

    Args:
        residual: x ↦ E(x).
        x: the start.
        first: E there.
        precondition: P; None: the identity.
        interval: ends of the spectrum of P A.
        count: the number of steps, at least 1.
    """
    center, radius = _disc(interval)
    ratio = radius / center
    old, error = ratio, first
    move = error / center if precondition is None else precondition(error, error, 0.0, 1 / center)
    for _ in range(count - 1):
        x = x + move
        error = residual(x)
        new = 1 / (2 / ratio - old)
        keep, take, old = new * old, 2 * new / radius, new
        if precondition is None:
            move = move.mul_(keep).add_(error, alpha=take)
        else:
            move = precondition(move, error, keep, take)
    return x + move


def _disc(interval: tuple[float, float]) -> tuple[float, float]:
    """Centre and radius."""
    center = 0.5 * (interval[0] + interval[1])
    return center, max(0.5 * (interval[1] - interval[0]), _LEAST_WIDTH * center)
