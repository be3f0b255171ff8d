"""Minimisers that may not be the only ones: of a user's energy, and of a convex f of whose H there is no matrix."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.objective import Objective, Point
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.exact.dual_newton import newton
from implicit_bregman.solvers.exact.face import solve_on_face
from implicit_bregman.solvers.exact.projected_newton import projected_newton
from implicit_bregman.solvers.exact.result import ExactResult, exact_outcome
from implicit_bregman.solvers.exact.singular import has_others, minimised_by_products, off_bounds
from implicit_bregman.solvers.fields import REACH, accelerated
from implicit_bregman.solvers.loop import run
from implicit_bregman.solvers.outcomes import merged, steps_left
from implicit_bregman.status import Status

#: MM steps on a convex energy without a matrix, before a minimiser is looked for from there.
_CONVEX_STEPS = 1000
#: Residuals, and the numbers of MM steps, at which MM hands an energy that is not convex over to Newton steps, one
#: after the other if these are refused.
_STAGES = ((1e-3, 300), (1e-5, 1000), (1e-7, 3000))


def limit_by_products(objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver) -> Outcome:
    """γ = 0 and a convex f of whose H there is no matrix: MM's limit, or a minimiser near its iterates."""
    tol, first = solver.tolerance(dual.dtype), min(solver.max_iter, _CONVEX_STEPS)
    outcome = replace(accelerated(solver), max_iter=first, exact=False).solve(objective, dual)
    off = off_bounds(objective, outcome.point.value, tol)
    limits = (outcome.status == Status.CONVERGED) | (outcome.status == Status.DEGENERATE)
    several = limits & has_others(objective, off)
    outcome = replace(
        outcome,
        status=torch.where(several, int(Status.NONUNIQUE), outcome.status),
        exact=several,  # (so that its derivative is that on its free set)
        free=off,
    )
    # (so few steps cannot tell what runs away)
    rows = (~several & torch.isfinite(outcome.point.value.sum(-1))).nonzero().squeeze(-1)
    left = solver.max_iter - first
    if len(rows) == 0 or left == 0:
        return outcome
    part = objective.select(rows)
    found, status = minimised_by_products(part, outcome.point.value[rows], tol, left)
    return merged(objective, outcome, rows, replace(exact_outcome(part, found, None), status=status))


def after_mm(objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver) -> Outcome:
    """An energy that may have several critical points, and no certificate: Newton only from nearby."""
    tol = solver.tolerance(dual.dtype)
    outcome: Outcome | None = None
    rows = torch.arange(len(dual), device=dual.device)
    for near, steps in (*(stage for stage in _STAGES if stage[0] > tol), (tol, solver.max_iter)):
        left = _left(solver, outcome, rows)
        # (of few steps, Newton's method needs its share)
        most = left if near == tol else min(steps, (left + 1) // 2)
        stage = replace(solver, tol=near, max_iter=most)
        walked = run(stage, objective.select(rows), dual[rows], None)
        outcome = walked if outcome is None else merged(objective, outcome, rows, walked)
        alive = walked.status != Status.DIVERGED
        left = _left(solver, outcome, rows)
        if near == tol or left == 0:
            break
        found, sure = _from_nearby(objective.select(rows), walked.point, tol, left)
        sure &= alive
        spent = outcome.iterations.index_add(0, rows, torch.where(sure, 0, found.steps))
        tried = outcome.evaluations.index_add(0, rows, found.tries)
        outcome = replace(outcome, iterations=spent, evaluations=tried)
        kept = sure.nonzero().squeeze(-1)
        good = exact_outcome(objective.select(rows[kept]), found.select(kept), None)
        good = replace(good, evaluations=torch.ones_like(good.evaluations))  # the rest is counted above
        outcome = merged(objective, outcome, rows[kept], good)
        rows = rows[~sure & alive]
        dual = outcome.point.dual
        if len(rows) == 0 or _left(solver, outcome, rows) == 0:
            break
    assert outcome is not None
    return outcome


def _left(solver: Solver, outcome: Outcome | None, rows: Tensor) -> int:
    return solver.max_iter if outcome is None else steps_left(solver.max_iter, outcome, rows)


def _from_nearby(objective: Objective, point: Point, tol: float, max_steps: int) -> tuple[ExactResult, Tensor]:
    """Newton steps from MM's iterates, and whether their end is near them and not higher, (B,)."""
    if objective.regularization:
        found = newton(objective, point.dual, tol, max_steps)
    elif objective.geometry.coupling is not None:
        found = solve_on_face(objective, point.value, tol, corrections=0)
    else:
        found = projected_newton(objective, point.value, tol, max_steps)
    size = 1 + point.value.abs().amax(-1)
    moved = (found.value - point.value).abs().amax(-1)
    reached = objective.evaluate(found.dual, objective.initial_step(found.dual))
    rise, noise = objective.increase(point, reached)
    tries = found.tries + 1
    return replace(found, tries=tries), found.accepted & (moved <= REACH * size) & (rise <= noise)
