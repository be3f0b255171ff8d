"""The study of the depth in rows, sentences and plots."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from implicit_bregman.experiments.grid.report import GridReport
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.learning.measures import GRADIENT_SAMPLES
from implicit_bregman.experiments.output.statistics import mean_and_spread, median_of
from implicit_bregman.experiments.study.depth.figures import depth_figures
from implicit_bregman.experiments.study.depth.run import Measured, measure_depth
from implicit_bregman.experiments.study.depth.settings import DepthSettings

SMALL_ERROR = 0.1
Numbers = Sequence[float]


def study_depth(
    settings: DepthSettings, grid: Grid, data_dir: str | Path | None = None, name: str = "depth"
) -> GridReport:
    """Train one model implicitly and through L = 1, 2, … unrolled steps, under equal steps and under equal time.

    Args:
        settings: Data sets, depths, seeds and the recipe, which is the same for all rows.
        grid: Computes and keeps the cells.
        data_dir: Folder with the files of the image data sets.
        name: Of the study.

    Raises:
        ValueError: For bad data files, or names that the layer refuses.
        FileNotFoundError: For missing data files.
    """
    measured = measure_depth(settings, grid, None if data_dir is None else str(Path(data_dir).resolve()))
    return GridReport(
        name,
        "Implicit against unrolled training",
        _setting(settings, measured),
        (),
        tuple(told for found in measured for told in _findings(found)),
        tuple(row for found in measured for row in _rows(found)),
        (
            ("data", ("dataset",)),
            ("L", ("depth",)),
            ("test acc. [%]", ("accuracy_mean:.2f", "accuracy_spread:.2f")),
            ("the same at the limit", ("limit_accuracy_mean:.2f", "limit_accuracy_spread:.2f")),
            ("equal time", ("time_accuracy_mean:.2f", "time_accuracy_spread:.2f")),
            ("train loss", ("loss_mean:.4f", "loss_spread:.2g")),
            ("gradient error", ("gradient_error:.1e",)),
            ("distance", ("distance:.1e",)),
            ("step [ms]", ("step_ms:.1f",)),
            ("held [kB]", ("kilobytes:.0f",)),
        ),
        {
            found.dataset: {"costs": found.costs, "runs": {_name(depth): runs for depth, runs in found.runs.items()}}
            for found in measured
        },
        depth_figures(name, measured),
    )


def _setting(settings: DepthSettings, measured: Sequence[Measured]) -> tuple[str, ...]:
    tasks = [settings.task(found.dataset, settings.seed) for found in measured]
    budgets = ", ".join(f"{task.dataset} {task.epochs} epochs of batches of {task.batch_size}" for task in tasks)
    notes = [f"{found.dataset}: {found.note}." for found in measured if found.note]
    return (
        f"Model: {settings.architecture.described()} and a linear read-out; Adam, learning rate "
        f"{settings.learning_rate:g} for every row; equal initial parameters and batches for all rows of a seed; "
        "float32, one CPU thread.",
        f"Equal steps: {budgets}. Equal time: the seconds that implicit training took for these steps; faster rows "
        "train on, slower ones are judged at their last step in time.",
        "At the limit: the trained parameters, the representation computed by MM's limit instead of by L steps. "
        "Distance: median over test samples of ‖z_L − z‖/‖z‖ at these parameters.",
        f"Gradient error: of the training gradient in the layer's parameters, at the row's own trained parameters, on "
        f"{GRADIENT_SAMPLES} samples, relative to {_reference(settings)}; median over the seeds.",
        "Time of a step and bytes held for backward: at the parameters that implicit training ends with, all rows in "
        "turn, median.",
        f"Seeds: {settings.seed} … {settings.seed + settings.seeds - 1}.",
        *notes,
    )


def _reference(settings: DepthSettings) -> str:
    return "an independent float64 one" if settings.architecture.kind == "dense" else "the implicit one in float64"


def _name(depth: int | None) -> str:
    return "implicit" if depth is None else str(depth)


def _rows(found: Measured) -> list[dict[str, Any]]:
    rows = []
    for depth, runs in found.runs.items():
        row: dict[str, Any] = {"dataset": found.dataset, "depth": _name(depth)}
        for key in ("accuracy", "limit_accuracy", "time_accuracy"):
            row[f"{key}_mean"], row[f"{key}_spread"] = mean_and_spread(found.percent(key, depth))
        for key in ("loss", "time_loss", "time_steps"):
            row[f"{key}_mean"], row[f"{key}_spread"] = mean_and_spread([run[key] for run in runs])
        for key in ("gradient_error", "gradient_cosine", "distance", "converged", "iterations", "curvature"):
            row[key] = median_of([run[key] for run in runs])
        row["gradient_error_at_implicit"] = median_of(found.costs_of("gradient_error", depth))
        row["step_ms"] = median_of(found.costs_of("step_ms", depth))
        row["kilobytes"] = median_of([1e-3 * held for held in found.costs_of("bytes", depth)])
        rows.append(row)
    return rows


def _findings(found: Measured) -> list[str]:
    """Where implicit wins and loses on one data set, and from which L on the two cannot be told apart."""
    told = [_verdict(found, "accuracy", "equal steps"), _verdict(found, "time_accuracy", "equal time")]
    told.append(
        f"{found.dataset}: gradient error at the trained parameters below {SMALL_ERROR:g} "
        f"{_from(found, lambda depth: _below(found, depth, 'gradient_error', SMALL_ERROR))}; a step takes longer than "
        f"the implicit one {_from(found, lambda depth: _dearer(found, depth, 'step_ms'))}, and holds more "
        f"{_from(found, lambda depth: _dearer(found, depth, 'bytes'))}."
    )
    drops = {
        depth: statistics.fmean(found.percent("accuracy", depth))
        - statistics.fmean(found.percent("limit_accuracy", depth))
        for depth in found.runs
        if depth is not None
    }
    worst = max(drops, key=lambda depth: drops[depth])
    told.append(
        f"{found.dataset}: run to the limit, the parameters learned through L = {worst} steps lose "
        f"{drops[worst]:.2f} points of accuracy, the most of all L."
    )
    failed = [1 - run["converged"] for run in found.runs[None]]
    if max(failed) > 0:
        told.append(f"{found.dataset}: {100 * statistics.fmean(failed):.2g} % of the implicit solves did not converge.")
    return told


def _verdict(found: Measured, key: str, budget: str) -> str:
    implicit = found.percent(key, None)
    gaps = {depth: paired_gap(found.percent(key, depth), implicit) for depth in found.runs if depth is not None}
    mean, spread = mean_and_spread(implicit)
    shown = f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"
    worse, better, even = ([depth for depth in gaps if _sign(gaps[depth]) == sign] for sign in (-1, 1, 0))
    return (
        f"{found.dataset}, {budget}: implicit {shown} %; clearly worse: {_list(worse)}; clearly better: "
        f"{_list(better)}; not to be told apart: {_list(even)}."
    )


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def paired_gap(values: Numbers, reference: Numbers) -> float:
    """Mean difference over the seeds, or 0 where it is within two standard errors (or there is one seed only)."""
    gaps = [value - other for value, other in zip(values, reference, strict=True)]
    mean, spread = mean_and_spread(gaps)
    return mean if spread is not None and abs(mean) > 2 * spread / math.sqrt(len(gaps)) else 0.0


def _below(found: Measured, depth: int, key: str, level: float) -> bool:
    value = median_of([run[key] for run in found.runs[depth]])
    return value is not None and value < level


def _dearer(found: Measured, depth: int, key: str) -> bool:
    return statistics.median(found.costs_of(key, depth)) > statistics.median(found.costs_of(key, None))


def _from(found: Measured, holds: Callable[[int], bool]) -> str:
    """The smallest L from which on something holds for all larger ones."""
    depths = sorted(depth for depth in found.runs if depth is not None)
    first = None
    for depth in reversed(depths):
        if not holds(depth):
            break
        first = depth
    return f"from L = {first} on" if first is not None else f"for no L up to {depths[-1]}"


def _list(depths: Sequence[int]) -> str:
    return f"L = {', '.join(map(str, depths))}" if depths else "no L"
