"""The critical point of any energy, as a module."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from implicit_bregman.adjoints import Adjoint, adjoint_named
from implicit_bregman.checks import check_energy
from implicit_bregman.critical_point import find_critical_point
from implicit_bregman.energy import Energy
from implicit_bregman.energy.inputs import Inputs
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre import geometry as lookup
from implicit_bregman.majorization import Certificate, certify
from implicit_bregman.nn.jacobian import Map, fixed_point_map, jacobian_penalty, spectral_radius
from implicit_bregman.nn.norms import normalize
from implicit_bregman.nn.traced import NOT_TO_BE_RECORDED, encoded, is_traceable, solve_traced
from implicit_bregman.settings import check_nonnegative
from implicit_bregman.solution import Solution
from implicit_bregman.solvers import Solver, solver_named

#: What of a layer is recorded as a string.
_SETTINGS = ("geometry", "regularization", "solver", "adjoint")


class CriticalPoint(nn.Module):
    """The layer z = h(x; θ) ∈ crit(f_θ(·; x) + γφ + ι_C) of any energy f: `find_critical_point` as a module.

    Args:
        energy: f, or a `Field`, whose parameters are the layer's.
        geometry: φ, by name or instance. Its tensors (`to_box`) are not parameters of the layer and stay where they are
            when the layer moves. A solve takes them to the device of its input.
        regularization: γ ≥ 0.
        solver: a name or an instance from `implicit_bregman.solvers`.
        adjoint: a name or an instance from `implicit_bregman.adjoints`.
        norm: "weight" or "spectral" parametrizes the weights of all linear and convolutional layers of `energy`, in
            place, by `weight_norm` or `spectral_norm` of `torch.nn.utils.parametrizations`, and computes them once per
            call. None leaves them as they are.

    Attributes:
        energy: f.
        geometry: φ.
        regularization: may be assigned at any time.
        solver: may be assigned at any time.
        adjoint: may be assigned at any time.
        last_solution: the `Solution` of the last call, detached; None before the first.

    Shape:
        What `find_critical_point` takes → `(*batch, *features)`.

    Raises:
        TypeError: for arguments of the wrong kind.
        ValueError: for unknown names, or γ < 0; for a `norm` where there are no such layers, or a weight is
            parametrized already.
    """

    energy: Energy
    #: The normalization of the weights (None also of layers pickled before there was one).
    norm: str | None = None
    #: The settings as a string, for recordings; "" (also of layers pickled before there was one): not to be recorded.
    settings: str = NOT_TO_BE_RECORDED

    def __init__(
        self,
        energy: Energy,
        geometry: str | MirrorMap,
        regularization: float = 0.0,
        solver: str | Solver = "auto",
        adjoint: str | Adjoint = "implicit",
        norm: str | None = None,
    ) -> None:
        super().__init__()
        self.energy = check_energy(energy)
        self.geometry = lookup(geometry)
        self.regularization = regularization
        self.solver: str | Solver = solver
        self.adjoint: str | Adjoint = adjoint
        solver_named(solver)
        adjoint_named(adjoint)
        if norm is not None:
            normalize(energy, norm)
        self.norm = norm
        self.last_solution: Solution | None = None

    def forward(
        self,
        x: Float[Tensor, "*batch n"] | Inputs,
        initial: Float[Tensor, "*batch *features"] | Solution | None = None,
    ) -> Float[Tensor, "*batch *features"]:
        """z = h(x; θ), from z⁰ = `initial`."""
        if torch.compiler.is_compiling() and initial is None and is_traceable(self):
            return solve_traced(self, x)
        return self.solve(x, initial).value

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse impossible settings, and keep them as a string besides, where a recording finds them."""
        if name == "regularization":
            value = check_nonnegative(name, value)
        if name in _SETTINGS:
            known: dict[str, Any] = {setting: self.__dict__.get(setting) for setting in _SETTINGS} | {name: value}
            if None not in known.values():
                self.__dict__["settings"] = encoded(**known)
        super().__setattr__(name, value)

    def solve(
        self,
        x: Float[Tensor, "*batch n"] | Inputs,
        initial: Float[Tensor, "*batch *features"] | Solution | None = None,
        initial_dual: Float[Tensor, "*batch *features"] | None = None,
    ) -> Solution:
        """The same as calling the layer, with everything known about the solve.

        Args:
            x: input; see `find_critical_point`.
            initial: z⁰ in int C, or a `Solution` to start from; default ρ(0).
            initial_dual: y⁰ = ρ⁻¹(z⁰) instead of `initial`.

        Raises:
            ValueError: for an input that does not fit, or a start that is given twice.
        """
        with parametrize.cached() if self.norm else nullcontext():
            solution = find_critical_point(
                self.energy, self.geometry, x, initial, self.regularization, self.solver, self.adjoint, initial_dual
            )
        self.last_solution = solution.detach()
        return solution

    def frozen(self) -> AbstractContextManager[None]:
        """A context for inference in which what can be kept over calls is kept: of `BregmanDEQ` W's factorization."""
        return nullcontext()

    def certificate(self) -> Certificate:
        """What is guaranteed of MM at the present parameters; see `certify`."""
        return certify(self.energy, self.geometry, self.regularization)

    def spectral_radius(
        self, z: Float[Tensor, "*batch *features"], x: Float[Tensor, "*batch n"] | Inputs, iterations: int = 50
    ) -> Float[Tensor, "*batch"]:
        """About |λ|_max of the Jacobian of the fixed-point map at an equilibrium z, (B,), without gradient.

        The map is z ↦ ρ(−∇f(z)/γ), for a network z ↦ ρ(N(z, x)), and for γ = 0 z ↦ Π_C(z − ∇f(z)). Below 1 plain
        iteration converges near z. It is found by the power method, whose last digits take long where several
        eigenvalues are nearly as large.

        Args:
            z: equilibria, as the layer returns them.
            x: their inputs.
            iterations: steps of the power method.

        Raises:
            ValueError: for less than one iteration.
        """
        return spectral_radius(self._step(x), z.detach(), self._event, iterations)

    def jacobian_penalty(
        self, z: Float[Tensor, "*batch *features"], x: Float[Tensor, "*batch n"] | Inputs, samples: int = 1
    ) -> Float[Tensor, ""]:
        """‖J‖²_F / d of the same Jacobian, the mean over the batch, to be added to a loss: it keeps the layer solvable.

        Bai, Koltun and Kolter, "Stabilizing equilibrium models by Jacobian regularization" (2021): Hutchinson's
        estimate with random vectors. Differentiable in θ at a constant z.

        Args:
            z: equilibria, as the layer returns them.
            x: their inputs.
            samples: random vectors per call.

        Raises:
            ValueError: for less than one sample.
        """
        return jacobian_penalty(self._step(x), z, self._event, samples)

    @property
    def _event(self) -> int:
        """The number of dimensions of a state."""
        features = self.energy.features
        return len(features) if isinstance(features, tuple) else 1

    def _step(self, x: Inputs) -> Map:
        return fixed_point_map(self.energy, self.geometry, self.regularization, x)

    @property
    def _follows_limit(self) -> bool:
        return adjoint_named(self.adjoint).follows_limit

    def _warn_of_linear_map(self, formula: str) -> None:
        """Of a quadratic energy: warn where C is everything and γ = 0."""
        if self.regularization == 0 and self.geometry.is_everything and self._follows_limit:
            warnings.warn(
                f"with regularization=0 and the unbounded domain of {self.geometry.name} the layer is the linear map "
                f"{formula}: use regularization > 0 or a geometry with a bound",
                UserWarning,
                stacklevel=3,
            )

    def extra_repr(self) -> str:
        """Everything that is not a submodule."""
        return (
            f"geometry={self.geometry!r}, regularization={self.regularization}, solver={self.solver!r}, "
            f"adjoint={self.adjoint!r}" + (f", norm={self.norm!r}" if self.norm else "")
        )

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the last solution behind: it belongs to a call, not to the layer."""
        return {**self.__dict__, "last_solution": None}
