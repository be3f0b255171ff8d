"""The default: the method that fits the problem."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.energy.bound import BoundAffine
from implicit_bregman.objective import Objective
from implicit_bregman.operators.splitter import Splitter
from implicit_bregman.solvers.base import Outcome
from implicit_bregman.solvers.exact.by_splitting import SplittingSteps, solve_by_splitting
from implicit_bregman.solvers.exact.dual_splitting import split_dual
from implicit_bregman.solvers.exact.minimum import Guess, by_what_is_faster
from implicit_bregman.solvers.exact.result import ExactResult, exact_outcome
from implicit_bregman.solvers.exact.solve import rounding_accepted
from implicit_bregman.solvers.newton import Newton
from implicit_bregman.solvers.outcomes import merged
from implicit_bregman.tensors import rows_where


@dataclass(frozen=True)
class Auto(Newton):
    """The method that fits the problem: Newton's, unless another is measured to be faster.

    Args:
        tol: see `Solver`.
        max_iter: see `Newton`; iterations of the splitting count as steps.
        exact: see `Newton`.
        trace: see `Newton`.
        on_failure: see `Solver`.
    """

    def solve(self, objective: Objective, dual: Float[Tensor, "batch d"]) -> Outcome:
        """Go from `dual` to a critical point, each sample until its own stop.

        | energy | critical points | γ | method |
        | --- | --- | --- | --- |
        | quadratic, H symmetric | one | 0 | active set; operator splitting where many bounds are active |
        | quadratic, H an operator that `splits` | one | any | operator splitting, then Newton where it is not certain |
        | quadratic, H symmetric | one | > 0 | Chebyshev steps, Newton in y |
        | | several | any | MM until its limit is proved, as `Anderson`, then exact |
        | | a convex set of minimisers | 0 | interior point, then the minimiser nearest to the start |
        | quadratic, H monotone | one | 0 | operator splitting |
        | | one | > 0 | steps with one Jacobian for all; splitting; Newton in y |
        | quadratic, any H | any | any | `Anderson`; Newton in y from nearby; continuation in γ |
        | your own, convex | one | any | projected Newton, or Newton in y |
        | your own | several | any | MM, then Newton from nearby |
        | a network's field | any | any | Anderson without a safeguard, Newton by GMRES, continuation in γ |
        | any, on a simplex | one | > 0 | Newton in y |
        | quadratic, on a simplex | one | 0 | operator splitting, then the exact point on a face |
        | any, on a simplex | several | any | MM, then Newton from nearby |
        | low rank | one | any | Newton in the dual of the Bregman projection |

        All but the first two rows are Newton's own: see `Newton`.
        """
        dual, energy = dual.detach(), objective.energy
        coupled = objective.geometry.coupling is not None
        quadratic = energy.own is None and energy.affine and objective.unique and not coupled
        if not quadratic or self.trace or len(dual) == 0:
            return super().solve(objective, dual)
        gamma, tol = objective.regularization, self.tolerance(dual.dtype)
        with torch.no_grad():
            operator = energy.hessian(dual)
            if energy.factored is None and operator.splits(len(dual)):
                splitter = Splitter.of(operator, gamma * objective.geometry.strong_convexity)
                if splitter.iterations(tol) <= operator.costs.splitting_longest:
                    return self._by_splitting(objective, dual, splitter, tol)
            if not gamma and energy.symmetric and operator.has_inverse(len(dual)):
                found = by_what_is_faster(Guess(objective, dual), tol, self.max_iter)
                return self._judged(objective, dual, rounding_accepted(objective, found, tol))
            return super().solve(objective, dual)

    def _by_splitting(self, objective: Objective, dual: Tensor, splitter: Splitter, tol: float) -> Outcome:
        """By operator splitting; samples that it does not solve, or whose active set is not certain, by other means."""
        method = split_dual if objective.regularization else _split_primal
        found = method(objective, cast(BoundAffine, objective.energy), splitter, dual, tol, self.max_iter)
        outcome = exact_outcome(objective, found, None)
        rows, left = rows_where(~found.accepted), self.max_iter - int(found.steps.max())
        if len(rows) == 0 or left <= 0:
            return outcome
        rest = Newton.solve(replace(self, max_iter=left), objective.select(rows), found.dual[rows])
        return merged(objective, outcome, rows, rest)


def _split_primal(
    objective: Objective, energy: BoundAffine, splitter: Splitter, dual: Tensor, tol: float, max_iter: int
) -> ExactResult:
    """γ = 0: the critical points, accepted where the active set is certain."""
    start = objective.geometry.activation(dual)
    target = torch.add(start, energy.gradient(start), alpha=-splitter.alpha)
    steps = SplittingSteps(objective, energy.offset, splitter, target)
    found = solve_by_splitting(steps, energy, tol, max_iter)
    found.tries.add_(1)
    # (of so many coordinates some are nearer to changing sides than an estimate of the error can tell)
    return replace(found, accepted=found.accepted | (found.residual <= tol))
