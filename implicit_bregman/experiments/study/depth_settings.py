"""What the study of the depth is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from implicit_bregman.energy.weights import present_name
from implicit_bregman.experiments.data import DATASETS
from implicit_bregman.experiments.study.task import Task
from implicit_bregman.settings import check_choice, check_count, check_nonnegative, check_positive

EPOCHS = {"digits": 10, "spirals": 40, "mnist": 2, "fashion": 2, "cifar10": 2}
BATCHES = {"digits": 64, "spirals": 64, "mnist": 128, "fashion": 128, "cifar10": 128}


@dataclass(frozen=True)
class DepthSettings:
    """What the study of the depth is asked to do.

    Attributes:
        datasets: Names of data sets, see `load_dataset`.
        depths: L, the numbers of unrolled MM steps.
        seed: First seed; a seed sets the initial parameters, the order of the batches, and the spirals.
        seeds: Number of seeds.
        epochs: Epochs of the budget "equal steps"; None: those of `EPOCHS`.
        train_size: Training samples; None: all.
        width: d, the width of the representation.
        geometry: Name of the geometry.
        regularization: γ ≥ 0.
        weight: Kind of W: "convex", "symmetric", "monotone" or "general".
        learning_rate: Adam's constant learning rate, of all rows.

    Raises:
        ValueError: For an unknown data set, a depth named twice, or a number out of range.
    """

    datasets: tuple[str, ...] = ("digits", "spirals", "mnist", "fashion")
    depths: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    seed: int = 0
    seeds: int = 5
    epochs: int | None = None
    train_size: int | None = None
    width: int = 64
    geometry: str = "tanh"
    regularization: float = 0.0
    weight: str = "convex"
    learning_rate: float = 5e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", present_name(self.weight))
        for name in self.datasets:
            check_choice("datasets", name, DATASETS)
        for depth in self.depths:
            check_count("depths", depth)
        for name in ("datasets", "depths"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must be different and at least one, got {', '.join(map(str, values))}")
        check_count("seed", self.seed, 0)
        for name in ("seeds", "width"):
            check_count(name, getattr(self, name))
        for name in ("epochs", "train_size"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_nonnegative("regularization", self.regularization)
        check_positive("learning_rate", self.learning_rate)

    @classmethod
    def quick(cls, seed: int = 0) -> DepthSettings:
        """A subset for a look: the sets that need no files, 2 seeds, a fifth of the epochs, depths up to 50."""
        return cls(("digits", "spirals"), (1, 5, 20, 50), seed, seeds=2, epochs=4)

    def task(self, dataset: str, seed: int) -> Task:
        """The training problem of a data set and a seed."""
        return Task(
            dataset=dataset,
            seed=seed,
            epochs=self.epochs or EPOCHS[dataset],
            batch_size=BATCHES[dataset],
            train_size=self.train_size,
            width=self.width,
            geometry=self.geometry,
            regularization=float(self.regularization),
            weight=self.weight,
            learning_rate=self.learning_rate,
        )
