"""The finite dual that stands for a point: ρ of it is the point, to rounding."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

from implicit_bregman.legendre import geometry
from implicit_bregman.legendre._elementary import asinh, sinh
from tests.legendre.conftest import Case

BOUNDED = ("tanh", "sigmoid", "isru", "arctan", "sin", "scaled_tanh", "double_burg")
BOXES = [
    (0.0, 1e-2),
    (0.0, 1e-4),
    (-1e-5, 1e-5),
    (0.5, 0.5001),
    (-3e-3, 1e-3),
    (0.0, 1e-12),
    (-1e6, 1e6),
    (1e3, 1e3 + 1),
]


def test_the_dual_of_a_point_stands_for_it(case: Case, dtype: torch.dtype) -> None:
    phi = case.geometry
    lo, hi = phi.domain
    if math.isinf(hi):
        points = [0.0, 1e-30, 1e-8, 0.3, 5.0, 60.0, 88.0]
        points += [-3.0, -80.0] if math.isinf(lo) else []
    else:
        points = [lo + (hi - lo) * part for part in (0.0, 1e-30, 1e-12, 1e-6, 0.2, 0.5, 0.9, 1 - 1e-6, 1.0)]
    z = torch.tensor(points, dtype=dtype).clamp(*phi.bounds(dtype))
    y = phi.finite_dual(z, dtype)
    assert bool(torch.isfinite(y).all())
    # At a bound it is what rounds to the bound next to 1 (or to the width of C).
    unit = min(max([1.0, *(abs(end) for end in (lo, hi) if math.isfinite(end))]), hi - lo)
    # (the dual of sin is finite at the bounds, and rounded there)
    at_bound = (z <= lo) | (z >= hi) | (not phi.is_legendre)
    slack = unit * at_bound + 4 * (z.abs() + y.abs() * phi.slope(y))
    assert bool(((phi.activation(y) - z).abs() <= torch.finfo(dtype).eps * slack).all())


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("box", BOXES, ids=str)
def test_boxes_of_any_width(name: str, box: tuple[float, float], dtype: torch.dtype) -> None:
    """Relative to the width, not to 1."""
    phi = geometry(name).to_box(*box)
    width = box[1] - box[0]
    y_lo, y_hi = phi.saturated_dual(dtype)
    unit = geometry(name).saturated_dual(dtype)
    assert y_hi >= 0.4 * unit[1]
    assert y_lo <= 0.4 * unit[0]
    z = torch.tensor([box[0] + width * part for part in (0.0, 1e-5, 0.01, 0.5, 0.99, 1.0)], dtype=dtype)
    z = z.clamp(*phi.bounds(dtype))
    back = phi.activation(phi.finite_dual(z, dtype))
    eps = torch.finfo(dtype).eps
    assert float((back - z).abs().max()) <= 8 * eps * max(width, abs(box[0]), abs(box[1]))


def test_arcsinh_up_to_the_largest_dual(dtype: torch.dtype) -> None:
    phi, largest = geometry("arcsinh"), torch.finfo(dtype).max
    top = math.asinh(largest)
    z = torch.tensor([45.0, 80.0, top - 1.0, top - 0.6, top - 1e-4], dtype=dtype)
    z = torch.cat([z, -z])
    y = phi.finite_dual(z, dtype)
    assert bool((y.abs() < largest).all())
    torch.testing.assert_close(phi.activation(y), z, rtol=2 * torch.finfo(dtype).eps, atol=0)
    # Beyond, the largest number is the best there is.
    beyond = phi.finite_dual(torch.tensor([top + 1.0, -1e4], dtype=dtype), dtype)
    assert beyond.tolist() == [largest, -largest]
    torch.testing.assert_close(phi.activation(beyond), torch.tensor([top, -top], dtype=dtype))


def test_the_elementary_functions_in_the_last_binades(dtype: torch.dtype) -> None:
    largest, eps = torch.finfo(dtype).max, torch.finfo(dtype).eps
    y = torch.tensor([1e-30, 0.3, 1.0, 7.0, 1e15, largest / 3, largest / 1.5, largest], dtype=dtype)
    with mpmath.workdps(40):
        expected = [float(mpmath.asinh(mpmath.mpf(v))) for v in y.tolist()]
        torch.testing.assert_close(asinh(y).double().tolist(), expected, rtol=3 * eps, atol=0)
        torch.testing.assert_close(asinh(-y).double().tolist(), [-v for v in expected], rtol=3 * eps, atol=0)
        # Long enough to be computed by vector instructions, where torch.sinh overflows too early.
        z = torch.linspace(1.0, math.asinh(largest) - 1e-3, 64, dtype=dtype)
        for point, found in zip(z.tolist(), sinh(z).tolist(), strict=True):
            assert abs(found - mpmath.sinh(mpmath.mpf(point))) <= 8 * eps * (1 + point) * mpmath.sinh(point)


def test_softplus_does_not_overflow_before_its_argument(dtype: torch.dtype) -> None:
    phi, largest = geometry("softplus", sharpness=4.0), torch.finfo(dtype).max
    z = torch.tensor([0.5 * largest, largest], dtype=dtype)
    assert torch.equal(phi.finite_dual(z, dtype), z)
    assert torch.equal(phi.activation(z), z)
