"""The commands `implicit-bregman study …`; the options of each are in its own module."""

from __future__ import annotations

from collections.abc import Callable

import typer

from implicit_bregman.experiments.study.depth.command import depth
from implicit_bregman.experiments.study.geometry.command import geometry
from implicit_bregman.experiments.study.graphs.command import graphs
from implicit_bregman.experiments.study.hypergradient.command import hypergradient
from implicit_bregman.experiments.study.images.command import images
from implicit_bregman.experiments.study.imaging.command import imaging
from implicit_bregman.experiments.study.infimum.command import infimum

STUDIES: tuple[Callable[..., None], ...] = (depth, infimum, hypergradient, geometry, images, graphs, imaging)


def make_app() -> typer.Typer:
    """The commands below `study`."""
    app = typer.Typer(help="Implicit against unrolled, seven studies, each by one command that can be interrupted.")
    for study in STUDIES:
        app.command()(study)
    return app
