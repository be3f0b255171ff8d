"""torchdeq as a contender: its solvers and its implicit backward pass, swept to the cheapest that is accurate.

Two fixed-point maps of a quadratic cell: the dual map y ↦ y⁺ of MM, and z ↦ ρ(ρ⁻¹(clamp z) + …) with z kept ε away from
the bounds. Other cells bring their own.
Everything that costs torchdeq time without need is left out: it is given τ, it makes a number of iterations that was
found beforehand, and it makes no stopping test that could end later.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from implicit_bregman.experiments.benchmark.peers.contenders import BOTH, LONGEST
from implicit_bregman.experiments.benchmark.prepared import Prepared, Value
from implicit_bregman.experiments.benchmark.truth import PreparedQuadratic

DUAL, CLAMPED = "dual", "clamped z"
NAMES = {"anderson": "torchdeq Anderson", "broyden": "torchdeq Broyden", "simple": "torchdeq fixed point"}
TASK = BOTH
_BROYDEN_BYTES = 2**28  # each of the two arrays of updates that Broyden's method keeps
_BROYDEN_LONGEST = 300  # with full memory an iteration's cost grows with their number


@dataclass(frozen=True)
class Method:
    """A solver of torchdeq with its settings.

    Attributes:
        name: "anderson", "broyden" or "simple".
        options: torchdeq's own settings of it.
        longest: Largest number of iterations worth trying.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    longest: int = LONGEST

    @property
    def text(self) -> str:
        """The settings in words."""
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in self.options.items())})"

    def solve(self, function: Callable[..., Tensor], start: Tensor, iterations: int) -> Tensor:
        """Run so many iterations, whatever the residual, and return the last iterate."""
        from torchdeq.solver.anderson import anderson_solver
        from torchdeq.solver.broyden import broyden_solver
        from torchdeq.solver.fp_iter import simple_fixed_point_iter

        solvers: dict[str, Callable[..., tuple[Any, ...]]] = {
            "anderson": anderson_solver,
            "broyden": broyden_solver,
            "simple": simple_fixed_point_iter,
        }
        settings: dict[str, Any] = {"max_iter": iterations, "tol": 0.0, "return_final": True, **self.options}
        outcome = solvers[self.name](function, start, **settings)
        result: Tensor = outcome[0]
        return result


class FixedPoint(ABC):
    """A map as torchdeq sees it, in one run."""

    @abstractmethod
    def start(self) -> Tensor:
        """Where the iteration starts."""

    @abstractmethod
    def __call__(self, x: Tensor, tau: float = 1.0) -> Tensor:
        """One step; `tau` is what torchdeq passes on as damping, always 1."""

    def value(self, x: Tensor) -> Tensor:
        """The z that belongs to the map's variable; default: that is z."""
        return x


@dataclass(frozen=True, eq=False)
class Equation:
    """A fixed-point equation of a cell.

    Attributes:
        text: Which one, in words.
        opened: The map, from the raw tensors; called in every run.
    """

    text: str
    opened: Callable[[], FixedPoint]


@dataclass(frozen=True, eq=False)
class Setup:
    """How torchdeq is set up: the equation and the solver of each pass.

    Attributes:
        equation: Which one.
        forward: Solver of the forward pass.
        backward: Solver of the backward pass.
    """

    equation: Equation
    forward: Method
    backward: Method

    @property
    def text(self) -> str:
        """The settings in words."""
        return f"{self.equation.text}; {self.forward.text}, backward {self.backward.text}"


def setups(prepared: Prepared, equations: Sequence[Equation], quick: bool = False) -> list[Setup]:
    """The setups to sweep, those that are usually best first.

    Args:
        prepared: The cell.
        equations: What torchdeq may solve for it, in the same order.
        quick: Fewer of them.
    """
    ridges = (1e-12, 1e-4) if quick else (1e-12, 1e-10, 1e-8, 1e-6, 1e-4)
    memories = (6, 12) if quick else (6, 12, 3, 20)
    simple = Method("simple")
    usual = Method("anderson", {"m": 6, "lam": 1e-12, "tau": 1.0})
    per_update = prepared.cotangent.numel() * prepared.cotangent.element_size()
    longest = max(5, min(_BROYDEN_LONGEST, _BROYDEN_BYTES // per_update))
    methods = [Method("anderson", {"m": m, "lam": lam, "tau": 1.0}) for lam in ridges for m in memories]
    if not quick:
        methods.append(Method("anderson", {"m": 6, "lam": 1e-12, "tau": 0.8}))
    methods.append(Method("broyden", {"LBFGS_thres": None, "ls": False}, longest))
    if not quick:
        methods.append(Method("broyden", {"LBFGS_thres": 20, "ls": False}))
    found: list[Setup] = []
    for method in (methods[0], simple, *methods[1:]):
        for equation in equations:
            others = [usual] if method.name == "simple" else [simple]
            if method.name == "broyden":
                others.append(usual)
            found.extend(Setup(equation, method, backward) for backward in (method, *others))
    return found


@dataclass(frozen=True, eq=False)
class MirrorMap(FixedPoint):
    """MM's step of a quadratic cell.

    Attributes:
        prepared: The cell.
        variable: `DUAL` or `CLAMPED`.
        margin: ε, the distance from the bounds that z is clamped to, in units of half C's width.
    """

    prepared: PreparedQuadratic
    variable: str
    margin: float

    def start(self) -> Tensor:
        """y = 0, or z = ρ(0): where MM starts."""
        zero = torch.zeros_like(self.prepared.offset)
        return zero if self.variable == DUAL else self.prepared.geometry.activation(zero)

    def value(self, x: Tensor) -> Tensor:
        return self.prepared.geometry.activation(x) if self.variable == DUAL else x

    def __call__(self, x: Tensor, tau: float = 1.0) -> Tensor:
        at = self.prepared
        phi, step, gamma = at.geometry, at.step, at.regularization
        if self.variable == DUAL:
            dual, z = x, phi.activation(x)
        else:
            z = self._clamp(x)
            dual = phi.inverse_activation(z)
        moved = torch.addmm(at.offset, z, at.weight.T)
        moved = dual + (moved if step == 1.0 else step * moved)
        if gamma:
            moved = moved / (1 + step * gamma)
        if not phi.is_legendre:
            moved = phi.project_dual(moved)
        return moved if self.variable == DUAL else phi.activation(moved)

    def _clamp(self, z: Tensor) -> Tensor:
        low, high = self.prepared.geometry.domain
        width = 0.5 * (high - low) if math.isfinite(high - low) else 1.0
        margin = self.margin * width
        if math.isinf(low) and math.isinf(high):
            return z
        return z.clamp(low + margin if math.isfinite(low) else None, high - margin if math.isfinite(high) else None)


def mirror_equation(prepared: PreparedQuadratic, variable: str, margin: float = 0.0) -> Equation:
    """MM's step, in one of its variables."""
    text = variable if variable == DUAL else f"{variable}, ε = {margin:g}"
    return Equation(text, partial(MirrorMap, prepared, variable, margin))


def mirror_equations(prepared: PreparedQuadratic, quick: bool = False) -> list[Equation]:
    """What torchdeq may solve for a quadratic cell."""
    if not any(map(math.isfinite, prepared.geometry.domain)):
        return [mirror_equation(prepared, DUAL), mirror_equation(prepared, CLAMPED)]
    margins = (1e-5, 1e-9) if prepared.weight.dtype == torch.float64 else (1e-5, 1e-6)
    usual = [mirror_equation(prepared, CLAMPED, margins[0]), mirror_equation(prepared, DUAL)]
    return usual if quick else [*usual, mirror_equation(prepared, CLAMPED, margins[1])]


def torchdeq_value(setup: Setup, iterations: int, backward_iterations: int) -> Value:
    """z by torchdeq, with its implicit backward pass, both with a fixed number of iterations."""
    from torchdeq.grad import backward_factory

    def backward(function: Callable[[Tensor], Tensor], start: Tensor, **_: object) -> tuple[Tensor, None, None]:
        return setup.backward.solve(lambda u, tau=1.0: function(u), start, backward_iterations), None, None

    attach = backward_factory(grad_type="ift", b_solver=backward)

    def value() -> Tensor:
        step = setup.equation.opened()
        with torch.no_grad():
            found = setup.forward.solve(step, step.start(), iterations)
        return step.value(attach(None, step, found.detach())[0])

    return value
