"""The dual of a solution stands for its value: ρ(dual) = value to rounding, in every geometry and precision."""

from __future__ import annotations

import math

import pytest
import torch

import implicit_bregman as ib
from implicit_bregman.legendre import separable_geometries

NARROW = [(0.0, 1e-3), (0.0, 1e-5), (-1e-4, 1e-4), (0.5, 0.501)]


def check(found: ib.Solution, phi: ib.LegendreFunction, slack: float) -> None:
    assert bool(found.converged.all())
    assert bool(torch.isfinite(found.dual).all())
    back = phi.activation(found.dual)
    eps = torch.finfo(back.dtype).eps
    # ρ magnifies the rounding of y by |y|ρ'(y).
    bound = 8 * eps * (found.value.abs() + found.dual.abs() * phi.slope(found.dual)) + eps * slack
    assert bool(((back - found.value).abs() <= bound).all())


@pytest.mark.parametrize("solver", ["auto", "newton", "mm", "anderson", "broyden"])
@pytest.mark.parametrize("name", separable_geometries())
def test_every_geometry(name: str, solver: str, dtype: torch.dtype) -> None:
    """Interior, next to a bound, and on it: W = −I, so that z = Π_C(x)."""
    phi = ib.geometry(name)
    lo, hi = phi.domain
    x = torch.tensor([[0.3, 1e-3, 5.0, -4.0, 40.0], [1e-6, 0.999, 0.2, 80.0, 2e-9]], dtype=dtype)
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(-torch.eye(5, dtype=dtype)), phi, x, solver=solver)
    check(found, phi, 1.0)
    torch.testing.assert_close(found.value, x.clamp(lo, hi), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", [46.0, 60.0, 88.0, 89.2, -75.0])
@pytest.mark.parametrize("solver", ["auto", "newton", "mm"])
def test_arcsinh_in_single_precision(target: float, solver: str) -> None:
    phi, x = ib.geometry("arcsinh"), torch.tensor([[target]])
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(-torch.eye(1)), phi, x, solver=solver)
    check(found, phi, 0.0)
    assert float(found.value) == pytest.approx(target)


@pytest.mark.parametrize("target", [356.0, 600.0, 709.9, -710.3])
def test_arcsinh_in_double_precision(target: float) -> None:
    phi, eye = ib.geometry("arcsinh"), torch.eye(1, dtype=torch.float64)
    x = torch.tensor([[target]], dtype=torch.float64)
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(-eye), phi, x)
    check(found, phi, 0.0)
    assert float(phi.activation(found.dual)) == pytest.approx(target, rel=1e-14)


@pytest.mark.parametrize("box", NARROW, ids=str)
@pytest.mark.parametrize("name", [n for n in separable_geometries() if math.isfinite(sum(ib.geometry(n).domain))])
def test_narrow_boxes(name: str, box: tuple[float, float], dtype: torch.dtype) -> None:
    phi = ib.geometry(name).to_box(*box)
    width = box[1] - box[0]
    x = torch.tensor([[box[0] + width * t for t in (-1.0, 1e-4, 0.1, 0.5, 0.999, 2.0)]], dtype=dtype)
    for solver in ("auto", "mm"):
        found = ib.find_critical_point(
            ib.QuadraticEnergy.from_matrices(-torch.eye(6, dtype=dtype)), phi, x, solver=solver
        )
        check(found, phi, max(width, abs(box[0])))


class Quartic(ib.Energy):
    """¼z⁴ − xz."""

    def value(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """f(z; x)."""
        return (0.25 * z**4 - x * z).sum(-1)


def test_an_energy_of_ones_own(dtype: torch.dtype) -> None:
    """z = x^⅓ by projected Newton steps, next to a bound at 0 and on both."""
    phi = ib.geometry("tanh").to_box(0.0, 1.0)
    x = torch.tensor([[0.027, 1e-9], [8.0, -1.0]], dtype=dtype)
    found = ib.find_critical_point(Quartic(2, convex=True), phi, x)
    check(found, phi, 1.0)
