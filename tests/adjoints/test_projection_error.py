"""`Solution.gradient_error` of low-rank layers whose solver stopped early, against the exact gradient by SciPy."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from scipy.optimize import root
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman import Status
from implicit_bregman.legendre import separable_geometries
from tests.problems import dual_of, low_rank

SILENT = ib.adjoints.Implicit(on_failure="ignore")
Function = Callable[[np.ndarray], np.ndarray]
#: ρ and ρ'.
SHAPES: dict[str, tuple[Function, Function]] = {
    "tanh": (np.tanh, lambda y: 1 / np.cosh(y) ** 2),
    "softplus": (lambda y: np.logaddexp(0, y), lambda y: 1 / (1 + np.exp(-y))),
    "sigmoid": (lambda y: 1 / (1 + np.exp(-y)), lambda y: 1 / (2 + np.exp(y) + np.exp(-y))),
}
EARLY = {
    "mm": lambda steps: ib.solvers.MM(max_iter=steps, exact=False, on_failure="ignore"),
    "anderson": lambda steps: ib.solvers.Anderson(max_iter=steps, exact=False, on_failure="ignore"),
    "broyden": lambda steps: ib.solvers.Broyden(max_iter=steps, exact=False, on_failure="ignore"),
    "newton": lambda steps: ib.solvers.Newton(max_iter=max(1, steps // 4), on_failure="ignore"),
}


def run(
    vectors: Tensor, geometry: str, x: Tensor, start: Tensor | None, gamma: float, solver: object, cotangent: Tensor
) -> tuple[ib.Solution, Tensor, Tensor]:
    """The solution, dL/dV and dL/dx."""
    energy, x = low_rank(vectors).requires_grad_(), x.clone().requires_grad_()
    found = ib.find_critical_point(energy, geometry, x, None, gamma, solver, SILENT, start)
    found.value.backward(cotangent)
    return found, energy.weight_map.vectors.grad, x.grad


def exact(vectors: np.ndarray, geometry: str, target: np.ndarray, dual: np.ndarray, epsilon: float, g: np.ndarray):
    """dL/dV and dL/dβ at the solution of y = y⁰ + Vλ, Vᵀρ(y) + ελ = β."""
    rho, slope = SHAPES[geometry]

    def gram(lam: np.ndarray) -> np.ndarray:
        return vectors.T @ (slope(dual + vectors @ lam)[:, None] * vectors) + epsilon * np.eye(len(lam))

    def miss(lam: np.ndarray) -> np.ndarray:
        return vectors.T @ rho(dual + vectors @ lam) + epsilon * lam - target

    found = root(miss, np.zeros(len(target)), jac=gram, method="hybr", options={"xtol": 1e-14})
    assert np.abs(miss(found.x)).max() <= 1e-12
    y = dual + vectors @ found.x
    w = np.linalg.solve(gram(found.x), vectors.T @ (slope(y) * g))
    p = slope(y) * (g - vectors @ w)
    return np.outer(p, found.x) - np.outer(rho(y), w), w


def relative(found: Tensor, true: np.ndarray) -> float:
    return float(np.linalg.norm(found.double().numpy() - true) / np.linalg.norm(true))


@pytest.mark.parametrize("solver", EARLY)
@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("geometry", ["tanh", "softplus"])
@pytest.mark.parametrize("gamma", [0.0, 0.05])
def test_the_order_of_magnitude_of_an_early_stop(
    solver: str, steps: int, geometry: str, gamma: float, dtype: torch.dtype
) -> None:
    """Against SciPy, a sample at a time, from a y⁰ that counts for γ = 0."""
    for seed in range(3):
        torch.manual_seed(seed)
        vectors, dual, g = torch.randn(7, 3), torch.randn(1, 7), torch.randn(1, 7)
        phi = ib.geometry(geometry)
        # (a target that is met in the interior)
        x = phi.activation(torch.randn(1, 7)) @ vectors
        start = dual.to(dtype)
        vectors, x, g = vectors.to(dtype), x.to(dtype), g.to(dtype)
        found, *grads = run(vectors, geometry, x, start, gamma, EARLY[solver](steps), g)
        begin = np.zeros(7) if gamma else start[0].double().numpy()
        true = exact(vectors.double().numpy(), geometry, x[0].double().numpy(), begin, gamma, g[0].double().numpy())
        error = max(relative(grads[0], true[0]), relative(grads[1][0], true[1]))
        told = float(found.gradient_error)
        if error > (1e-4 if dtype == torch.float32 else 1e-8):
            assert error / 30 <= told <= 30 * error, (found.status.tolist(), told, error)
        assert told <= 10


@pytest.mark.parametrize(
    ("geometry", "gamma"),
    # (burg has no ρ(0), from which a system with γ > 0 starts)
    [
        (name, gamma)
        for name in separable_geometries()
        for gamma in (0.0, 1e-4, 0.3)
        if ib.geometry(name).is_legendre and (gamma == 0 or ib.geometry(name).has_every_dual)
    ],
)
def test_there_is_nothing_to_refine_where_newton_has_converged(geometry: str, gamma: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(9, 4, dtype=dtype)
    phi = ib.geometry(geometry)
    x = phi.activation(dual_of(phi, torch.randn(5, 9, dtype=dtype))) @ vectors
    found, *_ = run(vectors, geometry, x, None, gamma, "auto", torch.randn(5, 9, dtype=dtype))
    assert found.status.tolist() == [Status.CONVERGED] * 5
    # (beyond the residual only what rounding y = y⁰ + Vλ makes of ρ'(y))
    rounding = found.gradient_error - found.adjoint.residual
    assert (rounding >= 0).all()
    assert (rounding <= 300 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("solver", ["mm", "anderson", "broyden", "newton"])
def test_next_to_a_bound_a_small_residual_says_little_about_the_gradient(solver: str, dtype: torch.dtype) -> None:
    """z + γy = x: z is right within the tolerance as soon as it is that near to 0, and ρ'(y) is about z."""
    x = torch.tensor([[-0.3], [0.4]], dtype=dtype)
    found, _, dx = run(torch.ones(1, 1, dtype=dtype), "sigmoid", x, None, 0.0012, solver, torch.ones_like(x))
    assert found.status.tolist() == [Status.CONVERGED] * 2
    with mpmath.workdps(200):
        gamma = mpmath.mpf("0.0012")
        for row, begin in enumerate((-250, -0.4)):
            y = mpmath.findroot(lambda y, row=row: 1 / (1 + mpmath.exp(-y)) + gamma * y - float(x[row]), begin)
            slope = mpmath.exp(y) / (1 + mpmath.exp(y)) ** 2
            true, got = slope / (slope + gamma), mpmath.mpf(float(dx[row]))
            # (a derivative of 1e-106 is 0 in float32)
            size = max(true, got, mpmath.mpf(torch.finfo(dtype).tiny))
            error, told = float(abs(got - true) / size), float(found.gradient_error[row])
            assert told >= error / 30 or error <= 1e-5
            assert told <= 3
    # Newton's method solves for y itself.
    assert (float(found.gradient_error[0]) >= 0.5) is (solver != "newton")
    assert float(found.gradient_error[1]) <= (1e-4 if dtype == torch.float32 else 1e-7)


def test_equations_that_contradict_each_other(dtype: torch.dtype) -> None:
    """γ > 0: the critical point is that of the normal equations, which MM finds and the estimate has to agree with."""
    torch.manual_seed(0)
    vectors = torch.randn(6, 3, dtype=dtype)
    vectors[:, 1] = 2 * vectors[:, 0]
    x, g = torch.randn(2, 3, dtype=dtype), torch.randn(2, 6, dtype=dtype)
    found, *_ = run(vectors, "tanh", x, None, 0.3, "mm", g)
    assert found.status.tolist() == [Status.CONVERGED] * 2
    assert float(found.gradient_error.max()) <= (1e-3 if dtype == torch.float32 else 1e-7)


def test_a_system_without_a_solution(dtype: torch.dtype) -> None:
    """MM leads elsewhere than to the softened form that the gradient belongs to: the estimate is large, and finite."""
    vectors, x = torch.ones(2, 1, dtype=dtype), torch.tensor([[9.0], [0.3]], dtype=dtype)
    for steps in (3, 300):
        found, *_ = run(vectors, "tanh", x, None, 0.0, EARLY["mm"](steps), torch.ones(2, 2, dtype=dtype))
        assert found.status.tolist()[0] in (Status.MAX_ITER, Status.STALLED, Status.INFEASIBLE)
        assert 0.01 <= float(found.gradient_error[0]) <= 10


def test_a_sample_does_not_see_its_mates() -> None:
    torch.manual_seed(3)
    vectors, g = torch.randn(6, 2, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    x = torch.tanh(torch.randn(3, 6, dtype=torch.float64)) @ vectors
    x[1] = 0  # (solved at the start)
    found, *_ = run(vectors, "tanh", x, None, 0.0, EARLY["mm"](5), g)
    for row in (0, 1, 2):
        one = slice(row, row + 1)
        alone, *_ = run(vectors, "tanh", x[one], None, 0.0, EARLY["mm"](5), g[one])
        torch.testing.assert_close(found.gradient_error[one], alone.gradient_error, rtol=1e-6, atol=1e-15)
    assert float(found.gradient_error[1]) <= 1e-14
