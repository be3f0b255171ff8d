"""Every example runs as a user would run it, without a warning, and prints what the documentation shows."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def run(script: Path, folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    # (which PyTorch 2.11 says of the first sparse tensor, whatever its `check_invariants`)
    unasked = "ignore:Sparse invariant checks are implicitly disabled:UserWarning"
    # (which PyTorch 2.6 says of its compiler's folder when Python ends)
    at_the_end = "ignore:Implicitly cleaning up:ResourceWarning"
    command = [sys.executable, "-W", "error", "-W", unasked, "-W", at_the_end, str(script), *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


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


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_prints_what_is_shown(script: Path, tmp_path: Path) -> None:
    shown = (ROOT / "examples" / "output" / f"{script.stem}.txt").read_text(encoding="utf-8")
    wrong = differences(run(script, tmp_path), shown)
    assert not wrong, "\n".join([*wrong, f"if that is right, write it to examples/output/{script.stem}.txt"])
    assert not list(tmp_path.iterdir())


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    run(ROOT / "examples" / "convergence.py", tmp_path, "--plot", "residuals.png")
    assert (tmp_path / "residuals.png").stat().st_size > 1000


def test_plans_are_drawn(tmp_path: Path) -> None:
    run(ROOT / "examples" / "transport.py", tmp_path, "--plot", "plans.png")
    assert (tmp_path / "plans.png").stat().st_size > 1000


def test_the_plans_are_those_of_pot() -> None:
    spec = importlib.util.spec_from_file_location("transport", ROOT / "examples" / "transport.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    cost, a, b = (part.double() for part in example.data())
    a, b = a / a.sum(), b / b.sum()
    ot = pytest.importorskip("ot", reason="POT is not installed: pip install pot")
    expected = ot.bregman.sinkhorn_log(a, b, cost, 0.1, numItermax=10_000, stopThr=1e-14)
    torch.testing.assert_close(example.transport(cost, a, b, 0.1), expected, rtol=0, atol=1e-9)


def test_every_example_is_on_the_page_with_its_output() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    assert EXAMPLES
    assert {path.stem for path in (ROOT / "examples" / "output").iterdir()} == {path.stem for path in EXAMPLES}
    for script in EXAMPLES:
        assert f'--8<-- "examples/{script.name}"' in page
        assert f'--8<-- "examples/output/{script.stem}.txt"' in page


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
