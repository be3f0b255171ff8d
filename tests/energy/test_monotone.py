"""`weight="monotone"`: monDEQ's parametrization of W, with one equilibrium by construction."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.adjoints import Unrolled
from tests.problems import normal

GEOMETRIES = ("tanh", "sigmoid", "softplus", "arctan", "sin", "exp", "identity")


def layer(dtype: torch.dtype = torch.float64, **settings: object) -> ib.BregmanDEQ:
    """Of width 9 on 5 inputs, with parameters away from where they start."""
    made = ib.BregmanDEQ(5, 9, **{"geometry": "tanh", "weight": "monotone", **settings}, dtype=dtype)
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter.copy_(0.6 * normal(*parameter.shape, seed=number))
    return made


def matrices(made: ib.BregmanDEQ) -> list[Tensor]:
    """A, B, U, b."""
    energy = made.energy
    return [energy.weight_map.factor, energy.weight_map.skew, energy.input_weight, energy.bias]


def negative_weight(a: Tensor, b: Tensor, margin: float) -> Tensor:
    """H of monDEQ."""
    return margin * torch.eye(len(a), dtype=a.dtype) + a.mT @ a + b.mT - b


# What W is ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.1, 1.0])
def test_the_weight_is_that_of_mondeq(margin: float) -> None:
    made = layer(margin=margin)
    a, b, *_ = matrices(made)
    torch.testing.assert_close(made.energy.weight, -negative_weight(a, b, margin))
    assert not made.energy.symmetric
    with pytest.raises(TypeError, match="has no value"):
        made.energy.value(torch.ones(1, 9).double(), torch.ones(1, 5).double())


@given(d=st.integers(1, 12), seed=st.integers(0, 2**16), log_size=st.floats(-6, 3), margin=st.floats(1e-3, 10.0))
def test_the_certificate_holds_whatever_the_parameters(d: int, seed: int, log_size: float, margin: float) -> None:
    energy = ib.QuadraticEnergy(d, weight="monotone", margin=margin, dtype=torch.float64)
    with torch.no_grad():
        energy.weight_map.factor.copy_(10**log_size * normal(d, d, seed=seed))
        energy.weight_map.skew.copy_(10**log_size * normal(d, d, seed=seed + 1))
    weight = energy.weight.detach()
    least = float(torch.linalg.eigvalsh(-0.5 * (weight + weight.mT))[0])
    assert least >= margin - 1e-14 * d * float(torch.linalg.matrix_norm(weight))
    assert energy.bind(normal(1, d)).is_strictly_convex(0.0, False)
    assert ib.certify(energy, "tanh").unique


def test_the_certificate_holds_in_training(dtype: torch.dtype) -> None:
    made = layer(dtype, margin=0.3)
    x = normal(16, 5).to(dtype)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        (-made.energy.weight.trace() + made(x).square().sum()).backward()  # pushes −W towards 0
        optimizer.step()
    weight = made.energy.weight.detach()
    assert float(torch.linalg.eigvalsh(-0.5 * (weight + weight.mT))[0]) >= 0.3 * (1 - 1e-5)
    assert made.certificate().unique
    assert bool(made.solve(x).converged.all())


def test_it_starts_as_mondeq_does() -> None:
    torch.manual_seed(0)
    energy = ib.QuadraticEnergy(100, weight="monotone", margin=1.0)
    for entries in (energy.weight_map.factor, energy.weight_map.skew):
        assert float(entries.detach().abs().max()) <= 0.1
        assert float(entries.detach().std()) == pytest.approx(0.1 / 3**0.5, rel=0.05)


def test_no_spectrum_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a spectrum was computed")

    monkeypatch.setattr(torch.linalg, "eigvalsh", refused)
    for gamma in (0.0, 0.3):
        solution = layer(regularization=gamma).solve(3 * normal(8, 5))
        solution.value.sum().backward()
        assert solution.converged.all()


# The equilibrium ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_value_and_gradients_are_those_of_the_given_matrix(geometry: str, gamma: float, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "with regularization=0 and the unbounded domain")
        made = layer(dtype, geometry=geometry, regularization=gamma, margin=0.5)
    parts, cotangent = matrices(made), normal(7, 9, seed=9).to(dtype)
    x = (3 * normal(7, 5, seed=8)).to(dtype).requires_grad_()
    found = made.solve(x)
    gradients = torch.autograd.grad(found.value, [x, *parts], cotangent)
    a, b, u, c = parts
    given = ib.QuadraticEnergy.from_matrices(-negative_weight(a, b, 0.5), u, c)
    other = ib.find_critical_point(given, geometry, x, regularization=gamma)
    assert bool(found.converged.all())
    assert torch.equal(found.status, other.status)
    tol = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(found.value, other.value, rtol=tol, atol=tol)
    for one, twin in zip(gradients, torch.autograd.grad(other.value, [x, *parts], cotangent), strict=True):
        torch.testing.assert_close(one, twin, rtol=tol, atol=tol * float(twin.abs().max()))


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_gradients_are_finite_differences(gamma: float) -> None:
    made, x, cotangent = layer(regularization=gamma, margin=1.0), 2 * normal(5, 5), normal(5, 9, seed=1)
    parts = matrices(made)
    gradients = torch.autograd.grad(made(x), parts, cotangent)
    for number, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):
        direction, values = normal(*part.shape, seed=number), []
        with torch.no_grad():
            for step in (1e-6, -2e-6, 1e-6):
                part.add_(step * direction)
                values.append(float((made(x) * cotangent).sum()))
        change = (values[0] - values[1]) / 2e-6
        assert change == pytest.approx(float((gradient * direction).sum()), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("solver", ["mm", "anderson", "newton", ib.solvers.Splitting()])
def test_every_solver_finds_it(solver: str | ib.solvers.Solver) -> None:
    made, x = layer(margin=1.0), 3 * normal(6, 5)
    expected = made(x)
    made.solver = solver
    found = made.solve(x)
    assert found.converged.all()
    torch.testing.assert_close(found.value, expected, rtol=0, atol=1e-7)


def test_scipy_finds_the_same_equilibrium_inside() -> None:
    made, x = layer(regularization=0.2), normal(3, 5)
    weight, offset = made.energy.weight.detach().numpy(), made.energy.linear(x).detach().numpy()
    for z, c in zip(made(x).detach().numpy(), offset, strict=True):

        def field(y: np.ndarray, c: np.ndarray = c) -> np.ndarray:
            return 0.2 * y - weight @ np.tanh(y) - c

        root = scipy.optimize.root(field, np.zeros(9), tol=1e-13)
        assert root.success
        np.testing.assert_allclose(z, np.tanh(root.x), atol=1e-10)


def test_a_projected_iteration_finds_the_same_equilibrium_on_the_half_line() -> None:
    """z = max(0, z − s(Hz − c)), with s = m/‖H‖²: a contraction for every H that is strongly monotone."""
    made, x = layer(geometry="softplus", margin=1.0), normal(6, 5)
    h, c = -made.energy.weight.detach(), made.energy.linear(x).detach()
    step = 1 / float(torch.linalg.matrix_norm(h, 2)) ** 2
    z = torch.zeros_like(c)
    for _ in range(3000):
        z = (z - step * (z @ h.mT - c)).clamp_min(0)
    found = made.solve(x)
    torch.testing.assert_close(found.value, z, rtol=0, atol=1e-10)
    assert 0.1 < float((z == 0).double().mean()) < 0.9
    assert found.objective is None


@pytest.mark.parametrize("geometry", ["softplus", "exp", "identity"])
def test_existence_is_not_doubted(geometry: str) -> None:
    """An unbounded C and γ = 0 are refused where the energy may be unbounded below; here there is an equilibrium."""
    energy = ib.QuadraticEnergy(4, weight="monotone", margin=1e-3, dtype=torch.float64)
    with torch.no_grad():
        energy.weight_map.factor.zero_()
    assert bool(ib.find_critical_point(energy, geometry, 0.1 * normal(3, 4)).converged.all())


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("skew", ["zero", "symmetric"])
def test_a_symmetric_b_leaves_an_objective(skew: str, gamma: float) -> None:
    made = layer(regularization=gamma)
    a, b, u, c = matrices(made)
    with torch.no_grad():
        b.copy_(b + b.mT if skew == "symmetric" else 0 * b)
    x, cotangent = 2 * normal(4, 5), normal(4, 9, seed=1)
    assert made.energy.symmetric
    found = made.solve(x)
    assert found.converged.all()
    assert found.objective is not None
    given = ib.QuadraticEnergy.from_matrices(-negative_weight(a, b, 0.1), u, c)
    other = ib.find_critical_point(given, "tanh", x, regularization=gamma)
    torch.testing.assert_close(found.value, other.value, rtol=0, atol=1e-9)
    torch.testing.assert_close(made.energy.value(found.value, x), given.value(other.value, x))
    gradients = torch.autograd.grad(found.value, [a, b, u, c], cotangent)
    for one, twin in zip(gradients, torch.autograd.grad(other.value, [a, b, u, c], cotangent), strict=True):
        torch.testing.assert_close(one, twin, rtol=1e-9, atol=1e-9)
    assert float(gradients[1].abs().max()) > 1e-3  # B leaves 0 in training


# The module -----------------------------------------------------------------------------------------------------------


def test_state_dict_round_trip() -> None:
    made, x = layer(), normal(3, 5)
    fresh = ib.BregmanDEQ(5, 9, weight="monotone", dtype=torch.float64)
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(fresh(x), made(x))
    assert sorted(made.state_dict()) == [
        "energy.bias",
        "energy.input_weight",
        "energy.weight_map.factor",
        "energy.weight_map.skew",
    ]
    assert torch.equal(copy.deepcopy(made)(x), made(x))


def test_half_precision_parameters() -> None:
    made = layer(torch.bfloat16)
    x = normal(3, 5).bfloat16()
    assert made(x).dtype == torch.bfloat16
    torch.testing.assert_close(made(x).float(), copy.deepcopy(made).float()(x.float()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan")])
def test_the_margin_must_be_positive(margin: float) -> None:
    with pytest.raises(ValueError, match="margin must be positive"):
        ib.QuadraticEnergy(3, weight="monotone", margin=margin)


def test_x_as_the_start_would_be_forgotten() -> None:
    with pytest.raises(ValueError, match=r'injection="initial" with weight="monotone" makes h constant'):
        ib.BregmanDEQ(3, 3, weight="monotone", injection="initial")
    ib.BregmanDEQ(3, 3, weight="monotone", injection="initial", adjoint=Unrolled(steps=3))(torch.zeros(1, 3))


# The former name of "general" -----------------------------------------------------------------------------------------


def test_free_is_general() -> None:
    torch.manual_seed(1)
    one = ib.BregmanDEQ(3, 4, weight="free")
    torch.manual_seed(1)
    other = ib.BregmanDEQ(3, 4, weight="general")
    x = torch.randn(2, 3)
    assert torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert type(one.energy.weight_map) is type(other.energy.weight_map)
    assert not ib.QuadraticEnergy(3, weight="free").symmetric
    with pytest.warns(UserWarning, match='weight="general" makes h piecewise constant'):
        ib.BregmanDEQ(3, 3, weight="free", injection="initial")


def test_a_layer_pickled_under_the_former_name_still_loads() -> None:
    made = ib.BregmanDEQ(3, 4, weight="general")
    before = pickle.dumps(made, protocol=0).replace(b"GeneralWeight", b"FreeWeight")
    x = torch.randn(2, 3)
    assert torch.equal(pickle.loads(before)(x), made(x))
