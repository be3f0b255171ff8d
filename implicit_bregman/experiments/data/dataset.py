"""What a data set is: features on one scale, labels, and the shape of a sample."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

Bytes = npt.NDArray[np.uint8]
Reals = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

SPLIT_SEED = 0
# Rows that are standardised at a time, so that a large set is never held twice.
ROWS = 8192
FINGERPRINT_DIGITS = 16


@dataclass(frozen=True)
class Raw:
    """A data set as it was read.

    Attributes:
        train_x: Training features, (samples, features), not yet standardised.
        train_y: Training labels.
        test_x: Test features.
        test_y: Test labels.
        shape: Shape of one sample; its product is the number of features.
        note: What has to be said with every result on these data; empty if nothing.
    """

    train_x: Reals
    train_y: Labels
    test_x: Reals
    test_y: Labels
    shape: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class Dataset:
    """A classification problem, split into a training and a test set.

    Attributes:
        train_x: Training features, float32, standardised (see `load_dataset`).
        train_y: Training labels, int64, in 0 … classes - 1.
        test_x: Test features, scaled with the training set's constants.
        test_y: Test labels.
        classes: Number of classes.
        name: Name that `load_dataset` was given.
        shape: Shape of one sample, channels first: (1, 28, 28) or (3, 32, 32), say. `train_x.view(-1, *shape)` is a
            batch of images.
        mean: What was subtracted from every feature: its mean over the training set as it was read.
        scale: What all features were divided by. `train_x * scale + mean` is the set as it was read.
        note: What has to be said with every result on these data; empty if nothing.
    """

    train_x: Float[Tensor, "train features"]
    train_y: Int[Tensor, " train"]
    test_x: Float[Tensor, "test features"]
    test_y: Int[Tensor, " test"]
    classes: int
    name: str
    shape: tuple[int, ...]
    mean: Float[Tensor, " features"]
    scale: float
    note: str = ""

    @property
    def features(self) -> int:
        """Number of features of a sample."""
        return self.train_x.shape[1]

    def fingerprint(self) -> str:
        """What tells these samples and labels from others, wherever they are.

        Returns:
            The first 16 hexadecimal digits of the SHA-256 of the shapes and contents of both sets.
        """
        digest = hashlib.sha256()
        for tensor in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(np.ascontiguousarray(tensor.numpy(force=True)).data)
        return digest.hexdigest()[:FINGERPRINT_DIGITS]

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on another device."""
        return replace(
            self,
            train_x=self.train_x.to(device),
            train_y=self.train_y.to(device),
            test_x=self.test_x.to(device),
            test_y=self.test_y.to(device),
            mean=self.mean.to(device),
        )

    def limited(self, train_size: int | None) -> Dataset:
        """The first `train_size` training samples of one fixed shuffle (None: all); all test samples."""
        if train_size is None or train_size >= len(self.train_y):
            return self
        index = self._shuffled()[:train_size]
        return replace(self, train_x=self.train_x[index], train_y=self.train_y[index])

    def held_out(self, share: float) -> tuple[Dataset, Float[Tensor, "held features"], Int[Tensor, " held"]]:
        """The data without a part of the training samples, and that part, for validation.

        Args:
            share: Share of the training samples that is held out, in [0, 1); the number is rounded. They are the last
                of one fixed shuffle. 0: none, and the training set is left in its order.

        Returns:
            The rest with all test samples, and the features and labels that were held out.

        Raises:
            ValueError: See `held_count`.
        """
        count = self.held_count(share)
        if count == 0:
            return self, self.train_x[:0], self.train_y[:0]
        index = self._shuffled()
        rest, held = index[:-count], index[-count:]
        left = replace(self, train_x=self.train_x[rest], train_y=self.train_y[rest])
        return left, self.train_x[held], self.train_y[held]

    def held_count(self, share: float) -> int:
        """The number of training samples that `held_out` holds out.

        Raises:
            ValueError: If no training sample is left, or none is held out for a share above 0.
        """
        samples = len(self.train_y)
        count = round(share * samples)
        if count == 0 and share > 0:
            raise ValueError(f"validation = {share} holds out none of {samples} samples; use a larger share, or 0")
        if count >= samples:
            raise ValueError(f"validation = {share} leaves no training sample of {samples}; use a smaller share")
        return count

    def _shuffled(self) -> Tensor:
        return torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(len(self.train_y)))


def standardised(raw: Raw, name: str) -> Dataset:
    """Subtract every feature's training mean and divide by one standard deviation common to all features.

    The arrays of `raw` are used up: they are overwritten.
    """
    train_x, test_x = raw.train_x, raw.test_x
    mean = train_x.mean(axis=0, dtype=np.float64).astype(np.float32)
    train_x -= mean
    test_x -= mean
    parts = (train_x[start : start + ROWS] for start in range(0, len(train_x), ROWS))
    squares = sum(float(np.sum(part**2, dtype=np.float64)) for part in parts)
    scale = np.float32(math.sqrt(squares / train_x.size) or 1.0)
    train_x /= scale
    test_x /= scale
    return Dataset(
        train_x=torch.from_numpy(train_x),
        train_y=torch.from_numpy(raw.train_y),
        test_x=torch.from_numpy(test_x),
        test_y=torch.from_numpy(raw.test_y),
        classes=int(max(raw.train_y.max(), raw.test_y.max())) + 1,
        name=name,
        shape=raw.shape,
        mean=torch.from_numpy(mean),
        scale=float(scale),
        note=raw.note,
    )


def flat(images: Bytes) -> Reals:
    """Images as rows of numbers in 0 … 1."""
    rows = images.reshape(len(images), -1).astype(np.float32)
    rows /= np.float32(255.0)
    return rows
