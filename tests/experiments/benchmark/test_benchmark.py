"""The benchmark: its truths, its searches, and that what is not reached is never given a time."""

import csv
import io
import itertools
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import implicit_bregman as ib
from implicit_bregman.cli import main
from implicit_bregman.experiments.benchmark import cells as cells_module
from implicit_bregman.experiments.benchmark import run as run_module
from implicit_bregman.experiments.benchmark.calls import Calls, count_calls
from implicit_bregman.experiments.benchmark.cells import QUICK, QuadraticCell, catalogue, chosen
from implicit_bregman.experiments.benchmark.limits import Pool, share_on_limit
from implicit_bregman.experiments.benchmark.peers.contenders import (
    BOTH,
    FORWARD,
    OURS,
    TUNED,
    UNROLLED,
    Contender,
    counts,
    errors,
    library,
    our_contenders,
    reaches,
    settled,
    unrolled_contenders,
    worth_timing,
)
from implicit_bregman.experiments.benchmark.peers.mondeq import METHODS
from implicit_bregman.experiments.benchmark.peers.splitting import NAME as SPLITTING
from implicit_bregman.experiments.benchmark.report import benchmark_report
from implicit_bregman.experiments.benchmark.results import Benchmark
from implicit_bregman.experiments.benchmark.run import run_benchmark
from implicit_bregman.experiments.benchmark.scaling import scaling_points
from implicit_bregman.experiments.benchmark.settings import BenchmarkSettings
from implicit_bregman.experiments.benchmark.timing import interleaved, measure
from implicit_bregman.experiments.benchmark.truth import designed_truth, prepare
from implicit_bregman.experiments.reference.oracle import reference_gradient, reference_solution
from implicit_bregman.experiments.reference.problems import COMPARED, make_monotone_problem

TINY = QuadraticCell("tiny", dim=8, batch=2, condition=10.0, active=0.25)
LAYER = QuadraticCell("layer", "general", "softplus", 12, 6, active=0.5, margin=1.0)
REGULAR = replace(TINY, name="regular", active=0.0, regularization=0.3, dtype="float64")
MONDEQ = {f"monDEQ {method}" for method in METHODS}
NO_PEERS = {name: "left out by the test" for name in ("torchdeq", "proxsuite", "osqp", "bregmanet")}
LEVELS = (1e-3, 1e-6)


@pytest.fixture(autouse=True)
def tiny_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells_module, "catalogue", lambda: (TINY, REGULAR))


# cells and truths


def test_the_catalogue_changes_one_factor_at_a_time() -> None:
    assert len({cell.name for cell in catalogue()}) == len(catalogue())
    assert set(QUICK) <= {cell.name for cell in catalogue()}
    cells = {cell.name: cell for cell in catalogue() if isinstance(cell, QuadraticCell)}
    base = cells["base"]
    assert (base.dim, base.batch, base.condition, base.active, base.dtype) == (128, 64, 100.0, 0.05, "float32")
    assert {cells[name].dim for name in ("d32", "d512", "d2048")} == {32, 512, 2048}
    assert {cell.geometry for cell in cells.values() if cell.regularization == 0} == set(COMPARED)
    assert {cell.geometry for cell in cells.values() if cell.regularization == 0.1} == set(COMPARED)
    for cell in cells.values():
        if cell.margin is None and cell.kind == "convex" and cell.geometry == "tanh":
            changed = {
                key for key in ("dim", "batch", "condition", "dtype") if getattr(cell, key) != getattr(base, key)
            }
            assert len(changed) <= 1


def test_the_layers_of_mondeq_are_its_parametrization() -> None:
    cells = [cell for cell in catalogue() if cell.family == "quadratic" and cell.facts["margin"] is not None]
    assert {(c.kind, c.margin, c.batch) for c in cells} == {
        (kind, margin, batch) for kind in ("convex", "general") for margin in (1.0, 0.1) for batch in (128, 1024)
    }
    for cell in cells:
        assert (cell.dim, cell.geometry, cell.regularization, cell.dtype) == (87, "softplus", 0.0, "float32")
        assert f"m = {cell.margin:g}" in cell.text
        problem = cell.problem()
        ends = torch.linalg.eigvalsh(-0.5 * (problem.weight + problem.weight.T).double())
        assert float(ends[0]) == pytest.approx(cell.margin, rel=0.02)
        assert float(ends[-1]) == pytest.approx(cell.margin * cell.condition, rel=0.2)
        assert torch.equal(problem.weight, problem.weight.T) == (cell.kind == "convex")


@pytest.mark.parametrize("kind", ["convex", "general"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_truth_of_a_layer_of_mondeq(kind: str, dtype: str) -> None:
    prepared = prepare(replace(LAYER, kind=kind, dtype=dtype))
    assert 0.3 < (prepared.value == 0).double().mean() < 0.7
    force = prepared.value @ prepared.weight.detach().double().T + prepared.offset.double()
    assert torch.allclose((prepared.value + force).clamp_min(0), prepared.value, rtol=0, atol=1e-12)
    assert math.isnan(prepared.step) == (kind == "general")
    value_error, gradient_error = errors(prepared, *library(prepared)())
    assert value_error <= 1e-5
    assert gradient_error is not None
    assert gradient_error <= 1e-4


def test_a_margin_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"margin=0.0 is out of range, use a finite number > 0"):
        make_monotone_problem(margin=0.0)


@pytest.mark.parametrize("geometry", ["tanh", "arctan", "softplus", "exp", "identity"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_designed_truth_is_the_oracles(geometry: str, dtype: str) -> None:
    active = 0.0 if geometry == "identity" else 0.25
    problem = replace(TINY, geometry=geometry, dtype=dtype, active=active).problem(seed=3)
    g = torch.randn(problem.offset.shape, dtype=problem.dtype)
    value, adjoint = designed_truth(problem, g)
    oracle = reference_solution(problem.weight, problem.offset, problem.geometry)
    assert value.dtype == torch.float64
    assert torch.allclose(value, oracle.value, rtol=0, atol=1e-12)
    expected = reference_gradient(problem.weight, problem.offset, oracle.value, oracle.active, problem.geometry, 0.0, g)
    assert torch.allclose(adjoint, expected, rtol=1e-9, atol=1e-11)


def test_the_designed_truth_refuses_what_has_none() -> None:
    g = torch.zeros(2, 8)
    with pytest.raises(ValueError, match="no designed solution"):
        designed_truth(REGULAR.problem(), g)
    problem = TINY.problem()
    with pytest.raises(RuntimeError, match="active set"):
        designed_truth(replace(problem, offset=-3 * problem.offset), g)


@pytest.mark.parametrize("cell", [TINY, REGULAR, replace(TINY, kind="indefinite", dtype="float64")])
def test_the_library_is_accurate(cell: QuadraticCell) -> None:
    prepared = prepare(cell)
    value_error, gradient_error = errors(prepared, *library(prepared)())
    bound = 1e-9 if cell.dtype == "float64" else 1e-5
    assert value_error <= bound
    assert gradient_error is not None
    assert gradient_error <= 10 * bound
    assert library(prepared, task=FORWARD)()[1] is None


def test_what_is_not_finite_has_an_infinite_error() -> None:
    prepared = prepare(TINY)
    assert prepared.value_error(torch.full_like(prepared.value, torch.nan)) == torch.inf
    assert prepared.value_error(prepared.value) == 0


# counting


def test_calls_of_a_toy_are_counted_exactly() -> None:
    x = torch.arange(4.0).requires_grad_()

    def toy() -> None:
        y = x * x  # 1
        (gradient,) = torch.autograd.grad(y, x, torch.ones(4))  # ones; two products and their sum
        assert float(gradient.sum()) == 12.0  # sum, and the value: 1 synchronisation

    assert count_calls(toy) == Calls(operators=7, synchronisations=1)


@pytest.mark.parametrize(
    ("work", "synchronisations"),
    [
        (lambda x: x + x, 0),
        (lambda x: x.item(), 1),
        (lambda x: bool(x > 0), 1),
        (lambda x: x.reshape(1).tolist(), 1),
        (lambda x: x.reshape(1).nonzero(), 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: torch.allclose(x, x), 1),
        (lambda x: x.reshape(1)[torch.tensor([True])], 1),
        (lambda x: x.reshape(1)[torch.tensor([0])], 0),
        (lambda x: torch.linalg.inv(x.reshape(1, 1)), 1),
        (lambda x: torch.linalg.inv_ex(x.reshape(1, 1)), 0),
    ],
)
def test_what_waits_for_a_value_is_a_synchronisation(
    work: Callable[[torch.Tensor], object], synchronisations: int
) -> None:
    x = torch.tensor(2.0)
    assert count_calls(lambda: work(x)).synchronisations == synchronisations


def test_counts_come_with_the_times() -> None:
    prepared = prepare(TINY)
    exact = prepared.value.float()

    def run() -> tuple[torch.Tensor, None]:
        return exact * 1.0, None

    contenders = [
        Contender("torch", FORWARD, "", run, (1e-3,), 1e-6),
        Contender("other", FORWARD, "", run, (1e-3,), 1e-6, in_torch=False),
    ]
    mine, other = measure(prepared, contenders, 2, 1.0)
    assert (mine.operator_calls, mine.synchronisations) == (1, 0)
    assert (other.operator_calls, other.synchronisations) == (None, None)


# searches and timing


def test_counts_are_dense_and_end_where_they_are_told() -> None:
    found = counts(most=100)
    assert found[:3] == (3, 4, 5)
    assert found[-1] == 100
    assert all(1 <= b - a <= 1 + a / 12 for a, b in itertools.pairwise(found))


def test_a_run_has_settled_when_its_error_stays() -> None:
    assert settled([1.0] * 6)
    assert settled([torch.inf])
    assert not settled([1.0] * 5)
    assert not settled([2.0**-k for k in range(20)])


def test_levels_need_both_errors() -> None:
    assert reaches(1e-3, 1e-4, 1e-4, BOTH)
    assert not reaches(1e-3, 1e-4, 1e-2, BOTH)
    assert not reaches(1e-3, 1e-4, None, BOTH)
    assert reaches(1e-3, 1e-4, None, FORWARD)


def test_the_tuned_settings_reach_their_level() -> None:
    found, failures = our_contenders(prepare(REGULAR), LEVELS, BOTH, 5.0)
    assert not failures
    assert {(c.name, level) for c in found for level in c.accuracies} >= {(OURS, 1e-3), (OURS, 1e-6), (TUNED, 1e-3)}


def test_the_least_unrolled_steps() -> None:
    prepared = prepare(REGULAR)
    found, failures = unrolled_contenders(prepared, LEVELS, 10.0)
    assert not failures
    steps = [int(contender.settings.removeprefix("L = ")) for contender in found]
    assert steps[0] < steps[1]
    for contender in found:
        assert reaches(contender.accuracies[0], *errors(prepared, *contender.run()), BOTH)


def test_unrolled_that_does_not_get_there_says_how_far_it_came() -> None:
    _, failures = unrolled_contenders(prepare(replace(TINY, geometry="arctan", condition=1000.0)), (1e-6,), 5.0)
    (failure,) = failures
    assert (failure.name, failure.accuracy) == (UNROLLED, 1e-6)
    assert failure.value_error is not None
    assert failure.value_error > 1e-6


def test_repeats_are_interleaved_and_slow_runs_repeated_less() -> None:
    order: list[str] = []
    runs = [lambda: order.append("a"), lambda: order.append("b")]
    times = interleaved(runs, [1e-6, 1.0], 3, 2.0)
    assert order == ["a", "b", "a", "a"]
    assert [len(found) for found in times] == [3, 1]
    order.clear()
    interleaved(runs, [1e-6, 1e-6], 2, 2.0)
    assert order == ["a", "b", "a", "b"]


def test_settings_that_are_much_slower_are_not_timed() -> None:
    run = library(prepare(TINY), task=FORWARD)
    seconds = {"fast": 1.0, "close": 1.9, "slow": 2.1}
    found = [Contender("a", FORWARD, text, run, (1e-3,), estimate) for text, estimate in seconds.items()]
    other = Contender("b", FORWARD, "another peer", run, (1e-3,), 50.0)
    assert [c.settings for c in worth_timing([*found, other])] == ["fast", "close", "another peer"]


def test_what_is_not_reached_when_it_is_checked_gets_no_time() -> None:
    prepared = prepare(TINY)
    wrong = prepared.value.float() * 1.01
    bad = Contender("bad", FORWARD, "1 % off", lambda: (wrong, None), (1e-1, 1e-3), 1e-6)
    entries = {entry.accuracy: entry for entry in measure(prepared, [bad], 3, 1.0)}
    assert entries[1e-1].reached
    assert len(entries[1e-1].seconds) == 3
    assert not entries[1e-3].reached
    assert entries[1e-3].seconds == ()
    assert entries[1e-3].value_error == pytest.approx(0.01, rel=1e-3)


def broken() -> tuple[torch.Tensor, None]:
    raise torch.linalg.LinAlgError("singular\nsecond line")


def test_what_raises_is_not_reached_and_says_why() -> None:
    (entry,) = measure(prepare(TINY), [Contender("broken", FORWARD, "any", broken, (1e-1,), 1e-6)], 3, 1.0)
    assert not entry.reached
    assert entry.seconds == ()
    assert entry.settings.endswith("Error: singular")


def test_a_library_that_raises_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(ib, "find_critical_point", fail)
    found, failures = our_contenders(prepare(TINY), LEVELS, BOTH, 1.0)
    assert found == []
    assert [failure.settings for failure in failures] == ["raised RuntimeError: no luck"] * 2


def test_a_cell_without_a_truth_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cell: QuadraticCell, seed: int) -> None:
        raise RuntimeError("conditions do not hold")

    monkeypatch.setattr(run_module, "prepare", fail)
    settings = BenchmarkSettings(cells=("tiny",), threads=1, scaling=False, others=False)
    result = run_benchmark(settings, missing=NO_PEERS)
    assert result.cells == ()
    assert result.skipped == {"tiny": "conditions do not hold"}
    assert "**tiny**: left out, conditions do not hold" in benchmark_report(result).markdown()


# the whole


@pytest.fixture(scope="module")
def result() -> Benchmark:
    """Without peers, on tiny cells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells_module, "catalogue", lambda: (TINY, REGULAR, LAYER))
        settings = BenchmarkSettings(
            cells=("tiny", "regular", "layer"), quick=True, cap=4.0, threads=1, repeats=2, scaling=False, others=False
        )
        seen: list[float] = []
        found = run_benchmark(settings, lambda share, text: seen.append(share), NO_PEERS)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    return found


def test_the_benchmark_without_peers(result: Benchmark) -> None:
    assert [cell.name for cell in result.cells] == ["tiny", "regular", "layer"]
    assert result.missing == NO_PEERS
    assert result.command == (
        "implicit-bregman benchmark --quick --cells tiny,regular,layer --cap 4 --threads 1 --repeats 2"
        " --no-scaling --no-others"
    )
    for cell in result.cells:
        assert cell.held_bytes is not None
        assert cell.held_bytes <= cell.allowed_bytes
        ours = cell.entry(OURS, 1e-3)
        assert ours is not None
        assert ours.seconds
        assert cell.best("torchdeq", 1e-3) is None
        names = {entry.contender for entry in cell.entries}
        assert names - {TUNED} == {OURS, SPLITTING} | (MONDEQ if cell.name == "layer" else {UNROLLED})
        for task in (BOTH, FORWARD):
            for name in (OURS, SPLITTING):
                found = cell.entry(name, 1e-3, task)
                assert found is not None
                assert found.operator_calls is not None
                assert found.operator_calls > 0
            assert found.synchronisations == 0  # the plain loop tests nothing
        for entry in cell.entries:
            assert bool(entry.seconds) == entry.reached


def test_results_survive_json(result: Benchmark) -> None:
    assert Benchmark.from_json(benchmark_report(result).json()) == result
    with pytest.raises(ValueError, match="format"):
        Benchmark.from_json("{}")


def test_limits_are_counted_where_they_are_known() -> None:
    row = share_on_limit(Pool("tanh", dim=6, condition=3.0, active=0.4), 6)
    assert row.counted + row.excluded == 6
    assert row.found == row.counted > 0


def test_memory_is_flat_in_the_iterations_unless_unrolled() -> None:
    held: dict[str, list[int]] = {}
    for steps in (10, 20):
        for point in scaling_points("L", steps, torchdeq=False, repeats=1, budget=0.1, base=TINY):
            held.setdefault(point.contender, []).append(point.held_bytes)
    assert held[OURS][0] == held[OURS][1]
    assert held["implicit, L MM steps"][0] == held["implicit, L MM steps"][1]
    assert held["unrolled, L steps"][1] > 1.8 * held["unrolled, L steps"][0]


# the command


def test_the_command_writes_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchdeq")
    arguments = ["benchmark", "--quick", "--cells", "tiny", "--cap", "6", "--threads", "1", "--repeats", "2"]
    assert main([*arguments, "--no-scaling", "--no-others", "--out", str(tmp_path)]) == 0
    names = set(os.listdir(tmp_path))
    assert {"results.json", "results.csv", "report.md", "ratios.png"} <= names
    result = Benchmark.from_json((tmp_path / "results.json").read_text())
    entries = [entry for cell in result.cells for entry in cell.entries]
    assert any(entry.contender.startswith("torchdeq") and entry.reached for entry in entries)
    lines = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert [(line["contender"], float(line["accuracy"])) for line in lines] == [
        (entry.contender, entry.accuracy) for entry in entries
    ]
    assert [line["median_seconds"] != "" for line in lines] == [entry.reached for entry in entries]
    report = (tmp_path / "report.md").read_text()
    assert all(f"]({name})" in report for name in names if name.endswith(".png"))
    assert report.count(result.command) > 5
    assert "Targets" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["environment"]["threads"] == 1


def test_the_cells_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--list"]) == 0
    out = capsys.readouterr().out
    assert "tiny: convex, tanh, d = 8" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "tiny,huge"], "'huge', which is unknown; use tiny, regular"),
        (["--cells", "tiny,tiny"], "twice"),
        (["--accuracy", "small"], "'small', which is not a number"),
        (["--accuracy", "2"], "between 0 and 1"),
        (["--accuracy", "1e-3,0.001"], "twice"),
        (["--cap", "0"], "cap must be a positive number"),
        (["--threads", "0"], "threads must be at least 1"),
        (["--repeats", "-1"], "repeats must be at least 1"),
        (["--seed", "-1"], "seed must be >= 0"),
        (["--no-such-option"], "No such option"),
        (["--out", "/dev/null/results"], "cannot write to --out"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_pattern_stands_for_the_cells_it_matches() -> None:
    assert chosen(("t*", "regular"), quick=False) == (TINY, REGULAR)
    assert BenchmarkSettings(cells=("t*",)).command == "implicit-bregman benchmark --cells 't*'"
    with pytest.raises(ValueError, match="'tiny' twice"):
        chosen(("*", "tiny"), quick=False)
    with pytest.raises(ValueError, match=r"'z\*', which is unknown; use tiny, regular"):
        chosen(("z*",), quick=False)


def test_names_of_cells_are_checked() -> None:
    with pytest.raises(ValueError, match="empty"):
        chosen((), quick=False)
