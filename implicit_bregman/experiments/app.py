"""The command line `implicit-bregman`: its commands, each from its own folder, and what all of them raise."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import implicit_bregman
from implicit_bregman.experiments.benchmark.command import benchmark
from implicit_bregman.experiments.compare.command import compare
from implicit_bregman.experiments.convergence.command import convergence
from implicit_bregman.experiments.doctor.command import doctor
from implicit_bregman.experiments.output.terminal import Interrupted
from implicit_bregman.experiments.reproduce.command import make_app as reproduce_app
from implicit_bregman.experiments.study.command import make_app as study_app
from implicit_bregman.experiments.train.command import train

app = typer.Typer(
    name="implicit-bregman",
    help="Neural layers whose output is a critical point of a learnable objective.",
    add_completion=False,
)
# typer.BadParameter is one kind of usage error; its base class is all of them, in every version of typer.
USAGE_ERROR: type[Any] = typer.BadParameter.__bases__[0]


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code.

    Raises:
        ValueError: For mistakes on the command line and for everything that a command refuses.
        OSError: For files that cannot be read or written.
    """
    try:
        result = app(args=arguments or ["--help"], prog_name="implicit-bregman", standalone_mode=False)
    except USAGE_ERROR as error:
        raise ValueError(f"{error.format_message()} (see --help)") from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Interrupted as stop:
        raise KeyboardInterrupt(str(stop)) from None
    return result if isinstance(result, int) else 0


def _show_version(asked: bool) -> None:
    if asked:
        print(f"implicit-bregman {implicit_bregman.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for command in (compare, train, convergence, benchmark, doctor):
    app.command()(command)
app.add_typer(reproduce_app(), name="reproduce")
app.add_typer(study_app(), name="study")
