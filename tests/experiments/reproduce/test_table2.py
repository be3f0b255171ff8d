"""Table 2, on a few made-up images: pixels inside (0, 1), the choice of the learning rate, and the report."""

import gzip
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from implicit_bregman.cli import main
from implicit_bregman.experiments.data import load_dataset
from implicit_bregman.experiments.data.cifar import BATCHES, BINARIES, PIXELS, to_binary
from implicit_bregman.experiments.grid.run import Backend, Grid
from implicit_bregman.experiments.reproduce.table2 import run as table2
from implicit_bregman.experiments.reproduce.table2 import training
from implicit_bregman.experiments.reproduce.table2.report import reproduce_table2
from implicit_bregman.experiments.reproduce.table2.settings import PAPER, ROWS, Table2Settings
from implicit_bregman.experiments.reproduce.table2.training import (
    ImageTraining,
    load_pixels,
    make_classifier,
    train_images,
)
from implicit_bregman.nn.feedforward import KINDS

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
SIDE = 8
TRAINING = ImageTraining("mnist", "", "1 hidden", "bregman", "tanh", "sgd", 0.1, 2, 16, None, 0)
SETTINGS = Table2Settings(rows=("mnist-1", "mnist-cnn", "mnist-3-adam"), seeds=2, epochs=1, rates=(0.1, 0.3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of images: a bright quarter each, on noise."""
    home = tmp_path_factory.mktemp("data") / "MNIST" / "raw"
    home.mkdir(parents=True)
    random = np.random.RandomState(0)
    for split, count in (("train", 240), ("t10k", 60)):
        labels = np.arange(count) % 4
        pixels = random.randint(0, 100, (count, SIDE, SIDE))
        half = SIDE // 2
        for image, label in zip(pixels, labels, strict=True):
            image[half * (label // 2) :, half * (label % 2) :][:half, :half] += 120
        pixels[0], pixels[1] = 0, 255
        content = struct.pack(">4I", 2051, count, SIDE, SIDE) + pixels.astype(np.uint8).tobytes()
        (home / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
        content = struct.pack(">2I", 2049, count) + labels.astype(np.uint8).tobytes()
        (home / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))
    return home.parents[1]


@pytest.fixture(autouse=True)
def no_cache() -> None:
    load_pixels.cache_clear()


def test_pixels_lie_inside_and_are_the_levels_of_the_file(folder: Path) -> None:
    data = load_pixels("mnist", str(folder))
    raw = np.frombuffer(gzip.decompress((folder / "MNIST/raw/train-images-idx3-ubyte.gz").read_bytes()), np.uint8)
    levels = torch.from_numpy(raw[16:].reshape(240, -1).astype(np.float32))
    torch.testing.assert_close(data.train_x, (levels + 0.5) / 256, atol=1e-6, rtol=0)
    assert float(data.test_x.min()) > 0
    assert float(data.test_x.max()) < 1


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_pixels_of_the_real_images_are_whole_levels(name: str) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"no image data in {SHARED}")
    data = load_pixels(name, str(SHARED))
    for x in (data.train_x[:2000], data.test_x[:2000]):
        levels = 256 * x - 0.5
        assert float((levels - levels.round()).abs().max()) < 1e-3
    assert float(data.train_x.min()) == pytest.approx(0.5 / 256)
    assert float(data.train_x.max()) == pytest.approx(255.5 / 256)


@pytest.mark.parametrize("network", ["1 hidden", "3 hidden", "cnn"])
def test_all_kinds_of_a_seed_start_with_the_same_numbers(network: str) -> None:
    models = [make_classifier(replace(TRAINING, kind=kind, network=network), 64, 4) for kind in KINDS]
    other = make_classifier(replace(TRAINING, network=network, seed=1), 64, 4)
    for first, *more, different in zip(*(m.parameters() for m in (*models, other)), strict=True):
        assert all(torch.equal(first, parameter) for parameter in more)
        assert not torch.equal(first, different)
    x = 0.1 + 0.8 * torch.rand(5, 64)
    scores = [model(x) for model in models]
    assert scores[0].shape == (5, 4)
    assert not torch.allclose(scores[0], scores[1])
    assert not torch.allclose(scores[1], scores[2])


@pytest.mark.parametrize(("network", "kind"), [("1 hidden", k) for k in KINDS] + [("cnn", "bregman")])
def test_they_learn(network: str, kind: str, folder: Path) -> None:
    settings = replace(TRAINING, network=network, kind=kind, epochs=12)
    result = train_images(settings, str(folder))
    assert result["test"] > 0.8
    assert result["validation"] > 0.8
    assert result == train_images(settings, str(folder))


def test_held_out_samples_are_not_trained_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def batches(samples: int, size: int, seed: int) -> object:
        seen.append(samples)
        yield from iter(torch.arange(samples).split(size) * 5)

    monkeypatch.setattr(training, "epoch_batches", batches)
    train_images(replace(TRAINING, train_size=60), str(folder))
    train_images(TRAINING, str(folder))
    assert seen == [50, 200]


def test_the_table(folder: Path, tmp_path: Path) -> None:
    result = reproduce_table2(SETTINGS, Grid(tmp_path, Backend(jobs=1)), str(folder))
    assert [row["row"] for row in result.rows] == list(SETTINGS.rows)
    assert result.rows[0]["bregman_paper"] == 97.40
    assert result.rows[2]["bregman_paper"] is None
    assert all(len(values) == 2 for values in result.data["values"].values())
    assert result.rows[2]["standard_rate"] in SETTINGS.adam_rates
    # Each row and kind: every rate with the first seed, the chosen one also with the second.
    assert len(list((tmp_path / "cells").iterdir())) == 3 * (2 * (2 + 1) + (3 + 1))
    assert any("mnist-1: " in finding and "the paper: Bregman 97.40" in finding for finding in result.findings)


def test_cifar_behind_the_convolutional_network(tmp_path: Path) -> None:
    home = tmp_path / "data" / BINARIES
    home.mkdir(parents=True)
    random = np.random.RandomState(0)
    for name in BATCHES:
        pixels = random.randint(0, 256, (12, PIXELS)).astype(np.uint8)
        (home / f"{name}.bin").write_bytes(to_binary(pixels, (np.arange(12) % 10).astype(np.uint8)))
    settings = replace(SETTINGS, rows=("cifar10-cnn",), seeds=1, rates=(0.1,))
    result = reproduce_table2(settings, Grid(tmp_path, Backend(jobs=1)), str(tmp_path / "data"))
    assert result.rows[0]["bregman_paper"] == 79.95
    assert 0 <= result.rows[0]["bregman_mean"] <= 100
    assert any(line.startswith("cifar10: 60 training samples, 10 of them held out, 12 test") for line in result.setting)


def test_what_must_be_said_of_the_data_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = replace(load_pixels("mnist", str(folder)), note="lossy images")
    monkeypatch.setattr(table2, "load_pixels", lambda *arguments: data)
    settings = replace(SETTINGS, rows=("mnist-1",), seeds=1, train_size=60)
    result = reproduce_table2(settings, Grid(tmp_path, Backend(jobs=1)), str(folder))
    assert "mnist: 60 training samples, 10 of them held out, 60 test samples. lossy images." in result.setting


def test_the_rate_is_chosen_on_held_out_samples(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made_up(settings: ImageTraining, data_dir: str | None = None, device: str = "cpu") -> dict[str, float]:
        """The higher rate is better on the held-out samples and worse on the test set."""
        return {"validation": settings.rate, "test": 1 - settings.rate, "train_loss": 0.0}

    monkeypatch.setattr(table2, "train_images", made_up)
    settings = replace(SETTINGS, rows=("mnist-1",))
    result = reproduce_table2(settings, Grid(tmp_path, Backend(jobs=1)), str(folder))
    assert result.rows[0]["standard_rate"] == 0.3
    assert result.rows[0]["standard_mean"] == pytest.approx(70.0)
    assert any(finding.startswith("In 3 of 3 cases") for finding in result.findings)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reproduce", "table2", "--quick", "--rows", "mnist-1", "--epochs", "1", "--train-size", "60"]
    assert main([*command, "--jobs", "1", "--data-dir", str(folder), "--out", str(tmp_path)]) == 0
    assert "mnist-1" in capsys.readouterr().out
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["rows"][0]["euclidean_paper"] == 93.98
    assert document["settings"]["train_size"] == 60
    assert (tmp_path / "table2.png").stat().st_size > 1000


def test_the_paper_s_table_is_complete() -> None:
    assert len(PAPER) == 7
    assert all(max(row.paper) == row.paper[2] for row in PAPER)
    assert [row.name for row in ROWS.values() if row.dataset == "cifar10"] == ["cifar10-cnn"]
    assert set(Table2Settings.quick().rows) < set(ROWS)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"dataset": "nope"}, "mnist.*nope"),
        ({"network": "2 hidden"}, "1 hidden.*2 hidden"),
        ({"kind": "nope"}, "bregman.*nope"),
        ({"optimizer": "nope"}, "adam.*nope"),
        ({"rate": 0.0}, "rate"),
        ({"train_size": 5}, "train_size"),
        ({"geometry": "nope"}, "nope"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(TRAINING, **change)


@pytest.mark.parametrize(("change", "complaint"), [({"rows": ()}, "rows"), ({"rates": (0.0,)}, "rate")])
def test_bad_table_settings_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(SETTINGS, **change)


def test_data_that_are_not_there_are_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        load_dataset("mnist", tmp_path)
