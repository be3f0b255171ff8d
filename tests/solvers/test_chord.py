"""Steps with one Jacobian for the whole batch, without symmetry and with γ > 0."""

from __future__ import annotations

import pytest
import torch

import implicit_bregman as ib
from implicit_bregman.objective import Objective
from implicit_bregman.solvers.chord import chord_steps

GEOMETRIES = ["tanh", "sigmoid", "softplus", "arctan", "exp"]


def layer(geometry: str, gamma: float, dtype: torch.dtype) -> ib.BregmanDEQ:
    torch.manual_seed(0)
    return ib.BregmanDEQ(6, 12, geometry, weight="monotone", regularization=gamma, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("gamma", [2.0, 0.5, 0.02])
def test_the_default_agrees_with_splitting(geometry: str, gamma: float, dtype: torch.dtype) -> None:
    """Whether the steps pay or not; and z solves the equation."""
    model, x = layer(geometry, gamma, dtype), 2 * torch.randn(5, 6, dtype=dtype)
    found = model.solve(x)
    model.solver = ib.solvers.Splitting()
    assert found.converged.all()
    rounding = 1e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found.value, model.solve(x).value, rtol=rounding, atol=rounding)
    dual = (found.value @ model.energy.weight.T + model.energy.linear(x)) / gamma
    torch.testing.assert_close(model.geometry.activation(dual), found.value, rtol=rounding, atol=rounding)


def chords(gamma: float, most: int = 100, size: float = 1.0) -> tuple[torch.Tensor, int] | None:
    model, x = layer("tanh", gamma, torch.float64), size * torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        objective = Objective(model.energy.bind(x), model.geometry, gamma)
        return chord_steps(objective, torch.zeros(5, 12, dtype=torch.float64), 1e-12, most)


def test_they_are_few_where_gamma_is_large() -> None:
    found = chords(gamma=2.0)
    assert found is not None
    assert found[1] <= 12


@pytest.mark.parametrize(("gamma", "most"), [(1e-3, 100), (2.0, 2)])
def test_they_are_given_up(gamma: float, most: int) -> None:
    """Where they do not pay, and where they may not be so many."""
    assert chords(gamma, most, size=20.0) is None
