"""Settings: checked where they are given, and nothing is swallowed."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, fields

import pytest
import torch

import implicit_bregman as ib
from implicit_bregman.experiments.reference.problems import make_problem
from implicit_bregman.solvers import MM, Anderson, Auto, Broyden, Newton, Solver, TorchDEQ, solver_named
from tests.solvers.helpers import FIRST_ORDER, own_residual, solve

CLASSES = (MM, Anderson, Broyden, Newton, TorchDEQ)
every_class = pytest.mark.parametrize("kind", CLASSES)
SHARED = {"tol", "max_iter", "exact", "trace", "on_failure"}


@every_class
def test_an_unknown_setting_is_refused_and_the_known_ones_are_named(kind: type[Solver]) -> None:
    with pytest.raises(TypeError, match=f"{kind.__name__} has no setting 'stop_mode'; its settings are") as raised:
        kind(stop_mode="abs")
    named = set(str(raised.value).split("settings are ")[1].split(", "))
    assert named == {field.name for field in fields(kind)}
    assert named >= SHARED


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tol": 0.0}, "tol must be positive and finite, got 0.0"),
        ({"tol": -1e-6}, "tol must be positive and finite, got -1e-06"),
        ({"tol": float("nan")}, "tol must be positive and finite, got nan"),
        ({"tol": float("inf")}, "tol must be positive and finite, got inf"),
        ({"tol": "small"}, "tol must be positive and finite, got 'small'"),
        ({"max_iter": 0}, "max_iter must be a whole number of at least 1, got 0"),
        ({"max_iter": -3}, "max_iter must be a whole number of at least 1, got -3"),
        ({"max_iter": 10.0}, "max_iter must be a whole number of at least 1, got 10.0"),
        ({"max_iter": True}, "max_iter must be a whole number of at least 1, got True"),
        ({"exact": 1}, "exact must be True or False, got 1"),
        ({"trace": "yes"}, "trace must be True or False, got 'yes'"),
        ({"on_failure": "print"}, "on_failure must be one of warn, raise, ignore, got 'print'"),
    ],
    ids=str,
)
@every_class
def test_impossible_settings_are_refused(kind: type[Solver], settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Anderson, {"memory": 0}, "memory must be a whole number of at least 1, got 0"),
        (Anderson, {"ridge": 0.0}, "ridge must be positive and finite, got 0.0"),
        (Anderson, {"ridge": -1e-9}, "ridge must be positive"),
        (Broyden, {"memory": 0}, "memory must be a whole number of at least 1, got 0"),
        (Broyden, {"memory": 2.5}, "memory must be a whole number"),
        (TorchDEQ, {"method": "newton"}, "method must be one of anderson, broyden, fixed_point_iter, got 'newton'"),
    ],
    ids=str,
)
def test_impossible_settings_of_one_method_are_refused(
    kind: type[Solver], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)


@every_class
def test_settings_are_values(kind: type[Solver]) -> None:
    solver = kind(tol=1e-5, max_iter=7)
    assert solver == kind(tol=1e-5, max_iter=7)
    assert solver != kind(tol=1e-5, max_iter=8)
    assert hash(solver) == hash(kind(tol=1e-5, max_iter=7))
    assert copy.deepcopy(solver) == solver
    assert pickle.loads(pickle.dumps(solver)) == solver
    assert "max_iter=7" in repr(solver)
    with pytest.raises(FrozenInstanceError):
        solver.tol = 1.0


@pytest.mark.parametrize(
    ("name", "kind"), [("auto", Auto), ("newton", Newton), ("mm", MM), ("anderson", Anderson), ("broyden", Broyden)]
)
def test_solvers_by_name(name: str, kind: type[Solver]) -> None:
    assert solver_named(name) == kind()
    given = kind(max_iter=3)
    assert solver_named(given) is given


def test_an_unknown_solver_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(ValueError, match=r"solver must be one of auto, mm, anderson, broyden, newton.*got 'adam'"):
        solver_named("adam")
    with pytest.raises(TypeError, match=r"solver must be a name or an instance such as .*Anderson"):
        solver_named(MM)
    with pytest.raises(ValueError, match="solver must be one of"):
        ib.find_critical_point(ib.QuadraticEnergy(2), "tanh", torch.zeros(1, 2), solver="adam")


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("solver", FIRST_ORDER)  # Newton asks more than the residual: E itself has to vanish
def test_tolerance_is_met_and_not_overdone(solver: str, tol: float) -> None:
    problem = make_problem(dim=10, batch=4, condition=10.0, regularization=0.2, seed=3)
    found = solve(problem, solver, tol=tol, exact=False, trace=True)
    assert bool(found.converged.all())
    assert bool((own_residual(problem, found.dual) <= tol).all())
    before = found.trace.residual.gather(0, (found.iterations - 1)[None])[0]
    assert bool((before > tol).all()), "it stops at the first iterate that meets the tolerance"


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-11), (torch.float32, 1e-6)])
def test_default_tolerance_by_precision(dtype: torch.dtype, tol: float) -> None:
    for kind in CLASSES:
        assert kind().tolerance(dtype) == tol
        assert kind(tol=0.25).tolerance(dtype) == 0.25


@pytest.mark.parametrize("memory", [1, 2, 5, 40])
@pytest.mark.parametrize("kind", [Anderson, Broyden])
def test_any_memory_works(kind: type[Solver], memory: int, dtype: torch.dtype) -> None:
    """More than there are iterates or dimensions included: the Gram matrix is then singular."""
    problem = make_problem(dim=6, batch=4, condition=10.0, active=0.34, seed=3).to(dtype)
    found = solve(problem, kind(memory=memory, exact=False))
    assert bool(found.converged.all())
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    assert torch.allclose(found.value, problem.solution, atol=tolerance)


@pytest.mark.parametrize("ridge", [1e-300, 1e-12, 1e-2, 1.0, 1e6])
def test_any_ridge_works(ridge: float, dtype: torch.dtype) -> None:
    problem = make_problem(dim=6, batch=4, condition=10.0, active=0.34, seed=3).to(dtype)
    found = solve(problem, Anderson(ridge=ridge, exact=False, max_iter=3000, on_failure="ignore"))
    assert bool(torch.isfinite(found.value).all())
    if ridge <= 1e-2:
        assert bool(found.converged.all())


@pytest.mark.parametrize("kind", [Anderson, Broyden])
def test_a_singular_gram_matrix_is_harmless(kind: type[Solver], dtype: torch.dtype) -> None:
    """One dimension, equal samples, a coordinate that never moves: all residual differences are parallel."""
    weight = torch.diag(torch.tensor([-0.5, -0.1, -1.0], dtype=dtype))
    energy = ib.QuadraticEnergy.from_matrices(weight)
    x = torch.tensor([[0.0, 0.05, 0.0]], dtype=dtype).expand(3, 3)
    found = ib.find_critical_point(energy, "tanh", x, solver=kind(memory=20, exact=False))
    assert bool(found.converged.all())
    assert torch.allclose(found.value, torch.tensor([0.0, 0.5, 0.0], dtype=dtype).expand(3, 3), atol=1e-4)


def test_the_exact_solve_is_counted_and_can_be_switched_off() -> None:
    problem = make_problem("convex", "arctan", 12, 4, 30.0, 0.25, seed=3)
    on, off = (solve(problem, "anderson", exact=exactly, max_iter=200) for exactly in (True, False))
    assert bool(on.exact.all())
    assert bool((on.evaluations > on.iterations + 1).all())
    assert not bool(off.exact.any())
    assert torch.equal(off.evaluations, off.iterations + 1)
    assert not bool(off.converged.any()), "the iterates approach an active bound like 1/k"
