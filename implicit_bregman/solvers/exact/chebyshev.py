"""γ > 0: a few accelerated steps with one preconditioner for the whole batch, before Newton's method.

The equation is E(y) = γy + ∇f(ρ(y)) = 0, its Jacobian J = γ + H D with D = ρ'(y) ∈ [D_min, 1/σ]. With the shared
P = (γ + s̄ H)⁻¹ the eigenvalues of PJ are those of (γH⁻¹ + s̄)⁻¹(γH⁻¹ + D): real, and between (a + D_min)/(a + s̄) and
(a + 1/σ)/(a + s̄) with a = γ/λ_max, however ill conditioned H is. Chebyshev's semi-iteration needs that interval and
nothing else. It is no method by itself, because D_min is a guess and J is not constant: what it returns has to be
judged.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.energy.bound import BoundQuadratic
from implicit_bregman.linalg.chebyshev import semi_iteration, steps_needed
from implicit_bregman.objective import Objective

#: More steps than this and Newton's method is the faster one from the start.
_MOST_STEPS = 28
#: γσ/λ_max from which on J is conditioned well enough without P.
_NO_NEED = 0.4
#: How much smaller than seen at a first guess D may become.
_SAFETY = 0.7
#: Of the tolerance, what the steps aim at.
_AIM = 0.3
#: The most that the steps are asked to reduce the error by.
_MOST = 2e-7
#: More steps than this are stopped at so many times the tolerance, unless they are made in float64: y is rounded, and
#: the last digits are better those of a correction.
_LONG, _EARLIER = 16, 100.0


def chebyshev_steps(
    objective: Objective,
    energy: BoundQuadratic,
    dual: Float[Tensor, "batch d"],
    tol: float,
) -> tuple[Float[Tensor, "batch d"], int, int] | None:
    """Steps from y = `dual` that should make E small; None where they would be many.

    Args:
        objective: F with γ > 0.
        energy: f, convex.
        dual: the start.
        tol: the E that is wanted, each entry relative to its own terms.

    Returns:
        y; 1, or 0 where no steps were needed; the evaluations of ∇f.
    """
    geometry, gamma, operator = objective.geometry, objective.regularization, energy.operator

    def residual(y: Tensor) -> Tensor:
        """−E(y) = −∇f(ρ(y)) − γy."""
        return energy.force(geometry.activation(y)).sub_(y, alpha=gamma)

    sigma, a = geometry.strong_convexity, gamma * operator.gradient_step
    # Where D has no bound it is guessed, like the least D.
    steepest = 1 / sigma if sigma > 0 else float(geometry.slope(dual).amax())
    error = residual(dual)
    largest = float((error.abs() / objective.scale(energy.offset.abs())).max())
    if largest <= tol:
        return dual, 0, 1
    if not (math.isfinite(largest) and 0 < steepest < math.inf):
        return None
    if sigma > 0 and a >= _NO_NEED * steepest:
        interval, precondition, spent = (gamma, gamma * (1 + steepest / a)), None, 1
    else:
        # Where φ'' is constant so is D: then P is the inverse of J.
        constant = geometry.max_curvature == geometry.strong_convexity
        shift = gamma / steepest * (1 if constant else 2)
        damped = operator.damped_inverse(shift) if operator.has_resolvent(len(dual)) else None
        if damped is None:
            return None
        middle = gamma / damped.shift
        precondition, spent = damped.scaled(1 / middle), 2
        # One step by P alone shows how flat ρ becomes.
        dual = precondition(dual, error, 1.0, 1.0)
        error = residual(dual)
        if not constant:
            low, high = (float(end) for end in geometry.slope(dual).aminmax())
            flattest, steepest = _SAFETY * low, steepest if sigma > 0 else high / _SAFETY
        else:
            flattest = steepest
        ends = (a + flattest) / (a + middle), (a + steepest) / (a + middle)
        interval = min(1.0, ends[0]), max(1.0, ends[1])
    reduction = _AIM * tol / largest
    if reduction < _MOST:
        # Half of the digits, of which Newton's step makes all.
        reduction = max(math.sqrt(reduction), _MOST)
    count = steps_needed(interval, reduction, _MOST_STEPS)
    if count is None:
        return None
    if count > _LONG and dual.dtype != torch.float64:
        count = steps_needed(interval, min(1.0, _EARLIER * _AIM * tol / largest), count) or count
    return semi_iteration(residual, dual, error, precondition, interval, count), 1, count - 1 + spent
