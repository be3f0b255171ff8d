"""What the studies that train classifiers have in common."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from implicit_bregman.adjoints import Implicit, Unrolled
from implicit_bregman.experiments.data import Dataset, load_dataset
from implicit_bregman.experiments.learning.model import Architecture, Classifier, build_classifier
from implicit_bregman.experiments.learning.training import Recipe, State, steps_per_epoch


@dataclass(frozen=True)
class Task:
    """A classification problem, a model, and how it is trained; not, how its layer is differentiated.

    With one seed and one kind of W the initial parameters are the same in every geometry.

    Attributes:
        dataset: Name of the data set, see `load_dataset`.
        seed: Of the initial parameters, the order of the batches, and the spirals.
        epochs: Epochs.
        batch_size: Samples per step.
        train_size: Number of training samples; None: all.
        architecture: The model.
        learning_rate: Adam's constant learning rate.
    """

    dataset: str
    seed: int
    epochs: int
    batch_size: int
    train_size: int | None
    architecture: Architecture
    learning_rate: float

    def with_layer(self, **changes: Any) -> Task:
        """The same with other attributes of the architecture."""
        return replace(self, architecture=replace(self.architecture, **changes))

    def data(self, data_dir: str | None = None) -> Dataset:
        """The data."""
        return load_dataset(self.dataset, data_dir, self.seed).limited(self.train_size)

    def model(self, data: Dataset, depth: int | None = None, state: State | None = None) -> Classifier:
        """The model, unrolled through `depth` steps or, with None, implicit; untrained, or with parameters `state`."""
        adjoint = Implicit() if depth is None else Unrolled(steps=depth)
        return build_classifier(self.architecture, data, self.seed, adjoint=adjoint, state=state)

    def recipe(self, data: Dataset, seconds: float | None = None) -> Recipe:
        """How to train, with a budget of seconds beside that of steps."""
        steps = self.epochs * steps_per_epoch(len(data.train_y), self.batch_size)
        return Recipe(steps, seconds, self.batch_size, self.learning_rate, self.seed)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Failed solves, and layers that are a linear map, do not warn: the results and the reports say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
