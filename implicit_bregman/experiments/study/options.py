"""What the options of the studies share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from implicit_bregman.experiments.grid.command import GridCommand

# Options that change a result, of all studies.
RESULT_OPTIONS = (
    "datasets",
    "depths",
    "geometries",
    "methods",
    "blurs",
    "peaks",
    "geometry",
    "size",
    "seconds",
    "families",
    "splits",
    "width",
    "regularization",
    "quick",
    "seed",
    "seeds",
    "epochs",
    "train_size",
    "data_dir",
)
STUDY = GridCommand("study", RESULT_OPTIONS)

Out = Annotated[Path | None, typer.Option(help="Folder for the results; default: study-results/NAME.")]
Seeds = Annotated[int | None, typer.Option(help="Number of seeds; default: 5, of infimum 3, with --quick fewer.")]
Depths = Annotated[str | None, typer.Option(help="Numbers of unrolled steps L, separated by commas.")]
