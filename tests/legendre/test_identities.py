"""What the definitions imply, on arguments that hypothesis chooses."""

import math
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from implicit_bregman.legendre import Box, LegendreFunction

# The fixtures are constants, so that sharing them between examples is harmless.
examples = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])

# A position between −1 and 1, to be stretched to the range that suits the geometry and dtype.
units = st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=8)


def duals(case: Any, dtype: torch.dtype, positions: list[float], limit: float = math.inf) -> Tensor:
    """Duals of any size up to the case's reach: half the range is spent below 1, half above."""
    reach = min(case.reach(dtype), limit)
    u = torch.tensor(positions, dtype=torch.float64)
    size = torch.where(u.abs() < 0.5, 2 * u.abs(), reach ** (2 * u.abs() - 1)).clamp(max=reach)
    return case.inside(size.copysign(u).to(dtype))


@examples
@given(positions=units)
def test_fenchel_young_equality(case: Any, dtype: torch.dtype, positions: list[float]) -> None:
    phi: LegendreFunction = case.geometry
    y = duals(case, dtype, positions)
    z = phi.activation(y)
    lo, hi = phi.bounds(dtype)
    inside = (z > lo) & (z < hi) & (z < 30)
    potential, conjugate = phi.potential(z[inside]), phi.conjugate(y[inside])
    product = z[inside] * y[inside]
    # Rounding z moves φ(z) by |y z| eps, whatever the curvature; in a box z is rounded like its bounds.
    size = max(map(abs, phi.domain)) if isinstance(phi, Box) else 0.0
    scale = potential.abs() + conjugate.abs() + product.abs() + size * y[inside].abs()
    scale = scale + torch.finfo(dtype).eps
    assert ((potential + conjugate - product).abs() <= 8 * torch.finfo(dtype).eps * scale).all()


@examples
@given(positions=units)
def test_dual_potential_is_the_potential(case: Any, dtype: torch.dtype, positions: list[float]) -> None:
    phi: LegendreFunction = case.geometry
    y = duals(case, dtype, positions)
    value = phi.dual_potential(y)
    product, conjugate = phi.project_dual(y) * phi.activation(y), phi.conjugate(y)
    scale = product.abs() + conjugate.abs() + value.abs() + torch.finfo(dtype).tiny
    assert ((value - (product - conjugate)).abs() <= 8 * torch.finfo(dtype).eps * scale).all()


@examples
@given(positions=units)
def test_round_trip_from_the_dual(case: Any, dtype: torch.dtype, positions: list[float]) -> None:
    phi: LegendreFunction = case.geometry
    y = duals(case, dtype, positions)
    z = phi.activation(y)
    lo, hi = phi.bounds(dtype)
    info = torch.finfo(dtype)
    inside = (z > lo) & (z < hi) & (z.abs() > info.tiny) & (z.abs() < 80)
    y, z = y[inside], z[inside]
    # z carries a few eps of its own size (of the bound's, for a box); the curvature passes them on to y.
    size = z.abs() + max((abs(end) for end in (lo, hi) if math.isfinite(end)), default=0.0) * (lo != -hi)
    size = z.abs() if lo == 0.0 else size
    budget = 8 * info.eps * (y.abs() + size * phi.curvature(y)) + info.tiny
    error = (phi.inverse_activation(z) - y).abs()
    # To first order only: nothing is claimed where the budget exceeds the distance to the bound.
    small = (
        budget < 0.1 * (1 + y.abs())
        if case.family in ("isru", "arctan", "bent", "burg", "double_burg")
        else budget < 0.1
    )
    assert (error[small] <= budget[small]).all()


@examples
@given(positions=units)
def test_round_trip_from_the_primal(case: Any, dtype: torch.dtype, positions: list[float]) -> None:
    phi: LegendreFunction = case.geometry
    lo, hi = phi.bounds(dtype)
    lo, hi = max(lo, -50.0), min(hi, 50.0)
    z = (0.5 * (lo + hi) + 0.499999 * (hi - lo) * torch.tensor(positions, dtype=torch.float64)).to(dtype)
    y = phi.inverse_activation(z)
    budget = 8 * torch.finfo(dtype).eps * (z.abs() + (y * phi.slope(y)).abs() + max(abs(lo), abs(hi)) * (lo * hi != 0))
    assert ((phi.activation(y) - z).abs() <= budget + torch.finfo(dtype).tiny).all()


@examples
@given(positions=units)
def test_curvature_is_the_second_derivative(case: Any, positions: list[float]) -> None:
    phi: LegendreFunction = case.geometry
    y = duals(case, torch.float64, positions, limit=1.4)
    z = phi.activation(y)
    h = 2e-6 * z.abs().clamp(min=1.0)
    difference = (phi.inverse_activation(z + h) - phi.inverse_activation(z - h)) / (2 * h)
    inside = phi.is_interior(z - 2 * h) & phi.is_interior(z + 2 * h)
    curvature = phi.curvature(y)
    torch.testing.assert_close(difference[inside], curvature[inside], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(phi.slope(y) * curvature, torch.ones_like(y), rtol=1e-14, atol=0.0)
    torch.testing.assert_close(phi.log_curvature(y).exp(), curvature, rtol=1e-14, atol=0.0)


@examples
@given(first=units, second=units)
def test_divergence_is_positive_and_the_same_in_both_coordinates(
    case: Any, dtype: torch.dtype, first: list[float], second: list[float]
) -> None:
    phi: LegendreFunction = case.geometry
    count = min(len(first), len(second))
    # Within ±4 no activation is close enough to its bound to be blurred by rounding.
    p = duals(case, dtype, first[:count], limit=4.0)[:, None]
    q = duals(case, dtype, second[:count], limit=4.0)[:, None]
    u, v = phi.activation(p), phi.activation(q)
    dual, primal = phi.dual_divergence(p, q), phi.divergence(u, v)
    assert (dual >= 0).all()
    assert (primal >= 0).all()
    far = (p - q).abs().squeeze(-1) > 1e-16
    assert (dual[far] > 0).all()
    assert (phi.dual_divergence(p, p) == 0).all()
    assert (phi.divergence(u, u) == 0).all()
    # Rounding u and v changes D by |φ'(u) − φ'(v)| and by φ''(v)|u − v|, times eps.
    size = u.abs() + v.abs() + 3.0 * (abs(phi.domain[0]) < math.inf and phi.domain[0] * phi.domain[1] != 0)
    moved = ((p - q).abs() + phi.curvature(q) * (u - v).abs()) * size
    budget = 8 * torch.finfo(dtype).eps * (moved.squeeze(-1) + dual) + (8 * torch.finfo(dtype).eps) ** 2 * 1e4
    assert ((dual - primal).abs() <= budget).all()


@examples
@given(positions=units)
def test_three_points(case: Any, positions: list[float]) -> None:
    """D(u, w) = D(u, v) + D(v, w) + (φ'(v) − φ'(w))(u − v) (Chen & Teboulle, 1993)."""
    phi: LegendreFunction = case.geometry
    y = duals(case, torch.float64, positions, limit=4.0)
    p, q, r = y, 0.5 * y.roll(1), y.flip(0) - 0.25
    whole = phi.dual_divergence(p[:, None], r[:, None])
    parts = phi.dual_divergence(p[:, None], q[:, None]) + phi.dual_divergence(q[:, None], r[:, None])
    q, r = phi.project_dual(q), phi.project_dual(r)
    u, v = phi.activation(p), phi.activation(q)
    cross = (q - r) * (u - v)
    terms = 1 + whole.abs() + parts.abs() + (q - r).abs() * (u.abs() + v.abs())
    assert bool(((whole - parts - cross).abs() <= 1e-13 * terms).all())


@examples
@given(positions=units)
def test_strong_convexity_bounds_the_curvature(case: Any, dtype: torch.dtype, positions: list[float]) -> None:
    phi: LegendreFunction = case.geometry
    curvature = phi.curvature(duals(case, dtype, positions))
    assert (curvature >= phi.strong_convexity * (1 - 8 * torch.finfo(dtype).eps)).all()
    assert (curvature <= phi.max_curvature * (1 + 8 * torch.finfo(dtype).eps)).all()


def test_strong_convexity_is_approached(case: Any, dtype: torch.dtype) -> None:
    phi: LegendreFunction = case.geometry
    y = torch.tensor([-1e-5, 0.0, 40.0, 1e5], dtype=dtype)
    lowest = phi.curvature(y).min().item()
    assert lowest == torch.tensor(phi.strong_convexity, dtype=dtype) or (
        lowest - phi.strong_convexity < 1e-6 * max(1.0, phi.strong_convexity)
    )


def test_curvature_at_the_infinite_end(case: Any) -> None:
    phi: LegendreFunction = case.geometry
    if all(map(math.isfinite, phi.domain)):
        assert phi.curvature_at_infinity == math.inf
        return
    far = phi.curvature(torch.tensor(300.0, dtype=torch.float64)).item()
    expected = {"arcsinh": math.inf, "exp": 0.0, "burg": 0.0}.get(phi.name, 1.0)
    assert phi.curvature_at_infinity == expected
    assert far > 100 if expected == math.inf else abs(far - expected) < 1e-5


@examples
@given(positions=units)
def test_activation_is_increasing(case: Any, dtype: torch.dtype, positions: list[float]) -> None:
    phi: LegendreFunction = case.geometry
    y = duals(case, dtype, positions).sort().values
    z = phi.activation(y)
    # Not strictly: nearby values round to the same number, or one unit apart.
    assert (z.diff() >= -4 * torch.finfo(dtype).eps * z.abs().max()).all()
