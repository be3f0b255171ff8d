"""The numbers on the errata page are those of its script, and they show what the page says."""

import importlib.util
import json
import math
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"

# Rounding errors: their size is the machine's business, not their digits.
ROUNDING = {
    "weight_class.tangency_identity_error",
    "sin_row.clamped_largest_rise",
    "corrected_theorem.descent_identity_error",
    "corrected_theorem.largest_relative_rise",
}


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


errata = _load(DOCS / "scripts" / "errata.py")
measured = _load(DOCS / "hooks" / "measured.py")


@pytest.fixture(scope="module")
def stored() -> dict[str, dict[str, float]]:
    return json.loads(errata.NUMBERS_FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def computed() -> dict[str, dict[str, float]]:
    return {name: section() for name, section in errata.SECTIONS.items()}


def test_the_file_has_the_numbers_of_the_script(stored, computed):
    assert {name: set(numbers) for name, numbers in stored.items()} == {
        name: set(numbers) for name, numbers in computed.items()
    }
    for name, numbers in computed.items():
        for key, value in numbers.items():
            if f"{name}.{key}" in ROUNDING:
                assert max(abs(value), abs(stored[name][key])) < 1e-12, f"{name}.{key}"
            else:
                assert math.isclose(value, stored[name][key], rel_tol=1e-6, abs_tol=1e-60), f"{name}.{key}"


def test_the_page_uses_every_number(stored):
    page = (DOCS / "errata.md").read_text(encoding="utf-8")
    used = {(match[1], match[2]) for match in measured.PLACEHOLDER.finditer(page)}
    assert used == {(name, key) for name, numbers in stored.items() for key in numbers}


def test_the_filled_page_has_no_gaps(stored):
    filled = measured.fill((DOCS / "errata.md").read_text(encoding="utf-8"), stored)
    assert "{{" not in filled
    for shown in ("2.5413", "0.5413", "−5.53", "1.1416", "0.5532"):
        assert shown in filled


def test_an_unknown_number_is_refused(stored):
    with pytest.raises(KeyError):
        measured.fill("{{ softplus_row.no_such_number:.2f }}", stored)


@pytest.mark.parametrize(
    ("value", "specification", "shown"),
    [
        (-0.25, ".2f", "−0.25"),
        (1.5, "+.2f", "+1.50"),
        (3.4e-16, ".0e", r"$3 \cdot 10^{-16}$"),
        (-1e5, ".1e", r"$-1.0 \cdot 10^{5}$"),
    ],
)
def test_how_numbers_are_written(value, specification, shown):
    assert measured.fill(f"{{{{ a.b:{specification} }}}}", {"a": {"b": value}}) == shown


def test_the_numbers_show_what_the_page_says(computed):
    def number(name: str) -> float:
        section, key = name.split(".")
        return computed[section][key]

    fails = re.compile(r"printed_minimum|minimum_above_f_of_anchor")
    holds = re.compile(r"corrected_minimum|minimum_above_f_of_z")
    for name, numbers in computed.items():
        for key, value in numbers.items():
            if fails.search(key):
                assert value < -0.1, f"{name}.{key}"
            if holds.search(key):
                assert value > -1e-12, f"{name}.{key}"

    assert number("first_term.printed_slope_ratio") == pytest.approx(2, rel=1e-4)
    assert number("weight_class.tangency_gap") > 0.1
    assert number("weight_class.smallest_eigenvalue_euclidean") > -1e-12
    assert number("weight_class.smallest_eigenvalue_plus_sigma_bregman") > -1e-12
    assert number("layer_signs.printed_change_of_f") > 0 > number("layer_signs.corrected_change_of_f")
    assert number("isru_row.activation_at_1") > 1
    assert number("softplus_row.printed_slope_real") - number("softplus_row.inverse_at_1") == pytest.approx(2)
    assert number("sin_row.unclamped_largest_rise") > 0.1
    convexity = dict(computed["prox_convexity"])
    assert convexity.pop("lecun_tanh") < -0.1
    assert min(convexity.values()) > -1e-12
    assert number("convergence.arcsinh_iterate") > 10
    assert number("convergence.arcsinh_displacement") < 1e-5
    assert number("two_cycle.largest_rise") > 1e-3
    assert 2 * number("two_cycle.dual") == pytest.approx(2.2 * math.tanh(number("two_cycle.dual")))
    assert number("corrected_theorem.largest_residual") < 1e-3
    assert number("initial_point_only.derivative_after_200") < 1e-30
    assert max(computed["right_as_printed"].values()) < 1e-25
