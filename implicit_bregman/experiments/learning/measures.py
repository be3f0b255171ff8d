"""What is measured of a model at given parameters: the gradient of its loss, and what a step holds for backward."""

from __future__ import annotations

from torch import Tensor, nn

from implicit_bregman.experiments.data import Dataset
from implicit_bregman.experiments.learning.gradients import (
    GradientCheck,
    ReferenceGradient,
    compare_gradient,
    reference_gradients,
)
from implicit_bregman.experiments.learning.model import Classifier
from implicit_bregman.experiments.machine.memory import activation_bytes

# The first training samples, whose gradient is compared with the exact one.
GRADIENT_SAMPLES = 64


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy."""
    return nn.functional.cross_entropy(model(x), y)


def exact_gradient(model: Classifier, data: Dataset) -> ReferenceGradient | None:
    """The exact gradient on the first training samples, see `reference_gradients`."""
    return reference_gradients(model, data.train_x[:GRADIENT_SAMPLES], data.train_y[:GRADIENT_SAMPLES])


def gradient_error(model: Classifier, data: Dataset, exact: ReferenceGradient | None) -> GradientCheck | None:
    """How far the model's own gradient is from the exact one, see `compare_gradient`."""
    return compare_gradient(model, data.train_x[:GRADIENT_SAMPLES], data.train_y[:GRADIENT_SAMPLES], exact)


def held_bytes(model: Classifier, data: Dataset, batch_size: int) -> int:
    """What the forward pass of a training step holds for its backward pass, see `activation_bytes`."""
    x = data.train_x[:batch_size].clone()  # a part of the data shares their storage, which would count in full
    return activation_bytes(model, lambda: loss_of(model, x, data.train_y[:batch_size]))
