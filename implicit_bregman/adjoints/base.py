"""Contract of the adjoints: how dL/dz becomes dL/dθ."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.objective import Objective
from implicit_bregman.settings import Settings
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.projection import judge
from implicit_bregman.status import Status, report_failures


@dataclass
class AdjointReport:
    """How the backward solve went; filled in by `backward()`.

    Attributes:
        status: `Status` values, (B,), or None before the backward pass: DIVERGED where the forward solve was, or where
            z is beyond the range of its precision, and the gradient is 0; INVALID_INPUT where dL/dz is not finite, and
            the gradient is NaN.
        residual: relative residual of the adjoint system, (B,).
        iterations: products with the operator, (B,); 0 for a direct solve.
        error: estimated relative error of the gradient, (B,); see `Solution.gradient_error`.
        batch: the leading shape B, where it is not flat.
    """

    status: Int[Tensor, " batch"] | None = None
    residual: Float[Tensor, " batch"] | None = None
    iterations: Int[Tensor, " batch"] | None = None
    error: Float[Tensor, " batch"] | None = None
    batch: torch.Size | None = None

    def fill(
        self, status: Tensor, residual: Tensor, iterations: Tensor, error: Tensor, usable: Tensor | None = None
    ) -> None:
        """Enter the result of a backward solve of the flat batch.

        Args:
            status: see the attribute.
            residual: see the attribute.
            iterations: see the attribute.
            error: see the attribute.
            usable: the samples that have a derivative, (B,); the others have diverged. None: all.
        """
        shape = status.shape if self.batch is None else self.batch
        if usable is not None:
            # (of a sample that diverged the gradient is 0, and tells nothing)
            status = torch.where(usable, status, int(Status.DIVERGED))
            error = torch.where(usable, error, torch.inf)
        self.status, self.residual = status.reshape(shape), residual.reshape(shape)
        self.iterations, self.error = iterations.reshape(shape), error.reshape(shape)


def _within_range(objective: Objective, outcome: Outcome) -> Outcome:
    """OVERFLOW for the samples in which the largest number of their precision stands for an entry of z beyond it."""
    if all(math.isfinite(end) for end in objective.geometry.domain):
        return outcome
    value, status = outcome.point.value, outcome.status
    solved = (status <= int(Status.TRUNCATED)) | (status == int(Status.NONUNIQUE))
    beyond = (value.abs() >= torch.finfo(value.dtype).max).any(-1) & solved
    if not bool(beyond.any()):
        return outcome
    return replace(outcome, status=torch.where(beyond, int(Status.OVERFLOW), status), complete=False)


def differentiable(outcome: Outcome) -> Bool[Tensor, " batch"] | None:
    """Which samples have a derivative, (B,): not those that have diverged or are on their way to it. None: all."""
    if outcome.complete:
        return None
    point, status = outcome.point, outcome.status
    usable = point.finite & (status != int(Status.DIVERGED)) & (status != int(Status.OVERFLOW))
    unsolved = (status == int(Status.STALLED)) | (status == int(Status.MAX_ITER))
    if bool(unsolved.any()):
        # The square of such a z overflows, and with it dL/dW of the whole batch.
        usable &= ~unsolved | (point.value.abs().amax(-1) < torch.finfo(point.value.dtype).max ** 0.5)
    return None if bool(usable.all()) else usable


def report_backward(where: str, status: Int[Tensor, " batch"], on_failure: str) -> None:
    """Warn about, or raise for, the samples whose backward solve failed.

    There is no warning of a cotangent that is not finite, as of a loss that overflowed: the gradient is NaN, which a
    `GradScaler` looks for. Nor of a sample that diverged, which the forward solve has reported.

    Raises:
        RuntimeError: if `on_failure` is "raise" and a sample failed, or its cotangent is not finite.
    """
    if not bool((status > int(Status.TRUNCATED)).any()):
        return
    known = status == int(Status.DIVERGED)
    if on_failure != "raise":
        known = known | (status == int(Status.INVALID_INPUT))
    report_failures(where, torch.where(known, int(Status.CONVERGED), status), on_failure)


@dataclass(frozen=True)
class Adjoint(Settings):
    """How the solution is differentiated."""

    def solve(
        self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver
    ) -> tuple[Outcome, Float[Tensor, "batch d"], AdjointReport]:
        """Find the critical point from y⁰ = `dual` with `solver`, and attach this adjoint's gradient to its value."""
        outcome = self.outcome(objective, dual, solver)
        value, report = self.attach(objective, outcome, dual)
        return outcome, value, report

    def outcome(self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver) -> Outcome:
        """The critical point that `solver` finds from y⁰ = `dual`, judged."""
        outcome = judge(objective, solver.solve(objective, dual), solver.tolerance(dual.dtype))
        return _within_range(objective, outcome)

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
        raise NotImplementedError

    @abstractmethod
    def attach(
        self, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, "batch d"], AdjointReport]:
        """The value of `outcome`, reached from y⁰ = `dual`, with this adjoint's gradient.

        Raises:
            TypeError: if the adjoint differentiates a run of its own (`Unrolled`).
        """
