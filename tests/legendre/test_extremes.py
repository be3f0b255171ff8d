"""Huge duals, points next to the bounds, and the floating-point constants. Warnings are errors throughout."""

import itertools
import math
import struct
from typing import Any

import pytest
import torch
from torch import Tensor

from implicit_bregman.legendre import Box, LegendreFunction, geometry


def huge(dtype: torch.dtype) -> Tensor:
    """0 and ± the powers of ten that matter, up to the end of the dtype."""
    sizes = [1e-45, 1e-38, 1e-10, 1.0, 20.0, 100.0, 1e3, 1e5, 1e10, 1e15, 1.9e19, 1e25, 1e30, 1e37]
    sizes += [1e100, 1.5e154, 1e300] if dtype == torch.float64 else []
    x = torch.tensor(sizes, dtype=dtype)
    return torch.cat([-x.flip(0), torch.zeros(1, dtype=dtype), x])


def test_huge_duals_stay_finite(case: Any, dtype: torch.dtype) -> None:
    phi: LegendreFunction = case.geometry
    y = huge(dtype)
    lo, hi = phi.bounds(dtype)
    z, slope, log_curvature = phi.activation(y), phi.slope(y), phi.log_curvature(y)
    for value in (z, slope, log_curvature):
        assert torch.isfinite(value).all()
        assert value.dtype == dtype
        assert value.shape == y.shape
    assert ((z >= lo) & (z <= hi)).all()
    assert (slope >= 0).all()
    rounding = 4 * torch.finfo(dtype).eps
    lowest = math.log(phi.strong_convexity) if phi.strong_convexity else -math.inf
    assert (log_curvature >= lowest - rounding).all()
    for method in ("curvature", "conjugate", "dual_potential", "project_dual"):
        assert not torch.isnan(getattr(phi, method)(y)).any(), method
    # φ'' overflows only where it really exceeds the dtype (that of the base, for a box), or where sin has left its
    # domain.
    overflow = torch.isinf(phi.curvature(y))
    limit = math.log(torch.finfo(dtype).max) - (math.log(phi.upper - phi.lower) if isinstance(phi, Box) else 0.0)
    assert ((log_curvature[overflow] > limit * 0.999) | (slope[overflow] == 0)).all()


def test_ends_of_the_dtype(case: Any, dtype: torch.dtype) -> None:
    phi: LegendreFunction = case.geometry
    # log φ'' ~ β|y| for softplus, and bent divides y by √p.
    unit = min(1 / getattr(phi, "sharpness", 1.0), getattr(phi, "smoothness", 1.0) ** 0.5)
    largest = 0.3 * unit * torch.finfo(dtype).max
    y = torch.tensor([-largest, largest], dtype=dtype)
    for method in ("activation", "slope", "log_curvature"):
        assert torch.isfinite(getattr(phi, method)(y)).all(), method


def test_divergence_of_huge_duals(case: Any, dtype: torch.dtype) -> None:
    phi: LegendreFunction = case.geometry
    p, q = torch.tensor(list(itertools.product(huge(dtype).tolist(), repeat=2)), dtype=dtype).T
    value = phi.dual_divergence(p[:, None], q[:, None])
    assert not torch.isnan(value).any()
    assert (value >= 0).all()
    assert (value[p == q] == 0).all()


def test_divergence_at_the_bounds(case: Any, dtype: torch.dtype) -> None:
    phi: LegendreFunction = case.geometry
    ends = [end for end in phi.bounds(dtype) if math.isfinite(end)]
    inner = phi.activation(case.inside(torch.tensor([-1.0, 0.25, 2.0], dtype=dtype))).tolist()
    u, v = torch.tensor(list(itertools.product(ends + inner, repeat=2)), dtype=dtype).T
    value = phi.divergence(u[:, None], v[:, None])
    assert not torch.isnan(value).any()
    assert (value >= 0).all()
    assert (value[u == v] == 0).all()
    assert (value[u != v] > 0).all()


def test_near_the_bounds(case: Any, dtype: torch.dtype) -> None:
    """The last floats inside C: φ' is finite and ordered, φ finite, and ρ brings them back."""
    phi: LegendreFunction = case.geometry
    for end, inward in zip(phi.bounds(dtype), (math.inf, -math.inf), strict=True):
        if math.isinf(end):
            continue
        if end == 0.0:
            # Floats are dense there: 1/z overflows at the first ones, and log z does not tell neighbours apart.
            inside = torch.finfo(dtype).tiny * 2.0 ** torch.arange(7, 11, dtype=dtype)
        else:
            z = [torch.tensor(end, dtype=dtype)]
            for _ in range(4):
                z.append(torch.nextafter(z[-1], torch.tensor(inward, dtype=dtype)))
            inside = torch.stack(z[1:])
        assert phi.is_interior(inside).all()
        y = phi.inverse_activation(inside)
        assert torch.isfinite(y).all()
        steps = y.diff() * math.copysign(1.0, inward)
        # π/2 − y is the square root of the gap for sin, too small to show next to 0.
        assert (steps > 0).all() or (case.family == "sin" and end == 0.0)
        assert torch.isfinite(phi.potential(inside)).all()
        back = phi.activation(y)
        assert ((back - inside).abs() <= 4 * torch.finfo(dtype).eps * max(1.0, abs(end))).all()


def test_values_at_the_bounds(case: Any) -> None:
    phi: LegendreFunction = case.geometry
    exact = case.family not in ("arctan",)
    infinite = case.family in ("bent", "burg", "double_burg")
    for end, side in zip(phi.domain, (-1.0, 1.0), strict=True):
        if math.isinf(end) or not exact:
            continue
        z = torch.tensor(end, dtype=torch.float64)
        y = phi.inverse_activation(z).item()
        if phi.is_legendre:
            assert y == side * math.inf
        else:
            assert y == pytest.approx(side * math.pi / 2)
        if infinite:
            assert phi.potential(z).item() == math.inf
        else:
            assert math.isfinite(phi.potential(z).item())


def test_nan_stays_nan(case: Any, dtype: torch.dtype) -> None:
    phi: LegendreFunction = case.geometry
    x = torch.tensor([math.nan], dtype=dtype)
    for method in ("activation", "inverse_activation", "potential", "conjugate", "dual_potential"):
        assert torch.isnan(getattr(phi, method)(x)).all(), method
    assert not phi.is_interior(x).any()
    middle = torch.full_like(x, phi.middle)
    assert torch.isnan(phi.dual_divergence(x, middle))
    assert torch.isnan(phi.dual_divergence(middle, x))


def test_bounds_lie_in_the_domain(case: Any, dtype: torch.dtype) -> None:
    phi: LegendreFunction = case.geometry
    (lo, hi), (low, high) = phi.domain, phi.bounds(dtype)
    assert lo <= low < high <= hi
    for end, bound in ((lo, low), (hi, high)):
        assert torch.tensor(bound, dtype=dtype).item() == bound
        if math.isfinite(end):
            assert abs(end - bound) <= torch.finfo(dtype).eps * abs(end)
        else:
            assert bound == end


def test_bound_of_single_precision_is_the_largest_float_inside() -> None:
    (above,) = struct.unpack("<f", struct.pack("<f", math.pi / 2))
    assert above > math.pi / 2
    lo, hi = geometry("arctan").bounds(torch.float32)
    assert hi < math.pi / 2
    assert torch.nextafter(torch.tensor(hi), torch.tensor(2.0)).item() == above
    assert lo == -hi
    small = geometry("isru", scale=0.1).bounds(torch.float32)[1]
    assert small < 0.1 < torch.nextafter(torch.tensor(small), torch.tensor(1.0)).item()


def test_saturated_dual_reaches_the_bound(case: Any, dtype: torch.dtype) -> None:
    phi: LegendreFunction = case.geometry
    info = torch.finfo(dtype)
    for y, end, bound, side in zip(phi.saturated_dual(dtype), phi.domain, phi.bounds(dtype), (-1, 1), strict=True):
        assert math.isfinite(y)
        if math.isinf(end):
            assert y == phi.dual_bounds(dtype)[side > 0]
            assert y == side * info.max or case.family == "burg"
        else:
            z = phi.activation(torch.tensor(y, dtype=dtype)).item()
            assert abs(z - bound) <= info.eps * max(1.0, abs(bound))
            assert y * side > 0


def test_is_interior(case: Any, dtype: torch.dtype) -> None:
    phi: LegendreFunction = case.geometry
    lo, hi = phi.domain
    outside = torch.tensor([math.nan, -math.inf, math.inf, lo, hi, lo - 1, hi + 1], dtype=dtype)
    assert not phi.is_interior(outside).any()
    assert phi.is_interior(phi.activation(case.inside(torch.tensor([-1.0, 0.0, 1.0], dtype=dtype)))).all()


def test_sin_is_the_projection(dtype: torch.dtype) -> None:
    phi = geometry("sin")
    assert not phi.is_legendre
    y = torch.tensor([-9.0, -2.0, -1.0, 0.0, 1.0, 2.0, 9.0], dtype=dtype)
    expected = torch.sin(y.clamp(-math.pi / 2, math.pi / 2))
    torch.testing.assert_close(phi.activation(y), expected, rtol=1e-7, atol=0.0)
    assert (phi.activation(y)[[0, 1, 5, 6]] == expected[[0, 1, 5, 6]].sign()).all()
    assert (phi.slope(y)[[0, 1, 5, 6]] == 0).all()
    projected = phi.project_dual(y)
    assert (projected.abs() <= torch.tensor(math.pi / 2, dtype=dtype)).all()
    assert (projected[2:5] == y[2:5]).all()
    assert (phi.slope(projected) == phi.slope(y)).all()
    # Beyond the bound φ* is linear, and all duals stand for the same point.
    torch.testing.assert_close(phi.conjugate(y)[-1:], torch.tensor([9.0 - math.pi / 2], dtype=dtype))
    assert phi.dual_divergence(y[-2:-1], y[-1:]) == 0


def test_burg_beyond_its_dual_domain(dtype: torch.dtype) -> None:
    """φ* is ∞ from 0 on; every other map is that of the last dual below, and finite where the dtype can hold it."""
    phi, info = geometry("burg"), torch.finfo(dtype)
    assert phi.dual_domain == (-math.inf, 0.0)
    last = phi.dual_bounds(dtype)[1]
    assert -info.smallest_normal == last == phi.saturated_dual(dtype)[1]
    y = torch.tensor([-1e-45, 0.0, 1e-30, 1.0, 1e30], dtype=dtype)
    y = y[y > last]
    assert torch.equal(phi.project_dual(y), torch.full_like(y, last))
    assert phi.project_dual(torch.tensor([-1e-30, -1.0], dtype=dtype)).tolist() == pytest.approx([-1e-30, -1.0])
    assert torch.isinf(phi.conjugate(y[y >= 0])).all()
    for method in ("activation", "slope", "log_curvature", "dual_potential"):
        value = getattr(phi, method)(y)
        assert torch.isfinite(value).all(), method
        assert torch.equal(value, getattr(phi, method)(torch.full_like(y, last))), method
    assert (phi.dual_divergence(y, y.flip(0)) == 0).all()
    # What is larger than ρ ever gets stands for the same dual.
    huge = torch.tensor([info.max, math.inf], dtype=dtype)
    assert phi.finite_dual(huge, dtype).tolist() == [last, last]
    assert phi.inverse_activation(torch.tensor([0.0, -0.0], dtype=dtype)).tolist() == [-math.inf, -math.inf]
    assert torch.isnan(phi.inverse_activation(torch.tensor([-1.0], dtype=dtype))).all()


def test_the_middle_lies_inside(case: Any, dtype: torch.dtype) -> None:
    phi: LegendreFunction = case.geometry
    lo, hi = phi.dual_domain
    assert lo < phi.middle < hi
    assert phi.is_interior(phi.activation(torch.tensor([phi.middle], dtype=dtype))).all()


def test_project_dual_is_the_identity_for_a_legendre_function(case: Any, dtype: torch.dtype) -> None:
    y = case.inside(huge(dtype))
    phi: LegendreFunction = case.geometry
    projected = phi.project_dual(y)
    assert phi.is_legendre == (case.family != "sin")
    assert torch.equal(projected, y) == phi.is_legendre
    assert torch.equal(phi.activation(projected), phi.activation(y))


def test_small_gap_of_a_box_is_resolved(dtype: torch.dtype) -> None:
    """Next to a bound at 0, a box keeps relative accuracy instead of rounding ρ to the bound."""
    phi = geometry("tanh").to_box(0.0, 1.0)
    assert isinstance(phi, Box)
    y = torch.tensor([-15.0, -30.0], dtype=dtype)
    torch.testing.assert_close(phi.activation(y), torch.sigmoid(2 * y), rtol=4 * torch.finfo(dtype).eps, atol=0.0)
    torch.testing.assert_close(phi.inverse_activation(phi.activation(y)), y, rtol=4 * torch.finfo(dtype).eps, atol=0.0)
