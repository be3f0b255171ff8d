"""Rows, findings and figure of the study of graphs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from implicit_bregman.experiments.grid.report import GridReport
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.output.statistics import mean_and_spread
from implicit_bregman.experiments.study.graphs.figures import graphs_figures, name_of
from implicit_bregman.experiments.study.graphs.run import GraphMeasured, measure_graphs
from implicit_bregman.experiments.study.graphs.settings import Candidate, GraphSettings


def study_graphs(settings: GraphSettings, grid: Grid, data_dir: str | Path | None = None) -> GridReport:
    """Train the models on all splits and compare their test accuracy.

    Args:
        settings: Graphs, depths, splits, what is tried.
        grid: Computes and keeps the cells.
        data_dir: Folder with the files of the graphs.
    """
    measured = measure_graphs(settings, grid, data_dir)
    return GridReport(
        "graphs",
        "Citation graphs: the implicit layer, unrolled twins and graph convolutions",
        (
            f"The first {settings.splits} of the ten splits of Geom-GCN; a split is the seed as well. Adam on all "
            f"training nodes, at most {settings.epochs} steps, until {settings.patience} bring no better validation.",
            "Test accuracy at the step that is best on the validation nodes; mean ± standard deviation of the splits.",
            "Hyper-parameters: those with the best mean validation accuracy on the first "
            f"{settings.tuning} splits, of {len(settings.implicit)} for the implicit layer, which its unrolled twins "
            f"take over, and of {len(settings.gcn)} for the convolutions. No choice was made on test nodes.",
        ),
        (),
        tuple(_finding(one, measured) for one in measured if one.model == "implicit"),
        tuple(_row(one) for one in measured),
        (
            ("graph", ("dataset",)),
            ("model", ("model",)),
            ("test accuracy [%]", ("test:.2f", "spread:.2f")),
            ("validation [%]", ("validation:.2f",)),
            ("parameters", ("parameters",)),
            ("step [ms]", ("step_ms:.0f",)),
            ("steps", ("steps:.0f",)),
            ("chosen", ("chosen",)),
        ),
        {"measured": [asdict(one) for one in measured]},
        graphs_figures(settings, measured),
    )


def _row(one: GraphMeasured) -> dict[str, Any]:
    mean, spread = mean_and_spread([run["test"] for run in one.runs])
    return {
        "dataset": one.dataset,
        "model": name_of(one.model),
        "test": mean,
        "spread": spread,
        "validation": mean_and_spread([run["validation"] for run in one.runs])[0],
        "parameters": one.runs[0]["parameters"],
        "step_ms": mean_and_spread([run["step_ms"] for run in one.runs])[0],
        "steps": mean_and_spread([run["steps"] for run in one.runs])[0],
        "chosen": _chosen(one.candidate, one.model),
    }


def _chosen(candidate: Candidate, model: str) -> str:
    common = f"dropout {candidate.dropout:g}, decay {candidate.weight_decay:g}"
    return common if model == "gcn" else f"{common}, {candidate.geometry}, γ = {candidate.regularization:g}"


def _finding(one: GraphMeasured, measured: list[GraphMeasured]) -> str:
    own = [run["test"] for run in one.runs]
    others = [other for other in measured if other.dataset == one.dataset and other.model != "implicit"]
    gaps = []
    for other in others:
        mean, spread = mean_and_spread([a - run["test"] for a, run in zip(own, other.runs, strict=True)])
        error = "" if spread is None else f" ± {spread / len(own) ** 0.5:.2f}"
        gaps.append(f"{mean:+.2f}{error} against {name_of(other.model)}")
    failed = sum(not run["converged"] for run in one.runs)
    solved = "all solves converged" if not failed else f"in {failed} of {len(own)} trainings a solve failed"
    return (
        f"{one.dataset}: the implicit layer reaches {mean_and_spread(own)[0]:.2f} %; paired over the splits, with the "
        f"standard error, {', '.join(gaps)}; {solved}."
    )
