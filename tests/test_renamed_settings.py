"""Settings that have been renamed: the old name is accepted, with a warning that names the new one."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import warnings
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import pytest
import torch

import implicit_bregman as ib
from implicit_bregman.settings import Settings
from implicit_bregman.solvers import Solver

SOLVERS = [
    ib.solvers.MM,
    ib.solvers.Anderson,
    ib.solvers.Broyden,
    ib.solvers.Newton,
    ib.solvers.Splitting,
    ib.solvers.TorchDEQ,
]
every_solver = pytest.mark.parametrize("kind", SOLVERS, ids=lambda kind: kind.__name__)
OLD_NAME = r"\w+\(polish=\.\.\.\) is deprecated: the setting is now called exact"


@every_solver
@pytest.mark.parametrize("exact", [True, False])
def test_the_old_name_makes_the_same_settings(kind: type[Solver], exact: bool) -> None:
    with pytest.warns(DeprecationWarning, match=OLD_NAME) as told:
        made = kind(tol=1e-3, polish=exact)  # type: ignore[call-arg]
    assert [warning.filename for warning in told] == [__file__]
    assert made == kind(tol=1e-3, exact=exact)
    assert hash(made) == hash(kind(tol=1e-3, exact=exact))
    assert repr(made) == repr(kind(tol=1e-3, exact=exact))
    assert made.exact is exact
    assert "polish" not in repr(made)


@every_solver
def test_the_old_name_is_no_setting_of_its_own(kind: type[Solver]) -> None:
    assert "polish" not in {field.name for field in fields(kind)}
    assert "polish" not in inspect.signature(kind).parameters
    assert inspect.signature(kind).parameters["exact"].default is True
    with pytest.raises(TypeError, match=r"settings are .*\bexact\b") as raised:
        kind(polishing=True)  # type: ignore[call-arg]
    assert "polish," not in str(raised.value)


@every_solver
def test_two_names_that_contradict_each_other_are_refused(kind: type[Solver]) -> None:
    with pytest.raises(ValueError, match=r"exact=True and polish=False contradict .* give exact alone"):
        kind(exact=True, polish=False)  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match=OLD_NAME):
        assert not kind(exact=False, polish=False).exact  # type: ignore[call-arg]


@every_solver
def test_bad_values_are_refused_under_the_new_name(kind: type[Solver]) -> None:
    with (
        pytest.warns(DeprecationWarning, match=OLD_NAME),
        pytest.raises(ValueError, match="exact must be True or False, got 1"),
    ):
        kind(polish=1)  # type: ignore[call-arg]


@every_solver
def test_the_old_name_can_be_read(kind: type[Solver]) -> None:
    solver = kind(exact=False)
    with pytest.warns(DeprecationWarning, match=rf"{kind.__name__}\.polish is deprecated: .* exact") as told:
        assert solver.polish is False  # type: ignore[attr-defined]
    assert [warning.filename for warning in told] == [__file__]


@every_solver
def test_copies_and_replacements_take_the_new_name(kind: type[Solver]) -> None:
    solver = kind(exact=False)
    for other in (replace(solver), copy.copy(solver), copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert other == solver
        assert vars(other) == vars(solver)
    assert replace(solver, exact=True).exact
    # `replace` gives all settings anew, the old name with the new one's value.
    with pytest.raises(ValueError, match="give exact alone"):
        replace(solver, polish=True)  # type: ignore[call-arg]


@every_solver
def test_pickles_that_say_the_old_name_are_read(kind: type[Solver]) -> None:
    """Not by a default, which would be the opposite; nobody is warned of what is in a file."""
    solver, old = kind(exact=False), kind.__new__(kind)
    state = {{"exact": "polish"}.get(name, name): value for name, value in vars(solver).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        old.__setstate__(state)
    assert old == solver
    assert vars(old) == vars(solver)


def test_a_recorded_layer_that_says_the_old_name_is_read() -> None:
    """`torch.export` keeps a layer's settings as a string."""
    layer = ib.BregmanDEQ(3, 4, solver=ib.solvers.MM(exact=False, max_iter=7, on_failure="ignore"))
    assert json.loads(layer.settings)[1][1]["exact"] is False
    old = layer.settings.replace('"exact"', '"polish"')
    c = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    arguments = (torch.eye(4), c, 1, 1.0, True)
    with pytest.warns(DeprecationWarning, match=OLD_NAME):
        found = torch.ops.implicit_bregman.critical_point(*arguments, old)
    expected = torch.ops.implicit_bregman.critical_point(*arguments, layer.settings)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@dataclass(frozen=True)
class _Renamed(Settings):
    aliases: ClassVar[dict[str, str]] = {"colour": "color", "shade": "color"}
    color: str = "red"
    size: float = 1.0


def test_any_settings_may_have_renamed_ones() -> None:
    with pytest.warns(DeprecationWarning, match=r"_Renamed\(colour=\.\.\.\) is deprecated: .* called color"):
        made = _Renamed(size=2, colour="blue")  # type: ignore[call-arg]
    assert made == _Renamed("blue", 2)
    with pytest.raises(ValueError, match="color='blue' and colour='red' contradict"):
        _Renamed(color="blue", colour="red")  # type: ignore[call-arg]
    with (
        pytest.warns(DeprecationWarning, match="colour"),
        pytest.raises(ValueError, match="color='red' and shade='blue' contradict"),
    ):
        _Renamed(colour="red", shade="blue")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"_Renamed has no setting 'hue'; its settings are color, size"):
        _Renamed(hue="blue")  # type: ignore[call-arg]


def test_a_setting_of_a_subclass_may_not_take_an_old_name() -> None:
    """It would be read as the new one."""
    with pytest.raises(TypeError, match="cannot define 'colour': it is the old name of the setting 'color'"):

        @dataclass(frozen=True)
        class Wrong(_Renamed):
            colour: str = "green"


@pytest.mark.parametrize("exact", [True, False])
def test_a_solution_has_its_old_name_too(exact: bool) -> None:
    c = torch.tensor([[0.3, 5.0]], dtype=torch.float64)
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(2, dtype=torch.float64))
    solution = ib.find_critical_point(energy, "tanh", c, solver=ib.solvers.Anderson(exact=exact))
    assert bool(solution.exact.all()) is exact
    with pytest.warns(DeprecationWarning, match=r"Solution\.polished is deprecated: .* exact") as told:
        assert torch.equal(solution.polished, solution.exact)
    assert [warning.filename for warning in told] == [__file__]
    assert "polished" not in {field.name for field in fields(solution)}
    with pytest.raises(AttributeError):
        solution.polished = solution.exact  # type: ignore[misc]
    old = ib.Solution.__new__(ib.Solution)
    old.__setstate__({{"exact": "polished"}.get(name, name): value for name, value in vars(solution).items()})
    assert vars(old) == vars(solution)
    assert torch.equal(pickle.loads(pickle.dumps(solution.detach())).exact, solution.exact)
