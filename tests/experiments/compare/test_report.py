"""The four forms of a result agree, the figures show something, and files are complete or absent."""

import csv
import io
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from implicit_bregman.experiments.compare.figures import comparison_figures
from implicit_bregman.experiments.compare.report import cell, comparison_report
from implicit_bregman.experiments.compare.results import COLUMNS, Comparison, Row
from implicit_bregman.experiments.learning.training import CurvePoint
from implicit_bregman.experiments.output.files import writable_folder, write_all
from implicit_bregman.experiments.output.statistics import Statistic, finite, statistic

SEEDS = 3


def make_row(name: str, family: str, depth: int | None, level: float) -> Row:
    columns: dict[str, Statistic | None] = {
        column.key: Statistic(tuple(level * (1 + k / 10) for k in range(SEEDS))) for column in COLUMNS
    }
    columns["peak_bytes"] = None
    if depth is not None:
        columns["converged"] = None
    curve = tuple(CurvePoint(10 * k, 0.1 * k * level, level / k) for k in range(1, 5))
    return Row(name, family, depth, columns, (curve,) * SEEDS)


@pytest.fixture
def comparison() -> Comparison:
    """A made-up comparison, each column different in each row."""
    rows = (
        make_row("implicit", "implicit", None, 0.7),
        make_row("implicit-mm", "implicit", None, 0.6),
        make_row("one-step", "one-step", None, 0.5),
        make_row("truncated-2-of-5", "truncated", 5, 0.3),
        *(make_row(f"unrolled-{depth}", "unrolled", depth, depth / 20) for depth in (1, 2, 5, 10, 20)),
    )
    settings = {
        "dataset": "digits",
        "geometry": "tanh",
        "weight": "convex",
        "regularization": 0.0,
        "width": 8,
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 0.01,
        "seed": 4,
        "seeds": SEEDS,
        "seconds": None,
    }
    facts = {
        "train_samples": 100,
        "test_samples": 50,
        "features": 64,
        "classes": 10,
        "steps": 40,
        "seconds_per_seed": [0.5] * SEEDS,
        "seconds_mean": 0.5,
        "loss_samples": 100,
        "gradient_samples": 64,
    }
    return Comparison(settings, {"torch": "2", "device": "cpu"}, facts, "implicit", rows)


def test_statistics() -> None:
    assert Statistic((1.0, 2.0, 3.0)).mean == pytest.approx(2.0)
    assert Statistic((1.0, 2.0, 3.0)).spread == pytest.approx(1.0)
    assert Statistic((1.0,)).spread is None
    assert statistic([1.0, None]) is None
    assert statistic([]) is None


def test_json_csv_and_markdown_agree(comparison: Comparison) -> None:
    document = json.loads(comparison_report(comparison).json())
    lines = list(csv.DictReader(io.StringIO(comparison_report(comparison).csv())))
    markdown = comparison_report(comparison).markdown()
    tables = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|")]
    cells = {}
    for heading, *rest in (tables[:11], tables[11:]):
        for row in rest[1:]:
            cells |= {(row[0], title): text for title, text in zip(heading[1:], row[1:], strict=True)}

    assert [row["name"] for row in document["rows"]] == [line["name"] for line in lines]
    seen = 0
    for row, line in zip(document["rows"], lines, strict=True):
        for column in COLUMNS:
            if column.key not in row["columns"]:
                assert column.key == "peak_bytes"
                continue
            entry = row["columns"][column.key]
            shown = cells[row["name"], column.title]
            if entry["mean"] is None:
                assert line[f"{column.key}_mean"] == ""
                assert shown == "–"
                continue
            assert entry["mean"] == pytest.approx(sum(entry["values"]) / SEEDS)
            assert float(line[f"{column.key}_mean"]) == entry["mean"]
            assert float(line[f"{column.key}_spread"]) == entry["spread"]
            assert shown.split(" ± ")[0] == format(entry["mean"] * column.factor, column.digits)
            if column.spread:
                assert shown.split(" ± ")[1] == format(entry["spread"] * column.factor, column.spread)
            seen += 1
    assert seen == len(lines) * (len(COLUMNS) - 1) - 6


def test_markdown_says_what_was_done(comparison: Comparison) -> None:
    markdown = comparison_report(comparison, {"a.png": (b"", "A caption")}).markdown()
    for piece in (
        "100 training and 50 test samples",
        "learning rate 0.01",
        "40 steps",
        "seeds 4 … 6",
        "0.5 s",
    ):
        assert piece in markdown
    assert "![A caption](a.png)" in markdown
    assert "* **unrolled**" in markdown
    assert "phantom" not in markdown


def test_the_terminal_table_fits_eighty_characters(comparison: Comparison) -> None:
    console = Console(width=80, file=io.StringIO())
    for table in comparison_report(comparison).tables():
        console.print(table)
    text = console.file.getvalue()
    assert "…" not in text
    for row in comparison.rows:
        for column in comparison.shown_columns():
            assert cell(row, column, "±") in text
    assert "[nats]" in text


def test_what_is_not_finite_is_null_and_not_a_number(comparison: Comparison) -> None:
    row = comparison.rows[0]
    columns = row.columns | {"gradient_error": Statistic((math.nan, 1.0, math.inf))}
    broken = replace(comparison, rows=(replace(row, columns=columns), *comparison.rows[1:]))
    entry = json.loads(comparison_report(broken).json())["rows"][0]["columns"]["gradient_error"]
    assert entry == {"unit": "", "mean": None, "spread": None, "values": [None, 1.0, None]}
    assert finite({"a": [math.inf, 1, "x"]}) == {"a": [None, 1, "x"]}
    assert comparison_figures(broken)


def test_figures_show_something(comparison: Comparison) -> None:
    figures = comparison_figures(comparison)
    assert set(figures) == {"accuracy_and_gradient.png", "memory_and_time.png", "training.png"}
    for png, caption in figures.values():
        pixels = imread(io.BytesIO(png))
        assert pixels.shape[1] == 1050  # 3.5 inches at 300 dots per inch
        colours = (255 * pixels[..., :3]).round().astype(np.int64) @ [65536, 256, 1]
        assert len(np.unique(colours)) > 50
        assert 0.01 < np.mean(pixels[..., :3].min(-1) < 0.9) < 0.5
        assert caption


def test_without_unrolled_rows_there_is_nothing_to_draw_against_depth(comparison: Comparison) -> None:
    assert set(comparison_figures(replace(comparison, rows=comparison.rows[:3]))) == {"training.png"}


def test_files_are_written_completely(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    paths = write_all(tmp_path, {"a.txt": b"new", "b.bin": b"\x00\x01"})
    assert [path.read_bytes() for path in paths] == [b"new", b"\x00\x01"]
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.bin"]


def test_a_failed_write_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError, match="too long"):
        write_all(tmp_path, {"a.txt": b"new", "x" * 300: b"never"})
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_folders_are_checked_before_any_work(tmp_path: Path) -> None:
    assert writable_folder(tmp_path / "a" / "b").is_dir()
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"--out .*file"):
            writable_folder(bad)
