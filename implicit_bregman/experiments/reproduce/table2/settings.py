"""What Table 2 is asked to do: its rows, the paper's figures, and the training."""

from __future__ import annotations

from dataclasses import dataclass, replace

from implicit_bregman.experiments.reproduce.table2.training import HELD_OUT
from implicit_bregman.settings import check_count, check_positive

Figures = tuple[float, float, float]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: As `--rows` takes it.
        dataset: Name of the data set.
        network: "1 hidden", "3 hidden" or "cnn".
        paper: The paper's mean test accuracies in percent: standard, Euclidean, Bregman; None if it has none.
        geometry: Another activation than the settings'; None: theirs.
        optimizer: Another optimizer than the settings'; None: theirs.
    """

    name: str
    dataset: str
    network: str
    paper: Figures | None = None
    geometry: str | None = None
    optimizer: str | None = None


PAPER = (
    Row("mnist-1", "mnist", "1 hidden", (95.27, 93.98, 97.40)),
    Row("mnist-3", "mnist", "3 hidden", (97.89, 98.32, 98.41)),
    Row("mnist-cnn", "mnist", "cnn", (99.39, 99.35, 99.40)),
    Row("fashion-1", "fashion", "1 hidden", (89.11, 89.01, 89.39)),
    Row("fashion-3", "fashion", "3 hidden", (88.61, 89.38, 89.95)),
    Row("fashion-cnn", "fashion", "cnn", (92.47, 92.55, 93.19)),
    Row("cifar10-cnn", "cifar10", "cnn", (78.02, 78.00, 79.95)),
)
SENSITIVITY = (
    Row("mnist-3-sigmoid", "mnist", "3 hidden", geometry="sigmoid"),
    Row("mnist-3-arctan", "mnist", "3 hidden", geometry="arctan"),
    Row("mnist-3-adam", "mnist", "3 hidden", optimizer="adam"),
)
ROWS = {row.name: row for row in (*PAPER, *SENSITIVITY)}
QUICK_ROWS = ("mnist-1", "mnist-3", "mnist-cnn", "fashion-1", "fashion-3", "mnist-3-sigmoid", "mnist-3-adam")


@dataclass(frozen=True)
class Table2Settings:
    """What Table 2 is asked to do.

    Attributes:
        rows: Names of rows, see `ROWS`.
        seed: First seed.
        seeds: Number of seeds.
        geometry: Name of the activation's geometry.
        optimizer: "sgd" or "adam".
        rates: Learning rates of "sgd" to choose from.
        adam_rates: Learning rates of "adam" to choose from.
        epochs: Passes over the training samples.
        batch_size: Samples per step.
        train_size: Training samples, the held-out ones included; None: all.

    Raises:
        ValueError: For an unknown row or a number out of range.
    """

    rows: tuple[str, ...] = tuple(ROWS)
    seed: int = 0
    seeds: int = 5
    geometry: str = "tanh"
    optimizer: str = "sgd"
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    adam_rates: tuple[float, ...] = (0.0003, 0.001, 0.003)
    epochs: int = 30
    batch_size: int = 32
    train_size: int | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.rows if name not in ROWS]
        if unknown or not self.rows:
            raise ValueError(f"rows {', '.join(unknown) or 'are missing'}; the known ones are {', '.join(ROWS)}")
        if len(set(self.rows)) < len(self.rows):
            raise ValueError(f"rows must be different, got {', '.join(self.rows)}")
        check_count("seed", self.seed, 0)
        for name in ("seeds", "epochs", "batch_size"):
            check_count(name, getattr(self, name))
        if self.train_size is not None:
            check_count("train_size", self.train_size, HELD_OUT)
        for rate in (*self.rates, *self.adam_rates):
            check_positive("rate", rate)

    @classmethod
    def quick(cls, seed: int = 0) -> Table2Settings:
        """5,000 training samples, 5 epochs and 2 seeds, without CIFAR-10, the CNN on Fashion-MNIST, and arctan."""
        return replace(
            cls(seed=seed),
            rows=QUICK_ROWS,
            seeds=2,
            epochs=5,
            train_size=5000,
        )

    def chosen_rows(self) -> tuple[Row, ...]:
        """The rows asked for."""
        return tuple(ROWS[name] for name in self.rows)
