"""The commands `implicit-bregman reproduce …`: their options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from implicit_bregman.experiments.grid.command import (
    BackendName,
    DataDir,
    Device,
    GridCommand,
    Jobs,
    Quick,
    Scheduler,
    Seed,
    given,
    names,
)

RESULT_OPTIONS = ("rows", "quick", "seed", "seeds", "epochs", "deep_epochs", "train_size", "data_dir", "device")

Out = Annotated[Path | None, typer.Option(help="Folder for the results; default: reproduce-results/NAME.")]
Seeds = Annotated[int | None, typer.Option(help="Number of seeds; default: the paper's.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs; default: the paper's where it states them.")]


def make_app() -> typer.Typer:
    """The commands below `reproduce`."""
    command = GridCommand("reproduce", RESULT_OPTIONS)
    app = typer.Typer(help="The paper's figures and its Table 2, each by one command that can be interrupted.")

    def spirals(name: str, options: dict[str, Any], **changes: Any) -> None:
        import importlib

        from implicit_bregman.experiments.reproduce.settings import SpiralSettings

        module = importlib.import_module(f"implicit_bregman.experiments.reproduce.{name}.report")
        seed = options["seed"]
        settings = SpiralSettings.quick(seed) if options["quick"] else SpiralSettings(seed=seed)
        settings = replace(settings, **given(**changes))
        make = getattr(module, f"reproduce_{name}")
        command.run(name, lambda chosen, grid: make(chosen, grid, options["device"]), settings, options)

    @app.command()
    def fig4(
        quick: Quick = False,
        seed: Seed = 0,
        seeds: Seeds = None,
        epochs: Epochs = None,
        backend: BackendName = "local",
        scheduler: Scheduler = None,
        jobs: Jobs = None,
        device: Device = "cpu",
        out: Out = None,
    ) -> None:
        """Two spirals and the output of each layer of a Bregman network; the last must be linearly separable."""
        spirals("fig4", dict(locals()), seeds=seeds, epochs=epochs)

    @app.command()
    def fig5(
        quick: Quick = False,
        seed: Seed = 0,
        seeds: Seeds = None,
        epochs: Epochs = None,
        backend: BackendName = "local",
        scheduler: Scheduler = None,
        jobs: Jobs = None,
        device: Device = "cpu",
        out: Out = None,
    ) -> None:
        """Training losses of standard, Euclidean and Bregman networks from random and deterministic weights."""
        spirals("fig5", dict(locals()), seeds=seeds, epochs=epochs)

    @app.command()
    def fig6(
        quick: Quick = False,
        seed: Seed = 0,
        seeds: Seeds = None,
        epochs: Annotated[int | None, typer.Option(help="Epochs of the left plot; default: 10000.")] = None,
        deep_epochs: Annotated[int | None, typer.Option(help="Epochs of the right plot.")] = None,
        backend: BackendName = "local",
        scheduler: Scheduler = None,
        jobs: Jobs = None,
        device: Device = "cpu",
        out: Out = None,
    ) -> None:
        """Accuracy against the learning rate, and how much each of 50 layers moves its input."""
        spirals("fig6", dict(locals()), seeds=seeds, rate_epochs=epochs, deep_epochs=deep_epochs)

    @app.command()
    def table2(
        rows: Annotated[
            str | None, typer.Option(help="Rows, separated by commas, for example mnist-1,fashion-cnn.")
        ] = None,
        quick: Quick = False,
        seed: Seed = 0,
        seeds: Seeds = None,
        epochs: Epochs = None,
        train_size: Annotated[int | None, typer.Option(help="Use only so many training samples.")] = None,
        data_dir: DataDir = None,
        backend: BackendName = "local",
        scheduler: Scheduler = None,
        jobs: Jobs = None,
        device: Device = "cpu",
        out: Out = None,
    ) -> None:
        """Test accuracy on MNIST, Fashion-MNIST and CIFAR-10, beside the paper's figures."""
        options = dict(locals())
        from implicit_bregman.experiments.reproduce.table2.report import reproduce_table2
        from implicit_bregman.experiments.reproduce.table2.settings import Table2Settings

        settings = Table2Settings.quick(seed) if quick else Table2Settings(seed=seed)
        changes = given(rows=names(rows), seeds=seeds, epochs=epochs, train_size=train_size)
        settings = replace(settings, **changes)
        folder = None if data_dir is None else str(data_dir)
        command.run("table2", lambda chosen, grid: reproduce_table2(chosen, grid, folder, device), settings, options)

    return app
