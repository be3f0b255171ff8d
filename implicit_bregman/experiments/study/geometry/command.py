"""The command `implicit-bregman study geometry`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from implicit_bregman.experiments.grid.command import BackendName, Jobs, Quick, Scheduler, Seed, given, names
from implicit_bregman.experiments.study.options import STUDY, Out, Seeds


def geometry(
    geometries: Annotated[
        str | None, typer.Option(help="Geometries to train with, separated by commas; default: all.")
    ] = None,
    quick: Quick = False,
    seed: Seed = 0,
    seeds: Seeds = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs; default: 5, with --quick 2.")] = None,
    train_size: Annotated[int | None, typer.Option(help="Use only so many training samples.")] = None,
    backend: BackendName = "local",
    scheduler: Scheduler = None,
    jobs: Jobs = None,
    out: Out = None,
) -> None:
    """The same task in every geometry, and several geometries on one box: where does φ matter beyond its domain?"""
    options = dict(locals())
    from implicit_bregman.experiments.study.geometry.report import study_geometry
    from implicit_bregman.experiments.study.geometry.settings import GeometrySettings

    settings = GeometrySettings.quick(seed) if quick else GeometrySettings(seed=seed)
    changes = given(geometries=names(geometries), seeds=seeds, epochs=epochs, train_size=train_size)
    settings = replace(settings, **changes)
    STUDY.run("geometry", study_geometry, settings, options)
