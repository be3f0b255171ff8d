"""Convex, but not strictly: problems of other fields against their tools, and MM's limit among the minimisers."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.linear_model import Lasso
from sklearn.svm import SVC
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.objective import Objective
from implicit_bregman.operators.factor import Factor
from implicit_bregman.solvers.exact.interior_point import minimise_convex

DOUBLE = torch.float64
#: Steps that no problem here should take.
MOST_STEPS = 40


def solve(
    hessian: Tensor, offset: Tensor, geometry: str | ib.legendre.LegendreFunction, **settings: object
) -> ib.Solution:
    return ib.find_critical_point(ib.QuadraticEnergy.from_matrices(-hessian), geometry, offset, **settings)


def value_of(hessian: Tensor, offset: Tensor, z: Tensor) -> Tensor:
    """½zᵀHz − cᵀz in float64, (B,)."""
    z = z.double()
    return (z * (0.5 * z @ hessian.double() - offset.double())).sum(-1)


def standardized(features: np.ndarray) -> np.ndarray:
    spread = features.std(0)
    return (features - features.mean(0)) / np.where(spread > 0, spread, 1.0)


# Problems of other fields ------------------------------------------------------------------------------------------


def digits_nnls(atoms: int = 100, samples: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """A dictionary with more atoms than the images have pixels, (64, atoms), and images, (samples, 64)."""
    images = load_digits().data / 16.0
    return images[:atoms].T, images[atoms : atoms + samples]


@dataclass(frozen=True)
class Kernel:
    """A support vector machine without bias: min ½zᵀHz − Σz on [0, C]ᵈ, H = yyᵀ ∘ K."""

    data: str
    count: int
    width: float | None
    bound: float

    def matrix(self) -> tuple[np.ndarray, np.ndarray]:
        load = {"cancer": load_breast_cancer, "wine": load_wine, "digits": load_digits}[self.data]
        features, labels = load(return_X_y=True)
        x = standardized(features)[: self.count]
        y = np.where(labels[: self.count] == labels[0], 1.0, -1.0)
        distances = ((x[:, None] - x[None]) ** 2).sum(-1)
        return (x @ x.T if self.width is None else np.exp(-self.width * distances)), y

    def hessian(self) -> Tensor:
        kernel, y = self.matrix()
        return torch.from_numpy(y[:, None] * kernel * y)

    def geometry(self) -> ib.legendre.LegendreFunction:
        return ib.geometry("sigmoid").to_box(0.0, self.bound)


MACHINES = {
    "linear": Kernel("cancer", 400, None, 1.0),
    "linear, small C": Kernel("cancer", 200, None, 0.01),
    "linear, wine": Kernel("wine", 178, None, 1.0),
    "linear, digits": Kernel("digits", 200, None, 1.0),
    "RBF": Kernel("wine", 178, 1e-2, 10.0),
    "wide RBF": Kernel("cancer", 300, 1e-3, 1.0),
    "widest RBF": Kernel("cancer", 300, 1e-5, 100.0),
}


@pytest.mark.parametrize("atoms", [100, 150])
def test_nonnegative_least_squares(atoms: int, dtype: torch.dtype) -> None:
    dictionary, images = digits_nnls(atoms)
    hessian = torch.from_numpy(dictionary.T @ dictionary)
    offset = torch.from_numpy(images @ dictionary)
    found = solve(hessian.to(dtype), offset.to(dtype), "softplus")
    exact = torch.from_numpy(np.stack([nnls(dictionary, image)[0] for image in images]))
    assert set(found.status.tolist()) == {ib.Status.CONVERGED}
    assert int(found.iterations.max()) <= MOST_STEPS
    best = value_of(hessian, offset, exact)
    excess = (value_of(hessian, offset, found.value) - best) / best.abs()
    assert float(excess.abs().max()) <= (1e-9 if dtype == DOUBLE else 1e-6)
    torch.testing.assert_close(found.value.double(), exact, rtol=0, atol=1e-9 if dtype == DOUBLE else 1e-3)


def test_the_gradient_of_nonnegative_least_squares() -> None:
    """Against differences of SciPy's solution in the images, and, through H = AᵀA and c = Aᵀb, in the dictionary."""
    dictionary, images = digits_nnls(100, 4)
    matrix = torch.from_numpy(dictionary.copy()).requires_grad_()
    targets = torch.from_numpy(images).requires_grad_()
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 100)))
    energy = ib.QuadraticEnergy.from_matrices(-matrix.T @ matrix)
    found = ib.find_critical_point(energy, "softplus", targets @ matrix)
    (found.value * weight).sum().backward()

    def loss(a: np.ndarray, b: np.ndarray) -> float:
        return float(sum(w @ nnls(a, row)[0] for w, row in zip(weight.numpy(), b, strict=True)))

    direction = np.random.default_rng(1).standard_normal(images.shape)
    difference = (loss(dictionary, images + 1e-6 * direction) - loss(dictionary, images - 1e-6 * direction)) / 2e-6
    assert float((targets.grad * torch.from_numpy(direction)).sum()) == pytest.approx(difference, rel=1e-7)
    # (the dictionary's support only: elsewhere the derivative is that of a coordinate at its bound)
    direction = np.random.default_rng(2).standard_normal(dictionary.shape) * 1e-3
    difference = (loss(dictionary + 1e-4 * direction, images) - loss(dictionary - 1e-4 * direction, images)) / 2e-4
    assert float((matrix.grad * torch.from_numpy(direction)).sum()) == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize(("data", "penalty"), [("diabetes", 0.1), ("wine", 0.05), ("cancer", 0.01)])
def test_the_lasso_split_in_two(data: str, penalty: float, dtype: torch.dtype) -> None:
    load = {"diabetes": load_diabetes, "wine": load_wine, "cancer": load_breast_cancer}[data]
    features, target = load(return_X_y=True)
    x, y = standardized(features), standardized(target[:, None].astype(float))[:, 0]
    gram, pull = torch.from_numpy(x.T @ x / len(y)), torch.from_numpy(x.T @ y / len(y))
    hessian = torch.cat([torch.cat([gram, -gram], 1), torch.cat([-gram, gram], 1)])
    offset = (torch.cat([pull, -pull]) - penalty)[None].to(dtype).requires_grad_()
    found = solve(hessian.to(dtype), offset, "softplus")
    assert found.status.tolist() == [ib.Status.CONVERGED]
    assert int(found.iterations.max()) <= MOST_STEPS
    plus, minus = found.value[0].double().chunk(2)
    exact = Lasso(penalty, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x, y).coef_
    close = 1e-7 if dtype == DOUBLE else 1e-4
    np.testing.assert_allclose((plus - minus).detach().numpy(), exact, rtol=0, atol=close)
    # One of each pair is 0, and the gradient is that of the other ones' least squares problem.
    assert float(torch.minimum(plus, minus).detach().abs().max()) == 0
    (plus - minus).sum().backward()
    support = torch.from_numpy(exact != 0)
    inside = torch.linalg.solve(gram[support][:, support], torch.ones(int(support.sum()), dtype=DOUBLE))
    slopes = torch.zeros(len(exact), dtype=DOUBLE).masked_scatter(support, inside)
    wanted = torch.cat([torch.where(plus > 0, slopes, 0.0), torch.where(minus > 0, -slopes, 0.0)])
    torch.testing.assert_close(offset.grad[0].double(), wanted.detach(), rtol=close, atol=close)


@pytest.mark.parametrize("name", list(MACHINES))
def test_support_vector_machines(name: str, dtype: torch.dtype) -> None:
    """The KKT conditions, written out in NumPy, and the duality gap bound the error of the value."""
    machine = MACHINES[name]
    hessian = machine.hessian()
    d = len(hessian)
    found = solve(hessian.to(dtype), torch.ones(1, d, dtype=dtype), machine.geometry())
    assert bool(found.converged.all())
    assert int(found.iterations.max()) <= 60
    h, z = hessian.numpy(), found.value[0].double().numpy()
    slope = h @ z - 1
    # f(z) − min f ≤ Σ_j max over w in [0, C] of slope_j (z_j − w), for convex f
    gap = np.maximum(slope * z, slope * (z - machine.bound)).sum()
    value = abs(0.5 * z @ h @ z - z.sum())
    assert gap <= (1e-9 if dtype == DOUBLE else 1e-4) * value


def test_a_support_vector_machine_agrees_with_that_of_scikit_learn() -> None:
    """A kernel with a large constant added makes the equality constraint of a bias idle: libsvm has no other form."""
    machine = Kernel("wine", 120, 1e-2, 10.0)
    kernel, y = machine.matrix()
    d = len(y)
    found = solve(machine.hessian(), torch.ones(1, d, dtype=DOUBLE), machine.geometry())
    z = found.value[0].numpy()
    # Its decision values are K(y∘z); libsvm's, with the bias fixed, minimise the same once Σyz is prescribed.
    fitted = SVC(C=machine.bound, kernel="precomputed", tol=1e-10).fit(kernel, y)
    other = np.zeros(d)
    other[fitted.support_] = np.abs(fitted.dual_coef_[0])
    value = float(value_of(machine.hessian(), torch.ones(d, dtype=DOUBLE), torch.from_numpy(z)))
    assert value <= float(value_of(machine.hessian(), torch.ones(d, dtype=DOUBLE), torch.from_numpy(other))) + 1e-9
    exact, _ = box_minimum(machine.hessian().numpy(), np.ones(d), 0.0, machine.bound, z)
    np.testing.assert_allclose(z, exact, rtol=0, atol=1e-6)


def box_minimum(h: np.ndarray, c: np.ndarray, lo: float, hi: float, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The solution of a box QP with the active set of `near`, by NumPy, after checking that it is one; its free set."""
    at_lo, at_hi = near <= lo + 1e-12, near >= hi - 1e-12
    free = ~(at_lo | at_hi)
    z = np.where(at_lo, lo, np.where(at_hi, hi, 0.0))
    z[free] = np.linalg.lstsq(h[np.ix_(free, free)], c[free] - h[np.ix_(free, ~free)] @ z[~free], rcond=None)[0]
    slope = h @ z - c
    assert (slope[at_lo] >= -1e-9).all()
    assert (slope[at_hi] <= 1e-9).all()
    assert ((z >= lo - 1e-9) & (z <= hi + 1e-9)).all()
    return z, free


@pytest.mark.parametrize("name", ["linear, wine", "linear, small C", "wide RBF"])
def test_the_gradient_of_a_support_vector_machine(name: str) -> None:
    """Against differences of the solution with the same active set, by NumPy."""
    machine = MACHINES[name]
    hessian = machine.hessian()
    d = len(hessian)
    offset = torch.ones(1, d, dtype=DOUBLE, requires_grad=True)
    found = solve(hessian, offset, machine.geometry())
    assert found.status.tolist() == [ib.Status.CONVERGED]
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal(d)) @ hessian / d
    (found.value * weight).sum().backward()
    h, z = hessian.numpy(), found.value[0].detach().numpy()
    _, free = box_minimum(h, np.ones(d), 0.0, machine.bound, z)
    exact = np.zeros(d)
    exact[free] = np.linalg.solve(h[np.ix_(free, free)], weight.numpy()[free])
    error = np.linalg.norm(offset.grad[0].numpy() - exact) / np.linalg.norm(exact)
    assert error <= 1e-7


@pytest.mark.parametrize("power", [6, 10, 12, 14])
def test_any_condition(power: int, generator: torch.Generator) -> None:
    """Eigenvalues from 1 to 10^-power, in a box that a third of the coordinates leave."""
    basis, _ = torch.linalg.qr(torch.randn(40, 40, generator=generator).double())
    hessian = (basis * torch.logspace(0, -power, 40, dtype=DOUBLE)) @ basis.mT
    hessian = 0.5 * (hessian + hessian.mT)
    offset = torch.randn(6, 40, generator=generator).double()
    found = solve(hessian, offset, "tanh")
    assert bool(found.converged.all())
    slope, z = found.value @ hessian - offset, found.value
    gap = torch.maximum(slope * (z + 1), slope * (z - 1)).sum(-1)
    assert float((gap / value_of(hessian, offset, z).abs()).max()) <= 1e-9


# Which minimiser ---------------------------------------------------------------------------------------------------


def plain_mm(hessian: Tensor, offset: Tensor, geometry: ib.legendre.LegendreFunction, dual: Tensor) -> Tensor:
    """z after 20,000 MM steps in float64, written out."""
    largest = float(torch.linalg.eigvalsh(hessian)[-1])
    step = min(1.0, geometry.strong_convexity / largest) if geometry.strong_convexity > 0 else 0.02 / largest
    for _ in range(20_000):
        dual = geometry.project_dual(dual - step * (geometry.activation(dual) @ hessian - offset))
    return geometry.activation(dual)


#: (arctan, isru and bent approach an active bound like a power of 1/k, too slowly to compare with)
MIRRORS = ["sigmoid", "tanh", "scaled_tanh", "sin", "softplus", "exp", "identity", "arcsinh"]


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("name", [*MIRRORS, "arctan", "isru", "bent"])
def test_the_limit_of_mm(name: str, active: bool, generator: torch.Generator) -> None:
    geometry = ib.geometry(name)
    if active and name not in MIRRORS:
        pytest.skip("plain MM does not get there")
    lo, hi = geometry.domain
    factor = torch.randn(6, 2, generator=generator).double()
    hessian = factor @ factor.T
    hessian = 0.5 * (hessian + hessian.mT)
    offset = geometry.activation(torch.randn(3, 6, generator=generator).double()) @ hessian
    if active:  # coordinates that a multiplier holds at a bound
        offset[:, 0] -= 0.5 if math.isfinite(lo) else 0.0
        offset[0, 1] += 0.4 if math.isfinite(hi) else 0.0
    start = 0.5 * torch.randn(3, 6, generator=generator).double()
    found = solve(hessian, offset, geometry, initial=geometry.activation(start))
    exact = plain_mm(hessian, offset, geometry, start)
    assert bool(found.converged.all())
    assert active or set(found.status.tolist()) == {ib.Status.NONUNIQUE}
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-8)
    torch.testing.assert_close(geometry.activation(found.dual), found.value, rtol=0, atol=1e-12)


def test_the_nearest_minimiser_in_closed_form(dtype: torch.dtype) -> None:
    """½(Σz − 1)²: for φ = z log z − z the minimiser nearest to z⁰ is z⁰/Σz⁰; for ½z², z⁰ and a constant."""
    hessian, offset = torch.ones(4, 4, dtype=dtype), torch.ones(2, 4, dtype=dtype)
    start = torch.tensor([[0.1, 0.2, 3.0, 0.7], [1e-5, 2e-5, 1e-5, 1e-2]], dtype=dtype)
    close = {"rtol": 1e-12 if dtype == DOUBLE else 1e-5, "atol": 0}
    found = solve(hessian, offset, "exp", initial=start)
    assert set(found.status.tolist()) == {ib.Status.NONUNIQUE}
    torch.testing.assert_close(found.value, start / start.sum(-1, keepdim=True), **close)
    found = solve(hessian, offset, "identity", initial=start)
    torch.testing.assert_close(found.value, start + (1 - start.sum(-1, keepdim=True)) / 4, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["identity", "tanh", "softplus"])
def test_the_gradient_is_the_shortest(name: str, dtype: torch.dtype) -> None:
    """v = H⁺g on the free coordinates, and no warning."""
    factor = torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.3, -1.0, 1.0, 2.0]], dtype=dtype)
    hessian = (factor.T @ factor).requires_grad_()
    geometry = ib.geometry(name)
    inside = geometry.activation(torch.tensor([[0.1, 0.5, 0.2, -0.3]], dtype=dtype))
    offset = (inside @ hessian).detach().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = solve(hessian, offset, geometry)
        g = torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=dtype)
        (found.value * g).sum().backward()
    assert found.status.tolist() == [ib.Status.NONUNIQUE]
    assert found.adjoint.status.tolist() == [ib.Status.CONVERGED]
    v = g.double() @ torch.linalg.pinv(hessian.detach().double(), rtol=1e-6)
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == DOUBLE else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(offset.grad.double(), v, **close)
    torch.testing.assert_close(hessian.grad.double(), -v.mT @ found.value.detach().double(), **close)


def test_bounds_without_multipliers_can_leave_one_minimiser(dtype: torch.dtype) -> None:
    """½(Σz)² on z ≥ 0: z = 0 alone, though nothing holds it there and H is singular."""
    found = solve(torch.ones(3, 3, dtype=dtype), torch.zeros(1, 3, dtype=dtype), "softplus")
    assert found.status.tolist() == [ib.Status.DEGENERATE]
    assert float(found.value.max()) <= 1e-9


def test_samples_are_judged_one_by_one(dtype: torch.dtype) -> None:
    """½(z₁ + z₂)² + ½z₃²: unique where a multiplier holds z₁ or z₂ at a bound."""
    hessian = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=dtype)
    offset = torch.tensor([[0.5, 0.5, 0.3], [0.9, 0.2, 0.3], [0.5, 0.5, 2.0]], dtype=dtype)
    found = solve(hessian, offset, "sigmoid")
    assert found.status.tolist() == [ib.Status.NONUNIQUE, ib.Status.CONVERGED, ib.Status.NONUNIQUE]
    exact = torch.tensor([[0.25, 0.25, 0.3], [0.9, 0.0, 0.3], [0.25, 0.25, 1.0]], dtype=dtype)
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-6)
    assert "one of many minimisers" in found.message


@pytest.mark.parametrize("name", ["exp", "softplus", "tanh", "identity"])
def test_coordinates_that_do_not_appear(name: str, dtype: torch.dtype) -> None:
    """½(z₁ + z₄ − 2b)², far from the start: the other coordinates stay where they are."""
    geometry, inside = ib.geometry(name), torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0], dtype=dtype)
    target = 0.5 if name == "tanh" else 10.0
    found = solve(inside[:, None] * inside, (2 * target * inside)[None], geometry)
    assert found.status.tolist() == [ib.Status.NONUNIQUE]
    exact = torch.where(inside > 0, target, geometry.activation(torch.zeros_like(inside)))
    torch.testing.assert_close(found.value[0], exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_units_do_not_matter(scale: float, dtype: torch.dtype) -> None:
    """F times a number, and coordinates in other units."""
    hessian = scale * torch.ones(3, 3, dtype=dtype)
    offset = scale * torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 2.0]], dtype=dtype)
    found = solve(hessian, offset, "exp")
    assert found.status.tolist() == [ib.Status.NONUNIQUE, ib.Status.CONVERGED]
    exact = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.0, 0.0, 2.0]], dtype=dtype)
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-6)


# Where there is none -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["softplus", "exp", "bent", "identity", "arcsinh"])
def test_no_minimiser_is_said_at_once(name: str, dtype: torch.dtype) -> None:
    """f falls for ever along the third axis, in the first sample only."""
    hessian = torch.diag(torch.tensor([1.0, 1.0, 0.0])).to(dtype)
    offset = torch.tensor([[1.0, 0.5, 0.1], [1.0, 0.5, 0.0]], dtype=dtype)
    with pytest.warns(ib.ConvergenceWarning, match="running away"):
        found = solve(hessian, offset, name)
    assert found.status.tolist() == [ib.Status.DIVERGED, ib.Status.NONUNIQUE]
    assert bool(torch.isfinite(found.value).all())
    assert bool(torch.isfinite(found.dual).all())
    assert int(found.iterations.max()) <= 150


def test_an_offset_outside_the_range_has_none_on_the_line() -> None:
    hessian = torch.ones(3, 3, dtype=DOUBLE)
    offset = torch.tensor([[1.0, -1.0, 0.1], [1.0, 1.0, 1.0]], dtype=DOUBLE)
    with pytest.warns(ib.ConvergenceWarning, match="running away"):
        found = solve(hessian, offset, "identity")
    assert found.status.tolist() == [ib.Status.DIVERGED, ib.Status.NONUNIQUE]


# What counts as convex ---------------------------------------------------------------------------------------------


def test_a_wrong_declaration_is_refused() -> None:
    weight = torch.diag(torch.tensor([-1.0, -0.5, 0.25]))
    with pytest.raises(ValueError, match=r"declared convex, but -W has the eigenvalue -0\.25"):
        ib.QuadraticEnergy.from_matrices(weight, convex=True)
    with pytest.raises(ValueError, match="needs a symmetric W"):
        ib.QuadraticEnergy.from_matrices(torch.tensor([[-1.0, 0.5], [0.0, -1.0]]), convex=True)


def test_a_declaration_helps_where_rounding_is_coarse(generator: torch.Generator) -> None:
    """A Gram matrix rounded to three digits has eigenvalues of -1e-3."""
    factor = torch.randn(30, 5, generator=generator).double()
    hessian = factor @ factor.T
    noise = torch.randn(30, 30, generator=generator).double()
    rough = (hessian + 1e-5 * (noise + noise.mT)).float()
    offset = 0.3 * torch.randn(2, 30, generator=generator)
    energy = ib.QuadraticEnergy.from_matrices(-rough, convex=True)
    found = ib.find_critical_point(energy, "tanh", offset)
    exact = solve(hessian, offset.double(), "tanh")
    assert bool(found.converged.all())
    values = [value_of(hessian, offset, s.value) for s in (found, exact)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("width", "power"), [(20, 6), (80, 6), (80, 7), (80, 9), (40, 12)])
def test_single_precision_is_judged_like_its_twin(width: int, power: int, generator: torch.Generator) -> None:
    """Definite in float64 and given in float32: no saddle to fear, whatever the condition."""
    basis, _ = torch.linalg.qr(torch.randn(width, width, generator=generator).double())
    hessian = (basis * torch.logspace(0, -power, width, dtype=DOUBLE)) @ basis.mT
    single = (0.5 * (hessian + hessian.mT)).float()
    offset = 0.3 * torch.randn(4, width, generator=generator)
    found = solve(single, offset, "tanh")
    assert bool(found.converged.all())
    assert int(found.iterations.max()) <= 60
    slope, z = found.value.double() @ single.double() - offset.double(), found.value.double()
    gap = torch.maximum(slope * (z + 1), slope * (z - 1)).sum(-1)
    assert float((gap / value_of(single, offset, z).abs()).max()) <= 1e-5


def test_what_is_definite_up_to_single_precision_is_solved_exactly(generator: torch.Generator) -> None:
    basis, _ = torch.linalg.qr(torch.randn(80, 80, generator=generator).double())
    hessian = (basis * torch.logspace(0, -6, 80, dtype=DOUBLE)) @ basis.mT
    single = (0.5 * (hessian + hessian.mT)).float().requires_grad_()
    offset = 0.3 * torch.randn(4, 80, generator=generator)
    twin = single.detach().double().requires_grad_()
    results = []
    for matrix, c in ((single, offset), (twin, offset.double())):
        found = solve(matrix, c, "tanh")
        assert set(found.status.tolist()) == {ib.Status.CONVERGED}
        found.value.sum().backward()
        results.append((found.value.detach().double(), matrix.grad.double()))
    (value, gradient), (exact, exact_gradient) = results
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, exact_gradient, rtol=1e-4, atol=1e-6 * float(exact_gradient.abs().max()))


@pytest.mark.parametrize("width", [3, 20, 100])
@pytest.mark.parametrize("penalty", [1e3, 1e6, 1e9])
def test_sparsemax_by_a_penalty(penalty: float, width: int, generator: torch.Generator) -> None:
    """½‖z − x‖² + ½p(Σz − 1)², z ≥ 0: the sum is off by λ/p, and z is right to the rounding error of p."""
    x = torch.randn(8, width, generator=generator).double()
    hessian = torch.eye(width, dtype=DOUBLE) + penalty
    found = solve(hessian, x + penalty, "softplus")
    assert bool(found.converged.all())
    ranked = x.sort(-1, descending=True).values
    # z = max(x − λ, 0) with λ = p(Σz − 1): with k coordinates off 0, λ = p(Σx − 1)/(1 + pk)
    sums, count = ranked.cumsum(-1), torch.arange(1, width + 1, dtype=DOUBLE)
    levels = (sums - 1) / (1 / penalty + count)
    kept = (ranked > levels).sum(-1, keepdim=True)
    exact = (x - levels.gather(-1, kept - 1)).clamp_min(0)
    torch.testing.assert_close(found.value, exact, rtol=0, atol=2e-15 * penalty + 1e-12)


def test_detection_costs_the_definite_nothing(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    def refused(self: Factor) -> None:
        raise AssertionError("asked for")

    monkeypatch.setattr(Factor, "semidefinite", property(refused))
    factor = torch.randn(12, 12, generator=generator).double()
    hessian = factor @ factor.T + torch.eye(12)
    assert bool(solve(hessian, torch.randn(5, 12, generator=generator).double(), "tanh").converged.all())


# Own energies ------------------------------------------------------------------------------------------------------


class OwnLeastSquares(ib.Energy):
    """½‖Az − x‖² + ¼ε‖Az − x‖⁴, with more columns than rows: convex, singular everywhere, and not quadratic."""

    def __init__(self, matrix: Tensor, quartic: float) -> None:
        super().__init__(matrix.shape[1], convex=True)
        self.register_buffer("matrix", matrix)
        self.quartic = quartic

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        square = (z @ self.matrix.mT - x).square().sum(-1)
        return 0.5 * square + 0.25 * self.quartic * square.square()


@pytest.mark.parametrize("quartic", [0.0, 0.1])
def test_an_own_energy_with_a_singular_reduced_system(quartic: float) -> None:
    """The fourth power changes nothing about the minimisers: SciPy's."""
    dictionary, images = digits_nnls(100, 4)
    found = ib.find_critical_point(
        OwnLeastSquares(torch.from_numpy(dictionary.copy()), quartic), "softplus", torch.from_numpy(images)
    )
    assert bool(found.converged.all())
    assert int(found.iterations.max()) <= 100
    exact, z = np.stack([nnls(dictionary, image)[0] for image in images]), found.value.detach().numpy()
    error = np.linalg.norm(z @ dictionary.T - images, axis=1)
    best = np.linalg.norm(exact @ dictionary.T - images, axis=1)
    np.testing.assert_allclose(error, best, rtol=1e-9)
    np.testing.assert_allclose(z, exact, rtol=0, atol=1e-6)


def test_a_declared_matrix_free_singular_energy_on_a_box(generator: torch.Generator) -> None:
    """Rank 2 in 8 coordinates, all inside: the equations hold, at whichever minimiser."""
    matrix = torch.randn(2, 8, generator=generator).double()
    x = 0.3 * torch.randn(5, 2, generator=generator).double()
    found = ib.find_critical_point(OwnLeastSquares(matrix, 0.1), "tanh", x)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.value @ matrix.mT, x, rtol=0, atol=1e-9)


class Tilted(ib.Energy):
    """½‖Az‖² − ⟨x, z⟩ with more columns than rows: no minimum on the line."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix.shape[1], convex=True)
        self.register_buffer("matrix", matrix)

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.5 * (z @ self.matrix.mT).square().sum(-1) - (x * z).sum(-1)


def test_an_own_energy_without_minimum_is_given_up_at_once(generator: torch.Generator) -> None:
    energy = Tilted(torch.randn(3, 8, generator=generator).double())
    with pytest.warns(ib.ConvergenceWarning, match="running away"):
        found = ib.find_critical_point(energy, "identity", torch.randn(4, 8, generator=generator).double())
    assert set(found.status.tolist()) == {ib.Status.DIVERGED}
    assert int(found.iterations.max()) <= 250
    assert bool(torch.isfinite(found.value).all())


class Wells(ib.Energy):
    """Two wells in each coordinate, and the input."""

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return (0.25 * (z.square() - 1).square() + 0.3 * z * z.roll(1, -1) - x * z).sum(-1)


@pytest.mark.parametrize("regularization", [0.0, 0.1])
@pytest.mark.parametrize("limit", [1, 5, 50, 300])
def test_max_iter_bounds_all_steps(limit: int, regularization: float, generator: torch.Generator) -> None:
    x = 0.1 * torch.randn(8, 3, generator=generator).double()
    for name in ("tanh", "sigmoid", "arcsinh"):
        found = ib.find_critical_point(
            Wells(), name, x, regularization=regularization,
            solver=ib.solvers.Newton(max_iter=limit, on_failure="ignore"),
        )  # fmt: skip
        assert int(found.iterations.max()) <= limit


@pytest.mark.parametrize("limit", [1, 2, 5, 12, 25])
def test_max_iter_bounds_the_steps_of_a_singular_problem(limit: int) -> None:
    dictionary, images = digits_nnls(100, 4)
    hessian, offset = torch.from_numpy(dictionary.T @ dictionary), torch.from_numpy(images @ dictionary)
    found = solve(hessian, offset, "softplus", solver=ib.solvers.Newton(max_iter=limit, on_failure="ignore"))
    assert int(found.iterations.max()) <= limit
    expected = {ib.Status.MAX_ITER} if limit <= 5 else {ib.Status.MAX_ITER, ib.Status.CONVERGED}
    assert set(found.status.tolist()) <= expected
    assert bool(torch.isfinite(found.value).all())


# The interior points -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["softplus", "tanh"])
def test_interior_points_against_all_active_sets(name: str, generator: torch.Generator) -> None:
    """Brute force over the 3⁵ (2⁵) sets of a definite problem."""
    geometry = ib.geometry(name)
    lo, hi = geometry.bounds(DOUBLE)
    factor = torch.randn(5, 5, generator=generator).double()
    hessian = factor @ factor.T + 0.01 * torch.eye(5)
    offset = 3 * torch.randn(6, 5, generator=generator).double()
    objective = Objective(ib.QuadraticEnergy.from_matrices(-hessian).bind(offset), geometry, 0.0)
    found = minimise_convex(objective, geometry.activation(torch.zeros_like(offset)), 1e-10, 60)
    assert bool(found.accepted.all())
    assert int(found.steps.max()) <= 25
    ends = [None, lo] if math.isinf(hi) else [None, lo, hi]
    for row in range(6):
        best = math.inf
        for pattern in itertools.product(ends, repeat=5):
            free = torch.tensor([end is None for end in pattern])
            z = torch.tensor([0.0 if end is None else end for end in pattern], dtype=DOUBLE)
            right = (offset[row] - hessian @ z)[free]
            z[free] = torch.linalg.solve(hessian[free][:, free], right)
            if bool(((z >= lo) & (z <= hi)).all()):
                best = min(best, float(value_of(hessian, offset[row], z)))
        assert float(value_of(hessian, offset[row], found.unrounded[row])) == pytest.approx(best, rel=1e-9)


def test_a_free_set_without_curvature(dtype: torch.dtype) -> None:
    """z₁ is held at its bound, and f does not depend on z₂: it stays where it starts."""
    hessian, offset = torch.diag(torch.tensor([1.0, 0.0], dtype=dtype)), torch.tensor([[5.0, 0.0]], dtype=dtype)
    start = torch.tensor([[0.1, 0.25]], dtype=dtype)
    found = solve(hessian, offset, "tanh", initial=start)
    assert found.status.tolist() == [ib.Status.NONUNIQUE]
    torch.testing.assert_close(found.value, torch.tensor([[1.0, 0.25]], dtype=dtype), rtol=1e-6, atol=1e-6)
