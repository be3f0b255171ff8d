"""Figure 4: the two spirals and what each layer of a trained Bregman network makes of them."""

from __future__ import annotations

from typing import Any

from implicit_bregman.experiments.grid.report import GridReport
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.reproduce.fig4.figures import fig4_figures
from implicit_bregman.experiments.reproduce.fig4.lines import Line
from implicit_bregman.experiments.reproduce.fig4.run import Layers, measure_fig4
from implicit_bregman.experiments.reproduce.settings import SpiralSettings
from implicit_bregman.experiments.reproduce.wording import CHOICES, spiral_setting


def reproduce_fig4(settings: SpiralSettings, grid: Grid, device: str = "cpu") -> GridReport:
    """Train Bregman networks, show the layers of the one with the lowest loss, and test separability.

    Args:
        settings: Seeds, epochs, data.
        grid: Computes and keeps the cells.
        device: PyTorch device.
    """
    found = measure_fig4(settings, grid, device)
    members, losses = found.trained.members, found.trained.losses
    rows = [_row(name, line) for name, line in zip(found.names, found.lines, strict=True)]
    return GridReport(
        "fig4",
        "Figure 4: the two spirals and the outputs of each layer of a Bregman network",
        spiral_setting(settings, settings.depth, settings.epochs, settings.rate),
        (*CHOICES, "Which realization is shown: here the one with the lowest training loss."),
        _findings(found),
        tuple(rows),
        (
            ("points", ("points",)),
            ("best line's accuracy [%]", ("accuracy:.2f",)),
            ("linearly separable", ("separable",)),
        ),
        {
            "seed": members[found.chosen].seed,
            "labels": found.labels.tolist(),
            "points": {name: outputs.tolist() for name, outputs in zip(found.names, found.shown, strict=True)},
            "last_layer_of_each_seed": [
                {"accuracy": line.accuracy, "separable": line.separates} for line in found.last
            ],
            "losses": [curve[-1] for curve in losses],
        },
        fig4_figures(found),
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


def _findings(found: Layers) -> tuple[str, ...]:
    last, lines = found.last, found.lines
    separable = sum(line.separates for line in last)
    worst = min(line.accuracy for line in last)
    seed = found.trained.members[found.chosen].seed
    verdict = "is" if lines[-1].separates else "is not"
    return (
        f"Seed {seed}: the output of the last layer {verdict} linearly separable (decided by a "
        f"linear program); the best line gets {100 * lines[0].accuracy:.1f} % of the data themselves right.",
        f"Of {len(last)} seeds {separable} end linearly separable; in the worst of them the best line gets "
        f"{100 * worst:.1f} % right.",
    )
