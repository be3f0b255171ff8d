"""The command `benchmark`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from implicit_bregman.experiments.output.files import writable_folder
from implicit_bregman.experiments.output.terminal import progress_bar, show


def benchmark(
    quick: Annotated[bool, typer.Option("--quick", help="A subset, in less than five minutes on two cores.")] = False,
    cells: Annotated[
        str | None,
        typer.Option(help="Cells, separated by commas, see --list; 'mondeq*' is several; default: all, or of --quick."),
    ] = None,
    list_cells: Annotated[bool, typer.Option("--list", help="List the cells and stop.")] = False,
    cap: Annotated[float | None, typer.Option(help="Seconds per cell; default: 48, with --quick 15.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of every contender; default: all cores.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Timed repeats; default: 15, with --quick 7.")] = None,
    accuracy: Annotated[str, typer.Option(help="Relative errors to be reached, separated by commas.")] = "1e-3,1e-6",
    scaling: Annotated[bool, typer.Option(help="Time and memory against d, B, condition and iterations.")] = True,
    others: Annotated[bool, typer.Option(help="Feed-forward layers, and the share of samples on MM's limit.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the problems.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("benchmark-results"),
) -> None:
    """Time to accuracy, side by side with torchdeq, monDEQ, plain loops in PyTorch, ProxQP, OSQP and bregmanet."""
    from implicit_bregman.experiments.benchmark.cells import QUICK, catalogue
    from implicit_bregman.experiments.benchmark.figures import benchmark_figures
    from implicit_bregman.experiments.benchmark.report import benchmark_report
    from implicit_bregman.experiments.benchmark.run import run_benchmark
    from implicit_bregman.experiments.benchmark.settings import BenchmarkSettings, parse_accuracies

    if list_cells:
        for cell in catalogue():
            show(f"{cell.name}{' (quick)' if cell.name in QUICK else ''}: {cell.text}")
        return
    settings = BenchmarkSettings(
        cells=None if cells is None else tuple(name.strip() for name in cells.split(",")),
        quick=quick,
        cap=cap,
        threads=threads,
        repeats=repeats,
        accuracies=parse_accuracies(accuracy),
        scaling=scaling,
        others=others,
        seed=seed,
    )
    folder = writable_folder(out)
    with progress_bar() as progress:
        result = run_benchmark(settings, progress)
    benchmark_report(result, benchmark_figures(result)).deliver(folder)
