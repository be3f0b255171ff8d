"""Figure 5: training losses of the three architectures, from random and from deterministic initial weights."""

from __future__ import annotations

import statistics
from typing import Any

from implicit_bregman.experiments.grid.report import GridReport
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.output.statistics import mean_and_spread
from implicit_bregman.experiments.reproduce.ensemble import INITS
from implicit_bregman.experiments.reproduce.fig5.figures import fig5_figures
from implicit_bregman.experiments.reproduce.fig5.run import measure_fig5, of_kind
from implicit_bregman.experiments.reproduce.figures import LABELS
from implicit_bregman.experiments.reproduce.settings import SpiralSettings
from implicit_bregman.experiments.reproduce.spirals import Trained
from implicit_bregman.experiments.reproduce.wording import CHOICES, spiral_setting
from implicit_bregman.nn.feedforward import KINDS


def reproduce_fig5(settings: SpiralSettings, grid: Grid, device: str = "cpu") -> GridReport:
    """Train all kinds from both initializations and compare their losses.

    Args:
        settings: Seeds, epochs, data.
        grid: Computes and keeps the cells.
        device: PyTorch device.
    """
    trained = measure_fig5(settings, grid, device)
    rows = tuple(_row(trained, kind, init) for init in INITS for kind in KINDS)
    return GridReport(
        "fig5",
        "Figure 5: training losses of standard, Euclidean and Bregman networks",
        (
            *spiral_setting(settings, settings.depth, settings.epochs, settings.rate),
            f"Loss at the end: mean over the last {_late(trained)} epochs, because single epochs are spikes.",
        ),
        CHOICES,
        _findings(rows),
        rows,
        (
            ("initial weights", ("init",)),
            ("network", ("kind",)),
            ("loss at the end [nats]", ("loss_mean:.4f", "loss_spread:.4f")),
            ("accuracy [%]", ("accuracy_mean:.2f", "accuracy_spread:.2f")),
        ),
        {
            "epochs": trained.epochs,
            "losses": {
                f"{init}/{kind}": of_kind(trained, trained.losses, kind, init) for init in INITS for kind in KINDS
            },
        },
        fig5_figures(trained),
    )


def _row(trained: Trained, kind: str, init: str) -> dict[str, Any]:
    losses = [statistics.fmean(curve[-_late(trained) :]) for curve in of_kind(trained, trained.losses, kind, init)]
    accuracies = [100 * share for share in of_kind(trained, trained.accuracy, kind, init)]
    (loss, loss_spread), (accuracy, accuracy_spread) = mean_and_spread(losses), mean_and_spread(accuracies)
    return {
        "init": init,
        "kind": LABELS[kind],
        "loss_mean": loss,
        "loss_spread": loss_spread,
        "accuracy_mean": accuracy,
        "accuracy_spread": accuracy_spread,
    }


def _late(trained: Trained) -> int:
    """How many of the last epochs are averaged: a single one may be a spike."""
    return max(1, len(trained.epochs) // 20)


def _findings(rows: tuple[dict[str, Any], ...]) -> tuple[str, ...]:
    loss = {(row["init"], row["kind"]): row["loss_mean"] for row in rows}
    told = []
    for init in INITS:
        order = sorted(LABELS.values(), key=lambda label: loss[init, label])
        shown = " < ".join(f"{label} {loss[init, label]:.4f}" for label in order)
        told.append(f"Training loss at the end, {init} initial weights, mean over the seeds: {shown}.")
    lower = [label for label in LABELS.values() if loss["deterministic", label] < loss["random", label]]
    told.append(
        "Deterministic initial weights end at a lower loss than random ones for "
        f"{', '.join(lower) or 'none'}; the paper says so of all three."
    )
    apart = abs(loss["deterministic", "Standard"] - loss["deterministic", "Euclidean"])
    told.append(
        f"Standard and Euclidean from deterministic weights differ by {apart:.4f}: with plain gradient descent the two "
        "are the same iteration but for rounding (W = I against 0 + I), which training amplifies."
    )
    return tuple(told)
