"""Table 2: test accuracy on images with one and three hidden layers, and behind a convolutional network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from implicit_bregman.experiments.data import Dataset
from implicit_bregman.experiments.grid.cells import Cell
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.output.statistics import mean_and_spread
from implicit_bregman.experiments.reproduce.table2.settings import (
    Row,
    Table2Settings,
)
from implicit_bregman.experiments.reproduce.table2.training import (
    HELD_OUT,
    ImageTraining,
    load_pixels,
    train_images,
)
from implicit_bregman.nn.feedforward import KINDS


@dataclass(frozen=True)
class Outcome:
    """One architecture in one row.

    Attributes:
        row: Name of the row.
        kind: "standard", "euclidean" or "bregman".
        rate: The learning rate that was chosen.
        values: Test accuracy in percent of every seed.
        paper: The paper's mean; None if it has none.
    """

    row: str
    kind: str
    rate: float
    values: tuple[float, ...]
    paper: float | None

    @property
    def mean(self) -> float:
        """Mean over the seeds, in percent."""
        return mean_and_spread(self.values)[0]


@dataclass(frozen=True)
class Measured:
    """What was trained.

    Attributes:
        outcomes: One per row and architecture.
        tests: Test accuracy in percent of the first seed, by row, architecture and learning rate.
        described: What was read of each data set.
    """

    outcomes: list[Outcome]
    tests: dict[tuple[str, str, float], float]
    described: list[str]


def measure_table2(settings: Table2Settings, grid: Grid, data_dir: str | None = None, device: str = "cpu") -> Measured:
    """Choose the learning rates and train all networks; the arguments are those of `reproduce_table2`."""
    rows = settings.chosen_rows()
    names = sorted({row.dataset for row in rows})
    folder = None if data_dir is None else str(Path(data_dir).resolve())  # a worker may be in another one
    sets = {name: load_pixels(name, folder) for name in names}
    prints = {name: data.fingerprint() for name, data in sets.items()}
    pairs = [(row, kind) for row in rows for kind in KINDS]
    resources = {"data_dir": folder, "device": device}

    def cell(row: Row, kind: str, rate: float, seed: int) -> Cell:
        name = f"{row.name}-{kind}-rate{rate:g}-seed{seed}"
        return Cell(name, train_images, _training(settings, row, kind, rate, seed, prints), resources)

    tried = [(row, kind, rate) for row, kind in pairs for rate in _rates(settings, row)]
    share = len(tried) / (len(tried) + len(pairs) * (settings.seeds - 1))
    first = grid.run([cell(row, kind, rate, settings.seed) for row, kind, rate in tried], 0.0, share)
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for (row, kind, rate), result in zip(tried, first, strict=True):
        # With equal accuracy the first, the smallest, rate stays.
        if result["validation"] > best.get((row.name, kind), (-1.0, 0.0))[0]:
            best[row.name, kind] = (result["validation"], rate)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    wanted = [(row, kind, seed) for row, kind in pairs for seed in seeds]
    results = grid.run([cell(row, kind, best[row.name, kind][1], seed) for row, kind, seed in wanted], share, 1.0)
    outcomes = [
        Outcome(
            row.name,
            kind,
            best[row.name, kind][1],
            tuple(100 * r["test"] for (w, k, _), r in zip(wanted, results, strict=True) if (w, k) == (row, kind)),
            None if row.paper is None else row.paper[KINDS.index(kind)],
        )
        for row, kind in pairs
    ]
    tests = {(r.name, k, rate): 100 * result["test"] for (r, k, rate), result in zip(tried, first, strict=True)}
    described = [_described(data.limited(settings.train_size)) for data in sets.values()]
    return Measured(outcomes, tests, described)


def _rates(settings: Table2Settings, row: Row) -> tuple[float, ...]:
    return settings.adam_rates if (row.optimizer or settings.optimizer) == "adam" else settings.rates


def _training(
    settings: Table2Settings, row: Row, kind: str, rate: float, seed: int, prints: dict[str, str]
) -> ImageTraining:
    return ImageTraining(
        dataset=row.dataset,
        data=prints[row.dataset],
        network=row.network,
        kind=kind,
        geometry=row.geometry or settings.geometry,
        optimizer=row.optimizer or settings.optimizer,
        rate=rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        train_size=settings.train_size,
        seed=seed,
    )


def _described(data: Dataset) -> str:
    """What was read of a data set, and what has to be said of it."""
    count, tests = len(data.train_y), len(data.test_y)
    text = f"{data.name}: {count} training samples, {count // HELD_OUT} of them held out, {tests} test samples."
    return f"{text} {data.note}." if data.note else text
