"""The report of every command: as tables for the terminal, JSON, CSV, Markdown and PNG, all with the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table as RichTable

from implicit_bregman.experiments.output.blocks import Block, Figure, Heading, Table, listing
from implicit_bregman.experiments.output.files import csv_text, json_text, write_all
from implicit_bregman.experiments.output.terminal import show


@dataclass(frozen=True)
class Provenance:
    """Where the numbers of a report come from.

    Attributes:
        settings: Everything that was asked for.
        command: The command line that made them; None if the report does not name it.
        environment: Machine and versions; None if the report does not name them.
    """

    settings: Mapping[str, object]
    command: str | None = None
    environment: Mapping[str, object] | None = None

    def document(self) -> dict[str, object]:
        """What is known, as JSON has it."""
        known = {"command": self.command, "settings": self.settings, "environment": self.environment}
        return {key: value for key, value in known.items() if value is not None}


@dataclass(frozen=True)
class Files:
    """Names of the files of a report; `markdown` is None where none is written."""

    json: str = "results.json"
    csv: str = "results.csv"
    markdown: str | None = "report.md"


@dataclass(frozen=True)
class Report:
    """What a command found.

    Attributes:
        title: Heading of the Markdown report.
        provenance: Where the numbers come from.
        body: What stands between heading and environment of the Markdown report; its figures are files too.
        shown: The tables that the terminal shows.
        columns: Headings of the CSV file.
        rows: Its lines, at full precision.
        document: The JSON document, beside its format and the provenance.
        missing: Packages that were not there, and how to install them; Markdown lists them below the environment.
        remarks: Sentences that the terminal shows below the tables.
        closing: The last line of the Markdown report.
        files: Names of the files.
        version: Of the format of the JSON document.
    """

    title: str
    provenance: Provenance
    body: tuple[Block, ...]
    shown: tuple[Table, ...]
    columns: Sequence[str]
    rows: Sequence[Mapping[str, object]]
    document: Mapping[str, object]
    missing: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    closing: str = "Every number is in `results.json`, the table in `results.csv`."
    files: Files = field(default_factory=Files)
    version: int = 1

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures, in their order."""
        return tuple(block for block in self.body if isinstance(block, Figure))

    def tables(self) -> list[RichTable]:
        """The tables for the terminal."""
        return [table.terminal() for table in self.shown]

    def json(self) -> str:
        """Everything."""
        return json_text({"format": self.version, **self.provenance.document(), **self.document})

    def csv(self) -> str:
        """The rows."""
        return csv_text(self.columns, self.rows)

    def markdown(self, level: int = 1) -> str:
        """The report for people.

        Args:
            level: Of the title.
        """
        lines = [f"{'#' * level} {self.title}", ""]
        if self.provenance.command is not None:
            lines += [f"Made by `{self.provenance.command}`.", ""]
        environment = (Heading("Environment"), listing({**(self.provenance.environment or {}), **self.missing}))
        for block in (*self.body, *environment):
            lines += block.markdown(level)
        return "\n".join([*lines, self.closing, ""])

    def contents(self) -> dict[str, bytes]:
        """All files, by name."""
        texts = {self.files.json: self.json(), self.files.csv: self.csv()}
        if self.files.markdown is not None:
            texts[self.files.markdown] = self.markdown()
        return {name: text.encode() for name, text in texts.items()} | {one.name: one.png for one in self.figures}

    def deliver(self, folder: Path) -> None:
        """Write all files to the folder, which exists, and show tables, remarks and what was written.

        Raises:
            OSError: If a file cannot be written; then none is left half.
        """
        written = write_all(folder, self.contents())
        names = ", ".join(path.name for path in written)
        show(*self.tables(), *self.remarks, f"Written to {folder}: {names}")
