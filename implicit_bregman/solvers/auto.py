"""The default: the method that fits the problem."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.energy.bound import BoundAffine
from implicit_bregman.objective import Objective
from implicit_bregman.operators.splitter import Splitter
from implicit_bregman.solvers.base import Outcome
from implicit_bregman.solvers.exact.by_splitting import solve_by_splitting
from implicit_bregman.solvers.exact.minimum import Guess, by_splitting
from implicit_bregman.solvers.exact.result import exact_outcome
from implicit_bregman.solvers.exact.solve import rounding_accepted
from implicit_bregman.solvers.newton import Newton
from implicit_bregman.solvers.outcomes import merged


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
        | | one | > 0 | Chebyshev steps, Newton in y |
        | | several | any | MM until its limit is proved, as `Anderson`, then exact |
        | | a convex set of minimisers | 0 | interior point, then the minimiser nearest to the start |
        | quadratic, H monotone | one | 0 | operator splitting |
        | | one | > 0 | steps with one Jacobian for all; splitting; Newton in y |
        | quadratic, any H | any | any | `Anderson`; Newton in y from nearby; continuation in γ |
        | one's own, convex | one | any | projected Newton, or Newton in y |
        | one's own | several | any | MM, then Newton from nearby |
        | low rank | one | any | Newton in the dual of the Bregman projection |

        All but the first row are Newton's own: see `Newton`.
        """
        dual, energy = dual.detach(), objective.energy
        if self._splits(objective, dual):
            with torch.no_grad():
                return self._by_splitting(objective, dual)
        quadratic = energy.own is None and energy.factored is not None and energy.symmetric
        if not quadratic or self.trace or objective.regularization or not objective.unique or len(dual) == 0:
            return super().solve(objective, dual)
        with torch.no_grad():
            if not energy.hessian(dual).has_inverse(len(dual)):
                return super().solve(objective, dual)
            guess, tol = Guess(objective, dual), self.tolerance(dual.dtype)
            splitter = guess.splitter()
            if splitter is None:
                return self._minimised(objective, dual, guess)
            found = rounding_accepted(objective, by_splitting(guess, splitter, tol, self.max_iter), tol)
            return self._judged(objective, dual, found)

    def _splits(self, objective: Objective, dual: Tensor) -> bool:
        """Whether operator splitting is to be tried for an operator that is no matrix."""
        energy = objective.energy
        if self.trace or objective.regularization or len(dual) == 0 or not (energy.affine and objective.unique):
            return False
        return energy.own is None and energy.factored is None and energy.hessian(dual).splits(len(dual))

    def _by_splitting(self, objective: Objective, dual: Tensor) -> Outcome:
        """By operator splitting; samples whose active set is then not certain, by other means."""
        energy, start = objective.energy, objective.geometry.activation(dual)
        assert isinstance(energy, BoundAffine)
        splitter, tol = Splitter.of(energy.hessian(dual)), self.tolerance(dual.dtype)
        target = torch.add(start, energy.gradient(start), alpha=-splitter.alpha)
        found, _ = solve_by_splitting(objective, energy, splitter, target, tol, self.max_iter)
        # (of so many coordinates some are nearer to changing sides than a loose tolerance tells)
        near = found.residual <= tol
        found = replace(found, accepted=found.accepted | near, degenerate=found.degenerate | (near & ~found.accepted))
        outcome = exact_outcome(objective, found, None)
        rows, left = (~found.accepted).nonzero().squeeze(-1), self.max_iter - int(found.steps.max())
        if len(rows) == 0 or left <= 0:
            return outcome
        rest = Newton.solve(replace(self, max_iter=left), objective.select(rows), found.dual[rows])
        return merged(objective, outcome, rows, rest)
