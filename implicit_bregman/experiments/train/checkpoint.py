"""The state of a run between two epochs, in a file that is complete or not there."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from implicit_bregman.experiments.output.files import write_all
from implicit_bregman.experiments.train.logs import EpochRow, to_csv

FORMAT_VERSION = 2
CHECKPOINT, BEST_MODEL, METRICS = "checkpoint.pt", "model.pt", "metrics.csv"

Shown = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on after an epoch.

    Attributes:
        settings: The settings, as `TrainSettings.shown` gives them.
        rows: The epochs so far. Which was the best, and whether to stop, follows from them.
        model: Parameters after the last epoch.
        optimizer: State of the optimizer.
        data: What `Dataset.fingerprint` gave for the data.
    """

    settings: Shown
    rows: tuple[EpochRow, ...]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    data: str


def best_row(rows: tuple[EpochRow, ...]) -> EpochRow:
    """The first epoch with the smallest validation loss; without a validation set, the last epoch."""
    judged = [row for row in rows if row.validation_loss is not None]
    return min(judged, key=_badness) if judged else rows[-1]


def _badness(row: EpochRow) -> float:
    loss = row.validation_loss
    return math.inf if loss is None or math.isnan(loss) else loss


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint, the table, and the model if the last epoch is the best.

    Each file is replaced as a whole, the checkpoint first. A process that is killed in between leaves the others an
    epoch behind; a run that is resumed calls this before it trains on, which mends them.
    """
    last = checkpoint.rows[-1]
    shared = {"format": FORMAT_VERSION, "settings": checkpoint.settings, "model": checkpoint.model}
    rows = [asdict(row) for row in checkpoint.rows]
    contents = {
        CHECKPOINT: _to_bytes({**shared, "rows": rows, "optimizer": checkpoint.optimizer, "data": checkpoint.data})
    }
    if best_row(checkpoint.rows) is last:
        contents[BEST_MODEL] = _to_bytes({**shared, "epoch": last.epoch})
    contents[METRICS] = to_csv(checkpoint.rows).encode()
    write_all(folder, contents)


def load(folder: Path) -> Checkpoint | None:
    """The checkpoint of a run, on the CPU, or None if there is none.

    Raises:
        ValueError: If the file is damaged or of another format.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    state = read_file(path)
    try:
        names = [field.name for field in fields(EpochRow)]
        rows = tuple(EpochRow(**{name: row[name] for name in names}) for row in state["rows"])
        return Checkpoint(state["settings"], rows, state["model"], state["optimizer"], state["data"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} lacks a part ({error}); remove it to start again, or choose another --out") from None


def read_file(path: Path) -> dict[str, Any]:
    """A file that `save` wrote: nothing in it is run (`weights_only=True`).

    Raises:
        ValueError: If the file is damaged or of another format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} is damaged or no checkpoint ({reason}); remove it to start again, or choose another --out"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT_VERSION:
        found = state.get("format") if isinstance(state, dict) else None
        raise ValueError(f"{path} has the format {found}, this version reads {FORMAT_VERSION}; choose another --out")
    return state


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files of a process that was killed while it wrote."""
    for name in (CHECKPOINT, BEST_MODEL, METRICS):
        for left in folder.glob(f".{name}.*"):
            left.unlink(missing_ok=True)


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
