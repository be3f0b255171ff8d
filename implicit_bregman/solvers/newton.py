"""Newton's method, in the form that the problem's structure allows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.objective import Objective
from implicit_bregman.solvers.base import Outcome, Solver, Trace
from implicit_bregman.solvers.coupled import solve_coupled
from implicit_bregman.solvers.exact.dual_newton import newton
from implicit_bregman.solvers.exact.minimum import Guess, by_active_set, sharpen
from implicit_bregman.solvers.exact.projected_newton import projected_newton
from implicit_bregman.solvers.exact.result import ExactResult, exact_outcome
from implicit_bregman.solvers.exact.singular import failure, far_from, limit_of_mm
from implicit_bregman.solvers.exact.solve import rounding_accepted
from implicit_bregman.solvers.fields import accelerated, solve_field, solve_monotone
from implicit_bregman.solvers.loop import run
from implicit_bregman.solvers.networks import solve_network
from implicit_bregman.solvers.outcomes import joined, merged
from implicit_bregman.solvers.several import after_mm, limit_by_products
from implicit_bregman.solvers.tracing import TraceLog, last
from implicit_bregman.status import Status


@dataclass(frozen=True)
class Newton(Solver):
    """Newton's method; for a quadratic energy with one factorization for the whole batch, forward and backward.

    - γ = 0, one critical point: a few projected gradient steps guess the active set, or an operator splitting where
      these have not settled. A semismooth Newton method corrects the set until it satisfies the optimality conditions,
      through the inverse of −W that all samples and the adjoint share. Where d is too large for the number of samples,
      and for an energy of your own: projected Newton steps by conjugate gradients, with a line search on the objective.
    - γ > 0, one critical point: for a quadratic energy a few Chebyshev steps, where few are enough (γ no small part of
      λ_max(−W)). Then Newton's method in coordinates that suit both y and z, where γ → 0 takes no more steps. It uses
      conjugate gradients, preconditioned with the shared factor where γ is small, or one factorization per sample where
      that is faster, with a line search on the objective.
    - γ = 0 and a quadratic energy that is convex, but not strictly (−W ⪰ 0 up to rounding, or declared so): steps of an
      interior-point method, whose number hardly depends on the problem, with one factorization each per sample. The
      minimiser is then proved to be the only one, or replaced by the one that is nearest to the start (`NONUNIQUE`).
      The same steps serve the samples whose active set does not settle.
    - Several critical points: MM steps first. For a quadratic energy they go on until it is proved which critical point
      MM converges to (as in `solvers.Anderson`). For an energy of your own they go on until MM's residual is small, or
      for some hundred steps. A Newton point then counts if it is near and not higher, and if the method met no negative
      curvature. Otherwise MM continues.
    - `weight="low_rank"`: in the r-dimensional dual of the Bregman projection.
    - Without an objective (monotone or general W): where the equilibrium is known to be unique, for γ > 0 Newton steps
      with one Jacobian for the whole batch as far as they pay, else `solvers.Splitting`. Elsewhere 300 steps of
      `solvers.Anderson`, then Newton's method from near an equilibrium. Where the steps come near none, the solver
      follows a curve of equilibria from a large γ down to the given one.
    - A `Field`: steps of Anderson's method without a safeguard, at most 60, or 20 for γ = 0. Then Newton's method with
      GMRES, on the equation in y for γ > 0 and on the normal map for γ = 0. For γ > 0 then the continuation in γ.
      `solvers.Anderson` solves the rest.

    Quadratic problems in float32 finish with steps in float64, so the result loses no digits to the condition number.

    Args:
        tol: see `Solver`.
        max_iter: bound on the number of steps of all kinds together: active sets solved for, Newton, interior-point
            and MM steps. One of them costs at most a factorization per sample, or 3d + 20 products with the Hessian,
            and 25 evaluations of f, so that max_iter bounds the work. For γ > 0 it also bounds the products inside
            all Newton steps together. (The last steps to a minimiser that is not unique do not count. They are at most
            300.)
        exact: see `Solver`; it matters where MM steps are made.
        trace: see `Solver`. For γ = 0 the steps traced are projected Newton steps.
        on_failure: see `Solver`.
    """

    def solve(self, objective: Objective, dual: Float[Tensor, "batch d"]) -> Outcome:
        """Go from `dual` to a critical point, each sample until its own stop."""
        dual, energy = dual.detach(), objective.energy
        if energy.own is not None:
            return energy.own.solve(objective, dual, self)
        with torch.no_grad():
            parts = None if self.trace or objective.unique else energy.apart()
            if parts:
                return self._one_by_one(objective, parts, dual)
            if energy.is_field and not self.trace:
                return solve_network(objective, dual, self)
            by_newton = objective.regularization and objective.unique and energy.symmetric
            if objective.geometry.coupling is not None and not by_newton:
                return solve_coupled(objective, dual, self)
            if len(dual) == 0 or not energy.symmetric:
                monotone = len(dual) and not self.trace and objective.unique and energy.affine
                return solve_monotone(objective, dual, self) if monotone else solve_field(objective, dual, self)
            if objective.unique:
                return self._judged(objective, dual, *self._newton_steps(objective, dual))
            if energy.affine and objective.convex and not self.trace:
                if energy.factored is None:
                    return limit_by_products(objective, dual, self)
                found, status = limit_of_mm(objective, dual, self.tolerance(dual.dtype), self.max_iter)
                return replace(exact_outcome(objective, found, None), status=status)
            if energy.affine or self.trace:
                return accelerated(self).solve(objective, dual)
            return after_mm(objective, dual, self)

    def advice(self, status: Status, dtype: torch.dtype) -> str:
        return "" if status == Status.MAX_ITER else super().advice(status, dtype)

    def _one_by_one(self, objective: Objective, parts: list[BoundEnergy], dual: Tensor) -> Outcome:
        """Each sample by the matrix that it has for itself: it may have one critical point where others have not."""
        geometry, gamma = objective.geometry, objective.regularization
        alone = [Objective(part, geometry, gamma) for part in parts]
        return joined([(one, self.solve(one, start)) for one, start in zip(alone, dual.split(1), strict=True)])

    def _judged(self, objective: Objective, dual: Tensor, found: ExactResult, trace: Trace | None = None) -> Outcome:
        """The outcome, with the samples that were given up left to MM where its steps may lead further."""
        outcome = exact_outcome(objective, found, trace)
        if found.complete or (objective.regularization and objective.energy.affine):
            return outcome
        final = _is_final(objective, dual, found)
        if bool(final.any()):
            status = failure(objective, found, self.max_iter)
            outcome = replace(outcome, status=torch.where(final, status, outcome.status))
        rows = (~found.accepted & ~final & (found.steps < self.max_iter)).nonzero().squeeze(-1)
        if len(rows) == 0:
            return outcome
        left = self.max_iter - int(found.steps[rows].max())
        rest = run(replace(self, trace=False, max_iter=left), objective.select(rows), dual[rows], None)
        return merged(objective, outcome, rows, rest)

    def _newton_steps(self, objective: Objective, dual: Tensor) -> tuple[ExactResult, Trace | None]:
        tol, energy = self.tolerance(dual.dtype), objective.energy.factored
        log = TraceLog(objective, dual) if self.trace else None
        if objective.regularization:
            found = newton(objective, dual, tol, self.max_iter, None if log is None else log.add_duals)
            if not found.complete:
                # Newton's own test is stricter than the residual, which is what counts in the end.
                found = replace(found, accepted=found.accepted | (found.residual <= tol))
        elif log is None and energy is not None and energy.operator.has_inverse(len(dual)):
            guess = Guess(objective, dual)
            sharpen(guess, self.max_iter)
            found = by_active_set(guess, tol, self.max_iter)
        else:
            start = objective.geometry.activation(dual)
            found = projected_newton(objective, start, tol, self.max_iter, None if log is None else log.add_values)
        found = rounding_accepted(objective, found, tol)
        if log is None:
            return found, None
        # The last row of a trace is the result, also in the last digit, which may depend on the size of the batch.
        trace = log.trace()
        dual = last(trace.dual, found.steps)
        point = objective.evaluate(dual, torch.ones_like(dual[:, :1]))
        return replace(found, dual=dual, value=point.value, residual=point.residual), trace


def _is_final(objective: Objective, dual: Tensor, found: ExactResult) -> Bool[Tensor, " batch"]:
    """The failures that MM would not mend: γ = 0 and a quadratic f, or a sample that runs away, (B,)."""
    failed = ~found.accepted & torch.isfinite(found.unrounded.sum(-1))
    if objective.regularization:
        return torch.zeros_like(failed)
    if objective.energy.affine:
        return failed
    return failed & (found.unrounded.abs().amax(-1) > far_from(objective.geometry.activation(dual)))
