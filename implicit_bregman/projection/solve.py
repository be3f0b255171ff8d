"""The limit of MM on a low-rank energy, found in the r-dimensional dual, and the statuses that it may have."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.objective import Objective, Point
from implicit_bregman.projection.newton import Minimiser, minimise
from implicit_bregman.projection.problem import FAR, HUGE
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.tracing import TraceLog
from implicit_bregman.status import Status
from implicit_bregman.tensors import rows_where

if TYPE_CHECKING:
    from implicit_bregman.projection.energy import BoundEquations


def project(energy: BoundEquations, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver) -> Outcome:
    """The limit of MM from y⁰ = `dual` on a low-rank energy, or the softened projection where that is infeasible.

    Args:
        energy: f.
        objective: F, of this f.
        dual: y⁰, (B, d).
        solver: `tol` bounds the residual, `max_iter` the Newton steps; with `trace` every step is recorded.
    """
    with torch.no_grad():
        gamma, tol = objective.regularization, solver.tolerance(dual.dtype)
        log = TraceLog(objective, dual) if solver.trace else None
        start = torch.zeros_like(dual, dtype=torch.float64) if gamma else dual.detach().double()
        problem = energy.problem(objective.geometry, start, gamma, tol)
        found = minimise(problem, solver.max_iter, None if log is None else log.add_duals)
        if not gamma:
            found = _soften_infeasible(energy, objective, start, found, solver, log)
        return _outcome(energy, objective, found, solver, log)


def _soften_infeasible(
    energy: BoundEquations,
    objective: Objective,
    start: Tensor,
    found: Minimiser,
    solver: Solver,
    log: TraceLog | None,
) -> Minimiser:
    """The samples whose system has no solution, solved once more in the softened form and marked `refuted`.

    That it has none is proved: by a hyperplane, or by dependent columns that ask for different things.
    """
    tol = solver.tolerance(energy.dtype)
    infeasible = found.refuted | energy.is_inconsistent(tol) | energy.is_impossible(objective.geometry)
    rows = rows_where(infeasible)
    if len(rows) == 0:
        return found
    part = energy.select(rows)
    softness = float(energy.softness.detach().double())
    softened = part.problem(objective.geometry, start[rows], softness, tol)
    record = None if log is None else lambda dual, index: log.add_duals(dual, rows[index])
    again = minimise(softened, solver.max_iter, record)
    before = found.select(rows)
    again = replace(
        again,
        steps=again.steps + before.steps,
        evaluations=again.evaluations + before.evaluations,
        refuted=~again.limited,
    )
    return replace(found, refuted=infeasible).replace_rows(rows, again)


def _outcome(
    energy: BoundEquations, objective: Objective, found: Minimiser, solver: Solver, log: TraceLog | None
) -> Outcome:
    geometry, gamma, tol = objective.geometry, objective.regularization, solver.tolerance(energy.dtype)
    error, exact, point = _judged(energy, objective, found.dual)
    status = torch.zeros_like(found.steps)
    if not gamma:
        thin = energy.is_thin(geometry, point.value, tol)
        status = torch.where(thin, int(Status.DEGENERATE), status)
    solved, unsolved = error <= tol, torch.where(found.limited, int(Status.MAX_ITER), int(Status.STALLED))
    status = torch.where(solved, status, unsolved)
    status = torch.where(found.refuted, int(Status.INFEASIBLE), status)
    # (beyond FAR the dual of the solution overflows float64)
    beyond = (torch.linalg.vector_norm(found.dual, torch.inf, -1) >= FAR) & ~(solved | found.refuted)
    beyond |= torch.linalg.vector_norm(exact, torch.inf, -1) > torch.finfo(energy.dtype).max
    status = torch.where(beyond, int(Status.OVERFLOW), status)
    free = torch.ones_like(point.value, dtype=torch.bool)
    return Outcome(
        point,
        status,
        found.steps,
        found.evaluations,
        torch.zeros_like(beyond),
        free,
        None if log is None else log.trace(),
        without_steps=True,
        complete=bool((status <= int(Status.DEGENERATE)).all()),
        without_potential=gamma > 0,
    )


def _judged(energy: BoundEquations, objective: Objective, dual: Tensor) -> tuple[Tensor, Tensor, Point]:
    """How far z is from solving Vᵀz = β (γ > 0: from being critical), relative to the terms, (B,); z; and the result.

    The error and z are in float64; the result is rounded once to the samples' precision.
    """
    gamma, geometry, dtype = objective.regularization, objective.geometry, energy.dtype
    target, equations, sizes = energy.target.detach().double(), energy.exact, energy.exact.magnitude()
    exact, nearest = geometry.activation(dual).clamp(-HUGE, HUGE), geometry.project_dual(dual)
    image = equations.product(exact, adjoint=True)
    miss = image - target
    total = gradient = equations.product(miss)
    terms = torch.maximum(sizes.product(exact.abs(), adjoint=True), target.abs())
    scale = 1 + sizes.product(terms)
    if gamma:
        error = ((gradient + gamma * dual).abs() / scale).amax(-1)
        total = gradient + gamma * nearest
    else:
        error = (miss.abs() / (energy.lengths + terms)).amax(-1)
    largest = torch.finfo(dtype).max
    low, high = geometry.bounds(dtype)
    rounded = nearest.clamp(*geometry.dual_bounds(dtype)).to(dtype)
    point = Point(
        dual=rounded,
        value=exact.clamp(-largest, largest).clamp(low, high).to(dtype),
        gradient=gradient.clamp(-largest, largest).to(dtype),
        # (not by what is left of Vᵀz where β is much larger)
        objective=0.5 * torch.linalg.vecdot(image, miss - target).to(dtype),
        residual=objective.residual(exact, total, scale).to(dtype),
        scale=scale.to(dtype),
        step=torch.full_like(rounded[:, :1], torch.nan),
        next_dual=rounded,
    )
    return error, exact, point


def judge(energy: BoundEquations, objective: Objective, outcome: Outcome, tol: float) -> Outcome:
    """The outcome of any solver, with the statuses that a low-rank system has for γ = 0.

    INFEASIBLE where it turned out to have no solution: where dependent columns of V ask for different things, and where
    MM ended at a minimiser of f on C with an active bound, so that the projected residual vanishes and ∇f does not.
    DEGENERATE by the rank of V, not by multipliers: ∇f is 0 at every solution, however many of its coordinates are next
    to a bound.
    """
    if objective.regularization or outcome.without_steps:  # (`project` has judged its own)
        return outcome
    point = outcome.point
    done = (outcome.status == Status.CONVERGED) | (outcome.status == Status.DEGENERATE)
    thin = energy.is_thin(objective.geometry, point.value, tol)
    status = torch.where(thin, int(Status.DEGENERATE), int(Status.CONVERGED))
    sizes, target = energy.equations.magnitude(), energy.target.detach()
    terms = energy.lengths.to(target.dtype) + torch.maximum(
        sizes.product(point.value.abs(), adjoint=True), target.abs()
    )
    error = (point.gradient.abs() / (1 + sizes.product(terms))).amax(-1)
    solvable = ~(energy.is_inconsistent(10 * tol) | energy.is_impossible(objective.geometry)) & (error <= 10 * tol)
    status = torch.where(solvable, status, int(Status.INFEASIBLE))
    return replace(outcome, status=torch.where(done, status, outcome.status))
