"""CIFAR-10 as an archive of JPEG files: small, and lossy."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from implicit_bregman.experiments.data.checksums import JPEG_COUNTS, JPEG_SHA256, check_any, sha256
from implicit_bregman.experiments.data.dataset import Bytes, Raw, flat

ARCHIVE = "cifar10_jpeg.npz"
PARTS = ("blob", "offsets", "labels")
TYPES = ("uint8", "int64", "uint8")
SIZE = (32, 32)
NOTE = "CIFAR-10 as JPEG files (lossy): not comparable with results on the original images"

Offsets = npt.NDArray[np.int64]


def read_archive(path: Path) -> Raw:
    """The images of an `.npz` file with `train_blob`, `train_offsets`, `train_labels`, and the same for `test`.

    Image i of a split is the JPEG file `blob[offsets[i]:offsets[i + 1]]`. The archive's own checksums are tested, and
    a split with the count of the whole set has to be the known one. Decoders may differ by a grey level.

    Raises:
        ValueError: For a file with the wrong content.
    """
    arrays = _arrays(path)
    splits = []
    for split in JPEG_COUNTS:
        blob, offsets, labels = (arrays[f"{split}_{part}"] for part in PARTS)
        _check(path, split, blob, offsets, labels)
        splits.append((_decoded(path, split, blob, offsets), labels.astype(np.int64)))
    (train_images, train_labels), (test_images, test_labels) = splits
    return Raw(flat(train_images), train_labels, flat(test_images), test_labels, (3, *SIZE), NOTE)


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The six arrays; the zip file's checksums are tested on the way."""
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is no zip file")
            with np.load(file, allow_pickle=False) as archive:
                return {f"{split}_{part}": archive[f"{split}_{part}"] for split in JPEG_COUNTS for part in PARTS}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated, damaged or no archive of JPEG files ({error}); get it again") from None


def _check(path: Path, split: str, blob: Bytes, offsets: Offsets, labels: Bytes) -> None:
    """Types, counts, order and checksum of the arrays of a split."""
    types = (blob.dtype.name, offsets.dtype.name, labels.dtype.name)
    if types != TYPES or any(array.ndim != 1 for array in (blob, offsets, labels)):
        raise ValueError(f"{path}: the arrays of {split!r} must be flat and of type {TYPES}, got {types}; get it again")
    if len(labels) < 1 or len(offsets) != len(labels) + 1:
        raise ValueError(
            f"{path}: {split!r} has {len(labels)} labels and {len(offsets)} offsets, not one more; get it again"
        )
    if labels.max() > 9:
        raise ValueError(f"{path}: {split!r} holds the label {labels.max()}, above 9; get it again")
    if offsets[0] != 0 or offsets[-1] != len(blob) or np.any(np.diff(offsets) <= 0):
        raise ValueError(f"{path}: the offsets of {split!r} do not divide its {len(blob)} bytes; get it again")
    if len(labels) == JPEG_COUNTS[split]:
        found = sha256(blob.data, offsets.data, labels.data)
        check_any(f"the known {split!r} split", path, [(found, JPEG_SHA256[split])])


def _decoded(path: Path, split: str, blob: Bytes, offsets: Offsets) -> Bytes:
    """All images of a split, (n, 3, 32, 32), channels first."""
    from PIL import Image, UnidentifiedImageError

    content = blob.tobytes()
    images = np.empty((len(offsets) - 1, *SIZE, 3), dtype=np.uint8)
    for number, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        try:
            image = Image.open(io.BytesIO(content[start:end]), formats=["JPEG"])
            if image.size != SIZE or image.mode != "RGB":
                raise ValueError(f"it is {image.size[0]} x {image.size[1]} {image.mode} instead of 32 x 32 RGB")
            images[number] = np.asarray(image)
        except (OSError, SyntaxError, UnidentifiedImageError, ValueError) as error:
            raise ValueError(f"{path}: image {number} of {split!r} cannot be used: {error}; get it again") from None
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
