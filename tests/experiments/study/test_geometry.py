"""The study of the geometry: what it measures, against known answers, and what it writes."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import implicit_bregman as ib
from implicit_bregman.cli import main
from implicit_bregman.experiments.grid.run import Backend, Grid
from implicit_bregman.experiments.learning.model import Architecture
from implicit_bregman.experiments.reference.active import active_coordinates
from implicit_bregman.experiments.reference.oracle import reference_solution
from implicit_bregman.experiments.reference.problems import make_problem
from implicit_bregman.experiments.study.geometry import training
from implicit_bregman.experiments.study.geometry.boxes import (
    BOX,
    BOX_GEOMETRIES,
    BOX_REGIMES,
    Basins,
    Boxes,
    find_basins,
    on_box,
    train_on_one_box,
)
from implicit_bregman.experiments.study.geometry.report import study_geometry
from implicit_bregman.experiments.study.geometry.run import measure_geometry
from implicit_bregman.experiments.study.geometry.settings import GeometrySettings
from implicit_bregman.experiments.study.geometry.training import (
    FAILED_STEPS,
    REGIMES,
    Regime,
    Run,
    plain_mm,
    train_once,
)
from implicit_bregman.experiments.study.task import Task

TASK = Task(
    "digits", epochs=2, architecture=Architecture(width=8), batch_size=64, learning_rate=0.02, train_size=256, seed=3
)
SMALL = GeometrySettings(
    seeds=2,
    epochs=1,
    width=4,
    train_size=64,
    max_steps=50,
    box_steps=50,
    basin_steps=20,
)
FILES = {"cells", "results.json", "results.csv", "report.md"} | {
    f"geometry-{n}.png" for n in ("accuracy", "cost", "box")
}


def test_a_coordinate_is_active_at_a_bound_only() -> None:
    value = torch.tensor([-1.0, -1 + 1e-5, 0.0, 1 - 1e-7, 1.0])
    assert active_coordinates(value, ib.geometry("tanh")).tolist() == [True, False, False, True, True]
    assert active_coordinates(value.abs(), ib.geometry("exp")).tolist() == [False, False, True, False, False]
    assert not active_coordinates(1e30 * value, ib.geometry("identity")).any()


@pytest.fixture(scope="module")
def boxes() -> dict[str, dict[str, Any]]:
    return {regime.name: train_on_one_box(Boxes(TASK, regime, BOX_GEOMETRIES, 400)) for regime in BOX_REGIMES}


def test_on_one_box_phi_does_not_matter_to_the_limit(boxes: dict[str, dict[str, Any]]) -> None:
    assert boxes["limit, γ=0"]["limit"]["isru"] < 1e-14
    found = boxes["limit by MM, γ=0"]
    assert set(found["unsolved"].values()) == {0.0}
    assert max(found["limit"].values()) < 1e-11
    assert max(found["parameters"][name][-1] for name in BOX_GEOMETRIES) < 1e-8
    assert len(set(found["accuracy"].values())) == 1
    assert set(found["answers"].values()) == {0.0}
    assert found["mm_limit"]["sin"] < 1e-5
    assert found["mm_short"]["arctan"] > found["mm_short"]["sin"] == 0.0  # the error falls like 1/k


def test_elsewhere_it_does(boxes: dict[str, dict[str, Any]]) -> None:
    for name in ("limit, γ=0.1", "L=10, γ=0"):
        for phi in ("isru", "arctan", "sin"):
            assert boxes[name]["limit"][phi] > 1e-3
            assert boxes[name]["parameters"][phi][-1] > 1e-4
    assert set(boxes["L=10, γ=0"]["unsolved"].values()) == {None}


def test_sigmoid_and_scaled_tanh_are_tanh_with_another_gamma(boxes: dict[str, dict[str, Any]]) -> None:
    # tanh(y/2) = 2 sigmoid(y) - 1 and the like: on one box these are one function, scaled.
    z = torch.linspace(-0.99, 0.99, 31, dtype=torch.float64)
    for name, factor in (("sigmoid", 2.0), ("scaled_tanh", 1.5)):
        torch.testing.assert_close(on_box(name).inverse_activation(z), factor * torch.atanh(z))
        assert boxes["limit, γσ=0.1"]["limit"][name] < 1e-9
        assert boxes["limit, γ=0.1"]["limit"][name] > 1e-3
    assert boxes["limit, γσ=0.1"]["limit"]["isru"] > 1e-3


def test_the_basins_are_those_of_the_oracle() -> None:
    names = ("tanh", "sin", "sigmoid")
    found = find_basins(Basins(0, names, 600, samples=16))
    problem = make_problem("indefinite", "tanh", 16, 16, 1.0, 0.5, stiffness=2.0, seed=0)
    assert found["positive"] == 8
    limits = [reference_solution(problem.weight, problem.offset, on_box(name), max_steps=2048) for name in names]
    both = limits[0].reached & limits[1].reached
    apart = (limits[1].value - limits[0].value)[both].abs().amax(-1) > 1e-3
    assert found["elsewhere"]["sin"] > 0
    # A sample that one of the two does not know may count on one side only.
    unknown = max(found["unsolved"]["tanh"], found["unsolved"]["sin"], 1 - float(both.double().mean()))
    assert found["elsewhere"]["sin"] == pytest.approx(float(apart.double().mean()), abs=unknown + 1e-9)
    assert found["elsewhere"]["sigmoid"] == 0.0
    assert found["nearest"]["sigmoid"] < 1e-9


@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name)
def test_a_training_is_measured(regime: Regime) -> None:
    run = train_once(Run(TASK, regime, "sigmoid", 300))
    assert run["gave_up"] is None
    assert run["steps"] == 8
    assert run["accuracy"] > 0.5
    assert run["step_ms"] > 0
    assert run["lowest"] < run["highest"]
    assert (run["highest"] < 0) or regime.weight == "symmetric"
    assert 0 < run["mm_steps"] <= 300
    if regime.steps:
        assert run["iterations"] is run["unsolved"] is None
    else:
        assert run["unsolved"] == run["unsolved_adjoints"] == 0.0
        assert run["iterations"] > 0
    assert 0 <= run["active"] <= 1


def test_the_steps_to_the_limit_are_those_of_mm() -> None:
    # W = -λI and φ = z²/2: the error falls by 1 - λ per step.
    layer = ib.BregmanDEQ(2, 2, geometry="identity", regularization=0.5)
    layer.energy = ib.QuadraticEnergy.from_matrices(-0.5 * torch.eye(2))
    x = torch.tensor([[1.0, -1.0]])
    solution = plain_mm(layer, x, 1e-4, 100)
    rate, residual = 0.5 / 1.5, 1.0
    expected = 0
    while residual / (1 + max(1.0, 0.5)) > 1e-4:
        residual, expected = rate * residual, expected + 1
    assert int(solution.iterations) == pytest.approx(expected, abs=1)
    assert bool(solution.converged)
    short = plain_mm(layer, x, 1e-4, 2)
    assert int(short.iterations) == 2
    assert not bool(short.converged)


def test_an_objective_without_a_minimum_ends_the_training() -> None:
    task = replace(TASK, learning_rate=0.15, epochs=10)
    run = train_once(Run(task, Regime("bad", 0.0, "symmetric"), "identity", 100))
    assert run["gave_up"] == "refused: the objective is unbounded below on the domain (-inf, inf) of identity"
    assert run["steps"] < 40
    assert run["accuracy"] is run["mm_steps"] is None


def test_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(ValueError, match="unknown geometry"):
        train_once(Run(TASK, REGIMES[0], "nope", 100))


def test_a_training_without_solutions_is_given_up() -> None:
    solution = SimpleNamespace(
        converged=torch.tensor([False, False, True]), adjoint=SimpleNamespace(status=torch.tensor([0, 7, 2]))
    )
    watch = training._Watch(SimpleNamespace(layer=SimpleNamespace(adjoint="implicit", last_solution=solution)))  # type: ignore[arg-type]
    for _ in range(FAILED_STEPS - 1):
        watch(0.5)
    with pytest.raises(training._GaveUp, match="more than 50% of a batch"):
        watch(0.5)
    shares = watch.shares()
    assert shares["steps"] == FAILED_STEPS
    assert shares["unsolved"] == pytest.approx(2 / 3)
    assert shares["unsolved_adjoints"] == pytest.approx(1 / 3)


def test_an_interrupted_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SMALL, seeds=1, geometries=("tanh",))
    calls: list[str] = []
    real = training.train_once

    def counted(run: Run) -> dict[str, Any]:
        calls.append(run.geometry)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(run)

    counted.__module__, counted.__qualname__ = real.__module__, real.__qualname__
    monkeypatch.setattr("implicit_bregman.experiments.study.geometry.run.train_once", counted)
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        measure_geometry(settings, Grid(tmp_path, Backend(jobs=1), tell=told.append))
    assert "3 finished cells" in told[0]
    measured = measure_geometry(settings, Grid(tmp_path, Backend(jobs=1), tell=told.append))
    assert len(calls) == 4 + 5 - 3
    assert len(measured.runs) == 5
    assert len(told) == 1


def test_runs_that_were_given_up_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = training.train_once

    def broken(run: Run) -> dict[str, Any]:
        found = real(run)
        if run.geometry == "softplus" and run.regime.weight == "symmetric":
            found = dict.fromkeys(found) | {"gave_up": "refused: no minimum", "steps": 7, "unsolved": 0.25}
        return found

    broken.__module__, broken.__qualname__ = real.__module__, real.__qualname__
    monkeypatch.setattr("implicit_bregman.experiments.study.geometry.run.train_once", broken)
    report = study_geometry(replace(SMALL, seeds=1, geometries=("tanh", "softplus")), Grid(tmp_path, Backend(jobs=1)))
    row = next(row for row in report.rows if row["geometry"] == "softplus" and "symmetric" in row["setting"])
    assert (row["gave_up"], row["reasons"], row["unsolved"]) == ("1 of 1", "refused: no minimum", 25.0)
    assert row["accuracy_mean"] is None
    assert any("softplus" in text and "1 of 1 runs, after 7 to 7 steps" in text for text in report.findings)


def test_the_command_writes_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(GeometrySettings, "quick", classmethod(lambda cls, seed: replace(SMALL, seed=seed)))
    command = ["study", "geometry", "--quick", "--geometries", "sin,tanh", "--seeds", "1", "--jobs", "1"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert set(os.listdir(tmp_path)) == FILES
    document = json.loads((tmp_path / "results.json").read_text())
    assert set(document["command"].split()[3:]) == {"--quick", "--geometries", "sin,tanh", "--seeds", "1"}
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(document["rows"]) == 5 * 2 + 5 * 6 + 6
    same = [row for row in rows if row["setting"] == "limit, γ=0"]
    assert same[0]["accuracy_mean"] == same[1]["accuracy_mean"]
    report = (tmp_path / "report.md").read_text()
    assert all(finding in report and finding in out for finding in document["findings"])
    assert all(f"]({name})" in report for name in FILES if name.endswith(".png"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--geometries tanh,nope", "geometries: unknown nope; known: isru"),
        ("--geometries tanh,tanh", "geometries must name at least one, each once, got 'tanh,tanh'"),
        ("--seeds 0", "seeds must be a whole number of at least 1, got 0"),
        ("--epochs 0", "epochs must be a whole number of at least 1, got 0"),
        ("--train-size 0", "train_size must be a whole number of at least 1, got 0"),
        ("--seed -1", "seed must be a whole number of at least 0, got -1"),
        ("--jobs 0", "jobs must be at least 1"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_two(
    options: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", "geometry", *options.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert complaint in captured.err
    assert os.listdir(tmp_path) == []


def test_the_step_for_basins_is_the_same_share_of_sigma() -> None:
    assert max(on_box(name).strong_convexity for name in BOX_GEOMETRIES) == 2.0
    assert BOX == (-1.0, 1.0)
