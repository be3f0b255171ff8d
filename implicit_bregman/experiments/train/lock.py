"""One run writes to a folder at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path, wanted: bool = True) -> Iterator[None]:
    """Hold the folder for one run.

    The system gives it back when the process ends, however it ends; the empty file stays. Where the system or the file
    system knows no such locks, nothing is held.

    Args:
        folder: The folder; it exists.
        wanted: Whether this is the process that writes; the others of a run hold nothing.

    Raises:
        ValueError: If another process holds it.
        OSError: If the file cannot be written.
    """
    if not wanted or fcntl is None:
        yield
        return
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is writing to {folder}: wait for its end, or choose another --out") from None
        except OSError:  # a file system without locks
            pass
        yield
