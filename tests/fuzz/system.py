"""One sample as the judge sees it: how many critical points it has, the true one, its gradient and its error bars."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tests.fuzz import truth as solve_by
from tests.fuzz.cases import Case
from tests.fuzz.geometries import Geometry, Wide, geometry
from tests.fuzz.truth import EPS, Projection, Quadratic, Unsolvable

DEFAULT_TOL = {"float32": 1e-6, "float64": 1e-11}
#: What "a small multiple of tol" is.
SLACK = 5.0
#: λ_min of M, scaled to a unit diagonal, up to which M counts as singular.
SINGULAR = 1e-11


def wide(array: np.ndarray) -> np.ndarray:
    return np.asarray(array).astype(Wide)


@dataclass(frozen=True)
class Matrices:
    """What all samples share."""

    case: Case
    matrix: np.ndarray
    vectors: np.ndarray | None
    symmetric: bool

    @classmethod
    def of(cls, case: Case, answer) -> Matrices:
        if answer.vectors is not None:
            v = wide(answer.vectors)
            return cls(case, v @ v.T, v, True)
        m = -wide(answer.weight)
        return cls(case, m, None, bool((m == m.T).all()))

    @cached_property
    def shape(self) -> Geometry:
        return geometry(self.case.geometry, self.case.box)

    @property
    def eps(self) -> float:
        return float(np.finfo(self.case.dtype).eps)

    @cached_property
    def least(self) -> float:
        """λ_min of M + γσI, scaled."""
        if self.vectors is not None and self.case.gamma:
            return 1.0
        return solve_by.least_eigenvalue(self.matrix, self.case.gamma * self.shape.sigma)

    @property
    def count(self) -> str:
        """How many critical points: "one", "singular" (convex, perhaps many), "projection" (low rank), "several"."""
        if self.vectors is not None and not self.case.gamma:
            return "projection"
        if self.least > SINGULAR or self.case.one:
            return "one"
        if self.symmetric and self.least >= -8 * len(self.matrix) * self.eps:
            return "singular" if not self.case.gamma else "one"
        return "several"

    @property
    def ill(self) -> bool:
        """Whether the matrix, as rounded, is hard to tell from a singular one in the precision of the case."""
        return self.count == "one" and not self.case.one and self.least < 8 * len(self.matrix) * self.eps

    @cached_property
    def definite(self) -> bool:
        return self.symmetric and solve_by.least_eigenvalue(self.matrix) > SINGULAR


@dataclass(frozen=True)
class Truth:
    """The critical point of one sample.

    Attributes:
        z, y: the point and its dual (for γ = 0 the dual is that of no interest and is 0).
        lam: λ of a projection.
        soft: ε of a softened projection.
    """

    z: np.ndarray
    y: np.ndarray
    lam: np.ndarray | None = None
    soft: Wide | float = 0.0
    infeasible: bool = False


class Sample:
    """One row of a case, with the library's answer to it."""

    def __init__(self, shared: Matrices, answer, row: int) -> None:
        self.shared, self.case, self.shape, self.row = shared, shared.case, shared.shape, row
        self.gamma = Wide(self.case.gamma)
        self.tol = self.case.settings.get("tol", DEFAULT_TOL[self.case.dtype])
        if shared.vectors is None:
            offset = wide(answer.offset[row])
        else:
            self.target = wide(answer.target[row])
            offset = shared.vectors @ self.target
        self.problem = Quadratic(shared.matrix, offset, self.shape, self.gamma)
        self.softening = answer.softening
        self.z, self.dual = (None, None) if answer.value is None else (wide(answer.value[row]), wide(answer.dual[row]))
        self.g = wide(self.case.cotangent[row])

    @property
    def start(self) -> np.ndarray | None:
        """y⁰; None where it is not known."""
        if self.case.start == "warm":
            return None
        if self.case.initial is None:
            return np.zeros(self.case.d, dtype=Wide)
        return self.shape.inverse(wide(self.case.initial[self.row]))

    @cached_property
    def cut(self) -> np.ndarray:
        """Where the largest number stands for a dual that overflows: the value lies beyond ρ of it."""
        largest = float(np.finfo(self.case.dtype).max)
        beyond = (self.z - self.shape.rho(self.dual)) * np.sign(self.dual) >= 0
        return (np.abs(self.dual) >= largest * (1 - 2 * self.shared.eps)) & beyond

    @cached_property
    def y(self) -> np.ndarray | None:
        """The dual that goes with the value: the library's, or ρ⁻¹(z) where that overflows the case's precision."""
        if self.dual is None or not self.gamma:
            return self.dual
        with np.errstate(all="ignore"):
            return np.where(self.cut, self.shape.inverse(self.z), self.dual) if self.cut.any() else self.dual

    # --- optimality -------------------------------------------------------------------------------------------------

    def violation(self, z: np.ndarray, y: np.ndarray, eps: float) -> np.ndarray:
        """Per coordinate: min(|∇f + γy| relative to its own scale, distance to the end it pushes to)."""
        problem = self.problem
        field = problem.field(z, y)
        size = np.abs(z) + self.shape.slope(y) * np.abs(y) if self.gamma else np.abs(z)
        if self.gamma and self.case.box is not None:
            # (the ends of a box are added to z, and have their rounding)
            size = size + max(abs(end) for end in self.case.box)
        noise = 16 * eps * (np.abs(problem.matrix) @ size + np.abs(problem.offset) + self.gamma * np.abs(y))
        if self.gamma and self.dual is not None and self.cut.any():
            # (there γy is computed from z, and has its rounding)
            noise = noise + np.where(self.cut, 16 * eps * self.gamma * np.abs(z) / self.shape.slope(y), 0)
        if self.shared.count == "singular":
            # (a matrix that rounding has made indefinite stands for the nearest one that is not)
            size = np.linalg.norm(problem.matrix.astype(np.float64), 2) * np.linalg.norm(z.astype(np.float64))
            noise = noise + 8 * eps * size
        scaled = np.maximum(np.abs(field) - noise, 0) / (1 + problem.terms(z))
        way = np.where(field < 0, self.shape.hi - z, z - self.shape.lo)
        return np.minimum(scaled, np.maximum(way, 0) / (1 + np.abs(z)))

    # --- the true point ---------------------------------------------------------------------------------------------

    @cached_property
    def truth(self) -> Truth | None:
        """The one critical point, or the one that the library's answer is close to; None where it is not known."""
        with np.errstate(all="ignore"):
            found = self._found()
        if found is None or not (np.isfinite(found.z).all() and np.isfinite(found.y).all()):
            return None
        if self.shared.count != "projection" and not (self.violation(found.z, found.y, 1e3 * EPS) <= 1e-15).all():
            return None
        return found

    def _found(self) -> Truth | None:
        count, zero = self.shared.count, np.zeros_like(self.problem.offset)
        if count == "projection":
            return self._projected()
        if self.gamma and self.shared.vectors is not None:
            lam = solve_by.solve_projection(Projection(self.shared.vectors, self.target, zero, self.shape, self.gamma))
            y = None if lam is None else self.shared.vectors @ lam
            return None if y is None else Truth(self.shape.rho(y), y)
        if count == "several":
            return self._nearby()
        if self.gamma:
            guesses = [zero, *([self.y] if self.y is not None and np.isfinite(self.y).all() else [])]
            y = solve_by.solve_smooth(self.problem, self.shared.definite, guesses)
            return None if y is None else Truth(self.shape.rho(y), y)
        z = (solve_by.solve_box if count == "one" else solve_by.solve_singular_box)(self.problem)
        return None if z is None else Truth(z, zero)

    def _projected(self) -> Truth | None:
        if self.start is None:
            return None
        v, soft = self.shared.vectors, Wide(0)
        hard = Projection(v, self.target, self.start, self.shape, soft)
        lam = solve_by.solve_projection(hard)
        infeasible = lam is None
        if infeasible:
            if not solve_by.is_infeasible(hard):
                return None
            soft = Wide(self.softening) * (v * v).sum() / v.shape[1]
            lam = solve_by.solve_projection(Projection(v, self.target, self.start, self.shape, soft))
            if lam is None:
                return None
        y = self.start + v @ lam
        return Truth(self.shape.rho(y), y, lam, soft, infeasible)

    def _nearby(self) -> Truth | None:
        """The critical point next to the library's."""
        if self.z is None or not np.isfinite(self.z).all():
            return None
        if self.gamma:
            y = solve_by._newton(self.problem, self.y, lambda *_: False)
            found = None if y is None else Truth(self.shape.rho(y), y)
        else:
            field = self.problem.field(self.z, self.y)
            near = SLACK * self.tol * (1 + np.abs(self.z))
            side = np.where((self.shape.hi - self.z <= near) & (field < 0), 1, 0)
            side = np.where((self.z - self.shape.lo <= near) & (field > 0), -1, side)
            z = solve_by.on_active_set(self.problem, side)
            found = None if z is None else Truth(z, np.zeros_like(z))
        if found is None or (np.abs(found.z - self.z) > 0.01 * (1 + np.abs(self.z))).any():
            return None
        return found

    @cached_property
    def representable(self) -> bool:
        """Whether nothing that a solver has to compute at the solution overflows the precision of the case."""
        if self.truth is None:
            return False
        problem, point, limit = self.problem, self.truth, 1e-4 * float(np.finfo(self.case.dtype).max)
        sizes = [problem.offset, np.abs(problem.matrix) @ np.abs(point.z), point.z, point.y, problem.matrix]
        return all(float(np.abs(size).max()) < limit for size in sizes)

    # --- error bars -------------------------------------------------------------------------------------------------

    @cached_property
    def near_end(self) -> np.ndarray:
        """Coordinates that the tolerance lets be anywhere between their end and themselves."""
        return self.shape.gap(self.truth.z) <= 2 * SLACK * self.tol * (1 + np.abs(self.truth.z))

    @cached_property
    def bar(self) -> np.ndarray | None:
        """How far from the truth a point may be that is optimal to SLACK·tol; None where that says nothing."""
        with np.errstate(all="ignore"):
            try:
                bar = self._projection_bar() if self.shared.count == "projection" else self._quadratic_bar()
            except Unsolvable:
                return None
        return bar if bar is not None and np.isfinite(bar).all() else None

    def _quadratic_bar(self) -> np.ndarray:
        z, m, eps, end = self.truth.z, self.problem.matrix, self.shared.eps, self.near_end
        bar = 2 * SLACK * self.tol * (1 + np.abs(z))
        free = ~end
        if free.any():
            curvature = self.gamma / self.shape.slope(self.truth.y) if self.gamma else np.zeros_like(z)
            reduced = (m + np.diag(curvature))[np.ix_(free, free)]
            inverse = np.abs(solve_by.solve(reduced, np.eye(int(free.sum()), dtype=Wide)))
            allowed = SLACK * self.tol * (1 + self.problem.terms(z)) + 64 * eps * (
                np.abs(m) @ np.abs(z) + np.abs(self.problem.offset) + self.gamma * np.abs(self.truth.y)
            )
            allowed = allowed[free] + np.abs(m[np.ix_(free, end)]) @ bar[end]
            bar[free] = 3 * inverse @ allowed
        return bar + 64 * eps * (np.abs(z) + self._dual_rounding())

    def _dual_rounding(self) -> np.ndarray:
        return self.shape.slope(self.truth.y) * np.abs(self.truth.y) if self.gamma else Wide(0)

    def _projection_bar(self) -> np.ndarray:
        point, v = self.truth, self.shared.vectors
        slope = self.shape.slope(point.y)
        back = np.abs(np.linalg.pinv(v.astype(np.float64).T)).astype(Wide)
        scale = 1 + np.abs(self.problem.matrix @ point.z) + np.abs(self.problem.offset)
        left = SLACK * self.tol * (back.T @ scale)
        left = left + 64 * self.shared.eps * (np.abs(v).T @ (np.abs(point.z) + slope * np.abs(point.y)))
        inverse = np.abs(self._gram_solve(np.eye(v.shape[1], dtype=Wide)))
        bar = 3 * slope * (np.abs(v) @ (inverse @ left))
        # y = y⁰ + Vλ holds to the tolerance and to rounding, relative to its terms.
        stationary = SLACK * self.tol * slope * (np.abs(self.start) + np.abs(v) @ np.abs(point.lam))
        return bar + stationary + 64 * self.shared.eps * (np.abs(point.z) + slope * np.abs(point.y))

    def _gram_solve(self, rhs: np.ndarray) -> np.ndarray:
        v, slope = self.shared.vectors, self.shape.slope(self.truth.y)
        return solve_by.solve((v.T * slope) @ v + self.truth.soft * np.eye(v.shape[1], dtype=Wide), rhs)

    # --- derivatives ------------------------------------------------------------------------------------------------

    @cached_property
    def strict(self) -> bool:
        """Strict complementarity with margin: each coordinate is clearly inside, or clearly pushed to its end."""
        if self.bar is None:
            return False
        if self.gamma or self.shared.count == "projection":
            return self.shape.legendre or not (np.abs(np.abs(self.truth.y) - np.pi / 2) < 1e-2).any()
        z, m = self.truth.z, self.problem.matrix
        scale = 1 + self.problem.terms(z)
        push = np.abs(self.problem.field(z, self.truth.y))
        inside = self.shape.gap(z) > 20 * self.bar + 1e-4 * (1 + np.abs(z))
        pushed = (push > (1e-4 + 20 * self.tol) * scale + 20 * np.abs(m) @ self.bar) & (
            self.shape.gap(z) <= 1e3 * EPS * (1 + np.abs(z))
        )
        return bool((inside | pushed).all())

    @cached_property
    def free(self) -> np.ndarray:
        """γ = 0: the coordinates inside C."""
        return self.shape.gap(self.truth.z) > 1e3 * EPS * (1 + np.abs(self.truth.z))

    def adjoint(self, y: np.ndarray) -> np.ndarray:
        """v = dL/dc (for a projection u = dL/dβ) by the implicit function theorem, linearized at the dual y."""
        m, g = self.problem.matrix, self.g
        slope = self.shape.slope(y)
        if self.shared.count == "projection":
            v = self.shared.vectors
            return solve_by.solve(
                (v.T * slope) @ v + self.truth.soft * np.eye(v.shape[1], dtype=Wide), v.T @ (slope * g)
            )
        if self.gamma:
            return solve_by.solve(self.gamma * np.eye(len(g), dtype=Wide) + slope[:, None] * m.T, slope * g)
        v = np.zeros_like(g)
        if self.free.any():
            v[self.free] = solve_by.solve(m[np.ix_(self.free, self.free)].T, g[self.free])
        return v

    @cached_property
    def condition(self) -> float:
        """Of the equilibrated adjoint system."""
        m = self.problem.matrix
        if self.shared.count == "projection":
            slope = self.shape.slope(self.truth.y)
            system = (self.shared.vectors.T * slope) @ self.shared.vectors
        elif self.gamma:
            system = self.gamma * np.eye(len(m), dtype=Wide) + self.shape.slope(self.truth.y)[:, None] * m.T
        else:
            system = m[np.ix_(self.free, self.free)]
        if not len(system):
            return 1.0
        try:
            return float(np.linalg.cond(solve_by.equilibrated(system)[0]))
        except (Unsolvable, np.linalg.LinAlgError):
            return float("inf")
