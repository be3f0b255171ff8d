"""Problems with learnable parameters, and several independent ways to the gradient of one loss."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import implicit_bregman as ib
from implicit_bregman.experiments.reference.oracle import Reference, reference_gradient, reference_solution
from implicit_bregman.experiments.reference.problems import Problem, make_problem

DIM, INPUTS, BATCH = 6, 8, 3
BOX = ib.geometry("tanh").to_box(-2.0, 3.0)
BOUNDED = ("isru", "sigmoid", "arctan", "tanh", "sin", "scaled_tanh", BOX)
HALF_LINES = ("softplus", "exp", "bent")
LINES = ("arcsinh", "identity")
#: Where MM reaches an active bound like 1/k or 1/k², not geometrically.
SLOW_AT_BOUND = ("isru", "arctan", "bent")

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One problem of the shared collection's kind, small and well conditioned, and how W is parametrized."""

    geometry: str | ib.LegendreFunction
    kind: str = "convex"
    active: float = 0.0
    regularization: float = 0.0
    weight: str = "convex"
    stiffness: float = 1.0
    seed: int = 0

    def __str__(self) -> str:
        name = ib.geometry(self.geometry).name
        where = "active" if self.active else "interior"
        return f"{name}-{self.kind}-{self.weight}-{where}-gamma{self.regularization:g}-stiff{self.stiffness:g}"

    @property
    def slow(self) -> bool:
        """Whether MM itself approaches the limit only like a power of 1/k."""
        at_bound = self.active > 0 and self.regularization == 0
        return at_bound and ib.geometry(self.geometry).name in SLOW_AT_BOUND

    def problem(self) -> Problem:
        """The problem, in float64."""
        return make_problem(
            self.kind,
            self.geometry,
            dim=DIM,
            batch=BATCH,
            condition=3.0,
            active=self.active,
            regularization=self.regularization,
            stiffness=self.stiffness,
            seed=self.seed,
        )


def convex_cases() -> list[Case]:
    """Every geometry: γ = 0 and γ > 0, interior, and active where a bound can be active."""
    everywhere = (*BOUNDED, *HALF_LINES, *LINES)
    cases = [Case(name, regularization=gamma) for name in everywhere for gamma in (0.0, 0.3)]
    cases += [Case(name, active=0.34) for name in (*BOUNDED, *HALF_LINES)]
    cases += [
        Case("sin", active=0.34, regularization=0.3),
        Case("tanh", active=0.34, stiffness=4.0),
        Case("sigmoid", regularization=0.3, stiffness=4.0),
        Case("tanh", active=0.34, weight="symmetric"),
        Case("tanh", active=0.34, weight="general"),
    ]
    return cases


def general_cases() -> list[Case]:
    """W not symmetric, −W monotone."""
    cases = [
        Case(name, "general", active=0.34, weight="general")
        for name in ("tanh", "sigmoid", "arctan", "sin", "softplus")
    ]
    cases += [Case(name, "general", weight="general") for name in ("tanh", "identity")]
    cases += [Case(name, "general", regularization=0.2, weight="general") for name in ("sigmoid", "arcsinh", "bent")]
    return cases


def indefinite_cases() -> list[Case]:
    """W symmetric with a positive eigenvalue: several critical points, and γ = 0 always has an active bound."""
    names = ("isru", "sigmoid", "tanh", "sin", "scaled_tanh", BOX)
    cases = [Case(name, "indefinite", active=0.2, weight="symmetric") for name in names]
    cases += [
        Case(name, "indefinite", active=0.2, regularization=0.05, weight="symmetric") for name in ("tanh", "sigmoid")
    ]
    cases += [
        Case(name, "indefinite", active=0.2, regularization=1.2, weight="symmetric")
        for name in ("softplus", "identity")
    ]
    return cases


ALL_CASES = [*convex_cases(), *general_cases(), *indefinite_cases()]
#: σ = 0: there is no fixed step, and MM backtracks.
BACKTRACKING_CASE = Case("exp", active=0.34)


@dataclass
class Learned:
    """A problem whose W, U, b, x and z⁰ are leaves, and the loss ½‖z‖² + ⟨G, z⟩."""

    energy: ib.Energy
    geometry: ib.LegendreFunction
    regularization: float
    x: Tensor
    initial: Tensor
    direction: Tensor

    def leaves(self) -> Gradients:
        """Everything that can be differentiated for, by name."""
        return {"x": self.x, "initial": self.initial, **dict(self.energy.named_parameters())}

    def loss(self, value: Tensor) -> Tensor:
        """One number for the whole batch."""
        return (value * (0.5 * value + self.direction)).sum()

    def solve(self, adjoint: object = "implicit", solver: object | None = None) -> ib.Solution:
        """The solution, from z⁰."""
        how = "auto" if solver is None else solver
        return ib.find_critical_point(
            self.energy, self.geometry, self.x, self.initial, self.regularization, how, adjoint
        )

    def gradients(self, adjoint: object = "implicit", solver: object | None = None) -> Gradients:
        """What `adjoint` gives, for every leaf."""
        return self.differentiate(self.solve(adjoint, solver).value)

    def differentiate(self, value: Tensor) -> Gradients:
        """The loss at `value`, differentiated for every leaf."""
        leaves = self.leaves()
        found = torch.autograd.grad(self.loss(value), list(leaves.values()), allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves.values(), found, strict=True)]
        return dict(zip(leaves, filled, strict=True))

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Learned:
        """The same numbers, rounded to `dtype`, as new leaves."""
        lo, hi = self.geometry.bounds(dtype)

        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, dtype).requires_grad_()

        return replace(
            self,
            energy=copy.deepcopy(self.energy).to(device, dtype),
            x=leaf(self.x),
            initial=leaf(self.initial.detach().clamp(lo, hi)),
            direction=self.direction.to(device, dtype),
        )


def learn(case: Case, initial_dual: float = 0.4) -> Learned:
    """The case in float64, in terms of the raw parameters of a `QuadraticEnergy`."""
    problem = case.problem()
    generator = torch.Generator().manual_seed(case.seed + 1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    energy = ib.QuadraticEnergy(DIM, INPUTS, weight=case.weight, margin=0.01, dtype=torch.float64)
    weight = problem.weight
    with torch.no_grad():
        if case.weight == "convex":
            # A square root of −W − margin·I that is neither symmetric nor triangular.
            root = torch.linalg.cholesky(-weight - 0.01 * torch.eye(DIM, dtype=torch.float64))
            energy.weight_map.factor.copy_(root @ torch.linalg.qr(normal(DIM, DIM)).Q)
        elif case.weight == "symmetric":
            noise = normal(DIM, DIM)
            energy.weight_map.entries.copy_(weight + noise - noise.T)
        else:
            energy.weight_map.entries.copy_(weight)
        energy.input_weight.copy_(normal(DIM, INPUTS) / INPUTS**0.5)
        energy.bias.copy_(0.1 * normal(DIM))
        # Of the many x with Ux + b = c, the shortest.
        x = torch.linalg.lstsq(energy.input_weight, (problem.offset - energy.bias).T).solution.T
    initial = problem.geometry.activation(initial_dual * normal(BATCH, DIM)).detach()
    return Learned(
        energy,
        problem.geometry,
        case.regularization,
        x.contiguous().requires_grad_(),
        initial.requires_grad_(),
        normal(BATCH, DIM),
    )


def reference(learned: Learned) -> Reference:
    """The oracle's solution of the problem, in float64 on the CPU."""
    weight, offset, start = _matrices(learned)
    return reference_solution(weight, offset, learned.geometry, learned.regularization, start)


def reference_gradients(learned: Learned) -> Gradients:
    """The active-set derivative from the oracle, carried to the leaves by the chain rule; 0 for z⁰."""
    exact = learned.to(torch.float64)
    weight, offset, _ = _matrices(exact)
    found = reference(learned)
    assert bool(found.reached.all()), "the oracle does not know the limit: take another case"
    value = found.value.requires_grad_()
    (cotangent,) = torch.autograd.grad(exact.loss(value), value)
    value = value.detach()
    v = reference_gradient(weight, offset, value, found.active, exact.geometry, exact.regularization, cotangent)
    # dL/dc = v and dL/dW = v zᵀ are the derivatives of vᵀ(Wz + c) with v and z held fixed.
    carrier = (v * (value @ exact.energy.weight.mT + exact.energy.linear(exact.x))).sum()
    leaves = exact.leaves()
    grads = torch.autograd.grad(carrier, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if g is None else g for (name, leaf), g in zip(leaves.items(), grads, strict=True)
    }


def _matrices(learned: Learned) -> tuple[Tensor, Tensor, Tensor]:
    exact = learned.to(torch.float64)
    weight = exact.energy.weight.detach()
    if exact.energy.symmetric:
        weight = 0.5 * (weight + weight.T)
    start = exact.geometry.inverse_activation(exact.initial.detach())
    return weight, exact.energy.linear(exact.x).detach(), start


def mm_by_hand(learned: Learned, steps: int, step: float, dual: Tensor | None = None) -> Tensor:
    """z_L after MM steps with a fixed τ, written out with autograd following every operation."""
    y = learned.geometry.inverse_activation(learned.initial) if dual is None else dual
    gamma = learned.regularization
    for _ in range(steps):
        force = -learned.energy.gradient(learned.geometry.activation(y), learned.x)
        y = learned.geometry.project_dual((y + step * force) / (1 + step * gamma))
    return learned.geometry.activation(y)


def directional_errors(
    learned: Learned,
    gradients: Gradients,
    adjoint: object = "implicit",
    names: tuple[str, ...] | None = None,
    step: float = 1e-5,
) -> dict[str, float]:
    """Central differences of our own solve against ⟨gradient, u⟩, relative to ‖gradient‖, the worst of two u.

    One u is the gradient's own direction, the other is random.
    """
    errors = {}
    generator = torch.Generator().manual_seed(7)
    for name, leaf in learned.leaves().items():
        if names is not None and name not in names:
            continue
        gradient = gradients[name]
        size = float(gradient.norm())
        random = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        worst = 0.0
        for direction in (gradient if size else random, random):
            unit = direction / direction.norm()
            change = _loss_at(learned, leaf, step * unit, adjoint) - _loss_at(learned, leaf, -step * unit, adjoint)
            worst = max(worst, abs(change / (2 * step) - float((gradient * unit).sum())))
        errors[name] = worst / (size or 1.0)
    return errors


def _loss_at(learned: Learned, leaf: Tensor, shift: Tensor, adjoint: object) -> float:
    with torch.no_grad():
        before = leaf.clone()
        leaf.add_(shift)
        try:
            return float(learned.loss(learned.solve(adjoint).value))
        finally:
            leaf.copy_(before)


def relative_errors(found: Gradients, exact: Gradients) -> dict[str, float]:
    """‖found − exact‖ / ‖exact‖ for every leaf but z⁰, in float64."""
    return {
        name: float((found[name].double().cpu() - exact[name].double().cpu()).norm() / exact[name].double().norm())
        for name in exact
        if name != "initial"
    }


def worst_error(found: Gradients, exact: Gradients) -> float:
    """The largest of `relative_errors`."""
    return max(relative_errors(found, exact).values())


@contextmanager
def saved_bytes(excluded: list[Tensor]) -> Iterator[list[int]]:
    """Counts, while open, the distinct storages that autograd saves; the one entry of the list is in bytes."""
    storages: dict[int, Tensor] = {}
    known = {tensor.untyped_storage().data_ptr() for tensor in excluded}

    def pack(tensor: Tensor) -> Tensor:
        kept = tensor.detach()
        if kept.untyped_storage().data_ptr() not in known:
            storages[kept.untyped_storage().data_ptr()] = kept
        return kept

    total = [0]
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total[0] = sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@functools.cache
def learned_case(case: Case) -> tuple[Learned, Gradients]:
    """A case and its reference gradients, in float64; treat both as constants."""
    learned = learn(case)
    return learned, reference_gradients(learned)
