"""Broyden's method in dual coordinates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.linalg.updates import apply_updates
from implicit_bregman.objective import Objective, Point, RowsOfTensors
from implicit_bregman.settings import check_count
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.inverse import InverseEstimate
from implicit_bregman.solvers.loop import run

#: Coordinates with a log φ'' so far above the least make MM's own steps on their way back from a bound.
_SATURATED = 14.0


@dataclass(frozen=True)
class Broyden(Solver):
    """Limited-memory Broyden updates of the inverse Jacobian, mapping primal residuals to dual steps.

    The unknown is y; the equation is r(y) = ρ(y⁺) − ρ(y) = 0, which vanishes also at an active bound, where y⁺ − y
    does not. The estimate starts from the MM step (r ↦ y⁺ − y) and receives one rank-one update per step so that
    it maps the last change of r to minus the last change of y ("bad" Broyden: the update that only needs inner
    products of residuals, in which saturated coordinates weigh nothing). Proposals that raise the objective
    (without one: the residual) above the last few are replaced by MM steps and the updates are forgotten. A saturated
    coordinate on its way back from a bound, whose residual says nothing yet, makes MM's own steps.

    Args:
        memory: number of updates kept; when it is full the updates start anew.
        tol: see `Solver`.
        max_iter: see `Solver`.
        exact: see `Solver`.
        trace: see `Solver`.
        on_failure: see `Solver`.
    """

    estimates_inverse: ClassVar[bool] = True

    memory: int = 30

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        super().__post_init__()
        check_count("memory", self.memory)

    def solve(self, objective: Objective, dual: Float[Tensor, "batch d"]) -> Outcome:
        """Iterate from `dual` until each sample has stopped."""
        return run(self, objective, dual, _RankOneUpdates(self.memory))

    def solve_with_inverse(self, objective: Objective, dual: Float[Tensor, "batch d"]) -> Outcome:
        """The same, with the estimates: without `exact`, since what is solved exactly leaves its estimate behind."""
        updates = _RankOneUpdates(self.memory)
        return run(self, objective, dual, updates, updates.inverse)


@dataclass(frozen=True)
class _Estimate(RowsOfTensors):
    """The inverse Jacobian: the MM step plus Σ left_i ⟨right_i, ·⟩; rows not yet filled are 0.

    Attributes:
        dual, residual, step: the last y, r = ρ(y⁺) − ρ(y) and y⁺ − y, (b, d).
        left, right: (b, m, d).
        count: updates held, (b,).
    """

    dual: Tensor
    residual: Tensor
    step: Tensor
    left: Tensor
    right: Tensor
    count: Tensor


class _RankOneUpdates:
    """Broyden's proposals."""

    def __init__(self, memory: int) -> None:
        self.memory = memory

    def start(self, objective: Objective, point: Point) -> _Estimate:
        zero = torch.zeros_like(point.value)
        empty = point.value.new_zeros(len(zero), self.memory, zero.shape[-1])
        count = torch.zeros(len(zero), dtype=torch.int64, device=zero.device)
        return _Estimate(zero, zero, zero, empty, empty, count)

    def propose(
        self, objective: Objective, memory: _Estimate, point: Point, fresh: Bool[Tensor, " batch"]
    ) -> tuple[_Estimate, Tensor]:
        estimate = self._updated(objective, memory, point, fresh | (memory.count >= self.memory))
        correction = apply_updates(estimate.left, estimate.right, estimate.residual)
        # Of a saturated coordinate the residuals say nothing: a correction could hold it at a bound it has to leave.
        before, after = (objective.geometry.log_curvature(dual) for dual in (point.dual, point.next_dual))
        returning = (before > before.amin(-1, keepdim=True) + _SATURATED) & (after < before)
        correction = torch.where(returning, 0.0, correction)
        return estimate, objective.geometry.project_dual(point.next_dual + correction)

    def inverse(
        self, objective: Objective, memory: _Estimate, point: Point, restart: Bool[Tensor, " batch"]
    ) -> InverseEstimate:
        """The estimate at the last iterate, with the update that the step there gives, if there is room for it."""
        full = memory.count >= self.memory
        unused = restart & (memory.count == 0)
        last = self._updated(objective, memory, point, unused | full).where(~full, memory)
        return InverseEstimate(last.left, last.right, last.count)

    def _updated(
        self, objective: Objective, memory: _Estimate, point: Point, fresh: Bool[Tensor, " batch"]
    ) -> _Estimate:
        """The estimate with one more update, from the last iterate to this one; none where it is to start anew."""
        residual, noise = objective.primal_step(point)
        step = point.next_dual - point.dual
        keep = ~fresh
        left, right = keep[:, None, None] * memory.left, keep[:, None, None] * memory.right
        count = keep * memory.count

        # Secant: the new estimate has to map Δr to −Δy; the old one maps it to Δstep + Σ left_i ⟨right_i, Δr⟩.
        change = residual - memory.residual
        # The rounding error of the change damps an update that would mostly learn noise.
        norm = (change * change).sum(-1) + noise.square()
        usable = keep & (norm > 0)
        safe = torch.where(usable, norm, 1.0)[:, None]
        mapped = (step - memory.step) + apply_updates(left, right, change)
        new_left = torch.where(usable[:, None], -(point.dual - memory.dual) - mapped, 0.0)
        new_right = torch.where(usable[:, None], change / safe, 0.0)
        slot = torch.nn.functional.one_hot(count, self.memory).to(step.dtype)[:, :, None]
        left, right = left + slot * new_left[:, None], right + slot * new_right[:, None]
        return replace(
            memory,
            dual=point.dual,
            residual=residual,
            step=step,
            left=left,
            right=right,
            count=count + usable,
        )
