"""γ > 0: the same few Newton steps for every γ, from every start, against closed equations solved elsewhere."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.solvers.exact.graph import move_along

#: ρ and the range of y in which its digits count, written out again.
RHO = {
    "tanh": mpmath.tanh,
    "sigmoid": lambda y: 1 / (1 + mpmath.exp(-y)),
    "softplus": lambda y: mpmath.log1p(mpmath.exp(y)) if y < 100 else y + mpmath.exp(-y),
    "arctan": mpmath.atan,
    "isru": lambda y: y / mpmath.sqrt(1 + y * y),
    "arcsinh": mpmath.asinh,
    "exp": mpmath.exp,
    "bent": lambda y: (y + mpmath.sqrt(y * y + 1)) / 2 if y > 0 else 1 / (2 * (mpmath.sqrt(y * y + 1) - y)),
    "identity": lambda y: y,
}
GAMMAS = (1e-30, 1e-8, 1e-6, 1e-3, 0.1, 1.0, 1e3)
FEW = 25


def scalar_oracle(name: str, h: float, c: float, gamma: float) -> float:
    """z with γρ⁻¹(z) + hz = c, by bisection in y with 60 digits."""
    with mpmath.workdps(60):
        rho, h_, c_, gamma_ = RHO[name], mpmath.mpf(h), mpmath.mpf(c), mpmath.mpf(gamma)

        def excess(y: mpmath.mpf) -> mpmath.mpf:
            return gamma_ * y + h_ * rho(y) - c_

        # Between 0 and (c − hρ(0))/γ, but not where exp would need more digits than there are atoms.
        end = (c_ - h_ * rho(mpmath.mpf(0))) / gamma_
        if name == "exp":
            end = min(end, mpmath.log(abs(c_) / h_ + 2))
        low, high = min(mpmath.mpf(0), end), max(mpmath.mpf(0), end)
        for _ in range(400):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) < 0 else (low, middle)
        return float(rho((low + high) / 2))


def found(
    weight: Tensor, name: str, offset: Tensor, gamma: float, initial: Tensor | ib.Solution | None = None
) -> ib.Solution:
    energy = ib.QuadraticEnergy.from_matrices(weight)
    return ib.find_critical_point(energy, name, offset, initial, gamma)


def random_convex(d: int, condition: float, seed: int = 0) -> Tensor:
    """H with eigenvalues spaced evenly in the logarithm between 1/condition and 1."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    matrix = (basis * torch.logspace(-math.log10(condition), 0, d, dtype=torch.float64)) @ basis.mT
    return 0.5 * (matrix + matrix.mT)


def assert_optimal(h: Tensor, c: Tensor, gamma: float, solution: ib.Solution, name: str, tol: float) -> None:
    """γy + Hz = c, relative to its terms, in NumPy with this file's ρ."""
    y = solution.dual.double().numpy()
    rho = np.vectorize(lambda value: float(RHO[name](mpmath.mpf(value))), otypes=[float])
    z, matrix, offset = rho(y), h.double().numpy(), c.double().numpy()
    floor = np.minimum(np.abs(matrix).sum(-1) + gamma, 1.0)
    error = np.abs(gamma * y + z @ matrix - offset) / (np.abs(z @ matrix) + np.abs(offset) + floor)
    assert error.max() <= tol
    assert np.abs(solution.value.double().numpy() - z).max() <= tol * (1 + np.abs(z).max())


# One unknown ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", RHO)
def test_one_unknown(name: str, gamma: float, dtype: torch.dtype) -> None:
    offsets = torch.tensor([-200.0, -1.0, 0.3, 1.0, 200.0], dtype=dtype)
    for h in (1.0, 0.015625):
        solution = found(torch.tensor([[-h]], dtype=dtype), name, offsets[:, None], gamma)
        assert bool(solution.converged.all())
        assert int(solution.iterations.max()) <= FEW
        assert bool(torch.isfinite(solution.dual).all())
        exact = torch.tensor([scalar_oracle(name, h, float(c), gamma) for c in offsets], dtype=torch.float64)
        tol = 1e-9 if dtype == torch.float64 else 3e-6
        torch.testing.assert_close(solution.value.squeeze(-1).double(), exact, rtol=tol, atol=tol)


@pytest.mark.parametrize(("name", "exact"), [("isru", 1.0), ("arcsinh", 90.49396)])
def test_a_dual_beyond_single_precision(name: str, exact: float) -> None:
    single = torch.float32
    solution = found(torch.tensor([[-1e-8]], dtype=single), name, torch.tensor([[1e9]], dtype=single), 1e-30)
    assert bool(solution.converged.all())
    assert float(solution.value) == pytest.approx(exact, rel=1e-6)
    assert bool(torch.isfinite(solution.dual).all())


@pytest.mark.parametrize("power", [0, 20, 40, 300])
@pytest.mark.parametrize("gamma", [1e-6, 1.0, 100.0])
def test_any_start_of_exp(gamma: float, power: int) -> None:
    """From far to the right a step in y would be −1."""
    weight, start = torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([[power]], dtype=torch.float64).exp()
    solution = found(weight, "exp", torch.ones(1, 1, dtype=torch.float64), gamma, start)
    assert bool(solution.converged.all())
    assert int(solution.iterations.max()) <= FEW
    assert float(solution.value) == pytest.approx(1.0, rel=1e-9)


# Several ----------------------------------------------------------------------------------------------------------


def test_entries_of_unequal_size(dtype: torch.dtype) -> None:
    weight = torch.tensor([[-1.0, 0.1], [0.1, -1.0]], dtype=dtype)
    solution = found(weight, "tanh", torch.tensor([[1e6, 0.5]], dtype=dtype), 0.1)
    assert solution.value[0].tolist() == pytest.approx([1.0, 0.53963584], rel=1e-6)


def test_a_start_far_to_the_right() -> None:
    weight = torch.tensor([[-1.0, 0.3], [0.3, -1.0]], dtype=torch.float64)
    start = torch.tensor([[1e4, 1.0]], dtype=torch.float64)
    solution = found(weight, "exp", torch.ones(1, 2, dtype=torch.float64), 0.1, start)
    exact = float(mpmath.findroot(lambda z: mpmath.log(z) / 10 + 0.7 * z - 1, 1.4))
    assert solution.value[0].tolist() == pytest.approx([exact, exact], rel=1e-10)
    assert int(solution.iterations.max()) <= FEW


def test_an_inexact_step_that_does_not_descend() -> None:
    h = [[0.096, 0.109, -0.003], [0.109, 0.582, -0.276], [-0.003, -0.276, 0.294]]
    c, gamma = [3.4, 4.1, -0.6], 0.01
    tensors = torch.tensor(h, dtype=torch.float64), torch.tensor([c], dtype=torch.float64)
    solution = found(-tensors[0], "exp", tensors[1], gamma)
    assert bool(solution.converged.all())
    with mpmath.workdps(40):
        start = [mpmath.log(z) for z in (34.3, 0.62, 7e-15)]
        root = mpmath.findroot(
            lambda *y: [gamma * y[i] + sum(h[i][j] * mpmath.exp(y[j]) for j in range(3)) - c[i] for i in range(3)],
            start,
        )
        exact = [float(mpmath.exp(y)) for y in root]
    assert solution.value[0].tolist() == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("gamma", [1e-8, 1e-6, 1e-5, 1e-2, 10.0])
@pytest.mark.parametrize("name", RHO)
def test_small_regularization_takes_no_more_steps(name: str, gamma: float, dtype: torch.dtype) -> None:
    h = random_convex(32, 100.0).to(dtype)
    c = (3 * torch.randn(16, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).to(dtype)
    solution = found(-h, name, c, gamma)
    assert bool(solution.converged.all())
    assert int(solution.iterations.max()) <= FEW
    if dtype == torch.float64:
        assert_optimal(h, c, gamma, solution, name, 2e-11)
    else:
        twin = found(-h.double(), name, c.double(), gamma).value
        torch.testing.assert_close(solution.value.double(), twin, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["tanh", "softplus", "sigmoid", "sin", "bent", "exp"])
def test_continuous_in_the_limit(name: str) -> None:
    """γ → 0 is γ = 0."""
    h = random_convex(16, 30.0, seed=4)
    c = 2 * torch.randn(12, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    limit = found(-h, name, c, 0.0).value
    for gamma in (1e-10, 1e-12, 1e-16):
        solution = found(-h, name, c, gamma)
        assert bool(solution.converged.all())
        assert int(solution.iterations.max()) <= FEW
        assert float((solution.value - limit).abs().max()) <= 1e-5


@pytest.mark.parametrize("gamma", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("name", ["tanh", "softplus", "arctan", "exp", "arcsinh", "bent", "sin"])
def test_saturated_and_warm_starts(name: str, gamma: float) -> None:
    h = random_convex(12, 50.0, seed=3)
    generator = torch.Generator().manual_seed(5)
    c = torch.randn(10, 12, generator=generator, dtype=torch.float64)
    geometry = ib.geometry(name)
    wild = 30 * torch.randn(10, 12, generator=generator, dtype=torch.float64)
    lo, hi = geometry.inner_bounds(torch.float64)
    cold = found(-h, name, c, gamma)
    for start in (geometry.activation(wild).clamp(lo, hi), cold):
        other = found(-h, name, c, gamma, start)
        assert bool(other.converged.all())
        assert int(other.iterations.max()) <= 2 * FEW
        torch.testing.assert_close(other.value, cold.value, rtol=1e-8, atol=1e-8)
    assert int(other.iterations.max()) <= 1


# Work -------------------------------------------------------------------------------------------------------------


#: No factorization per sample: conjugate gradients only.
BY_PRODUCTS = ib.operators.Costs(dual_width=0, dual_work=0)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_max_iter_bounds_the_products_too(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    h = random_convex(40, 1e6)
    c = 30 * torch.randn(3, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = []
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: (seen.append(1), product(a, b))[1])
    solver = ib.solvers.Newton(max_iter=limit, on_failure="ignore")
    energy = ib.QuadraticEnergy.from_operator(ib.operators.Dense(h, costs=BY_PRODUCTS))
    solution = ib.find_critical_point(energy, "tanh", c, regularization=1e-5, solver=solver)
    assert bool((solution.status == ib.Status.MAX_ITER).all())
    assert len(seen) <= 10 * limit + 40


def test_conjugate_gradients_alone(dtype: torch.dtype) -> None:
    h = random_convex(24, 100.0).to(dtype)
    c = (3 * torch.randn(8, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).to(dtype)
    expected = found(-h, "tanh", c, 1e-3)
    energy = ib.QuadraticEnergy.from_operator(ib.operators.Dense(h, costs=BY_PRODUCTS))
    solution = ib.find_critical_point(energy, "tanh", c, regularization=1e-3, solver="newton")
    assert bool(solution.converged.all())
    torch.testing.assert_close(solution.value, expected.value, rtol=1e-5, atol=1e-6)


class _Pull(ib.Energy):
    """½a‖z − x‖², convex, with nothing known of it."""

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.5 * ((z - x) ** 2).sum(-1)


@pytest.mark.parametrize("gamma", [1e-6, 1e-2, 10.0])
@pytest.mark.parametrize("name", ["exp", "tanh", "softplus"])
def test_an_energy_of_ones_own(name: str, gamma: float) -> None:
    x = torch.tensor([[100.0, 0.5], [-3.0, 0.2], [1.0, 1.0]], dtype=torch.float64)
    start = torch.full_like(x, 0.9)
    solution = ib.find_critical_point(_Pull(convex=True), name, x, start, gamma)
    assert bool(solution.converged.all())
    assert int(solution.iterations.max()) <= FEW
    exact = torch.tensor([[scalar_oracle(name, 1.0, float(c), gamma) for c in row] for row in x], dtype=torch.float64)
    torch.testing.assert_close(solution.value.detach(), exact, rtol=1e-8, atol=1e-8)


# The line ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.2, 1.0, 1e6])
@pytest.mark.parametrize("name", RHO)
def test_a_step_from_the_middle_ends_on_its_line(name: str, weight: float) -> None:
    """y⁺ + κρ(y⁺) = w + Δw, to a part of Δw."""
    geometry = ib.geometry(name)
    y = torch.zeros(1, 9, dtype=torch.float64)
    value, kappa = geometry.activation(y), torch.full_like(y, weight)
    size = 1 + weight
    move = size * torch.tensor([[-1e3, -3.0, -0.5, -1e-3, 0.0, 1e-3, 0.5, 3.0, 1e3]], dtype=torch.float64)
    new = move_along(geometry, y, value, geometry.slope(y), kappa, move)
    with mpmath.workdps(60):
        for before, after, step in zip(value[0].tolist(), new[0].tolist(), move[0].tolist(), strict=True):
            reached = mpmath.mpf(after) + weight * (RHO[name](mpmath.mpf(after)) - before)
            assert abs(reached - step) <= 0.5 * abs(step) + 1e-14 * size
