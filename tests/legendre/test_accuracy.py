"""Every map against many-digit arithmetic, in both precisions."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from implicit_bregman.legendre import Box, ScaledTanh

# Error of a careful implementation, float32/float64: relative, with the conditioning |x f'(x)| added to |f(x)| where f
# has a zero, and 1 added to |log φ''|.
COLUMNS = ("rho", "inverse", "potential", "conjugate", "log_curvature", "dual_divergence", "divergence")
TABLE = """
isru     1.0e-7/2.1e-16 5.9e-8/1.0e-16 7.3e-8/1.3e-16 5.9e-8/1.1e-16 9e-8/2e-16 3.1e-7/5.0e-16 2.6e-7/4.6e-16
sigmoid  9.9e-8/1.9e-16 8.0e-8/1.9e-16 1.1e-7/2.5e-16 7.6e-8/1.8e-16 8e-8/2e-16 1.1e-6/4.6e-15 3.2e-7/1.4e-15
softplus 8.6e-8/1.6e-16 5.6e-8/1.1e-16 1.1e-7/2.0e-16 1.4e-7/2.4e-16 4e-8/1e-16 4.7e-7/3.6e-15 4.5e-7/1.0e-15
arctan   5.8e-8/1.1e-16 4.1e-8/8.1e-17 6.7e-8/1.1e-16 8.0e-8/1.4e-16 5e-8/1e-16 8.8e-7/1.5e-14 7.1e-7/1.3e-15
tanh     5.8e-8/1.0e-16 4.7e-8/9.1e-17 1.0e-7/1.8e-16 5.3e-8/1.1e-16 6e-8/2e-16 6.7e-7/2.0e-15 3.3e-7/1.8e-15
sin      5.8e-8/1.0e-16 5.8e-8/9.8e-17 1.1e-7/2.2e-16 3.5e-8/5.5e-17 6e-8/2e-16 2.4e-7/5.0e-15 5.1e-7/1.3e-14
arcsinh  1.0e-7/1.9e-16 2.8e-8/5.4e-17 5.9e-8/1.1e-16 1.0e-7/1.7e-16 4e-8/9e-17 1.3e-6/3.0e-15 6.4e-7/1.2e-15
identity 0/0            0/0            3e-8/6e-17     3e-8/6e-17     0/0        2e-7/4e-16     2e-7/4e-16
exp      5.7e-8/1.1e-16 2.9e-8/8.1e-17 8.3e-8/1.4e-16 5.7e-8/1.1e-16 0/0        1.7e-6/6.2e-15 7.6e-7/1.6e-15
bent     1.3e-7/2.3e-16 3.7e-8/7.9e-17 7.9e-8/1.7e-16 2.3e-7/4.5e-16 8e-8/2e-16 1.0e-6/1.6e-15 3.7e-7/3.5e-16
burg     5.8e-8/1.1e-16 2.8e-8/5.1e-17 5.0e-8/8.1e-17 7.0e-8/1.1e-16 6e-8/9e-17 3.1e-7/6.1e-16 5.3e-7/5.8e-16
double_burg 1.0e-7/2.1e-16 6e-8/1.1e-16 7e-8/1.3e-16 1.0e-7/1.9e-16 8e-8/2e-16 5e-7/1.0e-15 5.3e-7/5.8e-16
"""
FIGURES = {
    (name, column, dtype): float(cell.split("/")[dtype == torch.float64])
    for name, *cells in (line.split() for line in TABLE.strip().splitlines())
    for column, cell in zip(COLUMNS, cells, strict=True)
    for dtype in (torch.float32, torch.float64)
}
SIZES = 8
# Enough for the definitions to survive their cancellation: D ~ e^(−2|y|) or |y|^(−3), times the square of the step.
DIGITS = 140


def allowed(case: Any, column: str, dtype: torch.dtype) -> float:
    """Twice the figure; an affine image adds a few roundings of its own."""
    family = "tanh" if case.family == "scaled_tanh" else case.family
    factor = 6.0 if isinstance(case.geometry, (Box, ScaledTanh)) else 2.0
    # The oracle itself rounds, far below either dtype.
    return factor * FIGURES[family, column, dtype] + 1e-60


def dual_points(case: Any, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Duals of all sizes, of both signs, and evenly spread ones."""
    reach = case.reach(dtype)
    sizes = 10 ** torch.linspace(-8, math.log10(reach), SIZES, dtype=torch.float64)
    spread = (2 * torch.rand(2 * SIZES, generator=generator, dtype=torch.float64) - 1) * min(reach, 5.0)
    wide = (2 * torch.rand(SIZES, generator=generator, dtype=torch.float64) - 1) * reach
    return case.inside(torch.cat([sizes, -sizes, spread, wide]).clamp(-reach, reach).to(dtype))


def primal_points(case: Any, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Their images that did not round to a bound."""
    z = case.geometry.activation(dual_points(case, dtype, generator))
    lo, hi = case.geometry.bounds(dtype)
    kept = (z > lo) & (z < hi) & (z.abs() > 100 * torch.finfo(dtype).tiny)
    # cosh z must stay representable.
    return z[kept & (z.abs() < 60)] if case.family == "arcsinh" else z[kept]


def neighbours(x: Tensor, room: Tensor, generator: torch.Generator) -> Tensor:
    """x moved by 1e-7 … 1 of `room`, to either side."""
    draws = torch.rand(2, x.numel(), generator=generator, dtype=torch.float64)
    step = 10 ** (-7 * draws[0]) * torch.where(draws[1] < 0.5, -1.0, 1.0)
    return (x.double() + 0.9 * step * room.double()).to(x.dtype)


def worst(values: Tensor, references: Sequence[mpf], scales: Sequence[mpf]) -> float:
    """Largest error; NaN counts as infinite."""
    errors = [
        abs(mpf(value) - reference) / scale if value == value else mpf("inf")
        for value, reference, scale in zip(values.tolist(), references, scales, strict=True)
        if scale > 4 * torch.finfo(values.dtype).tiny
    ]
    return float(max(errors, default=mpf(0)))


def exactly(points: Tensor, function: Callable[[mpf], mpf]) -> list[mpf]:
    return [function(mpf(x)) for x in points.tolist()]


def test_maps_of_the_dual_variable(case: Any, dtype: torch.dtype, generator: torch.Generator) -> None:
    phi, oracle = case.geometry, case.oracle
    y = dual_points(case, dtype, generator)
    with mpmath.workdps(DIGITS):
        exact = exactly(y, lambda t: t)
        rho, conjugate = exactly(y, oracle.rho), exactly(y, oracle.conjugate)
        curvature = exactly(y, oracle.curvature)
        slack = isinstance(phi, Box)
        rho_scale = [abs(r) + slack * abs(t / c) for t, r, c in zip(exact, rho, curvature, strict=True)]
        assert worst(phi.activation(y), rho, rho_scale) <= allowed(case, "rho", dtype)

        scale = [abs(f) + abs(t * r) for t, r, f in zip(exact, rho, conjugate, strict=True)]
        assert worst(phi.conjugate(y), conjugate, scale) <= allowed(case, "conjugate", dtype)

        potential = [t * r - f for t, r, f in zip(exact, rho, conjugate, strict=True)]
        if case.family != "sin":
            scale = [abs(f) + t * t / c for t, f, c in zip(exact, potential, curvature, strict=True)]
            assert worst(phi.dual_potential(y), potential, scale) <= 4 * torch.finfo(dtype).eps

        inside = [math.isfinite(c) for c in curvature]
        kept = torch.tensor(inside)
        curvature = [c for c, ok in zip(curvature, inside, strict=True) if ok]
        logs = [mpmath.log(c) for c in curvature]
        scale = [1 + abs(x) for x in logs]
        assert worst(phi.log_curvature(y[kept]), logs, scale) <= allowed(case, "log_curvature", dtype)
        # The exponent of a scaled dual is rounded once: relative error ~ |log φ''| eps.
        tolerance = (6 + 2 * max(map(abs, logs)) * (case.family == "scaled_tanh")) * torch.finfo(dtype).eps
        slopes = [1 / c for c in curvature]
        assert worst(phi.slope(y[kept]), slopes, slopes) <= tolerance
        largest = torch.finfo(dtype).max
        bounded = torch.tensor([c < largest for c in curvature])
        finite = [c for c in curvature if c < largest]
        assert worst(phi.curvature(y[kept][bounded]), finite, finite) <= tolerance


def test_maps_of_the_primal_variable(case: Any, dtype: torch.dtype, generator: torch.Generator) -> None:
    phi, oracle = case.geometry, case.oracle
    z = primal_points(case, dtype, generator)
    with mpmath.workdps(DIGITS):
        exact = exactly(z, lambda t: t)
        inverse, potential = exactly(z, oracle.inverse), exactly(z, oracle.potential)
        conditioning = [abs(t * oracle.curvature(y)) for t, y in zip(exact, inverse, strict=True)]
        scale = [abs(y) + c for y, c in zip(inverse, conditioning, strict=True)]
        assert worst(phi.inverse_activation(z), inverse, scale) <= allowed(case, "inverse", dtype)
        scale = [abs(f) + abs(t * y) for t, y, f in zip(exact, inverse, potential, strict=True)]
        assert worst(phi.potential(z), potential, scale) <= allowed(case, "potential", dtype)


def test_dual_divergence(case: Any, dtype: torch.dtype, generator: torch.Generator) -> None:
    phi, oracle, reach = case.geometry, case.oracle, case.reach(dtype)
    y = dual_points(case, dtype, generator)
    room = y.abs().clamp(min=1e-3)
    others = [y.roll(7), neighbours(y, room, generator), neighbours(y, torch.full_like(y, 4.0), generator)]
    p, q = y.repeat(3), case.inside(torch.cat(others).clamp(-reach, reach))
    with mpmath.workdps(DIGITS):
        pairs = list(zip(p.tolist(), q.tolist(), strict=True))
        exact = [oracle.dual_divergence(mpf(a), mpf(b)) for a, b in pairs]
        # A scaled dual is rounded, which costs |y| units in the last place.
        slack = [1 + 2 * abs(a) if case.family == "scaled_tanh" else 1 for a, _ in pairs]
        scale = [d * s for d, s in zip(exact, slack, strict=True)]
        value = phi.dual_divergence(p[:, None], q[:, None])
        assert worst(value, exact, scale) <= allowed(case, "dual_divergence", dtype)


def test_divergence(case: Any, dtype: torch.dtype, generator: torch.Generator) -> None:
    phi, oracle = case.geometry, case.oracle
    lo, hi = phi.bounds(dtype)
    z = primal_points(case, dtype, generator)
    room = torch.minimum(z - lo, hi - z).clamp(max=1.0)
    u = z.repeat(3)
    v = torch.cat([z.roll(7), neighbours(z, room, generator), neighbours(z, room, generator)])
    kept = (v > lo) & (v < hi) & (u != v)
    u, v = u[kept], v[kept]
    with mpmath.workdps(DIGITS):
        exact = [oracle.divergence(mpf(a), mpf(b)) for a, b in zip(u.tolist(), v.tolist(), strict=True)]
        value = phi.divergence(u[:, None], v[:, None])
        assert worst(value, exact, exact) <= allowed(case, "divergence", dtype)


@pytest.mark.parametrize("name", ["isru", "arctan", "arcsinh", "bent", "burg", "double_burg"])
def test_huge_duals(name: str, cases: dict[str, Any], dtype: torch.dtype) -> None:
    """Algebraic functions keep their digits up to 1e30, where squares overflow in float32."""
    phi, oracle = cases[name].geometry, cases[name].oracle
    y = cases[name].inside(torch.tensor([-1e30, -1e25, -3e19, 3e19, 1e25, 1e30], dtype=dtype))
    info = torch.finfo(dtype)
    with mpmath.workdps(200):
        rho = exactly(y, oracle.rho)
        assert worst(phi.activation(y), rho, [abs(r) for r in rho]) <= 2 * info.eps
        logs = [mpmath.log(oracle.curvature(mpf(t))) for t in y.tolist()]
        assert worst(phi.log_curvature(y), logs, [1 + x for x in logs]) <= 2 * info.eps
        p, q = y, y.roll(1)
        exact = [oracle.dual_divergence(mpf(a), mpf(b)) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
        value = phi.dual_divergence(p[:, None], q[:, None])
        fits = torch.tensor([d < info.max for d in exact])
        kept = [d for d in exact if d < info.max]
        assert worst(value[fits], kept, kept) <= 40 * info.eps
        assert torch.isinf(value[~fits]).all()
