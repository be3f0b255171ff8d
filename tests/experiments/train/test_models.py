"""Training of every kind of model: it learns, goes on as if nothing had happened, and refuses what has no meaning."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from implicit_bregman.cli import main
from implicit_bregman.experiments.learning.gradients import compare_gradient, reference_gradients
from implicit_bregman.experiments.learning.model import Architecture
from implicit_bregman.experiments.learning.training import evaluate
from implicit_bregman.experiments.train.build import make_model
from implicit_bregman.experiments.train.run import load_data, run_training
from implicit_bregman.experiments.train.settings import TrainSettings
from tests.experiments.data.test_graphs import write
from tests.experiments.train.test_train import same_files

COMMON = {"accelerator": "cpu", "learning_rate": 0.02, "epochs": 6}
RUNS = {
    "conv": TrainSettings(model="conv", geometry="softplus", margin=1.0, width=4, stride=2, train_size=80, **COMMON),
    "field": TrainSettings(model="field", regularization=1.0, width=6, train_size=80, **COMMON),
    "graph": TrainSettings("cora", model="graph", regularization=1.0, width=4, validation=0.25, **COMMON),
}


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> TrainSettings:
    return replace(RUNS[request.param], data_dir=write(tmp_path / "data"))


@pytest.mark.parametrize("settings", RUNS, indirect=True)
def test_it_learns_and_a_run_that_was_stopped_goes_on(settings: TrainSettings, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    result = run_training(settings, whole)
    losses = [row.train_loss for row in result.rows]
    assert min(losses[3:]) < losses[0]
    assert all(row.converged == 1 for row in result.rows)
    assert (result.rows[0].spectral_bound is None) == (settings.model == "field")
    run_training(replace(settings, epochs=2), parts)
    run_training(settings, parts, resume=True)
    same_files(whole, parts)


@pytest.mark.parametrize("settings", RUNS, indirect=True)
def test_an_evaluation_does_not_depend_on_the_batches(settings: TrainSettings) -> None:
    data = load_data(settings)
    model = make_model(settings, data)
    loss, share = evaluate(model, data.test_x, data.test_y)
    assert model.training
    model.eval()
    with torch.no_grad():
        scores = torch.cat([model(each) for each in data.test_x.split(7)])
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(scores, data.test_y)), rel=1e-4)
    assert share == pytest.approx(float((scores.argmax(-1) == data.test_y).double().mean()))


def test_the_gradient_of_a_convolutional_layer_is_compared_with_the_one_in_float64() -> None:
    torch.manual_seed(0)
    model = Architecture("conv", 3, "softplus", margin=1.0).classifier((1, 6, 5), 4)
    x, y = 2 * torch.randn(5, 30), torch.arange(5) % 4
    truth = reference_gradients(model, x, y)
    assert truth is not None
    assert truth.flat.dtype == torch.float64
    found = compare_gradient(model, x, y, truth)
    model.layer.adjoint = "one_step"
    worse = compare_gradient(model, x, y, truth)
    assert found is not None
    assert worse is not None
    assert found.error < 1e-5 < 0.05 < worse.error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "dense", "stride": 2}, "stride = 2 has no meaning for model = 'dense'"),
        ({"model": "field", "weight": "monotone"}, "weight = 'monotone' has no meaning for model = 'field'"),
        ({"model": "dense", "weight": "general", "margin": 1.0}, "margin = 1.0 has no meaning .* weight = 'general'"),
        ({"model": "conv", "margin": 0.0}, "margin must be positive"),
        ({"model": "conv", "pool": 0}, "pool must be a whole number of at least 1"),
        ({"model": "lstm"}, "model must be one of dense, conv, field, graph, got 'lstm'"),
        (
            {"dataset": "cora", "model": "graph", "weight": "monotone"},
            "weight = 'monotone' has no meaning for model = 'graph'",
        ),
        ({"model": "graph"}, "dataset = 'digits' does not go with model = 'graph'"),
        ({"dataset": "cora"}, "dataset = 'cora' does not go with model = 'dense'"),
        ({"dataset": "cora", "model": "graph", "precision": "bf16-mixed"}, "precision = 'bf16-mixed' cannot be used"),
    ],
)
def test_what_has_no_meaning_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "pool", "message"),
    [((7,), 1, r"a sample of the shape \(7,\) is no image"), ((1, 6, 5), 2, "pool = 2 must divide .* 6 x 5")],
)
def test_samples_that_do_not_fit_are_refused(shape: tuple[int, ...], pool: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Architecture("conv", 3, pool=pool).classifier(shape, 4)


def test_the_command_trains_a_convolutional_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "conv", "--width", "3", "--train-size", "40", "--epochs", "1", "--accelerator", "cpu"]
    assert main(["train", *options, "--pool", "2", "--out", str(tmp_path)]) == 0
    assert "Best of 1 epochs" in capsys.readouterr().out
