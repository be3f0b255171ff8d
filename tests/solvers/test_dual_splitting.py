"""γ > 0 and an operator that splits: operator splitting ends at the critical points that Newton's method finds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.objective import Objective
from implicit_bregman.operators import Convolution, Costs, Kronecker, LinearOperator, LowRank
from implicit_bregman.operators.splitter import Splitter
from implicit_bregman.solvers import Newton, Outcome, solver_named
from tests.problems import normal

B, SIZE, CHANNELS = 6, (5, 4), 3


def convolution(scale: float = 0.3, skew: float = 0.0, padding: str = "zeros") -> Convolution:
    other = skew * normal(CHANNELS, CHANNELS, 3, 3, seed=1) if skew else None
    return Convolution.gram(scale * normal(CHANNELS, CHANNELS, 3, 3), SIZE, padding, margin=0.1, skew=other)


OPERATORS = {
    "convolution": convolution,
    "circular": lambda: convolution(padding="circular"),
    "monotone": lambda: convolution(skew=0.3),
    "low rank": lambda: LowRank(
        0.3 * normal(60, 4), torch.rand(60, generator=torch.Generator().manual_seed(3)).double()
    ),
    "Kronecker": lambda: Kronecker(
        *(root.mT @ root / len(root) + 0.1 * torch.eye(len(root)).double() for root in (normal(6, 6), normal(10, 10)))
    ),
}


def solved(
    operator: LinearOperator,
    c: Tensor,
    geometry: str,
    gamma: float,
    solver: object = "auto",
    start: Tensor | None = None,
) -> Outcome:
    # (no matrix is made of it, however small it is)
    energy = ib.QuadraticEnergy.from_operator(operator.with_costs(Costs(matrix_entries=0))).bind(c)
    objective = Objective(energy, ib.geometry(geometry), gamma)
    return solver_named(solver).solve(objective, torch.zeros_like(c) if start is None else start)


def equation(operator: LinearOperator, c: Tensor, gamma: float, dual: Tensor, geometry: str) -> Tensor:
    """γy + Hρ(y) − c in float64, the largest entry of each sample."""
    z = ib.geometry(geometry).activation(dual.double())
    return (gamma * dual.double() + operator.to(torch.float64).product(z) - c.double()).abs().amax(-1)


@pytest.mark.parametrize("gamma", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("geometry", ["softplus", "tanh", "sigmoid", "exp"])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_critical_point_solves_the_equation(name: str, geometry: str, gamma: float, dtype: torch.dtype) -> None:
    operator, c = OPERATORS[name]().to(dtype), 2 * normal(B, 60, seed=2).to(dtype)
    found = solved(operator, c, geometry, gamma)
    assert (found.status == ib.Status.CONVERGED).all()
    if geometry != "exp" and gamma >= 0.1:  # (else it may be ill conditioned)
        assert found.splitter is not None
    error = equation(operator, c, gamma, found.point.dual, geometry)
    # (a dual in float32 is rounded)
    size = gamma * float(found.point.dual.abs().amax()) + float(operator.product(found.point.value).abs().amax())
    assert float(error.max()) <= (1e-9 if dtype == torch.float64 else 3e-6) * (1 + size)


@pytest.mark.parametrize("name", OPERATORS)
def test_where_phi_is_not_legendre_bounds_may_be_active(name: str, dtype: torch.dtype) -> None:
    operator, c = OPERATORS[name]().to(dtype), 3 * normal(B, 60, seed=2).to(dtype)
    found, exact = solved(operator, c, "sin", 0.3), solved(operator.to(torch.float64), c.double(), "sin", 0.3, Newton())
    assert found.splitter is not None
    assert bool((~found.free).any())
    tol = 1e-5 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found.point.value.double(), exact.point.value, rtol=0, atol=tol)


@pytest.mark.parametrize("gamma", [1.0, 0.1])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_gradient_is_that_of_the_dense_system(name: str, gamma: float, dtype: torch.dtype) -> None:
    operator, c, g = OPERATORS[name]().to(dtype), 2 * normal(B, 60, seed=2).to(dtype), normal(B, 60, seed=5).to(dtype)
    x = c.requires_grad_()
    energy = ib.QuadraticEnergy.from_operator(operator.with_costs(Costs(matrix_entries=0)))
    found = ib.find_critical_point(energy, "softplus", x, regularization=gamma)
    found.value.backward(g)
    assert bool((found.adjoint.status == ib.Status.CONVERGED).all())
    assert float(found.adjoint.residual.max()) <= (1e-6 if dtype == torch.float32 else 1e-12)
    ratio = gamma / ib.geometry("softplus").slope(found.dual.double())
    v = torch.linalg.solve(torch.diag_embed(ratio) + operator.dense().double().mT, g.double()[:, :, None]).squeeze(-1)
    assert x.grad is not None
    tol = 1e-5 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(x.grad.double(), v, rtol=tol, atol=tol)


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("name", OPERATORS)
def test_converged_means_a_residual_within_the_tolerance(name: str, tol: float) -> None:
    operator, c = OPERATORS[name]().to(torch.float32), 2 * normal(B, 60, seed=2).float()
    found = solved(operator, c, "tanh", 0.5, ib.solvers.Auto(tol=tol))
    assert found.complete
    exact = solved(operator.to(torch.float64), c.double(), "tanh", 0.5)
    error = (found.point.value.double() - exact.point.value).abs().amax(-1)
    assert float(error.max()) <= 20 * tol
    assert float(found.point.residual.max()) <= tol


def test_max_iter_is_a_bound() -> None:
    operator, c = convolution(), 2 * normal(B, 60, seed=2)
    found = solved(operator, c, "tanh", 0.01, ib.solvers.Auto(max_iter=3))
    assert int(found.iterations.max()) <= 3
    assert bool((found.status == ib.Status.MAX_ITER).all())


def test_a_start_near_the_solution_takes_fewer_iterations() -> None:
    operator, c = convolution(), 2 * normal(B, 60, seed=2)
    cold = solved(operator, c, "softplus", 0.1)
    warm = solved(operator, c, "softplus", 0.1, start=cold.point.dual + 1e-6)
    assert float(warm.iterations.double().mean()) < 0.7 * float(cold.iterations.double().mean())


def test_samples_do_not_depend_on_one_another() -> None:
    operator, c = convolution(skew=0.3), 2 * normal(B, 60, seed=2) * torch.logspace(-3, 3, B).double()[:, None]
    together = solved(operator, c, "softplus", 0.3).point.value
    for row in range(B):
        alone = solved(operator, c[row : row + 1], "softplus", 0.3).point.value[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-9, atol=1e-11)


def test_the_scalar_equation_may_need_more_than_a_step() -> None:
    """Far-off duals of an S-shaped ρ and a small γ: one Newton step overshoots, and the bracket is called for."""
    operator, c = convolution(), 2 * normal(B, 60, seed=2)
    start = 30 * normal(B, 60, seed=7)
    found, exact = (solved(operator, c, "tanh", 0.01, start=at) for at in (start, torch.zeros_like(c)))
    assert found.complete
    torch.testing.assert_close(found.point.value, exact.point.value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [1e10, 1e20])
def test_the_size_of_the_problem_does_not_matter(size: float) -> None:
    operator, c = convolution().to(torch.float32), 2 * normal(B, 60, seed=2).float()
    large = Convolution((size * operator.kernel.double()).float(), SIZE, symmetric=True, least=0.1 * size)
    found, exact = solved(large, size * c, "tanh", size), solved(operator, c, "tanh", 1.0)
    assert found.complete
    torch.testing.assert_close(found.point.value, exact.point.value, rtol=0, atol=1e-5)


def test_what_overflows_is_said() -> None:
    operator, c = convolution(), 2 * normal(B, 60, seed=2)
    c[2] = 1e200
    found = solved(operator, c, "softplus", 0.3)
    assert bool(torch.isfinite(found.point.value).all())
    alone = solved(operator, c[:1], "softplus", 0.3)
    torch.testing.assert_close(found.point.value[0], alone.point.value[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("skew", [0.0, 0.5])
def test_the_strong_convexity_makes_the_iterations_fewer(skew: float) -> None:
    operator = convolution(skew=skew)
    few, many = (Splitter.of(operator, strong).iterations(1e-6) for strong in (1.0, 0.0))
    assert few < 0.6 * many


def test_the_skew_part_is_about_as_large_as_guessed() -> None:
    operator = convolution(skew=0.5, padding="circular")
    matrix = operator.dense()
    true = float(torch.linalg.matrix_norm(0.5 * (matrix - matrix.mT), 2))
    assert 0.8 * true <= operator.skew_guess() <= 1.001 * true
    assert convolution().skew_guess() == 0.0
