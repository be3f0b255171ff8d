"""Every solver on the shared problems, with and without the exact solve, against an independent reference.

The reference is SciPy's bounded least squares (γ = 0, W ≺ 0), an independent Newton or projection method, or, where
there are several critical points, MM's own limit proved in float64.
"""

import pytest
import torch

import implicit_bregman as ib
from tests.solvers.helpers import (
    ALL,
    ITERATIVE,
    PROBLEMS,
    approaches_bounds_slowly,
    assert_honest,
    every,
    is_unique,
    names,
    own_residual,
    reference,
    reference_of,
    relative_error,
    solve,
    solver_of,
)

ONE = names(unique=True)
SEVERAL = names(unique=False)
#: MM needs thousands of steps to leave the saddles of these.
PATIENT = [name for name in SEVERAL if PROBLEMS[name].geometry.name in ("isru", "arctan") or "d40" in name]
every_solver = pytest.mark.parametrize("solver", ALL)


def test_the_collection_has_both_kinds() -> None:
    assert len(ONE) >= 50
    assert len(SEVERAL) >= 10
    methods = {reference(name).method for name in ONE}
    assert {"bvls", "newton", "projection"} <= methods
    assert {reference(name).method for name in SEVERAL} == {"mm"}


# One critical point, float64 ------------------------------------------------------------------------------------------


@every_solver
@every(ONE)
def test_exact(name: str, solver: str) -> None:
    problem, exact = PROBLEMS[name], reference(name)
    settings = {"max_iter": 30} if solver.startswith("torchdeq") else {}
    found = solve(problem, solver, **settings)
    assert bool(found.converged.all())
    assert float(relative_error(found.value, exact.value).max()) <= 1e-9
    if problem.regularization == 0:
        lo, hi = problem.geometry.bounds(torch.float64)
        at_bound = (found.value == lo) | (found.value == hi)
        assert bool(found.exact.all())
        assert torch.equal(at_bound, exact.active), "an exact bound is the last float inside C"
    assert bool((own_residual(problem, found.dual) <= 1e-11).all())


@pytest.mark.parametrize("solver", [solver for solver in ALL if solver not in ("anderson", "broyden", "newton")])
@every(ONE[::2])
def test_stepwise_claims_are_true(name: str, solver: str) -> None:
    problem = PROBLEMS[name]
    found = solve(problem, solver, exact=False, max_iter=60)
    assert not bool(found.exact.any())
    assert_honest(problem, found, reference(name), 1e-6)
    own = own_residual(problem, found.dual)
    assert torch.allclose(found.residual, own, rtol=1e-2, atol=1e-14)
    assert torch.equal(found.converged, found.residual <= 1e-11)


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
@every(ONE)
def test_acceleration_alone(name: str, solver: str) -> None:
    """It arrives by itself, except where a bound is approached like 1/k; there it says so."""
    problem = PROBLEMS[name]
    hard = approaches_bounds_slowly(problem) or problem.condition > 100
    found = solve(problem, solver, exact=False, max_iter=60 if hard else 1000)
    assert_honest(problem, found, reference(name), 1e-6)
    if not hard:
        assert bool(found.converged.all())
        assert float(relative_error(found.value, reference(name).value).max()) <= 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("solver", ITERATIVE)
@every(ONE)
def test_stepwise_claims_are_true_after_a_long_run(name: str, solver: str) -> None:
    found = solve(PROBLEMS[name], solver, exact=False, max_iter=5000)
    assert_honest(PROBLEMS[name], found, reference(name), 1e-6)


def test_acceleration_pays_on_an_ill_conditioned_problem() -> None:
    """Condition 1000, a fifth of the coordinates at bounds: MM has not arrived after 3,000 steps."""
    (name,) = (name for name in ONE if "tanh-d32-condition1000-" in name)
    assert not bool(solve(PROBLEMS[name], "mm", exact=False, max_iter=3000).converged.any())
    for solver in ("anderson", "broyden"):
        found = solve(PROBLEMS[name], solver, exact=False, max_iter=3000)
        assert bool(found.converged.all())
        assert int(found.iterations.max()) <= 1000


@every_solver
@pytest.mark.parametrize("geometry", ["tanh", "isru", "sin", "arctan"])
def test_a_multiplier_or_a_distance_close_to_zero(geometry: str, solver: str) -> None:
    """W = −I: the solution is c clipped to C, however close c is to the bound, inside or outside."""
    phi = ib.geometry(geometry)
    top = phi.domain[1]
    gap = torch.tensor([1e-3, 1e-5, 1e-7, 1e-9, -1e-9, -1e-7, -1e-5, -1e-3], dtype=torch.float64)
    x = torch.stack([top - gap, torch.full_like(gap, 0.3)], 1)
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(2, dtype=torch.float64))
    found = ib.find_critical_point(energy, phi, x, solver=solver_of(solver, max_iter=30))
    assert bool(found.converged.all())
    assert torch.allclose(found.value, x.clamp(max=top), rtol=0, atol=1e-14)


# Several critical points, float64 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "exactly"),
    [("mm", True), ("anderson", True), ("anderson", False), ("broyden", True), ("broyden", False)],
)
@every(SEVERAL)
def test_several_critical_points(name: str, solver: str, exactly: bool) -> None:
    """Whatever is claimed is MM's own limit, not just some critical point."""
    problem, exact = PROBLEMS[name], reference(name)
    found = solve(problem, solver, exact=exactly, max_iter=250)
    assert_honest(problem, found, exact, 1e-6)
    if exactly and name not in PATIENT:
        assert bool((found.converged & exact.reached).any()), "otherwise nothing was tested"


@pytest.mark.slow
@pytest.mark.parametrize("solver", ITERATIVE)
@every(SEVERAL)
def test_several_critical_points_with_default_settings(name: str, solver: str) -> None:
    problem, exact = PROBLEMS[name], reference(name)
    found = solve(problem, solver)
    assert_honest(problem, found, exact, 1e-6)
    if problem.geometry.name != "arctan" or problem.regularization > 0:
        assert float(found.converged[exact.reached].double().mean()) >= 0.85


@pytest.mark.parametrize("solver", [solver for solver in ALL if solver.startswith("torchdeq")])
@every(SEVERAL)
def test_torchdeq_claims_critical_points(name: str, solver: str) -> None:
    """It knows nothing of objectives or basins: what it claims is critical, but not always MM's limit."""
    problem = PROBLEMS[name]
    found = solve(problem, solver, max_iter=60)
    assert bool(torch.isfinite(found.value).all())
    assert bool((own_residual(problem, found.dual)[found.converged] <= 1e-11).all())


# Single precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exactly", [True, False], ids=["exact", "plain"])
@pytest.mark.parametrize("solver", [*ITERATIVE, "torchdeq anderson"])
@every(list(PROBLEMS)[::4])
def test_single_precision(name: str, solver: str, exactly: bool) -> None:
    problem = PROBLEMS[name].to(torch.float32)
    exact = reference_of(problem)
    found = solve(problem, solver, exact=exactly, max_iter=60)
    assert found.value.dtype == torch.float32
    assert bool(torch.isfinite(found.dual).all())
    if solver.startswith("torchdeq") and not is_unique(problem):
        assert bool(torch.isfinite(found.value).all())
        return
    assert_honest(problem, found, exact, 1e-3)
    if is_unique(problem) and exactly:
        assert bool(found.converged.all())
        assert float(relative_error(found.value, exact.value).max()) <= 1e-4
