"""Approximate gradients: a few steps differentiated at the solution."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.adjoints.base import Adjoint
from implicit_bregman.adjoints.transforms import first_order
from implicit_bregman.backward import AdjointReport, differentiable
from implicit_bregman.linalg.cg import normalized
from implicit_bregman.objective import Objective
from implicit_bregman.settings import check_count, check_positive
from implicit_bregman.solvers.base import Outcome, Solver

#: Rounds of the power method, of two products each.
_POWER_STEPS = 20


class _StepsAtTheSolution(Adjoint):
    """What differentiates a few damped MM steps made at the solution."""

    @abstractmethod
    def _steps(self) -> tuple[int, float, str]:
        """How many, λ, and what the adjoint is called in messages."""

    def attach(
        self, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, "batch d"], AdjointReport]:
        """The value of `outcome`, with the derivative of the steps from there; 0 where it diverged, and for the start.

        Where MM backtracks, the step that a solver ended with is used if it majorizes at the last iterate, which it
        need not; and an exact method makes none.
        """
        value, (steps, damping, name) = outcome.point.value.detach(), self._steps()
        if not torch.is_grad_enabled():
            return value, AdjointReport()
        place, step, usable = _place(objective, outcome)
        reached = _damped(objective, place, step, steps, damping)
        if usable is not None:
            reached = torch.where(usable[:, None], reached, 0.0)
        if dual.requires_grad:
            reached = reached + 0 * dual
        return first_order(value + (reached - reached.detach()), name), AdjointReport()

    def record(
        self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver
    ) -> tuple[Outcome, tuple[Tensor, ...]]:
        """z, the iterate to start from, τ, and which samples have a derivative."""
        outcome = self.outcome(objective, dual, solver)
        place, step, usable = _place(objective, outcome)
        every = torch.ones_like(outcome.exact) if usable is None else usable
        return outcome, (outcome.point.value, place, step.expand(len(place), 1), every)

    def replay(
        self, objective: Objective, record: tuple[Tensor, ...], dual: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        """The recorded value with the derivative of the steps, for which no transform may ask twice."""
        (value, place, step, usable), (steps, damping, name) = record, self._steps()
        packed = objective.energy.pack()
        energy = packed.rebuild(
            *(first_order(tensor, name) if tensor.is_floating_point() else tensor for tensor in packed.tensors)
        )
        once = Objective(energy, objective.geometry, objective.regularization, unique=True)
        reached = torch.where(usable[:, None], _damped(once, place, step, steps, damping), 0.0)
        return value + (reached - reached.detach())


@dataclass(frozen=True)
class Phantom(_StepsAtTheSolution):
    """The phantom gradient: differentiate `steps` damped MM steps y ← (1 − λ)y + λy⁺ made at the solution.

    Geng, Zhang, Bai, Wang and Lin, "On training implicit models" (2021), in dual coordinates. The value stays the
    solver's. Biased; with steps → ∞ and a contraction it tends to the implicit gradient.

    Args:
        steps: number of steps differentiated.
        damping: λ in (0, 1].

    Raises:
        TypeError: for an unknown setting.
        ValueError: for an impossible one.
    """

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        super().__post_init__()
        check_count("steps", self.steps)
        check_positive("damping", self.damping)
        if self.damping > 1:
            raise ValueError(f"damping must be in (0, 1], got {self.damping}")

    def _steps(self) -> tuple[int, float, str]:
        return self.steps, self.damping, "phantom"


@dataclass(frozen=True)
class OneStep(_StepsAtTheSolution):
    """Differentiate one MM step at the solution, as if the solution it starts from were constant.

    Bolte, Pauwels and Vaiter, "One-step differentiation of iterative algorithms" (2023). Exact for a method that
    converges superlinearly; for MM its relative error is about the rate of convergence.
    """

    def _steps(self) -> tuple[int, float, str]:
        return 1, 1.0, "one-step"


def _place(objective: Objective, outcome: Outcome) -> tuple[Tensor, Tensor, Tensor | None]:
    """Where the steps start, their τ, and which samples have a derivative; None: all."""
    dual, usable = outcome.point.dual.detach(), differentiable(outcome)
    if usable is not None:
        dual = torch.where(usable[:, None], dual, objective.geometry.middle)
    step = objective.initial_step(dual)
    if objective.backtracks:
        # (NaN where the solver made no MM steps)
        step = torch.fmin(outcome.point.step, majorizing_step(objective, dual))
    return dual, step, usable


def _damped(objective: Objective, dual: Tensor, step: Tensor, steps: int, damping: float) -> Tensor:
    """ρ of the iterate after so many damped MM steps."""
    for _ in range(steps):
        moved = objective.iterate(dual, step)
        dual = moved if damping == 1 else torch.lerp(dual, moved, damping)
    return objective.geometry.activation(dual)


def majorizing_step(objective: Objective, dual: Float[Tensor, "batch d"]) -> Float[Tensor, "batch 1"]:
    """τ = min(1, 1/‖√D H √D‖₂) at ρ(`dual`), D = ρ': small MM steps from there are majorized, and contract.

    The norm is estimated by the power method, from below and to a few per cent.
    """
    with torch.no_grad():
        hessian = objective.energy.hessian(objective.geometry.activation(dual))
        root = objective.geometry.slope(dual).sqrt()

        def product(p: Tensor, adjoint: bool) -> Tensor:
            return root * hessian.product(root * p, adjoint)

        # A start without the symmetries of a problem, which might keep it from the eigenvector that counts.
        p = torch.arange(dual.shape[-1], dtype=dual.dtype, device=dual.device).square().add(1.0).cos().expand_as(dual)
        size = torch.ones_like(dual[:, :1])
        for _ in range(_POWER_STEPS):
            unit = normalized(p)[0]
            part, scale, _ = normalized(product(unit, adjoint=False))
            length = torch.linalg.vector_norm(part, dim=-1, keepdim=True)
            size = scale * length / torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
            p = product(part, adjoint=True)
        return torch.where(size > 1, size.reciprocal(), 1.0)
