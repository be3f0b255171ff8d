"""`Solution.gradient_error`: an estimate to the order of magnitude, from the residuals alone."""

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.experiments.oracle import reference_gradient, reference_solution
from implicit_bregman.experiments.problems import Problem, make_problem

SILENT = ib.adjoints.Implicit(on_failure="ignore")


def estimate_and_error(
    problem: Problem, solver: ib.solvers.Solver, adjoint: ib.adjoints.Implicit
) -> tuple[Tensor, Tensor]:
    """The estimate, and the true relative error of each sample's v zᵀ, (B,)."""
    weight, offset = problem.weight.clone().requires_grad_(), problem.offset.clone().requires_grad_()
    energy = ib.QuadraticEnergy.from_matrices(weight)
    found = ib.find_critical_point(energy, problem.geometry, offset, None, problem.regularization, solver, adjoint)
    cotangent = torch.randn(problem.offset.shape, generator=torch.Generator().manual_seed(1)).to(problem.dtype)
    assert found.gradient_error is None
    (found.value * cotangent).sum().backward()
    wide = problem.to(torch.float64)
    exact = reference_solution(wide.weight, wide.offset, wide.geometry, wide.regularization)
    v = reference_gradient(
        wide.weight, wide.offset, exact.value, exact.active, wide.geometry, wide.regularization, cotangent.double()
    )
    outer = v[:, :, None] * exact.value[:, None, :]
    ours = offset.grad.double()[:, :, None] * found.value.detach().double()[:, None, :]
    error = torch.linalg.matrix_norm(ours - outer) / torch.linalg.matrix_norm(outer)
    return found.gradient_error.double(), error


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize(
    "settings",
    [
        {"regularization": 0.3},
        {"regularization": 0.05, "geometry": "sigmoid"},
        {"active": 0.0},
        {"active": 0.3},
        {"active": 0.3, "geometry": "arctan"},
    ],
    ids=str,
)
def test_the_order_of_magnitude_of_an_early_stop(settings: dict[str, object], tol: float) -> None:
    problem = make_problem(**{"dim": 16, "batch": 12, "condition": 30.0, "seed": 2, **settings})
    solver = ib.solvers.MM(tol=tol, polish=False, on_failure="ignore")
    estimate, error = estimate_and_error(problem, solver, SILENT)
    ratio = (estimate / error).log10().abs()
    assert float(ratio.median()) <= 1.0, f"median {ratio.median():.2f}"
    assert float(ratio.max()) <= 2.0, f"worst {ratio.max():.2f}"


@pytest.mark.parametrize("tol", [1e-1, 1e-3])
def test_a_backward_solve_that_stops_early(tol: float) -> None:
    problem = make_problem(dim=80, batch=6, condition=100.0, regularization=0.05)
    adjoint = ib.adjoints.Implicit(method="cg", tol=tol)
    estimate, error = estimate_and_error(problem, ib.solvers.Newton(), adjoint)
    assert bool((estimate <= 2 * tol).all())
    assert bool((error <= 30 * estimate).all())
    assert bool((estimate <= 30 * error).all())


@pytest.mark.parametrize("settings", [{"active": 0.2}, {"regularization": 0.1}], ids=str)
def test_default_settings_promise_what_they_keep(settings: dict[str, object], dtype: torch.dtype) -> None:
    problem = make_problem(**{"dim": 32, "batch": 8, "condition": 1e3, **settings}).to(dtype)
    estimate, error = estimate_and_error(problem, ib.solvers.Newton(), ib.adjoints.Implicit())
    limit = 1e-4 if dtype == torch.float32 else 1e-8
    assert float(error.max()) <= limit
    assert float(estimate.max()) <= limit


def test_it_has_the_shape_of_the_batch() -> None:
    layer = ib.BregmanDEQ(4, 6)
    solution = layer.solve(torch.randn(2, 3, 4))
    solution.value.sum().backward()
    assert solution.gradient_error.shape == (2, 3)
    assert layer.last_solution.gradient_error is solution.gradient_error


def test_a_gradient_of_zero_is_no_division_by_zero() -> None:
    layer = ib.BregmanDEQ(4, 6)
    solution = layer.solve(torch.randn(3, 4))
    (0 * solution.value).sum().backward()
    assert bool((solution.gradient_error <= 1e-6).all())
