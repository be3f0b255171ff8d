"""Operator splitting as a contender: the plain loop of Peaceman and Rachford, its step and iterations swept.

With H = −W and R = (I + αH)⁻¹, shared by the batch, x = R(u + αc), z = prox(2x − u) of α(γφ + ι_C), u ← u + 2(z − x).
The adjoint equation (Hᵀ + γφ''(z)) v = g, v = 0 at an active bound, is solved by the same iteration with Rᵀ. Nothing is
tested on the way: α and the iterations of both passes are given to it, the best that were found beforehand.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from implicit_bregman.experiments.benchmark.peers.contenders import (
    BOTH,
    FORWARD,
    LONGEST,
    SLOW,
    Contender,
    Failure,
    Found,
    Run,
    counts,
    settled,
    timed,
    worth_timing,
)
from implicit_bregman.experiments.benchmark.prepared import Gradients, Prepared
from implicit_bregman.experiments.benchmark.truth import PreparedQuadratic
from implicit_bregman.experiments.reference.optimality import on_host
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre.prox import prox_dual

NAME = "Peaceman–Rachford"
_COARSE = 2**0.5  # between neighbouring α
_REACH = range(-10, 5)  # α from 2⁻⁵ to 4 times 1/√(mL)
_FINE = 2**0.25  # the neighbours of the best α that are tried last
_LATER = (
    1.0,
    1.05,
    1.15,
    1.3,
    1.6,
    2.0,
    2.5,
)  # forward iterations, relative to the least, from which the adjoint is tried


def unique(prepared: PreparedQuadratic) -> bool:
    """Whether the cell has one critical point whatever c: what operator splitting is for."""
    return prepared.cell.kind in ("convex", "general")


@dataclass(frozen=True)
class Setup:
    """How the loop is set up.

    Attributes:
        step: α.
        newton: γ > 0: Newton steps in each prox, from its last dual; None: to the end, in a bracket.
    """

    step: float
    newton: int | None = 1

    def text(self, regularization: float) -> str:
        """The settings in words."""
        if not regularization:
            return f"α = {self.step:.3g}"
        inner = "prox to rounding" if self.newton is None else f"Newton steps per prox: {self.newton}"
        return f"α = {self.step:.3g}, {inner}"


class Loop(ABC):
    """The iteration for one cell, from the raw tensors.

    Args:
        geometry: φ.
        regularization: γ.
        setup: Its settings.
    """

    def __init__(self, geometry: MirrorMap, regularization: float, setup: Setup) -> None:
        self.geometry, self.setup = geometry, setup
        self.pull = setup.step * regularization
        low, high = geometry.domain
        self.low, self.high = low if math.isfinite(low) else None, high if math.isfinite(high) else None

    @property
    @abstractmethod
    def offset(self) -> Tensor:
        """c."""

    @abstractmethod
    def base(self, c: Tensor, adjoint: bool) -> Tensor:
        """R(αc), or Rᵀ(αc)."""

    @abstractmethod
    def resolvent(self, base: Tensor, u: Tensor, adjoint: bool) -> Tensor:
        """base + Ru, or base + Rᵀu."""

    @abstractmethod
    def gradients(self, z: Tensor, v: Tensor) -> Gradients:
        """dL/dθ for v = dL/dc at z."""

    def within(self, z: Tensor) -> Tensor:
        """z, with 0 where there is a border."""
        return z

    def shown(self, z: Tensor) -> Tensor:
        """z without it."""
        return z

    def forward(self) -> Iterator[tuple[Tensor, Tensor]]:
        """z and its dual (γ = 0: 2x − u, which is outside C where a bound is active) after 1, 2, … iterations."""
        base = self.base(self.offset, adjoint=False)
        u = torch.zeros_like(base)
        dual = u
        while True:
            v = torch.lerp(u, self.resolvent(base, u, adjoint=False), 2.0)
            z, dual = self._prox(v, dual)
            z = self.within(z)
            u = torch.lerp(v, z, 2.0)
            yield self.shown(z), dual

    def backward(self, dual: Tensor, cotangent: Tensor) -> Iterator[Tensor]:
        """v = dL/dc after 1, 2, … iterations, at the point with this dual."""
        base = self.base(cotangent, adjoint=True)
        slope = self.slope(dual)
        share = slope / (slope + self.pull) if self.pull else slope
        u = torch.zeros_like(base)
        while True:
            target = torch.lerp(u, self.resolvent(base, u, adjoint=True), 2.0)
            v = self.within(target * share)
            u = torch.lerp(target, v, 2.0)
            yield self.shown(v)

    def slope(self, dual: Tensor) -> Tensor:
        """ρ' where γ > 0; else 1 off the bounds, and 0 at one."""
        return self.geometry.slope(dual) if self.pull else self._inside(dual).to(dual.dtype)

    def _inside(self, v: Tensor) -> Tensor:
        if self.low is not None and self.high is not None:
            return (v > self.low) & (v < self.high)
        if self.low is not None:
            return v > self.low
        return v < self.high if self.high is not None else torch.ones_like(v, dtype=torch.bool)

    def _prox(self, v: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
        if not self.pull:
            unbounded = self.low is None and self.high is None
            return (v if unbounded else v.clamp(self.low, self.high)), v
        phi, newton = self.geometry, self.setup.newton
        if newton is None:
            dual = prox_dual(phi, v, self.pull, dual)
            return phi.activation(dual), dual
        for _ in range(newton):
            miss = torch.add(phi.activation(dual), dual, alpha=self.pull) - v
            dual = dual - miss / (phi.slope(dual) + self.pull)
        return phi.activation(dual), dual


class DenseLoop(Loop):
    """With the inverse of a matrix.

    Args:
        prepared: The cell.
        setup: The settings.
    """

    def __init__(self, prepared: PreparedQuadratic, setup: Setup) -> None:
        super().__init__(prepared.geometry, prepared.regularization, setup)
        self.prepared = prepared
        identity = torch.eye(prepared.weight.shape[0], dtype=prepared.weight.dtype)
        # W changes at every training step: the inverse belongs to the run.
        self.inverse = torch.linalg.inv_ex(torch.sub(identity, prepared.weight.detach(), alpha=setup.step)).inverse

    @property
    def offset(self) -> Tensor:
        return self.prepared.offset

    def base(self, c: Tensor, adjoint: bool) -> Tensor:
        return (self.setup.step * c) @ self._matrix(adjoint)

    def resolvent(self, base: Tensor, u: Tensor, adjoint: bool) -> Tensor:
        return torch.addmm(base, u, self._matrix(adjoint))

    def gradients(self, z: Tensor, v: Tensor) -> Gradients:
        return (v.mT @ z,)

    def _matrix(self, adjoint: bool) -> Tensor:
        return self.inverse if adjoint else self.inverse.mT


@dataclass(frozen=True, eq=False)
class Splitting:
    """How a cell is split.

    Attributes:
        prepared: The cell.
        regularization: γ.
        middle: About the best α: 1/√(mL) of the ends of the spectrum.
        loop: The iteration with given settings; called in every run.
    """

    prepared: Prepared
    regularization: float
    middle: float
    loop: Callable[[Setup], Loop]


def dense_splitting(prepared: PreparedQuadratic) -> Splitting:
    """That of a quadratic cell; `unique` of it."""
    weight = on_host(prepared.weight)
    ends = torch.linalg.eigvalsh(-0.5 * (weight + weight.T))
    middle = middle_step(ends[0], ends[-1], prepared.regularization * prepared.geometry.strong_convexity)
    return Splitting(prepared, prepared.regularization, middle, partial(DenseLoop, prepared))


def middle_step(least: float | Tensor, largest: float | Tensor, strong: float) -> float:
    """1/√(mL) of the ends of the spectrum, γσ added: about the best α for symmetric H."""
    return float((least + strong) * (largest + strong)) ** -0.5


def _last(iterates: Iterator[Any], count: int) -> Any:
    for _ in range(count - 1):
        next(iterates)
    return next(iterates)


def splitting_run(splitting: Splitting, setup: Setup, iterations: int, backward_iterations: int = 0) -> Run:
    """z by the plain loop, and where it makes backward iterations dL/dθ, both with a fixed number of them."""

    def run() -> tuple[Tensor, Gradients | None]:
        with torch.set_grad_enabled(backward_iterations > 0):
            loop = splitting.loop(setup)
        with torch.no_grad():
            z, dual = _last(loop.forward(), iterations)
            if not backward_iterations:
                return z, None
            v = _last(loop.backward(dual, splitting.prepared.cotangent), backward_iterations)
        return z, loop.gradients(z, v)

    return run


@dataclass(frozen=True)
class _Best:
    setup: Setup
    iterations: int
    backward_iterations: int

    @property
    def total(self) -> int:
        return self.iterations + self.backward_iterations


_Key = tuple[int | None, str, float]
"""Newton steps, task and level: a candidate of each is timed."""


@dataclass
class _Search:
    splitting: Splitting
    accuracies: Sequence[float]
    deadline: float
    best: dict[_Key, _Best] = field(default_factory=dict)
    misses: dict[tuple[str, float], Failure] = field(default_factory=dict)

    def least(self, newton: int | None, task: str, level: float) -> int:
        known = self.best.get((newton, task, level))
        return LONGEST if known is None else known.total

    def keep(self, task: str, level: float, candidate: _Best) -> None:
        newton = candidate.setup.newton
        for looser in self.accuracies:  # what reaches a level reaches the looser ones too
            if looser >= level and candidate.total < self.least(newton, task, looser):
                self.best[newton, task, looser] = candidate

    def missed(self, task: str, level: float, text: str, value: float, gradient: float | None) -> None:
        old = self.misses.get((task, level))
        closeness = (gradient is None, value if gradient is None else max(value, gradient))
        if old is not None and old.value_error is not None:
            known = (old.gradient_error is None, max(old.value_error, old.gradient_error or 0.0))
            if known <= closeness:
                return
        self.misses[task, level] = Failure(NAME, task, level, text, value, gradient)

    @property
    def over(self) -> bool:
        return time.perf_counter() > self.deadline


def splitting_contenders(splitting: Splitting, accuracies: Sequence[float], cap: float) -> Found:
    """Sweep α, the iterations of both passes and, where γ > 0, the Newton steps of the prox.

    Args:
        splitting: The cell.
        accuracies: The levels to be reached.
        cap: Seconds for the whole sweep.

    Returns:
        For each task, level and kind of prox the least iterations that reach it, and the nearest misses.
    """
    search = _Search(splitting, accuracies, time.perf_counter() + cap)
    kinds = (1, 3, None) if splitting.regularization else (1,)
    for power in sorted(_REACH, key=abs):
        for newton in kinds:
            _examine(search, Setup(splitting.middle * _COARSE**power, newton))
    for known in dict.fromkeys(best.setup for best in search.best.values()):
        for factor in (1 / _FINE, _FINE):
            _examine(search, Setup(known.step * factor, known.newton))
    every = [_contender(splitting, task, level, best) for (_, task, level), best in search.best.items()]
    reached = {(contender.task, contender.accuracies[0]) for contender in every}
    nothing = "cap reached before its first run"
    failures = [
        search.misses.get((task, level), Failure(NAME, task, level, nothing, None, None))
        for task in (FORWARD, BOTH)
        for level in accuracies
        if (task, level) not in reached
    ]
    return worth_timing(every), failures


def _contender(splitting: Splitting, task: str, level: float, best: _Best) -> Contender:
    run = splitting_run(splitting, best.setup, best.iterations, best.backward_iterations)
    seconds = timed(run)[0]
    if seconds < SLOW:
        seconds = min(timed(run)[0] for _ in range(3))
    count = f"{best.iterations} + {best.backward_iterations}" if task == BOTH else str(best.iterations)
    text = f"{best.setup.text(splitting.regularization)}; {count} iterations"
    return Contender(NAME, task, text, run, (level,), seconds)


def _examine(search: _Search, setup: Setup) -> None:
    """One forward run with every iterate judged; adjoint runs from the first that are accurate enough."""
    if search.over:
        return
    splitting, newton = search.splitting, setup.newton
    loop, text = splitting.loop(setup), setup.text(splitting.regularization)
    limit = max(search.least(newton, task, level) for task in (FORWARD, BOTH) for level in search.accuracies)
    found = _forward_errors(search, loop, limit)
    for level in search.accuracies:
        first = next((count for count, error in enumerate(found, 1) if error <= level), None)
        if first is None:
            nearest = min(range(len(found)), key=lambda k: found[k])
            for task in (FORWARD, BOTH):
                search.missed(task, level, f"{text}; {nearest + 1} iterations", found[nearest], None)
            continue
        search.keep(FORWARD, level, _Best(setup, first, 0))
        for count in dict.fromkeys(math.ceil(first * factor) for factor in _LATER):
            if count >= search.least(newton, BOTH, level) or search.over:
                break
            with torch.no_grad():
                z, dual = _last(loop.forward(), count)
            miss = splitting.prepared.value_error(z)
            if miss <= level:
                _adjoint(search, loop, z, dual, _Best(setup, count, 0), level, miss)


@torch.no_grad()
def _forward_errors(search: _Search, loop: Loop, limit: int) -> list[float]:
    """The error of z after every iteration, until it is small enough or no longer falls."""
    found: list[float] = []
    looked_at, seen = set(counts(most=max(4, limit))), []
    for count, (z, _) in enumerate(loop.forward(), 1):
        found.append(search.splitting.prepared.value_error(z))
        if count in looked_at:
            seen.append(found[-1])
        if found[-1] <= min(search.accuracies) or count >= limit or search.over or (seen and settled(seen)):
            return found
    return found


def _adjoint(
    search: _Search, loop: Loop, z: Tensor, dual: Tensor, forward: _Best, level: float, value_error: float
) -> None:
    """The least iterations of the adjoint with which dL/dθ reaches the level, from the point of a forward pass."""
    prepared, setup = search.splitting.prepared, forward.setup
    limit = search.least(setup.newton, BOTH, level) - forward.iterations
    looked_at, seen, least = set(counts(most=max(4, limit))), [], math.inf
    iterates = loop.backward(dual, prepared.cotangent)
    for number in range(1, LONGEST + 1):
        with torch.no_grad():
            v = next(iterates)
        error = prepared.gradient_error(*loop.gradients(z, v))
        least = min(least, error)
        if error <= level:
            search.keep(BOTH, level, replace(forward, backward_iterations=number))
            return
        if number in looked_at:
            seen.append(error)
        if number >= limit or search.over or (seen and settled(seen)):
            break
    text = f"{setup.text(search.splitting.regularization)}; {forward.iterations} iterations"
    search.missed(BOTH, level, text, value_error, least)
