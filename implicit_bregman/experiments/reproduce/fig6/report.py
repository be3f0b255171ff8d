"""Figure 6: accuracy against the learning rate, and how much each of 50 layers still moves its input."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from implicit_bregman.experiments.grid.report import GridReport
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.output.statistics import mean_and_spread
from implicit_bregman.experiments.reproduce.ensemble import INITS
from implicit_bregman.experiments.reproduce.fig6.figures import fig6_figures, means_of
from implicit_bregman.experiments.reproduce.fig6.run import Measured, measure_fig6
from implicit_bregman.experiments.reproduce.figures import LABELS
from implicit_bregman.experiments.reproduce.settings import SpiralSettings
from implicit_bregman.experiments.reproduce.wording import CHOICES, spiral_setting
from implicit_bregman.nn.feedforward import KINDS


def reproduce_fig6(settings: SpiralSettings, grid: Grid, device: str = "cpu") -> GridReport:
    """Train all kinds at all learning rates, and all kinds with 50 layers.

    Args:
        settings: Seeds, rates, epochs, data.
        grid: Computes and keeps the cells, a stage at a time.
        device: PyTorch device.
    """
    measured = measure_fig6(settings, grid, device)
    rows = tuple(_rows(settings, measured))
    return GridReport(
        "fig6",
        "Figure 6: accuracy against learning rate, and movement of the layers",
        (
            *spiral_setting(settings, settings.depth, settings.rate_epochs, "as in the table"),
            f"Movement: {settings.deep} layers, learning rate {settings.rate:g}, {settings.deep_epochs} epochs; mean "
            "over the points of ‖z⁽ˡ⁾ − z⁽ˡ⁻¹⁾‖, z⁽⁰⁾ being the data.",
        ),
        (*CHOICES, "The learning rates; and of the deep networks learning rate, epochs and initial weights."),
        _findings(settings, measured),
        rows,
        (
            ("quantity", ("quantity",)),
            ("at", ("at:g",)),
            *((label, (f"{kind}_mean:.4g", f"{kind}_spread:.2g")) for kind, label in LABELS.items()),
        ),
        {"rates": settings.rates, "layers": list(range(1, settings.deep + 1)), **asdict(measured)},
        fig6_figures(settings, measured),
    )


def _rows(settings: SpiralSettings, measured: Measured) -> list[dict[str, Any]]:
    deep = settings.deep
    wanted: list[tuple[str, float, dict[str, list[float]]]] = []
    for index, rate in enumerate(settings.rates):
        values = {kind: [seed[index] for seed in measured.accuracy[kind]] for kind in KINDS}
        wanted.append(("accuracy [%], rate", rate, values))
    for init in INITS:
        wanted.append((f"{init}, {deep} layers: accuracy [%], rate", settings.rate, measured.deep_accuracy[init]))
        for layer in sorted({layer for layer in (1, 2, 10, 20, 40, deep) if layer <= deep}):
            values = {kind: [seed[layer - 1] for seed in measured.movement[init][kind]] for kind in KINDS}
            wanted.append((f"{init}, {deep} layers: movement, layer", layer, values))
    rows = []
    for quantity, at, values in wanted:
        row: dict[str, Any] = {"quantity": quantity, "at": at}
        for kind in KINDS:
            row[f"{kind}_mean"], row[f"{kind}_spread"] = mean_and_spread(values[kind])
        rows.append(row)
    return rows


def _findings(settings: SpiralSettings, measured: Measured) -> tuple[str, ...]:
    told = []
    for kind, label in LABELS.items():
        means = means_of(measured.accuracy[kind])
        best = max(range(len(means)), key=lambda index: means[index])
        told.append(f"{label}: best mean accuracy {means[best]:.2f} %, at learning rate {settings.rates[best]:g}.")
    tail = max(1, settings.deep // 5)
    for init in INITS:
        parts = []
        for kind, label in LABELS.items():
            after, before = (means_of(moves[init][kind])[-tail:] for moves in (measured.movement, measured.untrained))
            accuracy, _ = mean_and_spread(measured.deep_accuracy[init][kind])
            parts.append(
                f"{label} {sum(after) / tail:.3g} (before training {sum(before) / tail:.3g}; accuracy {accuracy:.1f} %)"
            )
        told.append(f"Mean movement of the last {tail} of {settings.deep} layers, {init} weights: {', '.join(parts)}.")
    return tuple(told)
