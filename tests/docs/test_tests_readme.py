"""The map of the tests, tests/README.md, names every file with its promise, and modules that exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = TESTS.parent / "implicit_bregman"
ROW = re.compile(r"\| `(test_\w+\.py)` \| (.+) \| (.+) \|")


def rows() -> dict[str, tuple[str, str]]:
    """Promise and modules by the path of the file."""
    found, folder = {}, "."
    for line in (TESTS / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            folder = line.removeprefix("## ").strip("`/") if "`" in line else "."
        if match := ROW.fullmatch(line):
            found[(Path(folder) / match[1]).as_posix()] = (match[2], match[3])
    return found


FILES = sorted(file.relative_to(TESTS).as_posix() for file in TESTS.rglob("test_*.py"))


def test_every_file_has_its_row_and_every_row_its_file() -> None:
    assert sorted(rows()) == FILES


@pytest.mark.parametrize("file", FILES)
def test_the_promise_is_that_of_the_file(file: str) -> None:
    text = ast.get_docstring(ast.parse((TESTS / file).read_text(encoding="utf-8"))) or ""
    assert rows()[file][0] == text.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


@pytest.mark.parametrize("file", FILES)
def test_the_modules_exist(file: str) -> None:
    for name in re.findall(r"`([\w.]+)`", rows()[file][1]):
        place = PACKAGE.joinpath(*name.split("."))
        assert place.is_dir() or place.with_suffix(".py").is_file(), name
