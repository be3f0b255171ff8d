"""The command `implicit-bregman study infimum`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from implicit_bregman.experiments.grid.command import BackendName, Jobs, Quick, Scheduler, Seed, given, names, numbers
from implicit_bregman.experiments.study.options import STUDY, Depths, Out, Seeds


def infimum(
    quick: Quick = False,
    seed: Seed = 0,
    seeds: Seeds = None,
    depths: Depths = None,
    families: Annotated[str | None, typer.Option(help="Sets of layers, separated by commas; default: all.")] = None,
    backend: BackendName = "local",
    scheduler: Scheduler = None,
    jobs: Jobs = None,
    out: Out = None,
) -> None:
    """Small problems trained to optimality: inf over L unrolled steps against inf over the implicit layer."""
    options = dict(locals())
    from implicit_bregman.experiments.study.infimum.report import study_infimum
    from implicit_bregman.experiments.study.infimum.settings import InfimumSettings

    settings = InfimumSettings.quick(seed) if quick else InfimumSettings(seed=seed)
    settings = replace(settings, **given(seeds=seeds, depths=numbers("depths", depths), families=names(families)))
    STUDY.run("infimum", study_infimum, settings, options)
