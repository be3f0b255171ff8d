"""CIFAR-10: pickled batches, binary batches, the archive of JPEG files, and what is said about damaged ones."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from implicit_bregman.experiments.data import checksums, load_dataset
from implicit_bregman.experiments.data.cifar import BATCHES, to_binary
from implicit_bregman.experiments.data.pickles import as_bytes, read_pickle

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
COUNT = 6
PARTIAL = "cifar10: {} training and {} test images, not the published 50,000 and 10,000"


def batch(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a tiny batch."""
    random = np.random.RandomState(number)
    return random.randint(0, 256, (COUNT, 3072), dtype=np.uint8), random.randint(0, 10, COUNT, dtype=np.uint8)


def pickled(images: Any, labels: Any, protocol: int = 2) -> bytes:
    return pickle.dumps({b"data": images, b"labels": labels, b"filenames": [b"a.png"] * COUNT}, protocol)


def write_pickles(folder: Path, protocol: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(BATCHES):
        images, labels = batch(number)
        (folder / name).write_bytes(pickled(images, labels.tolist(), protocol))


def write_binaries(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(BATCHES):
        (folder / f"{name}.bin").write_bytes(to_binary(*batch(number)))


def jpeg(level: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    colour = (level, 2 * level, 3 * level) if mode == "RGB" else level
    Image.new(mode, size, colour).save(file, "JPEG", quality=95)
    return file.getvalue()


def archive(**changes: Any) -> dict[str, np.ndarray]:
    """The arrays of a tiny archive: image k has one colour, k times (8, 16, 24)."""
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 8), ("test", 3)):
        files = [jpeg(8 * k) for k in range(count)]
        arrays[f"{split}_blob"] = np.frombuffer(b"".join(files), dtype=np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, files)], dtype=np.int64)
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8)
    return arrays | changes


def with_file(number: int, content: bytes) -> dict[str, np.ndarray]:
    """The tiny archive with another file as a training image."""
    files = [jpeg(8 * k) for k in range(8)]
    files[number] = content
    return archive(
        train_blob=np.frombuffer(b"".join(files), dtype=np.uint8),
        train_offsets=np.cumsum([0, *map(len, files)], dtype=np.int64),
    )


@pytest.mark.parametrize("below", ["cifar-10-batches-py", "CIFAR10/cifar-10-batches-py", ""])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickled_batches_are_found_and_read(tmp_path: Path, below: str, protocol: int) -> None:
    write_pickles(tmp_path / below, protocol)
    data = load_dataset("cifar10", tmp_path)
    assert data.train_x.shape == (5 * COUNT, 3072)
    assert data.test_x.shape == (COUNT, 3072)
    assert (data.shape, data.note) == ((3, 32, 32), PARTIAL.format(30, 6))
    assert data.test_y.tolist() == batch(5)[1].tolist()
    images = torch.cat([torch.from_numpy(batch(number)[0]) for number in range(5)]).double()
    centred = images - images.mean(0)
    expected = (centred / centred.square().mean().sqrt()).float()
    torch.testing.assert_close(data.train_x, expected, atol=1e-5, rtol=1e-5)


def test_a_pickle_of_python_2_is_read() -> None:
    """Text of Python 2 is bytes to Python 3, the array's type included."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    type_ = b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"
    content = b"(dS'data'\n" + array + b"(I1\n(I2\nI2\nt" + type_ + b"I00\nS'abcd'\ntbsS'labels'\n(lI7\nas."
    read = read_pickle(content)
    assert isinstance(read, dict)
    assert read[b"labels"] == [7]
    assert as_bytes(read[b"data"]).tolist() == [[97, 98], [99, 100]]


def test_the_three_forms_hold_the_same(tmp_path: Path) -> None:
    write_pickles(tmp_path / "a/cifar-10-batches-py")
    write_binaries(tmp_path / "b/cifar-10-batches-bin")
    one, other = load_dataset("cifar10", tmp_path / "a"), load_dataset("cifar10", tmp_path / "b")
    assert torch.equal(one.train_x, other.train_x)
    assert torch.equal(one.test_y, other.test_y)


def test_an_archive_is_decoded_channels_first(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "cifar10_jpeg.npz", **archive())
    data = load_dataset("cifar10", tmp_path)
    lossy, partial = data.note.split("; ")
    assert "lossy" in lossy
    assert partial == PARTIAL.format(8, 3)
    assert data.train_y.tolist() == list(range(8))
    images = data.train_x.view(-1, *data.shape)
    levels = torch.arange(8.0)[:, None, None, None] * torch.tensor([8.0, 16.0, 24.0])[:, None, None]
    centred = (levels - levels.mean(0)).expand(8, 3, 32, 32)
    torch.testing.assert_close(images, centred / centred.square().mean().sqrt(), atol=0.05, rtol=0)


class Evil:
    """What it is reduced to would run when it is unpickled."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.reduced = (call, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_cannot_run_anything(tmp_path: Path, protocol: int) -> None:
    write_pickles(tmp_path)
    mark = tmp_path / "ran"
    for evil in (Evil(os.mkdir, str(mark)), Evil(eval, f"__import__('os').mkdir({str(mark)!r})")):
        (tmp_path / "data_batch_3").write_bytes(pickled(evil, [1] * COUNT, protocol))
        with pytest.raises(ValueError, match=r"data_batch_3.*it asks for \w+\.(mkdir|eval)"):
            load_dataset("cifar10", tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(pickled(batch(2)[0], [1] * COUNT)[:-40], "truncated", id="truncated"),
        pytest.param(b"\x80\x02garbage", "damaged", id="garbage"),
        pytest.param(pickle.dumps([1, 2]), "no dictionary", id="list"),
        pytest.param(pickled(batch(2)[0][:, :5].copy(), [1] * COUNT), "no 'data'", id="pixels"),
        pytest.param(pickled(batch(2)[0].astype(np.float32), [1] * COUNT), "no 'data'", id="type"),
        pytest.param(pickled([1, 2], [1] * COUNT), "no 'data'", id="no array"),
        pytest.param(pickled(batch(2)[0], "labels"), "no list of 'labels'", id="labels"),
        pytest.param(pickled(batch(2)[0], [1] * 4), "6 images but 4 labels", id="count"),
        pytest.param(pickled(batch(2)[0], [17] * COUNT), "label 17, above 9", id="high label"),
    ],
)
def test_a_damaged_batch_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    write_pickles(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        load_dataset("cifar10", tmp_path)
    assert "data_batch_2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_binary_batch_is_named(tmp_path: Path) -> None:
    write_binaries(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(to_binary(*batch(5))[:-1])
    with pytest.raises(ValueError, match=r"test_batch.bin.*truncated"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("form", ["pickles", "binaries"])
def test_a_training_batch_that_lost_images_is_named(tmp_path: Path, form: str) -> None:
    """Cut where an image ends, a file looks whole."""
    images, labels = batch(2)
    if form == "pickles":
        write_pickles(tmp_path)
        (tmp_path / "data_batch_3").write_bytes(pickled(images[:-2], labels[:-2].tolist()))
    else:
        write_binaries(tmp_path)
        (tmp_path / "data_batch_3.bin").write_bytes(to_binary(images[:-2], labels[:-2]))
    with pytest.raises(ValueError, match=r"data_batch_3.* holds 4 images but data_batch_1.* 6; .*truncated.*again"):
        load_dataset("cifar10", tmp_path)


def test_a_smaller_test_batch_is_read_and_noted(tmp_path: Path) -> None:
    write_binaries(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(to_binary(*(part[:-2] for part in batch(5))))
    assert load_dataset("cifar10", tmp_path).note == PARTIAL.format(30, 4)


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    write_pickles(tmp_path)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_4.*download=True"):
        load_dataset("cifar10", tmp_path)


def test_a_missing_set_is_named_with_the_places(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-py.*cifar10_jpeg.npz.*CIFAR10.*--data-dir"):
        load_dataset("cifar10", tmp_path / "nowhere")


def test_a_batch_of_the_published_size_must_be_the_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("implicit_bregman.experiments.data.cifar.CIFAR_BATCH", COUNT)
    write_pickles(tmp_path)
    with pytest.raises(ValueError, match=r"data_batch_1.*checksum"):
        load_dataset("cifar10", tmp_path)
    for number, name in enumerate(BATCHES):
        content = checksums.sha1(to_binary(*batch(number)))
        monkeypatch.setitem(checksums.CIFAR_BINARY_SHA1, name, content)
    assert len(load_dataset("cifar10", tmp_path).test_y) == COUNT
    (tmp_path / "data_batch_2").write_bytes(pickled(batch(2)[0], batch(2)[1].tolist()))
    with pytest.raises(ValueError, match=r"data_batch_2.*checksum"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        pytest.param({"train_labels": np.arange(7, dtype=np.uint8)}, "7 labels and 9 offsets", id="count"),
        pytest.param({"train_labels": np.full(8, 10, dtype=np.uint8)}, "above 9", id="label"),
        pytest.param({"train_offsets": np.arange(9, dtype=np.int64)}, "do not divide", id="offsets"),
        pytest.param({"train_labels": np.arange(8.0)}, "uint8", id="type"),
        pytest.param({"test_blob": np.array([{}], dtype=object)}, "damaged", id="object"),
        pytest.param(with_file(5, b"\xff\xd8 no image"), "image 5 of 'train'", id="no image"),
        pytest.param(with_file(5, jpeg(9)[:-30]), "image 5 of 'train'", id="truncated image"),
        pytest.param(with_file(5, jpeg(9, (16, 32))), "16 x 32", id="size"),
        pytest.param(with_file(5, jpeg(9, mode="L")), "32 x 32 L", id="grey"),
    ],
)
def test_a_wrong_archive_says_so(tmp_path: Path, arrays: dict[str, np.ndarray], complaint: str) -> None:
    np.savez(tmp_path / "cifar10_jpeg.npz", **archive(**arrays))
    with pytest.raises(ValueError, match=complaint):
        load_dataset("cifar10", tmp_path)


def test_a_truncated_or_incomplete_archive_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cifar10_jpeg.npz"
    np.savez_compressed(path, **archive())
    whole = path.read_bytes()
    for content in (b"", whole[:200], whole[:-30], whole[:100] + b"\0" * 20 + whole[120:], b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cifar10_jpeg.npz is truncated, damaged"):
            load_dataset("cifar10", tmp_path)
    arrays = archive()
    del arrays["test_labels"]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="test_labels"):
        load_dataset("cifar10", tmp_path)


def test_an_archive_of_the_full_size_must_be_the_known_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checksums.JPEG_COUNTS, "train", 8)
    np.savez(tmp_path / "cifar10_jpeg.npz", **archive())
    with pytest.raises(ValueError, match=r"known 'train' split.*checksum"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.slow
def test_the_whole_archive() -> None:
    if not (SHARED / "CIFAR10/cifar10_jpeg.npz").is_file():
        pytest.skip("the archive of JPEG files is not in ../shared/data")
    data = load_dataset("cifar10", SHARED)
    assert "published" not in data.note
    assert data.train_y.bincount().tolist() == [5000] * 10
    assert data.test_y.bincount().tolist() == [1000] * 10
