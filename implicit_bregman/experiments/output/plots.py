"""Figures for a paper: PNG at column width, in colours that colour-blind readers can tell apart."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from implicit_bregman.experiments.output.statistics import Statistic

COLUMN_WIDTH = 3.5  # inches, one column of a two-column paper
DPI = 300
# Okabe and Ito's palette
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
STYLES = {
    "unrolled": (BLUE, "-", "o"),
    "truncated": (PURPLE, "", "D"),
    "implicit": (RED, "-", "s"),
    "implicit-newton": (RED, "-", "s"),
    "implicit-mm": (ORANGE, "-.", "^"),
    "implicit-anderson": (GREEN, "--", "v"),
    "implicit-broyden": (SKY, (0, (5, 1)), "P"),
    "implicit-torchdeq": (PURPLE, (0, (1, 1)), "X"),
    "one-step": (BLACK, ":", "*"),
    "phantom": (GREEN, (0, (3, 1, 1, 1)), "h"),
}
_RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.frameon": False,
}


def mean_band(axis: Axes, places: Sequence[float], curves: Sequence[Sequence[float]], **style: Any) -> None:
    """The mean of the curves as a line, and one standard deviation on both sides of it.

    Args:
        axis: Where to draw.
        places: On the horizontal axis.
        curves: One per seed, each with one value per place.
        style: Of the line, as `Axes.plot` takes it; the band has its colour.
    """
    found = [Statistic(values) for values in zip(*curves, strict=True)]
    means, spreads = [item.mean for item in found], [item.spread or 0.0 for item in found]
    lower = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
    upper = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
    axis.plot(places, means, zorder=3, **style)
    axis.fill_between(places, lower, upper, color=style.get("color"), alpha=0.15, linewidth=0)


@contextmanager
def figure_of(
    panels: int, height: float, columns: int = 1, sharex: bool = False, rows: int | None = None
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure as wide as so many columns of the paper, in the experiments' style.

    Args:
        panels: How many; stacked in one column, side by side in two, unless `rows` says otherwise.
        height: In inches.
        columns: Of the paper.
        sharex: Whether the panels share their horizontal axis.
        rows: Rows of panels.
    """
    with rc_context(_RC):
        figure = Figure(figsize=(COLUMN_WIDTH * columns, height), dpi=DPI, layout=ConstrainedLayoutEngine(wspace=0.06))
        FigureCanvasAgg(figure)
        high = rows if rows is not None else panels if columns == 1 else 1
        yield figure, list(figure.subplots(high, panels // high, squeeze=False, sharex=sharex).flat)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=DPI)
    return target.getvalue()


def plain_numbers(axis: Axis, marks: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """1, 2, 5, 10, … on a logarithmic axis; `marks` are those of each decade."""
    axis.set_major_locator(LogLocator(subs=marks))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
