"""Table 2: test accuracy on images with one and three hidden layers, and behind a convolutional network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from implicit_bregman.experiments.data import Dataset
from implicit_bregman.experiments.grid.cells import Cell
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.output.report import GridReport
from implicit_bregman.experiments.reproduce.table2.figures import figure
from implicit_bregman.experiments.reproduce.table2.report import Outcome, findings, table_rows
from implicit_bregman.experiments.reproduce.table2.settings import (
    Row,
    Table2Settings,
)
from implicit_bregman.experiments.reproduce.table2.training import (
    CNN_CHANNELS,
    CNN_WIDTH,
    HELD_OUT,
    ImageTraining,
    load_pixels,
    train_images,
)
from implicit_bregman.nn.feedforward import KINDS

CHOICES = (
    "The activation: here tanh, with arctan and the sigmoid as a check on one row.",
    "The optimizer beyond mini-batch gradient descent: here without momentum, with Adam as a check on one row.",
    "Learning rate, batch size, epochs: here the rate falls evenly to 0, because at a constant one the last steps "
    "decide by chance; where it starts is chosen for every row and architecture by the accuracy on a sixth of the "
    "training samples, which no network is trained on.",
    "How pixels are brought inside (0, 1): here level v of 256 becomes (v + 1/2)/256.",
    f"The convolutional network: here 3x3 convolutions with {CNN_CHANNELS[0]} and {CNN_CHANNELS[1]} channels, each "
    f"with ReLU and max-pooling, a linear layer to {CNN_WIDTH} features, the activation, one layer of the kind "
    "compared, and the linear read-out.",
)


def reproduce_table2(
    settings: Table2Settings, grid: Grid, data_dir: str | None = None, device: str = "cpu"
) -> GridReport:
    """Choose the learning rates, train all networks and compare with the paper.

    Args:
        settings: Rows, seeds, training.
        grid: Computes and keeps the cells.
        data_dir: Folder with the files of the data sets.
        device: PyTorch device.

    Raises:
        ValueError: For bad data files.
        FileNotFoundError: For missing data files.
    """
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
    return _reproduction(settings, outcomes, tests, described)


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


def _reproduction(
    settings: Table2Settings,
    outcomes: Sequence[Outcome],
    tests: dict[tuple[str, str, float], float],
    described: Sequence[str],
) -> GridReport:
    shown: list[tuple[str, tuple[str, ...]]] = [("row", ("row",))]
    for kind in KINDS:
        shown.append((f"{kind} [%]", (f"{kind}_mean:.2f", f"{kind}_spread:.2f")))
        shown.append(("paper", (f"{kind}_paper:.2f",)))
    data: dict[str, Any] = {
        "values": {f"{outcome.row}/{outcome.kind}": outcome.values for outcome in outcomes},
        "rates": {f"{outcome.row}/{outcome.kind}": outcome.rate for outcome in outcomes},
        "tests_by_rate": {f"{row}/{kind}/{rate:g}": value for (row, kind, rate), value in tests.items()},
    }
    return GridReport(
        "table2",
        "Table 2: mean test accuracy on images",
        (
            *described,
            "Networks: hidden layers as wide as the image has pixels, then a linear read-out; cross entropy.",
            f"Training: {settings.optimizer}, learning rate falling to 0, {settings.geometry}, "
            f"{settings.epochs} epochs, batches of {settings.batch_size}, unless the row's name says otherwise.",
            f"Learning rates to choose from: {', '.join(f'{rate:g}' for rate in settings.rates)}; for Adam "
            f"{', '.join(f'{rate:g}' for rate in settings.adam_rates)}. The first seed chooses.",
            f"Seeds: {settings.seed} … {settings.seed + settings.seeds - 1}; mean ± standard deviation.",
        ),
        CHOICES,
        findings(outcomes, settings),
        tuple(table_rows(outcomes)),
        tuple(shown),
        data,
        {"table2.png": figure(outcomes)},
    )
