"""What the commands share that run a grid: options, progress, files."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from implicit_bregman.experiments.output.files import writable_folder
from implicit_bregman.experiments.output.terminal import Interrupted, progress_bar

Quick = Annotated[bool, typer.Option("--quick", help="A subset that is stated in the report.")]
Seed = Annotated[int, typer.Option(help="First seed.")]
BackendName = Annotated[str, typer.Option("--backend", help="Where to compute: local or dask.")]
Scheduler = Annotated[str | None, typer.Option(help="Address of the scheduler of --backend dask.")]
Jobs = Annotated[
    int | None, typer.Option(help="Computations at a time, one CPU thread each; default: one per core, or 1 on a GPU.")
]
DataDir = Annotated[Path | None, typer.Option(help="Folder with the files of the image data sets or graphs.")]
Device = Annotated[str, typer.Option(help="PyTorch device, for example cpu or cuda.")]


@dataclass(frozen=True)
class GridCommand:
    """A group of commands, each of which runs a grid and writes its report.

    Attributes:
        group: Name of the group; results go to GROUP-results/NAME by default.
        result_options: Options that change the result; the report shows them in the command.
    """

    group: str
    result_options: Sequence[str]

    def run(self, name: str, make: Callable[..., Any], settings: Any, options: dict[str, Any]) -> None:
        """Compute, with a progress bar, then write and show the report.

        Args:
            name: Of the command.
            make: Called with `settings` and the grid; returns a `GridReport`.
            settings: A dataclass.
            options: What the command line gave: "backend", "scheduler", "jobs", "out", "device" and others.
        """
        from implicit_bregman.experiments.grid.run import Backend, Grid
        from implicit_bregman.experiments.machine.devices import find_device

        device, jobs = options.get("device", "cpu"), options["jobs"]
        # (a cluster's workers may have what this machine has not)
        if options["backend"] == "local" and find_device(device).type != "cpu":
            jobs = jobs or 1
        backend = Backend(options["backend"], options["scheduler"], jobs)
        folder = writable_folder(options["out"] or Path(f"{self.group}-results") / name)
        try:
            with progress_bar() as bar:
                grid = Grid(folder, backend, bar, _tell)
                result = make(settings, grid)
        except KeyboardInterrupt:
            raise Interrupted("no report was written") from None
        result.report(self.command_line(name, options), asdict(settings), grid.origins.values()).deliver(folder)

    def command_line(self, name: str, options: dict[str, Any]) -> str:
        """The command with the options that change its result."""
        words = ["implicit-bregman", self.group, name]
        for option in self.result_options:
            value = options.get(option)
            if value is None or value is False or (option, value) in (("seed", 0), ("device", "cpu")):
                continue
            flag = f"--{option.replace('_', '-')}"
            words += [flag] if value is True else [flag, str(value)]
        return shlex.join(words)


def given(**options: Any) -> dict[str, Any]:
    """The options that the user gave, those that are not None."""
    return {key: value for key, value in options.items() if value is not None}


def names(text: str | None) -> tuple[str, ...] | None:
    """Names that a text has, separated by commas."""
    return None if text is None else tuple(name.strip() for name in text.split(","))


def numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Whole numbers that a text has, separated by commas.

    Raises:
        ValueError: If one is no whole number.
    """
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} takes whole numbers, separated by commas, got {text!r}") from None


def _tell(text: str) -> None:
    print(f"implicit-bregman: {text}", file=sys.stderr)
