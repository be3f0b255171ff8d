"""Figure 4: the two spirals and what each layer of a trained Bregman network makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from scipy.optimize import linprog
from scipy.sparse import csr_array, hstack, identity
from torch import Tensor

from implicit_bregman.experiments.grid import Grid
from implicit_bregman.experiments.grid_report import GridReport
from implicit_bregman.experiments.plots import BLACK, BLUE, RED, figure_of, png
from implicit_bregman.experiments.reproduce.settings import SpiralSettings
from implicit_bregman.experiments.reproduce.spirals import Trained, Training, train_members
from implicit_bregman.experiments.reproduce.wording import CHOICES, spiral_setting


@dataclass(frozen=True)
class Line:
    """The line that violates the margins of two classes least in sum, {z : normal · z = offset}.

    Attributes:
        normal: Its normal vector.
        offset: Where it lies.
        excess: Mean violation of the margin 1; 0 if and only if the classes are linearly separable.
        accuracy: Share of the points on the right side.
    """

    normal: tuple[float, float]
    offset: float
    excess: float
    accuracy: float

    @property
    def separates(self) -> bool:
        """Whether every point is on the right side."""
        return self.accuracy == 1.0


def best_line(points: Tensor, labels: Tensor) -> Line:
    """A linear program: minimize the mean of s subject to ±(normal · z - offset) ≥ 1 - s, s ≥ 0.

    Args:
        points: `(n, 2)`.
        labels: 0 or 1, `(n,)`.

    Raises:
        RuntimeError: If the solver fails.
    """
    z: npt.NDArray[np.float64] = points.double().cpu().numpy()
    sign = 2.0 * labels.cpu().numpy() - 1.0
    count = len(z)
    plane = csr_array(-sign[:, None] * np.column_stack([z, -np.ones(count)]))
    found = linprog(
        np.concatenate([np.zeros(3), np.full(count, 1 / count)]),
        A_ub=hstack([plane, -identity(count)]),
        b_ub=-np.ones(count),
        bounds=[(None, None)] * 3 + [(0, None)] * count,
        method="highs",
    )
    if found.status != 0:
        raise RuntimeError(f"no line was found: {found.message}")
    normal, offset = found.x[:2], float(found.x[2])
    right = sign * (z @ normal - offset) > 0
    return Line((float(normal[0]), float(normal[1])), offset, float(found.fun), float(right.mean()))


def reproduce_fig4(settings: SpiralSettings, grid: Grid, device: str = "cpu") -> GridReport:
    """Train Bregman networks, show the layers of the one with the lowest loss, and test separability.

    Args:
        settings: Seeds, epochs, data.
        grid: Computes and keeps the cells.
        device: PyTorch device.
    """
    members = settings.members("bregman")
    training = Training(
        members, settings.depth, settings.epochs, 0, settings.batch_size, settings.spirals, every=settings.epochs
    )
    trained = train_members(training, 1, grid, device)
    points, labels = settings.spirals.points()
    layers = trained.ensemble.layer_outputs(points)
    last = [best_line(outputs, labels) for outputs in layers[-1]]
    chosen = min(range(len(members)), key=lambda index: trained.losses[index][-1])
    shown = [points, *(outputs[chosen] for outputs in layers)]
    lines = [best_line(outputs, labels) for outputs in shown]
    names = ["data", *(f"output of layer {number}" for number in range(1, len(shown)))]
    rows = [_row(name, line) for name, line in zip(names, lines, strict=True)]
    return GridReport(
        "fig4",
        "Figure 4: the two spirals and the outputs of each layer of a Bregman network",
        spiral_setting(settings, settings.depth, settings.epochs, settings.rate),
        (*CHOICES, "Which realization is shown: here the one with the lowest training loss."),
        _findings(trained, last, chosen, lines),
        tuple(rows),
        (
            ("points", ("points",)),
            ("best line's accuracy [%]", ("accuracy:.2f",)),
            ("linearly separable", ("separable",)),
        ),
        {
            "seed": members[chosen].seed,
            "labels": labels.tolist(),
            "points": {name: outputs.tolist() for name, outputs in zip(names, shown, strict=True)},
            "last_layer_of_each_seed": [{"accuracy": line.accuracy, "separable": line.separates} for line in last],
            "losses": [curve[-1] for curve in trained.losses],
        },
        {"fig4.png": _figure(names, shown, labels, lines)},
    )


def _row(name: str, line: Line) -> dict[str, Any]:
    return {
        "points": name,
        "accuracy": 100 * line.accuracy,
        "separable": "yes" if line.separates else "no",
        "normal_1": line.normal[0],
        "normal_2": line.normal[1],
        "offset": line.offset,
        "excess": line.excess,
    }


def _findings(trained: Trained, last: list[Line], chosen: int, lines: list[Line]) -> tuple[str, ...]:
    separable = sum(line.separates for line in last)
    worst = min(line.accuracy for line in last)
    verdict = "is" if lines[-1].separates else "is not"
    return (
        f"Seed {trained.members[chosen].seed}: the output of the last layer {verdict} linearly separable (decided by a "
        f"linear program); the best line gets {100 * lines[0].accuracy:.1f} % of the data themselves right.",
        f"Of {len(last)} seeds {separable} end linearly separable; in the worst of them the best line gets "
        f"{100 * worst:.1f} % right.",
    )


def _figure(names: list[str], shown: list[Tensor], labels: Tensor, lines: list[Line]) -> tuple[bytes, str]:
    rows = -(-len(shown) // 2)
    with figure_of(2 * rows, 3.15 * rows, columns=2, rows=rows) as (figure, axes):
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        for axis, name, points, line in zip(axes, names, shown, lines, strict=False):
            for label, color in ((0, BLUE), (1, RED)):
                axis.plot(*points[labels == label].T.tolist(), ".", color=color, markersize=2)
            axis.set_title(name, fontsize=8)
            if line.separates:
                _draw_line(axis, line)
        caption = "The two spirals and the output of each layer; a line is drawn where one separates the classes"
        return png(figure), caption


def _draw_line(axis: Axes, line: Line) -> None:
    """The line, inside the limits that the points have set."""
    limits = axis.get_xlim(), axis.get_ylim()
    size = sum(part * part for part in line.normal)
    foot = (line.offset * line.normal[0] / size, line.offset * line.normal[1] / size)
    axis.axline(foot, (foot[0] - line.normal[1], foot[1] + line.normal[0]), color=BLACK, linewidth=0.8)
    axis.set(xlim=limits[0], ylim=limits[1])
