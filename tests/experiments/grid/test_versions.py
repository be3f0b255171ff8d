"""Which code invalidates a stored cell: what its function imports, found by walking the package."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

import implicit_bregman
from implicit_bregman.experiments.grid import versions
from implicit_bregman.experiments.grid.cells import Cell
from implicit_bregman.experiments.grid.versions import code_version, modules_behind
from implicit_bregman.experiments.reproduce.spirals import train_stage
from implicit_bregman.experiments.reproduce.table2.training import train_images
from implicit_bregman.experiments.study.depth.training import measure_costs, train_once
from implicit_bregman.experiments.study.geometry.boxes import find_basins, train_on_one_box
from implicit_bregman.experiments.study.geometry.training import train_once as train_in_geometry
from implicit_bregman.experiments.study.graphs.training import train_graph
from implicit_bregman.experiments.study.hypergradient.settings import CASES
from implicit_bregman.experiments.study.hypergradient.trials import Trial, measure
from implicit_bregman.experiments.study.imaging.references import judge_reference
from implicit_bregman.experiments.study.imaging.training import train_restoration
from implicit_bregman.experiments.study.infimum.search import find_infima

PACKAGE = Path(implicit_bregman.__file__).parent
STUDIES = [
    *(measure_costs, train_once, train_in_geometry, train_on_one_box, find_basins),
    *(train_graph, measure, find_infima, train_restoration, judge_reference),
]
REPRODUCTIONS = [train_stage, train_images]
# What the value and the gradient of a layer depend on.
SOLVING = ("adjoints", "energy", "legendre", "linalg", "nn", "operators", "projection", "solvers")


def name_of(function: object) -> str:
    return f"{function.__module__.removeprefix('implicit_bregman.experiments.')}.{function.__name__}"  # type: ignore[attr-defined]


def room(name: str) -> str:
    return name.removeprefix("implicit_bregman.").partition(".")[0]


@pytest.mark.parametrize("function", STUDIES, ids=name_of)
def test_a_study_depends_on_everything_that_solves_and_differentiates(function: object) -> None:
    behind = modules_behind(function.__module__)  # type: ignore[attr-defined]
    assert set(SOLVING) <= {room(name) for name in behind}
    for package in ("solvers", "adjoints", "nn"):
        files = (PACKAGE / package).glob("*.py")
        wanted = {f"implicit_bregman.{package}" + ("" if f.stem == "__init__" else f".{f.stem}") for f in files}
        assert wanted <= set(behind)


@pytest.mark.parametrize("function", REPRODUCTIONS, ids=name_of)
def test_a_network_without_solver_does_not_depend_on_solvers(function: object) -> None:
    """Hours of training are not thrown away when a solver changes."""
    behind = {room(name) for name in modules_behind(function.__module__)}  # type: ignore[attr-defined]
    assert {"legendre", "nn", "experiments"} <= behind
    assert not behind & {"solvers", "adjoints", "projection"}


@pytest.mark.parametrize("function", [*STUDIES, *REPRODUCTIONS], ids=name_of)
def test_what_shows_and_keeps_results_does_not_count(function: object) -> None:
    behind = modules_behind(function.__module__)  # type: ignore[attr-defined]
    rooms = {name.rpartition(".")[2] for name in behind}
    assert not rooms & {"report", "figures", "findings", "command", "app", "cli"}
    assert not any(".experiments.grid" in name or ".experiments.output" in name for name in behind)


def test_every_cell_of_the_package_is_tested_here() -> None:
    """The functions that cells are made of are found by their calls, so that a new study cannot be forgotten."""
    known = {function.__name__ for function in (*STUDIES, *REPRODUCTIONS)}
    made = set()
    for file in (PACKAGE / "experiments").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Cell":
                made.add((file.relative_to(PACKAGE).as_posix(), ast.unparse(node.args[1])))
    assert made
    assert {function for file, function in made if not file.startswith("experiments/benchmark")} <= known


def test_the_version_of_a_cell_is_that_of_its_function() -> None:
    cell = Cell("trial", measure, Trial(CASES[0], 65, 1, 0))
    assert cell.version == code_version(measure) != code_version(find_infima)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of three modules, of which the first imports the second and, for its types, the third."""
    home = tmp_path / "made_up"
    home.mkdir()
    (home / "__init__.py").write_text("")
    (home / "cell.py").write_text(
        "from typing import TYPE_CHECKING\n\n"
        "if TYPE_CHECKING:\n    from made_up.types import Number\n\n\n"
        "def f(x):\n    from made_up import library\n\n    return library.one(x)\n"
    )
    (home / "library.py").write_text("from .deep import ONE\n\n\ndef one(x):\n    return x + ONE\n")
    (home / "deep.py").write_text("ONE = 1\n")
    (home / "types.py").write_text("Number = float\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(versions, "PACKAGE", home)
    return home


def version(home: Path) -> str:
    versions._version_of.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "made_up"]:
        del sys.modules[name]
    return code_version(importlib.import_module("made_up.cell").f)


def test_imports_are_followed_also_those_inside_functions(package: Path) -> None:
    assert modules_behind("made_up.cell") == ("made_up.cell", "made_up.deep", "made_up.library")


@pytest.mark.parametrize("name", ["cell", "library", "deep"])
def test_a_change_behind_the_function_changes_its_version(name: str, package: Path) -> None:
    before = version(package)
    file = package / f"{name}.py"
    file.write_text(file.read_text() + "\nMORE = 2\n")
    assert version(package) != before


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("types", "Number = int\n"),
        ("deep", '"""One."""\n\n# the number\nONE = (1)\n'),
    ],
    ids=["types", "comments"],
)
def test_other_changes_do_not(name: str, source: str, package: Path) -> None:
    before = version(package)
    (package / f"{name}.py").write_text(source)
    assert version(package) == before
