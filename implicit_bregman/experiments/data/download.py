"""Getting a set through scikit-learn's client of OpenML, for those who have a network.

What arrives is written to the data folder in the set's own format, after its checksums have been verified: the next run
reads the files and needs no network.
"""

from __future__ import annotations

import gzip
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import numpy as np
import numpy.typing as npt

from implicit_bregman.experiments.data.checksums import (
    CIFAR_BATCH,
    CIFAR_BINARY_SHA1,
    IDX_COUNTS,
    check_any,
    check_idx,
    sha1,
)
from implicit_bregman.experiments.data.cifar import BATCHES, BINARIES, PIXELS, cifar_home, to_binary
from implicit_bregman.experiments.data.cifar import RECIPE as CIFAR_RECIPE
from implicit_bregman.experiments.data.dataset import Bytes
from implicit_bregman.experiments.data.idx import IDX_SETS, idx_home, to_idx
from implicit_bregman.experiments.data.idx import PIXELS as IDX_PIXELS
from implicit_bregman.experiments.output.files import write_all

# The data sets' numbers there, which stand for one version each.
OPENML_IDS = {"mnist": 554, "fashion": 40996, "cifar10": 40927}
# What a network that fails raises; any other error, of a full disk say, speaks for itself.
NETWORK_ERRORS = (URLError, TimeoutError, ConnectionError, HTTPException)


def files_at(name: str, root: Path) -> Path | None:
    """The folder in which files of a set are, all of them or some.

    Args:
        name: "mnist", "fashion" or "cifar10".
        root: The data folder.

    Returns:
        The folder, or None if none of the set's files are there.
    """
    home = cifar_home(root) if name == "cifar10" else idx_home(name, root)
    return home.parent if home is not None and home.is_file() else home


def download(name: str, root: Path) -> None:
    """Fetch a set into the data folder, if none of its files are there.

    Args:
        name: "mnist", "fashion" or "cifar10".
        root: The data folder; it is created if needed.

    Raises:
        ValueError: If what arrives is not the published set.
        OSError: If OpenML cannot be reached, or a file cannot be written.
    """
    if files_at(name, root) is not None:
        return
    images, labels = _fetch(name, root)
    files = _cifar_files(images, labels) if name == "cifar10" else _idx_files(name, images, labels)
    folder = root / (BINARIES if name == "cifar10" else f"{IDX_SETS[name][0]}/raw")
    folder.mkdir(parents=True, exist_ok=True)
    write_all(folder, files)


def _fetch(name: str, root: Path) -> tuple[Bytes, Bytes]:
    from sklearn.datasets import fetch_openml

    recipe = CIFAR_RECIPE if name == "cifar10" else IDX_SETS[name][1]
    try:
        # This parser needs no package besides scikit-learn.
        bunch = fetch_openml(data_id=OPENML_IDS[name], data_home=root / "openml", as_frame=False, parser="liac-arff")
    except NETWORK_ERRORS as error:
        raise OSError(f"dataset {name!r}: OpenML cannot be reached ({error}); or get the files by {recipe}") from None
    return _whole_bytes(name, bunch.data), _whole_bytes(name, np.asarray(bunch.target).astype(np.float64))


def _whole_bytes(name: str, values: npt.NDArray[np.float64]) -> Bytes:
    converted = np.asarray(values).astype(np.uint8)
    if not np.array_equal(converted, values):
        raise ValueError(f"dataset {name!r}: OpenML sent values that are no whole numbers in 0 … 255; get it elsewhere")
    return converted


def _idx_files(name: str, images: Bytes, labels: Bytes) -> dict[str, bytes]:
    _check_shape(name, images, labels, sum(IDX_COUNTS.values()), IDX_PIXELS[0] * IDX_PIXELS[1])
    images = images.reshape(-1, *IDX_PIXELS)
    files, start = {}, 0
    for split, count in IDX_COUNTS.items():
        part = slice(start, start + count)
        start += count
        for stem, values in ((f"{split}-images-idx3-ubyte", images), (f"{split}-labels-idx1-ubyte", labels)):
            content = to_idx(values[part])
            check_idx(name, stem, Path(f"OpenML/{OPENML_IDS[name]}"), content)
            files[f"{stem}.gz"] = gzip.compress(content, mtime=0)
    return files


def _cifar_files(images: Bytes, labels: Bytes) -> dict[str, bytes]:
    _check_shape("cifar10", images, labels, CIFAR_BATCH * len(BATCHES), PIXELS)
    files = {}
    for number, name in enumerate(BATCHES):
        part = slice(number * CIFAR_BATCH, (number + 1) * CIFAR_BATCH)
        content = to_binary(images[part], labels[part])
        source = Path(f"OpenML/{OPENML_IDS['cifar10']}")
        check_any(f"the published {name} of CIFAR-10", source, [(sha1(content), CIFAR_BINARY_SHA1[name])])
        files[f"{name}.bin"] = content
    return files


def _check_shape(name: str, images: Bytes, labels: Bytes, samples: int, pixels: int) -> None:
    if images.shape != (samples, pixels) or labels.shape != (samples,):
        raise ValueError(
            f"dataset {name!r}: OpenML sent images of shape {images.shape} and labels of shape {labels.shape}, "
            f"not ({samples}, {pixels}) and ({samples},); get it elsewhere"
        )
