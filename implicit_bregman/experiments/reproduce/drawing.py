"""What the plots of the reproductions share."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes

from implicit_bregman.experiments.plots import BLUE, GREEN, RED

KIND_STYLES = {"standard": (BLUE, "--"), "euclidean": (GREEN, "-."), "bregman": (RED, "-")}
LABELS = {"standard": "Standard", "euclidean": "Euclidean", "bregman": "Bregman"}


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; no spread for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def band(
    axis: Axes,
    kind: str,
    places: Sequence[float],
    curves: Sequence[Sequence[float]],
    marker: str = "",
) -> None:
    """The mean of the curves as a line, and their standard deviation around it.

    Args:
        axis: Where to draw.
        kind: Of the networks; it has its colour and label.
        places: On the horizontal axis.
        curves: One per seed.
        marker: Of each point.
    """
    color, line = KIND_STYLES[kind]
    found = [mean_and_spread(values) for values in zip(*curves, strict=True)]
    means = [mean for mean, _ in found]
    spreads = [spread or 0.0 for _, spread in found]
    lower = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
    upper = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
    axis.plot(places, means, color=color, linestyle=line, linewidth=1.0, marker=marker, label=LABELS[kind], zorder=3)
    axis.fill_between(places, lower, upper, color=color, alpha=0.15, linewidth=0)
