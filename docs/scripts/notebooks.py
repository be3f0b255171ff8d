"""The gallery as notebooks, made from the scripts of examples/.

Run

    python docs/scripts/notebooks.py FOLDER

It needs nbformat. Nobody edits a notebook by hand, and the repository keeps none: site and tests make them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from gallery import Example, read, scripts

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def notebook(example: Example) -> nbformat.NotebookNode:
    """One Markdown cell for the introduction and for each heading, one code cell for each part of the script."""
    made = nbformat.v4.new_notebook(metadata=KERNEL)
    texts = [f"# {example.title}\n\n{example.introduction}"]
    texts += [f"## {cell.heading}\n\n{cell.text}".rstrip() for cell in example.cells[1:]]
    for number, (text, cell) in enumerate(zip(texts, example.cells, strict=True)):
        made.cells.append(nbformat.v4.new_markdown_cell(text, id=f"text-{number}"))
        made.cells.append(nbformat.v4.new_code_cell(cell.code, id=f"code-{number}"))
    return made


def main() -> None:
    """Write one notebook per example into the folder."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docs/scripts/notebooks.py FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for script in scripts():
        nbformat.write(notebook(read(script)), folder / f"{script.stem}.ipynb")


if __name__ == "__main__":
    main()
