"""Results as JSON and CSV, and files that are either complete or not there."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from implicit_bregman.experiments.output.statistics import finite


def writable_folder(path: Path) -> Path:
    """Make sure, before any work, that `path` is a folder in which files can be written; create it if needed.

    Raises:
        ValueError: If it cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to --out {path} ({error.strerror or error}); choose another folder") from None
    return path


def write_all(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write complete files: first all of them under temporary names, then one rename each.

    Args:
        folder: Where to.
        contents: The files' names and contents.

    Returns:
        Their paths, in the order given.

    Raises:
        OSError: If a file cannot be written; then no temporary file is left.
    """
    pending: list[tuple[Path, Path]] = []
    try:
        for name, content in contents.items():
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            pending.append((Path(temporary), folder / name))
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
        for source, target in pending:
            os.replace(source, target)
    finally:
        for source, _ in pending:
            source.unlink(missing_ok=True)
    return [target for _, target in pending]


def json_text(document: Mapping[str, object]) -> str:
    """The document as JSON, with null for the NaN and infinities that JSON cannot hold."""
    return json.dumps(finite(document), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def csv_text(headings: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """A heading and one line per row, numbers at full precision; an empty field for None and for what a row lacks."""
    target = io.StringIO()
    writer = csv.DictWriter(target, headings, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return target.getvalue()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
