"""The command `implicit-bregman study images`."""

from __future__ import annotations

from typing import Annotated

import typer

from implicit_bregman.experiments.grid.command import (
    BackendName,
    DataDir,
    Jobs,
    Quick,
    Scheduler,
    Seed,
)
from implicit_bregman.experiments.study.depth.command import adapted
from implicit_bregman.experiments.study.options import STUDY, Depths, Out, Seeds


def images(
    datasets: Annotated[
        str | None, typer.Option(help="Data sets, separated by commas; default: mnist,cifar10.")
    ] = None,
    depths: Depths = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs.")] = None,
    train_size: Annotated[int | None, typer.Option(help="Number of training samples.")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the representation.")] = None,
    data_dir: DataDir = None,
    quick: Quick = False,
    seed: Seed = 0,
    seeds: Seeds = None,
    backend: BackendName = "local",
    scheduler: Scheduler = None,
    jobs: Jobs = None,
    out: Out = None,
) -> None:
    """A convolutional layer, trained implicitly and through L unrolled steps, as in `study depth`."""
    options = dict(locals())
    from implicit_bregman.experiments.study.depth.report import study_depth
    from implicit_bregman.experiments.study.depth.settings import DepthSettings

    settings = DepthSettings.quick_images(seed) if quick else DepthSettings.images(seed)
    settings = adapted(settings, options, width=width)
    STUDY.run("images", lambda chosen, grid: study_depth(chosen, grid, data_dir, "images"), settings, options)
