"""The command `implicit-bregman study graphs`."""

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
    given,
    names,
    numbers,
)
from implicit_bregman.experiments.study.options import STUDY, Depths, Out


def graphs(
    datasets: Annotated[str | None, typer.Option(help="Graphs, separated by commas; default: cora,citeseer.")] = None,
    depths: Depths = None,
    splits: Annotated[int | None, typer.Option(help="Number of splits; default: all ten.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Most steps of a training, each on all nodes.")] = None,
    data_dir: DataDir = None,
    quick: Quick = False,
    backend: BackendName = "local",
    scheduler: Scheduler = None,
    jobs: Jobs = None,
    out: Out = None,
) -> None:
    """Nodes of citation graphs: the implicit layer, its unrolled twins and graph convolutions, on ten splits."""
    options = dict(locals())
    from implicit_bregman.experiments.study.graphs.report import study_graphs
    from implicit_bregman.experiments.study.graphs.settings import GraphSettings

    settings = GraphSettings.quick() if quick else GraphSettings()
    changes = given(datasets=names(datasets), depths=numbers("depths", depths), splits=splits, epochs=epochs)
    STUDY.run(
        "graphs", lambda chosen, grid: study_graphs(chosen, grid, data_dir), replace(settings, **changes), options
    )
