"""Ratios, verdicts, tables and figures of a made-up benchmark."""

import csv
import io
import math
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from implicit_bregman.experiments.benchmark.figures import benchmark_figures
from implicit_bregman.experiments.benchmark.peers.contenders import BOTH, FORWARD, OURS, UNROLLED
from implicit_bregman.experiments.benchmark.report import benchmark_report, sections
from implicit_bregman.experiments.benchmark.results import (
    Benchmark,
    CellResult,
    Entry,
    FeedForwardRow,
    LimitRow,
    ScalingPoint,
)
from implicit_bregman.experiments.benchmark.targets import MET, MISSED, UNKNOWN, targets

COMMAND = "implicit-bregman benchmark --quick"


def entry(contender: str, seconds: float | None, accuracy: float = 1e-3, task: str = BOTH) -> Entry:
    times = () if seconds is None else (seconds, 0.9 * seconds, 1.2 * seconds)
    error = accuracy / 2 if seconds is not None else 3 * accuracy
    calls = (None, None) if seconds is None or contender in ("ProxQP", "OSQP") else (round(1e5 * seconds), 7)
    text = f"settings of {contender}"
    return Entry(contender, task, accuracy, seconds is not None, text, error, error, times, *calls)


def cell(name: str, *entries: Entry, **facts: object) -> CellResult:
    usual = {
        "family": "quadratic",
        "name": name,
        "kind": "convex",
        "geometry": "tanh",
        "dim": 8,
        "batch": 64,
        "condition": 100.0,
        "active": 0.05,
        "regularization": 0.0,
        "dtype": "float32",
        "margin": None,
    }
    return CellResult(name, f"text of {name}", usual | facts, "oracle", 0.0, 1e-7, 1e-6, 50, 100, 1.0, entries)


def benchmark(*cells: CellResult, **parts: object) -> Benchmark:
    settings = {"accuracies": [1e-3, 1e-6], "threads": 2, "repeats": 7, "cap": 14.0}
    return Benchmark(COMMAND, settings, {"processor": "abacus"}, {}, cells, **parts)


@pytest.fixture
def full() -> Benchmark:
    """Something of everything."""
    plain = cell(
        "plain",
        entry(OURS, 0.001),
        entry(OURS, 0.001, 1e-6),
        entry("torchdeq Anderson", 0.05),
        entry("torchdeq Broyden", 0.03),
        entry("torchdeq Anderson", None, 1e-6),
        entry(UNROLLED, None),
        entry(OURS, 0.001, 1e-6, FORWARD),
        entry("ProxQP", 0.004, 1e-6, FORWARD),
    )
    hard = cell("hard", entry(OURS, 0.002), entry("torchdeq Anderson", None), dtype="float64")
    regular = cell("regular", entry(OURS, 0.002), entry("torchdeq fixed point", 0.001), regularization=0.1)
    layer = cell(
        "layer",
        *(entry(OURS, seconds, 1e-6, task) for task, seconds in ((BOTH, 0.003), (FORWARD, 0.001))),
        *(entry("Peaceman–Rachford", seconds, 1e-6, task) for task, seconds in ((BOTH, 0.001), (FORWARD, 0.002))),
        entry("monDEQ Peaceman–Rachford", 0.006, 1e-6),
        kind="general",
        margin=1.0,
    )
    return benchmark(
        plain,
        hard,
        regular,
        layer,
        feedforward=(
            FeedForwardRow("tanh", "tanh", "4 layers of width 8, B = 2", (0.001, 0.002, 0.001), (0.002,), 1e-7),
            FeedForwardRow("bent", "relu", "4 layers of width 8, B = 2", reason="its inverse is wrong"),
        ),
        limits=(LimitRow("a pool", 200, 199, 3),),
        scaling=tuple(
            ScalingPoint(axis, at, name, (0.001 * at,), int(100 * at))
            for axis in ("d", "L")
            for at in (10.0, 100.0)
            for name in (OURS, "unrolled, L steps", "torchdeq Anderson, L + L")
        ),
    )


def verdicts(result: Benchmark) -> dict[str, tuple[str, str]]:
    return {target.name: (target.verdict, target.margin) for target in targets(result)}


def test_median_and_quartiles() -> None:
    item = Entry("a", BOTH, 1e-3, True, "", None, None, (5.0, 1.0, 2.0, 4.0, 3.0))
    assert item.median == 3
    assert item.quartiles == (2, 4)
    assert Entry("a", BOTH, 1e-3, True, "", None, None, (2.0, 1.0)).quartiles == (1, 2)
    assert math.isnan(Entry("a", BOTH, 1e-3, False, "", None, None).median)


def test_ratios_are_of_the_best_peer_that_gets_there(full: Benchmark) -> None:
    plain, hard, regular, layer = full.cells
    assert plain.ratio("torchdeq", 1e-3) == pytest.approx(30)
    assert plain.ratio("torchdeq", 1e-6) is None
    assert plain.ratio("ProxQP", 1e-6, FORWARD) == pytest.approx(4)
    assert plain.ratio(UNROLLED, 1e-3) is None
    assert hard.ratio("torchdeq", 1e-3) is None
    assert regular.ratio("torchdeq", 1e-3) == pytest.approx(0.5)
    assert layer.ratio("monDEQ", 1e-6) == pytest.approx(2)
    assert layer.ratio("Peaceman–Rachford", 1e-6, FORWARD) == pytest.approx(2)


def test_targets_are_met_or_missed_by_how_much(full: Benchmark) -> None:
    found = verdicts(full)
    assert found["forward + backward to 1e-3 against torchdeq's best, γ = 0"] == (MET, "")
    verdict, margin = found["forward + backward to 1e-3 against torchdeq's best, γ > 0"]
    assert verdict == MISSED
    assert margin == "the median by a factor of 10; slower in regular"
    assert found["forward to 1e-6, B ≥ 64, against ProxQP's parallel batch"] == (MET, "")
    assert found["relative error of z, float32, condition ≤ 1000"] == (MET, "")
    verdict, margin = found["relative error of z, float64, condition ≤ 1000"]
    assert verdict == MISSED
    assert margin == "by a factor of 1e+02 at most: hard"
    assert found["samples on MM's own limit, indefinite W"] == (MET, "")
    assert found["bytes held for backward beyond parameters, float32"] == (MET, "")
    assert found["feed-forward layers against bregmanet, same result"] == (MET, "")
    assert found["the same on a GPU"] == (UNKNOWN, "")
    assert found["layers like monDEQ's, forward to 1e-6 against Peaceman–Rachford"] == (MET, "")
    verdict, margin = found["layers like monDEQ's, forward+backward to 1e-6 against Peaceman–Rachford"]
    assert (verdict, margin) == (MISSED, "the median by a factor of 3; too slow in layer")


def test_targets_of_layers_ask_for_every_cell() -> None:
    conv = {"family": "convolution", "margin": 0.1, "active": None}
    fast = cell(
        "conv-fast",
        *(entry(OURS, 0.01, level) for level in (1e-3, 1e-5)),
        *(entry("own energy", 0.06, level) for level in (1e-3, 1e-5)),
        entry("Peaceman–Rachford", 0.015),
        entry("torchdeq Anderson", 0.03),
        **conv,
    )
    monotone = cell("conv-skew", entry(OURS, 0.01), entry("torchdeq Broyden", None), **(conv | {"kind": "monotone"}))
    field = cell("field-net", entry(OURS, 0.02), entry("torchdeq Anderson", 0.03), family="field", condition=None)
    result = benchmark(fast, monotone, field)
    found = verdicts(result)
    assert found["convolutional layers, forward+backward to 1e-03 against the user's own energy"] == (MET, "")
    assert found["convolutional layers, forward+backward to 1e-05 against the user's own energy"] == (MET, "")
    verdict, margin = found["convolutional layers, forward+backward to 1e-03 against Peaceman–Rachford"]
    assert (verdict, margin) == (MISSED, "the median by a factor of 1.3; too slow in conv-fast")
    assert found["convolutional layers, forward+backward to 1e-03 against torchdeq's best"] == (MET, "")
    assert found["convolutional layers, forward+backward to 1e-05 against torchdeq's best"] == (UNKNOWN, "")
    assert found["fields, forward+backward to 1e-03 against torchdeq's best"] == (MET, "")
    assert found["fields, forward+backward to 1e-05 against torchdeq's best"] == (UNKNOWN, "")
    assert found["fields: relative error of the gradients"] == (MET, "")
    # They are no cells of the other targets.
    assert found["forward + backward to 1e-3 against torchdeq's best, γ = 0"] == (UNKNOWN, "")
    assert found["relative error of z, float32, condition ≤ 1000"] == (UNKNOWN, "")
    tables = {title: (heading, rows) for title, heading, rows in sections(result)}
    heading, rows = tables["Times of the best peer over those of implicit-bregman's defaults"]
    assert dict(zip(heading, rows[0], strict=True))["own energy, 1e-03"] == "6×"


def test_gradients_of_a_field_that_are_too_far_off_are_a_miss() -> None:
    off = replace(cell("field-net", entry(OURS, 0.02), family="field"), gradient_error=3e-5)
    verdict, margin = verdicts(benchmark(off))["fields: relative error of the gradients"]
    assert (verdict, margin) == (MISSED, "by a factor of 3 at most: field-net")


def test_a_cell_that_only_the_peer_solves_is_a_slower_one() -> None:
    lost = cell("lost", entry(OURS, None), entry("torchdeq Anderson", 0.1))
    good = cell("good", entry(OURS, 0.001), entry("torchdeq Anderson", 0.1))
    verdict, margin = verdicts(benchmark(lost, good))["forward + backward to 1e-3 against torchdeq's best, γ = 0"]
    assert verdict == MISSED
    assert "slower in lost" in margin


def test_the_least_misses_are_seen() -> None:
    slow = FeedForwardRow("tanh", "tanh", "4 layers", (0.0011,), (0.001,), 1e-7)
    result = benchmark(
        cell("only", entry(OURS, 0.001, 1e-6, FORWARD), entry("ProxQP", 0.0019, 1e-6, FORWARD)),
        feedforward=(slow,),
        limits=(LimitRow("a pool", 200, 198, 0),),
    )
    found = verdicts(result)
    assert found["forward to 1e-6, B ≥ 64, against ProxQP's parallel batch"][0] == MISSED
    assert found["samples on MM's own limit, indefinite W"] == (MISSED, "by 0.5 percentage points")
    assert found["feed-forward layers against bregmanet, same result"][1].startswith("10 % slower")


def test_without_measurements_nothing_is_claimed() -> None:
    assert {target.verdict for target in targets(benchmark())} == {UNKNOWN}
    assert benchmark_figures(benchmark()) == {}
    assert benchmark_report(benchmark()).markdown()


def test_not_reached_is_listed_apart_and_without_a_time(full: Benchmark) -> None:
    tables = {title: (heading, rows) for title, heading, rows in sections(full)}
    apart = tables["Not reached"][1]
    assert [(row[0], row[1], row[2], row[3]) for row in apart] == [
        ("plain", "torchdeq Anderson", "1e-06", "3.0e-06"),
        ("plain", UNROLLED, "1e-03", "3.0e-03"),
        ("hard", "torchdeq Anderson", "1e-03", "3.0e-03"),
    ]
    heading, rows = tables["Time to 1e-03, forward+backward [ms]"]
    shown = dict(zip(heading, rows[1], strict=True))
    assert shown["cell"] == "hard"
    assert shown["torchdeq Anderson"] == "not reached"
    assert shown[OURS] == "2 [1.9, 2.2]"
    assert shown["torchdeq Broyden"] == "–"


def test_calls_have_tables_and_columns(full: Benchmark) -> None:
    tables = {title: (heading, rows) for title, heading, rows in sections(full)}
    heading, rows = tables["Operator calls / host synchronisations, forward to 1e-06"]
    assert heading == ["cell", OURS, "Peaceman–Rachford"]  # ProxQP's are not counted
    assert rows == [["plain", "100 / 7", "–"], ["layer", "100 / 7", "200 / 7"]]
    lines = list(csv.DictReader(io.StringIO(benchmark_report(full).csv())))
    assert [(line["operator_calls"], line["synchronisations"]) for line in lines if line["contender"] == "ProxQP"] == [
        ("", "")
    ]
    assert {line["margin"] for line in lines if line["cell"] == "layer"} == {"1.0"}
    assert [line["operator_calls"] for line in lines if line["cell"] == "layer"] == ["300", "100", "100", "200", "600"]
    heading, rows = tables["Times of the best peer over those of implicit-bregman's defaults"]
    shown = dict(zip(heading, rows[-1], strict=True))
    assert shown["Peaceman–Rachford, 1e-06"] == "0.333×"
    assert shown["Peaceman–Rachford, forward, 1e-06"] == "2×"
    assert shown["monDEQ, 1e-06"] == "2×"


def test_everything_names_the_command(full: Benchmark) -> None:
    figures = benchmark_figures(full)
    text = benchmark_report(full, figures).markdown()
    assert text.count(f"`{COMMAND}`") == 1 + len(sections(full)) + len(figures)
    assert "abacus" in text
    for table in benchmark_report(full).tables():
        assert COMMAND in str(table.title)


def test_the_terminal_shows_all_numbers(full: Benchmark) -> None:
    console = Console(width=160, file=io.StringIO())
    for table in benchmark_report(full).tables():
        console.print(table)
    shown = console.file.getvalue()
    for piece in ("2 [1.9, 2.2]", "30×", "missed", "its inverse is wrong", "199"):
        assert piece in shown


def test_csv_has_a_line_per_entry(full: Benchmark) -> None:
    lines = benchmark_report(full).csv().splitlines()
    assert len(lines) == 1 + sum(len(found.entries) for found in full.cells)


def test_missing_peers_are_named(full: Benchmark) -> None:
    result = benchmark(*full.cells)
    result.missing["proxsuite"] = "not installed"
    assert "proxsuite: not installed" in benchmark_report(result).markdown()


def test_figures_show_something(full: Benchmark) -> None:
    figures = benchmark_figures(full)
    assert {"ratios.png", "scaling.png", "time-forward-backward-1e-03.png", "time-forward-1e-06.png"} <= set(figures)
    assert {"calls-forward.png", "calls-forward-backward.png"} <= set(figures)
    for png, caption in figures.values():
        pixels = imread(io.BytesIO(png))
        assert pixels.shape[1] == 2100  # 7 inches at 300 dots per inch
        assert (pixels[..., :3].min(-1) < 0.9).mean() > 0.002
        assert caption


def test_the_page_is_written_between_its_marks(full: Benchmark, tmp_path: Path) -> None:
    script = runpy.run_path(str(Path(__file__).resolve().parents[3] / "docs" / "scripts" / "benchmarks.py"))
    results, docs = tmp_path / "results", tmp_path / "docs"
    results.mkdir()
    docs.mkdir()
    (results / "results.json").write_text(benchmark_report(full).json())
    assert script["main"]([str(results)], docs) == 0
    first = (docs / "benchmarks.md").read_text()
    assert first.startswith("# Benchmarks\n")
    assert "## Benchmark\n" in first
    images = [path.name for path in (docs / "images").iterdir()]
    assert images
    assert all(f"](images/{name})" in first for name in images)
    (docs / "benchmarks.md").write_text(first + "More.\n")
    assert script["main"]([str(results)], docs) == 0
    assert (docs / "benchmarks.md").read_text() == first + "More.\n"
    with pytest.raises(ValueError, match="marks"):
        script["page_with"](full, "# No marks\n")
    assert script["main"]([]) == 2
