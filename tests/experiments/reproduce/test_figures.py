"""Figures 4 to 6, on few points and for few epochs: what is computed, and what is written."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from implicit_bregman.cli import main
from implicit_bregman.experiments.grid.run import Backend, Grid
from implicit_bregman.experiments.reproduce import spirals
from implicit_bregman.experiments.reproduce.fig4.lines import best_line
from implicit_bregman.experiments.reproduce.fig4.report import reproduce_fig4
from implicit_bregman.experiments.reproduce.fig5.report import reproduce_fig5
from implicit_bregman.experiments.reproduce.fig6.report import reproduce_fig6
from implicit_bregman.experiments.reproduce.settings import SpiralSettings
from implicit_bregman.experiments.reproduce.spirals import Spirals

SETTINGS = SpiralSettings(
    seeds=3,
    epochs=4,
    rates=(0.01, 0.1),
    rate_epochs=4,
    deep=5,
    deep_epochs=2,
    stages=2,
    spirals=Spirals(samples=60),
)


def here(folder: Path) -> Grid:
    return Grid(folder, Backend(jobs=1))


def test_a_line_is_found_where_there_is_one() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [1.0, 3.0]])
    line = best_line(points, torch.tensor([0, 0, 1, 1]))
    assert line.separates
    assert line.excess == pytest.approx(0.0, abs=1e-9)
    assert line.offset / line.normal[1] == pytest.approx(1.5)
    crossed = best_line(points, torch.tensor([0, 1, 1, 0]))
    assert not crossed.separates
    assert crossed.accuracy <= 0.75
    assert crossed.excess > 0.1


def test_figure_4(tmp_path: Path) -> None:
    result = reproduce_fig4(SETTINGS, here(tmp_path))
    assert [row["points"] for row in result.rows] == ["data", *(f"output of layer {number}" for number in (1, 2, 3))]
    assert result.rows[0]["separable"] == "no"
    points = result.data["points"]
    assert len(points["output of layer 3"]) == len(result.data["labels"]) == 60
    assert len(result.data["last_layer_of_each_seed"]) == 3
    chosen = min(range(3), key=lambda index: result.data["losses"][index])
    assert result.data["seed"] == chosen


def test_figure_5(tmp_path: Path) -> None:
    result = reproduce_fig5(SETTINGS, here(tmp_path))
    losses = result.data["losses"]
    assert set(losses) == {
        f"{i}/{k}" for i in ("random", "deterministic") for k in ("standard", "euclidean", "bregman")
    }
    for curves in losses.values():
        assert [len(curve) for curve in curves] == [5, 5, 5]
        assert all(curve[-1] < curve[0] for curve in curves)
    assert result.data["epochs"] == (0, 1, 2, 3, 4)
    assert losses["deterministic/standard"][0] == pytest.approx(losses["deterministic/euclidean"][0], rel=1e-3)
    assert losses["random/standard"] != losses["random/euclidean"]
    assert len(result.rows) == 6


def test_figure_6(tmp_path: Path) -> None:
    result = reproduce_fig6(SETTINGS, here(tmp_path))
    assert result.data["layers"] == [1, 2, 3, 4, 5]
    for kind in ("standard", "euclidean", "bregman"):
        assert [len(seed) for seed in result.data["accuracy"][kind]] == [2, 2, 2]
        assert all(0 <= value <= 100 for seed in result.data["accuracy"][kind] for value in seed)
        for init in ("random", "deterministic"):
            assert [len(seed) for seed in result.data["movement"][init][kind]] == [5, 5, 5]
    untrained = result.data["untrained"]["deterministic"]["bregman"]
    assert max(max(seed) for seed in untrained) < 1e-5  # layers without weights do not move their input
    assert len(list((tmp_path / "cells").iterdir())) == 2 * 2 * 2


def test_stages_do_not_change_the_result(tmp_path: Path) -> None:
    one, two = (reproduce_fig6(replace(SETTINGS, stages=stages), here(tmp_path / str(stages))) for stages in (1, 2))
    assert one.data["accuracy"] == two.data["accuracy"]
    assert one.data["movement"] == two.data["movement"]


def test_an_interrupted_figure_goes_on_at_the_last_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reproduce_fig6(SETTINGS, here(tmp_path / "whole"))
    calls: list[int] = []
    real = spirals.train_stage

    def counted(settings: spirals.Training, device: str = "cpu") -> object:
        calls.append(settings.done)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(settings, device)

    counted.__module__, counted.__qualname__ = real.__module__, real.__qualname__
    monkeypatch.setattr(spirals, "train_stage", counted)
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        reproduce_fig6(SETTINGS, Grid(tmp_path / "cut", Backend(jobs=1), tell=told.append))
    assert "3 finished cells" in told[0]
    again = reproduce_fig6(SETTINGS, here(tmp_path / "cut"))
    assert len(calls) == 4 + 8 - 3
    assert again.data["accuracy"] == whole.data["accuracy"]
    assert again.data["movement"] == whole.data["movement"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"seeds": 0}, "seeds must be a whole number of at least 1"),
        ({"epochs": 0}, "epochs"),
        ({"seed": -1}, "seed"),
        ({"rates": (0.1, 0.0)}, "rate"),
        ({"rate_epochs": 3}, "rate_epochs = 3 cannot be divided into 2 stages; use a multiple of 2"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(SETTINGS, **change)


@pytest.mark.parametrize(
    ("name", "options", "cells"),
    [
        ("fig4", "--epochs 2 --seeds 2", 2),
        ("fig5", "--epochs 2 --seeds 2", 2),
        ("fig6", "--epochs 2 --deep-epochs 2 --seeds 1", 8),
    ],
)
def test_the_commands_write_their_results(
    name: str, options: str, cells: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", name, "--quick", *options.split(), "--jobs", "1", "--seed", "4", "--out", str(tmp_path)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert set(os.listdir(tmp_path)) == {"cells", "results.json", "results.csv", "report.md", f"{name}.png"}
    assert len(os.listdir(tmp_path / "cells")) == cells
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["settings"]["seed"] == 4
    words = document["command"].split()
    assert words[:6] == ["implicit-bregman", "reproduce", name, "--quick", "--seed", "4"]
    assert sorted(words[6:]) == sorted(options.split())
    with (tmp_path / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(document["rows"])
    report = (tmp_path / "report.md").read_text()
    assert document["command"] in report
    assert f"]({name}.png)" in report
    assert all(finding in report and finding in out for finding in document["findings"])
    picture = imread(tmp_path / f"{name}.png")
    assert picture.std() > 0.05
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("fig5 --backend cloud", "local"),
        ("fig5 --backend dask", "--scheduler"),
        ("fig5 --scheduler tcp://host:1", "--backend dask"),
        ("fig5 --jobs 0", "jobs must be at least 1"),
        ("fig5 --device nope", "--device cpu"),
        ("fig5 --seeds 0", "seeds must be"),
        ("fig6 --epochs 7", "multiple of 20 (--epochs of fig6)"),
        ("fig7", "fig7"),
        ("table2 --rows nope", "mnist-1"),
        ("table2 --rows mnist-1", "--data-dir"),
        ("table2 --rows mnist-1 --data-dir {tmp}", "train-images-idx3-ubyte"),
        ("table2 --quick --epochs 0", "epochs must be"),
        ("table2 --rows mnist-1,mnist-1", "rows must be different"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    options: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *options.format(tmp=tmp_path).split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert complaint in captured.err


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("implicit_bregman.experiments.reproduce.spirals.Ensemble.train", interrupt)
    assert main(["reproduce", "fig5", "--quick", "--jobs", "1", "--out", str(tmp_path)]) == 130
    error = capsys.readouterr().err
    assert "0 finished cells are stored" in error
    assert "no report was written" in error
    assert os.listdir(tmp_path) == ["cells"]
