"""A comparison as a terminal table, JSON, CSV and markdown. All four show the same numbers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from implicit_bregman.experiments.compare_findings import findings
from implicit_bregman.experiments.methods import TORCHDEQ_MAX_ITER
from implicit_bregman.experiments.results import Column, Comparison, Row, finite

FORMAT_VERSION = 1

FAMILIES = {
    "implicit": "solve to the critical point, differentiate there (implicit function theorem)",
    "one-step": "solve, then differentiate through one MM step",
    "phantom": "solve, then differentiate through a few damped MM steps",
    "unrolled": "L MM steps, differentiate through all of them",
    "truncated": "L MM steps, differentiate through the last K of them",
}

_METHOD = """\
* **Data**: {dataset}, {train_samples} training and {test_samples} test samples, {features} features,
  {classes} classes.{note}
* **Model**: z = critical point of −½ zᵀWz − (Ux + b)ᵀz + γφ(z) over C, then a linear read-out and the cross
  entropy. All rows have the same initial parameters, batches and settings; only solver and adjoint differ.
* **Training**: Adam, learning rate {learning_rate:g}, constant; batches of {batch_size}; {epochs} epochs =
  {steps} steps; seeds {seed_range}.
* **Equal steps**: the model after that many steps. **Train loss**: of {loss_samples} fixed training samples.
* **Equal time**: the model at the last step that ended within {budget} of training steps ({rule}).
  Measuring is not counted. A faster row trains on, a slower one is cut off.
* **Gradient error, cosine**: ‖g − g*‖ / ‖g*‖ and the cosine of g and g*, the gradients of the loss in the
  layer's parameters on {gradient_samples} training samples, at the parameters that `{reference}` reached
  after the budget of steps. g* is an independent float64 active-set gradient at the exact critical point.
* **Solver iter.**: mean over samples and training steps; **conv.**: share of these solves that converged.
* **Time per step**: median of forward, backward and update. **Memory**: bytes held between forward and
  backward for a batch of {batch_size}, distinct storages, parameters not counted.
"""

_TORCHDEQ = (
    f"* **implicit-torchdeq**: torchdeq's Anderson method on the same dual map, with torchdeq's own settings "
    f"(at most {TORCHDEQ_MAX_ITER} iterations unless asked for more) and without this library's exact solve."
)


def to_json(comparison: Comparison) -> str:
    """Everything: settings, environment, and per row the values of each seed, mean, spread and curves."""
    rows = []
    for row in comparison.rows:
        columns = {}
        for column in comparison.shown_columns():
            found = row.columns[column.key]
            columns[column.key] = {
                "unit": column.unit,
                "mean": row.mean(column.key),
                "spread": row.spread(column.key),
                "values": None if found is None else found.values,
            }
        curves = [[asdict(point) for point in curve] for curve in row.curves]
        rows.append({"name": row.name, "family": row.family, "depth": row.depth, "columns": columns, "curves": curves})
    document = {
        "format": FORMAT_VERSION,
        "settings": comparison.settings,
        "environment": comparison.environment,
        "facts": comparison.facts,
        "reference": comparison.reference,
        "rows": rows,
    }
    return json.dumps(finite(document), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def to_csv(comparison: Comparison) -> str:
    """One line per row: mean and spread of every column, in the units of the JSON file, at full precision."""
    columns = comparison.shown_columns()
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["name", "family", "depth", *(f"{c.key}_{part}" for c in columns for part in ("mean", "spread"))])
    for row in comparison.rows:
        numbers = [number for c in columns for number in (row.mean(c.key), row.spread(c.key))]
        cells = ["" if number is None else repr(number) for number in numbers]
        writer.writerow([row.name, row.family, "" if row.depth is None else row.depth, *cells])
    return target.getvalue()


def cell(row: Row, column: Column, sign: str = " ± ") -> str:
    """A number for people: mean ± spread in the table's unit, "–" where there is none."""
    mean, spread = row.mean(column.key), row.spread(column.key)
    if mean is None:
        return "–"
    shown = format(mean * column.factor, column.digits)
    if spread is None or not column.spread:
        return shown
    return f"{shown}{sign}{format(spread * column.factor, column.spread)}"


def to_tables(comparison: Comparison) -> list[Table]:
    """The tables for the terminal, 80 characters wide: what was learned, and what it cost."""
    tables = []
    for columns, heading in zip(_parts(comparison), (title(comparison), ""), strict=True):
        table = Table(title=Text(heading), header_style="bold", box=SIMPLE_HEAD, padding=0)
        table.add_column("row", no_wrap=True)
        cells = [[cell(row, column, "±") for column in columns] for row in comparison.rows]
        for column, below in zip(columns, zip(*cells, strict=True), strict=True):
            # A narrow terminal breaks the headings, never the numbers.
            least = max(map(len, [*below, *column.title.split()]))
            table.add_column(Text(column.title), justify="right", min_width=least)
        for row, texts in zip(comparison.rows, cells, strict=True):
            table.add_row(row.name, *texts, style="bold" if row.name == comparison.reference else None)
        tables.append(table)
    return tables


def title(comparison: Comparison) -> str:
    """What was compared, in one line."""
    settings, facts = comparison.settings, comparison.facts
    return (
        f"{settings['dataset']}: {settings['geometry']}, width {settings['width']}, "
        f"γ = {settings['regularization']:g}, {settings['weight']} W; "
        f"{settings['epochs']} epochs = {facts['steps']} steps or {_seconds(facts)}; "
        f"mean ± standard deviation of {settings['seeds']} seed(s)"
    )


def to_markdown(comparison: Comparison, figures: dict[str, str]) -> str:
    """The report.

    Args:
        comparison: The results.
        figures: File names of the plots and their captions.
    """
    facts, environment = comparison.facts, comparison.environment
    families = [f for f in FAMILIES if any(row.family == f for row in comparison.rows)]
    lines = [
        "# Implicit versus unrolled",
        "",
        *findings(comparison.rows, comparison.reference),
        "",
        f"{title(comparison)}.",
        "",
        *(line for columns in _parts(comparison) for line in [*_markdown_table(comparison, columns), ""]),
        "## What was done",
        "",
        *_METHOD.format(
            **comparison.settings | facts | {"note": f" {facts['note']}." if facts.get("note") else ""},
            reference=comparison.reference,
            budget=_seconds(facts),
            rule=_budget_rule(comparison),
            seed_range=_seed_range(comparison.settings),
        ).splitlines(),
        *(f"* **{family}**: {FAMILIES[family]}." for family in families),
        *([_TORCHDEQ] if any(row.name == "implicit-torchdeq" for row in comparison.rows) else []),
        "",
        *(line for name, caption in figures.items() for line in (f"![{caption}]({name})", "", f"*{caption}.*", "")),
        "## Environment",
        "",
        *(f"* {key}: {value}" for key, value in environment.items()),
        "",
        "The values of each seed and the training curves are in `results.json`, the table in `results.csv`.",
        "",
    ]
    return "\n".join(lines)


def _markdown_table(comparison: Comparison, columns: Sequence[Column]) -> list[str]:
    return [
        f"| row | {' | '.join(column.title for column in columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
        *(f"| {row.name} | {' | '.join(cell(row, c) for c in columns)} |" for row in comparison.rows),
    ]


def _parts(comparison: Comparison) -> list[list[Column]]:
    """The columns in two tables that fit a page: what was learned, and what it cost."""
    shown = comparison.shown_columns()
    return [[c for c in shown if c.outcome], [c for c in shown if not c.outcome]]


def _seconds(facts: dict[str, Any]) -> str:
    return f"{facts['seconds_mean']:.3g} s"


def _seed_range(settings: dict[str, Any]) -> str:
    first, count = settings["seed"], settings["seeds"]
    return f"{first}" if count == 1 else f"{first} … {first + count - 1}"


def _budget_rule(comparison: Comparison) -> str:
    if comparison.settings["seconds"] is not None:
        return "as asked for"
    return f"the mean over the seeds of what `{comparison.reference}` took for its steps"
