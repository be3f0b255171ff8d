"""γ = 0 and a quadratic f: the point that has a given active set, exactly, and the set that is the right one.

Since ∇f is affine, one solve on the free coordinates gives the critical point as soon as the active set is known. A
set that fails is corrected by the signs it violates (the primal-dual active-set iteration of Hintermüller, Ito and
Kunisch, 2002, a semismooth Newton method). Everything returned has been tested in float64.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.energy.bound import BoundQuadratic
from implicit_bregman.linalg.free import solve_free_blocks
from implicit_bregman.linalg.masked import solve_on_free_set
from implicit_bregman.objective import Objective
from implicit_bregman.solvers.finished import Finished

#: How often the active set of a problem with one critical point is corrected within one polish.
_CORRECTIONS = 8
#: How far a polished point may violate the KKT conditions.
_EXACT = 1e-10


def polish(
    objective: Objective,
    value: Float[Tensor, "batch d"],
    gradient: Float[Tensor, "batch d"],
    tol: float,
    corrections: int = _CORRECTIONS,
) -> Finished:
    """The critical points that have the active sets of z = `value`, tested.

    If F has only one critical point, a set that fails is corrected and solved for again, a few times at most:
    whatever then passes the KKT test is the solution. Otherwise the first set has to be right.

    Args:
        objective: F, with γ = 0 and a quadratic f.
        value: the iterates z.
        gradient: ∇f there.
        tol: how far, relative to the scale of the residual, the conditions may be violated. A multiplier or a
            distance to a bound below ten times this is called degenerate.
        corrections: how often a set is corrected.
    """
    # A wrong active set may violate the conditions by very little, and its gradient be wrong by much: ask in float64
    # for more than the solver's tolerance.
    tol = min(tol, _EXACT)
    energy = _quadratic(objective).double()
    bounds = objective.geometry.bounds(objective.energy.dtype)
    at_lo, at_hi = _projected(energy, value, gradient, bounds)
    found = point_with(objective, energy, at_lo, at_hi, tol)
    if objective.unique:
        for _ in range(corrections):
            wrong = (~found.accepted & torch.isfinite(found.exact.sum(-1))).nonzero().squeeze(-1)
            if len(wrong) == 0:
                break
            part = found.select(wrong)
            at_lo, at_hi = _projected(energy, part.exact, part.gradient, bounds)
            retried = point_with(objective, energy.select(wrong), at_lo, at_hi, tol)
            spent = replace(retried, steps=part.steps + retried.steps, tries=part.tries + retried.tries)
            found = found.replace_rows(wrong, spent)
    return found


def _quadratic(objective: Objective) -> BoundQuadratic:
    energy = objective.energy
    if not isinstance(energy, BoundQuadratic):
        raise TypeError(f"an exact finish needs a quadratic energy, got {type(energy).__name__}")
    return energy


def _projected(
    energy: BoundQuadratic, value: Tensor, gradient: Tensor, bounds: tuple[float, float]
) -> tuple[Bool[Tensor, "batch d"], Bool[Tensor, "batch d"]]:
    """The coordinates that a projected gradient step would put on the lower and on the upper bound."""
    target = value - energy.gradient_step * gradient
    return target < bounds[0], target > bounds[1]


def point_with(
    objective: Objective,
    energy: BoundQuadratic,
    at_lo: Bool[Tensor, "batch d"],
    at_hi: Bool[Tensor, "batch d"],
    tol: float,
) -> Finished:
    """The point with the given active set, in float64, and whether the KKT conditions hold there.

    Args:
        objective: F.
        energy: f in float64.
        at_lo: the coordinates at their lower bound.
        at_hi: those at their upper bound.
        tol: see `polish`.
    """
    geometry, dtype = objective.geometry, objective.energy.dtype
    lo, hi = geometry.bounds(dtype)
    free = ~(at_lo | at_hi)
    fixed = _on_bounds(at_lo, at_hi, lo, hi)
    exact, gradient, scale, solved, products = _solve(objective, energy, free, fixed, tol)

    slack = (tol * scale)[:, None]
    clamped = exact.clamp(lo, hi)
    violation = torch.where(at_lo, -gradient, torch.where(at_hi, gradient, gradient.abs()))
    # Both conditions at once: an entry that violates neither by more than the slack.
    worst = torch.maximum((exact - clamped).abs(), violation)
    accepted = solved & (worst <= slack).all(-1)
    margin = torch.where(free, torch.minimum(exact - lo, hi - exact), gradient.abs())
    thin = (margin <= 10 * slack).any(-1)
    residual = ((exact - gradient).clamp(lo, hi) - exact).abs().amax(-1) / scale

    y_lo, y_hi = geometry.saturated_dual(dtype)
    dual = torch.where(free, geometry.inverse_activation(clamped), _on_bounds(at_lo, at_hi, y_lo, y_hi))
    dual = dual.clamp(y_lo, y_hi)
    return Finished(
        value=clamped.to(dtype),
        dual=dual.to(dtype),
        exact=exact,
        exact_dual=dual,
        free=free,
        gradient=gradient,
        scale=scale,
        residual=residual.to(dtype),
        accepted=accepted,
        degenerate=thin & accepted,
        steps=torch.ones_like(accepted, dtype=torch.int64),
        tries=torch.full_like(accepted, products, dtype=torch.int64),
    )


def _solve(
    objective: Objective, energy: BoundQuadratic, free: Tensor, fixed: Tensor, tol: float
) -> tuple[Tensor, Tensor, Tensor, Bool[Tensor, " batch"], int]:
    """z with (∇f)_F = 0, ∇f there, 1 + the size of its terms, whether it was found, and the evaluations it took."""
    definite = energy.symmetric and objective.unique
    shared = _quadratic(objective).shared
    if definite and shared.is_worth_inverting(len(free)) and shared.inverse is not None:
        offset = energy.offset
        exact, excess, solved, products = solve_free_blocks(shared, free, offset, fixed, 0.5 * tol)
        gradient = excess - torch.where(free, 0.0, offset)
        scale = 1 + torch.maximum((gradient + offset).abs().amax(-1), offset.abs().amax(-1))
        return exact, gradient, scale, solved, products
    # Where there may be several critical points, a block that is not definite belongs to a saddle.
    refuse_saddles = energy.symmetric and not objective.unique
    right = -energy.gradient(fixed)
    inside, solved = solve_on_free_set(energy.shared.matrix, free, right, energy.symmetric, refuse_saddles)
    exact = torch.where(free, inside, fixed)
    at = energy.evaluate(exact)
    return exact, at.gradient, at.scale, solved, 2


def _on_bounds(at_lo: Tensor, at_hi: Tensor, lo: float, hi: float) -> Tensor:
    """`lo` and `hi` on the active coordinates, 0 elsewhere."""
    zero = torch.zeros(at_lo.shape, dtype=torch.float64, device=at_lo.device)
    return zero.masked_fill(at_lo, lo).masked_fill(at_hi, hi)
