"""The figure of the study of graphs."""

from __future__ import annotations

from implicit_bregman.experiments.output.plots import BLUE, GREEN, RED, figure_of, png
from implicit_bregman.experiments.output.statistics import mean_and_spread
from implicit_bregman.experiments.study.graphs.run import GraphMeasured
from implicit_bregman.experiments.study.graphs.settings import GraphSettings

NAMES = {"implicit": "implicit layer", "gcn": "two graph convolutions"}


def name_of(model: str) -> str:
    """A model's name for people."""
    kind, _, depth = model.partition("-")
    return f"unrolled, {depth} steps" if depth else NAMES[kind]


def graphs_figures(settings: GraphSettings, measured: list[GraphMeasured]) -> dict[str, tuple[bytes, str]]:
    """File name → PNG file and caption of the one figure: a panel per graph."""
    with figure_of(len(settings.datasets), 2.4, columns=2) as (figure, axes):
        for axis, dataset in zip(axes, settings.datasets, strict=True):
            shown = [one for one in measured if one.dataset == dataset]
            for place, one in enumerate(shown):
                color = {"implicit": BLUE, "gcn": GREEN}.get(one.model, RED)
                values = [run["test"] for run in one.runs]
                axis.plot([place] * len(values), values, "o", color=color, alpha=0.4, markersize=3)
                axis.plot([place - 0.25, place + 0.25], [mean_and_spread(values)[0]] * 2, color=color)
            axis.set_xticks(range(len(shown)), [name_of(one.model).replace(" ", "\n", 1) for one in shown], fontsize=6)
            axis.set(title=dataset, ylabel="test accuracy [%]")
        return {"graphs.png": (png(figure), "Test accuracy on each split, and the mean")}
