"""The report of a convergence run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from implicit_bregman.experiments.convergence.run import UNROLLED, Convergence
from implicit_bregman.experiments.output.blocks import Table, figures_of
from implicit_bregman.experiments.output.report import Files, Provenance, Report

COLUMNS = ("solver", "iteration", "residual", "objective_gap", "gradient_error")


def convergence_report(result: Convergence, figures: Mapping[str, tuple[bytes, str]] | None = None) -> Report:
    """The report.

    Args:
        result: The curves.
        figures: File name → PNG file and caption; None: no figure.
    """
    table = _ends(result)
    name = str(result.problem["name"])
    return Report(
        title=name,
        provenance=Provenance(asdict(result.settings)),
        body=(table, *figures_of(figures or {})),
        shown=(table,),
        columns=COLUMNS,
        rows=list(_lines(result)),
        document={"problem": result.problem, "solvers": [asdict(curves) for curves in result.solvers]},
        files=Files("convergence.json", "convergence.csv", None),
    )


def _ends(result: Convergence) -> Table:
    """The ends of the curves."""
    rows = tuple(
        (
            curves.name,
            f"{curves.iterations:.1f}",
            f"{curves.evaluations:.1f}",
            f"{100 * curves.converged:.1f}",
            *(f"{curve[-1][1]:.1e}" if curve else "–" for curve in (curves.residual, curves.gradient_error)),
        )
        for curves in result.solvers
        if curves.name != UNROLLED
    )
    headings = ("solver", "iterations", "evaluations", "converged [%]", "residual", "gradient error")
    return Table(str(result.problem["name"]), headings, rows)


def _lines(result: Convergence) -> Iterator[dict[str, object]]:
    """One line per solver and iteration, without the quantities that were not computed there."""
    for curves in result.solvers:
        found = [dict(curve) for curve in (curves.residual, curves.objective, curves.gradient_error)]
        for iteration in sorted(set().union(*found)):
            numbers = [column.get(iteration) for column in found]
            yield dict(zip(COLUMNS, (curves.name, iteration, *numbers), strict=True))
