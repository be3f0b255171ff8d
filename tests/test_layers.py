"""The layout: nothing imports upward, and nobody asks for a class of another room."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import implicit_bregman as ib

PACKAGE = Path(ib.__file__).parent
#: From the bottom up; of two entries that fit a module the longer counts. What is not named may import anything below
#: that its importers may. The core of the projection is a tool of the solvers.
LEVELS = (
    "legendre",
    "linalg",
    "operators",
    "energy",
    "objective",
    *(f"projection.{name}" for name in ("basis", "problem", "newton")),
    *(f"solvers.{name}" for name in ("inverse", "base", "exact")),
    "solvers",
    "backward",
    "projection",
    "adjoints",
    "solution",
    "critical_point",
    "nn",
)
#: Arguments that may be of several kinds, told apart where they come in.
ARGUMENTS = {
    ("adjoints.registry", "Adjoint"),
    ("batch", "Solution"),
    ("checks", "Energy"),
    ("energy.structured", "LinearOperator"),
    ("nn.graph", "Solution"),
    ("nn.projection", "LinearMap"),
    ("nn.projection", "Solution"),
    ("solvers.registry", "Solver"),
    ("statistics", "Solution"),
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if not name.startswith("experiments"):
            yield name.removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8"))


def level(module: str) -> int | None:
    fitting = [entry for entry in LEVELS if module == entry or module.startswith(f"{entry}.")]
    return LEVELS.index(max(fitting, key=len)) if fitting else None


def imported(tree: ast.Module) -> set[str]:
    """The modules of this package that are imported when a module runs: not for its annotations alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[2] for name in found if name.startswith("implicit_bregman.")}


def test_nothing_imports_upward() -> None:
    upward = [
        f"{module} imports {other}"
        for module, tree in modules()
        for other in sorted(imported(tree))
        if None not in (level(module), level(other)) and level(other) > level(module)
    ]
    assert upward == []


def own_classes() -> dict[str, set[str]]:
    """The classes of the package by name, each with the rooms where it is defined."""
    found: dict[str, set[str]] = {}
    for module, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).add(module.partition(".")[0])
    return found


def test_nobody_asks_for_a_class_of_another_room() -> None:
    classes, asked = own_classes(), set()
    for module, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                names = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                asked |= {
                    (module, name)
                    for name in names & set(classes)
                    if module.partition(".")[0] not in classes[name] or (module, name) in ARGUMENTS
                }
    assert asked == ARGUMENTS


@pytest.mark.parametrize("path", sorted((PACKAGE / "projection").glob("*.py")), ids=lambda path: path.stem)
def test_a_module_of_the_projection_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 300


def test_the_weight_comes_with_the_package() -> None:
    """The name "low_rank" is added from the projection's room: `import implicit_bregman.energy` alone has it."""
    from implicit_bregman.energy.weights import Weight

    assert inspect.getmodule(Weight.named["low_rank"]).__name__ == "implicit_bregman.projection.weight"
