"""Rows and report of the geometry study."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from implicit_bregman.experiments.grid.report import GridReport
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.output.statistics import mean_and_spread
from implicit_bregman.experiments.reference.active import has_bound
from implicit_bregman.experiments.study.geometry.boxes import BOX_GEOMETRIES, MM_TOL, SAMPLES
from implicit_bregman.experiments.study.geometry.figures import geometry_figures
from implicit_bregman.experiments.study.geometry.findings import geometry_findings
from implicit_bregman.experiments.study.geometry.run import Measured, measure_geometry
from implicit_bregman.experiments.study.geometry.settings import GeometrySettings
from implicit_bregman.experiments.study.geometry.training import COUNT_SAMPLES, COUNT_TOL, REGIMES
from implicit_bregman.legendre import geometry as find_geometry

BASIN_SETTING = "one box, W indefinite, γ=0, untrained"
SHOWN = (
    ("setting", ("setting",)),
    ("geometry", ("geometry",)),
    ("accuracy [%]", ("accuracy_mean:.2f", "accuracy_spread:.2f")),
    ("loss [nats]", ("loss_mean:.3f", "loss_spread:.3f")),
    ("active [%]", ("active:.1f",)),
    ("MM steps", ("mm_shown",)),
    ("ms a step", ("step_ms:.1f",)),
    ("unsolved [%]", ("unsolved:.2f",)),
    ("given up", ("gave_up",)),
    ("Δz", ("limit:.1e",)),
    ("Δθ", ("parameters:.1e",)),
    ("other limit [%]", ("elsewhere:.1f",)),
)


def study_geometry(settings: GeometrySettings, grid: Grid) -> GridReport:
    """Train with every geometry in every regime, then compare those that can share a box.

    Args:
        settings: Seeds, epochs, sizes, geometries.
        grid: Computes and keeps the cells.
    """
    measured = measure_geometry(settings, grid)
    rows = (*_training_rows(measured, settings.max_steps), *_box_rows(measured), *_basin_rows(measured))
    regimes = {regime.name: {name: measured.runs[regime, name] for name in settings.geometries} for regime in REGIMES}
    return GridReport(
        "geometry",
        "The same task in every geometry",
        _setting(settings),
        (),
        geometry_findings(settings, measured),
        rows,
        SHOWN,
        {
            "runs": regimes,
            "one_box": {regime.name: found for regime, found in measured.boxes.items()},
            "basins": measured.basins,
        },
        geometry_figures(settings, measured),
    )


def _known(values: Sequence[dict[str, Any]], key: str) -> list[float]:
    """The values of a key that are there."""
    return [item[key] for item in values if item[key] is not None]


def _mean(values: Sequence[float], factor: float = 1.0) -> float | None:
    """Mean of what there is."""
    return factor * statistics.fmean(values) if values else None


def _row(setting: str, geometry: str, **values: Any) -> dict[str, Any]:
    keys = [key.partition(":")[0] for _, keys in SHOWN for key in keys]
    return (
        dict.fromkeys([*keys, "mm_steps", "mm_short", "iterations", "highest", "reasons"])
        | {"setting": setting, "geometry": geometry}
        | values
    )


def _training_rows(measured: Measured, max_steps: int) -> list[dict[str, Any]]:
    rows = []
    for (regime, name), runs in measured.runs.items():
        accuracy, loss = _known(runs, "accuracy"), _known(runs, "loss")
        lost = [run["gave_up"] for run in runs if run["gave_up"]]
        values: dict[str, Any] = {}
        if accuracy:
            values["accuracy_mean"], values["accuracy_spread"] = mean_and_spread([100 * share for share in accuracy])
            values["loss_mean"], values["loss_spread"] = mean_and_spread(loss)
            values["mm_steps"] = steps = statistics.median(_known(runs, "mm_steps"))
            values["mm_shown"] = f">{max_steps}" if steps >= max_steps else f"{steps:.0f}"
        rows.append(
            _row(
                regime.name,
                name,
                **values,
                active=_mean(_known(runs, "active"), 100.0) if has_bound(find_geometry(name)) else None,
                mm_short=_mean(_known(runs, "mm_short"), 100.0),
                iterations=_mean(_known(runs, "iterations")),
                step_ms=_mean(_known(runs, "step_ms")),
                unsolved=_mean(_known(runs, "unsolved"), 100.0),
                gave_up=f"{len(lost)} of {len(runs)}" if lost else None,
                highest=_mean(_known(runs, "highest")),
                reasons="; ".join(sorted(set(lost))) or None,
            )
        )
    return rows


def _box_rows(measured: Measured) -> list[dict[str, Any]]:
    rows = []
    for regime, found in measured.boxes.items():
        for name in BOX_GEOMETRIES:
            accuracy, spread = mean_and_spread([100 * item["accuracy"][name] for item in found])
            rows.append(
                _row(
                    f"one box, {regime.name}",
                    name,
                    accuracy_mean=accuracy,
                    accuracy_spread=spread,
                    limit=max(item["limit"][name] for item in found),
                    parameters=max(item["parameters"][name][-1] for item in found),
                    unsolved=_mean([100 * u for item in found if (u := item["unsolved"][name]) is not None]),
                )
            )
    return rows


def _basin_rows(measured: Measured) -> list[dict[str, Any]]:
    return [
        _row(
            BASIN_SETTING,
            name,
            unsolved=100 * statistics.fmean(item["unsolved"][name] for item in measured.basins),
            elsewhere=_mean([s for item in measured.basins if (s := item["elsewhere"][name]) is not None], 100.0),
        )
        for name in BOX_GEOMETRIES
    ]


def _setting(settings: GeometrySettings) -> tuple[str, ...]:
    size = "all training images" if settings.train_size is None else f"{settings.train_size} training images"
    seeds = settings.all_seeds
    return (
        f"scikit-learn's digits, {size}; one layer of {settings.width} features and a linear read-out; Adam, learning "
        f"rate {settings.learning_rate:g}, batches of {settings.batch_size}, {settings.epochs} epochs, float32; seeds "
        f"{seeds.start} … {seeds.stop - 1}, which give initial parameters and order of batches, the same in every "
        "geometry.",
        "Each geometry on its own domain: isru, tanh, sin [-1, 1]; sigmoid [0, 1]; arctan ±π/2; scaled_tanh ±1.716; "
        "softplus, exp, bent [0, ∞); arcsinh, identity: no bound. Nothing is tuned, γ is the same for all.",
        "γ = 0 on an unbounded domain is the linear map -W⁻¹(Ux + b); the library's warning of it is silenced here.",
        f"MM steps: median over {COUNT_SAMPLES} test images, at the trained parameters and for the limit also where L "
        f"was finite, to a residual of {COUNT_TOL:g} without an exact solve, at most {settings.max_steps}; median over "
        "seeds.",
        "Active: share of the coordinates of the test images within 1e-6 of a bound, relative to 1 + |bound|.",
        "Unsolved: share of the solves of the training that did not converge. A run is given up when the library "
        "refuses the objective as unbounded below, or more than half of a batch is unsolved in five steps in a row.",
        f"One box: the bounded geometries on [-1, 1], in float64, trained side by side. Δz: largest |z − z tanh| over "
        f"{SAMPLES} test images and all seeds, at tanh's last parameters. Δθ: ‖θ − θ tanh‖/‖θ tanh‖ "
        "after training, the largest of the seeds. γσ=0.1: γ = 0.1/σ, the same γφ'' in the middle of the box.",
        "With γ = 0 the default solver works on the box alone; by MM: the iteration of φ, solved exactly on the "
        "active set that it found.",
        f"Plain MM on one box: to a residual of {MM_TOL:g} in at most {settings.box_steps} steps.",
        f"W indefinite: 16 coordinates, 8 eigenvalues 2 and 8 -2, 64 offsets per seed, MM's limit from the middle of "
        f"the box by the default solver in at most {settings.basin_steps} iterations; the step is σ/λ_max for all. "
        "Other limit: a coordinate differs by more than 1e-3 from tanh's limit, of the samples that both solved.",
    )
