"""Data sets: what is loaded, and what is said about files that are missing or damaged."""

import gzip
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from implicit_bregman.experiments.data import checksums, load_dataset

PIXELS = (3, 2)
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def idx(magic: int, *shape: int, top: int = 256) -> bytes:
    """An IDX file of that shape, its values counting up."""
    size = 1
    for extent in shape:
        size *= extent
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + bytes(7 * k % top for k in range(size))


def write_set(folder: Path, zipped: bool = False, train: int = 12, test: int = 5) -> None:
    """The four files of a tiny set."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("t10k", test)):
        for name, content in (
            (f"{split}-images-idx3-ubyte", idx(2051, count, *PIXELS)),
            (f"{split}-labels-idx1-ubyte", idx(2049, count, top=10)),
        ):
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


def test_digits_are_split_once_and_for_all() -> None:
    data, again = load_dataset("digits"), load_dataset("digits", seed=1)
    assert data.train_x.shape == (1438, 64)
    assert data.test_x.shape == (359, 64)
    assert (data.classes, data.features) == (10, 64)
    assert torch.equal(data.test_x, again.test_x)
    assert torch.equal(data.train_y, again.train_y)
    share = data.test_y.bincount() / (data.test_y.bincount() + data.train_y.bincount())
    assert torch.all((share - 0.2).abs() < 0.01)


def test_a_fingerprint_tells_data_apart() -> None:
    data = load_dataset("digits")
    same = load_dataset("digits", seed=1)
    assert data.fingerprint() == same.fingerprint()
    assert re.fullmatch("[0-9a-f]{16}", data.fingerprint())
    same.test_y[-1] += 1
    others = (
        same,
        replace(data, train_x=data.train_x + 1e-6),
        replace(data, train_x=data.train_x.view(-1, 32)),
        data.limited(50),
    )
    assert len({item.fingerprint() for item in (data, *others)}) == 5
    columns = data.train_x.T.contiguous().T
    assert not columns.is_contiguous()
    assert replace(data, train_x=columns).fingerprint() == data.fingerprint()


@pytest.mark.parametrize("name", ["digits", "spirals"])
def test_features_are_centred_and_share_one_scale(name: str) -> None:
    data = load_dataset(name)
    assert data.train_x.dtype == torch.float32
    torch.testing.assert_close(data.train_x.mean(0), torch.zeros(data.features), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train_x.square().mean(), torch.tensor(1.0), atol=1e-5, rtol=0)


def test_no_training_sample_is_a_test_sample() -> None:
    data = load_dataset("digits")
    assert torch.cdist(data.test_x, data.train_x).min() > 0


def test_spirals_depend_on_the_seed_alone() -> None:
    assert torch.equal(load_dataset("spirals", seed=3).train_x, load_dataset("spirals", seed=3).train_x)
    assert not torch.equal(load_dataset("spirals", seed=3).train_x, load_dataset("spirals", seed=4).train_x)


def test_limited_takes_the_same_samples_every_time() -> None:
    data = load_dataset("digits")
    few = data.limited(50)
    assert few.train_x.shape == (50, 64)
    assert torch.equal(few.train_x, data.limited(50).train_x)
    assert torch.equal(few.train_x[:20], data.limited(20).train_x)
    assert torch.equal(few.test_x, data.test_x)
    assert data.limited(10**6) is data


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "below"),
    [("mnist", "MNIST/raw"), ("fashion", "FashionMNIST/raw"), ("mnist", "MNIST"), ("mnist", "")],
)
def test_idx_files_are_found_and_read(tmp_path: Path, name: str, below: str, zipped: bool) -> None:
    write_set(tmp_path / below, zipped)
    data = load_dataset(name, tmp_path)
    assert data.train_x.shape == (12, 6)
    assert data.test_x.shape == (5, 6)
    assert data.train_y.tolist() == [7 * k % 10 for k in range(12)]
    assert data.shape == (1, *PIXELS)
    raw = torch.tensor([[7.0 * k % 256 for k in range(6 * i, 6 * i + 6)] for i in range(12)])
    centred = raw - raw.mean(0)
    torch.testing.assert_close(data.train_x, centred / centred.square().mean().sqrt(), atol=1e-5, rtol=1e-5)


def test_each_set_has_its_own_folder(tmp_path: Path) -> None:
    write_set(tmp_path / "MNIST/raw", train=12)
    write_set(tmp_path / "FashionMNIST/raw", train=20)
    assert len(load_dataset("mnist", tmp_path).train_y) == 12
    assert len(load_dataset("fashion", tmp_path).train_y) == 20


def test_a_part_of_a_set_is_read_and_called_so(tmp_path: Path) -> None:
    write_set(tmp_path)
    assert load_dataset("mnist", tmp_path).note == (
        "mnist: 12 training and 5 test images, not the published 60,000 and 10,000"
    )
    assert load_dataset("fashion", tmp_path).note.startswith("fashion: 12 training")
    assert load_dataset("digits").note == ""


def test_a_whole_set_needs_no_note() -> None:
    assert checksums.describe_part("mnist", 60_000, 10_000) == ""
    assert checksums.describe_part("cifar10", 50_000, 10_000) == ""
    assert "not the published 50,000 and 10,000" in checksums.describe_part("cifar10", 50_000, 9_999)
    assert "60,000 training and 10,000 test" in checksums.describe_part("cifar10", 60_000, 10_000)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'imagenet'.*digits, spirals, mnist, fashion, cifar10"):
        load_dataset("imagenet")


def test_idx_sets_need_a_folder() -> None:
    with pytest.raises(ValueError, match=r"'mnist'.*--data-dir.*download"):
        load_dataset("mnist")


@pytest.mark.parametrize("missing", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_missing_file_is_named_with_where_it_was_looked_for(tmp_path: Path, missing: str) -> None:
    write_set(tmp_path / "MNIST/raw")
    (tmp_path / "MNIST/raw" / missing).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("mnist", tmp_path)
    message = str(caught.value)
    assert missing in message
    assert str(tmp_path / "MNIST/raw") in message
    assert "download=True" in message
    assert "\n" not in message


def test_a_missing_folder_is_named_with_all_the_places(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("fashion", tmp_path / "nowhere")
    for place in ("nowhere/FashionMNIST/raw", "nowhere/FashionMNIST", "nowhere/raw"):
        assert place in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("train-images-idx3-ubyte", idx(2051, 12, *PIXELS)[:-3], "truncated"),
        ("train-images-idx3-ubyte", idx(2051, 12, *PIXELS) + b"x", "72"),
        ("train-images-idx3-ubyte", idx(2049, 12), "magic number 2049 instead of 2051"),
        ("train-images-idx3-ubyte", b"", "too few"),
        ("train-images-idx3-ubyte", idx(2051, 11, *PIXELS), "11 images but .* 12 labels"),
        ("t10k-labels-idx1-ubyte", idx(2049, 5), "above 9"),
        ("t10k-images-idx3-ubyte", idx(2051, 5, 2, 2), "pixels"),
        ("t10k-images-idx3-ubyte", gzip.compress(idx(2051, 5, *PIXELS), mtime=0)[:-9], "damaged gzip"),
        ("t10k-images-idx3-ubyte", gzip.compress(bytes(100), mtime=0)[:12] + b"\xff" * 30, "damaged gzip"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: bytes, complaint: str) -> None:
    write_set(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        load_dataset("mnist", tmp_path)
    assert "\n" not in str(caught.value)
    assert complaint == "pixels" or file in str(caught.value)


def test_a_sample_has_a_shape() -> None:
    assert load_dataset("digits").shape == (1, 8, 8)
    assert load_dataset("spirals").shape == (2,)


def test_held_out_samples_leave_the_training_set() -> None:
    data = load_dataset("digits")
    rest, held_x, held_y = data.held_out(0.1)
    assert (len(rest.train_y), len(held_y)) == (1438 - 144, 144)
    assert torch.cdist(held_x, rest.train_x).min() > 0
    assert torch.equal(rest.test_x, data.test_x)
    assert torch.equal(data.held_out(0.1)[1], held_x)
    same, none, _ = data.held_out(0.0)
    assert same is data
    assert none.shape == (0, 64)
    with pytest.raises(ValueError, match="leaves no training sample"):
        data.limited(3).held_out(0.9)


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion", "FashionMNIST")])
def test_the_published_files_are_accepted(name: str, folder: str) -> None:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"{folder} is not in ../shared/data")
    data = load_dataset(name, SHARED)
    assert (len(data.train_y), len(data.test_y), data.shape) == (60_000, 10_000, (1, 28, 28))
    assert data.note == ""


def test_a_file_of_the_published_size_must_be_the_published_one(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(2049, 10_000, top=10))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte of 'mnist' but not its SHA-256"):
        load_dataset("mnist", tmp_path)


def test_a_file_of_another_set_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path)
    content = idx(2049, 10_000, top=10)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(content)
    monkeypatch.setitem(checksums.IDX_SHA256["fashion"], "t10k-labels-idx1-ubyte", checksums.sha256(content))
    with pytest.raises(ValueError, match=r"it is t10k-labels-idx1-ubyte of 'fashion'"):
        load_dataset("mnist", tmp_path)
