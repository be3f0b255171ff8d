"""What is random in a batch, weight decay, and the number of parameters that is reported."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from implicit_bregman.cli import main
from implicit_bregman.experiments.data import load_dataset
from implicit_bregman.experiments.train.augment import Augmentation, make_augmentation
from implicit_bregman.experiments.train.checkpoint import CHECKPOINT, load, read_file
from implicit_bregman.experiments.train.settings import TrainSettings
from tests.experiments.train.test_train import (
    OPTIONS,
    TORCHRUN,
    ddp,
    numbers,
    run,
    same_files,
    stop_in_epoch,
    table,
)

ALL = {"shift": 1.0, "rotation": 10.0, "zoom": 0.1, "input_dropout": 0.2, "weight_decay": 0.01}
ALL_OPTIONS = [text for name, value in ALL.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def augmentation(shape: tuple[int, int, int] = (1, 15, 21), **changes: Any) -> Augmentation:
    """One that does nothing but what is asked, on images with a mean that is not flat."""
    off: dict[str, Any] = {"shift": 0.0, "rotation": 0.0, "zoom": 0.0, "input_dropout": 0.0}
    mean = torch.rand(shape, generator=torch.Generator().manual_seed(0)).flatten()
    return Augmentation(**{"seed": 0, "shape": shape, "mean": mean, "scale": 0.3, **off, **changes})


def moved(images: Tensor, **changes: Any) -> Tensor:
    """Raw images (count, height, width), standardised, augmented, and raw again."""
    change = augmentation((1, *images.shape[1:]), **changes)
    inputs = (images.flatten(1) - change.mean) / change.scale
    found = change(inputs, 3, len(images), slice(None))
    return (found * change.scale + change.mean).view(images.shape)


def blobs(count: int, right: float, down: float, spread: float = 1.0, size: tuple[int, int] = (15, 21)) -> Tensor:
    """Equal images of a blob, so many pixels right of and below the centre."""
    y, x = centred(size)
    return torch.exp(-((x - right) ** 2 + (y - down) ** 2) / (2 * spread**2)).expand(count, *size).contiguous()


def centred(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    height, width = size
    return torch.arange(height)[:, None] - (height - 1) / 2, torch.arange(width)[None, :] - (width - 1) / 2


def moments(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre of each image, right and down, and the mean square distance from it."""
    y, x = centred((images.shape[1], images.shape[2]))
    mass = images.sum((1, 2))
    right, down = (images * x).sum((1, 2)) / mass, (images * y).sum((1, 2)) / mass
    distance = (x - right[:, None, None]) ** 2 + (y - down[:, None, None]) ** 2
    return right, down, (images * distance).sum((1, 2)) / mass


def test_mean_and_scale_give_the_data_as_they_were_read() -> None:
    data = load_dataset("digits")
    raw = data.train_x * data.scale + data.mean
    torch.testing.assert_close(raw, raw.round().clamp(0, 16), atol=1e-4, rtol=0)


def test_a_shift_moves_by_at_most_so_many_pixels_in_all_directions() -> None:
    right, down, spread = moments(moved(blobs(400, 0, 0), shift=3.0))
    for way in (right, down):
        assert -3.01 < way.min() < -2.8
        assert 2.8 < way.max() < 3.01
    assert torch.corrcoef(torch.stack([right, down]))[0, 1].abs() < 0.2
    torch.testing.assert_close(spread, torch.full_like(spread, 2.0), atol=0.6, rtol=0)


def test_a_rotation_keeps_distances_also_where_images_are_not_square() -> None:
    right, down, _ = moments(moved(blobs(400, 4, 0), rotation=40.0))
    torch.testing.assert_close(torch.hypot(right, down), torch.full_like(right, 4.0), atol=0.05, rtol=0)
    angle = torch.atan2(down, right).rad2deg()
    assert -40.5 < angle.min() < -39
    assert 39 < angle.max() < 40.5


def test_zoom_makes_larger_and_smaller() -> None:
    blob = blobs(400, 0, 0, spread=4.0, size=(41, 51))
    factor = (moments(moved(blob, zoom=0.2))[2] / moments(blob)[2]).sqrt()
    assert 0.8 < factor.min() < 0.82
    assert 1.18 < factor.max() < 1.21


def test_what_comes_in_from_outside_is_black() -> None:
    """And not the mean image, which is what zeros of the standardised features are."""
    white = moved(torch.ones(100, 15, 21), shift=5.0)
    assert white.min() == pytest.approx(0, abs=1e-6)
    assert white.max() == pytest.approx(1, abs=1e-6)
    black = moved(torch.zeros(100, 15, 21), shift=5.0, rotation=30.0, zoom=0.2)
    torch.testing.assert_close(black, torch.zeros_like(black), atol=1e-6, rtol=0)


def test_channels_are_moved_together() -> None:
    change = augmentation((3, 8, 8), shift=2.0, rotation=20.0)
    change = replace(change, mean=torch.zeros(192))
    images = torch.rand(5, 1, 8, 8).expand(5, 3, 8, 8).flatten(1)
    found = change(images, 0, 5, slice(None)).view(5, 3, 8, 8)
    assert torch.equal(found[:, 0], found[:, 2])
    assert not torch.equal(found.flatten(1), images)


def test_dropped_features_are_their_means_and_the_others_make_up_for_them() -> None:
    inputs = torch.randn(200, 315)
    found = augmentation(input_dropout=0.25)(inputs, 0, 200, slice(None))
    dropped = found == 0
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(found[~dropped], (inputs / 0.75)[~dropped])


def test_without_settings_nothing_is_changed() -> None:
    inputs = torch.randn(4, 315)
    assert augmentation()(inputs, 0, 4, slice(None)) is inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_division_among_processes_does_not_matter(dtype: torch.dtype) -> None:
    change = augmentation(shift=2.0, rotation=20.0, zoom=0.1, input_dropout=0.1)
    inputs = torch.randn(7, 315, dtype=dtype)
    whole = change(inputs, 5, 7, slice(None))
    assert whole.dtype == dtype
    for rank in range(3):
        part = slice(rank, None, 3)
        torch.testing.assert_close(change(inputs[part], 5, 7, part), whole[part])
    assert change(inputs[:0], 5, 7, slice(9, None, 3)).shape == (0, 315)


def test_every_sample_step_and_seed_has_its_own_draw() -> None:
    change = augmentation(shift=2.0, input_dropout=0.2)
    inputs = torch.randn(1, 315).expand(3, 315)
    found = [change(inputs, 0, 3, slice(None)), change(inputs, 1, 3, slice(None))]
    found.append(replace(change, seed=1)(inputs, 0, 3, slice(None)))
    rows = torch.cat(found)
    assert len({tuple(row.tolist()) for row in rows}) == 9
    assert torch.equal(found[0], change(inputs, 0, 3, slice(None)))


@pytest.mark.parametrize("name", ["shift", "rotation", "zoom"])
def test_only_images_are_moved(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dataset", "spirals", f"--{name}", "0.5", "--out", str(tmp_path / "out")]
    assert main(["train", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert f"{name} = 0.5 needs images, and a sample of 'spirals' has the shape (2,)" in captured.err
    assert os.listdir(tmp_path) == []


def test_features_of_all_kinds_are_dropped() -> None:
    settings = TrainSettings(dataset="spirals", input_dropout=0.1)
    assert make_augmentation(settings, load_dataset("spirals")).input_dropout == 0.1


def test_only_training_samples_are_changed(tmp_path: Path) -> None:
    """With a learning rate that moves nothing: the losses measured afterwards are those without augmentation."""
    plain = run(tmp_path / "plain", epochs=1, learning_rate=1e-12).rows[0]
    changed = run(tmp_path / "changed", epochs=1, learning_rate=1e-12, **ALL).rows[0]
    assert changed.train_loss != pytest.approx(plain.train_loss, rel=1e-6)
    assert changed.validation_loss == pytest.approx(plain.validation_loss, rel=1e-6)
    assert changed.test_loss == pytest.approx(plain.test_loss, rel=1e-6)


def test_weight_decay_is_decoupled(tmp_path: Path) -> None:
    """After one step, the parameters are those of Adam less rate · decay · start."""
    one_step = {"epochs": 1, "batch_size": 100, "precision": "64-true", "learning_rate": 0.1}
    run(tmp_path / "start", **{**one_step, "learning_rate": 1e-30})
    run(tmp_path / "adam", **one_step)
    run(tmp_path / "decay", weight_decay=0.5, **one_step)
    start, adam, decay = (read_file(tmp_path / name / CHECKPOINT)["model"] for name in ("start", "adam", "decay"))
    for name in start:
        torch.testing.assert_close(decay[name], adam[name] - 0.1 * 0.5 * start[name])


def test_a_resumed_run_draws_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    run(once, epochs=4, schedule="cosine", **ALL)
    stop_in_epoch(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(twice, epochs=4, schedule="cosine", **ALL)
    monkeypatch.undo()
    assert len(table(twice)) == 2
    run(twice, resume=True, epochs=4, schedule="cosine", **ALL)
    same_files(once, twice)


def test_a_killed_run_draws_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "implicit_bregman.cli", "train", *OPTIONS, *ALL_OPTIONS, "--epochs", "100000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = tmp_path / "killed"
    with subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr is not None
        process.stderr.readline()
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    saved = load(out)
    assert saved is not None
    epochs = len(saved.rows) + 2
    run(out, resume=True, epochs=epochs, **ALL)
    run(tmp_path / "once", epochs=epochs, **ALL)
    same_files(out, tmp_path / "once")


def test_two_processes_draw_what_one_does(tmp_path: Path) -> None:
    """The last batch, of 72 - 71 = 1, leaves one process without a sample."""
    settings: dict[str, Any] = {"batch_size": 71, "precision": "64-true", "epochs": 3}
    options = ["--batch-size", "71", "--precision", "64-true", "--epochs", "3"]
    once = run(tmp_path / "once", **settings, **ALL)
    done = ddp(tmp_path / "both", *options, *ALL_OPTIONS, launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    both = load(tmp_path / "both")
    assert both is not None
    for one, other in zip(numbers(once.rows), numbers(both.rows), strict=True):
        rounding = ("residual", "worst_residual")
        assert {name: other[name] for name in other if name not in rounding} == pytest.approx(
            {name: one[name] for name in one if name not in rounding}, rel=1e-9
        )


def test_a_run_from_before_a_setting_existed_is_resumed_with_its_default(tmp_path: Path) -> None:
    settings = TrainSettings()
    before = {name: value for name, value in settings.shown().items() if name not in ALL}
    settings.check_resumable(before)
    with pytest.raises(ValueError, match=r"shift = 0.0 there, 1.0 here"):
        replace(settings, shift=1.0).check_resumable(before)


def test_the_number_of_parameters_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = 6 * 64 + 6 * 6 + 6 + 10 * 6 + 10
    assert main(["train", *OPTIONS, *ALL_OPTIONS, "--epochs", "1", "--out", str(tmp_path)]) == 0
    assert f"\n{expected} parameters, trained in " in capsys.readouterr().out
    description = json.loads((tmp_path / "run.json").read_text())
    assert description["parameters"] == expected
    assert {name: description["settings"][name] for name in ALL} == ALL
    assert expected == sum(tensor.numel() for tensor in read_file(tmp_path / "model.pt")["model"].values())
