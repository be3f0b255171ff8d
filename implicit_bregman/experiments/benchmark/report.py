"""The report of a benchmark: every table names the command that made it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from implicit_bregman.experiments.benchmark.cells import FACTS
from implicit_bregman.experiments.benchmark.peers.contenders import BOTH, FORWARD, OURS
from implicit_bregman.experiments.benchmark.peers.convolution import OWN
from implicit_bregman.experiments.benchmark.peers.mondeq import PREFIX as MONDEQ
from implicit_bregman.experiments.benchmark.peers.osqp import NAME as OSQP
from implicit_bregman.experiments.benchmark.peers.proxqp import NAME as PROXQP
from implicit_bregman.experiments.benchmark.peers.splitting import NAME as SPLITTING
from implicit_bregman.experiments.benchmark.results import (
    FORMAT_VERSION,
    TORCHDEQ,
    Benchmark,
    CellResult,
    Entry,
    contender_order,
)
from implicit_bregman.experiments.benchmark.targets import MISSED, Target, targets
from implicit_bregman.experiments.output.blocks import Block, Heading, Table, Text, bullets, figures_of
from implicit_bregman.experiments.output.report import Provenance, Report

Rows = list[list[str]]

NOTHING = "–"
_PROVENANCE = ("command", "settings", "environment")
NOT_REACHED = "not reached"
SETTINGS = "The settings that won"
_CSV = (
    "cell",
    *FACTS,
    "contender",
    "task",
    "accuracy",
    "reached",
    "median_seconds",
    "first_quartile_seconds",
    "third_quartile_seconds",
    "repeats",
    "operator_calls",
    "synchronisations",
    "value_error",
    "gradient_error",
    "settings",
)

_METHOD = """\
* **Time to accuracy**: median seconds, first and third quartile in brackets, of a run that ends with a relative
  error ‖z − z\\*‖ / ‖z\\*‖ *and*, where there is a backward pass, ‖dL/dθ − (dL/dθ)\\*‖ / ‖(dL/dθ)\\*‖ of at most the
  level, for L = ⟨G, z⟩ with a fixed random G. θ is W; in `conv-*` and `field-*` it is x and every parameter of the
  layer, and the largest of their errors counts. z\\* and (dL/dθ)\\* are float64 solutions of the same rounded data,
  found without this library's solvers. What does not get there is listed apart.
* **Side by side**: one process, {threads} thread(s) each, repeats interleaved (A B C A B C …), up to {repeats} of them,
  the garbage collector off. At most {cap:g} s per cell, sweeps included.
* **implicit-bregman**: the defaults, from the raw tensors W and c, or x and the layer's parameters: spectrum and
  factorizations are inside the time. *Tuned*: the loosest tolerance that still reaches the level.
* **torchdeq**: its Anderson, Broyden and fixed-point solvers and its implicit backward pass, on the dual map of MM and
  on z clamped ε away from the bounds; regularization, memory, ε and the iterations of both passes are swept, the
  cheapest that reach the level are timed, the best counts. The step τ is given to it free of charge, and it makes no
  iteration more than it needs. Where φ has no strong convexity (exp), that τ comes from the true solution. A
  convolutional layer is z = Π(z − τ(Hz − c)) for it, or for γ > 0 z = ρ((c − Hz)/γ) and MM's step, with H by `conv2d`;
  a field is z = N(z, x).
* **unrolled**: MM steps in plain PyTorch, differentiated by autograd, the least number L that reaches the level.
* **Peaceman–Rachford**: the plain loop of this splitting in PyTorch, one resolvent (I + αH)⁻¹ for the batch, no test on
  the way, the adjoint equation by the same iteration; where γ > 0 the prox by one or three Newton steps from the last
  dual, or to rounding. α and the iterations of both passes are swept, the least that reach the level are timed. The
  inverse is inside the time; the search for α is not. For a convolutional layer it is one c × c inverse per frequency
  of the image with a border, as in monDEQ's code.
* **monDEQ**: its layer written from the paper, where z ≥ 0 and γ = 0: Peaceman–Rachford and forward–backward splitting,
  its stop on the change of the whole batch, one application of the layer with a graph, its adjoint iteration with the
  same α and tolerance; α halved from 1 for as long as that takes no more iterations, the loosest tolerance that reaches
  the level.
* **own energy**: the same convolutional layer as a user's `Energy` with `value` alone, where H is symmetric; the
  loosest tolerance that reaches the level.
* **ProxQP**: forward only, γ = 0 and convex; its parallel batch, set-up included, its box constraints or rows of a
  constraint matrix, the loosest eps_abs that reaches the level.
* **OSQP**: the same where there is one problem, with and without its polishing.
* **Calls**: operators that reach PyTorch's dispatcher in one run, views and the backward pass included, and how many of
  them would make the host wait for a GPU, since a value is read or decides on a shape. They were counted apart from the
  timing, on the CPU; ProxQP and OSQP do not work in PyTorch.
"""


def benchmark_report(benchmark: Benchmark, figures: Mapping[str, tuple[bytes, str]] | None = None) -> Report:
    """The report.

    Args:
        benchmark: The results.
        figures: File name → PNG file and caption; None: no figures.
    """
    made_by = f"`{benchmark.command}`"
    blocks: list[Block] = [Heading("What was done"), Text(_METHOD.format(**benchmark.settings).rstrip("\n"))]
    shown: list[Table] = []
    for title, heading, rows in sections(benchmark):
        table = _table(f"{title}\n{benchmark.command}", heading, rows)
        blocks += [Heading(title), table, Text(f"*{made_by}*")]
        if title != SETTINGS:  # long, and in the report
            shown.append(table)
    blocks += [*figures_of(figures or {}, made_by), Heading("Cells"), bullets(_cells(benchmark))]
    document = {key: value for key, value in asdict(benchmark).items() if key not in _PROVENANCE}
    return Report(
        title="Benchmark",
        provenance=Provenance(benchmark.settings, benchmark.command, benchmark.environment),
        body=tuple(blocks),
        shown=tuple(shown),
        columns=_CSV,
        rows=[_line(cell, entry) for cell in benchmark.cells for entry in cell.entries],
        document=document,
        missing=benchmark.missing,
        closing="All repeats and settings are in `results.json`, one line per contender in `results.csv`.",
        version=FORMAT_VERSION,
    )


def _table(title: str, heading: Sequence[str], rows: Rows) -> Table:
    missed = {place: "red" for place, row in enumerate(rows) if MISSED in row}
    return Table(title, tuple(heading), tuple(map(tuple, rows)), missed, numeric=False)


def _cells(benchmark: Benchmark) -> list[str]:
    told = [f"**{cell.name}**: {cell.text}; {_truth(cell.reference, cell.excluded)}." for cell in benchmark.cells]
    return told + [f"**{name}**: left out, {reason}." for name, reason in benchmark.skipped.items()]


def _line(cell: CellResult, entry: Entry) -> dict[str, object]:
    """A line of results.csv, in seconds."""
    first, third = entry.quartiles
    numbers = {
        "median_seconds": entry.median,
        "first_quartile_seconds": first,
        "third_quartile_seconds": third,
    }
    return {
        "cell": cell.name,
        **{key: cell.facts[key] for key in FACTS},
        "contender": entry.contender,
        "task": entry.task,
        "accuracy": entry.accuracy,
        "reached": entry.reached,
        **{key: number if math.isfinite(number) else None for key, number in numbers.items()},
        "repeats": len(entry.seconds),
        "operator_calls": entry.operator_calls,
        "synchronisations": entry.synchronisations,
        "value_error": entry.value_error,
        "gradient_error": entry.gradient_error,
        "settings": entry.settings,
    }


def sections(benchmark: Benchmark) -> list[tuple[str, list[str], Rows]]:
    """Title, heading and rows of every table that has rows."""
    found = [
        ("Targets", ["target", "goal", "measured", "verdict", "missed by"], _target_rows(targets(benchmark))),
        *(
            (f"Time to {accuracy:.0e}, {task} [ms]", *_time_rows(benchmark, accuracy, task))
            for task in (BOTH, FORWARD)
            for accuracy in benchmark.accuracies
        ),
        *(
            (
                f"Operator calls / host synchronisations, {task} to {accuracy:.0e}",
                *_call_rows(benchmark, accuracy, task),
            )
            for task in (BOTH, FORWARD)
            for accuracy in benchmark.accuracies
        ),
        ("Times of the best peer over those of implicit-bregman's defaults", *_ratio_rows(benchmark)),
        (
            "Not reached",
            ["cell", "contender", "level", "error of z", "error of dL/dθ", "closest settings"],
            _failures(benchmark),
        ),
        (SETTINGS, ["cell", "contender", "task", "level", "settings"], _settings(benchmark)),
        (
            "Feed-forward layers, forward and backward",
            [
                "geometry",
                "network",
                "implicit-bregman [ms]",
                "bregmanet [ms]",
                "ratio",
                "difference",
                "not compared because",
            ],
            _layer_rows(benchmark),
        ),
        ("Samples on MM's own limit", ["problems", "counted", "on the limit", "limit unknown"], _limit_rows(benchmark)),
    ]
    return [(title, heading, rows) for title, heading, rows in found if rows]


def shown(entry: Entry | None) -> str:
    """Median and quartiles in milliseconds."""
    if entry is None:
        return NOTHING
    low, high = entry.quartiles
    return f"{_ms(entry.median)} [{_ms(low)}, {_ms(high)}]"


def _ms(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _error(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1e}"


def _truth(reference: str, excluded: float) -> str:
    left_out = f", {excluded:.0%} of the samples left out: their limit is not known" if excluded else ""
    return f"truth from the {reference}{left_out}"


def _target_rows(found: Sequence[Target]) -> Rows:
    return [[item.name, item.goal, item.measured, item.verdict, item.margin] for item in found]


def _time_rows(benchmark: Benchmark, accuracy: float, task: str) -> tuple[list[str], Rows]:
    names = [
        name
        for name in contender_order(benchmark.cells)
        if any(cell.entry(name, accuracy, task) is not None for cell in benchmark.cells)
    ]
    rows = []
    for cell in benchmark.cells:
        tried = {entry.contender for entry in cell.entries if (entry.task, entry.accuracy) == (task, accuracy)}
        if not tried:
            continue
        texts = []
        for name in names:
            entry = cell.entry(name, accuracy, task)
            texts.append(NOT_REACHED if entry is None and name in tried else shown(entry))
        rows.append([cell.name, *texts])
    return ["cell", *names], rows if names else []


def _call_rows(benchmark: Benchmark, accuracy: float, task: str) -> tuple[list[str], Rows]:
    found = {
        (cell.name, name): f"{entry.operator_calls} / {entry.synchronisations}"
        for cell in benchmark.cells
        for name in contender_order(benchmark.cells)
        if (entry := cell.entry(name, accuracy, task)) is not None and entry.operator_calls is not None
    }
    names = [name for name in contender_order(benchmark.cells) if any(name == known for _, known in found)]
    cells = [cell.name for cell in benchmark.cells if any(cell.name == known for known, _ in found)]
    rows = [[cell, *(found.get((cell, name), NOTHING) for name in names)] for cell in cells]
    return ["cell", *names], rows


def _ratio_rows(benchmark: Benchmark) -> tuple[list[str], Rows]:
    columns: list[tuple[str, str, float, str]] = [
        (f"{peer}, {label}{accuracy:.0e}", peer, accuracy, task)
        for peer, task, label in (
            (TORCHDEQ, BOTH, ""),
            ("unrolled", BOTH, ""),
            (SPLITTING, BOTH, ""),
            (MONDEQ, BOTH, ""),
            (OWN, BOTH, ""),
            (SPLITTING, FORWARD, "forward, "),
            (MONDEQ, FORWARD, "forward, "),
            (PROXQP, FORWARD, ""),
            (OSQP, FORWARD, ""),
        )
        for accuracy in benchmark.accuracies
    ]
    columns = [c for c in columns if any(cell.ratio(*c[1:]) is not None for cell in benchmark.cells)]
    rows = []
    for cell in benchmark.cells:
        ratios = [cell.ratio(*column[1:]) for column in columns]
        rows.append([cell.name, *(NOTHING if ratio is None else f"{ratio:.3g}×" for ratio in ratios)])
    return ["cell", *(column[0] for column in columns)], rows if columns else []


def _failures(benchmark: Benchmark) -> Rows:
    return [
        [
            cell.name,
            entry.contender if entry.task == BOTH else f"{entry.contender} ({entry.task})",
            f"{entry.accuracy:.0e}",
            _error(entry.value_error),
            _error(entry.gradient_error),
            entry.settings,
        ]
        for cell in benchmark.cells
        for entry in cell.entries
        if not entry.reached
    ]


def _settings(benchmark: Benchmark) -> Rows:
    return [
        [cell.name, entry.contender, entry.task, f"{entry.accuracy:.0e}", entry.settings]
        for cell in benchmark.cells
        for entry in cell.entries
        if entry.reached and entry.contender != OURS
    ]


def _layer_rows(benchmark: Benchmark) -> Rows:
    rows = []
    for row in benchmark.feedforward:
        times: list[Any] = [NOTHING] * 3
        if row.reason is None:
            both = [Entry("", BOTH, 1.0, True, "", None, None, seconds) for seconds in (row.ours, row.theirs)]
            times = [*map(shown, both), f"{row.ratio:.3g}×"]
        rows.append([row.geometry, row.text, *times, _error(row.difference), row.reason or ""])
    return rows


def _limit_rows(benchmark: Benchmark) -> Rows:
    return [[row.text, str(row.counted), str(row.found), str(row.excluded)] for row in benchmark.limits]
