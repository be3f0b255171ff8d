"""Counts and times as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from implicit_bregman.experiments.benchmark.paths.counts import Counts
from implicit_bregman.experiments.benchmark.paths.layers import Path
from implicit_bregman.experiments.benchmark.paths.timing import Times

START, END = "<!-- {} -->\n", "<!-- end of {} -->\n"


def counts_table(found: Mapping[Path, Counts]) -> str:
    """One line per path."""
    head = (
        "| path | forward and backward of | operator calls | products and solves | host synchronisations "
        "| shapes that depend on values |\n| --- | --- | ---: | ---: | ---: | ---: |\n"
    )
    return head + "".join(
        f"| `{path.name}` | {path.text} | {each.operators} | {each.products} | {each.synchronisations} "
        f"| {each.shapes} |\n"
        for path, each in found.items()
    )


def read_counts(page: str) -> dict[str, Counts]:
    """The counts in the table of a page, by the name of the path."""
    table = page.partition(START.format("counts"))[2].partition(END.format("counts"))[0]
    rows = (line.strip("|\n ").split(" | ") for line in table.splitlines() if line.startswith("| `"))
    return {row[0].strip("` "): Counts(*map(int, row[2:])) for row in rows}


def times_table(found: Mapping[Path, Times]) -> str:
    """One line per path, and the names of GPU and PyTorch above."""
    head = (
        f"On one {torch.cuda.get_device_name(0)}, PyTorch {torch.__version__}, the CPU with {torch.get_num_threads()} "
        "threads, float32:\n\n"
        "| path | forward and backward of | CPU [ms] | GPU [ms] | host waits seen | GPU memory [MiB] |\n"
        "| --- | --- | ---: | ---: | ---: | ---: |\n"
    )
    return head + "".join(
        f"| `{path.name}` | {path.text} | {1e3 * each.cpu:.3g} | {1e3 * each.gpu:.3g} | {each.waits} "
        f"| {each.megabytes:.0f} |\n"
        for path, each in found.items()
    )


def placed(page: str, name: str, text: str) -> str:
    """The page with `text` between the marks of that name.

    Raises:
        ValueError: if a mark is missing.
    """
    start, end = START.format(name), END.format(name)
    before, found, rest = page.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page lacks the marks {start.strip()} and {end.strip()}, put them back")
    return f"{before}{start}\n{text}\n{end}{after}"
