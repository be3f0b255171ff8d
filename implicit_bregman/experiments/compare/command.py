"""The command `compare`: its options."""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from implicit_bregman.experiments.compare.settings import CompareSettings
from implicit_bregman.experiments.output.files import writable_folder
from implicit_bregman.experiments.output.terminal import progress_bar, warn

DEFAULTS = CompareSettings()


def compare(
    dataset: Annotated[str, typer.Option(help="digits, spirals, mnist, fashion or cifar10.")] = DEFAULTS.dataset,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the files of mnist, fashion and cifar10.")
    ] = DEFAULTS.data_dir,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch them into --data-dir from OpenML.")
    ] = DEFAULTS.download,
    train_size: Annotated[int | None, typer.Option(help="Use only so many training samples.")] = DEFAULTS.train_size,
    rows: Annotated[
        str | None,
        typer.Option(help="Rows, separated by commas, for example implicit,one-step,unrolled-10,truncated-5-of-50."),
    ] = None,
    geometry: Annotated[str, typer.Option(help="Name of the geometry.")] = DEFAULTS.geometry,
    regularization: Annotated[
        float, typer.Option(help="γ, the weight of φ in the objective.")
    ] = DEFAULTS.regularization,
    weight: Annotated[str, typer.Option(help="Kind of W: convex, symmetric, monotone or general.")] = DEFAULTS.weight,
    width: Annotated[int, typer.Option(help="Width of the representation.")] = DEFAULTS.width,
    epochs: Annotated[int, typer.Option(help="Budget of steps, in epochs.")] = DEFAULTS.epochs,
    seconds: Annotated[
        float | None,
        typer.Option(help="Budget of time, seconds of training; default: what the first implicit row takes."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples per training step.")] = DEFAULTS.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Adam's learning rate.")] = DEFAULTS.learning_rate,
    tol: Annotated[
        float | None, typer.Option(help="Tolerance of the solvers that a row names; default: theirs.")
    ] = DEFAULTS.tol,
    max_iter: Annotated[
        int | None, typer.Option(help="Largest number of iterations of these solvers; default: theirs.")
    ] = DEFAULTS.max_iter,
    threads: Annotated[int, typer.Option(help="CPU threads; one is fastest for small layers.")] = DEFAULTS.threads,
    seed: Annotated[int, typer.Option(help="First seed.")] = DEFAULTS.seed,
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = DEFAULTS.seeds,
    device: Annotated[str, typer.Option(help="PyTorch device, for example cpu or cuda.")] = DEFAULTS.device,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("compare-results"),
) -> None:
    """Train one model per way of differentiating it: accuracy, gradient error, time and memory."""
    from implicit_bregman.experiments.compare.figures import comparison_figures
    from implicit_bregman.experiments.compare.report import comparison_report
    from implicit_bregman.experiments.compare.run import check, run_comparison

    names = DEFAULTS.rows if rows is None else tuple(name.strip() for name in rows.split(","))
    given = {**locals(), "rows": names}
    settings = CompareSettings(**{item.name: given[item.name] for item in fields(CompareSettings)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        data = check(settings)
    for warning in caught:
        warn(warning.message)
    folder = writable_folder(out)
    with progress_bar() as progress:
        comparison = run_comparison(settings, data, progress)
    comparison_report(comparison, comparison_figures(comparison)).deliver(folder)
