"""What is random in a training batch: images that are moved, features that are dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman.experiments.data import Dataset
from implicit_bregman.experiments.train.settings import TrainSettings

MOVES = ("shift", "rotation", "zoom")


@dataclass(frozen=True)
class Augmentation:
    """Changes the inputs of a batch at random.

    What is drawn depends on the seed, the number of the step and the place of the sample in the whole batch, and on
    nothing else: not on the steps before, so that a resumed run draws the same, nor on how the batch is divided among
    processes.

    Images are moved as they were read, before their mean was subtracted: what comes in from outside is black, not the
    mean image.

    Attributes:
        seed: The run's seed.
        shape: Shape of a sample; (channels, height, width) for images.
        mean: The data's mean, (features,).
        scale: The data's scale.
        shift: Largest shift in pixels.
        rotation: Largest rotation in degrees.
        zoom: Largest change of size, a share.
        input_dropout: Share of the features that are dropped.
    """

    seed: int
    shape: tuple[int, ...]
    mean: Float[Tensor, " features"]
    scale: float
    shift: float
    rotation: float
    zoom: float
    input_dropout: float

    def __call__(
        self, inputs: Float[Tensor, "part features"], step: int, count: int, part: slice
    ) -> Float[Tensor, "part features"]:
        """The changed inputs.

        Args:
            inputs: The samples of this process, standardised.
            step: Number of the step, from the start of the run.
            count: Number of samples in the whole batch.
            part: Which of them `inputs` are.
        """
        random = np.random.default_rng((self.seed, step))
        if self.shift or self.rotation or self.zoom:
            inputs = self._moved(inputs, _uniform(random, (count, 4))[part])
        if self.input_dropout:
            inputs = self._dropped(inputs, _uniform(random, (count, inputs.shape[1]))[part])
        return inputs

    def _moved(
        self, inputs: Float[Tensor, "part features"], drawn: Float[Tensor, "part 4"]
    ) -> Float[Tensor, "part features"]:
        """The images moved, each by its own draw in 0 … 1."""
        if not len(inputs):
            return inputs
        mean = self.mean.to(inputs.dtype)
        images = (inputs * self.scale + mean).view(-1, *self.shape)
        grid = nn.functional.affine_grid(
            self._inverse_maps(2 * drawn.to(inputs) - 1), list(images.shape), align_corners=False
        )
        moved = nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return (moved.flatten(1) - mean) / self.scale

    def _inverse_maps(self, drawn: Float[Tensor, "part 4"]) -> Float[Tensor, "part 2 3"]:
        """For each draw in -1 … 1, where a pixel of the moved image comes from: pixels from -1 to 1, (x, y, 1)."""
        _, height, width = self.shape
        angle = math.radians(self.rotation) * drawn[:, 0]
        size = 1 + self.zoom * drawn[:, 1]
        cos, sin = angle.cos() / size, angle.sin() / size
        right, down = 2 * self.shift * drawn[:, 2] / width, 2 * self.shift * drawn[:, 3] / height
        # A rotation of pixels: in units of half the width and half the height it is none unless these are equal.
        rows = (cos, -sin * height / width, right, sin * width / height, cos, down)
        return torch.stack(rows, dim=1).view(-1, 2, 3)

    def _dropped(
        self, inputs: Float[Tensor, "part features"], drawn: Float[Tensor, "part features"]
    ) -> Float[Tensor, "part features"]:
        """The features whose draw is below the share set to 0, which is their mean."""
        kept = drawn.to(inputs) >= self.input_dropout
        return inputs * kept / (1 - self.input_dropout)


def make_augmentation(settings: TrainSettings, data: Dataset) -> Augmentation:
    """The augmentation of the settings.

    Raises:
        ValueError: If samples that are not images are to be moved.
    """
    moves = [name for name in MOVES if getattr(settings, name) > 0]
    if moves and len(data.shape) != 3:
        raise ValueError(
            f"{moves[0]} = {getattr(settings, moves[0])} needs images, and a sample of {data.name!r} has the shape "
            f"{data.shape}: leave --{moves[0]} out"
        )
    return Augmentation(
        seed=settings.seed,
        shape=data.shape,
        mean=data.mean,
        scale=data.scale,
        shift=settings.shift,
        rotation=settings.rotation,
        zoom=settings.zoom,
        input_dropout=settings.input_dropout,
    )


def _uniform(random: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Numbers in 0 … 1, float32, on the CPU."""
    return torch.from_numpy(random.random(shape, dtype=np.float32))
