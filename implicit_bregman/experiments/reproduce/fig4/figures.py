"""Figure 4 as a plot."""

from __future__ import annotations

from matplotlib.axes import Axes

from implicit_bregman.experiments.output.plots import BLACK, BLUE, RED, figure_of, png
from implicit_bregman.experiments.reproduce.fig4.lines import Line
from implicit_bregman.experiments.reproduce.fig4.run import Layers


def fig4_figures(found: Layers) -> dict[str, tuple[bytes, str]]:
    """File name → PNG file and caption of the one figure."""
    shown, rows = found.shown, -(-len(found.shown) // 2)
    with figure_of(2 * rows, 3.15 * rows, columns=2, rows=rows) as (figure, axes):
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        for axis, name, points, line in zip(axes, found.names, shown, found.lines, strict=False):
            for label, color in ((0, BLUE), (1, RED)):
                axis.plot(*points[found.labels == label].T.tolist(), ".", color=color, markersize=2)
            axis.set_title(name, fontsize=8)
            if line.separates:
                _draw_line(axis, line)
        caption = "The two spirals and the output of each layer; a line is drawn where one separates the classes"
        return {"fig4.png": (png(figure), caption)}


def _draw_line(axis: Axes, line: Line) -> None:
    """The line, inside the limits that the points have set."""
    limits = axis.get_xlim(), axis.get_ylim()
    size = sum(part * part for part in line.normal)
    foot = (line.offset * line.normal[0] / size, line.offset * line.normal[1] / size)
    axis.axline(foot, (foot[0] - line.normal[1], foot[1] + line.normal[0]), color=BLACK, linewidth=0.8)
    axis.set(xlim=limits[0], ylim=limits[1])
