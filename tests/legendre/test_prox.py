"""The proximal map of γφ against mpmath, from one end of the floats to the other."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import implicit_bregman as ib
from implicit_bregman.legendre import separable_geometries
from implicit_bregman.legendre.prox import prox_dual

ACTIVATIONS = {
    "tanh": mpmath.tanh,
    "sigmoid": lambda y: 1 / (1 + mpmath.exp(-y)),
    "softplus": lambda y: mpmath.log1p(mpmath.exp(y)),
    "arctan": mpmath.atan,
    "isru": lambda y: y / mpmath.sqrt(1 + y * y),
    "arcsinh": mpmath.asinh,
    "identity": lambda y: y,
    "exp": mpmath.exp,
    "bent": lambda y: (y + mpmath.sqrt(y * y + 4)) / 2,
}


@pytest.mark.parametrize("geometry", sorted(ACTIVATIONS))
@pytest.mark.parametrize("weight", [1e-6, 0.3, 50.0])
@pytest.mark.parametrize("v", [-1e30, -1e4, -3.0, -1e-3, 0.0, 0.7, 1.0, 5.0, 1e4, 1e30])
def test_the_root_is_that_of_mpmath(geometry: str, weight: float, v: float, dtype: torch.dtype) -> None:
    phi = ib.geometry(geometry)
    y = prox_dual(phi, torch.tensor([v], dtype=dtype), weight)
    z = float(phi.activation(y))
    assert math.isfinite(float(y))
    eps = torch.finfo(dtype).eps
    with mpmath.workdps(60):
        exact_v, exact_w, at = (mpmath.mpf(float(torch.tensor(q, dtype=dtype))) for q in (v, weight, float(y)))
        if geometry == "bent":  # (with smoothness 1, whatever its formula)
            excess = mpmath.mpf(z) + exact_w * at - exact_v
        else:
            excess = ACTIVATIONS[geometry](at) + exact_w * at - exact_v
        size = max(abs(z), float(abs(exact_w * at)), abs(float(exact_v)))
        assert float(abs(excess)) <= 32 * eps * size


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(1e-3, 10))
@pytest.mark.parametrize("geometry", separable_geometries())
def test_it_is_firmly_nonexpansive_and_any_start_will_do(geometry: str, a: float, b: float, weight: float) -> None:
    phi = ib.geometry(geometry)
    v = torch.tensor([a, b], dtype=torch.float64)
    y = prox_dual(phi, v, weight)
    z = phi.activation(y)
    # ⟨z_a − z_b, v_a − v_b⟩ ≥ (z_a − z_b)²
    assert float((z[0] - z[1]) * (v[0] - v[1])) >= float((z[0] - z[1]) ** 2) - 1e-9 * (1 + float(z.abs().max())) ** 2
    again = prox_dual(phi, v, weight, start=torch.tensor([1e9, -1e9], dtype=torch.float64))
    torch.testing.assert_close(phi.activation(again), z, rtol=1e-9, atol=1e-9)
