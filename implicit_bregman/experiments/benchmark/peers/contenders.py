"""What a contender is, and two that need no package: this library and plain PyTorch unrolled."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from implicit_bregman.experiments.benchmark.prepared import Gradients, Prepared, Value
from implicit_bregman.experiments.benchmark.truth import PreparedQuadratic
from implicit_bregman.majorization import mm_step

OURS = "implicit-bregman"
TUNED = "implicit-bregman, tuned"
UNROLLED = "unrolled"
BOTH = "forward+backward"
FORWARD = "forward"
_DEFAULTS = "solver='auto', adjoint='implicit'"
SLOW = 2.0  # seconds from which a run needs no other one to warm up
LONGEST = 1000  # iterations that a sweep goes up to
_UNCHANGED = 6  # looks at a run over which its error does not change: it will not change any more
_WORTH = 2.0  # times the fastest setting's estimate up to which another one may turn out to be faster
_LOOSER = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_UNROLLED_BYTES = 2**30  # graph of the longest unrolled run
_TENSORS_PER_STEP = 4  # that autograd keeps of one unrolled step

Run = Callable[[], tuple[Tensor, Gradients | None]]
"""From the raw tensors to z and dL/dθ (None where only the forward pass is run)."""


@dataclass(frozen=True)
class Contender:
    """One way to solve a cell, ready to be timed.

    Attributes:
        name: Row of the tables.
        task: `BOTH` or `FORWARD`.
        settings: The settings it runs with, in words.
        run: The work.
        accuracies: The levels that it is meant to reach.
        estimate: Seconds that a run is expected to take.
        in_torch: Whether the work is calls of PyTorch, which can be counted.
    """

    name: str
    task: str
    settings: str
    run: Run = field(repr=False)
    accuracies: tuple[float, ...]
    estimate: float
    in_torch: bool = True


@dataclass(frozen=True)
class Failure:
    """Nothing reached the accuracy.

    Attributes:
        name: Row of the tables.
        task: `BOTH` or `FORWARD`.
        accuracy: The level.
        settings: What came closest, and how far the search went.
        value_error: Relative error of z there; None if nothing was run.
        gradient_error: Relative error of dL/dθ there; None if z was already too far off.
    """

    name: str
    task: str
    accuracy: float
    settings: str
    value_error: float | None
    gradient_error: float | None


Found = tuple[list[Contender], list[Failure]]
"""What a search returns."""


def counts(least: int = 3, most: int = LONGEST) -> tuple[int, ...]:
    """Numbers of iterations to look at: all up to 15, then in steps of a twelfth, ending with `most`."""
    found = [least]
    while found[-1] < most:
        found.append(min(most, max(found[-1] + 1, round(found[-1] * 13 / 12))))
    return tuple(found)


def settled(found: Sequence[float]) -> bool:
    """Whether the errors along a run have stopped changing, or are no longer numbers."""
    last = found[-_UNCHANGED:]
    return math.isinf(found[-1]) or (len(last) == _UNCHANGED and max(last) <= 1.02 * min(last))


def raised(error: RuntimeError) -> str:
    """What to say of a run that ended with an error."""
    return f"raised {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:100]}"


def worth_timing(contenders: Sequence[Contender]) -> list[Contender]:
    """Those that are expected to take at most `_WORTH` times as long as the fastest of their name, task and levels."""
    fastest: dict[tuple[str, str, tuple[float, ...]], float] = {}
    for contender in contenders:
        key = contender.name, contender.task, contender.accuracies
        fastest[key] = min(contender.estimate, fastest.get(key, math.inf))
    return [c for c in contenders if c.estimate <= _WORTH * fastest[c.name, c.task, c.accuracies]]


def timed(run: Run) -> tuple[float, Tensor, Gradients | None]:
    """Seconds, z and dL/dθ of one run."""
    start = time.perf_counter()
    z, gradients = run()
    return time.perf_counter() - start, z, gradients


def errors(prepared: Prepared, z: Tensor, gradients: Gradients | None) -> tuple[float, float | None]:
    """Relative errors of z and of dL/dθ."""
    return prepared.value_error(z), None if gradients is None else prepared.gradient_error(*gradients)


def reaches(accuracy: float, value_error: float | None, gradient_error: float | None, task: str) -> bool:
    """Whether z, and dL/dθ where it is asked for, are within the accuracy."""
    needed = (value_error,) if task == FORWARD else (value_error, gradient_error)
    return all(error is not None and error <= accuracy for error in needed)


def differentiated(prepared: Prepared, value: Value) -> Run:
    """z and dL/dθ of L = ⟨G, z⟩."""

    def run() -> tuple[Tensor, Gradients | None]:
        z = value()
        gradients = torch.autograd.grad((z * prepared.cotangent).sum(), prepared.parameters)
        return z.detach(), gradients

    return run


def without_gradient(value: Value) -> Run:
    """z alone."""

    def run() -> tuple[Tensor, Gradients | None]:
        with torch.no_grad():
            return value(), None

    return run


def passes(prepared: Prepared, value: Value, task: str) -> Run:
    """What the task asks for."""
    return differentiated(prepared, value) if task == BOTH else without_gradient(value)


def library(prepared: Prepared, tol: float | None = None, task: str = BOTH) -> Run:
    """This library as a contender."""
    return passes(prepared, prepared.ours(tol), task)


def by_tolerance(
    prepared: Prepared,
    name: str,
    task: str,
    tried: Iterable[tuple[str, Value]],
    accuracies: Sequence[float],
    deadline: float,
) -> Found:
    """The first setting of a peer that reaches each accuracy.

    Args:
        prepared: The cell.
        name: The peer's.
        task: `BOTH` or `FORWARD`.
        tried: Its settings in words and in deed, the loosest tolerance first.
        accuracies: Levels.
        deadline: When the search has to end.

    Returns:
        One contender for each level, and the nearest miss of those that none reached.
    """
    found: list[Contender] = []
    pending = sorted(accuracies, reverse=True)
    nothing = "cap reached before its first run"
    nearest = {level: Failure(name, task, level, nothing, None, None) for level in accuracies}
    for text, value in tried:
        if not pending or time.perf_counter() > deadline:
            break
        run = passes(prepared, value, task)
        seconds, z, gradients = timed(run)
        value_error, gradient_error = errors(prepared, z, gradients)
        for level in list(pending):
            if reaches(level, value_error, gradient_error, task):
                if seconds < SLOW:
                    seconds = timed(run)[0]
                found.append(Contender(name, task, text, run, (level,), seconds))
                pending.remove(level)
            else:
                old = nearest[level].value_error
                if old is None or value_error < old:
                    nearest[level] = Failure(name, task, level, text, value_error, gradient_error)
    return found, [nearest[level] for level in pending]


def our_contenders(prepared: Prepared, accuracies: Sequence[float], task: str, tuning: float) -> Found:
    """The defaults, and the loosest tolerance that still reaches each accuracy.

    Args:
        prepared: The cell.
        accuracies: Levels.
        task: `BOTH` or `FORWARD`.
        tuning: Seconds for the search of the tolerance; 0 for none.
    """
    found: list[Contender] = []
    failures: list[Failure] = []
    run = library(prepared, task=task)
    try:
        seconds, z, gradient = timed(run)
        if seconds < SLOW:
            seconds, z, gradient = timed(run)
    except RuntimeError as error:
        return found, [Failure(OURS, task, level, raised(error), None, None) for level in accuracies]
    value_error, gradient_error = errors(prepared, z, gradient)
    good = tuple(level for level in accuracies if reaches(level, value_error, gradient_error, task))
    if good:
        found.append(Contender(OURS, task, _DEFAULTS, run, good, seconds))
    for level in set(accuracies) - set(good):
        failures.append(Failure(OURS, task, level, _DEFAULTS, value_error, gradient_error))
    deadline = time.perf_counter() + tuning
    looser: list[Contender] = []
    for tol in _LOOSER:
        if time.perf_counter() + seconds > deadline:
            break
        run = library(prepared, tol, task)
        try:
            tried, z, gradient = timed(run)
        except RuntimeError:
            continue
        good = tuple(level for level in accuracies if reaches(level, *errors(prepared, z, gradient), task))
        if good:
            looser.append(Contender(TUNED, task, f"Auto(tol={tol:g}), Implicit(tol={tol:g})", run, good, tried))
    best = {level: min(able, key=lambda c: c.estimate) for level in accuracies if (able := _able(looser, level))}
    found.extend({id(contender): contender for contender in best.values()}.values())
    return found, failures


def unrolled_value(prepared: PreparedQuadratic, steps: int) -> Value:
    """MM steps in a plain loop."""

    def value() -> Tensor:
        dual = torch.zeros_like(prepared.offset)
        for _ in range(steps):
            dual = _step(prepared, dual)
        return prepared.geometry.activation(dual)

    return value


def unrolled_contenders(prepared: PreparedQuadratic, accuracies: Sequence[float], cap: float) -> Found:
    """The least number L of steps that reaches each accuracy."""
    per_step = _TENSORS_PER_STEP * prepared.offset.numel() * prepared.offset.element_size()
    longest = max(5, min(LONGEST, _UNROLLED_BYTES // per_step))
    deadline = time.perf_counter() + cap
    looked_at = counts(most=longest)
    values: dict[int, float] = {}
    with torch.no_grad():
        dual = torch.zeros_like(prepared.offset)
        for k in range(1, longest + 1):
            dual = _step(prepared, dual)
            if k in looked_at:
                values[k] = prepared.value_error(prepared.geometry.activation(dual))
                if settled(list(values.values())) or time.perf_counter() > deadline:
                    break
    found: list[Contender] = []
    failures: list[Failure] = []
    for level in accuracies:
        closest = min(values, key=lambda k: values[k])
        failure = Failure(UNROLLED, BOTH, level, f"L = {closest}, of up to {max(values)}", values[closest], None)
        able = [k for k, error in values.items() if error <= level]
        best: Contender | None = None
        # The longest run first: if its gradient is not good enough, none is. Then by bisection to the shortest.
        first, last = 0, len(able) - 1
        at = last
        while first <= last and time.perf_counter() <= deadline:
            run = differentiated(prepared, unrolled_value(prepared, able[at]))
            seconds, z, gradient = timed(run)
            value_error, gradient_error = errors(prepared, z, gradient)
            if reaches(level, value_error, gradient_error, BOTH):
                best = Contender(UNROLLED, BOTH, f"L = {able[at]}", run, (level,), seconds)
                last = at - 1
            else:
                text = f"L = {able[at]}, of up to {max(values)}"
                failure = Failure(UNROLLED, BOTH, level, text, value_error, gradient_error)
                first = at + 1
            at = (first + last) // 2
        if best is None:
            failures.append(failure)
        else:
            found.append(best)
    return found, failures


def _step(prepared: PreparedQuadratic, dual: Tensor) -> Tensor:
    gradient = -(prepared.geometry.activation(dual) @ prepared.weight.T + prepared.offset)
    return mm_step(prepared.geometry, dual, gradient, torch.as_tensor(prepared.step).to(dual), prepared.regularization)


def _able(contenders: Sequence[Contender], level: float) -> list[Contender]:
    return [contender for contender in contenders if level in contender.accuracies]
