"""The commands `implicit-bregman reproduce …`: options, progress, files."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from implicit_bregman.experiments.files import writable_folder
from implicit_bregman.experiments.terminal import Interrupted, progress_bar, show

RESULT_OPTIONS = ("rows", "quick", "seed", "seeds", "epochs", "deep_epochs", "train_size", "data_dir", "device")

Quick = Annotated[bool, typer.Option("--quick", help="A subset that is stated in the report.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results; default: reproduce-results/NAME.")]
Seed = Annotated[int, typer.Option(help="First seed.")]
Seeds = Annotated[int | None, typer.Option(help="Number of seeds; default: the paper's.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs; default: the paper's where it states them.")]
BackendName = Annotated[str, typer.Option("--backend", help="Where to compute: local or dask.")]
Scheduler = Annotated[str | None, typer.Option(help="Address of the scheduler of --backend dask.")]
Jobs = Annotated[int | None, typer.Option(help="Computations at a time, one CPU thread each; default: all cores.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder with the files of the image data sets.")]
Device = Annotated[str, typer.Option(help="PyTorch device, for example cpu or cuda.")]


def make_app() -> typer.Typer:
    """The commands below `reproduce`."""
    app = typer.Typer(help="The paper's figures and its Table 2, each by one command that can be interrupted.")

    def run(name: str, make: Callable[..., Any], settings: Any, options: dict[str, Any]) -> None:
        from implicit_bregman.experiments.compare import find_device
        from implicit_bregman.experiments.grid import Backend, Grid

        backend = Backend(options["backend"], options["scheduler"], options["jobs"])
        find_device(options["device"])
        folder = writable_folder(options["out"] or Path("reproduce-results") / name)
        try:
            with progress_bar() as bar:
                result = make(settings, Grid(folder, backend, bar, _tell))
        except KeyboardInterrupt:
            raise Interrupted("no report was written") from None
        written = result.write(folder, command_line(name, options), asdict(settings), options["device"])
        show(result.table(), *result.findings, f"Written to {folder}: {', '.join(path.name for path in written)}")

    def spirals(name: str, options: dict[str, Any], **changes: Any) -> None:
        import importlib

        from implicit_bregman.experiments.reproduce.settings import SpiralSettings

        module = importlib.import_module(f"implicit_bregman.experiments.reproduce.{name}")
        seed = options["seed"]
        settings = SpiralSettings.quick(seed) if options["quick"] else SpiralSettings(seed=seed)
        settings = replace(settings, **{key: value for key, value in changes.items() if value is not None})
        make = getattr(module, f"reproduce_{name}")
        run(name, lambda chosen, grid: make(chosen, grid, options["device"]), settings, options)

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
        from implicit_bregman.experiments.reproduce.table2 import Table2Settings, reproduce_table2

        settings = Table2Settings.quick(seed) if quick else Table2Settings(seed=seed)
        names = None if rows is None else tuple(name.strip() for name in rows.split(","))
        changes: dict[str, Any] = {"rows": names, "seeds": seeds, "epochs": epochs, "train_size": train_size}
        settings = replace(settings, **{key: value for key, value in changes.items() if value is not None})
        folder = None if data_dir is None else str(data_dir)
        run("table2", lambda chosen, grid: reproduce_table2(chosen, grid, folder, device), settings, options)

    return app


def command_line(name: str, options: dict[str, Any]) -> str:
    """The command with the options that change its result."""
    words = ["implicit-bregman", "reproduce", name]
    for option in RESULT_OPTIONS:
        value = options.get(option)
        if value is None or value is False or (option, value) in (("seed", 0), ("device", "cpu")):
            continue
        flag = f"--{option.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def _tell(text: str) -> None:
    print(f"implicit-bregman: {text}", file=sys.stderr)
