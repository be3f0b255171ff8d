"""Figure 6: accuracy against the learning rate, and how much each of 50 layers still moves its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from implicit_bregman.experiments.grid import Grid
from implicit_bregman.experiments.plots import figure_of, png
from implicit_bregman.experiments.reproduce.drawing import LABELS, band, mean_and_spread
from implicit_bregman.experiments.reproduce.report import Reproduction
from implicit_bregman.experiments.reproduce.settings import SpiralSettings
from implicit_bregman.experiments.reproduce.spirals import Trained, Training, train_members
from implicit_bregman.experiments.reproduce.wording import CHOICES, spiral_setting
from implicit_bregman.nn.feedforward import KINDS

RATES_SHARE = 0.6
"""Of the work of both halves."""


def reproduce_fig6(settings: SpiralSettings, grid: Grid, device: str = "cpu") -> Reproduction:
    """Train all kinds at all learning rates, and all kinds with 50 layers.

    Args:
        settings: Seeds, rates, epochs, data.
        grid: Computes and keeps the cells, a stage at a time.
        device: PyTorch device.
    """
    rates = _train(
        settings, tuple(member for rate in settings.rates for member in settings.all_kinds(rate)),
        settings.depth, settings.rate_epochs, grid, device, (0.0, RATES_SHARE),
    )
    deep = _train(
        settings, settings.all_kinds(), settings.deep, settings.deep_epochs, grid, device, (RATES_SHARE, 1.0)
    )
    accuracy = {kind: _by_rate(rates, kind, settings.rates) for kind in KINDS}
    moves = {kind: _differences(deep, kind, settings) for kind in KINDS}
    deep_accuracy = {kind: _accuracies(deep, kind) for kind in KINDS}
    rows = tuple(_rows(settings, accuracy, moves, deep_accuracy))
    return Reproduction(
        "fig6",
        "Figure 6: accuracy against learning rate, and movement of the layers",
        (
            *spiral_setting(settings, settings.depth, settings.rate_epochs, "as in the table"),
            f"Right: {settings.deep} layers, learning rate {settings.rate:g}, {settings.deep_epochs} epochs; mean over "
            "the points of ‖z⁽ˡ⁾ − z⁽ˡ⁻¹⁾‖, z⁽⁰⁾ being the data.",
        ),
        (*CHOICES, "The learning rates of the left plot, and learning rate and epochs of the right one."),
        _findings(settings, accuracy, moves, deep_accuracy),
        rows,
        (
            ("quantity", ("quantity",)),
            ("at", ("at:g",)),
            *((label, (f"{kind}_mean:.4g", f"{kind}_spread:.2g")) for kind, label in LABELS.items()),
        ),
        {
            "rates": settings.rates,
            "accuracy": accuracy,
            "layers": list(range(1, settings.deep + 1)),
            "differences": moves,
            "deep_accuracy": deep_accuracy,
        },
        {"fig6.png": _figure(settings, accuracy, moves)},
    )


def _train(
    settings: SpiralSettings,
    members: tuple[Any, ...],
    depth: int,
    epochs: int,
    grid: Grid,
    device: str,
    share: tuple[float, float],
) -> Trained:
    every = epochs // settings.stages
    training = Training(members, depth, epochs, 0, settings.batch_size, settings.spirals, every)
    return train_members(training, settings.stages, grid, device, *share)


def _by_rate(trained: Trained, kind: str, rates: tuple[float, ...]) -> list[list[float]]:
    """Training accuracy in percent, per seed and rate."""
    found = {(m.kind, m.seed, m.rate): 100 * a for m, a in zip(trained.members, trained.accuracy, strict=True)}
    seeds = dict.fromkeys(member.seed for member in trained.members)
    return [[found[kind, seed, rate] for rate in rates] for seed in seeds]


def _accuracies(trained: Trained, kind: str) -> list[float]:
    return [100 * a for m, a in zip(trained.members, trained.accuracy, strict=True) if m.kind == kind]


def _differences(trained: Trained, kind: str, settings: SpiralSettings) -> list[list[float]]:
    """Mean over the points of the distance between the outputs of consecutive layers, per seed and layer."""
    points, _ = settings.spirals.points()
    outputs = trained.ensemble.layer_outputs(points)
    chosen = [index for index, member in enumerate(trained.members) if member.kind == kind]
    stacked: Tensor = torch.stack([points.expand_as(outputs[0]), *outputs])[:, chosen]
    return (stacked[1:] - stacked[:-1]).norm(dim=-1).mean(-1).mT.tolist()


def _rows(
    settings: SpiralSettings,
    accuracy: dict[str, list[list[float]]],
    moves: dict[str, list[list[float]]],
    deep_accuracy: dict[str, list[float]],
) -> list[dict[str, Any]]:
    deep = settings.deep
    places = sorted({layer for layer in (1, 2, 5, 10, 20, 30, 40, deep) if layer <= deep})
    wanted = [
        *(("accuracy [%], rate", rate, {k: [seed[i] for seed in accuracy[k]] for k in KINDS})
          for i, rate in enumerate(settings.rates)),
        (f"accuracy [%], {deep} layers, rate", settings.rate, deep_accuracy),
        *((f"movement, {deep} layers, layer", layer, {k: [seed[layer - 1] for seed in moves[k]] for k in KINDS})
          for layer in places),
    ]  # fmt: skip
    rows = []
    for quantity, at, values in wanted:
        row: dict[str, Any] = {"quantity": quantity, "at": at}
        for kind in KINDS:
            row[f"{kind}_mean"], row[f"{kind}_spread"] = mean_and_spread(values[kind])
        rows.append(row)
    return rows


def _findings(
    settings: SpiralSettings,
    accuracy: dict[str, list[list[float]]],
    moves: dict[str, list[list[float]]],
    deep_accuracy: dict[str, list[float]],
) -> tuple[str, ...]:
    told = []
    for kind, label in LABELS.items():
        means = [mean_and_spread(values)[0] for values in zip(*accuracy[kind], strict=True)]
        best = max(range(len(means)), key=lambda index: means[index])
        told.append(f"{label}: best mean accuracy {means[best]:.2f} %, at learning rate {settings.rates[best]:g}.")
    quarter = max(1, settings.deep // 4)
    for kind, label in LABELS.items():
        mean = [mean_and_spread(values)[0] for values in zip(*moves[kind], strict=True)]
        told.append(
            f"{label}, {settings.deep} layers: mean movement {sum(mean[:quarter]) / quarter:.3g} in the first "
            f"{quarter} layers and {sum(mean[-quarter:]) / quarter:.3g} in the last {quarter}, {mean[-1]:.3g} in the "
            f"last; accuracy {mean_and_spread(deep_accuracy[kind])[0]:.2f} %."
        )
    return tuple(told)


def _figure(
    settings: SpiralSettings, accuracy: dict[str, list[list[float]]], moves: dict[str, list[list[float]]]
) -> tuple[bytes, str]:
    layers = list(range(1, settings.deep + 1))
    with figure_of(2, 2.6, columns=2) as (figure, axes):
        for kind in KINDS:
            band(axes[0], kind, settings.rates, accuracy[kind], marker="o")
            band(axes[1], kind, layers, moves[kind])
        axes[0].set(xscale="log", xlabel="learning rate", ylabel="training accuracy [%]")
        axes[1].set(xlabel="layer l", ylabel="mean of ‖z⁽ˡ⁾ − z⁽ˡ⁻¹⁾‖", ylim=(0, None))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        caption = (
            f"Training accuracy against the learning rate, and movement of each of {settings.deep} layers: mean over "
            "the seeds, and one standard deviation around it"
        )
        return png(figure), caption
