"""Equilibria without an objective: monotone fields, and fields of which nothing is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.objective import Objective
from implicit_bregman.operators.splitter import Splitter
from implicit_bregman.solvers.anderson import Anderson
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.chord import chord_steps
from implicit_bregman.solvers.continuation import can_continue, follow_curve
from implicit_bregman.solvers.exact.by_splitting import SplittingSteps, solve_by_splitting
from implicit_bregman.solvers.exact.dual_newton import newton
from implicit_bregman.solvers.exact.result import exact_outcome
from implicit_bregman.solvers.exact.solve import rounding_accepted, solve_exactly
from implicit_bregman.solvers.outcomes import merged, steps_left, unsolved
from implicit_bregman.solvers.splitting import Splitting
from implicit_bregman.status import Status

#: Fixed-point steps on a field, after which, at a residual above this, continuation takes over.
_STEPS, _NEAR = 300, 1e-3
#: Iterations of the splitting on a monotone field with γ > 0, after which Newton's method goes on from the start.
_MONOTONE_STEPS = 72
#: What steps with one Jacobian for all samples aim at, relative to the tolerance.
_CHORD_AIM = 0.01
#: How far from the iterates, relative to the size of z, Newton's method may end: farther is another equilibrium.
REACH = 0.05


def solve_monotone(objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver) -> Outcome:
    """One equilibrium: by a resolvent or Jacobian that all samples share, else by Newton's method from the start.

    Args:
        objective: a quadratic "F" whose H is not symmetric, known to be strongly monotone.
        dual: the start.
        solver: the settings.
    """
    method = _regularized if objective.regularization else _unregularized
    return left_to(objective, method(objective, dual, solver), dual, solver, solve_field)


def solve_field(objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver) -> Outcome:
    """Fixed-point steps, Newton's from near an equilibrium, and the continuation in γ from elsewhere."""
    method = accelerated(solver)
    if solver.trace or not can_continue(objective) or solver.max_iter <= _STEPS:
        return method.solve(objective, dual)
    outcome = replace(method, max_iter=_STEPS).solve(objective, dual)
    near = (outcome.status == Status.MAX_ITER) & (outcome.point.residual <= _NEAR)
    outcome = _sharpened(objective, outcome, near.nonzero().squeeze(-1), solver)
    outcome = continued(objective, outcome, unsolved(outcome), solver)
    return left_to(objective, outcome, dual, solver, lambda part, start, left: accelerated(left).solve(part, start))


def accelerated(solver: Solver) -> Anderson:
    """What is used where second-order steps are not: it makes MM's own steps until their limit is certain."""
    return Anderson(
        tol=solver.tol,
        max_iter=solver.max_iter,
        exact=solver.exact,
        trace=solver.trace,
        on_failure=solver.on_failure,
    )


def _unregularized(objective: Objective, dual: Tensor, solver: Solver) -> Outcome:
    """γ = 0: each sample's exact point by operator splitting; its limit where the active set is not certain."""
    energy = objective.energy.factored
    if energy is None:
        return _split(objective, dual, solver)
    tol, z = solver.tolerance(dual.dtype), objective.geometry.activation(dual)
    gradient = energy.gradient(z)
    if bool((objective.residual(z, gradient, objective.scale(energy.terms(gradient))) <= tol).all()):
        return _split(objective, dual, solver)  # which sees that nothing is to be done
    splitter = Splitter.of(energy.hessian(z))
    if not math.isfinite(splitter.condition):
        return _split(objective, dual, solver)
    target = torch.sub(z, gradient, alpha=splitter.alpha)
    steps = SplittingSteps(objective, energy.offset, splitter, target)
    found = solve_by_splitting(steps, energy, tol, solver.max_iter)
    found.tries.add_(1)
    return left_to(objective, exact_outcome(objective, found, None), found.dual, solver, _split)


def _regularized(objective: Objective, dual: Tensor, solver: Solver) -> Outcome:
    """γ > 0: by steps with one Jacobian for all samples; else by operator splitting and Newton's method."""
    direct = _by_chords(objective, dual, solver)
    if direct is not None:
        return direct
    # (Newton's method without symmetry takes a matrix to factorize)
    if objective.energy.factored is None:
        return _split(objective, dual, solver)
    first = replace(solver, max_iter=min(solver.max_iter, _MONOTONE_STEPS))
    return _from_start(objective, _split(objective, dual, first), dual, solver)


def _split(objective: Objective, dual: Tensor, solver: Solver) -> Outcome:
    return Splitting(tol=solver.tol, max_iter=solver.max_iter, exact=False).solve(objective, dual)


def _by_chords(objective: Objective, dual: Tensor, solver: Solver) -> Outcome | None:
    """γ > 0: steps with one Jacobian for all samples, where they solve every one."""
    tol = solver.tolerance(dual.dtype)
    found = chord_steps(objective.double(), dual.double(), _CHORD_AIM * tol, solver.max_iter)
    if found is None:
        return None
    near, count = found
    judged = rounding_accepted(objective, newton(objective, near, tol, 1), tol)
    if not judged.complete:
        return None
    return exact_outcome(objective, replace(judged, steps=judged.steps + count, tries=judged.tries + count + 1), None)


def left_to(
    objective: Objective,
    outcome: Outcome,
    dual: Tensor,
    solver: Solver,
    by: Callable[[Objective, Tensor, Solver], Outcome],
) -> Outcome:
    """`outcome`, with what is unsolved left to another method for the iterations that are left."""
    rows = unsolved(outcome)
    left = steps_left(solver.max_iter, outcome, rows)
    if not left:
        return outcome
    return merged(objective, outcome, rows, by(objective.select(rows), dual[rows], replace(solver, max_iter=left)))


def _from_start(objective: Objective, outcome: Outcome, dual: Tensor, solver: Solver) -> Outcome:
    """`outcome`, with what failed replaced by Newton's solution: there is one, and its steps come nearer to it."""
    rows = (outcome.status >= int(Status.MAX_ITER)).nonzero().squeeze(-1)
    if len(rows) == 0:
        return outcome
    part, tol = objective.select(rows), solver.tolerance(dual.dtype)
    found = rounding_accepted(part, newton(part, dual[rows], tol, steps_left(solver.max_iter, outcome, rows)), tol)
    good = found.accepted.nonzero().squeeze(-1)
    return merged(objective, outcome, rows[good], exact_outcome(part.select(good), found.select(good), None))


def _sharpened(objective: Objective, outcome: Outcome, rows: Int[Tensor, " some"], solver: Solver) -> Outcome:
    """`outcome` with those of its `rows` replaced that have an equilibrium nearby."""
    if len(rows) == 0:
        return outcome
    part, point = objective.select(rows), outcome.point.select(rows)
    found = solve_exactly(part, point, solver.tolerance(point.dual.dtype))
    moved = (found.value - point.value).abs().amax(-1)
    reach = REACH * (1 + point.value.abs().amax(-1))
    good = (found.accepted & (moved <= reach)).nonzero().squeeze(-1)
    return merged(objective, outcome, rows[good], exact_outcome(part.select(good), found.select(good), None))


def continued(objective: Objective, outcome: Outcome, rows: Int[Tensor, " some"], solver: Solver) -> Outcome:
    """`outcome` with those of its `rows` replaced for which continuation finds an equilibrium."""
    if len(rows) == 0:
        return outcome
    part, tol = objective.select(rows), solver.tolerance(outcome.point.dual.dtype)
    start, reached, steps = follow_curve(
        part, outcome.point.dual[rows], max(1, steps_left(solver.max_iter, outcome, rows))
    )
    outcome = replace(
        outcome,
        iterations=outcome.iterations.index_add(0, rows, steps),
        evaluations=outcome.evaluations.index_add(0, rows, steps),
    )
    kept = reached.nonzero().squeeze(-1)
    part, start = part.select(kept), objective.geometry.project_dual(start[kept]).to(outcome.point.dual.dtype)
    found = solve_exactly(part, part.evaluate(start, part.initial_step(start)), tol)
    good = found.accepted.nonzero().squeeze(-1)
    return merged(objective, outcome, rows[kept[good]], exact_outcome(part.select(good), found.select(good), None))
