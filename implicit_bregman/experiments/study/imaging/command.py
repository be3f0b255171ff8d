"""The command `implicit-bregman study imaging`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from implicit_bregman.experiments.grid.command import BackendName, Jobs, Quick, Scheduler, given, names, numbers
from implicit_bregman.experiments.study.options import STUDY, Out, Seeds


def imaging(
    methods: Annotated[
        str | None,
        typer.Option(help="implicit, one-step, phantom, unrolled-L or truncated-K-of-L, separated by commas."),
    ] = None,
    blurs: Annotated[str | None, typer.Option(help="gaussian, uniform, motion, separated by commas.")] = None,
    peaks: Annotated[str | None, typer.Option(help="Photons of a white pixel, separated by commas.")] = None,
    geometry: Annotated[str | None, typer.Option(help="double_burg (pictures in 0 … 1) or burg.")] = None,
    regularization: Annotated[float | None, typer.Option(help="γ, the weight of φ in the objective.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the pictures that are judged, in pixels.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Processor time of each training.")] = None,
    seeds: Seeds = None,
    quick: Quick = False,
    backend: BackendName = "local",
    scheduler: Scheduler = None,
    jobs: Jobs = None,
    out: Out = None,
) -> None:
    """Deblurring of photographs under Poisson noise: a regularizer learned by the exact gradient and by others."""
    options = dict(locals())
    from implicit_bregman.experiments.study.imaging.report import study_imaging
    from implicit_bregman.experiments.study.imaging.settings import ImagingSettings

    settings = ImagingSettings.quick() if quick else ImagingSettings()
    photons = numbers("peaks", peaks)
    problem = given(
        blurs=names(blurs),
        peaks=None if photons is None else tuple(map(float, photons)),
        geometry=geometry,
        regularization=regularization,
        size=size,
    )
    changes = given(methods=names(methods), seconds=seconds, seeds=seeds)
    settings = replace(settings, problem=replace(settings.problem, **problem), **changes)
    STUDY.run("imaging", study_imaging, settings, options)
