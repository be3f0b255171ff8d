"""The Bregman projection: the forward solve in r dimensions, against MM, against SciPy, and where there is none."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman import ConvergenceWarning, Status
from implicit_bregman.legendre import separable_geometries
from implicit_bregman.majorization import automatic_step
from implicit_bregman.objective import Objective
from implicit_bregman.projection.solve import project
from tests.problems import dual_of

LEGENDRE = [name for name in separable_geometries() if ib.geometry(name).is_legendre]
EVERY_DUAL = [name for name in LEGENDRE if ib.geometry(name).has_every_dual]
BOUNDED = [name for name in LEGENDRE if np.isfinite(ib.geometry(name).domain).all()]
D, R, B = 7, 3, 5


@dataclass
class System:
    """V, β and z⁰ as an energy whose x is β."""

    energy: ib.QuadraticEnergy
    geometry: ib.LegendreFunction
    target: Tensor
    initial: Tensor

    @property
    def vectors(self) -> Tensor:
        return self.energy.weight_map.vectors.detach()

    def solve(self, **settings: object) -> ib.Solution:
        return ib.find_critical_point(self.energy, self.geometry, self.target, self.initial, **settings)  # type: ignore[arg-type]


def system(
    geometry: str | ib.LegendreFunction,
    vectors: Tensor | None = None,
    target: Tensor | None = None,
    softening: float | None = None,
    dtype: torch.dtype = torch.float64,
    spread: float = 1.0,
) -> System:
    """A system with a solution inside C, unless a target is given."""
    phi = ib.geometry(geometry)
    v = (torch.randn(D, R, dtype=torch.float64) * D**-0.5 if vectors is None else vectors).to(dtype)
    energy = ib.QuadraticEnergy(
        v.shape[0], v.shape[1], "low_rank", rank=v.shape[1], softening=softening, bias=False, dtype=dtype
    )
    with torch.no_grad():
        energy.weight_map.vectors.copy_(v)
        energy.input_weight.copy_(torch.eye(v.shape[1]))
    energy.requires_grad_(False)
    if target is None:
        target = phi.activation(dual_of(phi, spread * torch.randn(B, len(v), dtype=torch.float64))).to(dtype) @ v
    start = spread * torch.randn(len(target), len(v), dtype=torch.float64)
    initial = phi.activation(dual_of(phi, start) if phi.is_legendre else 0.4 * start.clamp(-3, 3)).to(dtype)
    return System(energy, phi, target.to(dtype), initial)


def off_range(vectors: Tensor, rows: Tensor) -> float:
    """How far rows are from the range of V, at most."""
    q = torch.linalg.svd(vectors.double()).U[:, : int(torch.linalg.matrix_rank(vectors.double()))]
    rows = rows.double()
    return float((rows - (rows @ q) @ q.T).abs().max())


def failing_quietly(given: System, **settings: object) -> ib.Solution:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return given.solve(**settings)


# What the limit is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", LEGENDRE)
def test_it_is_the_limit_of_mm(geometry: str) -> None:
    problem = system(geometry, spread=0.6)
    found = problem.solve()
    assert found.status.tolist() == [Status.CONVERGED] * B
    assert float(found.residual.max()) <= 1e-13
    assert int(found.iterations.max()) <= 12
    steps = problem.solve(adjoint=ib.adjoints.Unrolled(steps=3000))
    torch.testing.assert_close(found.value, steps.value, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.dual, steps.dual, rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", ["mm", "anderson", "broyden", "newton"])
@pytest.mark.parametrize("regularization", [0.0, 0.2])
def test_the_iterative_solvers_find_the_same(solver: str, regularization: float) -> None:
    problem = system("tanh", spread=0.5)
    expected = problem.solve(regularization=regularization)
    found = problem.solve(regularization=regularization, solver=solver)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.value, expected.value, rtol=0, atol=1e-9)


def test_mm_does_not_solve_a_singular_hessian_exactly() -> None:
    """The exact solve would take any of the many solutions of Vᵀz = β."""
    problem = system("tanh", spread=0.5)
    found = problem.solve(solver="mm")
    assert not bool(found.exact.any())
    y0 = problem.geometry.inverse_activation(problem.initial)
    assert off_range(problem.vectors, found.dual - y0) <= 1e-12


@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "exp", "softplus", "arcsinh", "isru"])
def test_it_minimises_the_divergence(geometry: str) -> None:
    """Against SciPy's primal solver, which knows nothing of the dual."""
    problem = system(geometry, spread=0.5)
    phi, z0, v, beta = problem.geometry, problem.initial, problem.vectors, problem.target
    found = problem.solve()
    lo, hi = (float(b) for b in phi.bounds(torch.float64))
    lo, hi = max(lo + 1e-9, -50.0), min(hi - 1e-9, 50.0)
    for row in range(2):

        def divergence(z: np.ndarray, row: int = row) -> tuple[float, np.ndarray]:
            point = torch.from_numpy(z)
            slope = phi.inverse_activation(point) - phi.inverse_activation(z0[row])
            return float(phi.divergence(point, z0[row])), slope.numpy()

        best = scipy.optimize.minimize(
            divergence,
            z0[row].numpy(),
            jac=True,
            method="SLSQP",
            bounds=[(lo, hi)] * D,
            constraints={
                "type": "eq",
                "fun": lambda z, row=row: v.T.numpy() @ z - beta[row].numpy(),
                "jac": lambda z: v.T.numpy(),
            },
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert best.success
        np.testing.assert_allclose(found.value[row].numpy(), best.x, rtol=0, atol=2e-5)


@pytest.mark.parametrize("geometry", [*EVERY_DUAL, "sin"])
def test_with_regularization_it_is_the_softened_form_from_the_origin(geometry: str) -> None:
    problem = system(geometry, target=3 * torch.randn(B, R, dtype=torch.float64))
    gamma = 0.3
    found = problem.solve(regularization=gamma)
    assert bool(found.converged.all())
    v, beta, phi = problem.vectors, problem.target, problem.geometry
    miss = beta - found.value @ v
    torch.testing.assert_close(found.dual, phi.project_dual(miss @ v.T / gamma), rtol=1e-9, atol=1e-9)
    other = ib.find_critical_point(problem.energy, phi, beta, regularization=gamma)
    torch.testing.assert_close(other.value, found.value, rtol=0, atol=1e-12)
    mm = problem.solve(regularization=gamma, solver="mm")
    torch.testing.assert_close(mm.value, found.value, rtol=1e-9, atol=1e-9)


@settings(max_examples=60)
@given(
    name=st.sampled_from(LEGENDRE),
    seed=st.integers(0, 10_000),
    rank=st.integers(1, D),
    spread=st.floats(0.1, 4.0),
    scale=st.floats(0.01, 100.0),
)
def test_every_feasible_system_is_solved(name: str, seed: int, rank: int, spread: float, scale: float) -> None:
    torch.manual_seed(seed)
    problem = system(name, scale * torch.randn(D, rank, dtype=torch.float64), spread=spread)
    found = problem.solve()
    assert bool(found.converged.all())
    assert float(found.residual.max()) <= 1e-11
    miss = found.value @ problem.vectors - problem.target
    assert float(miss.abs().max()) <= 1e-10 * (1 + float(problem.target.abs().max()))
    y0 = problem.geometry.inverse_activation(problem.initial)
    assert off_range(problem.vectors, found.dual - y0) <= 1e-11 * (1 + float(found.dual.abs().max()))


@pytest.mark.parametrize("rank", [1, D])
@pytest.mark.parametrize("geometry", ["tanh", "softplus"])
def test_extreme_ranks(geometry: str, rank: int) -> None:
    problem = system(geometry, torch.randn(D, rank, dtype=torch.float64))
    found = problem.solve()
    assert bool(found.converged.all())
    torch.testing.assert_close(found.value @ problem.vectors, problem.target, rtol=0, atol=1e-10)


def test_a_full_rank_leaves_nothing_to_the_start() -> None:
    problem = system("tanh", torch.randn(D, D, dtype=torch.float64))
    expected = torch.linalg.solve(problem.vectors.T, problem.target.T).T
    torch.testing.assert_close(problem.solve().value, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(problem.solve(solver="anderson").value, expected, rtol=0, atol=1e-8)


def test_a_start_from_a_solution_takes_its_dual() -> None:
    problem = system("tanh")
    found = problem.solve()
    again = ib.find_critical_point(problem.energy, problem.geometry, problem.target, found)
    torch.testing.assert_close(again.value, found.value, rtol=0, atol=1e-13)
    assert int(again.iterations.max()) <= 1


def test_next_to_a_bound() -> None:
    """Starts and targets so close to the bounds that the curvatures underflow or overflow."""
    for name in BOUNDED:
        phi = ib.geometry(name)
        y = torch.tensor([[-14.0, -3, 0, 3, 8, 14, -9]], dtype=torch.float64)
        problem = system(
            phi, target=phi.activation(y.flip(-1)) @ torch.eye(D, R).double(), vectors=torch.eye(D, R).double()
        )
        problem.initial = phi.activation(y)
        found = problem.solve()
        assert bool(found.converged.all()), name
        torch.testing.assert_close(found.value[:, :R], problem.target, rtol=0, atol=1e-12)


# Dependent columns ----------------------------------------------------------------------------------------------------


def test_dependent_columns() -> None:
    v = torch.randn(D, 2, dtype=torch.float64)
    doubled = torch.cat([v, v.sum(-1, keepdim=True)], 1)
    problem = system("tanh", doubled)
    found = problem.solve()
    assert bool(found.converged.all())
    plain = system("tanh", v, problem.target[:, :2])
    plain.initial = problem.initial
    torch.testing.assert_close(found.value, plain.solve().value, rtol=0, atol=1e-12)
    problem.target[1, 2] += 0.1
    found = failing_quietly(problem)
    assert found.status.tolist() == [0, Status.INFEASIBLE, 0, 0, 0]


def test_no_columns_at_all() -> None:
    problem = system("tanh", torch.zeros(D, R, dtype=torch.float64))
    found = problem.solve()
    torch.testing.assert_close(found.value, problem.initial)
    problem.target[0, 0] = 1.0
    assert failing_quietly(problem).status.tolist() == [Status.INFEASIBLE, 0, 0, 0, 0]


# Systems without a solution -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", BOUNDED)
@pytest.mark.parametrize("softening", [1e-3, 0.05])
def test_an_infeasible_system_is_softened(geometry: str, softening: float) -> None:
    problem = system(geometry, softening=softening)
    problem.target = 20 * torch.randn(B, R, dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match=r"INFEASIBLE: no point inside .*lower the rank.*regularization > 0"):
        found = problem.solve()
    assert found.status.tolist() == [Status.INFEASIBLE] * B
    assert not bool(found.converged.any())
    v, phi = problem.vectors, problem.geometry
    epsilon = softening * float(v.square().sum()) / R
    y0 = phi.inverse_activation(problem.initial)

    def value(multiplier: np.ndarray, row: int) -> tuple[float, np.ndarray]:
        lam = torch.from_numpy(multiplier)
        y = y0[row] + v @ lam
        amount = phi.conjugate(y).sum() - problem.target[row] @ lam + 0.5 * epsilon * lam @ lam
        return float(amount), (v.T @ phi.activation(y) - problem.target[row] + epsilon * lam).numpy()

    for row in range(B):
        best = scipy.optimize.minimize(
            value, np.zeros(R), args=(row,), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000}
        )
        expected = phi.activation(y0[row] + v @ torch.from_numpy(best.x))
        torch.testing.assert_close(found.value[row], expected, rtol=0, atol=3e-6)
    miss = (problem.target - found.value @ v) / epsilon
    torch.testing.assert_close(found.dual, y0 + miss @ v.T, rtol=1e-9, atol=1e-9)


def test_the_softened_primal_problem() -> None:
    """min D(z, z⁰) + ‖Vᵀz − β‖²/(2ε), by a bounded primal solver."""
    problem = system("tanh", softening=0.3)
    problem.target = 3 * torch.randn(B, R, dtype=torch.float64)
    found = failing_quietly(problem)
    v, phi = problem.vectors, problem.geometry
    epsilon = 0.3 * float(v.square().sum()) / R
    row = int((found.status == Status.INFEASIBLE).nonzero()[0])

    def value(z: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(z)
        miss = v.T @ point - problem.target[row]
        slope = phi.inverse_activation(point) - phi.inverse_activation(problem.initial[row]) + v @ miss / epsilon
        return float(phi.divergence(point, problem.initial[row]) + miss @ miss / (2 * epsilon)), slope.numpy()

    best = scipy.optimize.minimize(
        value,
        problem.initial[row].numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-1 + 1e-12, 1 - 1e-12)] * D,
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 5000},
    )
    np.testing.assert_allclose(found.value[row].numpy(), best.x, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_infeasible_sample_spoils_no_other(dtype: torch.dtype) -> None:
    problem = system("sigmoid", dtype=dtype)
    clean = problem.solve()
    problem.target[2] = 50.0
    found = failing_quietly(problem)
    assert found.status.tolist() == [0, 0, Status.INFEASIBLE, 0, 0]
    keep = [0, 1, 3, 4]
    tolerance = 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.value[keep], clean.value[keep], rtol=tolerance, atol=tolerance)
    for row in range(B):
        alone = System(problem.energy, problem.geometry, problem.target[row : row + 1], problem.initial[row : row + 1])
        torch.testing.assert_close(failing_quietly(alone).value[0], found.value[row], rtol=tolerance, atol=tolerance)


def test_every_solver_says_that_a_system_is_infeasible() -> None:
    problem = system("tanh", target=20 * torch.randn(B, R, dtype=torch.float64))
    found = failing_quietly(problem, solver="mm")
    assert set(found.status.tolist()) <= {Status.INFEASIBLE, Status.MAX_ITER}
    assert Status.INFEASIBLE in found.status.tolist()
    full = system("tanh", torch.eye(D, dtype=torch.float64), torch.full((2, D), 1.5, dtype=torch.float64))
    for solver in ("auto", "newton", "mm", "anderson", "broyden"):
        found = failing_quietly(full, solver=solver)
        assert found.status.tolist() == [Status.INFEASIBLE] * 2
        torch.testing.assert_close(found.value, torch.ones_like(found.value), rtol=0, atol=1e-3)


@pytest.mark.parametrize("geometry", BOUNDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_solution_on_the_boundary_is_degenerate(geometry: str, dtype: torch.dtype) -> None:
    phi = ib.geometry(geometry)
    top = phi.bounds(dtype)[1]
    ones = torch.ones(D, 1, dtype=dtype)
    problem = system(geometry, ones, torch.full((2, 1), D * top, dtype=dtype), dtype=dtype)
    found = problem.solve()
    assert found.status.tolist() == [Status.DEGENERATE] * 2
    assert bool(torch.isfinite(found.dual).all())
    problem.target = 0.99999 * problem.target
    assert problem.solve().status.tolist() == [Status.CONVERGED] * 2
    problem.target = 1.01 * problem.target
    assert failing_quietly(problem).status.tolist() == [Status.INFEASIBLE] * 2


def test_infeasible_on_a_half_line() -> None:
    """Positive z cannot have a negative mean."""
    for name in ("exp", "softplus", "bent"):
        problem = system(name, torch.rand(D, 2, dtype=torch.float64), -torch.ones(2, 2, dtype=torch.float64))
        found = failing_quietly(problem)
        assert found.status.tolist() == [Status.INFEASIBLE] * 2, name
        assert bool(torch.isfinite(found.value).all())


# Precision, batches, settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", LEGENDRE)
def test_single_precision(geometry: str) -> None:
    exact = system(geometry, spread=0.7)
    found = system(geometry, exact.vectors, exact.target, dtype=torch.float32)
    found.initial = exact.initial.float()
    s = found.solve()
    assert s.value.dtype == torch.float32
    assert s.dual.dtype == torch.float32
    assert s.status.tolist() == [Status.CONVERGED] * B
    torch.testing.assert_close(s.value.double(), exact.solve().value, rtol=3e-6, atol=3e-6)


def test_invalid_rows_and_empty_batches() -> None:
    problem = system("tanh")
    expected = problem.solve().value
    problem.target[1, 0] = torch.nan
    problem.initial[3, 2] = torch.inf
    found = failing_quietly(problem)
    assert found.status.tolist() == [0, Status.INVALID_INPUT, 0, Status.INVALID_INPUT, 0]
    assert torch.isnan(found.value).all(-1).tolist() == [False, True, False, True, False]
    torch.testing.assert_close(found.value[[0, 2, 4]], expected[[0, 2, 4]], rtol=0, atol=1e-13)
    empty = ib.find_critical_point(problem.energy, "tanh", problem.target[:0])
    assert empty.value.shape == (0, D)
    shaped = ib.find_critical_point(problem.energy, "tanh", torch.zeros(2, 3, R, dtype=torch.float64))
    assert shaped.value.shape == (2, 3, D)


def test_max_iter_and_trace() -> None:
    problem = system("tanh", spread=3.0)
    with pytest.warns(ConvergenceWarning, match="MAX_ITER"):
        found = problem.solve(solver=ib.solvers.Newton(max_iter=1))
    assert found.status.tolist() == [Status.MAX_ITER] * B
    assert found.iterations.tolist() == [1] * B
    with pytest.raises(RuntimeError, match="MAX_ITER"):
        problem.solve(solver=ib.solvers.Newton(max_iter=1, on_failure="raise"))
    found = problem.solve(solver=ib.solvers.Newton(trace=True))
    assert found.trace is not None
    steps = int(found.iterations.max())
    assert found.trace.residual.shape == (steps + 1, B)
    assert found.trace.dual.shape == (steps + 1, B, D)
    last = found.trace.dual[found.iterations, torch.arange(B)]
    torch.testing.assert_close(last, found.dual)
    assert torch.isnan(found.trace.residual).sum(0).tolist() == (steps - found.iterations).tolist()
    empty = ib.find_critical_point(problem.energy, "tanh", problem.target[:0], solver=ib.solvers.Newton(trace=True))
    assert empty.trace is not None


def test_an_energy_declares_what_it_brings_along() -> None:
    problem = system("tanh")
    assert ib.QuadraticEnergy(D).bind(torch.zeros(2, D)).own is None
    assert problem.energy.bind(problem.target).own is not None


def test_the_function_on_its_own() -> None:
    """What other solvers dispatch to."""
    problem = system("tanh")
    bound = problem.energy.bind(problem.target)
    objective = Objective(bound, problem.geometry, 0.0, automatic_step(bound.curvature, problem.geometry))
    found = project(bound, objective, problem.geometry.inverse_activation(problem.initial), ib.solvers.MM())
    torch.testing.assert_close(found.point.value, problem.solve().value)
    assert not bool(found.exact.any())


def test_sin_is_refused_where_mm_does_not_project() -> None:
    problem = system("sin")
    message = 'sin is not Legendre: .*weight="low_rank" and regularization=0 .*use another geometry .*Unrolled'
    for solver in ("auto", "mm"):
        with pytest.raises(ValueError, match=message):
            problem.solve(solver=solver)
    with pytest.raises(ValueError, match=message):
        ib.BregmanDEQ(4, D, "sin", "low_rank", rank=2)
    assert problem.solve(adjoint=ib.adjoints.Unrolled(steps=3)).status.tolist() == [Status.TRUNCATED] * B
    assert bool(problem.solve(regularization=0.1).converged.all())


def test_why_sin_is_refused() -> None:
    """A dual that has been clamped on the way leaves y⁰ + range(V): MM's limit is not the projection."""
    v = torch.tensor([[-1.5, -0.3], [0.0, -1.2], [-2.9, -0.2]], dtype=torch.float64)
    problem = system("sin", v, torch.tensor([[3.67, 1.03]], dtype=torch.float64))
    problem.initial = torch.tensor([[0.7, 0.8, -0.6]], dtype=torch.float64)
    limit = problem.solve(adjoint=ib.adjoints.Unrolled(steps=1000))
    torch.testing.assert_close(limit.value @ v, problem.target, rtol=0, atol=1e-9)
    assert float(limit.dual.abs().max()) < 1.5  # inside C at the end
    assert off_range(v, limit.dual - torch.asin(problem.initial)) > 0.4
