"""What a report is made of: headings, texts, tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rich import box
from rich.table import Table as RichTable
from rich.text import Text as RichText


@dataclass(frozen=True)
class Heading:
    """A heading below the report's title."""

    text: str

    def markdown(self, level: int) -> list[str]:
        """Its lines.

        Args:
            level: Of the report's title.
        """
        return [f"{'#' * (level + 1)} {self.text}", ""]


@dataclass(frozen=True)
class Text:
    """Markdown, of one or several lines."""

    text: str

    def markdown(self, level: int) -> list[str]:
        """Its lines; they do not depend on the level."""
        return [self.text, ""]


@dataclass(frozen=True)
class Table:
    """A table as people see it.

    Attributes:
        title: Its heading in the terminal.
        headings: Of the columns; the first one names the rows.
        rows: Texts, as many in each as there are columns.
        styles: How some rows stand out in the terminal, by their place, for example "bold".
        unbroken: Whether a narrow terminal breaks the headings alone, and never what is below them.
        numeric: Whether the columns behind the first hold numbers, which Markdown sets flush right.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    styles: Mapping[int, str] = field(default_factory=dict)
    unbroken: bool = False
    numeric: bool = True

    def markdown(self, level: int) -> list[str]:
        """Its lines, without the title; they do not depend on the level."""
        rule = " ---: |" if self.numeric else " --- |"
        heading, *rows = (" | ".join(text.replace("|", "/") for text in row) for row in (self.headings, *self.rows))
        return [f"| {heading} |", f"| --- |{rule * (len(self.headings) - 1)}", *(f"| {row} |" for row in rows), ""]

    def terminal(self) -> RichTable:
        """The table for the terminal."""
        table = RichTable(title=RichText(self.title), header_style="bold", box=box.SIMPLE_HEAD, padding=0)
        first, *others = self.headings
        table.add_column(RichText(first), overflow="fold", no_wrap=self.unbroken)
        for place, heading in enumerate(others, 1):
            below = [row[place] for row in self.rows]
            least = max(map(len, [*below, *heading.split()])) if self.unbroken else None
            table.add_column(RichText(heading), justify="right", overflow="fold", min_width=least)
        for place, row in enumerate(self.rows):
            table.add_row(*map(RichText, row), style=self.styles.get(place))
        return table


@dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        name: Of its file.
        png: The file.
        caption: What it shows.
        made_by: Stands behind the caption, for example the command; may be empty.
    """

    name: str
    png: bytes
    caption: str
    made_by: str = ""

    def markdown(self, level: int) -> list[str]:
        """Its lines; they do not depend on the level."""
        behind = f": {self.made_by}" if self.made_by else ""
        return [f"![{self.caption}]({self.name})", "", f"*{self.caption}{behind}.*", ""]


Block = Heading | Text | Table | Figure


def bullets(items: Iterable[str]) -> Text:
    """A list, one item each."""
    return Text("\n".join(f"* {item}" for item in items))


def listing(items: Mapping[str, object]) -> Text:
    """A list of names and values."""
    return bullets(f"{key}: {value}" for key, value in items.items())


def figures_of(made: Mapping[str, tuple[bytes, str]], made_by: str = "") -> tuple[Figure, ...]:
    """Figures from their file names, PNG files and captions."""
    return tuple(Figure(name, png, caption, made_by) for name, (png, caption) in made.items())
