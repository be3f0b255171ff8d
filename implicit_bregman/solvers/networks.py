"""Equilibria of a network's field, of which nothing is known but its values and its derivatives."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float

from implicit_bregman.objective import Objective
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.continuation import can_continue
from implicit_bregman.solvers.exact.active_set import within_rounding
from implicit_bregman.solvers.exact.dual_newton import newton
from implicit_bregman.solvers.exact.normal_map import normal_newton
from implicit_bregman.solvers.exact.result import exact_outcome
from implicit_bregman.solvers.fields import accelerated, continued, left_to
from implicit_bregman.solvers.fixed_point import anderson_steps, path_outcome
from implicit_bregman.solvers.outcomes import merged, unsolved

#: Anderson's steps for γ > 0 and for γ = 0, then Newton's products, and steps along the curve.
_STEPS, _PRODUCTS, _CURVE = (60, 20), 1000, 200


def solve_network(objective: Objective, dual: Float[torch.Tensor, "batch d"], solver: Solver) -> Outcome:
    """Any equilibrium of a field: Anderson's steps, then Newton's by GMRES; the rest with a safeguard."""
    tol, first = solver.tolerance(dual.dtype), min(solver.max_iter, _STEPS[objective.regularization == 0])
    point, evaluations = anderson_steps(objective, dual, tol, first)
    outcome = path_outcome(objective, point, evaluations, tol)
    rows, left = unsolved(outcome), solver.max_iter - first
    if len(rows) == 0 or left == 0:
        return outcome
    part = objective.select(rows)
    if objective.regularization:
        found = newton(part, point.dual[rows], tol, min(left, _PRODUCTS))
    else:
        found = normal_newton(part, point.value[rows], tol, min(left, _PRODUCTS))
    found = replace(found, accepted=found.accepted | within_rounding(part, part.energy, found, tol))
    good = found.accepted.nonzero().squeeze(-1)
    outcome = replace(outcome, iterations=outcome.iterations.index_add(0, rows, found.steps))
    outcome = replace(outcome, evaluations=outcome.evaluations.index_add(0, rows, found.tries))
    solved = exact_outcome(part.select(good), found.select(good), None)
    nothing = torch.zeros_like(solved.iterations)
    solved = replace(solved, iterations=nothing, evaluations=nothing)
    outcome = merged(objective, outcome, rows[good], solved)
    if can_continue(objective):
        most = min(solver.max_iter, int(outcome.iterations.max()) + _CURVE)
        outcome = continued(objective, outcome, unsolved(outcome), replace(solver, max_iter=most))
    return left_to(objective, outcome, dual, solver, lambda part, start, rest: accelerated(rest).solve(part, start))
