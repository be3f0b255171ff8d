"""Critical points where the coordinates of C are coupled (the simplex), by what the structure of F allows."""

from __future__ import annotations

import torch
from jaxtyping import Float

from implicit_bregman.objective import Objective
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.exact.dual_newton import newton
from implicit_bregman.solvers.exact.result import exact_outcome
from implicit_bregman.solvers.fields import accelerated, left_to, solve_field
from implicit_bregman.solvers.several import after_mm
from implicit_bregman.solvers.splitting import Splitting


def solve_coupled(objective: Objective, dual: Float[torch.Tensor, "batch d"], solver: Solver) -> Outcome:
    """Where Newton's method in the dual is not the answer by itself (γ > 0 and one critical point).

    - γ = 0, a quadratic f and one critical point: operator splitting with the projection onto C, and the exact point on
      the face that it settles on.
    - an objective, and γ > 0 or a quadratic f: MM's steps, then Newton's, or the face's exact point, from nearby.
    - γ > 0 without an objective: Newton's method where there is one equilibrium; Anderson's steps, then Newton's from
      nearby.
    - else MM's own steps, accelerated where F has one critical point.
    """
    gamma, energy = objective.regularization, objective.energy
    if not gamma and energy.affine and objective.unique and not solver.trace:
        split = Splitting(tol=solver.tol, max_iter=solver.max_iter, on_failure=solver.on_failure)
        outcome = split.solve(objective, dual)
        return left_to(objective, outcome, dual, solver, lambda part, start, left: accelerated(left).solve(part, start))
    if energy.symmetric and (gamma or energy.affine) and not solver.trace:
        return after_mm(objective, dual, solver)
    if gamma and not energy.symmetric:
        if not objective.unique or solver.trace:
            return solve_field(objective, dual, solver)
        outcome = exact_outcome(objective, newton(objective, dual, solver.tolerance(dual.dtype), solver.max_iter), None)
        return left_to(objective, outcome, dual, solver, solve_field)
    return accelerated(solver).solve(objective, dual)
