"""The command `convergence`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from implicit_bregman.experiments.output.files import writable_folder
from implicit_bregman.experiments.output.terminal import progress_bar, show


def convergence(
    problem: Annotated[str | None, typer.Option(help="Name of the problem, see --list.")] = None,
    list_problems: Annotated[bool, typer.Option("--list", help="List the problems and stop.")] = False,
    solvers: Annotated[str | None, typer.Option(help="Solvers, separated by commas; default: all.")] = None,
    tol: Annotated[float, typer.Option(help="Tolerance of the relative residual.")] = 1e-11,
    max_iter: Annotated[int, typer.Option(help="Largest number of iterations.")] = 1000,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("convergence-results"),
) -> None:
    """Follow residual, objective and gradient error of every solver, iteration by iteration, in float64."""
    from implicit_bregman.experiments.convergence.figures import convergence_figures
    from implicit_bregman.experiments.convergence.report import convergence_report
    from implicit_bregman.experiments.convergence.run import run_convergence
    from implicit_bregman.experiments.convergence.settings import (
        DEFAULT_PROBLEM,
        ConvergenceSettings,
        default_solvers,
        find_problem,
    )
    from implicit_bregman.experiments.reference.problems import collection

    if list_problems:
        show("\n".join(item.name for item in collection()))
        return
    names = default_solvers() if solvers is None else tuple(name.strip() for name in solvers.split(","))
    settings = ConvergenceSettings(problem or DEFAULT_PROBLEM, names, tol, max_iter)
    chosen = find_problem(settings.problem)
    folder = writable_folder(out)
    with progress_bar() as progress:
        result = run_convergence(settings, chosen, progress)
    convergence_report(result, convergence_figures(result)).deliver(folder)
