"""Differentiation through a fixed number of MM steps (Problem 2.2)."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from implicit_bregman.adjoints.base import Adjoint, AdjointReport
from implicit_bregman.objective import Objective
from implicit_bregman.settings import check_count
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.mm import MM
from implicit_bregman.status import Status


@dataclass(frozen=True)
class Unrolled(Adjoint):
    """z_L after L MM steps, differentiated through them: an L-layer weight-tied Bregman network.

    The step size τ is held fixed (detached). The value is z_L whatever the solver, so only MM is accepted as one;
    of its settings `on_failure` alone has a meaning here, since the number of steps is given.

    Args:
        steps: L.
        checkpoint: keep about 2√L iterates instead of L and recompute the rest in the backward pass.
        last: differentiate only through the last so many steps (truncated). None: through all.

    Raises:
        TypeError: for an unknown setting.
        ValueError: for an impossible one.
    """

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

    def solve(
        self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver
    ) -> tuple[Outcome, Float[Tensor, "batch d"], AdjointReport]:
        """Make L steps from y⁰ = `dual`.

        Raises:
            ValueError: if `solver` is not MM.
        """
        if not isinstance(solver, MM):
            raise ValueError(f'adjoint Unrolled is MM itself: use solver="auto" or MM, got {type(solver).__name__}')
        tracked = self.steps if self.last is None else self.last
        step = objective.initial_step(dual)
        start = dual
        with torch.no_grad():
            for _ in range(self.steps - tracked):
                dual, step = _advance(objective, dual, step)
        dual, step = self._track(objective, dual, step, tracked)
        point = objective.evaluate(dual.detach(), step)
        finite = point.finite
        status = torch.where(finite, int(Status.TRUNCATED), int(Status.DIVERGED))
        count = torch.full_like(status, self.steps)
        nothing = torch.zeros_like(finite)
        outcome = Outcome(point, status, count, count + 1, nothing, torch.ones_like(start, dtype=torch.bool), None)
        return outcome, objective.geometry.activation(dual), AdjointReport()

    def attach(
        self, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, "batch d"], AdjointReport]:
        """Refused: the steps are differentiated as they are made.

        Raises:
            TypeError: always.
        """
        raise TypeError("Unrolled differentiates its own iterations, not a given iterate")

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
    moved = objective.iterate(dual, step)
    # An overflow ends the sample at its last finite iterate.
    return torch.where(torch.isfinite(moved.sum(-1))[:, None], moved, dual), step


def _majorizing_step(objective: Objective, dual: Tensor, step: Tensor) -> Tensor:
    """The largest of τ, τ/2, τ/4, … whose step the surrogate majorizes, per sample."""
    with torch.no_grad():
        point = objective.evaluate(dual.detach(), step)
        for _ in range(60):
            new = objective.evaluate(point.next_dual, point.step)
            good = objective.majorized(point, new) & new.finite
            if bool(good.all()):
                break
            point = objective.restep(point, torch.where(good[:, None], point.step, 0.5 * point.step))
    return point.step
