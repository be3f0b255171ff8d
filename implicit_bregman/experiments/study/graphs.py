"""Study of graphs: the implicit layer, its unrolled twins and a graph convolutional network on citation graphs."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from implicit_bregman.adjoints import Implicit, Unrolled
from implicit_bregman.experiments import graph_models
from implicit_bregman.experiments.cells import Cell, library_version
from implicit_bregman.experiments.data import graphs as data_graphs
from implicit_bregman.experiments.data.graphs import GRAPHS, SPLITS, load_graph
from implicit_bregman.experiments.graph_models import (
    GraphConvolutionalNetwork,
    ImplicitGraphModel,
    averaging,
    with_loops,
)
from implicit_bregman.experiments.grid import Grid
from implicit_bregman.experiments.study.task import without_warnings
from implicit_bregman.settings import check_choice, check_count

# Steps between two looks at the validation nodes.
EVERY = 2
# Of the work, for the progress: choosing hyper-parameters.
CHOICE_SHARE = 0.5


@dataclass(frozen=True)
class Candidate:
    """Hyper-parameters, to be chosen by the accuracy on validation nodes.

    Attributes:
        dropout: Share that is dropped before each map.
        weight_decay: Adam's, on all parameters.
        learning_rate: Adam's.
        geometry: φ; of no meaning for the graph convolutional network, as are all below.
        regularization: γ.
        reach: λ(F)/margin at the start.
        loops: Whether nodes see themselves as neighbours.
    """

    dropout: float = 0.6
    weight_decay: float = 1e-3
    learning_rate: float = 0.01
    geometry: str = "tanh"
    regularization: float = 1.0
    reach: float = 5.0
    loops: bool = True


#: What is tried for the implicit layer (its unrolled twins take over what it chooses), and for the convolutions.
IMPLICIT = (
    Candidate(dropout=0.6, weight_decay=1e-3, regularization=0.1),
    Candidate(dropout=0.5, weight_decay=5e-4, regularization=0.1),
    Candidate(dropout=0.6, weight_decay=5e-4, regularization=1.0),
)
GCN = tuple(Candidate(dropout=dropout, weight_decay=decay) for dropout in (0.5, 0.8) for decay in (5e-4, 1e-3))


@dataclass(frozen=True)
class GraphSettings:
    """What the study of graphs is asked to do.

    Attributes:
        datasets: Names of graphs, see `load_graph`.
        depths: L, of the unrolled twins.
        tuning: The number of splits, the first ones, on whose validation nodes hyper-parameters are chosen.
        splits: The number of splits on whose test nodes the chosen ones are judged.
        epochs: Most steps of a training.
        patience: Steps without a better validation after which it ends.
        implicit: What is tried for the implicit layer.
        gcn: What is tried for the convolutions.

    Raises:
        ValueError: For an unknown graph, a depth named twice, or a number out of range.
    """

    datasets: tuple[str, ...] = GRAPHS
    depths: tuple[int, ...] = (10,)
    tuning: int = 2
    splits: int = SPLITS
    epochs: int = 200
    patience: int = 50
    implicit: tuple[Candidate, ...] = IMPLICIT
    gcn: tuple[Candidate, ...] = GCN

    def __post_init__(self) -> None:
        for name in self.datasets:
            check_choice("datasets", name, GRAPHS)
        for depth in self.depths:
            check_count("depths", depth)
        for name in ("datasets", "depths"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must be different, got {', '.join(map(str, values))}")
        for name in ("tuning", "splits", "epochs", "patience"):
            check_count(name, getattr(self, name))
        for name in ("tuning", "splits"):
            if getattr(self, name) > SPLITS:
                raise ValueError(f"{name} must be at most {SPLITS}, so many there are, got {getattr(self, name)}")

    @classmethod
    def quick(cls) -> GraphSettings:
        """A subset for a look: Cora, two splits, one candidate of each, 60 steps."""
        return cls(("cora",), (2,), 1, 2, 60, 30, IMPLICIT[:1], GCN[:1])

    def run(self, dataset: str, model: str, split: int, candidate: Candidate) -> GraphRun:
        """One training."""
        return GraphRun(dataset, model, split, candidate, epochs=self.epochs, patience=self.patience)


@dataclass(frozen=True)
class GraphRun:
    """Asks for one training.

    Attributes:
        dataset: Name of the graph.
        model: "implicit", "unrolled-L" or "gcn".
        split: Number of the split, which is the seed as well.
        candidate: How.
        hidden: Hidden features.
        width: Features of the layer.
        epochs: Most steps, each on all training nodes.
        patience: Steps without a better validation after which it ends.
        margin: Of the layer.
        tol: Of the solver while training.
    """

    dataset: str
    model: str
    split: int
    candidate: Candidate
    hidden: int = 64
    width: int = 16
    epochs: int = 200
    patience: int = 50
    margin: float = 1.0
    tol: float = 1e-4


def train_graph(settings: GraphRun, data_dir: str | Path | None = None) -> dict[str, Any]:
    """Train one model; of the step that is best on the validation nodes, its accuracies.

    Returns:
        "validation" and "test" accuracy in percent at the step with the highest validation accuracy (of several the
        one with the lowest validation loss), "steps", "parameters", "step_ms" (median), "converged": whether all
        solves did.
    """
    data = load_graph(settings.dataset, data_dir)
    torch.manual_seed(settings.split)
    candidate = settings.candidate
    graph = with_loops(data.graph) if candidate.loops or settings.model == "gcn" else data.graph
    model: nn.Module
    if settings.model == "gcn":
        model, graph = GraphConvolutionalNetwork(data, settings.hidden, candidate.dropout), averaging(graph)
    else:
        depth = settings.model.partition("-")[2]
        model = ImplicitGraphModel(
            data,
            settings.width,
            candidate.geometry,
            candidate.regularization,
            Unrolled(steps=int(depth)) if depth else Implicit(),
            hidden=settings.hidden,
            dropout=candidate.dropout,
            margin=settings.margin,
            reach=candidate.reach,
            tol=settings.tol,
        )
    train, validation, test = (mask[settings.split] for mask in (data.train, data.validation, data.test))
    optimizer = torch.optim.Adam(model.parameters(), candidate.learning_rate, weight_decay=candidate.weight_decay)
    best, kept, times, converged = (-1.0, 0.0), (0.0, 0), [], True
    with without_warnings():
        for step in range(settings.epochs):
            started = time.perf_counter()
            model.train()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data.features, graph)[train], data.labels[train])
            loss.backward()
            optimizer.step()
            times.append(time.perf_counter() - started)
            if step % EVERY:
                continue
            model.eval()
            with torch.no_grad():
                scores = model(data.features, graph)
            if settings.model == "implicit":
                converged = converged and bool(model.layer.last_solution.converged)  # type: ignore[union-attr]
            right = scores.argmax(-1) == data.labels
            held = nn.functional.cross_entropy(scores[validation], data.labels[validation])
            now = (100 * float(right[validation].float().mean()), -float(held))
            if now > best:
                best, kept = now, (100 * float(right[test].float().mean()), step + 1)
            if step + 1 - kept[1] >= settings.patience:
                break
    return {
        "validation": best[0],
        "test": kept[0],
        "steps": kept[1],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "step_ms": 1e3 * statistics.median(times),
        "converged": converged if settings.model == "implicit" else None,
    }


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
    version = library_version(data_graphs, graph_models, train_graph)
    resources = {"data_dir": data_dir}

    def cell(run: GraphRun) -> Cell:
        return Cell(f"{run.dataset} {run.model} split {run.split}", train_graph, run, version, resources)

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
