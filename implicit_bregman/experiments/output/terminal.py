"""What commands show: a progress bar and lines on stderr, results on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Narrower than any table: where the output is no terminal, nothing is wrapped.
FILE_WIDTH = 200


class Interrupted(Exception):
    """Ctrl-C in a command that has something to say about it."""


class Bar:
    """A progress bar on stderr; called with the share that is done, in 0 … 1, and a text."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def __call__(self, share: float, text: str) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=share, description=text)

    def line(self, text: str) -> None:
        """Print a line above the bar, also where stderr is no terminal and there is no bar."""
        self._bar.console.print(text, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def progress_bar(shown: bool = True) -> Iterator[Bar]:
    """A progress bar, shown where stderr is a terminal.

    Args:
        shown: Whether to show it at all.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.percentage:3.0f} %"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not shown or not console.is_terminal,
    )
    with bar:
        yield Bar(bar, bar.add_task("starting", total=1.0))


def show(*parts: object) -> None:
    """Print texts and tables on stdout."""
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), highlight=False, markup=False)


def warn(text: object) -> None:
    """Print a warning on stderr, in one line."""
    print(f"implicit-bregman: warning: {text}", file=sys.stderr)
