"""Checksums of the published files, and the test that a file which claims to be one of them is one.

They are of what is inside, not of the compressed or pickled file, which differs with the program that wrote it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

# SHA-256 of the unpacked IDX files. Their MD5 sums, and for Fashion-MNIST those of the .gz files that are made from
# them, are the published ones.
IDX_SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
IDX_COUNTS = {"train": 60_000, "t10k": 10_000}

# MD5 of the files of cifar-10-python.tar.gz, and SHA-1 of the same batches in the binary version: label and pixels,
# image by image.
CIFAR_PICKLE_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CIFAR_BINARY_SHA1 = {
    "data_batch_1": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "data_batch_2": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "data_batch_3": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "data_batch_4": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "data_batch_5": "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "test_batch": "67eb016db431130d61cd03c7ad570b013799c88c",
}
CIFAR_BATCH = 10_000

# SHA-256 of blob, offsets and labels, one after the other, of the archive of JPEG files.
JPEG_SHA256 = {
    "train": "6a07f8ef76024a416f0bae4f3bc915f8dbd55c98704120247a9a9f57e83b8f41",
    "test": "4cbd9a8fd208a74a628bfa05ed7e974f29f8717b1282d7ab19f8be3fe2f16ff9",
}
JPEG_COUNTS = {"train": 50_000, "test": 10_000}

# Training and test images of the published sets.
PUBLISHED = {name: tuple(IDX_COUNTS.values()) for name in IDX_SHA256} | {"cifar10": tuple(JPEG_COUNTS.values())}


def sha256(*contents: bytes | memoryview) -> str:
    """SHA-256 of the contents, one after the other, in hexadecimal digits."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()


def md5(content: bytes) -> str:
    """MD5 of the content: an identity that is published, not a protection."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def sha1(content: bytes) -> str:
    """SHA-1 of the content: an identity that is published, not a protection."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def describe_part(name: str, train: int, test: int) -> str:
    """What has to be said of a set that is not the whole published one.

    Args:
        name: Name of the set.
        train: Number of training images that were read.
        test: Number of test images.

    Returns:
        Both numbers beside the published ones; empty if they are equal.
    """
    if (train, test) == PUBLISHED[name]:
        return ""
    published = "{:,} and {:,}".format(*PUBLISHED[name])
    return f"{name}: {train:,} training and {test:,} test images, not the published {published}"


def check_idx(name: str, stem: str, path: Path, content: bytes) -> None:
    """Refuse an unpacked IDX file of the published size that is not the published file.

    Raises:
        ValueError: If its SHA-256 is another one; the message names the file that it is, if that is known.
    """
    found = sha256(content)
    if found == IDX_SHA256[name][stem]:
        return
    owners = (
        (other, known) for other, files in IDX_SHA256.items() for known, digest in files.items() if digest == found
    )
    is_file = next((f"; it is {known} of {other!r}" for other, known in owners), "")
    raise ValueError(
        f"{path} has the size of the published {stem} of {name!r} but not its SHA-256 checksum "
        f"({_short(found)} instead of {_short(IDX_SHA256[name][stem])}){is_file}; get it again"
    )


def check_any(what: str, path: Path, pairs: Iterable[tuple[str, str]]) -> None:
    """Refuse content of which none of the checksums is the published one.

    Args:
        what: What it claims to be.
        path: Where it was read.
        pairs: Checksum found and checksum published, of each kind that is known.

    Raises:
        ValueError: If all of them differ.
    """
    known = list(pairs)
    if all(found != published for found, published in known):
        found, published = known[0]
        raise ValueError(
            f"{path} has the size of {what} but not its checksum ({_short(found)} instead of {_short(published)}); "
            "it is damaged or another file, get it again"
        )


def _short(digest: str) -> str:
    return f"{digest[:12]}…"
