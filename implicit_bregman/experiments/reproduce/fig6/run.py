"""The trainings of Figure 6: all learning rates, and 50 layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.reproduce.ensemble import INITS, Ensemble, Member
from implicit_bregman.experiments.reproduce.settings import SpiralSettings
from implicit_bregman.experiments.reproduce.spirals import Trained, Training, train_members
from implicit_bregman.nn.feedforward import KINDS

RATES_SHARE = 0.6
"""Of the work of both halves."""


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


def measure_fig6(settings: SpiralSettings, grid: Grid, device: str = "cpu") -> Measured:
    """Train all networks of both halves; the arguments are those of `reproduce_fig6`."""
    by_rate = tuple(member for rate in settings.rates for member in settings.all_kinds(rate))
    rates = _train(settings, by_rate, settings.depth, settings.rate_epochs, grid, device, (0.0, RATES_SHARE))
    members = tuple(member for init in INITS for member in settings.all_kinds(init=init))
    deep = _train(settings, members, settings.deep, settings.deep_epochs, grid, device, (RATES_SHARE, 1.0))
    return Measured(
        {kind: _by_rate(rates, kind, settings.rates) for kind in KINDS},
        {init: _by_kind(deep, init, _differences(deep.ensemble, settings)) for init in INITS},
        {init: _by_kind(deep, init, _differences(_untrained(deep.ensemble), settings)) for init in INITS},
        {init: _by_kind(deep, init, [100 * share for share in deep.accuracy]) for init in INITS},
    )


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
