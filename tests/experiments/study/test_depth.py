"""The study of the depth, on few samples: what is measured, and what is written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from implicit_bregman.cli import main
from implicit_bregman.experiments.data import load_dataset
from implicit_bregman.experiments.grid.run import Backend, Grid
from implicit_bregman.experiments.learning.model import Architecture
from implicit_bregman.experiments.study.depth import run as cells
from implicit_bregman.experiments.study.depth.report import paired_gap, study_depth
from implicit_bregman.experiments.study.depth.settings import DepthSettings
from implicit_bregman.experiments.study.depth.training import Costs, Run, measure_costs, train_once

SETTINGS = DepthSettings(("digits",), (1, 30), seeds=2, epochs=1, train_size=128, architecture=Architecture(width=8))
TASK = SETTINGS.task("digits", 0)


@pytest.fixture(scope="module")
def costs() -> dict[str, list[float]]:
    return measure_costs(Costs(TASK, (1, 30)))


def test_costs_have_one_entry_per_method(costs: dict[str, list[float]]) -> None:
    for key in ("step_ms", "bytes", "gradient_error", "gradient_cosine"):
        assert len(costs[key]) == 3
    assert costs["gradient_error"][0] < 1e-5 < costs["gradient_error"][2] < costs["gradient_error"][1]
    assert costs["bytes"][1] < costs["bytes"][2]


def test_runs_start_from_the_same_parameters_and_differ_in_the_layer_alone() -> None:
    data = load_dataset("digits")
    implicit, unrolled = (TASK.model(data, depth) for depth in (None, 2000))
    for one, other in zip(implicit.parameters(), unrolled.parameters(), strict=True):
        assert torch.equal(one, other)
    x = data.test_x[:16]
    torch.testing.assert_close(implicit(x), unrolled(x), rtol=1e-4, atol=1e-5)


def test_the_implicit_run_is_at_the_limit() -> None:
    run = train_once(Run(TASK, None, 1e-9))  # no machine makes two steps in that time
    assert run["distance"] == 0
    assert run["accuracy"] == run["limit_accuracy"]
    assert run["gradient_error"] < 1e-5
    assert run["converged"] == 1
    assert run["time_steps"] <= 1


def test_an_unrolled_run_approaches_the_limit_with_its_depth() -> None:
    short, long = (train_once(Run(TASK, depth, 0.01)) for depth in (1, 300))
    assert short["converged"] is None
    assert short["distance"] > 0.05 > 1e-3 > long["distance"] > 0
    assert short["gradient_error"] > 0.1 > long["gradient_error"]


def test_a_gap_counts_where_it_exceeds_two_standard_errors() -> None:
    assert paired_gap([2.0, 2.1, 1.9], [1.0, 1.0, 1.0]) == pytest.approx(1.0)
    assert paired_gap([2.0, 0.0, 1.2], [1.0, 1.0, 1.0]) == 0
    assert paired_gap([2.0], [1.0]) == 0


def test_report_and_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = cells.train_once, []

    def interrupted(settings: Run, data_dir: str | None = None) -> dict[str, object]:
        calls.append(settings)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(settings, data_dir)

    interrupted.__module__, interrupted.__qualname__ = real.__module__, real.__qualname__
    told: list[str] = []
    grid = Grid(tmp_path, Backend(jobs=1), tell=told.append)
    with monkeypatch.context() as patch:
        patch.setattr(cells, "train_once", interrupted)
        with pytest.raises(KeyboardInterrupt):
            study_depth(SETTINGS, grid)
        assert "interrupted; 4 finished cells are stored" in told[0]
        result = study_depth(SETTINGS, grid)
    assert len(calls) == 3 + 4  # the two that had finished are not computed again
    assert [row["depth"] for row in result.rows] == ["implicit", "1", "30"]
    assert result.rows[2]["gradient_error"] < result.rows[1]["gradient_error"]
    result.report("a command", {}, "cpu").deliver(tmp_path)
    assert list(result.report("a command", {}, "cpu").contents()) == [
        "results.json",
        "results.csv",
        "report.md",
        "depth.png",
        "depth-costs.png",
    ]
    document = json.loads((tmp_path / "results.json").read_text())
    assert len(document["data"]["digits"]["runs"]["30"]) == 2
    assert "digits, equal time: implicit" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": ("letters",)}, "datasets must be one of digits, .*, got 'letters'"),
        ({"datasets": ()}, "datasets must be different and at least one"),
        ({"depths": (5, 5)}, "depths must be different and at least one, got 5, 5"),
        ({"depths": (0,)}, "depths must be a whole number of at least 1, got 0"),
        ({"seeds": 0}, "seeds must be a whole number of at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)


def test_a_bad_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"regularization must be a finite number >= 0, got -1.0"):
        SETTINGS.with_layer(regularization=-1.0)


def test_the_command_refuses_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "depth", "--depths", "1,x"]) == 2
    assert "depths takes whole numbers, separated by commas, got '1,x'" in capsys.readouterr().err


def test_the_command_says_where_the_image_files_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--datasets", "mnist", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["study", "depth", *options]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_the_former_name_of_a_weight_is_understood() -> None:
    assert SETTINGS.with_layer(weight="free").task("digits", 0).architecture.weight == "general"


def test_the_study_of_images_is_that_of_the_depth_with_a_convolutional_layer(tmp_path: Path) -> None:
    options = ["--quick", "--seeds", "1", "--epochs", "1", "--train-size", "64", "--depths", "1,5", "--jobs", "1"]
    assert main(["study", "images", *options, "--width", "3", "--out", str(tmp_path)]) == 0
    report = (tmp_path / "report.md").read_text()
    assert "a convolutional layer of 3 channels (softplus, convex W, γ = 0)" in report
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["depth"] for row in rows] == ["implicit", "1", "5"]
    assert rows[0]["gradient_error"] < 1e-4 < rows[2]["gradient_error"] < rows[1]["gradient_error"]
