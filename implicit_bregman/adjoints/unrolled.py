"""Differentiation through a fixed number of MM steps (Problem 2.2)."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from implicit_bregman.adjoints.base import Adjoint
from implicit_bregman.backward import AdjointReport
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.objective import Objective
from implicit_bregman.settings import check_count
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.status import Status


@dataclass(frozen=True)
class Unrolled(Adjoint):
    """z_L after L MM steps, differentiated through them: an L-layer weight-tied Bregman network.

    The derivative treats the step size τ as a constant. A sample that overflows stays at its last finite iterate, with
    the status DIVERGED and a derivative of 0. The value is z_L whatever the solver, so MM is the only one accepted. Of
    its settings only `on_failure` has a meaning here, since the number of steps is given.

    Args:
        steps: L.
        checkpoint: keep about 2√L iterates instead of L and recompute the rest in the backward pass.
        last: differentiate only through the last so many steps (truncated). None: through all.

    Raises:
        TypeError: for an unknown setting.
        ValueError: for an impossible one.
    """

    default_solver: ClassVar[str | Solver] = "mm"
    follows_limit: ClassVar[bool] = False

    steps: int = 10
    checkpoint: bool = False
    last: int | None = None

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        super().__post_init__()
        check_count("steps", self.steps)
        if self.last is not None:
            check_count("last", self.last)
            if self.last > self.steps:
                raise ValueError(f"last must not exceed steps = {self.steps}, got {self.last}")
        if not isinstance(self.checkpoint, bool):
            raise ValueError(f"checkpoint must be True or False, got {self.checkpoint!r}")

    def accepts(self, solver: Solver, energy: BoundEnergy) -> None:
        if not solver.is_mm:
            raise ValueError(f'adjoint Unrolled is MM itself: use solver="auto" or MM, got {type(solver).__name__}')

    def solve(
        self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver
    ) -> tuple[Outcome, Float[Tensor, "batch d"], AdjointReport]:
        """Make L steps from y⁰ = `dual`."""
        start = dual
        value, dual, step = self._unroll(objective, start)
        reached = dual.detach()
        point = objective.evaluate(reached, step)
        usable = point.finite & _has_derivative(objective, reached)
        if not bool(usable.all()):
            value = self._without(objective, start, value.detach(), usable)
        status = torch.where(usable, int(Status.TRUNCATED), int(Status.DIVERGED))
        count = torch.full_like(status, self.steps)
        nothing = torch.zeros_like(usable)
        outcome = Outcome(point, status, count, count + 1, nothing, torch.ones_like(start, dtype=torch.bool), None)
        return outcome, value, AdjointReport()

    def attach(
        self, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, "batch d"], AdjointReport]:
        """Refused: the steps are differentiated as they are made.

        Raises:
            TypeError: always.
        """
        raise TypeError("Unrolled differentiates its own iterations, not a given iterate")

    def record(
        self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver
    ) -> tuple[Outcome, tuple[Tensor, ...]]:
        """The step of every iteration, (B, L), and which samples have a derivative.

        Raises:
            ValueError: for `checkpoint`, which no transform follows.
        """
        if self.checkpoint:
            raise ValueError(
                "Unrolled(checkpoint=True) does not run inside torch.func transforms and forward mode: use "
                "checkpoint=False"
            )
        outcome, _, _ = self.solve(objective, dual, solver)
        step, steps = objective.initial_step(dual), []
        for _ in range(self.steps):
            dual, step = _advance(objective, dual, step)
            steps.append(step.expand(len(dual), 1))
        return outcome, (torch.cat(steps, 1), outcome.status == int(Status.TRUNCATED))

    def replay(
        self, objective: Objective, record: tuple[Tensor, ...], dual: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        """The same steps once more."""
        steps, usable = record
        dual = torch.where(usable[:, None], dual, dual.detach())
        tracked = self.steps if self.last is None else self.last
        for number, step in enumerate(steps.split(1, 1)):
            if 0 < number == self.steps - tracked:
                dual = dual.detach()
            dual = _moved(objective, dual, step)
        return objective.geometry.activation(dual)

    def _unroll(self, objective: Objective, dual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z_L and y_L with their derivatives, and the last τ."""
        tracked = self.steps if self.last is None else self.last
        step = objective.initial_step(dual)
        with torch.no_grad():
            for _ in range(self.steps - tracked):
                dual, step = _advance(objective, dual, step)
        dual, step = self._track(objective, dual, step, tracked)
        return objective.geometry.activation(dual), dual, step

    def _without(self, objective: Objective, start: Tensor, value: Tensor, usable: Tensor) -> Tensor:
        """`value` with the derivative of the usable samples alone, and 0 for the others.

        They are unrolled once more on their own: a derivative that overflows gives NaN even where it is weighted by 0.
        """
        rows = usable.nonzero().squeeze(-1)
        again = self._unroll(objective.select(rows), start[rows])[0]
        return value.index_copy(0, rows, again)

    def _track(self, objective: Objective, dual: Tensor, step: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """`count` steps that autograd follows."""
        if not self.checkpoint:
            for _ in range(count):
                dual, step = _advance(objective, dual, step)
            return dual, step
        length = math.isqrt(count - 1) + 1

        def segment(y: Tensor, tau: Tensor, size: int) -> tuple[Tensor, Tensor]:
            for _ in range(size):
                y, tau = _advance(objective, y, tau)
            return y, tau

        for begin in range(0, count, length):
            dual, step = recompute(
                segment,
                dual,
                step,
                min(length, count - begin),
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (nullcontext(), objective.energy.again()),
            )
        return dual, step


def _advance(objective: Objective, dual: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """One MM step that autograd follows, and the τ it was made with."""
    if objective.backtracks:
        step = _majorizing_step(objective, dual, step)
    return _moved(objective, dual, step), step


def _moved(objective: Objective, dual: Tensor, step: Tensor) -> Tensor:
    """One MM step; an overflow ends the sample at its last finite iterate."""
    moved = objective.iterate(dual, step)
    return torch.where(torch.isfinite(moved.sum(-1))[:, None], moved, dual)


def _has_derivative(objective: Objective, dual: Tensor) -> Tensor:
    """Whether products of z and its derivative stay in the range of the precision, (B,)."""
    size = torch.maximum(objective.geometry.activation(dual).abs(), objective.geometry.slope(dual)).amax(-1)
    return size <= torch.finfo(dual.dtype).max ** 0.5


def _majorizing_step(objective: Objective, dual: Tensor, step: Tensor) -> Tensor:
    """The largest of τ, τ/2, τ/4, … whose step the surrogate majorizes, per sample."""
    with torch.no_grad():
        point = objective.evaluate(dual.detach(), step)
        for _ in range(60):
            new = objective.evaluate(point.next_dual, point.step)
            good = (objective.majorized(point, new) & new.finite)[:, None]
            if bool(good.all()):
                break
            # (a step that was cut short at the end of the duals, and was good, leaves τ as it is)
            step = torch.where(good, step, 0.5 * point.step)
            point = objective.restep(point, step)
    return step
