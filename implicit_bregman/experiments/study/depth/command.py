"""The command `implicit-bregman study depth`: its options."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from implicit_bregman.experiments.study.depth.settings import DepthSettings


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
    settings = adapted(settings, options, regularization=regularization)
    STUDY.run("depth", lambda chosen, grid: study_depth(chosen, grid, data_dir), settings, options)


def adapted(settings: DepthSettings, options: dict[str, Any], **layer: Any) -> DepthSettings:
    """The settings with what the command line gave.

    Args:
        settings: The defaults.
        options: "datasets", "depths", "epochs", "train_size" and "seeds"; None: as in the defaults.
        layer: The same of the layer.
    """
    plain = {name: options[name] for name in ("epochs", "train_size", "seeds")}
    lists = {"datasets": names(options["datasets"]), "depths": numbers("depths", options["depths"])}
    changed = replace(settings, **given(**plain, **lists))
    return changed.with_layer(**kept) if (kept := given(**layer)) else changed
