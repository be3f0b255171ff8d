"""The report of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from implicit_bregman.experiments.compare.findings import findings
from implicit_bregman.experiments.compare.results import Column, Comparison, Row
from implicit_bregman.experiments.learning.methods import TORCHDEQ_MAX_ITER
from implicit_bregman.experiments.output.blocks import Block, Heading, Table, Text, bullets, figures_of
from implicit_bregman.experiments.output.report import Provenance, Report

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
    f"**implicit-torchdeq**: torchdeq's Anderson method on the same dual map, with torchdeq's own settings "
    f"(at most {TORCHDEQ_MAX_ITER} iterations unless asked for more) and without this library's exact solve."
)


def comparison_report(comparison: Comparison, figures: Mapping[str, tuple[bytes, str]] | None = None) -> Report:
    """The report.

    Args:
        comparison: The results.
        figures: File name → PNG file and caption; None: no figures.
    """
    learned, cost = _parts(comparison)
    seen = " ".join(findings(comparison.rows, comparison.reference))
    blocks: list[Block] = [Text(seen), Text(f"{title(comparison)}.")]
    blocks += [_table(comparison, columns, " ± ") for columns in (learned, cost)]
    blocks += [Heading("What was done"), _method(comparison), *figures_of(figures or {})]
    columns = [f"{column.key}_{part}" for column in (*learned, *cost) for part in ("mean", "spread")]
    return Report(
        title="Implicit versus unrolled",
        provenance=Provenance(comparison.settings, environment=comparison.environment),
        body=tuple(blocks),
        # The terminal's tables are 80 characters wide.
        shown=(_table(comparison, learned, "±", title(comparison)), _table(comparison, cost, "±")),
        columns=("name", "family", "depth", *columns),
        rows=[_line(row, comparison) for row in comparison.rows],
        document={
            "facts": comparison.facts,
            "reference": comparison.reference,
            "rows": [_entry(row, comparison) for row in comparison.rows],
        },
        closing="The values of each seed and the training curves are in `results.json`, the table in `results.csv`.",
    )


def _entry(row: Row, comparison: Comparison) -> dict[str, object]:
    """A row of results.json: the values of each seed, mean, spread and curves."""
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
    return {"name": row.name, "family": row.family, "depth": row.depth, "columns": columns, "curves": curves}


def _line(row: Row, comparison: Comparison) -> dict[str, object]:
    """A row of results.csv: mean and spread of every column, in the units of results.json."""
    line: dict[str, object] = {"name": row.name, "family": row.family, "depth": row.depth}
    for column in comparison.shown_columns():
        line |= {f"{column.key}_mean": row.mean(column.key), f"{column.key}_spread": row.spread(column.key)}
    return line


def cell(row: Row, column: Column, sign: str = " ± ") -> str:
    """A number for people: mean ± spread in the table's unit, "–" where there is none."""
    mean, spread = row.mean(column.key), row.spread(column.key)
    if mean is None:
        return "–"
    shown = format(mean * column.factor, column.digits)
    if spread is None or not column.spread:
        return shown
    return f"{shown}{sign}{format(spread * column.factor, column.spread)}"


def _table(comparison: Comparison, columns: list[Column], sign: str, heading: str = "") -> Table:
    rows = tuple((row.name, *(cell(row, column, sign) for column in columns)) for row in comparison.rows)
    reference = next(place for place, row in enumerate(comparison.rows) if row.name == comparison.reference)
    headings = ("row", *(column.title for column in columns))
    return Table(heading, headings, rows, {reference: "bold"}, unbroken=True)


def title(comparison: Comparison) -> str:
    """What was compared, in one line."""
    settings, facts = comparison.settings, comparison.facts
    return (
        f"{settings['dataset']}: {settings['geometry']}, width {settings['width']}, "
        f"γ = {settings['regularization']:g}, {settings['weight']} W; "
        f"{settings['epochs']} epochs = {facts['steps']} steps or {_seconds(facts)}; "
        f"mean ± standard deviation of {settings['seeds']} seed(s)"
    )


def _method(comparison: Comparison) -> Text:
    """What was done, in bullets."""
    facts = comparison.facts
    families = [f for f in FAMILIES if any(row.family == f for row in comparison.rows)]
    method = _METHOD.format(
        **comparison.settings | facts | {"note": f" {facts['note']}." if facts.get("note") else ""},
        reference=comparison.reference,
        budget=_seconds(facts),
        rule=_budget_rule(comparison),
        seed_range=_seed_range(comparison.settings),
    )
    others = [f"**{family}**: {FAMILIES[family]}." for family in families]
    if any(row.name == "implicit-torchdeq" for row in comparison.rows):
        others.append(_TORCHDEQ)
    return Text(method + bullets(others).text)


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
