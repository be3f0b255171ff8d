"""The logs of a run: a table as CSV, and the same numbers for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType

from implicit_bregman.experiments.output.files import csv_text

# column -> name in TensorBoard
TAGS = {
    "learning_rate": "learning_rate",
    "train_loss": "loss/train",
    "validation_loss": "loss/validation",
    "test_loss": "loss/test",
    "train_accuracy": "accuracy/train",
    "validation_accuracy": "accuracy/validation",
    "test_accuracy": "accuracy/test",
    "iterations": "solver/iterations",
    "residual": "solver/residual",
    "worst_residual": "solver/worst_residual",
    "converged": "solver/converged",
    "active": "representation/active",
    "spectral_bound": "weight/spectral_bound",
    "seconds": "time/seconds_per_epoch",
}


@dataclass(frozen=True)
class EpochRow:
    """What is logged of one epoch. Losses are mean cross entropies in nats; shares are in 0 … 1.

    Attributes:
        epoch: Its number, from 1.
        steps: Training steps done since the start of the run.
        learning_rate: That of the epoch's last step.
        train_loss: Loss of the epoch's batches, measured while training.
        train_accuracy: Share of correct answers on them.
        validation_loss: Loss of the validation set after the epoch; None without one.
        validation_accuracy: Share of correct answers on it; None without one.
        test_loss: Loss of the test set.
        test_accuracy: Share of correct answers on it.
        iterations: Solver iterations per sample, mean over the epoch.
        residual: Relative residual of the solves, mean over the epoch.
        worst_residual: The largest one.
        converged: Share of the solves that converged; 0 for unrolled adjoints, which do not solve.
        active: Share of the coordinates of z on a bound, within 1e-6.
        spectral_bound: λ_max(−W) after the epoch, or for a W that is not symmetric the constant that replaces it in the
            step size; None where no bound is known (a field).
        seconds: Time of the epoch's training steps.
        finished: When the epoch ended, in seconds since 1970.
    """

    epoch: int
    steps: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    test_loss: float
    test_accuracy: float
    iterations: float
    residual: float
    worst_residual: float
    converged: float
    active: float
    spectral_bound: float | None
    seconds: float
    finished: float


def to_csv(rows: Sequence[EpochRow]) -> str:
    """One line per epoch; numbers as Python writes them, so that nothing is lost; an empty field for None."""
    return csv_text([field.name for field in fields(EpochRow)], map(asdict, rows))


class TensorBoard:
    """The scalars of every epoch, in one event file.

    Event files can only be appended to, and one whose process was killed may end within an epoch. So a run that is
    resumed starts a new file with all epochs of its checkpoint, and removes the old one.

    Args:
        folder: Where to; it is created if needed.
        rows: The epochs of the run so far.
    """

    def __init__(self, folder: Path, rows: Sequence[EpochRow]) -> None:
        from tensorboardX import SummaryWriter

        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(folder))
        for row in rows:
            self._add(row)
        self._writer.flush()

    def add(self, row: EpochRow) -> None:
        """Write an epoch's scalars to the file."""
        self._add(row)
        self._writer.flush()

    def _add(self, row: EpochRow) -> None:
        for name, value in asdict(row).items():
            if name in TAGS and value is not None:
                self._writer.add_scalar(TAGS[name], value, row.epoch, walltime=row.finished)

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
