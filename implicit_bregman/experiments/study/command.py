"""The commands `implicit-bregman study …`; the options of each are in its own module."""

from __future__ import annotations

from collections.abc import Callable

import typer

from implicit_bregman.experiments.study.geometry_command import geometry

STUDIES: tuple[Callable[..., None], ...] = (geometry,)


def make_app() -> typer.Typer:
    """The commands below `study`."""
    app = typer.Typer(help="Implicit against unrolled, four studies, each by one command that can be interrupted.")
    for study in STUDIES:
        app.command()(study)
    return app
