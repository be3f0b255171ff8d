"""find_critical_point inside torch.func transforms and forward mode: the numbers first, then their derivatives.

What a transform wraps around tensors hides their numbers, which a solver looks at. So the solve runs on the numbers
alone, as it does outside, and tells where it ended. The adjoint then attaches that point to the energy as it is
inside the transform, by operations of which every transform knows what to make.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.adjoints.base import Adjoint
from implicit_bregman.backward import AdjointReport
from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.energy.inputs import Inputs, pack
from implicit_bregman.energy.snapshot import Place, Snapshot
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre.known_dual import dual_at
from implicit_bregman.objective import Objective, potential, total
from implicit_bregman.solution import Solution
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.transforms import map_over_samples, on_numbers
from implicit_bregman.valuation import held_back


class Numbers(NamedTuple):
    """Where the solves of a flat batch ended: what `Solution` has of the same name, and what the adjoint recorded."""

    value: Float[Tensor, "batch d"]
    dual: Float[Tensor, "batch d"]
    residual: Float[Tensor, " batch"]
    iterations: Int[Tensor, " batch"]
    evaluations: Int[Tensor, " batch"]
    status: Int[Tensor, " batch"]
    exact: Tensor
    step: Float[Tensor, " batch"]
    record: tuple[Tensor, ...]


Solve = Callable[..., tuple[Solution, tuple[Tensor, ...]]]
"""From x and the start, plain tensors each, to a solution without gradient and what the adjoint recorded."""


def solve_numbers(energy: Energy, solve: Solve, x: Inputs, start: Tensor | None) -> Numbers:
    """`solve` on the numbers of x, the start and all tensors of the energy, sample by sample as outside.

    Args:
        energy: the module, which holds its tensors as they are inside the transform.
        solve: what to do.
        x: the inputs, with B samples in front.
        start: z⁰ or y⁰, (B, d), or None.
    """
    snapshot, (inputs, rebuild) = Snapshot.of(energy), pack(x)
    call = _Call(solve, snapshot.places, rebuild, len(inputs), energy.samples is None)
    found = _Numbers.apply(call, start, *inputs, *snapshot.tensors)
    fields = len(Numbers._fields) - 1
    return Numbers(**dict(zip(Numbers._fields, (*found[:fields], found[fields:]), strict=True)))


@dataclass(frozen=True)
class _Call:
    solve: Solve
    places: tuple[Place, ...]
    rebuild: Callable[..., Inputs]
    inputs: int
    takes_more_samples: bool


class _Numbers(torch.autograd.Function):
    @staticmethod
    def forward(call: _Call, start: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        tensors = tuple(tensor.detach() for tensor in tensors)
        inputs, own = tensors[: call.inputs], tensors[call.inputs :]
        with Snapshot(call.places, own).restored(), on_numbers():
            solution, record = call.solve(call.rebuild(*inputs), None if start is None else start.detach())
        value, dual, *rest = (getattr(solution, name) for name in Numbers._fields[:-1])
        return tuple(tensor.clone() for tensor in (value.flatten(1), dual.flatten(1), *rest, *record))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)
        ctx.count = len(output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: None) -> tuple[None, ...]:
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[None, ...]:
        return (None,) * ctx.count

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], call: _Call, *tensors: Any) -> tuple[Any, Any]:
        rows = (False, *[call.takes_more_samples] * (1 + call.inputs), *(False for _ in tensors[1 + call.inputs :]))
        return map_over_samples(_Numbers.apply, info.batch_size, in_dims, (call, *tensors), rows)


@dataclass(frozen=True)
class Followed:
    """F and μ at a point that transforms follow: the same as `Valuation`, by the operations themselves.

    Attributes:
        energy: f inside the transform.
        geometry: φ.
        regularization: γ.
        value: z with its derivatives, (B, d).
        dual: y, (B, d).
        shaped: to the leading shape of the batch.
        states: to that and the shape of the states.
    """

    energy: BoundEnergy
    geometry: MirrorMap
    regularization: float
    value: Float[Tensor, "batch d"]
    dual: Float[Tensor, "batch d"]
    shaped: Callable[[Tensor], Tensor]
    states: Callable[[Tensor], Tensor]

    def objective(self) -> Float[Tensor, "*batch"] | None:
        """F, (B,)."""
        if not self.energy.symmetric:
            return None
        value = self.energy.value(self.value)
        if self.regularization:
            value = value + potential(self.geometry, self.regularization, self._y)
        return self.shaped(value)

    def multiplier(self) -> Float[Tensor, "*batch d"]:
        """μ, (B, d)."""
        y = self.geometry.project_dual(self._y) if self.regularization else self.dual
        g = total(self.geometry, self.regularization, self.energy.gradient(self.value), y)
        active = held_back(self.geometry, self.regularization, self.value, g)
        return self.states(torch.where(active, -g, 0.0))

    @property
    def _y(self) -> Tensor:
        return dual_at(self.geometry, self.value, self.dual)

    def detach(self) -> Followed:
        """The same: what a transform follows is its own affair."""
        return self


@dataclass(frozen=True)
class Recording(Adjoint):
    """What solves as `of` does, attaches no derivative, and keeps what `of` needs to do so later.

    Attributes:
        of: the adjoint.
        records: where that is kept.
    """

    of: Adjoint
    records: list[tuple[Tensor, ...]]

    @property
    def follows_limit(self) -> bool:  # type: ignore[override]
        return self.of.follows_limit

    def accepts(self, solver: Solver, energy: BoundEnergy) -> None:
        self.of.accepts(solver, energy)

    def solve(self, objective: Objective, dual: Tensor, solver: Solver) -> tuple[Outcome, Tensor, AdjointReport]:
        outcome, record = self.of.record(objective, dual, solver)
        self.records.append(record)
        return outcome, outcome.point.value.detach(), AdjointReport()

    def attach(self, objective: Objective, outcome: Outcome, dual: Tensor) -> tuple[Tensor, AdjointReport]:
        raise TypeError("Recording makes a solve of its own")
