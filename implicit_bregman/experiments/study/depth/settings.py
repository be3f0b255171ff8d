"""What the study of the depth is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from implicit_bregman.experiments.data import DATASETS
from implicit_bregman.experiments.learning.model import Architecture
from implicit_bregman.experiments.study.task import Task
from implicit_bregman.settings import check_choice, check_count, check_positive

EPOCHS = {"digits": 10, "spirals": 40, "mnist": 2, "fashion": 2, "cifar10": 2}
BATCHES = {"digits": 64, "spirals": 64, "mnist": 128, "fashion": 128, "cifar10": 128}

#: The model of the study of images.
IMAGES = Architecture("conv", 16, "softplus", margin=1.0, kernel_size=3, stride=2, pool=2)


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
        architecture: The model.
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
    architecture: Architecture = field(default_factory=Architecture)
    learning_rate: float = 5e-3

    def __post_init__(self) -> None:
        for name in self.datasets:
            check_choice("datasets", name, DATASETS)
        for depth in self.depths:
            check_count("depths", depth)
        for name in ("datasets", "depths"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must be different and at least one, got {', '.join(map(str, values))}")
        check_count("seed", self.seed, 0)
        check_count("seeds", self.seeds)
        for name in ("epochs", "train_size"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_positive("learning_rate", self.learning_rate)

    @classmethod
    def quick(cls, seed: int = 0) -> DepthSettings:
        """A subset for a look: the sets that need no files, 2 seeds, a fifth of the epochs, depths up to 50."""
        return cls(("digits", "spirals"), (1, 5, 20, 50), seed, seeds=2, epochs=4)

    @classmethod
    def images(cls, seed: int = 0) -> DepthSettings:
        """Convolutional layers on images, z ≥ 0."""
        return cls(("mnist", "cifar10"), (1, 2, 5, 10, 20, 50), seed, 2, 2, 10_000, IMAGES, 2e-3)

    @classmethod
    def quick_images(cls, seed: int = 0) -> DepthSettings:
        """A subset for a look: the digits, which need no files, 4 channels, depths up to 10."""
        return cls(("digits",), (1, 5, 10), seed, 2, 10, 400, replace(IMAGES, width=4), 1e-2)

    def with_layer(self, **changes: Any) -> DepthSettings:
        """The same with other attributes of the architecture."""
        return replace(self, architecture=replace(self.architecture, **changes))

    def task(self, dataset: str, seed: int) -> Task:
        """The training problem of a data set and a seed."""
        return Task(
            dataset=dataset,
            seed=seed,
            epochs=self.epochs or EPOCHS[dataset],
            batch_size=BATCHES[dataset],
            train_size=self.train_size,
            architecture=self.architecture,
            learning_rate=self.learning_rate,
        )
