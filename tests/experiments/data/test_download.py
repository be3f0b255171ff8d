"""Fetching a set: what OpenML sends is verified, written once, and read from then on."""

import errno
import os
from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch

from implicit_bregman.experiments.data import checksums, download, load_dataset
from implicit_bregman.experiments.data.cifar import BATCHES, to_binary
from implicit_bregman.experiments.data.idx import to_idx
from tests.experiments.data.test_cifar import archive, write_binaries
from tests.experiments.data.test_data import write_set

COUNTS = {"train": 30, "t10k": 10}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of a few images, as if they were the published ones."""
    for split, count in COUNTS.items():
        monkeypatch.setitem(checksums.IDX_COUNTS, split, count)
    monkeypatch.setattr("implicit_bregman.experiments.data.download.CIFAR_BATCH", 5)
    monkeypatch.setattr("implicit_bregman.experiments.data.cifar.CIFAR_BATCH", 5)


def sent(samples: int, pixels: int) -> SimpleNamespace:
    """What the client returns: real numbers, and labels as text."""
    random = np.random.RandomState(0)
    labels = np.array([str(label) for label in random.randint(0, 10, samples)], dtype=object)
    return SimpleNamespace(data=random.randint(0, 256, (samples, pixels)).astype(np.float64), target=labels)


def serve(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[dict[str, Any]]:
    """Let the client give that answer; returns the list of what it was asked for."""
    asked: list[dict[str, Any]] = []

    def fetch(**arguments: Any) -> Any:
        asked.append(arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    return asked


def test_mnist_is_fetched_verified_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    answer = sent(40, 784)
    asked = serve(monkeypatch, answer)
    with pytest.raises(ValueError, match=r"OpenML.*SHA-256"):
        load_dataset("mnist", tmp_path, download=True)
    assert not list(tmp_path.rglob("*ubyte*"))
    images, labels = answer.data.astype(np.uint8).reshape(-1, 28, 28), answer.target.astype(np.uint8)
    for split, part in (("train", slice(0, 30)), ("t10k", slice(30, 40))):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            digest = checksums.sha256(to_idx(values[part]))
            monkeypatch.setitem(checksums.IDX_SHA256["mnist"], f"{split}-{kind}-ubyte", digest)
    first = load_dataset("mnist", tmp_path, download=True)
    assert first.train_x.shape == (30, 784)
    assert first.test_y.tolist() == labels[30:].tolist()
    assert len(asked) == 2
    again = load_dataset("mnist", tmp_path, download=True)
    assert torch.equal(again.train_x, first.train_x)
    assert len(asked) == 2
    assert asked[0]["data_id"] == 554


def test_cifar_is_fetched_verified_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    answer = sent(30, 3072)
    serve(monkeypatch, answer)
    with pytest.raises(ValueError, match=r"data_batch_1 of CIFAR-10.*checksum"):
        load_dataset("cifar10", tmp_path, download=True)
    images, labels = answer.data.astype(np.uint8), answer.target.astype(np.uint8)
    for number, name in enumerate(BATCHES):
        part = slice(5 * number, 5 * number + 5)
        monkeypatch.setitem(checksums.CIFAR_BINARY_SHA1, name, checksums.sha1(to_binary(images[part], labels[part])))
    data = load_dataset("cifar10", tmp_path, download=True)
    assert data.test_y.tolist() == labels[25:].tolist()
    assert len(list((tmp_path / "cifar-10-batches-bin").glob("*.bin"))) == 6


@pytest.mark.parametrize("name", ["mnist", "fashion", "cifar10"])
def test_no_network_says_how_else_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    serve(monkeypatch, URLError("no route to host"))
    with pytest.raises(OSError, match=r"OpenML cannot be reached.*no route to host.*torchvision"):
        load_dataset(name, tmp_path, download=True)


@pytest.mark.parametrize("error", [TimeoutError("slow"), ConnectionResetError("slow"), IncompleteRead(b"slow")])
def test_every_failure_of_the_network_is_called_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    serve(monkeypatch, error)
    with pytest.raises(OSError, match=r"OpenML cannot be reached"):
        load_dataset("mnist", tmp_path, download=True)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_is_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    serve(monkeypatch, OSError(code, os.strerror(code), "openml"))
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        load_dataset("mnist", tmp_path, download=True)
    assert "OpenML" not in str(caught.value)
    assert caught.value.errno == code


@pytest.mark.parametrize(
    ("name", "below", "missing"),
    [
        ("mnist", "MNIST/raw", "t10k-labels-idx1-ubyte"),
        ("cifar10", "CIFAR10/cifar-10-batches-bin", "data_batch_4.bin"),
    ],
)
def test_an_incomplete_set_has_to_be_removed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, below: str, missing: str
) -> None:
    asked = serve(monkeypatch, URLError("not to be asked"))
    folder = tmp_path / below
    write_binaries(folder) if name == "cifar10" else write_set(folder)
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset(name, tmp_path, download=True)
    assert str(caught.value).endswith(f"remove the set's files in {folder}")
    (folder / missing).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"remove the set's files in") as damaged:
        load_dataset(name, tmp_path, download=True)
    assert missing in str(damaged.value)
    with pytest.raises(ValueError, match=missing) as plain:
        load_dataset(name, tmp_path)
    assert "--download" not in str(plain.value)
    assert asked == []


def test_a_damaged_archive_is_to_be_removed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, URLError("not to be asked"))
    np.savez(tmp_path / "cifar10_jpeg.npz", **archive(train_labels=np.full(8, 10, dtype=np.uint8)))
    with pytest.raises(ValueError, match=rf"remove the set's files in {tmp_path}$"):
        load_dataset("cifar10", tmp_path, download=True)


def test_what_is_no_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, sent(20, 784))
    with pytest.raises(ValueError, match=r"shape \(20, 784\)"):
        load_dataset("mnist", tmp_path, download=True)
    answer = sent(20, 784)
    answer.data[3, 3] = 0.5
    serve(monkeypatch, answer)
    with pytest.raises(ValueError, match="no whole numbers"):
        load_dataset("mnist", tmp_path, download=True)
    assert download.OPENML_IDS.keys() == {"mnist", "fashion", "cifar10"}


def test_a_folder_is_needed() -> None:
    with pytest.raises(ValueError, match="--data-dir"):
        load_dataset("mnist", download=True)
