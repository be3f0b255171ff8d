"""Study of graphs: the implicit layer, its unrolled twins and a graph convolutional network on citation graphs."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from implicit_bregman.experiments.data.graphs import load_graph
from implicit_bregman.experiments.grid.cells import Cell
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.study.graphs.settings import Candidate, GraphRun, GraphSettings
from implicit_bregman.experiments.study.graphs.training import train_graph

# Of the work, for the progress: choosing hyper-parameters.
CHOICE_SHARE = 0.5


@dataclass(frozen=True)
class GraphMeasured:
    """What the study found of one model on one graph.

    Attributes:
        dataset: The graph.
        model: "implicit", "unrolled-L" or "gcn".
        candidate: The hyper-parameters that were chosen.
        tried: Mean validation accuracy of each that was tried, in their order; empty where they were taken over.
        runs: What `train_graph` returned, by split.
    """

    dataset: str
    model: str
    candidate: Candidate
    tried: tuple[float, ...]
    runs: list[dict[str, Any]]


def measure_graphs(settings: GraphSettings, grid: Grid, data_dir: str | Path | None = None) -> list[GraphMeasured]:
    """Choose hyper-parameters on validation nodes, then train all models with them.

    Raises:
        ValueError: For bad data files.
        FileNotFoundError: For missing data files.
    """
    for name in settings.datasets:
        load_graph(name, data_dir)  # refuses before any work
    resources = {"data_dir": data_dir}

    def cell(run: GraphRun) -> Cell:
        return Cell(f"{run.dataset} {run.model} split {run.split}", train_graph, run, resources)

    tried = {"implicit": settings.implicit, "gcn": settings.gcn}
    wanted = [
        settings.run(dataset, model, split, candidate)
        for dataset in settings.datasets
        for model, candidates in tried.items()
        for candidate in candidates
        for split in range(settings.tuning)
    ]
    found = dict(zip(wanted, grid.run([cell(run) for run in wanted], 0.0, CHOICE_SHARE), strict=True))

    def validation(dataset: str, model: str, candidate: Candidate) -> float:
        runs = [found[settings.run(dataset, model, split, candidate)] for split in range(settings.tuning)]
        return statistics.mean(run["validation"] for run in runs)

    chosen: list[GraphMeasured] = []
    for dataset in settings.datasets:
        for model, candidates in tried.items():
            means = tuple(validation(dataset, model, candidate) for candidate in candidates)
            best = candidates[means.index(max(means))]
            chosen.append(GraphMeasured(dataset, model, best, means, []))
            if model == "implicit":
                chosen += [GraphMeasured(dataset, f"unrolled-{depth}", best, (), []) for depth in settings.depths]
    asked = [
        settings.run(one.dataset, one.model, split, one.candidate) for one in chosen for split in range(settings.splits)
    ]
    results = iter(grid.run([cell(run) for run in asked], CHOICE_SHARE, 1.0))
    for one in chosen:
        one.runs.extend(next(results) for _ in range(settings.splits))
    return chosen
