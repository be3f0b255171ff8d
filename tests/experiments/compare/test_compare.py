"""The comparison: same start for every row, two budgets, and refusals before any work."""

from dataclasses import replace

import pytest
import torch

import implicit_bregman as ib
from implicit_bregman.experiments.compare.results import COLUMNS, Comparison
from implicit_bregman.experiments.compare.run import check, run_comparison
from implicit_bregman.experiments.compare.settings import CompareSettings
from implicit_bregman.experiments.data import Dataset, load_dataset
from implicit_bregman.experiments.learning.methods import default_rows, make_methods
from implicit_bregman.experiments.learning.model import Architecture, Classifier
from implicit_bregman.experiments.learning.training import Recipe, epoch_batches, evaluate, steps_per_epoch, train
from implicit_bregman.experiments.machine.devices import find_device

ROWS = ("unrolled-1", "implicit", "implicit-mm", "one-step", "truncated-1-of-3", "unrolled-200")
SETTINGS = CompareSettings(train_size=60, width=6, epochs=2, batch_size=20, seeds=2, rows=ROWS)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """A run of a few seconds."""
    return run_comparison(SETTINGS)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("digits").limited(60)


def make_model(adjoint: object | None = None) -> Classifier:
    model = Architecture(width=6).classifier((64,), 10, seed=3)
    model.layer.adjoint = adjoint or ib.adjoints.Unrolled(steps=2)
    return model


def test_rows_come_back_in_the_order_asked_for(comparison: Comparison) -> None:
    assert tuple(row.name for row in comparison.rows) == ROWS
    assert comparison.reference == "implicit"


def test_every_row_has_every_column_that_exists_for_it(comparison: Comparison) -> None:
    for row in comparison.rows:
        for column in COLUMNS:
            absent = column.key == "peak_bytes" or (column.key == "converged" and row.depth is not None)
            assert (row.columns[column.key] is None) == absent, (row.name, column.key)
            if not absent:
                assert len(row.columns[column.key].values) == 2


def test_implicit_gradients_are_right_and_short_unrolled_ones_are_not(comparison: Comparison) -> None:
    rows = {row.name: row for row in comparison.rows}
    assert rows["implicit"].mean("gradient_error") < 1e-3
    assert rows["implicit"].mean("gradient_cosine") == pytest.approx(1.0, abs=1e-5)
    assert rows["implicit-mm"].mean("gradient_error") < 1e-3
    assert rows["unrolled-1"].mean("gradient_error") > 0.1
    assert rows["unrolled-200"].mean("gradient_error") < rows["unrolled-1"].mean("gradient_error")


def test_rows_that_compute_the_same_thing_learn_the_same_thing(comparison: Comparison) -> None:
    """Equal parameters, batches and gradients: only then are the rows comparable."""
    rows = {row.name: row for row in comparison.rows}
    for key in ("loss_at_steps", "accuracy_at_steps"):
        one, other = rows["implicit"].columns[key], rows["implicit-mm"].columns[key]
        assert one.values == pytest.approx(other.values, abs=2e-2 if key == "accuracy_at_steps" else 1e-3)


def test_memory_and_iterations(comparison: Comparison) -> None:
    rows = {row.name: row for row in comparison.rows}
    assert rows["unrolled-200"].mean("activation_bytes") > 20 * rows["implicit"].mean("activation_bytes")
    assert rows["truncated-1-of-3"].mean("activation_bytes") < rows["unrolled-200"].mean("activation_bytes")
    assert rows["unrolled-200"].columns["iterations"].values == (200.0, 200.0)
    assert rows["truncated-1-of-3"].columns["iterations"].values == (3.0, 3.0)
    assert rows["implicit"].mean("converged") > 0.9


def test_the_reference_has_both_budgets_at_the_same_point(comparison: Comparison) -> None:
    row = next(row for row in comparison.rows if row.name == comparison.reference)
    assert row.columns["steps_at_time"].values == (6.0, 6.0)
    assert row.columns["loss_at_time"] == row.columns["loss_at_steps"]
    assert len(comparison.facts["seconds_per_seed"]) == 2


def test_losses_and_gradients_repeat(comparison: Comparison) -> None:
    again = run_comparison(replace(SETTINGS, rows=("implicit", "unrolled-1")))
    rows = {row.name: row for row in comparison.rows}
    for row in again.rows:
        for key in ("loss_at_steps", "accuracy_at_steps", "gradient_error", "activation_bytes", "iterations"):
            assert row.columns[key].values == pytest.approx(rows[row.name].columns[key].values, rel=1e-4)


def test_progress_goes_from_nothing_to_all() -> None:
    seen: list[float] = []
    run_comparison(
        replace(SETTINGS, rows=("implicit", "unrolled-1"), seeds=1),
        progress=lambda share, text: seen.append(share),
    )
    assert seen[0] == 0.0
    assert seen[-1] == 1.0
    assert seen == sorted(seen)


def test_threads_are_set_for_the_run_alone() -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    settings = replace(SETTINGS, threads=before + 1, seeds=1, rows=("unrolled-1",))
    result = run_comparison(settings, progress=lambda share, text: seen.append(torch.get_num_threads()))
    assert before + 1 in seen
    assert torch.get_num_threads() == before
    assert result.environment["threads"] == before + 1


@pytest.mark.parametrize("weight", ["symmetric", "monotone", "general"])
def test_other_geometry_regularization_and_weight(weight: str) -> None:
    settings = replace(
        SETTINGS,
        geometry="sigmoid",
        regularization=0.2,
        weight=weight,
        seeds=1,
        rows=("implicit", "phantom"),
    )
    rows = {row.name: row for row in run_comparison(settings).rows}
    assert rows["implicit"].mean("gradient_error") < 1e-3
    assert rows["implicit"].spread("gradient_error") is None


def test_the_former_name_of_a_weight_is_understood() -> None:
    assert CompareSettings(weight="free") == CompareSettings(weight="general")


def test_batches_repeat_and_cover_every_epoch() -> None:
    def take(seed: int) -> list[list[int]]:
        batches = epoch_batches(7, 3, seed)
        return [next(batches).tolist() for _ in range(6)]

    assert take(0) == take(0) != take(1)
    assert [len(batch) for batch in take(0)] == [3, 3, 1] * 2
    assert sorted(index for batch in take(0)[:3] for index in batch) == list(range(7))
    assert steps_per_epoch(7, 3) == 3


class _QuarterSeconds:
    """A clock by which every training step takes a quarter of a second."""

    def __init__(self, device: torch.device) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        self._now += 0.25
        return self._now


@pytest.mark.parametrize(("seconds", "steps"), [(1.0, 4), (1.2, 4), (0.6, 2), (0.1, 0)])
def test_equal_time_is_judged_at_the_last_step_in_time(
    seconds: float, steps: int, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fast row trains on after its steps, a slow one is cut off: here after 2 steps of 0.25 s."""
    monkeypatch.setattr("implicit_bregman.experiments.learning.training._Clock", _QuarterSeconds)
    model = make_model()
    points = {0: (evaluate(model, data.train_x, data.train_y)[0], evaluate(model, data.test_x, data.test_y)[1])}
    for budget in (1, 2, 3, 4):
        point = train(make_model(), data, Recipe(budget, None, 20, 0.01, seed=0)).at_steps
        points[budget] = (point.train_loss, point.test_accuracy)

    run = train(model, data, Recipe(2, seconds, 20, 0.01, seed=0))
    assert (run.at_steps.steps, run.at_steps.seconds) == (2, 0.5)
    assert (run.at_steps.train_loss, run.at_steps.test_accuracy) == pytest.approx(points[2])
    assert (run.at_time.steps, run.at_time.seconds) == (steps, 0.25 * steps)
    assert (run.at_time.train_loss, run.at_time.test_accuracy) == pytest.approx(points[steps])
    assert run.step_ms == 250.0


def test_a_run_records_its_epochs_and_its_state(data: Dataset) -> None:
    recipe = Recipe(steps=52, seconds=0.2, batch_size=20, learning_rate=0.01, seed=0)
    model = make_model()
    run = train(model, data, recipe)
    assert [point.steps for point in run.curve] == [*range(3, 52, 3), 52]
    assert [point.seconds for point in run.curve] == sorted(point.seconds for point in run.curve)
    assert run.curve[0].loss > run.curve[-1].loss
    assert run.iterations == 2.0
    model.load_state_dict(run.state)
    assert evaluate(model, data.train_x, data.train_y)[0] == pytest.approx(run.at_steps.train_loss)


def test_equal_seeds_give_equal_models_and_leave_the_global_state_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (Architecture(width=3).classifier((4,), 2, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c) or a.abs().sum() == 0


def test_all_rows_can_be_named() -> None:
    methods = make_methods(default_rows())
    assert [method.depth for method in methods if method.family == "unrolled"] == [1, 2, 5, 10, 20, 50, 100]
    assert {method.family for method in methods} == {
        "implicit",
        "one-step",
        "phantom",
        "unrolled",
        "truncated",
    }
    assert make_methods(["implicit-mm"], tol=1e-3, max_iter=7)[0].solver == ib.solvers.MM(tol=1e-3, max_iter=7)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"width": 0}, "width must be at least 1"),
        ({"train_size": 0}, "train_size must be at least 1"),
        ({"tol": 0.0}, "tol must be positive"),
        ({"tol": -1.0}, "tol must be positive"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
        ({"seconds": float("inf")}, "seconds must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"regularization": -0.1}, "regularization must be finite and >= 0, got -0.1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"seed": -1}, "seed must be >= 0"),
        ({"rows": ()}, "no rows"),
        ({"rows": ("implicit", "implicit")}, "named twice"),
        ({"rows": ("unrolled-0",)}, "unknown row 'unrolled-0'.*unrolled-L"),
        ({"rows": ("truncated-5-of-2",)}, "last|2"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(SETTINGS, **change)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"geometry": "nope"}, "nope.*tanh"),
        ({"weight": "nope"}, "convex.*nope"),
        ({"dataset": "nope"}, "nope.*digits"),
        ({"device": "nope"}, "nope.*--device cpu"),
        ({"device": "cuda:99"}, "cuda:99.*--device cpu"),
        ({"device": "meta"}, "meta.*--device cpu"),
    ],
)
def test_unknown_names_are_refused_before_any_work(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        check(replace(SETTINGS, **change))
    assert "\n" not in str(caught.value)


def test_the_cpu_is_always_there() -> None:
    assert find_device("cpu") == torch.device("cpu")
