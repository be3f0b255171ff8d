"""How a run is shown: lines while it goes, and a table at its end."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from implicit_bregman.experiments.machine.versions import versions
from implicit_bregman.experiments.output.blocks import Table
from implicit_bregman.experiments.output.files import json_text, write_all
from implicit_bregman.experiments.output.terminal import Bar, progress_bar, show, warn
from implicit_bregman.experiments.train.checkpoint import BEST_MODEL, CHECKPOINT, METRICS, Checkpoint
from implicit_bregman.experiments.train.logs import EpochRow
from implicit_bregman.experiments.train.run import EVENTS, TrainResult, Watch
from implicit_bregman.experiments.train.settings import TrainSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# The table at the end shows so many epochs.
LAST = 10
DESCRIPTION = "run.json"
HEADINGS = (
    "epoch",
    "train loss [nats]",
    "valid. loss [nats]",
    "valid. acc. [%]",
    "test acc. [%]",
    "solver iter.",
    "worst residual",
    "conv. [%]",
    "active [%]",
    "λ_max(−W)",
    "time [s]",
)


class Terminal(Watch):
    """Shows on stderr how the run goes.

    Args:
        settings: The settings.
        folder: Where the results go.
        resume: Whether `--resume` was given.
        remarks: Warnings about the settings and the data.
        stack: Closes the progress bar.
    """

    def __init__(
        self, settings: TrainSettings, folder: Path, resume: bool, remarks: list[str], stack: ExitStack
    ) -> None:
        self._settings, self._folder, self._resume, self._remarks = settings, folder, resume, remarks
        self._stack = stack
        self._bar: Bar | None = None

    def started(self, start: Checkpoint | None, fabric: Fabric, parameters: int) -> None:
        for remark in self._remarks:
            warn(remark)
        description = {
            "settings": self._settings.shown(),
            "parameters": parameters,
            "environment": {
                **versions("implicit_bregman", "python", "torch", "platform"),
                "device": str(fabric.device),
                "processes": fabric.world_size,
            },
        }
        write_all(self._folder, {DESCRIPTION: json_text(description).encode()})
        self._bar = self._stack.enter_context(progress_bar())
        if self._resume:
            self._bar.line(f"going on after epoch {len(start.rows)}" if start else "no checkpoint yet: a new run")

    def progress(self, share: float, text: str) -> None:
        assert self._bar is not None
        self._bar(share, text)

    def epoch(self, row: EpochRow) -> None:
        assert self._bar is not None
        validation = "" if row.validation_loss is None else f"validation {row.validation_loss:.4f}, "
        self._bar.line(
            f"epoch {row.epoch}: loss {row.train_loss:.4f}, {validation}test accuracy {row.test_accuracy:.2%}, "
            f"{row.seconds:.1f} s"
        )


def report(result: TrainResult, settings: TrainSettings, folder: Path) -> None:
    """Print the last epochs, the best one, and where the files are."""
    cells = tuple(_cells(row) for row in result.rows[-LAST:])
    table = Table(f"{settings.dataset}, to epoch {len(result.rows)}", HEADINGS, cells, unbroken=True)
    best = result.best
    ended = f" (stopped early: {settings.patience} epochs without a better one)" if result.stopped_early else ""
    show(table.terminal())
    show(f"Best of {len(result.rows)} epochs{ended}: {best.epoch}, with a test accuracy of {best.test_accuracy:.2%}")
    show(f"{result.parameters:,} parameters, trained in {sum(row.seconds for row in result.rows):.1f} s")
    show(f"Written to {folder}: {METRICS}, {EVENTS}/, {BEST_MODEL} (epoch {best.epoch}), {CHECKPOINT}, {DESCRIPTION}")


def _cells(row: EpochRow) -> tuple[str, ...]:
    accuracy, loss = row.validation_accuracy, row.validation_loss
    return (
        str(row.epoch),
        f"{row.train_loss:.4f}",
        "" if loss is None else f"{loss:.4f}",
        "" if accuracy is None else f"{100 * accuracy:.2f}",
        f"{100 * row.test_accuracy:.2f}",
        f"{row.iterations:.1f}",
        f"{row.worst_residual:.1e}",
        f"{100 * row.converged:.1f}",
        f"{100 * row.active:.1f}",
        "" if row.spectral_bound is None else f"{row.spectral_bound:.3f}",
        f"{row.seconds:.2f}",
    )
