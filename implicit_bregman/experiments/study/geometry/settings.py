"""What the study of the geometry is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from implicit_bregman.experiments.learning.model import Architecture
from implicit_bregman.experiments.reference.problems import COMPARED
from implicit_bregman.experiments.study.task import Task
from implicit_bregman.legendre import separable_geometries
from implicit_bregman.settings import check_count, check_positive


@dataclass(frozen=True)
class GeometrySettings:
    """Settings of `implicit-bregman study geometry`.

    Attributes:
        seed: First seed; `seeds` seeds are used: seed, seed + 1, … One sets initial parameters and order of batches.
        seeds: Number of seeds.
        epochs: Epochs of every training.
        width: d, the width of the representation.
        batch_size: Samples per step.
        learning_rate: Adam's constant learning rate.
        train_size: Number of training images; None: all 1,438.
        max_steps: MM steps, at most, when the steps to the limit are counted.
        box_steps: The same on the common box, to a tight residual in float64.
        basin_steps: Iterations, at most, on the way to a limit where W is indefinite and γ = 0.
        geometries: Names of the geometries of the trainings.

    Raises:
        ValueError: For a setting out of range, an unknown or repeated geometry, or none.
    """

    seed: int = 0
    seeds: int = 5
    epochs: int = 5
    width: int = 32
    batch_size: int = 64
    learning_rate: float = 5e-3
    train_size: int | None = None
    max_steps: int = 2000
    box_steps: int = 10_000
    basin_steps: int = 4000
    geometries: tuple[str, ...] = COMPARED

    def __post_init__(self) -> None:
        check_count("seed", self.seed, 0)
        for name in ("seeds", "epochs", "width", "batch_size", "max_steps", "box_steps", "basin_steps"):
            check_count(name, getattr(self, name))
        if self.train_size is not None:
            check_count("train_size", self.train_size)
        check_positive("learning_rate", self.learning_rate)
        if not self.geometries or len(set(self.geometries)) != len(self.geometries):
            raise ValueError(f"geometries must name at least one, each once, got {','.join(self.geometries)!r}")
        unknown = [name for name in self.geometries if name not in separable_geometries()]
        if unknown:
            raise ValueError(f"geometries: unknown {', '.join(unknown)}; known: {', '.join(separable_geometries())}")

    @classmethod
    def quick(cls, seed: int = 0) -> GeometrySettings:
        """A subset for a look: 2 seeds, 2 epochs, 16 features and 400 training images."""
        return cls(
            seed=seed, seeds=2, epochs=2, width=16, train_size=400, max_steps=500, box_steps=1000, basin_steps=500
        )

    def task(self, seed: int) -> Task:
        """What is trained with one seed."""
        return Task(
            "digits",
            seed,
            self.epochs,
            self.batch_size,
            self.train_size,
            Architecture(width=self.width),
            self.learning_rate,
        )

    @property
    def all_seeds(self) -> range:
        """The seeds."""
        return range(self.seed, self.seed + self.seeds)
