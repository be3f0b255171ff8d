"""The catalogue of cases, each with an oracle in many-digit arithmetic."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from implicit_bregman.legendre import LegendreFunction, geometry, separable_geometries

Real = Callable[[mpf], mpf]
#: The methods that take duals and give a number for each.
ELEMENTWISE = (
    "activation",
    "slope",
    "curvature",
    "log_curvature",
    "log_curvature_slope",
    "dual_potential",
    "conjugate",
    "project_dual",
)


@dataclass(frozen=True)
class Oracle:
    """ρ, φ', φ, φ* and φ'' ∘ ρ as the tables define them, for arguments of mpmath."""

    rho: Real
    inverse: Real
    potential: Real
    conjugate: Real
    curvature: Real

    def divergence(self, u: mpf, v: mpf) -> mpf:
        """D(u, v) by its definition."""
        return self.potential(u) - self.potential(v) - self.inverse(v) * (u - v)

    def dual_divergence(self, p: mpf, q: mpf) -> mpf:
        """D(ρ(p), ρ(q)) by its definition in the dual."""
        return self.conjugate(q) - self.conjugate(p) - self.rho(p) * (q - p)


def affine(base: Oracle, source: tuple[float, float], target: tuple[float, float], dual: float = 1.0) -> Oracle:
    """The oracle of ρ(y) = m + s (ρ₀(b y) − m₀)."""
    b = mpf(dual)
    lo, hi = map(mpf, target)
    low, high = source
    s = (hi - lo) / (high - low)
    m = (hi + lo) / 2 - s * (high + low) / 2

    def back(z: mpf) -> mpf:
        return (z - m) / s

    return Oracle(
        rho=lambda y: m + s * base.rho(b * y),
        inverse=lambda z: base.inverse(back(z)) / b,
        potential=lambda z: s / b * base.potential(back(z)),
        conjugate=lambda y: m * y + s / b * base.conjugate(b * y),
        curvature=lambda y: base.curvature(b * y) / (s * b),
    )


def _xlogx(x: mpf) -> mpf:
    return x * mpmath.log(x) if x > 0 else mpf(0)


def isru(scale: float = 1.0) -> Oracle:
    lam = mpf(scale)
    return Oracle(
        rho=lambda y: lam * y / mpmath.sqrt(1 + y * y),
        inverse=lambda z: z / mpmath.sqrt(lam**2 - z * z),
        potential=lambda z: -mpmath.sqrt(lam**2 - z * z),
        conjugate=lambda y: lam * mpmath.sqrt(1 + y * y),
        curvature=lambda y: (1 + y * y) ** mpf(1.5) / lam,
    )


def softplus(sharpness: float = 1.0) -> Oracle:
    b = mpf(sharpness)
    # The slowest function by far, wanted several times at the same point.
    dilogarithm = functools.cache(lambda x: mpmath.polylog(2, x).real)
    return Oracle(
        rho=lambda y: mpmath.log1p(mpmath.exp(b * y)) / b,
        inverse=lambda z: mpmath.log(mpmath.expm1(b * z)) / b,
        potential=lambda z: z * z / 2 + (dilogarithm(mpmath.exp(-b * z)) - mp.pi**2 / 6) / b**2,
        conjugate=lambda y: -dilogarithm(-mpmath.exp(b * y)) / b**2,
        curvature=lambda y: 1 + mpmath.exp(-b * y),
    )


def bent(smoothness: float = 1.0) -> Oracle:
    p = mpf(smoothness)

    def rho(y: mpf) -> mpf:
        return (y + mpmath.sqrt(y * y + p)) / 2

    return Oracle(
        rho=rho,
        inverse=lambda z: z - p / (4 * z),
        potential=lambda z: z * z / 2 - p / 4 * mpmath.log(z),
        conjugate=lambda y: rho(y) ** 2 / 2 - p / 4 + p / 4 * mpmath.log(rho(y)),
        curvature=lambda y: 1 + p / (4 * rho(y) ** 2),
    )


BURG = Oracle(
    rho=lambda y: -1 / y,
    inverse=lambda z: -1 / z,
    potential=lambda z: -mpmath.log(z),
    conjugate=lambda y: -1 - mpmath.log(-y),
    curvature=lambda y: y * y,
)


def _double_burg_rho(y: mpf) -> mpf:
    # The root of y z(1 − z) = 2z − 1 between 0 and 1.
    return ((y - 2) + mpmath.sqrt(y * y + 4)) / (2 * y) if y else mpf(1) / 2


DOUBLE_BURG = Oracle(
    rho=_double_burg_rho,
    inverse=lambda z: 1 / (1 - z) - 1 / z,
    potential=lambda z: -mpmath.log(z) - mpmath.log(1 - z),
    conjugate=lambda y: y * _double_burg_rho(y) + mpmath.log(_double_burg_rho(y)) + mpmath.log(1 - _double_burg_rho(y)),
    curvature=lambda y: 1 / _double_burg_rho(y) ** 2 + 1 / (1 - _double_burg_rho(y)) ** 2,
)
SIGMOID = Oracle(
    rho=lambda y: 1 / (1 + mpmath.exp(-y)),
    inverse=lambda z: mpmath.log(z / (1 - z)),
    potential=lambda z: _xlogx(z) + _xlogx(1 - z),
    conjugate=lambda y: mpmath.log1p(mpmath.exp(y)),
    curvature=lambda y: 4 * mpmath.cosh(y / 2) ** 2,
)
TANH = Oracle(
    rho=mpmath.tanh,
    inverse=mpmath.atanh,
    potential=lambda z: (_xlogx(1 + z) + _xlogx(1 - z)) / 2,
    conjugate=lambda y: mpmath.log(mpmath.cosh(y)),
    curvature=lambda y: mpmath.cosh(y) ** 2,
)
ARCTAN = Oracle(
    rho=mpmath.atan,
    inverse=mpmath.tan,
    potential=lambda z: -mpmath.log(mpmath.cos(z)),
    conjugate=lambda y: y * mpmath.atan(y) - mpmath.log(1 + y * y) / 2,
    curvature=lambda y: 1 + y * y,
)
SIN = Oracle(
    rho=lambda y: mpmath.sin(_clamp(y)),
    inverse=mpmath.asin,
    potential=lambda z: mpmath.sqrt(1 - z * z) + z * mpmath.asin(z),
    conjugate=lambda y: abs(y - _clamp(y)) - mpmath.cos(_clamp(y)),
    curvature=lambda y: 1 / mpmath.cos(y) if abs(y) < mp.pi / 2 else mpf("inf"),
)
ARCSINH = Oracle(
    rho=mpmath.asinh,
    inverse=mpmath.sinh,
    potential=mpmath.cosh,
    conjugate=lambda y: y * mpmath.asinh(y) - mpmath.sqrt(1 + y * y),
    curvature=lambda y: mpmath.sqrt(1 + y * y),
)
IDENTITY = Oracle(
    rho=lambda y: y,
    inverse=lambda z: z,
    potential=lambda z: z * z / 2,
    conjugate=lambda y: y * y / 2,
    curvature=lambda y: mpf(1),
)
EXP = Oracle(
    rho=mpmath.exp,
    inverse=mpmath.log,
    potential=lambda z: _xlogx(z) - z,
    conjugate=mpmath.exp,
    curvature=lambda y: mpmath.exp(-y),
)


def _clamp(y: mpf) -> mpf:
    return max(-mp.pi / 2, min(mp.pi / 2, y))


@dataclass(frozen=True)
class Case:
    """A geometry, its oracle, the family whose error figures apply, and the largest |y| of the comparison."""

    geometry: LegendreFunction
    oracle: Oracle
    family: str

    def reach(self, dtype: torch.dtype) -> float:
        """Largest |y| at which the oracle is compared."""
        single = dtype == torch.float32
        if self.family in ("sigmoid", "softplus", "tanh", "exp", "scaled_tanh"):
            return (30.0 if single else 100.0) / getattr(self.geometry, "sharpness", 1.0)
        if self.family == "sin":
            return 1.5707  # at the rounded π/2 the slope is 0 by definition
        return 1e5 if single else 1e9

    def inside(self, y: Tensor) -> Tensor:
        """The duals, moved to where there is a ρ(y): below 0 for burg."""
        if self.family != "burg":
            return y
        return -torch.where(y.abs() < 1e-30, 1.0, y.abs())


# With a bound at 0, without any symmetry, and centred.
UNIT, SKEW, EVEN = [(0.0, 1.0)], [(-2.0, 0.5)], [(-3.0, 3.0)]


def _cases() -> list[Case]:
    plain = {
        "isru": isru(),
        "sigmoid": SIGMOID,
        "softplus": softplus(),
        "arctan": ARCTAN,
        "tanh": TANH,
        "sin": SIN,
        "arcsinh": ARCSINH,
        "identity": IDENTITY,
        "scaled_tanh": affine(TANH, (-1, 1), (-1.7159, 1.7159), 2.0 / 3.0),
        "exp": EXP,
        "bent": bent(),
        "burg": BURG,
        "double_burg": DOUBLE_BURG,
    }
    assert set(plain) == set(separable_geometries())
    cases = [Case(geometry(name), oracle, name) for name, oracle in plain.items()]
    cases += [
        Case(geometry("isru", scale=3.0), isru(3.0), "isru"),
        Case(geometry("softplus", sharpness=4.0), softplus(4.0), "softplus"),
        Case(geometry("bent", smoothness=0.25), bent(0.25), "bent"),
    ]
    # The end of arctan is the real π/2, not its rounding.
    ends = {
        "arctan": (-mp.pi / 2, mp.pi / 2),
        "sigmoid": (0, 1),
        "scaled_tanh": (-1.7159, 1.7159),
        "double_burg": (0, 1),
    }
    boxes = {
        "isru": UNIT + SKEW + EVEN,
        "sigmoid": SKEW + EVEN,
        "double_burg": SKEW + EVEN,
        "arctan": UNIT + SKEW,
        "tanh": UNIT + SKEW,
    }
    for name, targets in (boxes | {"sin": UNIT + SKEW, "scaled_tanh": SKEW}).items():
        for box in targets:
            oracle = affine(plain[name], ends.get(name, (-1, 1)), box)
            cases.append(Case(geometry(name).to_box(*box), oracle, name))
    return cases


with mpmath.workdps(200):
    CASES = _cases()


@pytest.fixture(params=CASES, ids=lambda case: repr(case.geometry))
def case(request: pytest.FixtureRequest) -> Case:
    """Every Legendre function of the catalogue and boxes of the bounded ones."""
    return request.param


@pytest.fixture
def cases() -> dict[str, Case]:
    """The case of every name of the catalogue, with default parameters."""
    return {case.geometry.name: case for case in reversed(CASES)}
