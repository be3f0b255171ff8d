"""The exact solve that an iterate points to: by its active set (γ = 0) or by Newton's method in the dual (γ > 0).

Both need a quadratic f. Where it is not `factored`, but has one critical point, projected Newton steps stand for the
active set. What is returned has been tested, so that a wrong guess costs time and nothing else.
"""

from __future__ import annotations

from dataclasses import replace

from implicit_bregman.objective import Objective, Point
from implicit_bregman.solvers.exact.active_set import solve_active_set, within_rounding
from implicit_bregman.solvers.exact.dual_newton import newton
from implicit_bregman.solvers.exact.face import solve_on_face
from implicit_bregman.solvers.exact.projected_newton import projected_newton
from implicit_bregman.solvers.exact.result import ExactResult

#: Newton steps of one attempt (γ > 0).
_STEPS = 60


def can_solve_exactly(objective: Objective) -> bool:
    """Whether an exact solve exists for this kind of problem."""
    if objective.geometry.coupling is not None and not objective.regularization:
        return objective.unique and objective.energy.affine
    return objective.energy.factored is not None or (objective.unique and objective.energy.exact_by_newton)


def solve_exactly(objective: Objective, point: Point, tol: float) -> ExactResult:
    """The critical point that an iterate points to, if the optimality conditions then hold.

    Args:
        objective: F, with a quadratic f.
        point: the iterates.
        tol: how far, relative to the scale of the residual, the conditions may be violated. A multiplier or a
            distance to a bound below ten times this is called degenerate.
    """
    if objective.regularization:
        found = newton(objective, point.dual, tol, _STEPS)
    elif objective.geometry.coupling is not None:
        found = solve_on_face(objective, point.value, tol)
    else:
        found = (
            solve_active_set(objective, point.value, point.gradient, tol)
            if objective.energy.factored is not None
            else projected_newton(objective, point.value, tol, _STEPS)
        )
    return rounding_accepted(objective, found, tol)


def rounding_accepted(objective: Objective, found: ExactResult, tol: float) -> ExactResult:
    """What was found; accepted also where F has one critical point and rounding explains all that is left.

    Args:
        objective: F.
        found: the points.
        tol: bound on the residual.
    """
    if found.complete or not objective.unique:
        return found
    energy = objective.energy.double() if objective.energy.affine else objective.energy
    return replace(found, accepted=found.accepted | within_rounding(objective, energy, found, tol))
