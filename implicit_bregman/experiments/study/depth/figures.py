"""The figures of the study of the depth."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes

from implicit_bregman.experiments.output.plots import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    SKY,
    figure_of,
    mean_band,
    plain_numbers,
    png,
)
from implicit_bregman.experiments.output.statistics import median_of
from implicit_bregman.experiments.study.depth.run import Measured

Numbers = Sequence[float]
COLORS = {"digits": BLUE, "spirals": RED, "mnist": GREEN, "fashion": ORANGE, "cifar10": SKY}


def depth_figures(name: str, measured: Sequence[Measured]) -> dict[str, tuple[bytes, str]]:
    """File name → PNG file and caption of the two figures: what was learned, and what it cost."""
    return {f"{name}.png": _learned(measured), f"{name}-costs.png": _costs(measured)}


def _learned(measured: Sequence[Measured]) -> tuple[bytes, str]:
    """Accuracy and loss against L, a column per data set."""
    count = len(measured)
    with figure_of(2 * count, 4.2, columns=2, rows=2) as (figure, axes):
        for column, found in enumerate(measured):
            top, bottom = axes[column], axes[count + column]
            depths = [depth for depth in found.runs if depth is not None]
            for key, color, line, label in (
                ("accuracy", BLUE, "-", "unrolled, L steps"),
                ("limit_accuracy", ORANGE, ":", "its parameters at the limit"),
                ("time_accuracy", GREEN, "--", "unrolled, equal time"),
            ):
                curves = list(zip(*(found.percent(key, depth) for depth in depths), strict=True))
                mean_band(top, depths, curves, color=color, linestyle=line, marker="o", markersize=2.5, label=label)
            losses = list(zip(*([run["loss"] for run in found.runs[depth]] for depth in depths), strict=True))
            mean_band(bottom, depths, losses, color=BLUE, marker="o", markersize=2.5)
            _level(top, depths, found.percent("accuracy", None))
            _level(bottom, depths, [run["loss"] for run in found.runs[None]])
            top.set_title(found.dataset, fontsize=8)
            bottom.set(yscale="log", xlabel="unrolled steps L")
            for axis in (top, bottom):
                axis.set_xscale("log")
                plain_numbers(axis.xaxis, (1.0, 2.0, 5.0) if count <= 2 else (1.0,))
        axes[0].set_ylabel("test accuracy [%]")
        axes[count].set_ylabel("training loss [nats]")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        return png(figure), "Test accuracy and training loss against L; mean over the seeds and one standard deviation"


def _level(axis: Axes, depths: Numbers, values: Numbers) -> None:
    ends = [min(depths), max(depths)]
    mean_band(axis, ends, [[value, value] for value in values], color=RED, label="implicit")


def _costs(measured: Sequence[Measured]) -> tuple[bytes, str]:
    """Gradient error, time and memory against L; horizontal lines are the implicit layer's."""
    with figure_of(3, 2.7, columns=2) as (figure, axes):
        for found in measured:
            color = COLORS[found.dataset]
            depths = [depth for depth in found.runs if depth is not None]
            errors = [(depth, median_of([run["gradient_error"] for run in found.runs[depth]])) for depth in depths]
            known = [(depth, error) for depth, error in errors if error]
            if known:
                axes[0].plot(*zip(*known, strict=True), color=color, marker="o", label=found.dataset)
            exact = median_of([run["gradient_error"] for run in found.runs[None]])
            if exact:
                axes[0].axhline(exact, color=color, linestyle=":")
            for axis, key, factor in ((axes[1], "step_ms", 1.0), (axes[2], "bytes", 1e-3)):
                values = [factor * statistics.median(found.costs_of(key, depth)) for depth in depths]
                axis.plot(depths, values, color=color, marker="o", label=found.dataset)
                axis.axhline(factor * statistics.median(found.costs_of(key, None)), color=color, linestyle=":")
        labels = ("relative gradient error", "time of a step [ms]", "held for backward [kB]")
        for axis, label in zip(axes, labels, strict=True):
            axis.set(xscale="log", yscale="log", xlabel="unrolled steps L", ylabel=label)
            plain_numbers(axis.xaxis)
        plain_numbers(axes[1].yaxis)
        handles, names = axes[1].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
        return png(figure), "Gradient error, time and memory of a training step against L; dotted: implicit"
