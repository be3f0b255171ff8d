"""Figure 6: accuracy against the learning rate, and how much each of 50 layers still moves its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.output.report import GridReport
from implicit_bregman.experiments.output.statistics import mean_and_spread
from implicit_bregman.experiments.reproduce.ensemble import INITS, Ensemble, Member
from implicit_bregman.experiments.reproduce.fig6.figures import _figure
from implicit_bregman.experiments.reproduce.figures import LABELS
from implicit_bregman.experiments.reproduce.settings import SpiralSettings
from implicit_bregman.experiments.reproduce.spirals import Trained, Training, train_members
from implicit_bregman.experiments.reproduce.wording import CHOICES, spiral_setting
from implicit_bregman.nn.feedforward import KINDS

RATES_SHARE = 0.6
"""Of the work of both halves."""


def reproduce_fig6(settings: SpiralSettings, grid: Grid, device: str = "cpu") -> GridReport:
    """Train all kinds at all learning rates, and all kinds with 50 layers.

    Args:
        settings: Seeds, rates, epochs, data.
        grid: Computes and keeps the cells, a stage at a time.
        device: PyTorch device.
    """
    by_rate = tuple(member for rate in settings.rates for member in settings.all_kinds(rate))
    rates = _train(settings, by_rate, settings.depth, settings.rate_epochs, grid, device, (0.0, RATES_SHARE))
    members = tuple(member for init in INITS for member in settings.all_kinds(init=init))
    deep = _train(settings, members, settings.deep, settings.deep_epochs, grid, device, (RATES_SHARE, 1.0))
    measured = Measured(
        {kind: _by_rate(rates, kind, settings.rates) for kind in KINDS},
        {init: _by_kind(deep, init, _differences(deep.ensemble, settings)) for init in INITS},
        {init: _by_kind(deep, init, _differences(_untrained(deep.ensemble), settings)) for init in INITS},
        {init: _by_kind(deep, init, [100 * share for share in deep.accuracy]) for init in INITS},
    )
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
        {"fig6.png": _figure(settings, measured)},
    )


@dataclass(frozen=True)
class Measured:
    """What the plots show; accuracies in percent, one entry per seed.

    Attributes:
        accuracy: Per kind and seed, one per learning rate.
        movement: Per initialization, kind and seed, one per layer.
        untrained: The same before training.
        deep_accuracy: Per initialization and kind.
    """

    accuracy: dict[str, list[list[float]]]
    movement: dict[str, dict[str, list[list[float]]]]
    untrained: dict[str, dict[str, list[list[float]]]]
    deep_accuracy: dict[str, dict[str, list[float]]]


def _train(
    settings: SpiralSettings,
    members: tuple[Member, ...],
    depth: int,
    epochs: int,
    grid: Grid,
    device: str,
    share: tuple[float, float],
) -> Trained:
    every = epochs // settings.stages
    training = Training(members, depth, epochs, 0, settings.batch_size, settings.spirals, every)
    return train_members(training, settings.stages, grid, device, *share)


def _untrained(ensemble: Ensemble) -> Ensemble:
    return Ensemble(ensemble.members, ensemble.width, ensemble.depth, ensemble.classes, ensemble.geometry)


def _by_rate(trained: Trained, kind: str, rates: tuple[float, ...]) -> list[list[float]]:
    """Training accuracy in percent, per seed and rate."""
    found = {(m.kind, m.seed, m.rate): 100 * a for m, a in zip(trained.members, trained.accuracy, strict=True)}
    seeds = dict.fromkeys(member.seed for member in trained.members)
    return [[found[kind, seed, rate] for rate in rates] for seed in seeds]


def _by_kind(trained: Trained, init: str, values: Sequence[Any]) -> dict[str, list[Any]]:
    """One value per seed of every kind, of those with that initialization."""
    pairs = list(zip(trained.members, values, strict=True))
    return {kind: [value for m, value in pairs if (m.kind, m.init) == (kind, init)] for kind in KINDS}


def _differences(ensemble: Ensemble, settings: SpiralSettings) -> list[list[float]]:
    """Mean over the points of the distance between the outputs of consecutive layers, per member and layer."""
    points, _ = settings.spirals.points()
    outputs = ensemble.layer_outputs(points)
    stacked = torch.stack([points.expand_as(outputs[0]), *outputs])
    return (stacked[1:] - stacked[:-1]).norm(dim=-1).mean(-1).mT.tolist()


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
        means = _means(measured.accuracy[kind])
        best = max(range(len(means)), key=lambda index: means[index])
        told.append(f"{label}: best mean accuracy {means[best]:.2f} %, at learning rate {settings.rates[best]:g}.")
    tail = max(1, settings.deep // 5)
    for init in INITS:
        parts = []
        for kind, label in LABELS.items():
            after, before = (_means(moves[init][kind])[-tail:] for moves in (measured.movement, measured.untrained))
            accuracy, _ = mean_and_spread(measured.deep_accuracy[init][kind])
            parts.append(
                f"{label} {sum(after) / tail:.3g} (before training {sum(before) / tail:.3g}; accuracy {accuracy:.1f} %)"
            )
        told.append(f"Mean movement of the last {tail} of {settings.deep} layers, {init} weights: {', '.join(parts)}.")
    return tuple(told)


def _means(curves: Sequence[Sequence[float]]) -> list[float]:
    return [mean_and_spread(values)[0] for values in zip(*curves, strict=True)]
