"""Study: how the error of the gradient falls with the number of inner iterations, for every way to differentiate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from implicit_bregman.experiments.grid.cells import Cell
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.study.hypergradient.settings import Case, HypergradientSettings
from implicit_bregman.experiments.study.hypergradient.trials import Trial, measure


def measure_hypergradient(settings: HypergradientSettings, grid: Grid) -> dict[Case, list[dict[str, Any]]]:
    """What `measure` returned, per case one entry per seed."""
    cases = tuple(_shortened(case, settings.longest) for case in settings.cases)
    trials = [
        Trial(case, settings.dim, settings.batch, settings.seed + number)
        for case in cases
        for number in range(settings.seeds)
    ]
    cells = [Cell(f"{trial.case.name}, seed {trial.seed}", measure, trial) for trial in trials]
    results = grid.run(cells)
    return {
        case: [result for trial, result in zip(trials, results, strict=True) if trial.case == case] for case in cases
    }


def _shortened(case: Case, longest: int | None) -> Case:
    return case if longest is None else replace(case, steps=min(case.steps, longest))
