"""MNIST and Fashion-MNIST, from IDX files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from implicit_bregman.experiments.data.checksums import IDX_COUNTS, check_idx
from implicit_bregman.experiments.data.dataset import Bytes, Raw, flat

IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049
PIXELS = (28, 28)

# name -> (folder inside the data directory, how to get the files)
IDX_SETS = {
    "mnist": ("MNIST", "torchvision.datasets.MNIST(DIR, download=True)"),
    "fashion": ("FashionMNIST", "torchvision.datasets.FashionMNIST(DIR, download=True)"),
}


def read_idx_set(name: str, root: Path) -> Raw:
    """The four files of a set, each gzipped or not.

    A file of the published size must be the published one. Other sizes, such as a part of a set, are read as they are.

    Raises:
        ValueError: For a file with the wrong content.
        FileNotFoundError: For a missing one.
    """
    recipe = IDX_SETS[name][1]
    home = idx_home(name, root)
    arrays: list[Bytes] = []
    for split in IDX_COUNTS:
        images_stem, labels_stem = f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"
        images_path, labels_path = _find(name, images_stem, home, root), _find(name, labels_stem, home, root)
        images, labels = _read(name, images_stem, images_path), _read(name, labels_stem, labels_path)
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
    return Raw(
        flat(train_images),
        train_labels.astype(np.int64),
        flat(test_images),
        test_labels.astype(np.int64),
        (1, *train_images.shape[1:]),
    )


def idx_home(name: str, root: Path) -> Path | None:
    """The folder that holds IDX files, or None."""
    return next((place for place in _places(name, root) if _any_idx(place)), None)


def to_idx(values: Bytes) -> bytes:
    """The unpacked IDX file of images, (n, height, width), or of labels, (n,)."""
    magic = IMAGES_MAGIC if values.ndim == 3 else LABELS_MAGIC
    return struct.pack(f">{1 + values.ndim}I", magic, *values.shape) + np.ascontiguousarray(values).tobytes()


def _places(name: str, root: Path) -> list[Path]:
    folder = IDX_SETS[name][0]
    return [root / folder / "raw", root / folder, root / "raw", root]


def _any_idx(place: Path) -> bool:
    return any(place.glob("*-idx?-ubyte")) or any(place.glob("*-idx?-ubyte.gz"))


def _find(name: str, stem: str, home: Path | None, root: Path) -> Path:
    places = _places(name, root) if home is None else [home]
    for place in places:
        for candidate in (place / stem, place / f"{stem}.gz"):
            if candidate.is_file():
                return candidate
    looked = ", ".join(str(place) for place in places)
    raise FileNotFoundError(
        f"dataset {name!r}: no {stem} or {stem}.gz in {looked}; to get it: {IDX_SETS[name][1]}, then --data-dir DIR"
    )


def _read(name: str, stem: str, path: Path) -> Bytes:
    """One file of a set; one of the published size has to be the published one."""
    content = _unpacked(path)
    magic = IMAGES_MAGIC if "images" in stem else LABELS_MAGIC
    values = _parse(path, content, magic)
    if len(values) == IDX_COUNTS[stem.split("-")[0]] and values.shape[1:] in ((), PIXELS):
        check_idx(name, stem, path, content)
    return values


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file ({error}); get it again") from None


def _parse(path: Path, content: bytes, magic: int) -> Bytes:
    """The unsigned bytes of an IDX file; every number in its big-endian header is checked."""
    dimensions = magic & 0xFF
    header = 4 * (1 + dimensions)
    if len(content) < header:
        raise ValueError(f"{path} has {len(content)} bytes, too few for the {header} of its header; get it again")
    found, *shape = struct.unpack(f">{1 + dimensions}I", content[:header])
    if found != magic:
        raise ValueError(f"{path} starts with the magic number {found} instead of {magic}; is it another file renamed?")
    if len(content) - header != math.prod(shape) or 0 in shape:
        raise ValueError(
            f"{path} holds {len(content) - header} bytes of data, its header promises {math.prod(shape)} "
            f"({' x '.join(map(str, shape))}); it is truncated or damaged, get it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
