"""The two spirals of Sec. 6.2, and the training of many networks on them as cells of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import implicit_bregman.legendre as legendre
from implicit_bregman.experiments.grid.cells import Cell
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.reproduce.ensemble import Ensemble, Member
from implicit_bregman.settings import check_count, check_positive

WIDTH, CLASSES = 2, 2
GEOMETRY = "arctan"
# The ensembles of a grid are cut into so many, whatever the machine: each costs nearly what all together cost.
CHUNKS = 2


@dataclass(frozen=True)
class Spirals:
    """Two intertwined spirals: the angle grows from 0 to `turns` full turns, the radius evenly from `inner` to 1.

    Attributes:
        samples: Points, half of them on each spiral, denser outside.
        turns: Full turns of a spiral.
        noise: Standard deviation of the normal noise of either coordinate, in units of the largest radius. The
            spirals are (1 - inner) / (2 turns) apart.
        inner: Radius where the spirals begin.
        reach: The points are scaled so that their largest coordinate is this; below π/2, the end of arctan's domain.
        seed: Seed of angles and noise.

    Raises:
        ValueError: For a setting out of range.
    """

    samples: int = 1000
    turns: float = 1.0
    noise: float = 0.03
    inner: float = 0.2
    reach: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("samples", self.samples, 2)
        check_positive("turns", self.turns)
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must be finite and >= 0, got {self.noise}")
        if not 0 < self.reach < math.pi / 2:
            raise ValueError(f"reach must lie between 0 and π/2, the end of arctan's domain, got {self.reach}")

    def points(self) -> tuple[Float[Tensor, "samples 2"], Int[Tensor, " samples"]]:
        """The points and on which spiral each lies."""
        random = torch.Generator().manual_seed(self.seed)
        labels = torch.arange(self.samples) % 2
        share = torch.rand(self.samples, generator=random).sqrt()
        radius = self.inner + (1 - self.inner) * share
        angle = 2 * math.pi * self.turns * share + math.pi * labels
        plane = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
        plane += self.noise * torch.randn(self.samples, 2, generator=random)
        return plane * (self.reach / plane.abs().max()), labels


@dataclass(frozen=True)
class Training:
    """A stage of the training of an ensemble.

    Attributes:
        members: The networks.
        depth: L, layers of two neurons each.
        epochs: Epochs of this stage.
        done: Epochs of the stages before.
        batch_size: Samples per step.
        spirals: The data.
        every: Epochs from one recorded loss to the next.
        start: Parameters at which the stage starts, as the stage before returned them; None: initial ones.
    """

    members: tuple[Member, ...]
    depth: int
    epochs: int
    done: int = 0
    batch_size: int = 10
    spirals: Spirals = Spirals()
    every: int = 1
    start: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Trained:
    """Networks after training.

    Attributes:
        members: The networks.
        epochs: At which epochs the losses were recorded.
        losses: Mean cross entropy (nats) of the whole training set, per member and recorded epoch.
        accuracy: Share of the training set that each member classifies correctly.
        ensemble: The networks themselves, on the CPU.
    """

    members: tuple[Member, ...]
    epochs: tuple[int, ...]
    losses: tuple[tuple[float, ...], ...]
    accuracy: tuple[float, ...]
    ensemble: Ensemble


def train_stage(settings: Training, device: str = "cpu") -> dict[str, Any]:
    """The function of a cell: losses at the recorded epochs, final accuracy and parameters, per member."""
    x, labels = (part.to(device) for part in settings.spirals.points())
    networks = Ensemble(
        settings.members, WIDTH, settings.depth, CLASSES, legendre.geometry(GEOMETRY), device, settings.start
    )
    losses: list[list[float]] = []

    def record(epoch: int) -> None:
        wanted = epoch % settings.every == 0 or epoch == settings.epochs
        if wanted and (epoch > 0 or settings.done == 0):
            losses.append(_losses(networks.scores(x), labels))

    networks.train(x, labels, settings.epochs, settings.batch_size, record, settings.done)
    correct = (networks.scores(x).argmax(-1) == labels).float().mean(-1)
    return {
        "losses": [[float(f"{value:.7g}") for value in curve] for curve in zip(*losses, strict=True)],
        "accuracy": correct.tolist(),
        "parameters": networks.parameters(),
    }


def _losses(scores: Tensor, labels: Tensor) -> list[float]:
    target = labels.expand(len(scores), -1)
    return nn.functional.cross_entropy(scores.mT, target, reduction="none").mean(-1).tolist()


def train_members(
    training: Training, stages: int, grid: Grid, device: str, start: float = 0.0, end: float = 1.0
) -> Trained:
    """Train all members in cells of a grid: some at a time, and each for `stages` stages, kept one by one.

    Args:
        training: What to train; `epochs` are those of all stages together and a multiple of them.
        stages: How many; an interrupted training goes on at the last one that had finished.
        grid: Computes and keeps the cells.
        device: PyTorch device.
        start: Share of all the work that is done before.
        end: Share that is done afterwards.

    Raises:
        ValueError: If the epochs cannot be split evenly.
    """
    if training.epochs % stages:
        raise ValueError(f"epochs must be a multiple of {stages}, got {training.epochs}")
    epochs = training.epochs // stages
    parts = [training.members[first::CHUNKS] for first in range(min(CHUNKS, len(training.members)))]
    curves: list[list[Any]] = [[[] for _ in part] for part in parts]
    results: list[dict[str, Any]] = [{"parameters": None} for _ in parts]
    for stage in range(stages):
        cells = []
        for number, (part, before) in enumerate(zip(parts, results, strict=True)):
            begin = None if before["parameters"] is None else _frozen(before["parameters"])
            settings = replace(training, members=part, epochs=epochs, done=stage * epochs, start=begin)
            name = f"spirals-L{training.depth}-part{number + 1}-stage{stage + 1}of{stages}"
            cells.append(Cell(name, train_stage, settings, {"device": device}))
        share = (end - start) / stages
        results = grid.run(cells, start + share * stage, start + share * (stage + 1))
        for curve, result in zip(curves, results, strict=True):
            for whole, piece in zip(curve, result["losses"], strict=True):
                whole.extend(piece)
    return _joined(training, parts, curves, results, epochs, stages)


def _joined(
    training: Training,
    parts: Sequence[tuple[Member, ...]],
    curves: list[list[Any]],
    results: list[dict[str, Any]],
    epochs: int,
    stages: int,
) -> Trained:
    """The members of all parts, in the order asked for."""
    place = {member: (number, index) for number, part in enumerate(parts) for index, member in enumerate(part)}
    where = [place[member] for member in training.members]
    parameters = [results[number]["parameters"][index] for number, index in where]
    one_stage = [epoch for epoch in range(1, epochs + 1) if epoch % training.every == 0 or epoch == epochs]
    recorded = (0, *(stage * epochs + epoch for stage in range(stages) for epoch in one_stage))
    phi = legendre.geometry(GEOMETRY)
    return Trained(
        training.members,
        recorded,
        tuple(tuple(curves[number][index]) for number, index in where),
        tuple(results[number]["accuracy"][index] for number, index in where),
        Ensemble(training.members, WIDTH, training.depth, CLASSES, phi, start=_frozen(parameters)),
    )


def _frozen(parameters: list[list[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(member) for member in parameters)
