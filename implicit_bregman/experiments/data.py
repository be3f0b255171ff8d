"""Data sets: digits and spirals need no files, MNIST and Fashion-MNIST are read from IDX files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

Bytes = npt.NDArray[np.uint8]
Reals = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049
SPLIT_SEED = 0
SPIRAL_SAMPLES = {"train": 1000, "test": 500}
SPIRAL_TURNS, SPIRAL_NOISE = 1.5, 0.03

# name -> (folder inside the data directory, how to get the files)
IDX_SETS = {
    "mnist": ("MNIST", "torchvision.datasets.MNIST(DIR, download=True)"),
    "fashion": ("FashionMNIST", "torchvision.datasets.FashionMNIST(DIR, download=True)"),
}
DATASETS = ("digits", "spirals", *IDX_SETS)


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
    """

    train_x: Float[Tensor, "train features"]
    train_y: Int[Tensor, " train"]
    test_x: Float[Tensor, "test features"]
    test_y: Int[Tensor, " test"]
    classes: int
    name: str

    @property
    def features(self) -> int:
        """Number of features of a sample."""
        return self.train_x.shape[1]

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on another device."""
        return replace(
            self,
            train_x=self.train_x.to(device),
            train_y=self.train_y.to(device),
            test_x=self.test_x.to(device),
            test_y=self.test_y.to(device),
        )

    def limited(self, train_size: int | None) -> Dataset:
        """The first `train_size` training samples of one fixed shuffle (None: all); all test samples."""
        if train_size is None or train_size >= len(self.train_y):
            return self
        chosen = np.random.RandomState(SPLIT_SEED).permutation(len(self.train_y))[:train_size]
        index = torch.from_numpy(chosen)
        return replace(self, train_x=self.train_x[index], train_y=self.train_y[index])


def load_dataset(name: str, data_dir: str | Path | None = None, seed: int = 0) -> Dataset:
    """Load a data set by name.

    Every feature has its training mean subtracted and is divided by one standard deviation common to all
    features (the root mean square of the centred training set), so that constant pixels stay 0 and relative
    contrast is kept.

    Args:
        name: "digits" (scikit-learn's 8x8 digits, 1,797 images, of each class every split has the same share,
            20 % for the test, split fixed), "spirals" (two noisy spirals in the plane), "mnist" or "fashion".
        data_dir: Folder with the IDX files of "mnist" and "fashion", gzipped or not: DIR/MNIST/raw/ (or
            DIR/FashionMNIST/raw/), DIR/MNIST/, DIR/raw/ or DIR itself.
        seed: Seed of the generated set "spirals"; the other sets are fixed.

    Returns:
        The data set, on the CPU.

    Raises:
        ValueError: Unknown name, no `data_dir` where one is needed, or a file with the wrong content.
        FileNotFoundError: A file is missing; the message says where it was looked for and how to get it.
    """
    if name == "digits":
        arrays = _digits()
    elif name == "spirals":
        arrays = _spirals(seed)
    elif name in IDX_SETS:
        arrays = _idx_set(name, data_dir)
    else:
        raise ValueError(f"unknown dataset {name!r}; the known ones are {', '.join(DATASETS)}")
    train_x, train_y, test_x, test_y = arrays
    mean = train_x.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = train_x - mean
    scale = np.float32(math.sqrt(float(np.mean(centred**2, dtype=np.float64))) or 1.0)
    return Dataset(
        train_x=torch.from_numpy(centred / scale),
        train_y=torch.from_numpy(train_y),
        test_x=torch.from_numpy((test_x - mean) / scale),
        test_y=torch.from_numpy(test_y),
        classes=int(max(train_y.max(), test_y.max())) + 1,
        name=name,
    )


def _digits() -> tuple[Reals, Labels, Reals, Labels]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    features = np.asarray(bunch.data, dtype=np.float32)
    labels = np.asarray(bunch.target, dtype=np.int64)
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = shuffled[labels[shuffled] == label]
        test[members[: round(0.2 * len(members))]] = True
    return features[~test], labels[~test], features[test], labels[test]


def _spirals(seed: int) -> tuple[Reals, Labels, Reals, Labels]:
    random = np.random.RandomState(seed)

    def draw(count: int) -> tuple[Reals, Labels]:
        labels = np.arange(count, dtype=np.int64) % 2
        radius = np.sqrt(random.uniform(0.01, 1.0, count))
        angle = 2 * np.pi * SPIRAL_TURNS * radius + np.pi * labels
        plane = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        noise = SPIRAL_NOISE * random.standard_normal((count, 2))
        return (plane + noise).astype(np.float32), labels

    return *draw(SPIRAL_SAMPLES["train"]), *draw(SPIRAL_SAMPLES["test"])


def _idx_set(name: str, data_dir: str | Path | None) -> tuple[Reals, Labels, Reals, Labels]:
    folder, recipe = IDX_SETS[name]
    if data_dir is None:
        raise ValueError(
            f"dataset {name!r} is read from IDX files: pass their folder as data_dir (--data-dir DIR); "
            f"to get them: {recipe}"
        )
    root = Path(data_dir)
    places = [root / folder / "raw", root / folder, root / "raw", root]
    home = next((place for place in places if _any_idx(place)), None)
    arrays: list[Bytes] = []
    for split in ("train", "t10k"):
        images_path = _find(name, f"{split}-images-idx3-ubyte", home, places)
        labels_path = _find(name, f"{split}-labels-idx1-ubyte", home, places)
        images, labels = _read_idx(images_path, IMAGES_MAGIC), _read_idx(labels_path, LABELS_MAGIC)
        if len(images) != len(labels):
            raise ValueError(
                f"{images_path} holds {len(images)} images but {labels_path} {len(labels)} labels; "
                f"get both again: {recipe}"
            )
        if labels.max() > 9:
            raise ValueError(f"{labels_path} holds the label {labels.max()}, above 9; get it again: {recipe}")
        arrays += [images, labels]
    train_images, train_labels, test_images, test_labels = arrays
    if train_images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            f"{name}: training images have {train_images.shape[1:]} pixels, "
            f"test images {test_images.shape[1:]}; get all four files again: {recipe}"
        )
    return (
        _flat(train_images),
        train_labels.astype(np.int64),
        _flat(test_images),
        test_labels.astype(np.int64),
    )


def _flat(images: Bytes) -> Reals:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255.0)


def _any_idx(place: Path) -> bool:
    return any(place.glob("*-idx?-ubyte")) or any(place.glob("*-idx?-ubyte.gz"))


def _find(name: str, stem: str, home: Path | None, places: list[Path]) -> Path:
    for place in places if home is None else [home]:
        for candidate in (place / stem, place / f"{stem}.gz"):
            if candidate.is_file():
                return candidate
    looked = ", ".join(str(place) for place in (places if home is None else [home]))
    raise FileNotFoundError(
        f"dataset {name!r}: no {stem} or {stem}.gz in {looked}; to get it: {IDX_SETS[name][1]}, then --data-dir DIR"
    )


def _read_idx(path: Path, magic: int) -> Bytes:
    """One IDX file of unsigned bytes, gzipped or not; every number in its big-endian header is checked."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file ({error}); get it again") from None
    dimensions = magic & 0xFF
    header = 4 * (1 + dimensions)
    if len(raw) < header:
        raise ValueError(f"{path} has {len(raw)} bytes, too few for the {header} of its header; get it again")
    found, *shape = struct.unpack(f">{1 + dimensions}I", raw[:header])
    if found != magic:
        raise ValueError(f"{path} starts with the magic number {found} instead of {magic}; is it another file renamed?")
    if len(raw) - header != math.prod(shape) or 0 in shape:
        raise ValueError(
            f"{path} holds {len(raw) - header} bytes of data, its header promises {math.prod(shape)} "
            f"({' x '.join(map(str, shape))}); it is truncated or damaged, get it again"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)
