"""The targets of the benchmark, each with what was measured: met, or missed by how much."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from implicit_bregman.experiments.benchmark.peers.contenders import BOTH, FORWARD, TUNED
from implicit_bregman.experiments.benchmark.peers.convolution import OWN
from implicit_bregman.experiments.benchmark.peers.proxqp import NAME as PROXQP
from implicit_bregman.experiments.benchmark.peers.splitting import NAME as SPLITTING
from implicit_bregman.experiments.benchmark.results import TORCHDEQ, Benchmark, CellResult

LEVEL, QP_LEVEL = 1e-3, 1e-6
LAYER_LEVELS = (1e-3, 1e-5)
_CONDITION = 1000.0  # largest condition number that the errors are promised for
_QP_BATCH = 64

MET, MISSED, UNKNOWN = "met", "missed", "not measured"


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        name: What is asked of.
        goal: How much.
        measured: What was found.
        verdict: `MET`, `MISSED` or `UNKNOWN`.
        margin: By how much it was missed; "" otherwise.
    """

    name: str
    goal: str
    measured: str
    verdict: str
    margin: str = ""


def targets(benchmark: Benchmark) -> list[Target]:
    """All targets, in the order in which they were set."""
    quadratic, convolutions, fields = (_of(benchmark, name) for name in ("quadratic", "convolution", "field"))
    layers = [cell for cell in quadratic if cell.facts["margin"] is not None]
    cells = [cell for cell in quadratic if cell.facts["kind"] == "convex" and cell.facts["margin"] is None]
    plain = [cell for cell in cells if cell.facts["regularization"] == 0]
    regular = [cell for cell in cells if cell.facts["regularization"] > 0]
    batches = [cell for cell in plain if cell.facts["batch"] >= _QP_BATCH]
    return [
        _speed("forward + backward to 1e-3 against torchdeq's best, γ = 0", plain, TORCHDEQ, LEVEL, 20.0),
        _speed("forward + backward to 1e-3 against torchdeq's best, γ > 0", regular, TORCHDEQ, LEVEL, 5.0),
        *(
            _speed(
                f"layers like monDEQ's, {task} to 1e-6 against {SPLITTING}", layers, SPLITTING, QP_LEVEL, 1.0, task, 0.5
            )
            for task in (FORWARD, BOTH)
        ),
        _qp_speed(batches),
        *_layer_speeds(convolutions, fields),
        _field_errors(fields),
        *_errors("relative error of z", quadratic, lambda cell: cell.value_error, 1e-9, 1e-5),
        *_errors("relative error of dL/dW", quadratic, lambda cell: cell.gradient_error, 1e-8, 1e-4),
        _limits(benchmark),
        _memory(benchmark),
        _layers(benchmark),
        Target("the same on a GPU", "–", "the benchmark runs on the CPU alone", UNKNOWN),
    ]


def _of(benchmark: Benchmark, family: str) -> list[CellResult]:
    return [cell for cell in benchmark.cells if cell.facts["family"] == family]


def _layer_speeds(convolutions: Sequence[CellResult], fields: Sequence[CellResult]) -> list[Target]:
    """Forward and backward in every cell, to each level."""
    own = [cell for cell in convolutions if cell.facts["kind"] == "convex"]
    asked = (
        ("convolutional layers", own, "the user's own energy", OWN, 5.0),
        ("convolutional layers", convolutions, SPLITTING, SPLITTING, 2.0),
        ("convolutional layers", convolutions, "torchdeq's best", TORCHDEQ, 2.0),
        ("fields", fields, "torchdeq's best", TORCHDEQ, 1.0),
    )
    return [
        _speed(f"{what}, {BOTH} to {level:.0e} against {whom}", cells, peer, level, least, floor=least)
        for what, cells, whom, peer, least in asked
        for level in LAYER_LEVELS
    ]


def _field_errors(fields: Sequence[CellResult]) -> Target:
    name, goal = "fields: relative error of the gradients", "≤ 1e-05"
    errors = {cell.name: cell.gradient_error for cell in fields}
    if not errors:
        return Target(name, goal, "no such cell", UNKNOWN)
    return _bounded(name, goal, errors, 1e-5)


def _speed(
    name: str,
    cells: Sequence[CellResult],
    peer: str,
    level: float,
    least: float,
    task: str = BOTH,
    floor: float = 1.0,
) -> Target:
    """Median ratio over the cells in which the peer gets there, and no cell below the floor."""
    goal = f"median ≥ {least:g}×, {'no cell slower' if floor == 1 else f'every cell ≥ {floor:g}×'}"
    if not any((entry.task, entry.accuracy) == (task, level) for cell in cells for entry in cell.entries):
        return Target(name, goal, "–", UNKNOWN)
    ratios = {cell.name: ratio for cell in cells if (ratio := cell.ratio(peer, level, task)) is not None}
    # A cell that only the peer solves is one in which this library is slower, by any factor.
    lost = [c.name for c in cells if c.name not in ratios and c.best(peer, level, task) is not None]
    alone = len(cells) - len(ratios) - len(lost)
    if not ratios and not lost:
        return Target(name, goal, f"{alone} cells, the peer reached it in none", UNKNOWN)
    median = statistics.median([*ratios.values(), *(0.0 for _ in lost)])
    slower = [cell for cell, ratio in ratios.items() if ratio < floor] + lost
    least_cell = min(ratios, key=lambda cell: ratios[cell], default="")
    measured = f"median {median:.3g}× over {len(ratios) + len(lost)} cells"
    if ratios:
        measured += f", least {ratios[least_cell]:.3g}× ({least_cell})"
    measured += f"; the peer did not get there in {alone} more"
    # (where no looser tolerance gets there, the defaults are the tuned settings)
    tuned = [cell.ratio(peer, level, task, TUNED) or ratios[cell.name] for cell in cells if cell.name in ratios]
    if tuned:
        measured += ". With a tolerance tuned to the level, as the peer's iterations are: median "
        measured += f"{statistics.median(tuned):.3g}×, least {min(tuned):.3g}×"
    margins = []
    if median < least:
        margins.append(f"the median by a factor of {least / median:.2g}" if median > 0 else "the median")
    if slower:
        margins.append(f"{'slower' if floor == 1 else 'too slow'} in {', '.join(slower)}")
    return Target(name, goal, measured, MISSED if margins else MET, "; ".join(margins))


def _qp_speed(cells: Sequence[CellResult]) -> Target:
    name, goal = "forward to 1e-6, B ≥ 64, against ProxQP's parallel batch", "≥ 2× in every cell"
    ratios = {cell.name: ratio for cell in cells if (ratio := cell.ratio(PROXQP, QP_LEVEL, FORWARD)) is not None}
    if not ratios:
        return Target(name, goal, "no cell in which both reached it", UNKNOWN)
    least = min(ratios, key=lambda cell: ratios[cell])
    measured = f"least {ratios[least]:.3g}× ({least}), median {statistics.median(ratios.values()):.3g}×"
    measured += f", {len(ratios)} cells"
    short = [cell for cell, ratio in ratios.items() if ratio < 2]
    if not short:
        return Target(name, goal, measured, MET)
    return Target(name, goal, measured, MISSED, f"by a factor of {2 / ratios[least]:.2g} at most: {', '.join(short)}")


def _errors(
    name: str, cells: Sequence[CellResult], error: Callable[[CellResult], float], double: float, single: float
) -> list[Target]:
    found = []
    for dtype, bound in (("float64", double), ("float32", single)):
        title, goal = f"{name}, {dtype}, condition ≤ 1000", f"≤ {bound:.0e}"
        errors = {
            cell.name: error(cell)
            for cell in cells
            if cell.facts["dtype"] == dtype and cell.facts["condition"] <= _CONDITION
        }
        if not errors:
            found.append(Target(title, goal, "no such cell", UNKNOWN))
            continue
        found.append(_bounded(title, goal, errors, bound))
    return found


def _bounded(name: str, goal: str, errors: dict[str, float], bound: float) -> Target:
    worst = max(errors, key=lambda cell: errors[cell])
    measured = f"at most {errors[worst]:.2g} ({worst}), {len(errors)} cells"
    above = [cell for cell, value in errors.items() if not value <= bound]
    if not above:
        return Target(name, goal, measured, MET)
    margin = f"by a factor of {errors[worst] / bound:.2g} at most: {', '.join(above)}"
    return Target(name, goal, measured, MISSED, margin)


def _limits(benchmark: Benchmark) -> Target:
    name, goal = "samples on MM's own limit, indefinite W", "≥ 99.5 %"
    counted = sum(row.counted for row in benchmark.limits)
    if not counted:
        return Target(name, goal, "–", UNKNOWN)
    found = sum(row.found for row in benchmark.limits)
    excluded = sum(row.excluded for row in benchmark.limits)
    share = found / counted
    measured = f"{share:.2%}: {found} of {counted}, {excluded} more whose limit the oracle does not know"
    if share >= 0.995:
        return Target(name, goal, measured, MET)
    return Target(name, goal, measured, MISSED, f"by {100 * (0.995 - share):.2g} percentage points")


def _memory(benchmark: Benchmark) -> Target:
    name = "bytes held for backward beyond parameters, float32"
    goal = "≤ 4(6Bd + Bn + 2d²), whatever the iterations"
    shares = {
        c.name: c.held_bytes / c.allowed_bytes
        for c in benchmark.cells
        if c.facts["dtype"] == "float32" and c.held_bytes is not None and c.allowed_bytes is not None
    }
    if not shares:
        return Target(name, goal, "–", UNKNOWN)
    worst = max(shares, key=lambda cell: shares[cell])
    measured = f"at most {shares[worst]:.2g} of it ({worst})"
    steps = {p.at: p.held_bytes for p in benchmark.scaling if p.axis == "L" and p.contender.startswith("implicit, L")}
    grows = len(set(steps.values())) > 1
    if steps:
        measured += f"; {'not ' if grows else ''}the same after {min(steps):g} … {max(steps):g} iterations"
    margins = []
    if shares[worst] > 1:
        margins.append(f"by a factor of {shares[worst]:.2g}")
    if grows:
        margins.append("it grows with the iterations")
    return Target(name, goal, measured, MISSED if margins else MET, "; ".join(margins))


def _layers(benchmark: Benchmark) -> Target:
    name, goal = "feed-forward layers against bregmanet, same result", "no slower"
    ratios = {
        f"{row.geometry}, {row.text.split(',')[0]}": row.ratio
        for row in benchmark.feedforward
        if row.reason is None and math.isfinite(row.ratio)
    }
    if not ratios:
        return Target(name, goal, "–", UNKNOWN)
    least = min(ratios, key=lambda row: ratios[row])
    measured = f"{ratios[least]:.3g}× … {max(ratios.values()):.3g}× as fast, {len(ratios)} rows"
    slower = [row for row, ratio in ratios.items() if ratio < 1]
    if not slower:
        return Target(name, goal, measured, MET)
    margin = f"{100 * (1 / ratios[least] - 1):.0f} % slower at most ({least}); {len(slower)} rows"
    return Target(name, goal, measured, MISSED, margin)
