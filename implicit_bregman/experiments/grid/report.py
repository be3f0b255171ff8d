"""What an experiment over a grid found, and its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from implicit_bregman.experiments.machine.devices import available_cores
from implicit_bregman.experiments.machine.versions import today, versions
from implicit_bregman.experiments.output.blocks import Block, Heading, Table, Text, bullets, figures_of
from implicit_bregman.experiments.output.report import Provenance, Report


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

    def table(self) -> Table:
        """The table for people."""
        headings = tuple(heading for heading, _ in self.shown)
        cells = tuple(tuple(_written(row, keys) for _, keys in self.shown) for row in self.rows)
        return Table(self.title, headings, cells)

    def report(self, command: str, settings: Mapping[str, object], origins: Iterable[str]) -> Report:
        """The report.

        Args:
            command: The command that made it.
            settings: Everything that was asked for.
            origins: What computed each cell, see `Grid.origins`.
        """
        table = self.table()
        choices: tuple[Block, ...] = ()
        if self.choices:
            choices = (Heading("Chosen here"), Text("The paper does not state:"), bullets(self.choices))
        return Report(
            title=self.title,
            provenance=Provenance(settings, command, environment(origins)),
            body=(
                bullets(self.findings),
                table,
                *figures_of(self.figures),
                Heading("What was done"),
                bullets(self.setting),
                *choices,
            ),
            shown=(table,),
            columns=tuple(self.rows[0]),
            rows=self.rows,
            document={"name": self.name, "findings": self.findings, "rows": self.rows, "data": dict(self.data)},
            remarks=self.findings,
        )


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
        "date": today(),
        "cores": available_cores(),
        **versions("python", "implicit_bregman"),
        "computed with": "; ".join(f"{origin} ({count} cells)" for origin, count in counted.items()),
    }
