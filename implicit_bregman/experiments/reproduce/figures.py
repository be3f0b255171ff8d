"""What the plots of the reproductions share."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from implicit_bregman.experiments.output.plots import BLUE, GREEN, RED, mean_band

KIND_STYLES = {"standard": (BLUE, "--"), "euclidean": (GREEN, "-."), "bregman": (RED, "-")}
LABELS = {"standard": "Standard", "euclidean": "Euclidean", "bregman": "Bregman"}


def band(
    axis: Axes,
    kind: str,
    places: Sequence[float],
    curves: Sequence[Sequence[float]],
    marker: str = "",
) -> None:
    """`mean_band` with the colour, line and label of a kind of network."""
    color, line = KIND_STYLES[kind]
    mean_band(axis, places, curves, color=color, linestyle=line, linewidth=1.0, marker=marker, label=LABELS[kind])
