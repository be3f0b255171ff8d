"""Equilibria of general weights whose fixed-point steps go round in circles: the default finds one, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import implicit_bregman as ib

PENNIES = torch.tensor([[0.0, 10.0], [-2.0, 0.0]]).double(), torch.tensor([[-1.0, 1.0]]).double()


def spinning(d: int, batch: int, norm: float, seed: int) -> tuple[Tensor, Tensor]:
    """A random W of the given norm and random offsets."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(d, d, generator=generator, dtype=torch.float64)
    weight = weight * (norm / torch.linalg.matrix_norm(weight, 2))
    return weight, torch.randn(batch, d, generator=generator, dtype=torch.float64)


def equation(weight: Tensor, offset: Tensor, geometry: str, gamma: float, dual: Tensor) -> Tensor:
    """γy − Wρ(y) − c."""
    return gamma * dual - ib.geometry(geometry).activation(dual) @ weight.T - offset


def test_matching_pennies_against_scipy(dtype: torch.dtype) -> None:
    """The logit equilibrium of an asymmetric game, as two units."""
    weight, offset = (tensor.to(dtype) for tensor in PENNIES)
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(weight), "sigmoid", offset, regularization=0.05)
    assert bool(found.converged.all())

    def field(y: np.ndarray) -> np.ndarray:
        return 0.05 * y - PENNIES[0].numpy() @ (1 / (1 + np.exp(-y))) - PENNIES[1][0].numpy()

    # Player 2 is nearly indifferent at the equilibrium: a root of one equation in y₁, bracketed.
    def residual(first: float) -> float:
        second = (-2.0 / (1 + np.exp(-first)) + 1.0) / 0.05
        return float(field(np.array([first, second]))[0])

    first = scipy.optimize.brentq(residual, -20.0, 20.0, xtol=1e-15)
    second = (-2.0 / (1 + np.exp(-first)) + 1.0) / 0.05
    expected = torch.tensor([[1 / (1 + np.exp(-first)), 1 / (1 + np.exp(-second))]])
    torch.testing.assert_close(found.value.double(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize(("geometry", "gamma", "norm"), [("tanh", 1.0, 3.0), ("sigmoid", 0.1, 6.0), ("isru", 0.5, 3.0)])
def test_every_sample_ends_at_an_equilibrium(geometry: str, gamma: float, norm: float, dtype: torch.dtype) -> None:
    weight, offset = spinning(12, 8, norm, seed=1)
    energy = ib.QuadraticEnergy.from_matrices(weight.to(dtype))
    found = ib.find_critical_point(energy, geometry, offset.to(dtype), regularization=gamma)
    assert bool(found.converged.all())
    error = equation(weight.to(dtype).double(), offset.to(dtype).double(), geometry, gamma, found.dual.double())
    assert float(error.abs().max()) <= (5e-5 if dtype == torch.float32 else 1e-9)


def test_the_gradient_is_that_of_the_equilibrium() -> None:
    weight, offset = spinning(6, 3, 4.0, seed=0)
    x = offset.clone().requires_grad_()
    energy = ib.QuadraticEnergy.from_matrices(weight)
    found = ib.find_critical_point(energy, "tanh", x, regularization=1.0)
    g = torch.linspace(-1.0, 1.0, 6).double().expand(3, 6)
    (gradient,) = torch.autograd.grad((found.value * g).sum(), x)
    slope = 1 - found.value.detach().square()
    for row in range(3):
        jacobian = torch.eye(6).double() - weight * slope[row]  # of γy − Wρ(y) − c in y
        expected = torch.linalg.solve(jacobian.T, slope[row] * g[row])
        torch.testing.assert_close(gradient[row], expected, rtol=1e-9, atol=1e-11)


def test_without_regularization_the_limit_of_the_curve_is_an_equilibrium() -> None:
    weight, offset = spinning(6, 6, 4.0, seed=5)
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(weight), "tanh", offset)
    force = found.value @ weight.T + offset
    moved = (found.value + force).clamp(-1.0, 1.0) - found.value
    assert bool(found.converged.all())
    assert float(moved.abs().max()) <= 1e-10


@pytest.mark.parametrize("geometry", ["exp", "softplus", "bent", "arcsinh"])
@pytest.mark.parametrize("scale", [10.0, 1e5])
def test_a_monotone_field_without_a_bound_on_the_slope(geometry: str, scale: float, dtype: torch.dtype) -> None:
    """Fixed-point steps overshoot where ρ' grows without bound; Newton's method finds the one equilibrium."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    weight = -0.5 * torch.eye(5, dtype=torch.float64) + 0.1 * noise + 0.3 * (noise - noise.T)
    offset = scale * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    weight, offset = weight.to(dtype), offset.to(dtype)
    start = 15 * torch.ones_like(offset)
    energy = ib.QuadraticEnergy.from_matrices(weight)
    found = ib.find_critical_point(energy, geometry, offset, regularization=1.5, initial_dual=start)
    assert bool(found.converged.all())
    assert int(found.iterations.max()) <= 100
    y, z, c, matrix = found.dual.double(), found.value.double(), offset.double(), weight.double()
    error = 1.5 * y - z @ matrix.mT - c
    size = 1 + 1.5 * y.abs() + z.abs() @ matrix.mT.abs() + c.abs()
    # (next to a bound z is known, and y need not be)
    known = (z > 1e-4) | (geometry == "arcsinh")
    assert float((error.abs() / size)[known].max()) <= (2e-6 if dtype == torch.float32 else 1e-11)
