"""Every example runs without a warning, prints what its page shows, draws a figure and works as a notebook."""

import importlib
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINES, COLUMNS, BYTES = 60, 88, 60_000
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def load(name: str) -> ModuleType:
    """A script of docs/scripts, where they import each other by name."""
    folder = str(ROOT / "docs" / "scripts")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


gallery = load("gallery")
notebooks = load("notebooks")


def agree(text: str, shown: str) -> bool:
    """Whether two numbers are the same but for rounding on another machine.

    Numbers with an exponent are errors: they agree in their order of magnitude. Other numbers agree within 10 %, or in
    all but the last digit.
    """
    computed, expected = float(text), float(shown)
    if "e" in shown:
        return max(computed, expected) < 1e-9 or 1 / 3 <= computed / expected <= 3
    decimals = len(shown.partition(".")[2])
    return abs(computed - expected) <= max(0.1 * abs(expected), 1.01 * 10**-decimals)


def differences(printed: str, shown: str) -> list[str]:
    """The lines that differ by more than rounding; spaces do not count."""
    lines, expected = printed.splitlines(), shown.splitlines()
    wrong = [f"{len(lines)} lines instead of {len(expected)}"] if len(lines) != len(expected) else []
    for line, other in zip(lines, expected, strict=False):
        numbers = list(zip(NUMBER.findall(line), NUMBER.findall(other), strict=False))
        same_words = NUMBER.sub("#", line).split() == NUMBER.sub("#", other).split()
        if not same_words or not all(agree(text, number) for text, number in numbers):
            wrong.append(f"printed: {line}\n  shown: {other}")
    return wrong


def shown_output(script: Path) -> str:
    return (ROOT / "examples" / "output" / f"{script.stem}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_prints_what_is_shown_and_draws(script: Path, tmp_path: Path) -> None:
    wrong = differences(gallery.run(script, tmp_path), shown_output(script))
    assert not wrong, "\n".join([*wrong, f"if that is right: python docs/scripts/gallery.py {script.stem}"])
    assert [path.name for path in tmp_path.iterdir()] == [f"{script.stem}.png"]
    assert (tmp_path / f"{script.stem}.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_is_a_notebook(script: Path, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install nbclient ipykernel")
    made = notebooks.notebook(gallery.read(script))
    settings = {"timeout": 600, "resources": {"metadata": {"path": str(tmp_path)}}}
    nbclient.NotebookClient(made, kernel_name="python3", **settings).execute()
    outputs = [output for cell in made.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert not differences(printed, shown_output(script))
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_fits_on_a_page(script: Path) -> None:
    lines = script.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS
    figure = ROOT / "docs" / "images" / f"example-{script.stem}.png"
    assert 1000 < figure.stat().st_size < BYTES


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_a_page_and_a_notebook_have_the_whole_script(script: Path) -> None:
    example = gallery.read(script)
    code = [line for line in script.read_text(encoding="utf-8").split('"""', 2)[2].splitlines() if line]
    page, notebook = gallery.page(example), notebooks.notebook(example)
    whole = {line.removeprefix("# ").removeprefix("%% ") for line in page.splitlines()}
    cells = "\n".join(cell.source for cell in notebook.cells)
    for line in code:
        bare = line.removeprefix("# ").removeprefix("%% ")
        assert bare in whole or f"## {bare}" in page, line
        assert bare in cells, line
    assert example.title in page
    assert shown_output(script).rstrip() in page


def test_the_index_has_a_card_for_every_example() -> None:
    index = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert EXAMPLES
    assert {path.stem for path in (ROOT / "examples" / "output").iterdir()} == {path.stem for path in EXAMPLES}
    for script in EXAMPLES:
        assert f"(images/example-{script.stem}.png)](examples/{script.stem}.md)" in index
        assert f"[{gallery.read(script).title}](examples/{script.stem}.md)" in index
        assert f"- examples/{script.stem}.md\n" in site


def test_an_example_without_an_introduction_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text('"""A title alone"""\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"bare\.py must begin with a title"):
        gallery.read(tmp_path / "bare.py")


def test_an_example_that_warns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("import warnings\nwarnings.warn('not so')\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="not so"):
        gallery.run(tmp_path / "loud.py", tmp_path)


def test_the_plans_are_those_of_pot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ot = pytest.importorskip("ot", reason="POT is not installed: pip install pot")
    monkeypatch.chdir(tmp_path)  # where it leaves its figure
    try:
        example = runpy.run_path(str(ROOT / "examples" / "transport.py"))
    finally:
        torch.set_default_dtype(torch.float32)
    cost, a, b = (example[name].detach() for name in ("C", "a", "b"))
    expected = ot.bregman.sinkhorn_log(a, b, cost, 0.1, numItermax=10_000, stopThr=1e-14)
    torch.testing.assert_close(example["transport"](cost, a, b, 0.1), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("error 0.1234", "error 0.1235", True),
        ("error 0.12", "error 0.14", False),
        ("error  2e-14, 57 steps", "error 3e-12, 58 steps", True),
        ("error 1e-03", "error 1e-05", False),
        ("CONVERGED 360", "MAX_ITER 360", False),
        ("one", "one\ntwo", False),
        ("1 2", "1", False),
    ],
)
def test_what_counts_as_the_same_output(printed: str, shown: str, same: bool) -> None:
    assert (not differences(printed, shown)) is same
