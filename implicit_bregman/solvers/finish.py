"""Exact finishing of an iterate: by its active set (γ = 0) or by Newton's method in the dual (γ > 0).

Both need a quadratic f. Where there is no matrix that all samples share, but one critical point, projected Newton steps
stand for the active set. What is returned has been tested, so that a wrong guess costs time and nothing else.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.objective import Objective, Point
from implicit_bregman.solvers.active_set import polish, within_rounding
from implicit_bregman.solvers.base import Outcome, Trace
from implicit_bregman.solvers.dual_newton import newton
from implicit_bregman.solvers.finished import Finished
from implicit_bregman.solvers.projected_newton import projected_newton
from implicit_bregman.status import Status

#: Newton steps of one attempt (γ > 0).
_STEPS = 60


def can_finish(objective: Objective) -> bool:
    """Whether exact finishing exists for this kind of problem."""
    return objective.energy.shared is not None or (objective.unique and objective.energy.has_finish)


def finish(objective: Objective, point: Point, tol: float) -> Finished:
    """The critical point that an iterate points to, if the optimality conditions then hold.

    Args:
        objective: F, with a quadratic f.
        point: the iterates.
        tol: how far, relative to the scale of the residual, the conditions may be violated. A multiplier or a
            distance to a bound below ten times this is called degenerate.
    """
    if objective.regularization:
        found = newton(objective, point.dual, tol, _STEPS)
    else:
        found = (
            polish(objective, point.value, point.gradient, tol)
            if objective.energy.shared is not None
            else projected_newton(objective, point.value, tol, _STEPS)
        )
    return rounding_accepted(objective, found, tol)


def rounding_accepted(objective: Objective, found: Finished, tol: float) -> Finished:
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


def finished_point(objective: Objective, point: Point, found: Finished) -> Point:
    """The iterate `point` with what was found from it."""
    final = replace(
        point,
        value=found.value,
        dual=found.dual,
        next_dual=found.dual,
        gradient=found.gradient.to(found.value.dtype),
        residual=found.residual,
    )
    value = _value(objective, found)
    if value is None:
        return final
    # (not by what has changed since `point`, which may be far out)
    value = value.to(found.value.dtype)
    if objective.regularization:
        value = value + objective.potential(found.dual)
    return replace(final, objective=value)


def _value(objective: Objective, found: Finished) -> Float[Tensor, " batch"] | None:
    """f at what was found, (B,); None for a field."""
    quadratic = objective.energy.matrix_form
    if not objective.energy.symmetric:
        return None
    if quadratic is not None:
        return 0.5 * torch.linalg.vecdot(found.exact, found.gradient - quadratic.offset)
    return objective.energy.evaluate(found.value).value


def finished_status(found: Finished) -> Tensor:
    """`Status` values of samples that passed their test, (B,)."""
    # (the two are 1 and 0)
    return found.degenerate.to(torch.int64)


def exact_outcome(objective: Objective, found: Finished, trace: Trace | None) -> Outcome:
    """The result of a method that makes no MM steps, so that τ is not asked for."""
    energy, gamma, dtype = objective.energy, objective.regularization, found.value.dtype
    if trace is not None:
        value = objective.evaluate(found.dual, torch.ones_like(found.dual[:, :1])).objective
    else:
        value = _value(objective, found)
        if energy.symmetric and energy.shared is None:
            found = replace(found, tries=found.tries + 1)
    point = Point(
        dual=found.dual,
        value=found.value,
        gradient=found.gradient.to(dtype),
        objective=None if value is None else value.to(dtype),
        residual=found.residual,
        scale=found.scale.to(dtype),
        step=torch.full_like(found.value[:, :1], torch.nan),
        next_dual=found.dual,
    )
    status = finished_status(found)
    if not found.complete:
        failed = torch.full_like(status, int(Status.MAX_ITER))
        if found.stuck is not None:
            failed = torch.where(found.stuck, int(Status.STALLED), failed)
        status = torch.where(found.accepted, status, failed)
    polished = found.accepted if gamma == 0 and trace is None else torch.zeros_like(found.accepted)
    return Outcome(
        point,
        status,
        found.steps,
        found.tries,
        polished,
        found.free,
        trace,
        without_steps=True,
        complete=found.complete,
        without_potential=gamma > 0 and trace is None,
        blocks=found.blocks,
    )
