"""The main paths: what they ask of a device is what the docs say, and every device computes the same."""

from __future__ import annotations

from pathlib import Path as File

import pytest
import torch
from torch import Tensor

from implicit_bregman.experiments.benchmark.paths.counts import Counts, counts_of
from implicit_bregman.experiments.benchmark.paths.layers import Path, main_paths
from implicit_bregman.experiments.benchmark.paths.report import counts_table, placed, read_counts

PAGE = File(__file__).resolve().parents[3] / "docs" / "benchmarks.md"
STATED = read_counts(PAGE.read_text(encoding="utf-8"))
PATHS = {path.name: path for path in main_paths()}
# The graphs of these have the same shapes whatever the numbers are.
FIXED_SHAPES = [name for name, counts in STATED.items() if counts.shapes == 0]


def test_the_docs_state_every_path() -> None:
    assert list(STATED) == list(PATHS)
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{path.name}` | {path.text} |" in page for path in PATHS.values())
    assert {"box", "smooth", "inference", "transport"} <= set(FIXED_SHAPES)


@pytest.mark.parametrize("name", PATHS)
def test_operator_calls_and_synchronisations_are_those_of_the_docs(name: str) -> None:
    """To a tenth: versions of PyTorch differ by an operator here and there, and processors by an iteration."""
    found, stated = counts_of(PATHS[name]), STATED[name]
    for count in ("operators", "products", "synchronisations"):
        expected = getattr(stated, count)
        assert getattr(found, count) == pytest.approx(expected, rel=0.1, abs=1), f"{count}: run docs/scripts/gpu.py"
    assert found.shapes <= stated.shapes


@pytest.mark.parametrize(
    ("work", "counts"),
    [
        (lambda x: x @ x, Counts(1, 1, 0, 0)),
        (lambda x: x.nonzero(), Counts(1, 0, 1, 1)),
        (lambda x: x[x > 0], Counts(2, 0, 1, 1)),
        (lambda x: x.sum().item(), Counts(2, 0, 1, 0)),
        (lambda x: torch.where(x > 0, x, 0.0), None),
    ],
)
def test_the_counter(work: object, counts: Counts | None) -> None:
    x = torch.ones(2, 2)
    found = counts_of(Path("toy", "", lambda device: lambda: work(x)))  # type: ignore[operator]
    if counts is None:
        assert (found.products, found.synchronisations, found.shapes) == (0, 0, 0)
    else:
        assert found == counts


def flat(result: object) -> Tensor:
    parts = result if isinstance(result, tuple) else (result,)
    return torch.cat([part.detach().double().cpu().flatten() for part in parts])


@pytest.mark.parametrize("name", PATHS)
def test_a_path_gives_the_same_on_every_device_and_again(name: str, device: torch.device) -> None:
    run = PATHS[name].make(device)
    first, again = flat(run()), flat(run())
    elsewhere = flat(PATHS[name].make(torch.device("cpu"))())
    size = elsewhere.abs().max()
    assert bool(elsewhere.isfinite().all())
    assert float((first - elsewhere).abs().max()) <= 1e-3 * size
    assert float((again - first).abs().max()) <= 1e-3 * size


def test_tables_go_between_their_marks() -> None:
    page = "a\n<!-- counts -->\nold\n<!-- end of counts -->\nb\n"
    table = counts_table({PATHS["box"]: Counts(4, 3, 2, 1)})
    filled = placed(page, "counts", table)
    assert filled.startswith("a\n<!-- counts -->\n\n| path |")
    assert filled.endswith("<!-- end of counts -->\nb\n")
    assert "old" not in filled
    assert read_counts(filled) == {"box": Counts(4, 3, 2, 1)}
    assert placed(filled, "counts", table) == filled
    with pytest.raises(ValueError, match="lacks the marks"):
        placed("nothing", "counts", table)
