"""Every number on the page "Errata of the paper", computed from the mathematics alone.

The script uses NumPy and mpmath and nothing of this library. Run

    python docs/scripts/errata.py

to print the numbers and to rewrite `docs/errata-numbers.json`, from which the page is filled. It takes a few
seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mpmath
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Numbers = dict[str, float]

NUMBERS_FILE = Path(__file__).resolve().parent.parent / "errata-numbers.json"


class Geometry(NamedTuple):
    """One scalar Legendre function: phi, phi' and its inverse rho, and sigma = inf phi''."""

    potential: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    activation: Callable[[Array], Array]
    strong_convexity: float


def _xlogx(t: Array) -> Array:
    return np.where(t > 0, t * np.log(np.where(t > 0, t, 1.0)), 0.0)


SIGMOID = Geometry(
    lambda z: _xlogx(z) + _xlogx(1 - z),
    lambda z: np.log(z) - np.log1p(-z),
    lambda y: 0.5 * (1 + np.tanh(y / 2)),
    4.0,
)
TANH = Geometry(lambda z: 0.5 * (_xlogx(1 + z) + _xlogx(1 - z)), np.arctanh, np.tanh, 1.0)
ISRU = Geometry(
    lambda z: -np.sqrt((1 - z) * (1 + z)),
    lambda z: z / np.sqrt((1 - z) * (1 + z)),
    lambda y: y / np.hypot(1, y),
    1.0,
)
ARCTAN = Geometry(lambda z: -np.log(np.cos(z)), np.tan, np.arctan, 1.0)


def _divergence(geometry: Geometry, u: Array, v: Array) -> Array:
    """D(u, v), summed over the last axis."""
    terms = geometry.potential(u) - geometry.potential(v) - geometry.inverse(v) * (u - v)
    return np.asarray(terms.sum(axis=-1))


class Quadratic(NamedTuple):
    """Q(z; s) = z'Az/2 - s'Cs/2 + s'Cz + d'z, a member of (6); it touches f(z) = z'(A + C)z/2 + d'z."""

    a: Array
    c: Array
    d: Array

    def majorant(self, z: Array, s: Array) -> Array:
        """Q(z; s) for z of shape (..., d) and one anchor s."""
        value = 0.5 * np.einsum("...i,ij,...j->...", z, self.a, z) - 0.5 * s @ self.c @ s
        return np.asarray(value + z @ (self.c @ s + self.d))

    def value(self, z: Array) -> Array:
        """f(z) for z of shape (..., d)."""
        return np.asarray(0.5 * np.einsum("...i,ij,...j->...", z, self.a + self.c, z) + z @ self.d)

    def gradient(self, z: Array) -> Array:
        """Return the gradient of f at one z."""
        return np.asarray((self.a + self.c) @ z + self.d)

    @property
    def smoothness(self) -> float:
        """nu, the spectral norm of A."""
        return float(np.linalg.norm(self.a, 2))


def _random_quadratic(generator: np.random.Generator, size: int) -> Quadratic:
    factor, other = generator.normal(size=(2, size, size))
    return Quadratic(factor @ factor.T + np.eye(size), -other @ other.T, generator.normal(size=size))


def surrogate_bound() -> Numbers:
    """Definition 2.1, third condition, on f(z) = z^2 / 2, anchor s = 1 and the majorant with step 1/2."""
    step, anchor = 0.5, 1.0
    z = np.linspace(-2, 3, 5001)
    surrogate = anchor**2 / 2 + anchor * (z - anchor) + (z - anchor) ** 2 / (2 * step)
    return {
        "minimum_above_f_of_anchor": float((surrogate - anchor**2 / 2).min()),
        "minimum_above_f_of_z": float((surrogate - z**2 / 2).min()),
    }


def first_term() -> Numbers:
    """Equations (7) and (13): Q(z; s) printed where Q(s; s) is needed."""
    generator = np.random.default_rng(2)
    quadratic = _random_quadratic(generator, 3)
    anchor = generator.uniform(0.2, 0.8, size=3)
    slope = quadratic.gradient(anchor)
    z = generator.uniform(0.001, 0.999, size=(20_000, 3))
    euclidean_step = 1 / quadratic.smoothness
    bregman_step = SIGMOID.strong_convexity / quadratic.smoothness
    linear = (z - anchor) @ slope
    proximities = {
        "euclidean": ((z - anchor) ** 2).sum(-1) / (2 * euclidean_step),
        "bregman": _divergence(SIGMOID, z, anchor) / bregman_step,
    }
    numbers: Numbers = {}
    for name, proximity in proximities.items():
        printed = quadratic.majorant(z, anchor) + linear + proximity - quadratic.value(z)
        corrected = quadratic.value(anchor) + linear + proximity - quadratic.value(z)
        numbers[f"{name}_printed_minimum"] = float(printed.min())
        numbers[f"{name}_corrected_minimum"] = float(corrected.min())
    # Both terms of the printed (7) have the slope of f at the anchor; the proximity has none there.
    shift = 1e-6 * slope / np.linalg.norm(slope)
    ahead = quadratic.majorant(anchor + shift, anchor) + shift @ slope
    behind = quadratic.majorant(anchor - shift, anchor) - shift @ slope
    numbers["printed_slope_ratio"] = float((ahead - behind) / 2e-6 / np.linalg.norm(slope))
    # The minimiser of the printed (7), against the forward-backward step of (9).
    system = quadratic.a + np.eye(3) / euclidean_step
    printed_minimiser = np.linalg.solve(system, anchor / euclidean_step - quadratic.c @ anchor - quadratic.d - slope)
    numbers["printed_minimiser_distance"] = float(np.linalg.norm(printed_minimiser - (anchor - euclidean_step * slope)))
    return numbers


def step_size() -> Numbers:
    """Proposition 4.1 with tau = 0.9 / nu: ISRU with scale 3 (sigma = 1/3) and f(z) = z^2 / 2 (nu = 1)."""
    scale = 3.0
    z = np.linspace(-scale, scale, 1201)[:, None]
    s = np.linspace(-scale, scale, 1203)[1:-1][None, :]
    root = np.sqrt((scale - s) * (scale + s))
    divergence = -np.sqrt((scale - z) * (scale + z)) + root - s / root * (z - s)
    quadratic = (z - s) ** 2 / 2
    return {
        "printed_minimum": float((divergence / 0.9 - quadratic).min()),
        "corrected_minimum": float((divergence * scale - quadratic).min()),
    }


def weight_class() -> Numbers:
    """Section 3.1: which W_l the family of majorants really contains."""
    generator = np.random.default_rng(4)
    a, b, c = generator.normal(size=(3, 4, 4))
    a = a @ a.T + np.eye(4)
    d, e, z = generator.normal(size=(3, 4))
    b = (b + b.T) / 2
    # Generic member of (6), f defined by touching: its slope misses that of f by (B + C) z + e.
    tangency = ((a + c.T) @ z + d) - ((a + b + c + c.T) @ z + d + e)
    # The two facts that leave no freedom: C = -B and e = 0. Members of the class, sampled:
    smallest_euclidean, smallest_bregman = np.inf, np.inf
    for _ in range(2000):
        quadratic = _random_quadratic(generator, 4)
        hessian = quadratic.a + quadratic.c
        step = generator.uniform() / quadratic.smoothness
        smallest_euclidean = min(smallest_euclidean, np.linalg.eigvalsh(np.eye(4) - step * hessian)[0])
        largest = np.linalg.eigvalsh(SIGMOID.strong_convexity * step * hessian)[-1]
        smallest_bregman = min(smallest_bregman, SIGMOID.strong_convexity - largest)
    rotation = np.array([[0.0, -1.0], [1.0, 0.0]])
    # The nearest symmetric positive semidefinite matrix keeps the positive part of the symmetric part.
    values, vectors = np.linalg.eigh((rotation + rotation.T) / 2)
    nearest = (vectors * np.maximum(values, 0)) @ vectors.T
    return {
        "tangency_gap": float(np.linalg.norm(tangency)),
        "tangency_identity_error": float(np.linalg.norm(tangency + (b + c) @ z + e)),
        "smallest_eigenvalue_euclidean": float(smallest_euclidean),
        "smallest_eigenvalue_plus_sigma_bregman": float(smallest_bregman),
        "distance_of_quarter_turn": float(np.linalg.norm(rotation - nearest)),
    }


def layer_signs() -> Numbers:
    """Equation (17) with W = tau (A + C)' and b = tau d, as braced, in Problem 4.1's y + Wz + b."""
    generator = np.random.default_rng(5)
    quadratic = _random_quadratic(generator, 3)
    z = generator.uniform(0.2, 0.8, size=3)
    step = SIGMOID.strong_convexity / quadratic.smoothness
    displacement = step * quadratic.gradient(z)
    printed = SIGMOID.activation(SIGMOID.inverse(z) + displacement)
    corrected = SIGMOID.activation(SIGMOID.inverse(z) - displacement)
    return {
        "printed_change_of_f": float(quadratic.value(printed) - quadratic.value(z)),
        "corrected_change_of_f": float(quadratic.value(corrected) - quadratic.value(z)),
    }


def potential_range() -> Numbers:
    """Problem 4.1, Phi: R^d -> R: the sigmoid's formula evaluated outside [0, 1]."""
    value = mpmath.mpf("1.5") * mpmath.log(1.5) + mpmath.mpf("-0.5") * mpmath.log(mpmath.mpf("-0.5"))
    return {"real_part": float(value.real), "imaginary_part": float(value.imag)}


def isru_row() -> Numbers:
    """Table 1, ISRU, lambda = 2: only rho carries lambda."""
    printed_round_trip = 2 * float(ISRU.activation(ISRU.inverse(np.asarray(0.5))))
    return {"activation_at_1": 2 / float(np.sqrt(2)), "round_trip_of_one_half": printed_round_trip}


def softplus_row() -> Numbers:
    """Table 1, SoftPlus, derivative of the printed and of the corrected phi at t = 1."""

    def printed(t: mpmath.mpf) -> mpmath.mpc:
        ratio = (mpmath.e**t - 1) / (1 - mpmath.e**-t)
        return t * mpmath.log(ratio) - mpmath.polylog(2, mpmath.e**t)

    def denominator_corrected(t: mpmath.mpf) -> mpmath.mpc:
        ratio = (mpmath.e**t - 1) / (1 - mpmath.e**t)
        return t * mpmath.log(ratio) - mpmath.polylog(2, mpmath.e**t)

    def phi(t: mpmath.mpf) -> mpmath.mpf:
        return t**2 / 2 + mpmath.polylog(2, mpmath.e**-t) - mpmath.pi**2 / 6

    with mpmath.workdps(30):
        derivative = mpmath.diff(printed, 1)
        points = [mpmath.mpf(k) / 4 for k in range(1, 17)]
        inverse_error = max(abs(mpmath.diff(phi, t) - mpmath.log(mpmath.expm1(t))) for t in points)
        offset = max(abs((denominator_corrected(t) - phi(t)).real + mpmath.pi**2 / 6) for t in points)
        return {
            "inverse_at_1": float(mpmath.log(mpmath.e - 1)),
            "printed_slope_real": float(derivative.real),
            "printed_slope_imaginary": float(abs(derivative.imag)),
            "phi_slope_error": float(inverse_error),
            "corrected_denominator_offset_error": float(offset),
        }


def arctan_row() -> Numbers:
    """Table 1, arctan: phi at pi/2 - 10^-k."""
    with mpmath.workdps(350):
        half = mpmath.pi / 2
        return {
            f"potential_at_gap_1e{k}": float(-mpmath.log(mpmath.cos(half - mpmath.mpf(10) ** -k))) for k in (3, 30, 300)
        }


def sin_row() -> Numbers:
    """Table 1, sin: beyond +-pi/2 the sine is not the Bregman projection, and f may rise."""
    grid = np.linspace(-1, 1, 200_001)
    potential = np.sqrt((1 - grid) * (1 + grid)) + grid * np.arcsin(grid)
    projection = float(grid[np.argmin(potential - 2.0 * grid)])

    def energy(z: float) -> float:
        return -0.4 * z * z - 0.3 * z

    rises = {}
    for name, half_width in (("unclamped", np.inf), ("clamped", np.pi / 2)):
        y, rise = 0.1, -np.inf
        for _ in range(200):
            following = float(np.clip(y + 0.8 * np.sin(y) + 0.3, -half_width, half_width))
            rise = max(rise, energy(float(np.sin(following))) - energy(float(np.sin(y))))
            y = following
        rises[name] = rise
    return {
        "projection_of_2": projection,
        "sin_of_2": float(np.sin(2.0)),
        "arcsin_of_sin_of_2": float(np.arcsin(np.sin(2.0))),
        "unclamped_largest_rise": rises["unclamped"],
        "clamped_largest_rise": rises["clamped"],
    }


def prox_convexity() -> Numbers:
    """Smallest g'' = phi'' - 1 for rho = prox_g: Table 1, Example 3.2 (`scaled_arctan`), LeCun's tanh."""
    y = np.concatenate([-np.logspace(-6, 2, 4000), [0.0], np.logspace(-6, 2, 4000)])
    slopes = {  # rho'(y) = 1 / phi''(rho(y))
        "isru": (1 + y**2) ** -1.5,
        "sigmoid": 0.25 / np.cosh(y / 2) ** 2,
        "softplus": 1 / (1 + np.exp(-y)),
        "arctan": 1 / (1 + y**2),
        "scaled_arctan": 2 / np.pi / (1 + y**2),
        "tanh": 1 / np.cosh(y) ** 2,
        "sin": np.cos(y[np.abs(y) < np.pi / 2]),
        "arcsinh": 1 / np.hypot(1, y),
        "lecun_tanh": 1.7159 * 2 / 3 / np.cosh(2 * y / 3) ** 2,
    }
    return {name: float(1 / slope.max() - 1) for name, slope in slopes.items()}


def convergence() -> Numbers:
    """Theorem 5.1 as printed: f(z) = -z, so that y_k = k, with the potentials of arctan and arcsinh."""
    last = 1_000_000
    return {
        "arctan_gap": float(np.arctan2(1, last)),
        "arcsinh_iterate": float(np.arcsinh(last)),
        "arcsinh_displacement": float(np.arcsinh(last) - np.arcsinh(last - 1)),
    }


def two_cycle() -> Numbers:
    """f(z) = 1.1 z^2 with tanh and tau = 1: tau * curvature = 2.2, past the limit 2 sigma = 2."""
    y, rise = 1e-3, 0.0
    for _ in range(2000):
        following = y - 2.2 * np.tanh(y)
        rise = max(rise, 1.1 * (float(np.tanh(following)) ** 2 - float(np.tanh(y)) ** 2))
        y = following
    return {"dual": abs(y), "objective": 1.1 * float(np.tanh(y)) ** 2, "largest_rise": rise}


def corrected_theorem() -> Numbers:
    """80 random problems with lambda_max(-W) = 1.9 sigma and tau = 1, close to the limit 2 sigma.

    The largest rise is relative to 1 + |f|. The residual max |clip(z + Wz + c) - z| is taken after 20,000
    steps.
    """
    generator = np.random.default_rng(12)
    rise, residual, identity = 0.0, 0.0, 0.0
    boxes = ((SIGMOID, 0.0, 1.0), (TANH, -1.0, 1.0), (ISRU, -1.0, 1.0), (ARCTAN, -np.pi / 2, np.pi / 2))
    for geometry, low, high in boxes:
        w = generator.normal(size=(20, 5, 5))
        w = w + w.swapaxes(1, 2)
        w -= np.trace(w, axis1=1, axis2=2)[:, None, None] / 5 * np.eye(5)  # so that the smallest is negative
        w *= 1.9 * geometry.strong_convexity / -np.linalg.eigvalsh(w)[:, :1, None]
        c = 0.3 * generator.normal(size=(20, 5))
        y = generator.normal(size=(20, 5))
        z = geometry.activation(y)
        product = np.einsum("bij,bj->bi", w, z)
        value = -((product / 2 + c) * z).sum(-1)
        for step in range(20_000):
            y = y + product + c
            following = geometry.activation(y)
            product = np.einsum("bij,bj->bi", w, following)
            decreased = -((product / 2 + c) * following).sum(-1)
            rise = max(rise, float(((decreased - value) / (1 + np.abs(value))).max()))
            if step == 0:
                move = following - z
                predicted = _divergence(geometry, z, following) + _divergence(geometry, following, z)
                predicted = predicted + np.einsum("bi,bij,bj->b", move, w, move) / 2
                identity = max(identity, float(np.abs(value - decreased - predicted).max()))
            z, value = following, decreased
        residual = max(residual, float(np.abs(np.clip(z + product + c, low, high) - z).max()))
    return {
        "descent_identity_error": identity,
        "largest_relative_rise": rise,
        "largest_residual": residual,
    }


def initial_point_only() -> Numbers:
    """Problem 2.1 with x only in z_0: W = 1, c = -1/2, sigmoid, dz_L/dz_0 from z_0 = 0.6."""
    numbers: Numbers = {}
    with mpmath.workdps(120):
        z0 = mpmath.mpf(6) / 10
        y, derivative = mpmath.log(z0 / (1 - z0)), 1 / (z0 * (1 - z0))  # dy/dz_0
        for layer in range(1, 201):
            z = 1 / (1 + mpmath.exp(-y))
            derivative *= 1 + z * (1 - z)
            y += z - mpmath.mpf(1) / 2
            if layer in (1, 10, 50, 200):
                z = 1 / (1 + mpmath.exp(-y))
                numbers[f"derivative_after_{layer}"] = float(derivative * z * (1 - z))
        numbers["distance_to_1_after_200"] = float(1 / (1 + mpmath.exp(y)))
    return numbers


def right_as_printed() -> Numbers:
    """Examples 3.1, 3.2 and three rows of Table 1: the largest error of the defining equation."""
    points = [mpmath.mpf(k) / 8 for k in range(-16, 17)]

    def prox_error(g: Callable[[mpmath.mpf], mpmath.mpf], rho: Callable[[mpmath.mpf], mpmath.mpf]) -> float:
        # u = prox_g(t) exactly where g'(u) + u - t = 0, for convex g.
        return float(max(abs(mpmath.diff(g, rho(t)) + rho(t) - t) for t in points))

    def row_error(phi: Callable[[mpmath.mpf], mpmath.mpf], rho: Callable[[mpmath.mpf], mpmath.mpf]) -> float:
        return float(max(abs(mpmath.diff(phi, rho(t)) - t) for t in points))

    log, sqrt, half_pi = mpmath.log, mpmath.sqrt, mpmath.pi / 2
    with mpmath.workdps(30):
        return {
            "example_isru": prox_error(lambda t: -(t**2) / 2 - sqrt(1 - t**2), lambda t: t / sqrt(1 + t**2)),
            "example_arctan": prox_error(
                lambda t: -log(mpmath.cos(half_pi * t)) / half_pi - t**2 / 2,
                lambda t: mpmath.atan(t) / half_pi,
            ),
            "row_sigmoid": row_error(lambda t: t * log(t) + (1 - t) * log(1 - t), lambda t: 1 / (1 + mpmath.exp(-t))),
            "row_tanh": row_error(lambda t: log(1 - t**2) / 2 + t * mpmath.atanh(t), mpmath.tanh),
            "row_arcsinh": row_error(mpmath.cosh, mpmath.asinh),
        }


SECTIONS: dict[str, Callable[[], Numbers]] = {
    "surrogate_bound": surrogate_bound,
    "first_term": first_term,
    "step_size": step_size,
    "weight_class": weight_class,
    "layer_signs": layer_signs,
    "potential_range": potential_range,
    "isru_row": isru_row,
    "softplus_row": softplus_row,
    "arctan_row": arctan_row,
    "sin_row": sin_row,
    "prox_convexity": prox_convexity,
    "convergence": convergence,
    "two_cycle": two_cycle,
    "corrected_theorem": corrected_theorem,
    "initial_point_only": initial_point_only,
    "right_as_printed": right_as_printed,
}


def main() -> None:
    """Print every number and rewrite the file that the page is filled from."""
    numbers = {name: section() for name, section in SECTIONS.items()}
    for name, section in numbers.items():
        for key, value in section.items():
            print(f"{name}.{key:<40} {value: .6g}")
    NUMBERS_FILE.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
