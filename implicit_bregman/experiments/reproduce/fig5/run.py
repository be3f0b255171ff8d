"""The trainings of Figure 5, and what belongs to one curve."""

from __future__ import annotations

from typing import Any

from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.reproduce.ensemble import INITS
from implicit_bregman.experiments.reproduce.settings import SpiralSettings
from implicit_bregman.experiments.reproduce.spirals import Trained, Training, train_members


def measure_fig5(settings: SpiralSettings, grid: Grid, device: str = "cpu") -> Trained:
    """Train all kinds from both initializations; the arguments are those of `reproduce_fig5`."""
    members = tuple(member for init in INITS for member in settings.all_kinds(init=init))
    training = Training(members, settings.depth, settings.epochs, 0, settings.batch_size, settings.spirals)
    return train_members(training, 1, grid, device)


def of_kind(trained: Trained, values: tuple[Any, ...], kind: str, init: str) -> list[Any]:
    """The values of the networks of one kind and initialization, one per seed."""
    pairs = zip(trained.members, values, strict=True)
    return [value for member, value in pairs if (member.kind, member.init) == (kind, init)]
