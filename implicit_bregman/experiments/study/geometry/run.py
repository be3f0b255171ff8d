"""Study of the geometry: the same task with every Legendre function, and several of them on one box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from implicit_bregman.experiments.grid.cells import Cell
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.study.geometry.boxes import (
    BOX_GEOMETRIES,
    BOX_REGIMES,
    Basins,
    Boxes,
    BoxRegime,
    find_basins,
    train_on_one_box,
)
from implicit_bregman.experiments.study.geometry.settings import GeometrySettings
from implicit_bregman.experiments.study.geometry.training import REGIMES, Regime, Run, train_once


@dataclass(frozen=True)
class Measured:
    """What the cells returned; lists have one entry per seed.

    Attributes:
        runs: By regime and geometry, see `train_once`.
        boxes: By regime of the common box, see `train_on_one_box`.
        basins: See `find_basins`.
    """

    runs: dict[tuple[Regime, str], list[dict[str, Any]]]
    boxes: dict[BoxRegime, list[dict[str, Any]]]
    basins: list[dict[str, Any]]


def measure_geometry(settings: GeometrySettings, grid: Grid) -> Measured:
    """Compute all cells, one per training, and one per regime of the common box and seed."""
    seeds = settings.all_seeds

    def label(text: str) -> str:
        return text.replace("γ", "gamma").replace("σ", "sigma")

    runs = {
        (regime, name): [Run(settings.task(seed), regime, name, settings.max_steps) for seed in seeds]
        for regime in REGIMES
        for name in settings.geometries
    }
    boxes = {
        regime: [Boxes(settings.task(seed), regime, BOX_GEOMETRIES, settings.box_steps) for seed in seeds]
        for regime in BOX_REGIMES
    }
    basins = [Basins(seed, BOX_GEOMETRIES, settings.basin_steps) for seed in seeds]
    cells = [
        Cell(f"{label(regime.name)} {name} seed{run.task.seed}", train_once, run)
        for (regime, name), wanted in runs.items()
        for run in wanted
    ]
    cells += [
        Cell(f"one box {label(regime.name)} seed{box.task.seed}", train_on_one_box, box)
        for regime, wanted_boxes in boxes.items()
        for box in wanted_boxes
    ]
    cells += [Cell(f"basins seed{basin.seed}", find_basins, basin) for basin in basins]
    found = iter(grid.run(cells))
    return Measured(
        {key: [next(found) for _ in wanted] for key, wanted in runs.items()},
        {regime: [next(found) for _ in wanted_boxes] for regime, wanted_boxes in boxes.items()},
        [next(found) for _ in basins],
    )
