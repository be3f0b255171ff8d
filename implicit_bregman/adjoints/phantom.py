"""Approximate gradients: a few steps differentiated at the solution."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Phantom(Adjoint):
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

    def attach(
        self, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, "batch d"], AdjointReport]:
        """The value of `outcome` with the gradient of the damped steps."""
        return attach_steps(objective, outcome, dual, self.steps, self.damping, "phantom"), AdjointReport()

    def record(
        self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver
    ) -> tuple[Outcome, tuple[Tensor, ...]]:
        """See `record_steps`."""
        outcome = self.outcome(objective, dual, solver)
        return outcome, record_steps(objective, outcome)

    def replay(
        self, objective: Objective, record: tuple[Tensor, ...], dual: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        """See `replay_steps`."""
        return replay_steps(objective, record, self.steps, self.damping, "phantom")


@dataclass(frozen=True)
class OneStep(Adjoint):
    """Differentiate one MM step at the solution, as if the solution it starts from were constant.

    Bolte, Pauwels and Vaiter, "One-step differentiation of iterative algorithms" (2023). Exact for a method that
    converges superlinearly; for MM its relative error is about the rate of convergence.
    """

    def attach(
        self, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, "batch d"], AdjointReport]:
        """The value of `outcome` with the gradient of one step."""
        return attach_steps(objective, outcome, dual, 1, 1.0, "one-step"), AdjointReport()

    def record(
        self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver
    ) -> tuple[Outcome, tuple[Tensor, ...]]:
        """See `record_steps`."""
        outcome = self.outcome(objective, dual, solver)
        return outcome, record_steps(objective, outcome)

    def replay(
        self, objective: Objective, record: tuple[Tensor, ...], dual: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        """See `replay_steps`."""
        return replay_steps(objective, record, 1, 1.0, "one-step")


def attach_steps(
    objective: Objective,
    outcome: Outcome,
    initial: Float[Tensor, "batch d"],
    steps: int,
    damping: float,
    name: str,
) -> Float[Tensor, "batch d"]:
    """The value of `outcome`, with the derivative of `steps` damped MM steps from there; 0 where it diverged.

    The derivative with respect to the start `initial` is 0. Where MM backtracks, the step that a solver ended with is
    used if it majorizes at the last iterate, which it need not; and an exact method makes none.
    """
    value = outcome.point.value.detach()
    if not torch.is_grad_enabled():
        return value
    dual, step, usable = _place(objective, outcome)
    reached = _damped(objective, dual, step, steps, damping)
    if usable is not None:
        reached = torch.where(usable[:, None], reached, 0.0)
    if initial.requires_grad:
        reached = reached + 0 * initial
    return first_order(value + (reached - reached.detach()), name)


def record_steps(objective: Objective, outcome: Outcome) -> tuple[Tensor, ...]:
    """z, the iterate to start from, τ, and which samples have a derivative."""
    dual, step, usable = _place(objective, outcome)
    every = torch.ones_like(outcome.exact) if usable is None else usable
    return outcome.point.value, dual, step.expand(len(dual), 1), every


def replay_steps(
    objective: Objective, record: tuple[Tensor, ...], steps: int, damping: float, name: str
) -> Float[Tensor, "batch d"]:
    """The recorded value with the derivative of the steps, for which no transform may ask twice."""
    value, dual, step, usable = record
    packed = objective.energy.pack()
    energy = packed.rebuild(
        *(first_order(tensor, name) if tensor.is_floating_point() else tensor for tensor in packed.tensors)
    )
    once = Objective(energy, objective.geometry, objective.regularization, unique=True)
    reached = _damped(once, dual, step, steps, damping)
    reached = torch.where(usable[:, None], reached, 0.0)
    return value + (reached - reached.detach())


def _place(objective: Objective, outcome: Outcome) -> tuple[Tensor, Tensor, Tensor | None]:
    """Where the steps start, their τ, and which samples have a derivative; None: all."""
    dual, usable = outcome.point.dual.detach(), differentiable(outcome)
    if usable is not None:
        dual = torch.where(usable[:, None], dual, 0.0)
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
