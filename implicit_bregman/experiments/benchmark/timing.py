"""Interleaved repeats: A B C A B C …, so that a busy moment of the machine hits all contenders alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from implicit_bregman.experiments.benchmark.calls import Calls, count_calls
from implicit_bregman.experiments.benchmark.peers.contenders import SLOW, Contender, errors, raised, reaches, timed
from implicit_bregman.experiments.benchmark.prepared import Prepared
from implicit_bregman.experiments.benchmark.results import Entry

_LEAST, _FAST = 3, 0.5  # repeats that a run of less than so many seconds has in any case
_SLACK = 1.5  # how far a run may go beyond its share of the budget before it is no longer repeated


@contextmanager
def no_collector() -> Iterator[None]:
    """Keep the garbage collector from running."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def interleaved(
    runs: Sequence[Callable[[], object]], estimates: Sequence[float], repeats: int, budget: float
) -> list[tuple[float, ...]]:
    """Seconds of every run, `repeats` times in turn.

    Args:
        runs: What to time.
        estimates: Seconds that each is expected to take.
        repeats: How often.
        budget: Seconds for everything. A run that is slower than its share is repeated less often: at least
            three times if it takes less than half a second, once otherwise.

    Returns:
        For each run its times.
    """
    share = budget / max(1, len(runs))
    least = [min(repeats, _LEAST) if estimate < _FAST else 1 for estimate in estimates]
    planned = [max(few, min(repeats, int(share / max(e, 1e-9)))) for e, few in zip(estimates, least, strict=True)]
    found: list[list[float]] = [[] for _ in runs]
    with no_collector():
        for turn in range(max(planned, default=0)):
            for run, count, few, times in zip(runs, planned, least, found, strict=True):
                # On a busy machine the estimates are too small: then there are fewer repeats.
                if turn < count and (turn < few or sum(times) < _SLACK * share):
                    start = time.perf_counter()
                    run()
                    times.append(time.perf_counter() - start)
    return [tuple(times) for times in found]


def measure(prepared: Prepared, contenders: Sequence[Contender], repeats: int, budget: float) -> list[Entry]:
    """Check that the contenders reach what they are meant to, and time those that do.

    Returns:
        For each name, task and accuracy the entry with the smallest median, or one that is not reached.
    """
    begin, share = time.perf_counter(), budget / max(1, len(contenders))
    checked: list[tuple[Contender, float | None, float | None]] = []
    counted: dict[int, Calls] = {}
    once: dict[int, tuple[float, ...]] = {}
    for number, contender in enumerate(contenders):
        try:
            taken, z, gradients = timed(contender.run)
            if contender.estimate < SLOW:
                # The one above has loaded everything, this one finds the caches warm.
                calls = count_calls(contender.run)
                if contender.in_torch:
                    counted[number] = calls
        except RuntimeError as error:
            checked.append((replace(contender, settings=f"{contender.settings}: {raised(error)}"), None, None))
            once[number] = ()
            continue
        checked.append((contender, *errors(prepared, z, gradients)))
        if contender.estimate >= SLOW and 2 * contender.estimate > share:
            once[number] = (taken,)  # slower than the cap: this is its one repeat
    left = max(0.5 * budget, budget - (time.perf_counter() - begin))
    rest = [number for number in range(len(contenders)) if number not in once]
    runs, estimates = [contenders[k].run for k in rest], [contenders[k].estimate for k in rest]
    times_of = once | dict(zip(rest, interleaved(runs, estimates, repeats, left), strict=True))
    best: dict[tuple[str, str, float], Entry] = {}
    for number, (contender, value_error, gradient_error) in enumerate(checked):
        times, calls_of = times_of[number], counted.get(number)
        for level in contender.accuracies:
            reached = reaches(level, value_error, gradient_error, contender.task)
            entry = Entry(
                contender.name,
                contender.task,
                level,
                reached,
                contender.settings,
                value_error,
                gradient_error,
                times if reached else (),
                None if calls_of is None else calls_of.operators,
                None if calls_of is None else calls_of.synchronisations,
            )
            key = (contender.name, contender.task, level)
            old = best.get(key)
            if old is None or (entry.reached, -entry.median) > (old.reached, -old.median):
                best[key] = entry
    return list(best.values())
