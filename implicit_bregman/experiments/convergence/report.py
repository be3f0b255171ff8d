"""A convergence run as a terminal table, JSON and CSV. All three show the same numbers."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict

from rich.table import Table

from implicit_bregman.experiments.convergence.run import UNROLLED, Convergence
from implicit_bregman.experiments.output.statistics import finite


def to_table(result: Convergence) -> Table:
    """The ends of the curves, for the terminal."""
    table = Table(title=str(result.problem["name"]), header_style="bold")
    for title in ("solver", "iterations", "evaluations", "converged [%]", "residual", "gradient error"):
        table.add_column(title, justify="left" if title == "solver" else "right")
    for curves in result.solvers:
        if curves.name == UNROLLED:
            continue
        table.add_row(
            curves.name,
            f"{curves.iterations:.1f}",
            f"{curves.evaluations:.1f}",
            f"{100 * curves.converged:.1f}",
            *(f"{curve[-1][1]:.1e}" if curve else "–" for curve in (curves.residual, curves.gradient_error)),
        )
    return table


def to_json(result: Convergence) -> str:
    """Settings, problem and curves."""
    document = {
        "format": 1,
        "settings": asdict(result.settings),
        "problem": result.problem,
        "solvers": [finite(asdict(curves)) for curves in result.solvers],
    }
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def to_csv(result: Convergence) -> str:
    """One line per solver and iteration; an empty cell where a quantity was not computed."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["solver", "iteration", "residual", "objective_gap", "gradient_error"])
    for curves in result.solvers:
        columns = [dict(curve) for curve in (curves.residual, curves.objective, curves.gradient_error)]
        for iteration in sorted(set().union(*columns)):
            cells = [repr(column[iteration]) if iteration in column else "" for column in columns]
            writer.writerow([curves.name, iteration, *cells])
    return target.getvalue()
