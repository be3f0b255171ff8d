"""Study of the depth: one weight-tied model, trained implicitly and through L unrolled steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from implicit_bregman.experiments.data import load_dataset
from implicit_bregman.experiments.grid.cells import Cell
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.study.depth.settings import DepthSettings
from implicit_bregman.experiments.study.depth.training import (
    Costs,
    Run,
    measure_costs,
    train_once,
)
from implicit_bregman.experiments.study.task import Task

# Of the work, for the progress: one implicit training of about nine, and the timing.
COSTS_SHARE = 0.15


@dataclass(frozen=True)
class Measured:
    """What the study found on one data set; lists have one entry per seed.

    Attributes:
        dataset: Its name.
        note: What has to be said with every result on it.
        costs: What `measure_costs` returned.
        runs: What `train_once` returned, by depth; None is the implicit one.
    """

    dataset: str
    note: str
    costs: list[dict[str, Any]]
    runs: dict[int | None, list[dict[str, Any]]]

    def costs_of(self, key: str, depth: int | None) -> list[Any]:
        """A cost of one depth, None being the implicit layer, one entry per seed."""
        place = list(self.runs).index(depth)
        return [cost[key][place] for cost in self.costs]

    def percent(self, key: str, depth: int | None) -> list[float]:
        """A share of one depth in percent, one entry per seed."""
        return [100 * run[key] for run in self.runs[depth]]


def measure_depth(settings: DepthSettings, grid: Grid, data_dir: str | None = None) -> list[Measured]:
    """Compute all cells: first the costs, whose seconds are then the budget "equal time" of all runs of that seed.

    Raises:
        ValueError: For bad data files.
        FileNotFoundError: For missing data files.
    """
    notes = {name: load_dataset(name, data_dir).note for name in settings.datasets}  # refuses before any work
    seeds = range(settings.seed, settings.seed + settings.seeds)
    tasks = [settings.task(dataset, seed) for dataset in settings.datasets for seed in seeds]
    resources = {"data_dir": data_dir}

    def costs(task: Task) -> Cell:
        asked = Costs(task, settings.depths)
        return Cell(f"costs {task.dataset} seed {task.seed}", measure_costs, asked, resources)

    def run(task: Task, depth: int | None, seconds: float) -> Cell:
        name = "implicit" if depth is None else f"unrolled-{depth}"
        asked = Run(task, depth, seconds)
        return Cell(f"{task.dataset} {name} seed {task.seed}", train_once, asked, resources)

    found = dict(zip(tasks, grid.run([costs(task) for task in tasks], 0.0, COSTS_SHARE), strict=True))
    wanted = [(task, depth) for task in tasks for depth in (None, *settings.depths)]
    runs = grid.run([run(task, depth, found[task]["seconds"]) for task, depth in wanted], COSTS_SHARE, 1.0)
    by_key = dict(zip(wanted, runs, strict=True))
    measured = []
    for dataset in settings.datasets:
        own = [task for task in tasks if task.dataset == dataset]
        by_depth = {depth: [by_key[task, depth] for task in own] for depth in (None, *settings.depths)}
        measured.append(Measured(dataset, notes[dataset], [found[task] for task in own], by_depth))
    return measured
