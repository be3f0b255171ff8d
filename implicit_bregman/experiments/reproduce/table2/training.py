"""The networks of Table 2 and how one of them is trained: one cell of the grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from implicit_bregman.experiments.data import Dataset, load_dataset
from implicit_bregman.experiments.learning.training import epoch_batches, evaluate, steps_per_epoch
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre import geometry as find_geometry
from implicit_bregman.nn.feedforward import KINDS, FeedForward
from implicit_bregman.settings import check_choice, check_count, check_positive

DATASETS = ("mnist", "fashion", "cifar10")
NETWORKS = ("1 hidden", "3 hidden", "cnn")
OPTIMIZERS = ("sgd", "adam")
CHANNELS = {"mnist": 1, "fashion": 1, "cifar10": 3}
CNN_WIDTH = 128
CNN_CHANNELS = (16, 32)
LEVELS = 256
"""Grey levels of a pixel: level v becomes (v + 1/2)/256, which lies inside (0, 1)."""
HELD_OUT = 6
"""One in so many training samples is held out to choose the learning rate."""


@dataclass(frozen=True)
class ImageTraining:
    """One network of Table 2.

    Attributes:
        dataset: "mnist", "fashion" or "cifar10".
        data: Fingerprint of the data, so that other data are other cells.
        network: "1 hidden", "3 hidden" or "cnn".
        kind: "standard", "euclidean" or "bregman".
        geometry: Name of the activation's geometry; its domain must contain (0, 1).
        optimizer: "sgd" (no momentum) or "adam".
        rate: Learning rate at the start; it falls evenly to 0.
        epochs: Passes over the training samples that are not held out.
        batch_size: Samples per step.
        train_size: Training samples, the held-out ones included; None: all.
        seed: Of initial parameters and order of the batches.

    Raises:
        ValueError: For an unknown name or a number out of range.
    """

    dataset: str
    data: str
    network: str
    kind: str
    geometry: str
    optimizer: str
    rate: float
    epochs: int
    batch_size: int
    train_size: int | None
    seed: int

    def __post_init__(self) -> None:
        check_choice("dataset", self.dataset, DATASETS)
        check_choice("network", self.network, NETWORKS)
        check_choice("kind", self.kind, KINDS)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_positive("rate", self.rate)
        for name in ("epochs", "batch_size"):
            check_count(name, getattr(self, name))
        if self.train_size is not None:
            check_count("train_size", self.train_size, HELD_OUT)
        lo, hi = find_geometry(self.geometry).domain
        if lo > 0 or hi < 1:
            raise ValueError(
                f"geometry {self.geometry!r} has the domain ({lo:g}, {hi:g}), which lacks pixels in (0, 1)"
            )


def as_pixels(data: Dataset) -> Dataset:
    """Images with their pixels in the open interval (0, 1).

    `load_dataset` centres and scales. This undoes both; then level v of 256 becomes (v + 1/2)/256.
    """

    def mapped(x: Tensor) -> Tensor:
        grey = (x * data.scale + data.mean).clamp(0, 1)
        return (grey * (LEVELS - 1) + 0.5) / LEVELS

    return replace(data, train_x=mapped(data.train_x), test_x=mapped(data.test_x))


@lru_cache(maxsize=1)
def load_pixels(dataset: str, data_dir: str | None) -> Dataset:
    """The data set with pixels in (0, 1), kept for the next cell.

    Raises:
        ValueError: For an unknown name, no folder, or a file with the wrong content.
        FileNotFoundError: For missing files.
    """
    return as_pixels(load_dataset(dataset, None if data_dir is None else Path(data_dir)))


class ConvolutionalFeatures(nn.Sequential):
    """Two 3x3 convolutions, each with ReLU and 2x2 max-pooling, and a linear layer with the activation ρ.

    Args:
        channels: Of the image.
        side: Pixels of a side.
        geometry: Gives ρ, which brings the features into C.
    """

    def __init__(self, channels: int, side: int, geometry: MirrorMap) -> None:
        first, second = CNN_CHANNELS
        super().__init__(
            nn.Unflatten(1, (channels, side, side)),
            nn.Conv2d(channels, first, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * (side // 4) ** 2, CNN_WIDTH),
        )
        self.geometry = geometry

    def forward(self, images: Tensor) -> Tensor:
        return self.geometry.activation(super().forward(images))


def make_classifier(settings: ImageTraining, features: int, classes: int) -> nn.Sequential:
    """The network with its initial parameters, equal for all kinds of a seed; the global seed is left alone."""
    phi = find_geometry(settings.geometry)
    channels = CHANNELS[settings.dataset]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if settings.network == "cnn":
            side = math.isqrt(features // channels)
            body = FeedForward([CNN_WIDTH, CNN_WIDTH], phi, settings.kind)
            return nn.Sequential(ConvolutionalFeatures(channels, side, phi), body, nn.Linear(CNN_WIDTH, classes))
        depth = int(settings.network.split()[0])
        body = FeedForward([features] * (depth + 1), phi, settings.kind)
        return nn.Sequential(body, nn.Linear(features, classes))


def train_images(settings: ImageTraining, data_dir: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """The function of a cell: train one network, the last sixth of the training samples held out.

    Returns:
        Shares of right answers on the held-out and on the test samples, and the mean cross entropy (nats) of the
        training samples.
    """
    data = load_pixels(settings.dataset, data_dir).limited(settings.train_size).to(device)
    kept = len(data.train_y) - len(data.train_y) // HELD_OUT
    x, y = data.train_x[:kept], data.train_y[:kept]
    model = make_classifier(settings, data.features, data.classes).to(device)
    if settings.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=settings.rate)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.rate)
    batches = epoch_batches(kept, settings.batch_size, settings.seed)
    steps = settings.epochs * steps_per_epoch(kept, settings.batch_size)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * (1 - step / steps)
        index = next(batches).to(device)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
    _, validation = evaluate(model, data.train_x[kept:], data.train_y[kept:])
    train_loss, _ = evaluate(model, x, y)
    _, test = evaluate(model, data.test_x, data.test_y)
    return {"validation": validation, "test": test, "train_loss": train_loss}
