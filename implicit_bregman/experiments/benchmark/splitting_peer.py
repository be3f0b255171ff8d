"""Operator splitting as a contender: the plain loop of Peaceman and Rachford, its step and iterations swept.

With H = −W and R = (I + αH)⁻¹, shared by the batch, x = R(u + αc), z = prox(2x − u) of α(γφ + ι_C), u ← u + 2(z − x).
The adjoint equation (Hᵀ + γφ''(z)) v = g, v = 0 at an active bound, is solved by the same iteration with Rᵀ. Nothing is
tested on the way: α and the iterations of both passes are given to it, the best that were found beforehand.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from implicit_bregman.experiments.benchmark.contenders import (
    BOTH,
    FORWARD,
    LONGEST,
    SLOW,
    Contender,
    Failure,
    Found,
    Run,
    Value,
    counts,
    differentiated,
    settled,
    timed,
    without_gradient,
    worth_timing,
)
from implicit_bregman.experiments.benchmark.truth import Prepared
from implicit_bregman.experiments.optimality import on_host
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


def unique(prepared: Prepared) -> bool:
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


class Loop:
    """The iteration for one cell.

    Args:
        prepared: The cell.
        setup: Its settings.
    """

    def __init__(self, prepared: Prepared, setup: Setup) -> None:
        self.geometry, self.setup = prepared.geometry, setup
        self.pull = setup.step * prepared.regularization
        low, high = prepared.geometry.domain
        self.low, self.high = low if math.isfinite(low) else None, high if math.isfinite(high) else None
        identity = torch.eye(prepared.weight.shape[0], dtype=prepared.weight.dtype)
        # W changes at every training step: the inverse belongs to the run.
        self.inverse = torch.linalg.inv_ex(torch.sub(identity, prepared.weight.detach(), alpha=setup.step)).inverse
        self.base = (setup.step * prepared.offset) @ self.inverse.mT

    def forward(self) -> Iterator[tuple[Tensor, Tensor]]:
        """z and its dual (γ = 0: 2x − u, which is outside C where a bound is active) after 1, 2, … iterations."""
        u = torch.zeros_like(self.base)
        dual = u
        while True:
            v = torch.lerp(u, torch.addmm(self.base, u, self.inverse.mT), 2.0)
            z, dual = self._prox(v, dual)
            u = torch.lerp(v, z, 2.0)
            yield z, dual

    def backward(self, dual: Tensor, cotangent: Tensor) -> Iterator[Tensor]:
        """v = dL/dc after 1, 2, … iterations, at the point with this dual."""
        base = (self.setup.step * cotangent) @ self.inverse
        slope = self.geometry.slope(dual) if self.pull else self._inside(dual).to(dual.dtype)
        share = slope / (slope + self.pull) if self.pull else slope
        u = torch.zeros_like(base)
        while True:
            target = torch.lerp(u, torch.addmm(base, u, self.inverse), 2.0)
            v = target * share
            u = torch.lerp(target, v, 2.0)
            yield v

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


class _Attached(torch.autograd.Function):
    """z with dL/dW = vᵀz, v by the loop's own iteration."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, z: Tensor, dual: Tensor, loop: Loop, iterations: int) -> Tensor:
        ctx.save_for_backward(z, dual)
        ctx.loop, ctx.iterations = loop, iterations
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None, None, None]:
        z, dual = ctx.saved_tensors
        v = _last(ctx.loop.backward(dual, cotangents[0]), ctx.iterations)
        return v.mT @ z, None, None, None, None


def _last(iterates: Iterator[Any], count: int) -> Any:
    for _ in range(count - 1):
        next(iterates)
    return next(iterates)


def splitting_value(prepared: Prepared, setup: Setup, iterations: int, backward_iterations: int = 1) -> Value:
    """z by the plain loop, with its backward pass, both with a fixed number of iterations."""

    def value() -> Tensor:
        with torch.no_grad():
            loop = Loop(prepared, setup)
            z, dual = _last(loop.forward(), iterations)
        return _Attached.apply(prepared.weight, z, dual, loop, backward_iterations)

    return value


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
    prepared: Prepared
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


def splitting_contenders(prepared: Prepared, accuracies: Sequence[float], cap: float) -> Found:
    """Sweep α, the iterations of both passes and, where γ > 0, the Newton steps of the prox.

    Args:
        prepared: The cell; `unique` of it.
        accuracies: The levels to be reached.
        cap: Seconds for the whole sweep.

    Returns:
        For each task, level and kind of prox the least iterations that reach it, and the nearest misses.
    """
    search = _Search(prepared, accuracies, time.perf_counter() + cap)
    middle = _middle_step(prepared)
    kinds = (1, 3, None) if prepared.regularization else (1,)
    for power in sorted(_REACH, key=abs):
        for newton in kinds:
            _examine(search, Setup(middle * _COARSE**power, newton))
    for known in dict.fromkeys(best.setup for best in search.best.values()):
        for factor in (1 / _FINE, _FINE):
            _examine(search, Setup(known.step * factor, known.newton))
    every = [_contender(prepared, task, level, best) for (_, task, level), best in search.best.items()]
    reached = {(contender.task, contender.accuracies[0]) for contender in every}
    nothing = "cap reached before its first run"
    failures = [
        search.misses.get((task, level), Failure(NAME, task, level, nothing, None, None))
        for task in (FORWARD, BOTH)
        for level in accuracies
        if (task, level) not in reached
    ]
    return worth_timing(every), failures


def _middle_step(prepared: Prepared) -> float:
    """1/√(mL) of the ends of the spectrum, γσ added: about the best α for symmetric H."""
    weight = on_host(prepared.weight)
    ends = torch.linalg.eigvalsh(-0.5 * (weight + weight.T))
    strong = prepared.regularization * prepared.geometry.strong_convexity
    return float((ends[0] + strong) * (ends[-1] + strong)) ** -0.5


def _contender(prepared: Prepared, task: str, level: float, best: _Best) -> Contender:
    value = splitting_value(prepared, best.setup, best.iterations, best.backward_iterations)
    run: Run = differentiated(prepared, value) if task == BOTH else without_gradient(value)
    seconds = timed(run)[0]
    if seconds < SLOW:
        seconds = min(timed(run)[0] for _ in range(3))
    count = f"{best.iterations} + {best.backward_iterations}" if task == BOTH else str(best.iterations)
    text = f"{best.setup.text(prepared.regularization)}; {count} iterations"
    return Contender(NAME, task, text, run, (level,), seconds)


@torch.no_grad()
def _examine(search: _Search, setup: Setup) -> None:
    """One forward run with every iterate judged; adjoint runs from the first that are accurate enough."""
    if search.over:
        return
    prepared, newton = search.prepared, setup.newton
    loop, text = Loop(prepared, setup), setup.text(prepared.regularization)
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
            z, dual = _last(loop.forward(), count)
            miss = prepared.value_error(z)
            if miss <= level:
                _adjoint(search, loop, z, dual, _Best(setup, count, 0), level, miss)


def _forward_errors(search: _Search, loop: Loop, limit: int) -> list[float]:
    """The error of z after every iteration, until it is small enough or no longer falls."""
    found: list[float] = []
    looked_at, seen = set(counts(most=max(4, limit))), []
    for count, (z, _) in enumerate(loop.forward(), 1):
        found.append(search.prepared.value_error(z))
        if count in looked_at:
            seen.append(found[-1])
        if found[-1] <= min(search.accuracies) or count >= limit or search.over or (seen and settled(seen)):
            return found
    return found


def _adjoint(
    search: _Search, loop: Loop, z: Tensor, dual: Tensor, forward: _Best, level: float, value_error: float
) -> None:
    """The least iterations of the adjoint with which dL/dW reaches the level, from the point of a forward pass."""
    prepared, setup = search.prepared, forward.setup
    limit = search.least(setup.newton, BOTH, level) - forward.iterations
    looked_at, seen, least = set(counts(most=max(4, limit))), [], math.inf
    for number, v in enumerate(loop.backward(dual, prepared.cotangent), 1):
        error = prepared.gradient_error(v.mT @ z)
        least = min(least, error)
        if error <= level:
            search.keep(BOTH, level, replace(forward, backward_iterations=number))
            return
        if number in looked_at:
            seen.append(error)
        if number >= limit or search.over or (seen and settled(seen)):
            break
    text = f"{setup.text(prepared.regularization)}; {forward.iterations} iterations"
    search.missed(BOTH, level, text, value_error, least)
