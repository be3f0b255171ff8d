"""The gallery: every script of examples/ is its own page. This runs them and keeps what they print and draw.

Run

    python docs/scripts/gallery.py [NAME ...]

It writes examples/output/NAME.txt and docs/images/example-NAME.png, of all examples or of those that are named. `read`
takes a script apart for the site and for the notebooks: the docstring is the title and the introduction, a line
`# %% Heading` starts a cell, and the comment below such a line is its text.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
OUTPUT = EXAMPLES / "output"
FIGURES = ROOT / "docs" / "images"
COLOURS = 128


@dataclass(frozen=True)
class Cell:
    """A part of an example: its heading, "" for the first; the text below it; the code."""

    heading: str
    text: str
    code: str


@dataclass(frozen=True)
class Example:
    """An example as a page shows it."""

    name: str
    title: str
    introduction: str
    cells: tuple[Cell, ...]


def scripts() -> list[Path]:
    """All examples."""
    return sorted(EXAMPLES.glob("*.py"))


def read(script: Path) -> Example:
    """Take an example apart.

    Raises:
        ValueError: The script does not begin with a docstring of a title, an empty line and an introduction.
    """
    _, docstring, code = script.read_text(encoding="utf-8").split('"""', 2)
    title, *rest = docstring.strip().splitlines()
    if len(rest) < 2 or rest[0]:
        raise ValueError(f"{script.name} must begin with a title, an empty line and an introduction in its docstring")
    first, *others = code.split("\n# %% ")
    return Example(
        script.stem, title, "\n".join(rest[1:]), (Cell("", "", first.strip()), *(_cell(part) for part in others))
    )


def _cell(part: str) -> Cell:
    heading, *lines = part.splitlines()
    count = next((number for number, line in enumerate(lines) if not line.startswith("# ")), len(lines))
    text = "\n".join(line.removeprefix("# ") for line in lines[:count])
    return Cell(heading, text, "\n".join(lines[count:]).strip())


def page(example: Example) -> str:
    """The page of an example in Markdown."""
    lines = [f"# {example.title}", "", example.introduction, ""]
    lines += [f"![The figure of the example](../images/example-{example.name}.png)", ""]
    for cell in example.cells:
        lines += [f"## {cell.heading}", ""] if cell.heading else []
        lines += [cell.text, ""] if cell.text else []
        lines += ["```python", cell.code, "```", ""]
    printed = (OUTPUT / f"{example.name}.txt").read_text(encoding="utf-8").rstrip()
    lines += ["## What it prints", "", "```text", printed, "```", ""]
    lines += [f"[The script]({example.name}.py) · [The same as a notebook]({example.name}.ipynb)", ""]
    return "\n".join(lines)


def run(script: Path, folder: Path) -> str:
    """Run an example in a folder, where it leaves its figure, and return what it prints.

    Raises:
        RuntimeError: It fails, or warns.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    # (which PyTorch 2.11 says of the first sparse tensor, whatever its `check_invariants`)
    unasked = "ignore:Sparse invariant checks are implicitly disabled:UserWarning"
    # (which PyTorch 2.6 says of its compiler's folder when Python ends)
    at_the_end = "ignore:Implicitly cleaning up:ResourceWarning"
    command = [sys.executable, "-W", "error", "-W", unasked, "-W", at_the_end, str(script)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=600
    )
    if done.returncode or done.stderr:
        raise RuntimeError(f"{script.name}: {done.stderr}")
    return done.stdout


def small(source: Path, target: Path) -> None:
    """Copy a figure with few colours, which makes the file several times smaller."""
    from PIL import Image

    with Image.open(source) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> None:
    """Run the examples that are named, or all."""
    chosen = sys.argv[1:]
    for script in scripts():
        if chosen and script.stem not in chosen:
            continue
        with tempfile.TemporaryDirectory() as folder:
            printed = run(script, Path(folder))
            (OUTPUT / f"{script.stem}.txt").write_text(printed, encoding="utf-8")
            target = FIGURES / f"example-{script.stem}.png"
            small(Path(folder) / f"{script.stem}.png", target)
        print(f"{script.stem}: {target.stat().st_size / 1000:.0f} kB\n{printed}", flush=True)


if __name__ == "__main__":
    main()
