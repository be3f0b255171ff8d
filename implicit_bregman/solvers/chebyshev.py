"""γ > 0: a few accelerated steps with one preconditioner for the whole batch, before Newton's method.

The equation is E(y) = γy + ∇f(ρ(y)) = 0, its Jacobian J = γ + H D with D = ρ'(y) ∈ [D_min, 1/σ]. With the shared
P = (γ + s̄ H)⁻¹ the eigenvalues of PJ are those of (γH⁻¹ + s̄)⁻¹(γH⁻¹ + D): real, and between (a + D_min)/(a + s̄) and
(a + 1/σ)/(a + s̄) with a = γ/λ_max, however ill conditioned H is. Chebyshev's semi-iteration needs that interval and
nothing else: no inner products, no line search, five operations a step. It is no method by itself, because D_min is a
guess and J is not constant: what it returns has to be judged.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.energy.bound import BoundQuadratic
from implicit_bregman.legendre import LegendreFunction

#: More steps than this and Newton's method is the faster one from the start.
_MOST_STEPS = 20
#: γσ/λ_max from which on J is conditioned well enough without P.
_NO_NEED = 0.4
#: How much smaller than seen at a first guess D may become.
_SAFETY = 0.7
#: The least half-width of the interval, relative to its middle.
_LEAST_WIDTH = 1e-2


def chebyshev_steps(
    energy: BoundQuadratic,
    geometry: LegendreFunction,
    regularization: float,
    dual: Float[Tensor, "batch d"],
    tol: float,
) -> tuple[Float[Tensor, "batch d"], int] | None:
    """Steps from y = `dual` that should reduce the error by `tol`, and their number; None where they would be many.

    Args:
        energy: f, convex.
        geometry: φ.
        regularization: γ > 0.
        dual: the start.
        tol: the factor by which the error is to be reduced.
    """
    gamma, shared = regularization, energy.shared
    if geometry.strong_convexity <= 0:
        return None
    steepest, a = 1 / geometry.strong_convexity, gamma * shared.gradient_step
    if a >= _NO_NEED * steepest:
        return _steps(energy, geometry, gamma, dual, None, (gamma, gamma * (1 + steepest / a)), tol)
    found = shared.damped_inverse(2 * gamma / steepest) if shared.is_worth_inverting(len(dual)) else None
    if found is None:
        return None
    middle = gamma / found[0]
    inverse = found[1].to(dual.dtype) / middle
    # One step by P alone shows how flat ρ becomes.
    first = torch.addmm(dual, _negative_error(energy, geometry, gamma, dual), inverse)
    flattest = _SAFETY * float(geometry.slope(first).amin())
    interval = ((a + flattest) / (a + middle), (a + steepest) / (a + middle))
    swept = _steps(energy, geometry, gamma, first, inverse, interval, tol)
    return None if swept is None else (swept[0], swept[1] + 1)


def _steps(
    energy: BoundQuadratic,
    geometry: LegendreFunction,
    gamma: float,
    dual: Tensor,
    inverse: Tensor | None,
    interval: tuple[float, float],
    tol: float,
) -> tuple[Tensor, int] | None:
    """Chebyshev's semi-iteration (Saad, Iterative Methods for Sparse Linear Systems, algorithm 12.1)."""
    center = 0.5 * (interval[0] + interval[1])
    radius = max(0.5 * (interval[1] - interval[0]), _LEAST_WIDTH * center)
    ratio = radius / center
    if not ratio < 1:
        return None
    rate = ratio / (1 + math.sqrt(1 - ratio * ratio))
    count = math.ceil(math.log(2 / tol) / -math.log(rate))
    if count > _MOST_STEPS:
        return None
    y, old = dual, ratio
    error = _negative_error(energy, geometry, gamma, y)
    move = (error if inverse is None else error @ inverse) / center
    for _ in range(count - 1):
        y = y + move
        error = _negative_error(energy, geometry, gamma, y)
        new = 1 / (2 / ratio - old)
        keep, take, old = new * old, 2 * new / radius, new
        if inverse is None:
            move = torch.add(move * keep, error, alpha=take)
        else:
            move = torch.addmm(move, error, inverse, beta=keep, alpha=take)
    return y + move, count


def _negative_error(energy: BoundQuadratic, geometry: LegendreFunction, gamma: float, y: Tensor) -> Tensor:
    """−E(y) = Wρ(y) + c − γy."""
    return torch.sub(-gamma * y, energy.gradient(geometry.activation(y)))
