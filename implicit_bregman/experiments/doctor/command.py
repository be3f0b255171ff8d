"""The command `doctor`."""

from typing import Annotated

import typer

from implicit_bregman.experiments.output.terminal import progress_bar, show


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """What is installed, and a self-test of ten seconds on every device. Exit code 1 if something is wrong."""
    from implicit_bregman.experiments.doctor.report import to_json, to_text
    from implicit_bregman.experiments.doctor.run import diagnose

    with progress_bar() as progress:
        diagnosis = diagnose(progress)
    if as_json:
        print(to_json(diagnosis))
    else:
        show(*to_text(diagnosis))
    if not diagnosis.healthy:
        raise typer.Exit(1)
