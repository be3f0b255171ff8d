"""What a researcher asks of the curves: iterations and work to an accuracy, plateaus, rates."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from implicit_bregman.experiments.study.hypergradient.curves import Curve

TARGETS = (1e-2, 1e-6)
FLOOR = 1e-16
# Errors between which a line is fitted: past the first steps, before rounding.
_FITTED = (1e-12, 1e-4)

Result = dict[str, Any]
"""What `measure` returned for one seed."""


@dataclass(frozen=True)
class Reached:
    """Where a curve goes below an error for good.

    Attributes:
        k: Iterations, interpolated.
        work: Work of these.
    """

    k: float
    work: float


def curves(results: Sequence[Result], method: str) -> list[Curve]:
    """The curves of a method, one per seed; empty where it was not run."""
    found = [result[part][method] for result in results for part in ("forward", "backward") if method in result[part]]
    return [curve for curve in found if curve["k"]]


def methods(results: Sequence[Result]) -> list[str]:
    """Names of the ways of differentiating, in the order in which they were measured."""
    return [name for part in ("forward", "backward") for name in results[0][part] if name != "forward"]


def reached(curve: Curve, target: float) -> Reached | None:
    """The first point from which on all errors are at most `target`; log error is interpolated linearly in k."""
    errors = curve["error"]
    later = [index for index, error in enumerate(errors) if not error <= target]
    first = later[-1] + 1 if later else 0
    if first == len(errors):
        return None
    if first == 0:
        return Reached(curve["k"][0], curve["work"][0])
    before, after = (math.log(max(errors[index], FLOOR)) for index in (first - 1, first))
    share = (before - math.log(target)) / (before - after)
    k, work = (curve[name][first - 1] + share * (curve[name][first] - curve[name][first - 1]) for name in ("k", "work"))
    return Reached(k, work)


def reached_by_all(results: Sequence[Result], method: str, target: float) -> Reached | None:
    """Medians over the seeds; None if a seed does not get there."""
    found = [reached(curve, target) for curve in curves(results, method)]
    there = [point for point in found if point is not None]
    if not there or len(there) < len(found):
        return None
    return Reached(statistics.median(p.k for p in there), statistics.median(p.work for p in there))


def geometric(values: Sequence[float]) -> float:
    """Geometric mean of errors, those below rounding counted as `FLOOR`."""
    return math.exp(statistics.fmean(math.log(max(value, FLOOR)) for value in values))


def rate(curve: Curve, times_k: bool = False) -> float | None:
    """r of error ≈ C rᵏ, or of error ≈ C k rᵏ, fitted where errors are small but above rounding; None: too few."""
    low, high = _FITTED
    pairs = list(zip(curve["k"], curve["error"], strict=True))
    points = [(k, math.log(error / k if times_k else error)) for k, error in pairs if low <= error <= high]
    if len(points) < 2:
        return None
    return math.exp(statistics.linear_regression(*zip(*points, strict=True)).slope)


def lag(result: Result) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """k, and the unrolled error over the implicit one there, at the first and at the last k with small errors."""
    implicit, unrolled = (result["forward"][method] for method in ("implicit-mm", "unrolled"))
    low, high = _FITTED
    triples = zip(implicit["k"], implicit["error"], unrolled["error"], strict=True)
    found = [(k, second / first) for k, first, second in triples if low <= first <= high]
    return (found[0], found[-1]) if len(found) > 1 else None


def slowest(result: Result) -> float:
    """The rate of MM that theory gives: of the free coordinates or of the approach to a bound."""
    theory = result["theory"]
    return max(theory["q"], theory["bound_rate"] or 0.0)


def rows(case: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Table rows of a case, one per method."""
    found = []
    for method in methods(results):
        per_seed = curves(results, method)
        row: dict[str, Any] = {"case": case, "method": method, "seeds": len(per_seed)}
        for target in TARGETS:
            at = reached_by_all(results, method, target)
            row[f"k_{target:g}"] = None if at is None else math.ceil(at.k - 1e-9)
            row[f"work_{target:g}"] = None if at is None else at.work
        ends = [curve["error"][-1] for curve in per_seed]
        row["last_k"] = statistics.median(curve["k"][-1] for curve in per_seed)
        row["last_error"], row["least"], row["largest"] = geometric(ends), min(ends), max(ends)
        row["last_cosine"] = min(curve["cosine"][-1] for curve in per_seed)
        row["failures"] = sum(result["failures"].get(method, 0) for result in results)
        found.append(row)
    return found
