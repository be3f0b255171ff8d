"""A data set by its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from implicit_bregman.experiments.data.checksums import describe_part
from implicit_bregman.experiments.data.cifar import RECIPE, read_cifar
from implicit_bregman.experiments.data.dataset import Dataset, Raw, standardised
from implicit_bregman.experiments.data.download import download as fetch
from implicit_bregman.experiments.data.download import files_at
from implicit_bregman.experiments.data.idx import IDX_SETS, read_idx_set
from implicit_bregman.experiments.data.small import digits, spirals

# name -> how to get its files
FROM_FILES = {**{name: recipe for name, (_, recipe) in IDX_SETS.items()}, "cifar10": RECIPE}
DATASETS = ("digits", "spirals", *FROM_FILES)


def load_dataset(name: str, data_dir: str | Path | None = None, seed: int = 0, download: bool = False) -> Dataset:
    """Load a data set by name.

    Every feature has its training mean subtracted and is divided by one standard deviation common to all
    features (the root mean square of the centred training set), so that constant pixels stay 0 and relative
    contrast is kept.

    Args:
        name: "digits" (scikit-learn's 8x8 digits, 1,797 images, of each class every split has the same share,
            20 % for the test, split fixed), "spirals" (two noisy spirals in the plane), "mnist", "fashion", "cifar10".
        data_dir: Folder with the files of the last three. "mnist" and "fashion": IDX files, gzipped or not, in
            DIR/MNIST/raw/ (or DIR/FashionMNIST/raw/), DIR/MNIST/, DIR/raw/ or DIR itself. "cifar10": the batches that
            torchvision unpacks, in DIR/cifar-10-batches-py/; the binary version, in DIR/cifar-10-batches-bin/; or an
            archive of JPEG files, DIR/cifar10_jpeg.npz; each also in DIR/CIFAR10/. Files of the published size are
            compared with the published checksums; of a set with other counts the `note` says so.
        seed: Seed of the generated set "spirals"; the other sets are fixed.
        download: Whether to fetch the set from OpenML into `data_dir` if none of its files are there; it needs a
            network.

    Returns:
        The data set, on the CPU.

    Raises:
        ValueError: Unknown name, no `data_dir` where one is needed, or a file with the wrong content.
        FileNotFoundError: A file is missing; the message says where it was looked for and how to get it.
        OSError: OpenML cannot be reached.
    """
    return standardised(_read(name, data_dir, seed, download), name)


def _read(name: str, data_dir: str | Path | None, seed: int, download: bool) -> Raw:
    if name == "digits":
        return digits()
    if name == "spirals":
        return spirals(seed)
    if name not in FROM_FILES:
        raise ValueError(f"unknown dataset {name!r}; the known ones are {', '.join(DATASETS)}")
    if data_dir is None:
        raise ValueError(
            f"dataset {name!r} is read from files: pass their folder as data_dir (--data-dir DIR); "
            f"to get them: {FROM_FILES[name]}"
        )
    root = Path(data_dir)
    if not download:
        return _read_files(name, root)
    fetch(name, root)
    try:
        return _read_files(name, root)
    except FileNotFoundError as error:
        raise FileNotFoundError(_with_remedy(error, name, root)) from None
    except ValueError as error:
        raise ValueError(_with_remedy(error, name, root)) from None


def _read_files(name: str, root: Path) -> Raw:
    raw = read_cifar(root) if name == "cifar10" else read_idx_set(name, root)
    notes = (raw.note, describe_part(name, len(raw.train_y), len(raw.test_y)))
    return replace(raw, note="; ".join(note for note in notes if note))


def _with_remedy(error: Exception, name: str, root: Path) -> str:
    """The error of files that `download` left as they are, and what lets it fetch them."""
    return f"{error}; --download fetches nothing while some are there: remove the set's files in {files_at(name, root)}"
