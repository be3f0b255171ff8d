"""CIFAR-10: the batches that torchvision unpacks, the binary version, or an archive of JPEG files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from implicit_bregman.experiments.data.checksums import (
    CIFAR_BATCH,
    CIFAR_BINARY_SHA1,
    CIFAR_PICKLE_MD5,
    check_any,
    md5,
    sha1,
)
from implicit_bregman.experiments.data.dataset import Bytes, Raw, flat
from implicit_bregman.experiments.data.jpeg import ARCHIVE, read_archive
from implicit_bregman.experiments.data.pickles import as_bytes, read_pickle

SHAPE = (3, 32, 32)
PIXELS = math.prod(SHAPE)
BATCHES = tuple(CIFAR_BINARY_SHA1)
PICKLES, BINARIES = "cifar-10-batches-py", "cifar-10-batches-bin"
RECIPE = "torchvision.datasets.CIFAR10(DIR, download=True)"


def read_cifar(root: Path) -> Raw:
    """The set, from the first of these that is there, in DIR or in DIR/CIFAR10.

    `cifar-10-batches-py/` (pickles), `cifar-10-batches-bin/` (the binary version), `cifar10_jpeg.npz`. DIR may also be
    the folder with the pickles. A batch of 10,000 images has to be the published one, and the training batches have to
    be equally large.

    Raises:
        ValueError: For a file with the wrong content.
        FileNotFoundError: For a missing one.
    """
    home = cifar_home(root)
    if home is None:
        raise FileNotFoundError(
            f"dataset 'cifar10': no {PICKLES}/, {BINARIES}/ or {ARCHIVE} in {root} or {root / 'CIFAR10'}; "
            f"to get it: {RECIPE}, then --data-dir DIR"
        )
    if home.name == ARCHIVE:
        return read_archive(home)
    paths = [_batch_path(home, name) for name in BATCHES]
    parts = [_read_batch(path, name) for path, name in zip(paths, BATCHES, strict=True)]
    _check_equally_many({path: len(labels) for path, (_, labels) in zip(paths[:-1], parts[:-1], strict=True)})
    train_images = np.concatenate([images for images, _ in parts[:-1]])
    train_labels = np.concatenate([labels for _, labels in parts[:-1]])
    test_images, test_labels = parts[-1]
    return Raw(
        flat(train_images), train_labels.astype(np.int64), flat(test_images), test_labels.astype(np.int64), SHAPE
    )


def cifar_home(root: Path) -> Path | None:
    """The folder with the batches, or the archive, or None."""
    places = (root, root / "CIFAR10")
    folders = [place / kind for kind in (PICKLES, BINARIES) for place in places]
    candidates = [*folders, root, *(place / ARCHIVE for place in places)]
    return next((found for found in candidates if found.is_file() or _any_batch(found)), None)


def to_binary(images: Bytes, labels: Bytes) -> bytes:
    """A batch in the binary version: label and pixels of one image after the other."""
    return np.concatenate([labels[:, None], images.reshape(len(images), PIXELS)], axis=1).tobytes()


def _any_batch(folder: Path) -> bool:
    return any((folder / f"{name}{ending}").is_file() for name in BATCHES for ending in ("", ".bin"))


def _batch_path(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.bin"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"dataset 'cifar10': no {name} in {folder}; to get it: {RECIPE}, then --data-dir DIR")


def _check_equally_many(counts: dict[Path, int]) -> None:
    """Refuse training batches of different sizes: the smallest one lost images."""
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[least] != counts[most]:
        raise ValueError(
            f"{least} holds {counts[least]:,} images but {most.name} {counts[most]:,}; it is truncated, "
            f"get it again: {RECIPE}"
        )


def _read_batch(path: Path, name: str) -> tuple[Bytes, Bytes]:
    """Images, (n, 3072), and labels, (n,), of one batch."""
    content = path.read_bytes()
    binary = path.suffix == ".bin"
    images, labels = _parse_binary(path, content) if binary else _parse_pickle(path, content)
    if labels.max() > 9:
        raise ValueError(f"{path} holds the label {labels.max()}, above 9; get it again: {RECIPE}")
    if len(labels) == CIFAR_BATCH:
        pairs = [(sha1(to_binary(images, labels)), CIFAR_BINARY_SHA1[name])]
        if not binary:
            pairs.insert(0, (md5(content), CIFAR_PICKLE_MD5[name]))
        check_any(f"the published {name} of CIFAR-10", path, pairs)
    return images, labels


def _parse_binary(path: Path, content: bytes) -> tuple[Bytes, Bytes]:
    row = 1 + PIXELS
    if not content or len(content) % row:
        raise ValueError(
            f"{path} has {len(content)} bytes, no multiple of {row}; it is truncated, get it again: {RECIPE}"
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, row)
    return rows[:, 1:], rows[:, 0]


def _parse_pickle(path: Path, content: bytes) -> tuple[Bytes, Bytes]:
    try:
        batch = read_pickle(content)
    except ValueError as error:
        raise ValueError(
            f"{path} is truncated, damaged or no batch of CIFAR-10 ({error}); get it again: {RECIPE}"
        ) from None
    if not isinstance(batch, dict):
        raise ValueError(f"{path} holds no dictionary; is it another file renamed? Get it again: {RECIPE}")
    images = as_bytes(batch.get(b"data", batch.get("data")))
    labels = batch.get(b"labels", batch.get("labels"))
    if images is None or images.ndim != 2 or images.shape[1] != PIXELS:
        raise ValueError(
            f"{path} has no 'data' of n x {PIXELS} bytes; is it another file renamed? Get it again: {RECIPE}"
        )
    if not isinstance(labels, list) or not all(isinstance(label, int) and 0 <= label < 256 for label in labels):
        raise ValueError(f"{path} has no list of 'labels'; is it another file renamed? Get it again: {RECIPE}")
    if len(labels) != len(images) or not labels:
        raise ValueError(f"{path} holds {len(images)} images but {len(labels)} labels; get it again: {RECIPE}")
    return images, np.array(labels, dtype=np.uint8)
