"""What a comparison is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from implicit_bregman.energy.weights import present_name
from implicit_bregman.experiments.learning.methods import Method, default_rows, make_methods
from implicit_bregman.experiments.learning.model import Architecture


@dataclass(frozen=True)
class CompareSettings:
    """Everything that a comparison depends on. The defaults are those of `implicit-bregman compare`.

    Width, batch size, learning rate and number of epochs were chosen once, for all rows, with 360 training images
    of the digits held out; of the learning rates that did equally well there (5e-3, 1e-2) the implicit row's test
    accuracy decided.

    Attributes:
        dataset: Name of the data set, see `load_dataset`.
        data_dir: Folder with the files of "mnist", "fashion" and "cifar10".
        download: Whether to fetch these from OpenML if they are not there.
        train_size: Number of training samples to use; None: all.
        device: PyTorch device.
        threads: CPU threads of PyTorch. Layers of a few hundred features are fastest with one; with more, threads that
            wait for each other make timings depend on what else the machine does.
        seed: First seed; `seeds` seeds are used: seed, seed + 1, …
        seeds: Number of seeds. A seed sets the initial parameters and the order of the batches.
        epochs: Epochs of the budget "equal steps".
        seconds: Seconds of training of the budget "equal time"; None: for each seed, what the reference row
            took for the budget of steps.
        geometry: Name of the geometry.
        regularization: γ ≥ 0.
        weight: Kind of W: "convex", "symmetric", "monotone" or "general".
        width: d, the width of the representation.
        batch_size: Samples per step.
        learning_rate: Adam's constant learning rate.
        tol: Tolerance of the named solvers; None: their default.
        max_iter: Largest number of iterations of the named solvers; None: their default.
        rows: Names of the rows, see `make_methods`. The first implicit one is the reference.
    """

    dataset: str = "digits"
    data_dir: Path | None = None
    download: bool = False
    train_size: int | None = None
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    seeds: int = 5
    epochs: int = 4
    seconds: float | None = None
    geometry: str = "tanh"
    regularization: float = 0.0
    weight: str = "convex"
    width: int = 64
    batch_size: int = 64
    learning_rate: float = 5e-3
    tol: float | None = None
    max_iter: int | None = None
    rows: tuple[str, ...] = field(default_factory=default_rows)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", present_name(self.weight))
        for name in ("seeds", "epochs", "width", "batch_size", "train_size", "max_iter", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("learning_rate", "seconds", "tol"):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not 0 <= self.regularization < math.inf:
            raise ValueError(f"regularization must be finite and >= 0, got {self.regularization}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
        make_methods(self.rows, self.tol, self.max_iter)

    def architecture(self) -> Architecture:
        """The model of all rows."""
        return Architecture(
            width=self.width, geometry=self.geometry, regularization=self.regularization, weight=self.weight
        )

    def methods(self) -> tuple[Method, ...]:
        """The rows."""
        return make_methods(self.rows, self.tol, self.max_iter)
