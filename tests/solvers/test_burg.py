"""The geometry whose duals are negative only: steps, starts, solvers, gradients, and objectives without a minimum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

import implicit_bregman as ib

DOUBLE = torch.float64
SOLVERS = ("auto", "newton", "mm", "anderson", "broyden", ib.solvers.Splitting())
EXACT = {DOUBLE: 1e-9, torch.float32: 2e-3}


def quadratic(dtype: torch.dtype = DOUBLE, d: int = 5, batch: int = 4) -> tuple[ib.QuadraticEnergy, Tensor, Tensor]:
    """f(z) = ½zᵀHz − xᵀz with a condition number of 10, H, and x, of which a part drives z to 0."""
    generator = torch.Generator().manual_seed(3)
    axes = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=DOUBLE)).Q
    hessian = (axes * torch.logspace(0, -1, d, dtype=DOUBLE)) @ axes.mT
    hessian = 0.5 * (hessian + hessian.mT)
    x = torch.randn(batch, d, generator=generator, dtype=DOUBLE)
    energy = ib.QuadraticEnergy.from_matrices(-hessian.to(dtype), torch.eye(d, dtype=dtype))
    return energy, hessian, x.to(dtype)


def by_coordinates(hessian: np.ndarray, offset: np.ndarray, gamma: float) -> np.ndarray:
    """Hz − c = γ/z, one coordinate after the other, each by the positive root of its quadratic equation."""
    z = np.ones(len(offset))
    for _ in range(2000):
        before = z.copy()
        for j in range(len(z)):
            rest = hessian[j] @ z - hessian[j, j] * z[j] - offset[j]
            root = np.sqrt(rest**2 + 4 * hessian[j, j] * gamma)
            z[j] = 2 * gamma / (root + rest) if rest > 0 else (root - rest) / (2 * hessian[j, j])
        if np.abs(z - before).max() <= 1e-15:
            break
    return z


class Poisson(ib.Energy):
    """f(z; x) = Σ (Az)_i − x_i log (Az)_i: the Kullback-Leibler divergence of counts x from Az, up to a constant."""

    def __init__(self, matrix: Tensor, convex: bool = True) -> None:
        super().__init__(features=matrix.shape[1], convex=convex)
        self.register_buffer("matrix", matrix)

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        mean = z @ self.matrix.mT
        return (mean - torch.xlogy(x, mean)).sum(-1)


def counts(dtype: torch.dtype = DOUBLE) -> tuple[Poisson, Tensor, Tensor]:
    """The energy, A (8, 4), and counts x (3, 8)."""
    generator = torch.Generator().manual_seed(7)
    matrix = torch.rand(8, 4, generator=generator, dtype=DOUBLE) + 0.05
    mean = 2 * torch.rand(3, 4, generator=generator, dtype=DOUBLE) @ matrix.mT
    x = torch.poisson(mean, generator=generator)
    return Poisson(matrix.to(dtype)), matrix, x.to(dtype)


def by_expectation_maximization(matrix: Tensor, x: Tensor, gamma: float) -> Tensor:
    """z ← (z Aᵀ(x/Az) + γ)/Aᵀ1, Richardson and Lucy's method with a gamma prior, until it stands still."""
    z = torch.ones(len(x), matrix.shape[1], dtype=DOUBLE)
    for _ in range(200_000):
        new = (z * ((x / (z @ matrix.mT)) @ matrix) + gamma) / matrix.sum(0)
        if bool(((new - z).abs() <= 1e-15 * new).all()):
            break
        z = new
    return z


@pytest.mark.parametrize("gamma", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_quadratic_energy_against_scipy(solver: object, gamma: float, dtype: torch.dtype) -> None:
    energy, hessian, x = quadratic(dtype)
    found = ib.find_critical_point(energy, "burg", x, regularization=gamma, solver=solver)
    H = hessian.to(dtype).double().numpy()
    factor = np.linalg.cholesky(H)
    for z, c in zip(found.value.double().numpy(), x.double().numpy(), strict=True):
        if gamma:
            expected = by_coordinates(H, c, gamma)
        else:
            expected = nnls(factor.T, np.linalg.solve(factor, c))[0]
            assert (expected == 0).any()
        np.testing.assert_allclose(z, expected, rtol=EXACT[dtype], atol=EXACT[dtype])
    assert bool(found.converged.all())
    assert bool((found.dual < 0).all())
    assert bool((found.residual <= 1e-3).all())


@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize(
    ("solver", "gamma"),
    # (with γ = 0 a first-order method comes to a bound like 1/k)
    [*((name, 1.0) for name in ("auto", "newton", "mm", "anderson", "broyden")), ("auto", 0.0), ("newton", 0.0)],
)
def test_counts_against_expectation_maximization(solver: str, gamma: float, convex: bool, dtype: torch.dtype) -> None:
    energy, matrix, x = counts(dtype)
    energy = Poisson(energy.matrix, convex)
    tol = {DOUBLE: 1e-8, torch.float32: 1e-4}[dtype]
    method = {"auto": ib.solvers.Auto, "newton": ib.solvers.Newton, "mm": ib.solvers.MM}
    method |= {"anderson": ib.solvers.Anderson, "broyden": ib.solvers.Broyden}
    found = ib.find_critical_point(energy, "burg", x, regularization=gamma, solver=method[solver](tol=tol))
    expected = by_expectation_maximization(matrix.to(dtype).double(), x.double(), gamma)
    assert bool(found.converged.all())
    # (a residual of this size allows for an error that is larger by the condition number)
    torch.testing.assert_close(found.value.double(), expected, rtol=3e3 * tol, atol=3e3 * tol)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("name", ["burg", "double_burg"])
def test_the_gradient_of_a_quadratic(name: str, gamma: float) -> None:
    """Implicit against central differences, with coordinates on their bounds for γ = 0."""
    energy, _, x = quadratic()
    weights = torch.linspace(-1, 1, x.numel(), dtype=DOUBLE).reshape(x.shape)

    def loss(x: Tensor) -> Tensor:
        return (ib.find_critical_point(energy, name, x, regularization=gamma).value * weights).sum()

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    h = 1e-6
    change = (loss(x.detach() + h * direction) - loss(x.detach() - h * direction)) / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(float(change), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("name", ["burg", "double_burg"])
def test_the_gradient_of_a_long_unroll(name: str, gamma: float) -> None:
    """Of solutions inside C, since an active coordinate comes to its bound like 1/k."""
    energy, hessian, x = quadratic()
    inside = 0.3 + 0.5 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    x = (inside @ hessian - gamma / inside).requires_grad_()
    gradients = []
    for adjoint in ("implicit", ib.adjoints.Unrolled(steps=2500)):
        found = ib.find_critical_point(energy, name, x, regularization=gamma, adjoint=adjoint)
        gradients.append(torch.autograd.grad(found.value.square().sum(), x)[0])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("adjoint", "gamma"),
    [("implicit", 0.0), *((name, 0.3) for name in ("implicit", "phantom", "one_step", "shine"))],
)
def test_the_gradient_of_counts(adjoint: str, gamma: float) -> None:
    """Implicit: that of finite differences, in x and in A. The approximate ones: finite, and of its direction."""
    _, matrix, x = counts()
    weights = torch.linspace(-1, 2, 12, dtype=DOUBLE).reshape(3, 4)

    def loss(matrix: Tensor, x: Tensor, adjoint: str) -> Tensor:
        energy = Poisson(torch.ones(8, 4, dtype=DOUBLE))
        energy.matrix = matrix
        solver = ib.solvers.Broyden(exact=False) if adjoint == "shine" else "auto"
        found = ib.find_critical_point(energy, "burg", x, regularization=gamma, adjoint=adjoint, solver=solver)
        return (found.value * weights).sum()

    inputs = [matrix.clone().requires_grad_(), x.clone().requires_grad_()]
    gradient = torch.autograd.grad(loss(*inputs, adjoint), inputs)
    assert all(bool(torch.isfinite(part).all()) for part in gradient)
    exact = torch.autograd.grad(loss(*inputs, "implicit"), inputs)
    if adjoint != "implicit":
        assert all(float((a * b).sum()) > 0 for a, b in zip(gradient, exact, strict=True))
        return
    generator = torch.Generator().manual_seed(2)
    for number, point in enumerate((matrix, x)):
        direction = torch.randn(point.shape, generator=generator, dtype=DOUBLE)
        ends = []
        for h in (1e-5, -1e-5):
            moved = [matrix, x]
            moved[number] = point + h * direction
            ends.append(float(loss(*moved, "implicit")))
        expected = (ends[0] - ends[1]) / 2e-5
        assert float((gradient[number] * direction).sum()) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_counts_against_a_long_unroll() -> None:
    energy, _, x = counts()
    x.requires_grad_()
    gradients = []
    for adjoint in ("implicit", ib.adjoints.Unrolled(steps=800)):
        value = ib.find_critical_point(energy, "burg", x, regularization=1.0, adjoint=adjoint).value
        gradients.append(torch.autograd.grad(value.square().sum(), x)[0])
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-8)


# (with γ = 0 first-order methods come to the bound of the sample that has a minimum like 1/k)
WITHOUT_MINIMUM = pytest.mark.parametrize(
    ("solver", "gamma"),
    [*((name, 0.5) for name in ("auto", "newton", "mm", "anderson", "broyden")), ("auto", 0.0), ("newton", 0.0)],
)


class Linear(ib.Energy):
    """f(z; x) = −xᵀz: nothing holds z where x > 0."""

    def __init__(self) -> None:
        super().__init__(convex=True)

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return -(x * z).sum(-1)


@WITHOUT_MINIMUM
@pytest.mark.filterwarnings("ignore::implicit_bregman.ConvergenceWarning")
def test_what_has_no_minimum_says_so(solver: str, gamma: float, dtype: torch.dtype) -> None:
    """−log z does not grow: γφ keeps no z from running to infinity. The samples beside it are solved."""
    x = torch.tensor([[0.5, -1.0], [-2.0, -1.0], [1e-3, 3.0]], dtype=dtype)
    found = ib.find_critical_point(Linear(), "burg", x, regularization=gamma, solver=solver)
    assert found.converged.tolist() == [False, True, False]
    assert bool(torch.isfinite(found.value).all() & torch.isfinite(found.dual).all())
    expected = -gamma / x[1]
    torch.testing.assert_close(found.value[1], expected, rtol=1e-4, atol=1e-4)


@WITHOUT_MINIMUM
@pytest.mark.filterwarnings("ignore::implicit_bregman.ConvergenceWarning")
def test_a_singular_quadratic_without_a_minimum(solver: str, gamma: float, dtype: torch.dtype) -> None:
    """H is 0 in one coordinate, and x drives it to infinity in the first sample and to 0 in the second."""
    energy = ib.QuadraticEnergy.from_matrices(
        -torch.diag(torch.tensor([1.0, 0.0], dtype=dtype)), torch.eye(2, dtype=dtype)
    )
    x = torch.tensor([[1.0, 0.5], [1.0, -0.5]], dtype=dtype)
    found = ib.find_critical_point(energy, "burg", x, regularization=gamma, solver=solver)
    assert found.converged.tolist() == [False, True]
    assert bool(torch.isfinite(found.value).all() & torch.isfinite(found.dual).all())
    first = 0.5 * (1 + math.sqrt(1 + 4 * gamma))
    torch.testing.assert_close(found.value[1], torch.tensor([first, 2 * gamma], dtype=dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e4, 1e12])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_solutions_of_any_size(scale: float, gamma: float) -> None:
    """z, and with it y = −1/z, far from the start at 1."""
    energy, _, x = quadratic()
    at_one = ib.find_critical_point(energy, "burg", x, regularization=gamma)
    # f(z/s) + γφ(z/s) has the same minimiser times s.
    scaled = ib.QuadraticEnergy.from_matrices(energy.weight / scale**2, torch.eye(5, dtype=DOUBLE) / scale)
    found = ib.find_critical_point(scaled, "burg", x, regularization=gamma)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.value / scale, at_one.value, rtol=1e-7, atol=1e-9)


def test_a_start_is_used_or_refused() -> None:
    energy, _, x = quadratic()
    for start in ({"initial": torch.full_like(x, 3.0)}, {"initial_dual": torch.full_like(x, -0.2)}):
        found = ib.find_critical_point(energy, "burg", x, solver="mm", adjoint=ib.adjoints.Unrolled(steps=1), **start)
        assert bool((found.value > 0).all())
    for y in (0.0, 0.3):
        with pytest.raises(
            ValueError, match=r"initial_dual must lie between the ends \(-inf, 0.0\) of the duals of burg"
        ):
            ib.find_critical_point(energy, "burg", x, initial_dual=torch.full_like(x, y))
    with pytest.raises(ValueError, match="initial must lie in the interior"):
        ib.find_critical_point(energy, "burg", x, initial=torch.full_like(x, -0.1))
    # Without a start z⁰ = 1.
    first = ib.find_critical_point(energy, "burg", x, adjoint=ib.adjoints.Unrolled(steps=1)).value
    again = ib.find_critical_point(energy, "burg", x, torch.ones_like(x), adjoint=ib.adjoints.Unrolled(steps=1)).value
    assert torch.equal(first, again)


@pytest.mark.filterwarnings("ignore::implicit_bregman.ConvergenceWarning")
def test_samples_that_cannot_be_used_spoil_no_other() -> None:
    energy, _, x = quadratic()
    expected = ib.find_critical_point(energy, "burg", x).value
    bad = x.clone()
    bad[1, 2] = math.nan
    found = ib.find_critical_point(energy, "burg", bad)
    assert found.status[1] == ib.Status.INVALID_INPUT
    assert bool(torch.isnan(found.value[1]).all() & (found.dual[1] < 0).all())
    kept = [0, 2, 3]
    torch.testing.assert_close(found.value[kept], expected[kept])


def test_a_solution_is_a_start_in_either_precision() -> None:
    energy, _, x = quadratic()
    found = ib.find_critical_point(energy, "burg", x, regularization=1e-3)
    single, _, y = quadratic(torch.float32)
    again = ib.find_critical_point(single, "burg", y, found, regularization=1e-3)
    torch.testing.assert_close(again.value.double(), found.value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_a_general_weight(gamma: float) -> None:
    """Equilibria without an objective, one of a monotone field and of any other."""
    generator = torch.Generator().manual_seed(0)
    skew = torch.randn(5, 5, generator=generator, dtype=DOUBLE)
    _, hessian, x = quadratic()
    energy = ib.QuadraticEnergy.from_matrices(-(hessian + 0.3 * (skew - skew.mT)), torch.eye(5, dtype=DOUBLE))
    found = ib.find_critical_point(energy, "burg", x, regularization=gamma)
    assert bool(found.converged.all())
    force = found.value @ energy.weight.mT + x
    if gamma:
        torch.testing.assert_close(force, gamma * found.dual, rtol=1e-7, atol=1e-8)
    else:
        inside = found.value > 1e-8
        assert float(force[inside].abs().max()) <= 1e-8
        assert float(force[~inside].max()) <= 1e-8


def test_the_projection_onto_affine_constraints() -> None:
    """min Σ z/z⁰ − 1 − log(z/z⁰) over Vᵀz = β, whose dual must stay negative: y⁰ + Vλ < 0."""
    generator = torch.Generator().manual_seed(4)
    vectors = torch.randn(6, 2, generator=generator, dtype=DOUBLE)
    start = 0.1 + torch.rand(3, 6, generator=generator, dtype=DOUBLE)
    beta = (5 * torch.rand(3, 6, generator=generator, dtype=DOUBLE)) @ vectors
    layer = ib.BregmanProjection.from_matrix(vectors, beta, geometry="burg")
    found = layer.solve(initial=start)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.value @ vectors, beta, rtol=1e-9, atol=1e-9)
    moved = 1 / start - 1 / found.value
    outside = moved - moved @ vectors @ torch.linalg.pinv(vectors)
    assert float(outside.abs().max()) <= 1e-8
    energy = ib.QuadraticEnergy(6, weight="low_rank", rank=2, in_features=2, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"burg has no ρ\(0\)"):
        ib.find_critical_point(energy, "burg", torch.zeros(1, 2, dtype=DOUBLE), regularization=0.1)
