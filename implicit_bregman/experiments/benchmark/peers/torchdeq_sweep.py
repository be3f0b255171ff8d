"""The search for torchdeq's cheapest setup: one recorded run per setup tells the error after every iteration."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from implicit_bregman.experiments.benchmark.peers.contenders import (
    Contender,
    Failure,
    Found,
    counts,
    differentiated,
    settled,
)
from implicit_bregman.experiments.benchmark.peers.torchdeq import (
    NAMES,
    TASK,
    Equation,
    FixedPoint,
    Method,
    Setup,
    setups,
    torchdeq_value,
)
from implicit_bregman.experiments.benchmark.prepared import Prepared

_KEPT, _QUICK_KEPT = 3, 2  # setups per method and accuracy that are timed properly
_TRIES = 4  # forward iterates per setup and accuracy from which the backward pass is searched
_FIRST_SHARE = 0.25  # of the time that is left, for the next setup
_SPACING = 1.2  # between their numbers of iterations
_ABANDONED = (torch.linalg.LinAlgError, MemoryError)


@dataclass(frozen=True)
class _Iterate:
    """What a solver had after `count` iterations, and the seconds that it had taken."""

    count: int
    seconds: float
    value: Tensor
    error: float


class _Stop(Exception):
    """The run has shown what it can."""


@dataclass
class _Recorder:
    """A map that notes the solver's results on the way; the noting itself is not on its clock."""

    function: Callable[[Tensor], Tensor]
    judge: Callable[[Tensor], float]
    limit: float
    enough: float
    behind: bool  # whether the solver's result is the last input of the map, not its last output
    looked_at: tuple[int, ...] = field(default_factory=counts)
    found: list[_Iterate] = field(default_factory=list)
    calls: int = 0
    paused: float = 0.0
    start: float = field(default_factory=time.perf_counter)

    def __call__(self, x: Tensor, tau: float = 1.0) -> Tensor:
        out = self.function(x)
        self.calls += 1
        now = time.perf_counter()
        spent = now - self.start - self.paused
        count = self.calls - 1 if self.behind else self.calls
        if count in self.looked_at:
            result = (x if self.behind else out).detach()
            error = self.judge(result)
            self.found.append(_Iterate(count, spent, result, error))
            self.paused += time.perf_counter() - now
            if error <= self.enough or settled([item.error for item in self.found]):
                raise _Stop
        if spent > self.limit:
            raise _Stop
        return out


def _record(method: Method, recorder: _Recorder, start: Tensor) -> list[_Iterate]:
    """Run a solver until the recorder has seen enough; a singular system inside torchdeq ends it too."""
    recorder.looked_at = counts(most=method.longest)
    try:
        method.solve(recorder, start, method.longest + 1)
    except (_Stop, *_ABANDONED):
        pass
    return recorder.found


@dataclass(frozen=True)
class _Candidate:
    setup: Setup
    iterations: int
    backward_iterations: int
    seconds: float

    @property
    def text(self) -> str:
        return f"{self.setup.text}; {self.iterations} + {self.backward_iterations} iterations"


@dataclass
class _Search:
    """What is known so far: the best candidates per method and accuracy, and the nearest misses."""

    prepared: Prepared
    accuracies: Sequence[float]
    candidates: dict[tuple[str, float], list[_Candidate]] = field(default_factory=dict)
    misses: dict[tuple[str, float], tuple[float, Failure]] = field(default_factory=dict)

    def best(self, name: str, level: float) -> float:
        return min((c.seconds for c in self.candidates.get((name, level), [])), default=math.inf)

    def missed(self, setup: Setup, level: float, count: int, value: float, gradient: float | None) -> None:
        name = NAMES[setup.forward.name]
        # A miss by the gradient alone is nearer than one by z.
        distance = value if gradient is None else max(value, gradient)
        key = (name, level)
        old = self.misses.get(key)
        better = old is None or (gradient is not None, -distance) > (old[1].gradient_error is not None, -old[0])
        if better:
            text = f"{setup.text}; {count} iterations"
            self.misses[key] = (distance, Failure(name, TASK, level, text, value, gradient))


def torchdeq_contenders(
    prepared: Prepared,
    equations: Sequence[Equation],
    accuracies: Sequence[float],
    cap: float,
    quick: bool = False,
) -> Found:
    """Sweep equation, solver, regularization, memory and iterations of both passes.

    Every setup is run once, to the time that the best one known for its method needs.

    Args:
        prepared: The cell.
        equations: What torchdeq may solve for it.
        accuracies: The levels to be reached.
        cap: Seconds for the whole sweep.
        quick: Fewer setups, and fewer of them timed.

    Returns:
        The cheapest ones, and for each method and level that none reached the nearest miss.
    """
    search = _Search(prepared, accuracies)
    kept = _QUICK_KEPT if quick else _KEPT
    deadline = time.perf_counter() + cap
    pending = list(_grouped(setups(prepared, equations, quick)))
    examined = 0
    for number, group in enumerate(pending):
        left = deadline - time.perf_counter()
        if left <= 0:
            break
        examined += 1
        # The promising ones come first and may take more than an equal share.
        _examine(search, group, max(2 * left / (len(pending) - number + 1), _FIRST_SHARE * left))
    found: list[Contender] = []
    failures: list[Failure] = []
    swept = "" if examined == len(pending) else f" (cap: {examined} of {len(pending)} setups swept)"
    for name in NAMES.values():
        for level in accuracies:
            able = sorted(search.candidates.get((name, level), []), key=lambda c: c.seconds)[:kept]
            for chosen in able:
                value = torchdeq_value(chosen.setup, chosen.iterations, chosen.backward_iterations)
                run = differentiated(prepared, value)
                found.append(Contender(name, TASK, chosen.text, run, (level,), chosen.seconds))
            if not able:
                nearest = search.misses.get((name, level))
                failures.append(
                    Failure(name, TASK, level, "cap reached before its first run", None, None)
                    if nearest is None
                    else _with_note(nearest[1], swept)
                )
    return found, failures


def _with_note(failure: Failure, note: str) -> Failure:
    return Failure(
        failure.name,
        failure.task,
        failure.accuracy,
        failure.settings + note,
        failure.value_error,
        failure.gradient_error,
    )


def _grouped(every: Sequence[Setup]) -> Iterator[list[Setup]]:
    """Setups that share a forward pass, together."""
    groups: dict[tuple[str, str], list[Setup]] = {}
    for setup in every:
        groups.setdefault((setup.equation.text, setup.forward.text), []).append(setup)
    yield from groups.values()


def _examine(search: _Search, group: list[Setup], share: float) -> None:
    """One forward run; from its iterates that are accurate enough, backward runs."""
    first = group[0]
    prepared, name = search.prepared, NAMES[first.forward.name]
    step = first.equation.opened()
    limit = min(0.5 * share, max(search.best(name, level) for level in search.accuracies))

    def judge(x: Tensor) -> float:
        return prepared.value_error(step.value(step(x)))

    start = step.start()
    recorder = _Recorder(step, judge, limit, 0.0, first.forward.name == "broyden")
    with torch.no_grad():
        iterates = _record(first.forward, recorder, start)
    ending = time.perf_counter() + share  # a backward run may take half of what is left of that
    for level in search.accuracies:
        able = [item for item in iterates if item.error <= level]
        if not able:
            if iterates:
                nearest = min(iterates, key=lambda item: item.error)
                search.missed(first, level, nearest.count, nearest.error, None)
            continue
        for item in _spaced(able)[:_TRIES]:
            reached = [_backward(search, step, setup, item, level, ending) for setup in group]
            if any(reached):
                break


def _spaced(items: Sequence[_Iterate]) -> list[_Iterate]:
    chosen = [items[0]]
    for item in items[1:]:
        if item.count >= _SPACING * chosen[-1].count:
            chosen.append(item)
    return chosen


def _backward(search: _Search, step: FixedPoint, setup: Setup, item: _Iterate, level: float, ending: float) -> bool:
    """Search the iterations of the backward pass from one forward iterate; True if the level was reached."""
    prepared, name = search.prepared, NAMES[setup.forward.name]
    limit = min(search.best(name, level) - item.seconds, 0.5 * (ending - time.perf_counter()))
    if limit <= 0:
        return False
    # As torchdeq does it: the parameters' gradient at f(x), the linear system at the point after it.
    after = step(item.value)
    at = after.detach().requires_grad_()
    beyond = step(at)
    (cotangent,) = torch.autograd.grad(step.value(at), at, prepared.cotangent)

    def adjoint(u: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(beyond, at, u, retain_graph=True)
        return product + cotangent

    def judge(u: Tensor) -> float:
        return prepared.gradient_error(*torch.autograd.grad(after, prepared.parameters, u, retain_graph=True))

    recorder = _Recorder(adjoint, judge, limit, level, setup.backward.name == "broyden")
    iterates = _record(setup.backward, recorder, torch.zeros_like(cotangent))
    if not iterates:
        return False
    nearest = min(iterates, key=lambda entry: entry.error)
    if nearest.error > level:
        search.missed(setup, level, item.count, item.error, nearest.error)
        return False
    found = _Candidate(setup, item.count, nearest.count, item.seconds + nearest.seconds)
    search.candidates.setdefault((name, level), []).append(found)
    return True
