"""The pages name what the code has: every geometry, status, solver, adjoint and public name, and nothing else."""

import re
from pathlib import Path

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


def test_both_tables_of_geometries_are_complete():
    text = page("mathematics.md")
    first, second = re.findall(r"^\| name \|.*\n\|[- |]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    for table in (first, second):
        names = [re.findall(r"`(\w+)`", row)[0] for row in table.splitlines()]
        assert tuple(names) == ib.geometries()


@pytest.mark.parametrize("name", ib.geometries())
def test_the_constant_of_strong_convexity_in_the_table(name):
    row = next(
        line
        for line in page("mathematics.md").splitlines()
        if line.startswith(f"| `{name}` |")
        and line.count("|") == 6
        and "gap" not in line
        and line in page("mathematics.md").split("gap to an active bound")[1]
    )
    shown = row.split("|")[4].strip().strip("$")
    g = ib.geometry(name)
    parameters = {"1/\\lambda": 1.0, "1/(ab)": 1 / (1.7159 * 2 / 3)}
    assert g.strong_convexity == pytest.approx(parameters[shown] if shown in parameters else float(shown))


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
            kind.__name__
            for kind in kinds
            if isinstance(kind, type) and issubclass(kind, base) and kind is not base
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
    modules = {"adjoints", "solvers"}
    assert set(ib.__all__) - modules <= documented
    for module in (ib.solvers, ib.adjoints):
        classes = {name for name in module.__all__ if isinstance(getattr(module, name), type)}
        assert classes - {"Outcome", "Adjoint"} <= documented
