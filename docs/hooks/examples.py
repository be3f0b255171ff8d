"""MkDocs hook: a page, the script and a notebook for every script of `examples/`, made while the site is built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from gallery import page, read, scripts
from notebooks import notebook


def on_files(files: Files, config: Any) -> Files:
    """Add the pages `examples/NAME.md` and what they link to."""
    import nbformat

    for script in scripts():
        example = read(script)
        contents = {
            "md": page(example),
            "py": script.read_text(encoding="utf-8"),
            "ipynb": nbformat.writes(notebook(example)),
        }
        for kind, content in contents.items():
            files.append(File.generated(config, f"examples/{script.stem}.{kind}", content=content))
    return files
