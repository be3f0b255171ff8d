"""What an experiment over a grid gives, as JSON, CSV, markdown and a table for the terminal."""

from __future__ import annotations

import csv
import datetime
import io
import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

import implicit_bregman
from implicit_bregman.experiments.machine.devices import available_cores
from implicit_bregman.experiments.output.files import write_all
from implicit_bregman.experiments.output.statistics import finite

FORMAT_VERSION = 1


@dataclass(frozen=True)
class GridReport:
    """One figure or table of the paper, reproduced, or one study.

    Attributes:
        name: Name of the command that makes it.
        title: Heading of the report.
        setting: What was done, one statement each.
        choices: What the paper does not state and was chosen here, one statement each; may be empty.
        findings: What came out, one statement each.
        rows: The table, at full precision; every row has the same columns.
        shown: Headings of the columns that people see, and for each row's key how it is written.
        data: What the plots show, for results.json.
        figures: File name → PNG file and caption.
    """

    name: str
    title: str
    setting: tuple[str, ...]
    choices: tuple[str, ...]
    findings: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    shown: tuple[tuple[str, tuple[str, ...]], ...]
    data: Mapping[str, Any]
    figures: Mapping[str, tuple[bytes, str]] = field(default_factory=dict)

    def write(self, folder: Path, command: str, settings: Mapping[str, object], origins: Iterable[str]) -> list[Path]:
        """Write results.json, results.csv, report.md and the figures.

        Args:
            folder: Where to; it exists.
            command: The command that made them.
            settings: Everything that was asked for.
            origins: What computed each cell, see `Grid.origins`.

        Returns:
            The paths.
        """
        about = {"command": command, "settings": dict(settings), "environment": environment(origins)}
        texts = {
            "results.json": self._json(about),
            "results.csv": self._csv(),
            "report.md": self._markdown(about),
        }
        contents = {name: text.encode() for name, text in texts.items()}
        return write_all(folder, contents | {name: png for name, (png, _) in self.figures.items()})

    def table(self) -> Table:
        """The table for the terminal."""
        table = Table(title=Text(self.title), header_style="bold", box=SIMPLE_HEAD, padding=0)
        for position, (heading, _) in enumerate(self.shown):
            table.add_column(Text(heading), justify="right" if position else "left")
        for texts in self._cells():
            table.add_row(*texts)
        return table

    def _cells(self) -> list[list[str]]:
        return [[_written(row, keys) for _, keys in self.shown] for row in self.rows]

    def _json(self, about: dict[str, Any]) -> str:
        document = {
            "format": FORMAT_VERSION,
            "name": self.name,
            **about,
            "findings": self.findings,
            "rows": self.rows,
            "data": dict(self.data),
        }
        return json.dumps(finite(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def _csv(self) -> str:
        target = io.StringIO()
        writer = csv.DictWriter(target, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in self.rows)
        return target.getvalue()

    def _markdown(self, about: dict[str, Any]) -> str:
        headings = [heading for heading, _ in self.shown]
        lines = [f"# {self.title}", "", f"Made by `{about['command']}`.", ""]
        lines += [f"* {text}" for text in self.findings] + [""]
        lines += [f"| {' | '.join(headings)} |", f"| --- |{' ---: |' * (len(headings) - 1)}"]
        lines += [f"| {' | '.join(cells)} |" for cells in self._cells()] + [""]
        for name, (_, caption) in self.figures.items():
            lines += [f"![{caption}]({name})", "", f"*{caption}.*", ""]
        lines += ["## What was done", "", *(f"* {text}" for text in self.setting), ""]
        if self.choices:
            lines += [
                "## Chosen here",
                "",
                "The paper does not state:",
                "",
                *(f"* {text}" for text in self.choices),
                "",
            ]
        lines += ["## Environment", "", *(f"* {key}: {value}" for key, value in about["environment"].items()), ""]
        lines += ["Every number is in `results.json`, the table in `results.csv`.", ""]
        return "\n".join(lines)


def _written(row: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """One cell of a table for people: a text, a number, or mean ± spread; each key may end in ":format"."""
    parts = []
    for key in keys:
        name, _, form = key.partition(":")
        value = row[name]
        if value is not None:
            parts.append(format(value, form))
    return " ± ".join(parts) or "–"


def environment(origins: Iterable[str]) -> dict[str, object]:
    """Machine and versions, of the report and of what computed the cells."""
    counted = Counter(origins)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "cores": available_cores(),
        "python": platform.python_version(),
        "implicit_bregman": implicit_bregman.__version__,
        "computed with": "; ".join(f"{origin} ({count} cells)" for origin, count in counted.items()),
    }
