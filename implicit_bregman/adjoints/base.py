"""Contract of the adjoints: how dL/dz becomes dL/dθ."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.backward import AdjointReport
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.objective import Objective
from implicit_bregman.settings import Settings
from implicit_bregman.solvers import Solver, solver_named
from implicit_bregman.solvers.base import Outcome
from implicit_bregman.status import Status


@dataclass(frozen=True)
class Adjoint(Settings):
    """How the solution is differentiated.

    Attributes:
        default_solver: what solver="auto" means with it, a name or an instance.
        follows_limit: whether it differentiates the limit of MM, which does not change where the critical point is
            unique; else the path, a number of steps from the start (`Unrolled`).
        is_one_solve: whether its backward pass is the solve of one linear system at the limit, and nothing else.
    """

    is_one_solve: ClassVar[bool] = False
    default_solver: ClassVar[str | Solver] = "auto"
    follows_limit: ClassVar[bool] = True

    def solver_for(self, solver: str | Solver) -> Solver:
        """The solver that a name stands for with this adjoint; an instance passes through.

        Raises:
            ValueError: for an unknown name.
            TypeError: for anything that is neither a name nor a solver.
        """
        return solver_named(self.default_solver if isinstance(solver, str) and solver == "auto" else solver)

    def accepts(self, solver: Solver, energy: BoundEnergy) -> None:
        """Refuse a solver or an energy that it does not go with.

        Raises:
            ValueError: naming the remedy.
        """

    def accepts_iterate(self, objective: Objective) -> None:
        """Refuse to differentiate at a given iterate, of which it is not known from where it was reached.

        Raises:
            ValueError: if the derivative depends on the start.
        """

    def solve(
        self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver
    ) -> tuple[Outcome, Float[Tensor, "batch d"], AdjointReport]:
        """Find the critical point from y⁰ = `dual` with `solver`, and attach this adjoint's gradient to its value.

        Whoever calls it has asked `accepts`.
        """
        outcome = self.outcome(objective, dual, solver)
        value, report = self.attach(objective, outcome, dual)
        return outcome, value, report

    def outcome(self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver) -> Outcome:
        """The critical point that `solver` finds from y⁰ = `dual`, judged."""
        solve = solver.solve_with_inverse if self.uses_inverse(objective, solver) else solver.solve
        outcome, own = solve(objective, dual), objective.energy.own
        if own is not None:
            outcome = own.judge(objective, outcome, solver.tolerance(dual.dtype))
        return _within_range(objective, outcome)

    def uses_inverse(self, objective: Objective, solver: Solver) -> bool:
        """Whether it can use the solver's estimate of the inverse Jacobian, and the solver has one."""
        return False

    def record(
        self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver
    ) -> tuple[Outcome, tuple[Tensor, ...]]:
        """Solve without gradient, and write down what `replay` needs: tensors with a row for each sample.

        Raises:
            RuntimeError: if the adjoint cannot be taken apart like this.
        """
        raise RuntimeError(
            f"adjoint {type(self).__name__} does not run inside torch.func transforms (vmap, grad, jvp, jacrev, ...) "
            'and forward mode: use adjoint="implicit"'
        )

    def replay(
        self, objective: Objective, record: tuple[Tensor, ...], dual: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        """The value of a recorded solve, attached to an objective and a start that transforms follow."""
        raise TypeError(f"{type(self).__name__} has recorded nothing")

    @abstractmethod
    def attach(
        self, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, "batch d"], AdjointReport]:
        """The value of `outcome`, reached from y⁰ = `dual`, with this adjoint's gradient.

        Raises:
            TypeError: if the adjoint differentiates a run of its own (`Unrolled`, `Shine`).
        """


def _within_range(objective: Objective, outcome: Outcome) -> Outcome:
    """OVERFLOW for the samples in which the largest number of their precision stands for an entry of z beyond it."""
    if objective.geometry.is_bounded:
        return outcome
    value, status = outcome.point.value, outcome.status
    solved = (status <= int(Status.TRUNCATED)) | (status == int(Status.NONUNIQUE))
    beyond = (value.abs().amax(-1) >= torch.finfo(value.dtype).max) & solved
    if not bool(beyond.any()):
        return outcome
    return replace(outcome, status=torch.where(beyond, int(Status.OVERFLOW), status), complete=False)
