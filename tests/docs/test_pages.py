"""The pages name what the code has: every geometry, status, solver, adjoint and public name."""

import re
from pathlib import Path
from typing import get_origin

import pytest

import implicit_bregman as ib

DOCS = Path(__file__).resolve().parents[2] / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def first_column(text: str, heading: str) -> list[str]:
    """The names, as code, in the first column of the table whose first column has that heading."""
    table = re.search(rf"^\| {heading} \|.*\n\|[- |]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None, heading
    return [name for row in table[1].splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def tables_of_geometries() -> list[dict[str, list[str]]]:
    """The cells of each row, by the geometry's name, of the two tables on the page about the mathematics."""
    bodies = re.findall(r"^\| name \|.*\n\|[- |]+\n((?:\|.*\n)+)", page("mathematics.md"), re.MULTILINE)
    rows = [[line.strip("|\n").split(" | ") for line in body.splitlines()] for body in bodies]
    return [{row[0].strip(" `"): [cell.strip(" $") for cell in row[1:]] for row in table} for table in rows]


def test_both_tables_of_geometries_are_complete():
    assert [tuple(table) for table in tables_of_geometries()] == [ib.geometries()] * 2


@pytest.mark.parametrize("name", ib.geometries())
def test_the_constant_of_strong_convexity_in_the_table(name):
    shown = tables_of_geometries()[1][name][2]
    with_default_parameters = {"1/\\lambda": 1.0, "1/(ab)": 1 / (1.7159 * 2 / 3)}
    expected = with_default_parameters.get(shown)
    assert ib.geometry(name).strong_convexity == pytest.approx(float(shown) if expected is None else expected)


def test_the_table_of_statuses_is_complete():
    assert first_column(page("quickstart.md"), "status")[0] == "CONVERGED"
    rows = re.findall(r"^\| `([A-Z_]+)` \|", page("quickstart.md"), re.MULTILINE)
    assert rows == [status.name for status in ib.Status]


def test_the_tables_of_solvers_and_adjoints_name_all_of_them():
    text = page("choosing.md")
    for heading, module, base in (
        ("solver", ib.solvers, ib.solvers.Solver),
        ("adjoint", ib.adjoints, ib.adjoints.Adjoint),
    ):
        named = {re.match(r"\w+", entry)[0] for entry in first_column(text, heading) if entry[0] != '"'}
        kinds = (getattr(module, name) for name in module.__all__)
        assert named == {
            kind.__name__ for kind in kinds if isinstance(kind, type) and issubclass(kind, base) and kind is not base
        }


def test_the_settings_of_solvers_that_the_table_shows_exist():
    for entry in first_column(page("choosing.md"), "(?:solver|adjoint)"):
        if match := re.fullmatch(r"(\w+)\((\w+(?:, \w+)*)\)", entry):
            settings = getattr(ib.solvers, match[1]).__dataclass_fields__
            assert set(match[2].split(", ")) <= set(settings)


def test_the_reference_has_every_public_name():
    documented = {
        line.split(".")[-1]
        for path in (DOCS / "api").glob("*.md")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("::: ")
    }
    modules = {"adjoints", "operators", "solvers"}
    assert set(ib.__all__) - modules <= documented
    for module in (ib.solvers, ib.adjoints, ib.operators):
        # (on Python 3.10 an alias such as `Callable[...]` passes for a class)
        public = {name: getattr(module, name) for name in module.__all__}
        classes = {name for name, found in public.items() if isinstance(found, type) and get_origin(found) is None}
        assert classes - {"Outcome", "Adjoint"} <= documented
