"""What the geometry study found, in computed sentences."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

from implicit_bregman.experiments.reference.active import has_bound
from implicit_bregman.experiments.study.geometry.boxes import BOX_GEOMETRIES
from implicit_bregman.experiments.study.geometry.run import Measured
from implicit_bregman.experiments.study.geometry.settings import GeometrySettings
from implicit_bregman.experiments.study.geometry.training import REGIMES, Regime
from implicit_bregman.legendre import geometry as find_geometry

# With five seeds as rare by chance as one in 25.
ERRORS = 3.0
# A share of samples above this that plain MM did not finish makes a geometry slow.
SLOW = 0.5
# On [-1, 1] these are tanh with 2φ and 1.5φ.
TANH_AGAIN = ("sigmoid", "scaled_tanh")
Names = Sequence[str]


def geometry_findings(settings: GeometrySettings, measured: Measured) -> tuple[str, ...]:
    """The findings, also the unflattering ones."""
    told = [_one_box(measured), _plain_mm(measured), _only_scale(measured)]
    for regime in REGIMES:
        told += _accuracy(measured, regime, settings.geometries)
    told.append(_indefinite(measured, settings.geometries))
    told.append(_slow(measured, settings.geometries))
    told.append(_saturated(measured, settings.geometries))
    told.append(_failures(measured, settings.geometries))
    told.append(_basins(measured))
    return tuple(text for text in told if text)


def _one_box(measured: Measured) -> str:
    parts = []
    for regime, found in measured.boxes.items():
        others = BOX_GEOMETRIES[1:]
        limit = max(item["limit"][name] for item in found for name in others)
        parameters = max(item["parameters"][name][-1] for item in found for name in others)
        answers = max(item["answers"][name] for item in found for name in others)
        parts.append(
            f"{regime.name}: {limit:.1e} in z, {parameters:.1e} in the parameters, {100 * answers:.1f} % other answers"
        )
    return (
        "Six geometries on one box, largest difference from tanh over geometries and seeds, in z at equal parameters, "
        f"in the trained parameters (relative) and in the answers: {'; '.join(parts)}."
    )


def _plain_mm(measured: Measured) -> str:
    found = next(items for regime, items in measured.boxes.items() if regime.solver == "mm")
    gaps = [gap for item in found for gap in item["mm_limit"].values() if gap is not None]
    short = {name: statistics.fmean(item["mm_short"][name] for item in found) for name in BOX_GEOMETRIES}
    late = [f"{name} {100 * share:.0f} %" for name, share in short.items() if share > 0]
    return (
        "With γ=0 the default solver works on the box alone, so that its 0 says nothing; MM steps in the geometry of "
        f"φ. Plain MM, without an exact solve: the limits that were reached differ by at most "
        f"{max(gaps, default=math.nan):.1e}; not reached: {', '.join(late) or 'none'}."
    )


def _only_scale(measured: Measured) -> str:
    found = next(items for regime, items in measured.boxes.items() if regime.relative)
    same = max(item["limit"][name] for item in found for name in TANH_AGAIN)
    others = [name for name in BOX_GEOMETRIES[1:] if name not in TANH_AGAIN]
    shape = {name: max(item["limit"][name] for item in found) for name in others}
    return (
        f"With γ > 0 on one box, {' and '.join(TANH_AGAIN)} are tanh with another γ: at γσ=0.1 they differ from it by "
        f"{same:.1e} in z. What the shape of φ alone changes there: "
        f"{', '.join(f'{name} {gap:.2g}' for name, gap in shape.items())}."
    )


def _accuracies(measured: Measured, regime: Regime, names: Names) -> dict[str, list[float]]:
    """Accuracies in percent, one per seed, of the geometries whose runs all ended."""
    found = {}
    for name in names:
        values = [run["accuracy"] for run in measured.runs[regime, name]]
        if None not in values:
            found[name] = [100 * share for share in values]
    return found


def _accuracy(measured: Measured, regime: Regime, names: Names) -> list[str]:
    found = _accuracies(measured, regime, names)
    if len(found) < 2:
        return []
    means = {name: statistics.fmean(values) for name, values in found.items()}
    best, worst = max(means, key=lambda name: means[name]), min(means, key=lambda name: means[name])
    text = (
        f"{regime.name}: accuracy from {means[worst]:.2f} % ({worst}) to {means[best]:.2f} % ({best}); spread over the "
        f"seeds {_pooled(found.values()):.2f}"
    )
    groups = []
    for group in _groups(list(found)):
        inside = [means[name] for name in group]
        groups.append(f"{', '.join(group)} {max(inside) - min(inside):.2f}")
    within = f"; largest difference of means on one domain: {'; '.join(groups)}" if groups else ""
    return [f"{text}{within}{_resolved(found)}."]


def _resolved(found: dict[str, list[float]]) -> str:
    """Pairs on one domain whose difference, seed by seed, is not chance."""
    pairs = [pair for group in _groups(list(found)) for pair in itertools.combinations(group, 2)]
    clear = []
    for one, other in pairs:
        gaps = [a - b for a, b in zip(found[one], found[other], strict=True)]
        if len(gaps) < 2:
            return ""
        if abs(statistics.fmean(gaps)) > ERRORS * statistics.stdev(gaps) / math.sqrt(len(gaps)):
            clear.append(f"{one} − {other} {statistics.fmean(gaps):+.2f}")
    return (
        f"; more than {ERRORS:g} standard errors of the difference, seed by seed, in {len(clear)} of {len(pairs)} pairs"
        f"{': ' if clear else ''}{', '.join(clear)}"
    )


def _pooled(values: Any) -> float:
    """Root mean square of the standard deviations over the seeds; 0 for one seed."""
    spreads = [statistics.stdev(item) if len(item) > 1 else 0.0 for item in values]
    return math.sqrt(statistics.fmean(spread**2 for spread in spreads))


def _groups(names: Names) -> list[list[str]]:
    """Geometries with the same domain, two or more."""
    groups: dict[tuple[float, float], list[str]] = {}
    for name in names:
        groups.setdefault(find_geometry(name).domain, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _indefinite(measured: Measured, names: Names) -> str:
    regime = next(regime for regime in REGIMES if regime.weight == "symmetric")
    highest = [run["highest"] for name in names for run in measured.runs[regime, name] if run["highest"] is not None]
    if not highest:
        return ""
    positive = sum(value > 0 for value in highest)
    several = sum(
        run["highest"] > regime.regularization * find_geometry(name).strong_convexity
        for name in names
        for run in measured.runs[regime, name]
        if run["highest"] is not None
    )
    return (
        f"{regime.name}: W is indefinite after {positive} of {len(highest)} trainings, its largest eigenvalue up to "
        f"{max(highest):.2f}; above γσ, where there may be several critical points, in {several}."
    )


def _slow(measured: Measured, names: Names) -> str:
    parts = []
    for regime in REGIMES:
        steps, slow = {}, []
        for name in names:
            runs = [run for run in measured.runs[regime, name] if run["mm_steps"] is not None]
            if not runs:
                continue
            if statistics.fmean(run["mm_short"] for run in runs) > SLOW:
                slow.append(name)
            else:
                steps[name] = statistics.median(run["mm_steps"] for run in runs)
        if not steps:
            continue
        low, high = min(steps, key=lambda name: steps[name]), max(steps, key=lambda name: steps[name])
        late = f", not within the limit of steps: {', '.join(slow)}" if slow else ""
        parts.append(f"{regime.name}: {steps[low]:.0f} ({low}) to {steps[high]:.0f} ({high}){late}")
    return f"MM steps to the limit, median: {'; '.join(parts)}."


def _saturated(measured: Measured, names: Names) -> str:
    parts = []
    for regime in REGIMES:
        shares = {}
        for name in names:
            values = [run["active"] for run in measured.runs[regime, name] if run["active"] is not None]
            if values and has_bound(find_geometry(name)):
                shares[name] = 100 * statistics.fmean(values)
        some = [f"{name} {share:.1f}" for name, share in shares.items() if share >= 0.05]
        parts.append(f"{regime.name}: {', '.join(some) or 'none'}")
    return f"Coordinates on a bound [%], geometries with a bound and 0.05 % or more: {'; '.join(parts)}."


def _failures(measured: Measured, names: Names) -> str:
    lost, some, count = [], [], 0
    for regime in REGIMES:
        for name in names:
            runs = measured.runs[regime, name]
            count += len(runs)
            reasons = sorted({run["gave_up"] for run in runs if run["gave_up"]})
            if reasons:
                steps = sorted(run["steps"] for run in runs if run["gave_up"])
                share = f"{len(steps)} of {len(runs)} runs, after {steps[0]} to {steps[-1]} steps"
                lost.append(f"{name}, {regime.name} ({share}: {'; '.join(reasons)})")
            bad = [run["unsolved"] for run in runs if run["unsolved"]]
            gradients = [run["unsolved_adjoints"] for run in runs if run["unsolved_adjoints"]]
            if bad or gradients:
                worst = max(bad, default=0.0), max(gradients, default=0.0)
                some.append(f"{name}, {regime.name} ({100 * worst[0]:.2g} %, adjoint {100 * worst[1]:.2g} %)")
    return (
        f"Of {count} trainings, given up: {'; '.join(lost) or 'none'}. Largest share of unsolved forward and adjoint "
        f"solves in one training, where not 0: {'; '.join(some) or 'none'}."
    )


def _basins(measured: Measured) -> str:
    parts, unsolved = [], []
    for name in BOX_GEOMETRIES[1:]:
        shares = [item["elsewhere"][name] for item in measured.basins if item["elsewhere"][name] is not None]
        distances = [item["distance"][name] for item in measured.basins if item["distance"][name] is not None]
        far = f" (by {statistics.fmean(distances):.2g})" if distances else ""
        parts.append(f"{name} {100 * statistics.fmean(shares):.1f} %{far}" if shares else f"{name} –")
    for name in BOX_GEOMETRIES:
        share = statistics.fmean(item["unsolved"][name] for item in measured.basins)
        if share:
            unsolved.append(f"{name} {100 * share:.1f} %")
    return (
        f"W indefinite, γ=0, one box, the same start: samples whose limit is another than tanh's: {', '.join(parts)}; "
        f"not solved and left out: {', '.join(unsolved) or 'none'}."
    )
