"""Time and memory of forward and backward against d, B, the condition number and the number of iterations L."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import implicit_bregman as ib
from implicit_bregman.experiments.benchmark.cells import QuadraticCell
from implicit_bregman.experiments.benchmark.peers.contenders import OURS, differentiated, unrolled_value
from implicit_bregman.experiments.benchmark.peers.torchdeq import (
    CLAMPED,
    Method,
    Setup,
    mirror_equation,
    torchdeq_value,
)
from implicit_bregman.experiments.benchmark.prepared import Prepared, Value
from implicit_bregman.experiments.benchmark.results import ScalingPoint
from implicit_bregman.experiments.benchmark.timing import interleaved
from implicit_bregman.experiments.benchmark.truth import PreparedQuadratic, prepare
from implicit_bregman.experiments.machine.memory import bytes_held_for_backward

FIXED = 100  # iterations of the peers where L is not what varies
IMPLICIT_MM = "implicit, L MM steps"
AXES: dict[str, tuple[float, ...]] = {
    "d": (32, 64, 128, 256, 512, 1024),
    "B": (1, 8, 64, 512),
    "condition": (1, 10, 100, 1000),
    "L": (10, 30, 100, 300, 1000),
}
QUICK_AXES: dict[str, tuple[float, ...]] = {
    "d": (32, 128, 512),
    "B": (1, 64, 512),
    "condition": (10, 1000),
    "L": (10, 100, 300),
}


def places(quick: bool) -> list[tuple[str, float]]:
    """All points of all axes."""
    return [(axis, at) for axis, values in (QUICK_AXES if quick else AXES).items() for at in values]


def scaling_points(
    axis: str, at: float, torchdeq: bool, repeats: int, budget: float, base: QuadraticCell | None = None
) -> list[ScalingPoint]:
    """Measure every contender at one place.

    Args:
        axis: A key of `AXES`.
        at: The place on it.
        torchdeq: Whether torchdeq is installed.
        repeats: Timed repeats.
        budget: Seconds for all of them.
        base: The cell that one factor is changed of; default: the benchmark's base point.
    """
    changes: dict[str, dict[str, Any]] = {
        "d": {"dim": int(at)},
        "B": {"batch": int(at)},
        "condition": {"condition": at},
        "L": {},
    }
    prepared = prepare(replace(base or QuadraticCell("base"), **changes[axis]))
    steps = int(at) if axis == "L" else FIXED
    named = dict(_contenders(prepared, steps, axis == "L", torchdeq))
    estimates: dict[str, float] = {}
    held: dict[str, int] = {}
    for name, value in named.items():
        # What raises is left out: the cells tell of it.
        with contextlib.suppress(RuntimeError):
            run = differentiated(prepared, value)
            run()
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            held[name], estimates[name] = held_bytes(prepared, value), seconds
    runs = [differentiated(prepared, named[name]) for name in estimates]
    times = interleaved(runs, list(estimates.values()), repeats, budget)
    return [
        ScalingPoint(axis, float(at), name, repeated, held[name])
        for name, repeated in zip(estimates, times, strict=True)
    ]


def held_bytes(prepared: Prepared, value: Value) -> int:
    """Bytes that the forward pass holds for the backward pass, the parameters not counted."""
    return bytes_held_for_backward(lambda: value().sum(), prepared.parameters)


def _contenders(prepared: PreparedQuadratic, steps: int, varied: bool, torchdeq: bool) -> Iterator[tuple[str, Value]]:
    count = "L" if varied else str(steps)
    yield OURS, prepared.ours()
    if varied:
        # A tolerance that is never reached: exactly L steps, without the exact solve.
        plain = ib.solvers.MM(tol=1e-30, max_iter=steps, exact=False, on_failure="ignore")
        yield IMPLICIT_MM, prepared.ours(solver=plain)
    yield f"unrolled, {count} steps", unrolled_value(prepared, steps)
    if torchdeq:
        method = Method("anderson", {"m": 6, "lam": 1e-12, "tau": 1.0})
        setup = Setup(mirror_equation(prepared, CLAMPED, 1e-5), method, method)
        yield f"torchdeq Anderson, {count} + {count}", torchdeq_value(setup, steps, steps)
