"""The report that every command makes: one content, and table, JSON, CSV, Markdown and PNG that agree."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from implicit_bregman.experiments.grid.report import GridReport
from implicit_bregman.experiments.output.blocks import Figure, Heading, Table, Text, bullets
from implicit_bregman.experiments.output.files import csv_text
from implicit_bregman.experiments.output.report import Files, Provenance, Report

TABLE = Table("numbers", ("name", "value | unit"), (("one", "1.0"), ("two", "2.0")), {1: "bold"})
FIGURE = Figure("plot.png", b"\x89PNG", "A plot", "`a command`")


def report(**changes: object) -> Report:
    content: dict[str, object] = {
        "title": "A report",
        "provenance": Provenance({"seed": 3}, "a command", {"torch": "2"}),
        "body": (Text("First."), Heading("Numbers"), TABLE, FIGURE, bullets(["done", "well"])),
        "shown": (TABLE,),
        "columns": ("name", "value"),
        "rows": [{"name": "one", "value": 0.1 + 0.2}, {"name": "two", "value": None}],
        "document": {"values": [0.1 + 0.2, math.nan]},
        "remarks": ("Something was found.",),
    }
    return Report(**(content | changes))  # type: ignore[arg-type]


def test_json_has_provenance_and_null_for_what_is_not_finite() -> None:
    document = json.loads(report().json())
    assert document == {
        "format": 1,
        "command": "a command",
        "settings": {"seed": 3},
        "environment": {"torch": "2"},
        "values": [0.1 + 0.2, None],
    }


def test_what_a_report_does_not_know_of_its_provenance_is_left_out() -> None:
    assert json.loads(report(provenance=Provenance({})).json()).keys() == {"format", "settings", "values"}


def test_csv_loses_no_digit() -> None:
    lines = list(csv.DictReader(io.StringIO(report().csv())))
    assert [line["name"] for line in lines] == ["one", "two"]
    assert float(lines[0]["value"]) == 0.1 + 0.2
    assert lines[1]["value"] == ""


def test_csv_refuses_a_column_that_it_does_not_have() -> None:
    with pytest.raises(ValueError, match="other"):
        csv_text(("name",), [{"name": "one", "other": 1}])


@pytest.mark.parametrize("level", [1, 2])
def test_markdown_has_all_blocks_in_their_order(level: int) -> None:
    mark = "#" * level
    pieces = [
        f"{mark} A report\n\nMade by `a command`.\n\nFirst.\n",
        f"\n{mark}# Numbers\n\n| name | value / unit |\n| --- | ---: |\n| one | 1.0 |\n",
        "\n![A plot](plot.png)\n\n*A plot: `a command`.*\n",
        "\n* done\n* well\n",
        f"\n{mark}# Environment\n\n* torch: 2\n* peer: not installed\n",
    ]
    text = report(missing={"peer": "not installed"}).markdown(level)
    places = [text.index(piece) for piece in pieces]
    assert places == sorted(places)
    assert text.endswith("Every number is in `results.json`, the table in `results.csv`.\n")


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    lines = Table("", ("a", "b"), (("x|y", "z"),), numeric=False).markdown(1)
    assert lines == ["| a | b |", "| --- | --- |", "| x/y | z |", ""]


@pytest.mark.parametrize("unbroken", [True, False])
def test_a_narrow_terminal_breaks_headings_before_numbers(unbroken: bool) -> None:
    headings = ("row", *(f"a rather long heading {k}" for k in range(5)))
    rows = (("one", *(f"{k}.25±0.125" for k in range(5))),)
    console = Console(width=72, file=io.StringIO())
    console.print(Table("", headings, rows, unbroken=unbroken).terminal())
    text = console.file.getvalue()
    assert "…" not in text
    assert all(cell in text for cell in rows[0])
    assert max(map(len, text.splitlines())) <= 72


def test_all_files_are_written_and_all_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report().deliver(tmp_path)
    names = ["results.json", "results.csv", "report.md", "plot.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert (tmp_path / "plot.png").read_bytes() == b"\x89PNG"
    assert (tmp_path / "report.md").read_text() == report().markdown()
    shown = capsys.readouterr().out
    assert all(
        piece in shown for piece in ("numbers", "2.0", "Something was found.", f"{tmp_path}: {', '.join(names)}")
    )


def test_a_report_without_markdown(tmp_path: Path) -> None:
    assert list(report(files=Files("a.json", "a.csv", None)).contents()) == ["a.json", "a.csv", "plot.png"]


def test_a_grid_report_is_one_of_them() -> None:
    rows = ({"name": "one", "mean": 1.25, "spread": 0.5}, {"name": "two", "mean": 2.0, "spread": None})
    shown = (("name", ("name",)), ("value", ("mean:.2f", "spread:.1f")), ("none", ("spread",)))
    made = GridReport("g", "A grid", ("it ran",), ("chosen",), ("found",), rows, shown, {"x": 1}).report(
        "run", {}, ["cpu"]
    )
    assert made.shown[0].rows == (("one", "1.25 ± 0.5", "0.5"), ("two", "2.00", "–"))
    assert made.remarks == ("found",)
    document = json.loads(made.json())
    assert (document["name"], document["findings"], document["data"]) == ("g", ["found"], {"x": 1})
    assert document["environment"]["computed with"] == "cpu (1 cells)"
    assert "The paper does not state:\n\n* chosen\n" in made.markdown()
