"""γ = 0 and a quadratic f: the point that has a given active set, exactly, and the set that is the right one.

Since ∇f is affine, one solve on the free coordinates gives the critical point as soon as the active set is known. A
set that fails is corrected by the signs it violates (the primal-dual active-set iteration of Hintermüller, Ito and
Kunisch, 2002, a semismooth Newton method). Everything returned has been tested in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.energy.bound import BoundQuadratic
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.objective import Objective
from implicit_bregman.operators.free import FreeBlocks
from implicit_bregman.solvers.exact.result import ExactResult

#: How often the active set of a problem with one critical point is corrected within one solve.
_CORRECTIONS = 8
#: How many times the tolerance rounding may hide where it is not known that there is a minimiser.
_HIDDEN = 1e3
#: How far an exact point may violate the KKT conditions.
_EXACT = 1e-10


def solve_active_set(
    objective: Objective,
    value: Float[Tensor, "batch d"],
    gradient: Float[Tensor, "batch d"],
    tol: float,
    corrections: int = _CORRECTIONS,
) -> ExactResult:
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
    step = _quadratic(objective).gradient_step
    return solve_projected_active_set(objective, torch.sub(value, gradient, alpha=step), tol, corrections)


def solve_projected_active_set(
    objective: Objective, target: Float[Tensor, "batch d"], tol: float, corrections: int = _CORRECTIONS
) -> ExactResult:
    """The same for the active sets of Π_C(`target`), where `target` is an iterate after a gradient step."""
    # A wrong active set may violate the conditions by very little, and its gradient be wrong by much: ask in float64
    # for more than the solver's tolerance.
    tol = min(tol, _EXACT)
    energy = _quadratic(objective).double()
    found = point_with(objective, energy, *_beyond(objective, target), tol)
    if found.complete or not objective.unique:
        return found

    def again(rows: Int[Tensor, " wrong"], target: Float[Tensor, "wrong d"]) -> ExactResult:
        return point_with(objective, energy.select(rows), *_beyond(objective, target), tol)

    return corrected(found, again, energy.gradient_step, corrections)


def corrected(
    found: ExactResult,
    again: Callable[[Int[Tensor, " wrong"], Float[Tensor, "wrong d"]], ExactResult],
    length: float,
    corrections: int,
) -> ExactResult:
    """The points, those that are not accepted replaced by what gradient steps from there point to, a few times.

    Args:
        found: the points.
        again: from the rows to be replaced, and the points after a gradient step, to new ones.
        length: of the gradient step.
        corrections: how often.
    """
    for _ in range(corrections):
        wrong = (~found.accepted & torch.isfinite(found.unrounded.sum(-1))).nonzero().squeeze(-1)
        if len(wrong) == 0:
            break
        part = found.select(wrong)
        retried = again(wrong, torch.sub(part.unrounded, part.gradient, alpha=length))
        spent = replace(retried, steps=part.steps + retried.steps, tries=part.tries + retried.tries)
        found = found.replace_rows(wrong, spent)
    return found


def _beyond(objective: Objective, target: Float[Tensor, "batch d"]) -> tuple[Tensor, Tensor]:
    """The coordinates that are below their bounds, or have lo = hi, and those above them."""
    lo, hi = objective.geometry.bounds(objective.energy.dtype)
    below, above, pinned = target < lo, target > hi, objective.geometry.pinned
    return (below, above) if pinned is None else (below | pinned, above & ~pinned)


def _quadratic(objective: Objective) -> BoundQuadratic:
    energy = objective.energy.factored
    if energy is None:
        raise TypeError(f"an exact solve needs a quadratic energy, got {type(objective.energy).__name__}")
    return energy


def point_with(
    objective: Objective,
    energy: BoundQuadratic,
    at_lo: Bool[Tensor, "batch d"],
    at_hi: Bool[Tensor, "batch d"],
    tol: float,
) -> ExactResult:
    """The point with the given active set, in float64, and whether the KKT conditions hold there.

    Args:
        objective: F.
        energy: f in float64.
        at_lo: the coordinates at their lower bound.
        at_hi: those at their upper bound.
        tol: see `solve_active_set`.
    """
    lo, hi = objective.geometry.bounds(objective.energy.dtype)
    free = ~(at_lo | at_hi)
    fixed = _on_bounds(at_lo, at_hi, lo, hi)
    exact, gradient, scale, solved, products, blocks = _solve(objective, energy, free, fixed, tol)
    residual, margin = violation(objective, exact, gradient, scale)
    accepted = solved & (residual <= tol)
    degenerate = (margin <= 10 * tol) & accepted

    clamped = exact.clamp(lo, hi)
    if bool(degenerate.any()) and not torch.equal(clamped, exact):
        # What is put back on a bound moves ∇f of the others.
        moved = energy.gradient(clamped)
        there, _ = violation(objective, clamped, moved, objective.scale(energy.terms(moved)))
        accepted &= there <= tol
        degenerate &= accepted
    found = at_point(objective, exact, free, gradient, scale, residual, accepted, degenerate)
    return replace(found, tries=products * found.tries, blocks=blocks)


def at_point(
    objective: Objective,
    exact: Float[Tensor, "batch d"],
    free: Bool[Tensor, "batch d"],
    gradient: Float[Tensor, "batch d"],
    scale: Float[Tensor, "batch d"],
    residual: Float[Tensor, " batch"],
    accepted: Bool[Tensor, " batch"],
    degenerate: Bool[Tensor, " batch"],
) -> ExactResult:
    """The result that consists of these points, found in one step."""
    geometry, dtype = objective.geometry, objective.energy.dtype
    clamped = exact.clamp(*geometry.bounds(dtype))
    dual = geometry.finite_dual(clamped, dtype)
    once = torch.ones_like(accepted, dtype=torch.int64)
    return ExactResult(
        value=clamped.to(dtype),
        dual=dual.to(dtype),
        unrounded=exact,
        unrounded_dual=dual,
        free=free,
        gradient=gradient,
        scale=scale,
        residual=residual.to(dtype),
        accepted=accepted,
        degenerate=degenerate,
        steps=once,
        tries=once,
    )


def within_rounding(
    objective: Objective, energy: BoundEnergy, found: ExactResult, tol: float
) -> Bool[Tensor, " batch"]:
    """Whether the rounding of ∇f itself explains what is left of the residual, (B,).

    Args:
        objective: F.
        energy: f in the precision of the points: float64 for a quadratic.
        found: the points.
        tol: bound on the residual.
    """
    z, gamma = found.unrounded, objective.regularization
    scale = objective.scale(energy.terms(found.gradient))
    # (where rounding hides far more than the tolerance it may hide that there is no minimiser at all)
    most = torch.inf if objective.unique and energy.affine else _HIDDEN
    # ρ adds up to the ends of a box, whose rounding z has however small it is.
    size = z.abs() + (objective.geometry.largest_end if gamma else 0.0)
    scale = (energy.hessian(z).rounding(size) / tol).clamp(scale, most * scale)
    total = objective.total(found.gradient, found.unrounded_dual)
    return objective.residual(z, total, scale, objective.geometry.bounds(objective.energy.dtype)) <= tol


def violation(
    objective: Objective, z: Tensor, gradient: Tensor, scale: Tensor
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The residual as `Objective.residual` defines it, and the least margin of a condition, each (B,).

    A gradient step from z ends near a bound, from either side, where the multiplier or the distance to it is small.
    """
    lo, hi = objective.geometry.bounds(objective.energy.dtype)
    step, below, above = objective.relative_step(gradient, scale), z - lo, z - hi
    residual = objective.in_units(step.clamp(above, below).abs_()).amax(-1)
    margins, pinned = (objective.in_units(end.sub_(step).abs_()) for end in (below, above)), objective.geometry.pinned
    if pinned is not None:
        margins = (margin.masked_fill(pinned, torch.inf) for margin in margins)
    low, high = (margin.amin(-1) for margin in margins)
    return residual, torch.minimum(low, high)


def _solve(
    objective: Objective, energy: BoundQuadratic, free: Tensor, fixed: Tensor, tol: float
) -> tuple[Tensor, Tensor, Tensor, Bool[Tensor, " batch"], int, FreeBlocks | None]:
    """z with (∇f)_F = 0, ∇f there and its scale, whether it was found, evaluations, and the factors."""
    operator, offset = _quadratic(objective).operator, energy.offset
    blocks = operator.free_blocks(free) if objective.unique else None
    if blocks is not None:
        found = operator.refine_on(free, offset, fixed, 0.5 * tol, blocks, objective.floor)
        assert found is not None  # there are blocks
        assert found.scale is not None  # a floor was given
        gradient = found.excess if blocks.interior else torch.where(free, found.excess, found.excess - offset)
        return found.value, gradient, found.scale, found.solved, found.products, blocks
    # Where there may be several critical points, a block that is not definite belongs to a saddle.
    refuse_saddles = energy.symmetric and not objective.unique
    inside, solved = energy.operator.solve_on(free, -energy.gradient(fixed), refuse_saddles)
    exact = torch.where(free, inside, fixed)
    gradient = energy.gradient(exact)
    return exact, gradient, objective.scale(energy.terms(gradient)), solved, 2, None


def _on_bounds(at_lo: Tensor, at_hi: Tensor, lo: Any, hi: Any) -> Tensor:
    """`lo` and `hi` on the active coordinates, 0 elsewhere."""
    zero = torch.zeros(at_lo.shape, dtype=torch.float64, device=at_lo.device)
    return torch.where(at_lo, lo, torch.where(at_hi, hi, zero))
