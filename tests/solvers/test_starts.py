"""Starts: a tensor, a Solution, at the answer, far away, and with coordinates that have long been saturated."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import implicit_bregman as ib
from implicit_bregman.experiments.reference.problems import make_problem
from implicit_bregman.legendre import separable_geometries
from tests.solvers.helpers import ALL, ITERATIVE, in_domain, relative_error, solve, solver_of

BOX = ib.geometry("tanh").to_box(-2.0, 3.0)
GEOMETRIES = (*map(ib.geometry, separable_geometries()), BOX)
every_geometry = pytest.mark.parametrize("phi", GEOMETRIES, ids=lambda phi: phi.name)
every_own_solver = pytest.mark.parametrize("solver", ITERATIVE)

CASES = {
    "interior": {},
    "active": {"active": 0.3},
    "gamma": {"regularization": 0.3},
    "several": {"kind": "indefinite", "active": 0.25, "regularization": 0.1, "condition": 5.0},
    "general": {"kind": "general", "active": 0.25},
}


@pytest.mark.parametrize("solver", ALL)
@pytest.mark.parametrize("name", CASES)
def test_a_solution_is_a_start_at_the_answer(name: str, solver: str) -> None:
    problem = make_problem(**{"dim": 8, "batch": 4, "condition": 10.0, "seed": 3, **CASES[name]})
    first = solve(problem, "anderson")
    assert bool(first.converged.all())
    again = solve(problem, solver, first)
    assert bool(again.converged.all())
    # Newton for γ = 0 solves for the active set of the start, and confirms it.
    most = 1 if solver == "newton" and problem.regularization == 0 else 0
    assert int(again.iterations.max()) <= most
    assert torch.allclose(again.value, first.value, rtol=0, atol=1e-15)


@every_geometry
@every_own_solver
def test_a_solution_of_a_nearby_problem_is_a_good_start(
    phi: ib.LegendreFunction, solver: str, dtype: torch.dtype
) -> None:
    """Its duals are finite where a bound is active, and lead back from there if the bound is no longer active."""
    active = 0.3 if any(map(math.isfinite, phi.domain)) else 0.0
    problem = make_problem("convex", phi, 8, 4, 10.0, active, seed=3).to(dtype)
    changed = replace(problem, offset=problem.offset.flip(0))
    start = solve(problem, "anderson")
    warm, cold = solve(changed, solver, start), solve(changed, solver)
    assert bool(warm.converged.all())
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    assert float(relative_error(warm.value, cold.value.double()).max()) <= tolerance


@every_own_solver
def test_a_solution_decides_the_basin(solver: str) -> None:
    energy = ib.QuadraticEnergy.from_matrices(torch.tensor([[0.5]], dtype=torch.float64))
    zero = torch.zeros(1, 1, dtype=torch.float64)
    for side in (-1.0, 1.0):
        first = ib.find_critical_point(energy, "tanh", zero + 0.8 * side, solver=solver)
        assert float(first.value) == pytest.approx(side)
        # With c = −0.3 the bounds on both sides are minima, and z = 0.6 is a maximum between them.
        again = ib.find_critical_point(energy, "tanh", zero - 0.3, first, solver=solver)
        assert float(again.value) == pytest.approx(side)


@every_own_solver
def test_a_tensor_is_taken_as_the_start(solver: str) -> None:
    problem = make_problem(dim=8, batch=4, condition=10.0, active=0.25, seed=3)
    start = 0.9 * torch.rand(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = solve(problem, solver, start, trace=True)
    assert torch.allclose(found.trace.dual[0], torch.atanh(start))
    assert bool(found.converged.all())
    assert float(relative_error(found.value, problem.solution).max()) <= 1e-8


@every_own_solver
@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e3])
def test_the_start_does_not_matter_where_the_answer_is_unique(solver: str, scale: float) -> None:
    problem = make_problem(geometry="sigmoid", dim=8, batch=4, condition=10.0, active=0.25, seed=3)
    first = solve(problem, "mm")
    draw = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = solve(problem, solver, replace(first, dual=scale * draw))
    assert bool(found.converged.all())
    assert float(relative_error(found.value, problem.solution).max()) <= 1e-8


@every_geometry
@every_own_solver
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_saturated_duals_are_never_nan(phi: ib.LegendreFunction, solver: str, gamma: float, dtype: torch.dtype) -> None:
    energy = ib.QuadraticEnergy.from_matrices(torch.tensor([[-0.8, 0.3], [0.3, -0.6]], dtype=dtype))
    size = torch.tensor([60.0, 1e6, 1e15, 1e30], dtype=dtype).repeat_interleave(3)[:, None]
    signs = torch.tensor([[1.0, -1.0], [-1.0, -1.0], [1.0, 0.0]], dtype=dtype).repeat(4, 1)
    x = torch.tensor([[0.2, 0.3], [0.1, 0.4], [0.5, -0.1]], dtype=dtype).repeat(4, 1)
    at = ib.find_critical_point(energy, phi, x, regularization=gamma)
    start = replace(at, dual=phi.project_dual(size * signs))
    method = solver_of(solver, max_iter=60)
    found = ib.find_critical_point(energy, phi, x, start, regularization=gamma, solver=method)
    lo, hi = phi.domain
    assert bool(torch.isfinite(found.value).all())
    assert bool(((found.value >= lo) & (found.value <= hi)).all())
    assert bool(torch.isfinite(found.dual).all())
    assert bool(torch.isfinite(found.residual).all())
    exact = at.value[found.converged]
    assert torch.allclose(found.value[found.converged], exact, atol=1e-6 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize("phi", [phi for phi in GEOMETRIES if math.isfinite(phi.domain[0])], ids=lambda phi: phi.name)
@every_own_solver
def test_a_start_one_rounding_error_inside_the_bound(phi: ib.LegendreFunction, solver: str, dtype: torch.dtype) -> None:
    problem = make_problem("convex", phi, 6, 2, 5.0, 0.34, seed=1).to(dtype)
    lo = torch.tensor(phi.bounds(dtype)[0], dtype=dtype)
    start = torch.nextafter(lo, torch.tensor(torch.inf, dtype=dtype)).expand(2, 6)
    if not bool(phi.is_interior(start).all()):
        start = torch.nextafter(start, torch.tensor(torch.inf, dtype=dtype))
    found = solve(problem, solver, start)
    assert in_domain(problem, found.value)
    assert bool(torch.isfinite(found.dual).all())
    assert bool(found.converged.all())
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    assert float(relative_error(found.value, solve(problem, solver).value.double()).max()) <= tolerance


@pytest.mark.parametrize("value", [1.001, -1.001, 1.5, -2.0])
def test_a_start_outside_the_domain_is_refused(value: float) -> None:
    problem = make_problem(dim=3, batch=2)
    start = torch.zeros(2, 3, dtype=torch.float64)
    start[1, 2] = value
    message = rf"initial must lie in the interior of the domain .*tanh, got entries such as {value:g}.*activation"
    with pytest.raises(ValueError, match=message):
        solve(problem, "mm", start)


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (torch.zeros(3).double(), ValueError, r"initial must have shape \(2, 3\), got \(3,\)"),
        (torch.zeros(2, 4).double(), ValueError, r"initial must have shape \(2, 3\)"),
        (torch.zeros(2, 3, dtype=torch.int64), TypeError, "initial must be a floating-point tensor or a Sol.*int64"),
        ([[0.0] * 3] * 2, TypeError, "initial must be a floating-point tensor or a Solution, got list"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(start: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solve(make_problem(dim=3, batch=2), "mm", start)


def test_a_solution_of_another_shape_is_refused() -> None:
    other = solve(make_problem(dim=3, batch=4), "mm")
    with pytest.raises(ValueError, match=r"initial must have shape \(2, 3\), got \(4, 3\)"):
        solve(make_problem(dim=3, batch=2), "mm", other)
