"""The judge's own geometries, in NumPy's widest float: ρ, ρ', ρ⁻¹ and φ at y, written from their closed forms.

Nothing here is imported from the library. `test_judge.py` compares them with mpmath.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import spence

Wide = np.longdouble
PI = 4 * np.arctan(Wide(1))


@dataclass(frozen=True)
class Geometry:
    """φ by its mirror map. All functions are elementwise; `potential` is φ(ρ(y)).

    Attributes:
        lo, hi: the ends of C.
        sigma: inf φ''.
        legendre: whether |φ'| → ∞ at every finite end.
    """

    name: str
    lo: Wide
    hi: Wide
    sigma: float
    rho: Callable
    slope: Callable
    inverse: Callable
    potential: Callable
    legendre: bool = True

    @property
    def bounded(self) -> bool:
        return bool(np.isfinite(self.lo) and np.isfinite(self.hi))

    def gap(self, z: np.ndarray) -> np.ndarray:
        """Distance to the nearer end of C."""
        return np.minimum(z - self.lo, self.hi - z)


def _logistic(y):
    e = np.exp(-np.abs(y))
    return np.where(y >= 0, 1 / (1 + e), e / (1 + e))


def _logistic_slope(y):
    e = np.exp(-np.abs(y))
    return e / (1 + e) ** 2


def _softplus(y):
    return np.maximum(y, 0) + np.log1p(np.exp(-np.abs(y)))


def _entropy(y):
    s = _logistic(y)
    return -(s * _softplus(-y) + (1 - s) * _softplus(y))


def _hypot1(y):
    return np.hypot(Wide(1), y)


def _bent(y):
    r = _hypot1(y)
    return np.where(y >= 0, (y + r) / 2, 1 / (2 * (r + np.abs(y))))


def _softplus_potential(y):
    z = _softplus(y)
    dilogarithm = spence((-np.expm1(-z)).astype(np.float64))
    return z * z / 2 + dilogarithm - PI**2 / 6


def _softplus_inverse(z):
    small = np.minimum(z, 1)
    return np.where(z < 1, np.log(np.expm1(small)), z + np.log1p(-np.exp(-np.maximum(z, 1))))


def _clamped(y):
    return np.clip(y, -PI / 2, PI / 2)


_INF = Wide(math.inf)
_ONE = Wide(1)

BASIC = {
    g.name: g
    for g in (
        Geometry(
            "isru",
            -_ONE,
            _ONE,
            1.0,
            lambda y: y / _hypot1(y),
            lambda y: _hypot1(y) ** -3,
            lambda z: z / np.sqrt((1 - z) * (1 + z)),
            lambda y: -1 / _hypot1(y),
        ),
        Geometry(
            "sigmoid",
            Wide(0),
            _ONE,
            4.0,
            _logistic,
            _logistic_slope,
            lambda z: np.log(z) - np.log1p(-z),
            _entropy,
        ),
        Geometry(
            "softplus",
            Wide(0),
            _INF,
            1.0,
            _softplus,
            _logistic,
            _softplus_inverse,
            _softplus_potential,
        ),
        Geometry(
            "arctan",
            -PI / 2,
            PI / 2,
            1.0,
            np.arctan,
            lambda y: 1 / (1 + y * y),
            lambda z: np.sign(z) / np.tan(PI / 2 - np.abs(z)),
            lambda y: np.where(np.abs(y) < 1e4, np.log1p(np.minimum(np.abs(y), 1e4) ** 2) / 2, np.log(_hypot1(y))),
        ),
        Geometry(
            "tanh",
            -_ONE,
            _ONE,
            1.0,
            np.tanh,
            lambda y: 4 * _logistic_slope(2 * y),
            lambda z: (np.log1p(z) - np.log1p(-z)) / 2,
            lambda y: _entropy(2 * y) + np.log(Wide(2)),
        ),
        Geometry(
            "sin",
            -_ONE,
            _ONE,
            1.0,
            lambda y: np.sin(_clamped(y)),
            lambda y: np.where(np.abs(y) < PI / 2, np.cos(_clamped(y)), 0),
            np.arcsin,
            lambda y: np.cos(_clamped(y)) + _clamped(y) * np.sin(_clamped(y)),
            legendre=False,
        ),
        Geometry("arcsinh", -_INF, _INF, 1.0, np.arcsinh, lambda y: 1 / _hypot1(y), np.sinh, _hypot1),
        Geometry("identity", -_INF, _INF, 1.0, lambda y: +y, np.ones_like, lambda z: +z, lambda y: y * y / 2),
        Geometry(
            "exp",
            Wide(0),
            _INF,
            0.0,
            np.exp,
            np.exp,
            np.log,
            lambda y: (y - 1) * np.exp(y),
        ),
        Geometry(
            "bent",
            Wide(0),
            _INF,
            1.0,
            _bent,
            lambda y: _bent(y) / _hypot1(y),
            lambda z: z - 1 / (4 * z),
            lambda y: _bent(y) ** 2 / 2 - np.log(_bent(y)) / 4,
        ),
    )
}


def _moved(base: Geometry, name: str, centre: Wide, scale: Wide, dual_scale: Wide) -> Geometry:
    """ρ(y) = m + s ρ₀(b y) for a base that is centred at 0 (or, for the sigmoid, at its lower end)."""
    return replace(
        base,
        name=name,
        lo=centre + scale * base.lo,
        hi=centre + scale * base.hi,
        sigma=float(base.sigma / (scale * dual_scale)),
        rho=lambda y: centre + scale * base.rho(dual_scale * y),
        slope=lambda y: scale * dual_scale * base.slope(dual_scale * y),
        inverse=lambda z: base.inverse((z - centre) / scale) / dual_scale,
        potential=lambda y: scale / dual_scale * base.potential(dual_scale * y),
    )


BASIC["scaled_tanh"] = _moved(BASIC["tanh"], "scaled_tanh", Wide(0), Wide(1.7159), Wide(2.0 / 3.0))
NAMES = tuple(BASIC)


def geometry(name: str, box: tuple[float, float] | None = None) -> Geometry:
    """The geometry of that name, moved to a box where one is given."""
    base = BASIC[name]
    if box is None:
        return base
    lo, hi = Wide(box[0]), Wide(box[1])
    scale = (hi - lo) / (base.hi - base.lo)
    moved = _moved(base, name, lo - scale * base.lo, scale, Wide(1))
    return replace(moved, lo=lo, hi=hi)
