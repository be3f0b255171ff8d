"""The deep-equilibrium layer."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.adjoints import Adjoint
from implicit_bregman.energy import QuadraticEnergy
from implicit_bregman.energy.weights import present_name
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.nn.critical_point import CriticalPoint
from implicit_bregman.projection.methods import check_projection
from implicit_bregman.projection.weight import middle
from implicit_bregman.settings import check_choice
from implicit_bregman.solution import Solution
from implicit_bregman.solvers import Solver

INJECTIONS = ("linear", "initial")


class BregmanDEQ(CriticalPoint):
    """The deep-equilibrium layer z = h(x; θ), a critical point of −½ zᵀWz − (Ux + b)ᵀz + γφ(z) on C.

    It is a weight-tied Bregman network of infinite depth (Problem 2.1), or of depth L with
    `adjoint=adjoints.Unrolled(steps=L)` (Problem 2.2).

    With γ = 0 and a convex energy the limit is the solution of a box-constrained quadratic program, in which φ chooses
    only the box. With γ > 0 it is z = ρ((Wz + Ux + b)/γ), the usual weight-tied DEQ.

    With `weight="low_rank"` and γ = 0 it is the *Bregman projection layer*: z minimises D_φ(z, z⁰) subject to Vᵀz = β,
    r linear equations with a learned V. Then, with `injection="linear"`, β = Ux + b and z⁰ = `initial` or ρ(0): the
    point nearest to the middle of C (for `exp`, `sigmoid` and others: the one of maximum entropy) with the features
    β(x). With `injection="initial"`, z⁰ = x and β = b: x is projected onto a learned affine set, and the gradient flows
    to V, b and x (`BregmanProjection` by its own name). Where Vᵀz = β has no solution in C, see `QuadraticEnergy`. b
    starts at Vᵀρ(0), so that there is one. With γ > 0 it is the regularized least squares problem, which no z⁰ changes.

    Args:
        in_features: n, the width of x.
        out_features: d, the width of z.
        geometry: φ, by name or instance.
        weight: "convex" (W ≺ 0, one critical point), "symmetric", "monotone" (as in monDEQ: one equilibrium), "general"
            or "low_rank" (with `rank`: the Bregman projection layer below); see `QuadraticEnergy`.
        regularization: γ ≥ 0.
        solver: a name or an instance from `implicit_bregman.solvers`.
        adjoint: a name or an instance from `implicit_bregman.adjoints`.
        injection: how x enters. "linear": through the offset Ux + b. "initial": as z⁰ = x (the paper's Definition
            2.2; n = d, x in int C; `solve(None, initial_dual=y)` for an x = ρ(y) that would be rounded to a bound),
            with the learned offset b alone. The limit of MM then forgets x wholly (convex, monotone) or up to the
            choice of a basin (symmetric, general), so "initial" is refused for the first two unless the adjoint is
            `Unrolled`, and warns for the others. It is meant for "low_rank" with γ = 0; with γ > 0 the limit would not
            depend on x, and it is refused.
        bias: whether to learn b.
        margin: for "convex" and "monotone", the least eigenvalue that −W, or its symmetric part, can have.
        rank: for "low_rank", the number r of equations, 1 ≤ r ≤ d.
        softening: for "low_rank", the relative ε of infeasible systems; see `QuadraticEnergy`.
        device: where the parameters are made.
        dtype: in which precision the parameters are made.

    Attributes:
        energy: the `QuadraticEnergy`.
        solver: may be assigned at any time, as may `adjoint` and `regularization`; see `CriticalPoint`.
        last_solution: the `Solution` of the last call, detached; None before the first.

    Shape:
        `(…, n)` → `(…, d)`.

    Raises:
        ValueError: for unknown names, widths below 1, γ < 0, or an injection that cannot work.
    """

    energy: QuadraticEnergy

    def __init__(
        self,
        in_features: int,
        out_features: int,
        geometry: str | MirrorMap = "tanh",
        weight: str = "convex",
        regularization: float = 0.0,
        solver: str | Solver = "auto",
        adjoint: str | Adjoint = "implicit",
        injection: str = "linear",
        *,
        bias: bool = True,
        margin: float = 0.1,
        rank: int | None = None,
        softening: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, width in (("in_features", in_features), ("out_features", out_features)):
            if width < 1:
                raise ValueError(f"{name} must be at least 1, got {width}")
        check_choice("injection", injection, INJECTIONS)
        energy = QuadraticEnergy(
            out_features,
            in_features,
            weight,
            bias=bias,
            margin=margin,
            rank=rank,
            softening=softening,
            device=device,
            dtype=dtype,
        )
        super().__init__(energy, geometry, regularization, solver, adjoint)
        self.in_features = in_features
        self.out_features = out_features
        self.injection = injection
        self._weight = present_name(weight)
        self._check_injection()
        self._warn_of_linear_map("-W^-1 (Ux + b)")
        self._start_feasible()  # (the energy has drawn its parameters)
        if injection == "initial":
            self.energy.input_weight = None

    def solve(
        self,
        x: Float[Tensor, "*batch n"] | None,
        initial: Float[Tensor, "*batch d"] | Solution | None = None,
        initial_dual: Float[Tensor, "*batch d"] | None = None,
    ) -> Solution:
        """The same as calling the layer, with everything known about the solve.

        Args:
            x: input, (*, n). None where `initial_dual` stands for it.
            initial: z⁰, (*, d), in int C, or a `Solution` to start from; default ρ(0). Not with
                `injection="initial"`, where x is the start.
            initial_dual: y⁰ = ρ⁻¹(z⁰), (*, d), instead of `initial`. With `injection="initial"` instead of x: its dual
                ρ⁻¹(x), for an x that would be rounded to a bound.

        Raises:
            ValueError: for an input that does not fit, or a start that is given twice; see `find_critical_point`.
        """
        if self.injection == "initial":
            self._refuse_constant()
            if initial is not None:
                raise ValueError('initial cannot be given with injection="initial": x is the start')
            if x is not None and initial_dual is not None:
                raise ValueError('x and initial_dual both give the start with injection="initial": use x=None')
            # The offset is b alone: an input of zeros, added to b, carries the shape.
            initial, given = x, initial_dual if x is None else x
            x = None if given is None else torch.zeros_like(given)
        if x is None:
            raise ValueError('x must be given, or initial_dual instead of it with injection="initial"')
        return super().solve(x, initial, initial_dual)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as the constructor does.

        After `to_empty()` call it on the layer, or `reset_parameters` on each module, children first, as
        `Module.apply` does.
        """
        for module in (self.energy.weight_map, self.energy):
            module.reset_parameters()
        self._start_feasible()

    def frozen(self) -> AbstractContextManager[None]:
        """A context for inference in which W's factorization is kept over calls; see `QuadraticEnergy.frozen`."""
        return self.energy.frozen()

    def extra_repr(self) -> str:
        """Everything that is not a submodule."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, {super().extra_repr()}, "
            f"injection={self.injection!r}"
        )

    def _check_injection(self) -> None:
        if self._weight == "low_rank" and self._follows_limit:
            check_projection(self.geometry, self.regularization)
        if self.injection == "linear":
            return
        self._check_widths()
        self._refuse_constant()
        if self._weight != "low_rank" and self._follows_limit:
            warnings.warn(
                f'injection="initial" with weight="{self._weight}" makes h piecewise constant in x: nothing upstream '
                'of this layer can train. Use injection="linear" unless that is what you study.',
                UserWarning,
                stacklevel=3,
            )

    def _refuse_constant(self) -> None:
        if self._weight in ("convex", "monotone") and self._follows_limit:
            raise ValueError(
                f'injection="initial" with weight="{self._weight}" makes h constant, because the critical point is '
                'unique: use injection="linear", or adjoint=adjoints.Unrolled(steps=...)'
            )
        if self._weight == "low_rank" and self.regularization and self._follows_limit:
            raise ValueError(
                f'injection="initial" with weight="low_rank" and regularization = {self.regularization} makes h '
                'constant, because the critical point is unique: use regularization=0 or injection="linear"'
            )

    def _start_feasible(self) -> None:
        """b = Vᵀρ(0) for a low-rank weight: the middle of C then solves the system for x = 0."""
        if self.energy.low_rank and self.energy.bias is not None:
            with torch.no_grad():
                self.energy.bias.copy_(middle(self.energy.weight_map(), self.geometry))

    def _check_widths(self) -> None:
        if self.in_features != self.out_features:
            raise ValueError(
                f'injection="initial" takes x as the start, so in_features = {self.in_features} must equal '
                f"out_features = {self.out_features}"
            )
