"""A previous solution as the start: cheaper, the same answer, and safe wherever it comes from."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.experiments.reference.problems import Problem, make_problem
from implicit_bregman.solvers import solver_named
from tests.solvers.helpers import exact_or_not, in_domain, relative_error

SOLVERS = ("mm", "anderson", "broyden", "newton")
CASES = {
    "interior": {},
    "active": {"active": 0.3},
    "gamma": {"regularization": 0.3},
    "sigmoid, active": {"geometry": "sigmoid", "active": 0.3},
    "half-line, gamma": {"geometry": "softplus", "regularization": 0.3},
    "not Legendre": {"geometry": "sin", "active": 0.3, "regularization": 0.3},
}
every_solver = pytest.mark.parametrize("name", SOLVERS)
every_case = pytest.mark.parametrize("case", CASES)


@functools.cache
def problem_of(case: str) -> Problem:
    return make_problem(**{"dim": 8, "batch": 4, "condition": 10.0, "seed": 3, **CASES[case]})


def solve(
    problem: Problem, solver: str | ib.solvers.Solver, initial: Tensor | ib.Solution | None = None, **how: object
) -> ib.Solution:
    energy = ib.QuadraticEnergy.from_matrices(problem.weight)
    method = replace(solver_named(solver), **how)
    return ib.find_critical_point(energy, problem.geometry, problem.offset, initial, problem.regularization, method)


def moved(problem: Problem, by: float) -> Problem:
    noise = torch.randn(problem.offset.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return replace(problem, offset=problem.offset + by * noise.to(problem.dtype))


# What it saves ------------------------------------------------------------------------------------------------------


def counts_plainly(case: str, name: str, exactly: bool) -> bool:
    """Whether the number of evaluations depends on the start.

    For γ = 0, `Newton` guesses the active set by a fixed number of steps, which mostly is enough from any start; and
    what is solved exactly begins with a fixed number of MM steps, unless the start is the solution.
    """
    return (name != "newton" and not exactly) or "regularization" in CASES[case]


@every_solver
@every_case
@exact_or_not
def test_the_solution_itself_costs_least(case: str, name: str, exactly: bool, dtype: torch.dtype) -> None:
    problem = problem_of(case).to(dtype)
    cold = solve(problem, name, exact=exactly)
    warm = solve(problem, name, cold, exact=exactly)
    assert bool(cold.converged.all())
    assert bool(warm.converged.all())
    if counts_plainly(case, name, exactly=False):
        assert bool((warm.evaluations < cold.evaluations).all())
    assert bool((warm.evaluations <= cold.evaluations).all())
    assert float(relative_error(warm.value, cold.value.double()).max()) <= (1e-9 if dtype == torch.float64 else 1e-5)


@every_solver
@every_case
@exact_or_not
def test_a_nearby_solution_saves_evaluations(case: str, name: str, exactly: bool, dtype: torch.dtype) -> None:
    problem = problem_of(case).to(dtype)
    near = moved(problem, 1e-4)
    cold, warm = (solve(near, name, start, exact=exactly) for start in (None, solve(problem, name, exact=exactly)))
    assert bool(cold.converged.all())
    assert bool(warm.converged.all())
    if counts_plainly(case, name, exactly):
        assert int(warm.evaluations.sum()) < int(cold.evaluations.sum())
    assert int(warm.evaluations.sum()) <= int(cold.evaluations.sum())
    assert float(relative_error(warm.value, cold.value.double()).max()) <= (1e-8 if dtype == torch.float64 else 1e-4)


@every_solver
@every_case
def test_the_solver_that_gave_it_does_not_matter(case: str, name: str) -> None:
    problem = problem_of(case)
    for other in SOLVERS:
        start = solve(problem, other)
        warm = solve(moved(problem, 1e-3), name, start)
        exact = solve(moved(problem, 1e-3), name)
        assert bool(warm.converged.all())
        assert float(relative_error(warm.value, exact.value).max()) <= 1e-8


# Bounds -------------------------------------------------------------------------------------------------------------


@every_solver
@pytest.mark.parametrize("case", ["active", "sigmoid, active"])
@exact_or_not
def test_an_active_bound_is_left_again(case: str, name: str, exactly: bool) -> None:
    """The new answer has other active bounds than the start, whose duals there may be far out."""
    problem = problem_of(case)
    changed = replace(problem, offset=problem.offset.flip(0))
    start = solve(problem, name, exact=exactly)
    warm, cold = solve(changed, name, start, exact=exactly), solve(changed, name, exact=exactly)
    lo, hi = problem.geometry.domain
    before, after = (torch.minimum(s.value - lo, hi - s.value) <= 1e-6 for s in (start, warm))
    assert bool((before & ~after).any())
    assert bool((after & ~before).any())
    assert bool(warm.converged.all())
    assert float(relative_error(warm.value, cold.value).max()) <= 1e-8


# A layer ------------------------------------------------------------------------------------------------------------


@every_solver
@pytest.mark.parametrize("regularization", [0.0, 0.3])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (2, 0, 3)], ids=str)
def test_a_layer_with_leading_shapes(
    name: str, regularization: float, batch: tuple[int, ...], generator: torch.Generator
) -> None:
    # What does without exact solve counts plainly; Newton does for γ > 0 only.
    solver = replace(solver_named(name), exact=False)
    layer = ib.BregmanDEQ(4, 6, regularization=regularization, solver=solver, dtype=torch.float64)
    x = 3 * torch.randn(*batch, 4, generator=generator, dtype=torch.float64)
    cold = layer.solve(x)
    warm = layer.solve(x, initial=cold)
    near = layer.solve(x + 1e-4, initial=layer.last_solution)
    assert warm.value.shape == near.value.shape == (*batch, 6)
    assert warm.evaluations.shape == batch
    torch.testing.assert_close(warm.value, cold.value, rtol=0, atol=1e-9)
    torch.testing.assert_close(near.value, layer(x + 1e-4), rtol=0, atol=1e-9)
    if cold.evaluations.numel() and (name != "newton" or regularization):
        assert bool((warm.evaluations < cold.evaluations).all())
        # Newton's last step from the cold start is as good as that from nearby.
        assert int(near.evaluations.sum()) < int(cold.evaluations.sum()) + (name == "newton")
    near.value.sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in layer.parameters())


@every_solver
@pytest.mark.parametrize("regularization", [0.0, 0.3])
def test_no_graph_is_kept_from_solve_to_solve(name: str, regularization: float, generator: torch.Generator) -> None:
    layer = ib.BregmanDEQ(4, 6, regularization=regularization, solver=name, dtype=torch.float64)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    first = x.clone().requires_grad_()
    start = layer.solve(first)
    layer.solve(x, initial=start).value.sum().backward()
    assert first.grad is None


# Starts that do not fit ---------------------------------------------------------------------------------------------


@every_solver
def test_another_batch_shape_is_refused(name: str) -> None:
    problem = problem_of("gamma")
    start = solve(problem, name)
    fewer = replace(problem, offset=problem.offset[:2])
    with pytest.raises(ValueError, match=r"initial must have shape \(2, 8\), got \(4, 8\)"):
        solve(fewer, name, start)
    shaped = replace(problem, offset=problem.offset.reshape(2, 2, 8))
    with pytest.raises(ValueError, match=r"initial must have shape \(2, 2, 8\), got \(4, 8\)"):
        solve(shaped, name, start)


@every_solver
@every_case
@pytest.mark.parametrize("to", [torch.float32, torch.float64], ids=["down", "up"])
def test_another_precision_is_converted(case: str, name: str, to: torch.dtype) -> None:
    """Also where a dual that is far out in one precision is farther than any in the other."""
    source = torch.float64 if to == torch.float32 else torch.float32
    start = solve(problem_of(case).to(source), name)
    problem = problem_of(case).to(to)
    warm, cold = solve(problem, name, start), solve(problem, name)
    assert warm.value.dtype == warm.dual.dtype == to
    assert bool(warm.converged.all())
    assert bool(torch.isfinite(warm.dual).all())
    tolerance = 1e-8 if to == torch.float64 else 1e-4
    assert float(relative_error(warm.value, cold.value.double()).max()) <= tolerance


@every_solver
def test_a_dual_beyond_the_range_of_float32_is_clamped(name: str) -> None:
    problem = problem_of("active")
    start = solve(problem, name)
    far = replace(start, dual=1e300 * start.dual.sign())
    warm = solve(problem.to(torch.float32), name, far, on_failure="ignore", max_iter=50)
    assert bool(torch.isfinite(warm.value).all())
    assert bool(torch.isfinite(warm.dual).all())


@every_solver
def test_half_precision_input(name: str, generator: torch.Generator) -> None:
    layer = ib.BregmanDEQ(4, 6, solver=name).to(torch.bfloat16)
    x = torch.randn(5, 4, generator=generator).to(torch.bfloat16)
    cold = layer.solve(x)
    warm = layer.solve(x, initial=cold)
    assert cold.dual.dtype == torch.float32
    assert warm.value.dtype == torch.bfloat16
    assert torch.equal(warm.value, cold.value)
    assert bool((warm.evaluations <= cold.evaluations).all())


@every_solver
def test_another_device_is_refused(name: str) -> None:
    problem = problem_of("gamma")
    start = solve(problem, name)
    away = replace(start, dual=start.dual.to("meta"))
    with pytest.raises(ValueError, match="initial is on meta, but x is on cpu: move one of them"):
        solve(problem, name, away)


# Starts that failed -------------------------------------------------------------------------------------------------


@every_solver
@every_case
def test_a_start_with_failed_rows(case: str, name: str, dtype: torch.dtype) -> None:
    """A row whose input was NaN has a NaN value, but a finite dual: the next solve starts there like any other."""
    problem = problem_of(case).to(dtype)
    offset = problem.offset.clone()
    offset[1, 2], offset[3] = torch.nan, torch.inf
    broken = solve(replace(problem, offset=offset), name, on_failure="ignore")
    assert (broken.status == ib.Status.INVALID_INPUT).tolist() == [False, True, False, True]
    assert bool(torch.isnan(broken.value[[1, 3]]).all())
    assert bool(torch.isfinite(broken.dual).all())
    warm, cold = solve(problem, name, broken), solve(problem, name)
    assert bool(warm.converged.all())
    assert float(relative_error(warm.value, cold.value.double()).max()) <= (1e-9 if dtype == torch.float64 else 1e-4)
    again = solve(replace(problem, offset=offset), name, warm, on_failure="ignore")
    assert bool(torch.isfinite(again.dual).all())


@every_solver
@every_case
def test_a_start_that_was_stopped_early(case: str, name: str) -> None:
    problem = problem_of(case)
    early = solve(problem, name, max_iter=1, exact=False, on_failure="ignore")
    assert bool(torch.isfinite(early.dual).all())
    warm, cold = solve(problem, name, early), solve(problem, name)
    assert bool(warm.converged.all())
    assert float(relative_error(warm.value, cold.value).max()) <= 1e-9


@every_solver
def test_a_start_that_ran_away(name: str) -> None:
    """Its last finite iterate, far out, is a start like any other."""
    weight = torch.tensor([[-0.5, 0.0], [0.0, 0.3]], dtype=torch.float64)
    x = torch.tensor([[0.2, 0.1], [0.1, -0.4]], dtype=torch.float64)
    with torch.no_grad():
        energy = ib.QuadraticEnergy.from_matrices(torch.zeros_like(weight))
        method = replace(solver_named(name), on_failure="ignore", max_iter=300)
        start = ib.find_critical_point(energy, "softplus", x, solver=method)
        assert bool(torch.isfinite(start.dual).all())
        bounded = ib.QuadraticEnergy.from_matrices(-torch.eye(2, dtype=torch.float64))
        warm = ib.find_critical_point(bounded, "softplus", x, start, solver=name)
    assert bool(warm.converged.all())
    assert in_domain(make_problem(geometry="softplus", dim=2, batch=2), warm.value)
