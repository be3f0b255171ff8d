"""The command `implicit-bregman study depth`: its options."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from implicit_bregman.experiments.grid.command import (
    BackendName,
    DataDir,
    Jobs,
    Quick,
    Scheduler,
    Seed,
    given,
    names,
    numbers,
)
from implicit_bregman.experiments.study.options import STUDY, Depths, Out, Seeds


def depth(
    datasets: Annotated[
        str | None, typer.Option(help="Data sets, separated by commas; default: digits,spirals,mnist,fashion.")
    ] = None,
    depths: Depths = None,
    regularization: Annotated[float | None, typer.Option(help="γ, the weight of φ in the objective.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs; default: those of each data set.")] = None,
    train_size: Annotated[int | None, typer.Option(help="Use only so many training samples.")] = None,
    data_dir: DataDir = None,
    quick: Quick = False,
    seed: Seed = 0,
    seeds: Seeds = None,
    backend: BackendName = "local",
    scheduler: Scheduler = None,
    jobs: Jobs = None,
    out: Out = None,
) -> None:
    """One model, trained implicitly and through L unrolled steps: accuracy, gradient error, time, memory."""
    options = dict(locals())
    from implicit_bregman.experiments.study.depth.report import study_depth
    from implicit_bregman.experiments.study.depth.settings import DepthSettings

    settings = DepthSettings.quick(seed) if quick else DepthSettings(seed=seed)
    changes = given(
        datasets=names(datasets),
        depths=numbers("depths", depths),
        epochs=epochs,
        train_size=train_size,
        seeds=seeds,
    )
    settings = replace(settings, **changes)
    if regularization is not None:
        settings = settings.with_layer(regularization=regularization)
    STUDY.run("depth", lambda chosen, grid: study_depth(chosen, grid, data_dir), settings, options)
