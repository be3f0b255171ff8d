"""The judge's own solutions: one sample at a time, in NumPy's widest float, by methods that the library does not use.

How a solution was found does not matter: `checks.py` judges it by its optimality conditions as well. What is needed
here is that it is found nearly always, and that None is returned where it is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dgetrf, dgetrs
from scipy.optimize import linprog

from tests.fuzz.geometries import Geometry, Wide

EPS = np.finfo(Wide).eps


class Unsolvable(ArithmeticError):
    """A linear system that is singular to rounding."""


@dataclass(frozen=True)
class Quadratic:
    """One sample of f(z) = ½ zᵀMz − cᵀz, plus γφ, on C. M need not be symmetric."""

    matrix: np.ndarray
    offset: np.ndarray
    geometry: Geometry
    gamma: Wide

    def field(self, z: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Mz − c + γy."""
        return self.matrix @ z - self.offset + self.gamma * y

    def terms(self, z: np.ndarray) -> np.ndarray:
        """|Mz| + |c|, coordinate by coordinate."""
        return np.abs(self.matrix @ z) + np.abs(self.offset)


@dataclass(frozen=True)
class Projection:
    """One sample of min D(z, z⁰) subject to Vᵀz = β, or softened: + ‖Vᵀz − β‖²/(2ε)."""

    vectors: np.ndarray
    target: np.ndarray
    start: np.ndarray
    geometry: Geometry
    epsilon: Wide


def equilibrated(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Powers of two r, s and diag(r) A diag(s), in float64, with entries of at most about 1."""
    size = np.abs(matrix)
    r = _power(size.max(axis=1))
    s = _power((size * r[:, None]).max(axis=0))
    return (matrix * r[:, None] * s).astype(np.float64), r, s


def _power(size: np.ndarray) -> np.ndarray:
    if not (np.isfinite(size).all() and (size > 0).all()):
        raise Unsolvable("a row or a column of zeros")
    return np.exp2(-np.round(np.log2(size)))


def solve(matrix: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """A⁻¹b: LU in float64 of the equilibrated matrix, refined with wide residuals."""
    scaled, r, s = equilibrated(matrix)
    factor, pivots, singular = dgetrf(scaled)
    if singular or not np.isfinite(factor).all():
        raise Unsolvable("singular")
    wide, target = matrix * r[:, None] * s, (rhs.T * r).T
    x = np.zeros_like(target)
    for _ in range(6):
        left = target - wide @ x
        size = np.abs(left).max(initial=0) or Wide(1)
        x = x + size * dgetrs(factor, pivots, (left / size).astype(np.float64))[0].reshape(left.shape)
    return (x.T * s).T


def least_eigenvalue(matrix: np.ndarray, shift: float = 0.0) -> float:
    """λ_min of the symmetric part of A + shift·I, scaled to a unit diagonal; −1 where the diagonal is not positive."""
    part = (matrix + matrix.T) / 2 + Wide(shift) * np.eye(len(matrix), dtype=Wide)
    diagonal = np.diag(part)
    if not (diagonal > 0).all():
        return 0.0 if not np.abs(part).any() else -1.0
    root = np.sqrt(diagonal)
    return float(np.linalg.eigvalsh((part / root / root[:, None]).astype(np.float64))[0])


# --- γ = 0: the box-constrained linear complementarity problem --------------------------------------------------------


def solve_box(problem: Quadratic) -> np.ndarray | None:
    """z, by principal pivoting: blocks while that helps, then Murty's rule, which ends for every P-matrix."""
    m, c, lo, hi = problem.matrix, problem.offset, problem.geometry.lo, problem.geometry.hi
    side = np.zeros(len(c), dtype=int)
    fewest, patience = len(c) + 1, 8
    for _ in range(40 * len(c) + 400):
        z = on_active_set(problem, side)
        if z is None:
            return None
        force = c - m @ z
        noise = 64 * EPS * (np.abs(m) @ np.abs(z) + np.abs(c))
        wrong = np.zeros(len(c), dtype=int)
        free = side == 0
        wrong[free & (z > hi)] = 1
        wrong[free & (z < lo)] = -1
        release = ((side == 1) & (force < -noise)) | ((side == -1) & (force > noise))
        bad = (wrong != 0) | release
        if not bad.any():
            return z
        if bad.sum() < fewest:
            fewest, patience = bad.sum(), 8
        elif patience:
            patience -= 1
        else:
            last = np.flatnonzero(bad)[-1]
            bad[:] = False
            bad[last] = True
        side = np.where(bad, wrong, side)
    return None


def on_active_set(problem: Quadratic, side: np.ndarray) -> np.ndarray | None:
    """The point with z at the ends where `side` is ±1 and a field of 0 elsewhere."""
    z = np.where(side > 0, problem.geometry.hi, np.where(side < 0, problem.geometry.lo, Wide(0)))
    free = side == 0
    if free.any():
        rhs = problem.offset[free] - problem.matrix[np.ix_(free, ~free)] @ z[~free]
        try:
            z[free] = solve(problem.matrix[np.ix_(free, free)], rhs)
        except Unsolvable:
            return None
    return z


def solve_singular_box(problem: Quadratic) -> np.ndarray | None:
    """A minimiser for M ⪰ 0, by the proximal point method; None where it runs away."""
    shift = Wide(1e-3) * np.abs(np.diag(problem.matrix)).max()
    shifted = problem.matrix + shift * np.eye(len(problem.offset), dtype=Wide)
    z = np.clip(np.zeros_like(problem.offset), problem.geometry.lo, problem.geometry.hi)
    for _ in range(300):
        new = solve_box(Quadratic(shifted, problem.offset + shift * z, problem.geometry, Wide(0)))
        if new is None:
            return None
        if (np.abs(new - z) <= 1e-17 * (1 + np.abs(new))).all():
            return new
        z = new
    return None


# --- γ > 0: γy + Mρ(y) = c ------------------------------------------------------------------------------------------


def solve_smooth(problem: Quadratic, definite: bool, guesses: list[np.ndarray]) -> np.ndarray | None:
    """y, by Newton's method with a line search; for M ≻ 0 on a convex function of y, which cannot fail."""
    for guess in guesses:
        y = _newton(problem, guess, _slope_along if definite else _residual_grew)
        if y is not None:
            return y
    return None if definite else _continued(problem, guesses[0])


def _continued(problem: Quadratic, y: np.ndarray) -> np.ndarray | None:
    """The path from a large γ down to the given one."""
    gamma = max(problem.gamma, 100 * np.abs(problem.matrix).sum(axis=1).max())
    while True:
        found = _newton(Quadratic(problem.matrix, problem.offset, problem.geometry, gamma), y, _residual_grew)
        if found is None or gamma == problem.gamma:
            return found
        y, gamma = found, max(problem.gamma, gamma / 2)


def _slope_along(problem, y, move, alpha, _):
    """Whether the convex function with the gradient M⁻¹(γy + Mρ(y) − c) rises at y + α·move more than it fell at y."""

    def slope(point):
        return move @ solve(problem.matrix, problem.field(problem.geometry.rho(point), point))

    rise = slope(y + alpha * move)
    return not (rise <= -slope(y) / 2)


def _residual_grew(problem, y, move, alpha, scale):
    def size(point):
        return np.linalg.norm(problem.field(problem.geometry.rho(point), point) / scale)

    return not (size(y + alpha * move) <= (1 - 1e-4 * alpha) * size(y))


def _newton(problem: Quadratic, y: np.ndarray, too_far) -> np.ndarray | None:
    eye = np.eye(len(y), dtype=Wide)
    with np.errstate(all="ignore"):
        for _ in range(400):
            z = problem.geometry.rho(y)
            left = problem.field(z, y)
            noise = problem.gamma * np.abs(y) + np.abs(problem.matrix) @ np.abs(z) + np.abs(problem.offset)
            try:
                move = solve(problem.gamma * eye + problem.matrix * problem.geometry.slope(y), -left)
            except Unsolvable:
                return None
            if not np.isfinite(move).all():
                return None
            if (np.abs(left) <= 32 * EPS * noise).all():
                return y + move
            alpha = Wide(1)
            try:
                while too_far(problem, y, move, alpha, noise):
                    alpha /= 2
                    if alpha < 1e-12:
                        return y if (np.abs(left) <= 1e4 * EPS * noise).all() else None
            except Unsolvable:
                return None
            y = y + alpha * move
    return None


# --- the Bregman projection -----------------------------------------------------------------------------------------


def solve_projection(problem: Projection) -> np.ndarray | None:
    """λ with Vᵀρ(y⁰ + Vλ) + ελ = β, by Newton's method on a convex function; None where it has no minimum."""
    v, geometry = problem.vectors, problem.geometry
    count = v.shape[1]
    lam, ridge = np.zeros(count, dtype=Wide), Wide(0)

    def gradient(at):
        return v.T @ geometry.rho(problem.start + v @ at) + problem.epsilon * at - problem.target

    with np.errstate(all="ignore"):
        for _ in range(600):
            y = problem.start + v @ lam
            left = gradient(lam)
            terms = np.abs(problem.start) + np.abs(v) @ np.abs(lam)
            noise = np.abs(v).T @ (np.abs(geometry.rho(y)) + geometry.slope(y) * terms) + np.abs(problem.target)
            hessian = (v.T * geometry.slope(y)) @ v + problem.epsilon * np.eye(count, dtype=Wide)
            move, ridge = _descent(hessian, left, ridge)
            if move is None:
                return None
            if (np.abs(left) <= 32 * EPS * (noise + problem.epsilon * np.abs(lam))).all():
                return lam + move
            # A step may not change y by more than a few units, or than its size: ρ' may be very small here.
            reach = np.abs(v @ move).max() / (4 + np.abs(y).max())
            alpha = Wide(1) if reach <= 1 else 1 / reach
            least = 1e-15 * alpha
            fall = -(left @ move)
            while not (gradient(lam + alpha * move) @ move <= fall / 2):
                alpha /= 2
                if alpha < least:
                    return None
            lam = lam + alpha * move
    return None


def _descent(hessian: np.ndarray, left: np.ndarray, ridge: Wide) -> tuple[np.ndarray | None, Wide]:
    """A Newton step that points downhill, with as small a relative ridge as that takes."""
    ridge = ridge / 10 if ridge > 1e-16 else Wide(0)
    while ridge < 1e3:
        try:
            move = solve(hessian + ridge * np.diag(np.diag(hessian)), -left)
            if np.isfinite(move).all() and left @ move <= 0:
                return move, ridge
        except Unsolvable:
            pass
        ridge = max(100 * ridge, Wide(1e-15))
    return None, ridge


def is_infeasible(problem: Projection) -> bool:
    """Whether no z in C has Vᵀz = β, clearly, by a linear program."""
    v, beta = problem.vectors.astype(np.float64), problem.target.astype(np.float64)
    scale = np.abs(v).sum() + np.abs(beta).sum()
    d, r = v.shape
    cost = np.concatenate([np.zeros(d), np.ones(2 * r)])
    equations = np.hstack([v.T, np.eye(r), -np.eye(r)])
    ends = [(float(problem.geometry.lo), float(problem.geometry.hi))] * d + [(0, None)] * (2 * r)
    found = linprog(cost, A_eq=equations, b_eq=beta, bounds=ends)
    return found.status == 0 and found.fun > 1e-5 * scale
