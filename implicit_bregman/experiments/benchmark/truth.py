"""A quadratic cell's tensors with the float64 truth about its rounded data: z and dL/dW for L = ⟨G, z⟩, G fixed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.experiments.benchmark.cells import QuadraticCell
from implicit_bregman.experiments.benchmark.prepared import Prepared, Value
from implicit_bregman.experiments.reference.optimality import Conditions, on_host
from implicit_bregman.experiments.reference.oracle import EXACT, reference_gradient, reference_solution, weight_gradient
from implicit_bregman.experiments.reference.problems import Problem
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.solvers import Solver

_CHUNK = 64  # samples whose d × d systems are held at once


@dataclass(frozen=True, eq=False)
class PreparedQuadratic(Prepared):
    """A cell of one dense matrix W, the one parameter; every entry of it is a parameter of its own.

    Attributes:
        offset: c, `(B, d)`; samples whose limit the reference does not know are left out.
        geometry: φ.
        regularization: γ.
        step: MM's automatic τ, or where φ has none (σ = 0) the largest one at which MM converges near the
            truth; NaN where W is not symmetric, for which there is no MM. Peers are given it; its computation
            is not charged to them.
    """

    cell: QuadraticCell
    offset: Float[Tensor, "batch d"]
    geometry: MirrorMap
    regularization: float
    step: float

    @property
    def weight(self) -> Float[Tensor, "d d"]:
        """W, with gradient."""
        return self.parameters[0]

    def ours(self, tol: float | None = None, solver: str | Solver = "auto") -> Value:
        """This library: factorizations are inside, as W changes at every training step.

        Args:
            tol: Tolerance of the default solver and of the adjoint; None: the defaults, and `solver`.
            solver: The solver.
        """
        if tol is not None:
            solver = ib.solvers.Auto(tol=tol)
        adjoint = ib.adjoints.Implicit(tol=tol)

        def value() -> Tensor:
            energy = ib.QuadraticEnergy.from_matrices(self.weight)
            return ib.find_critical_point(
                energy, self.geometry, self.offset, None, self.regularization, solver, adjoint
            ).value

        return value

    @property
    def allowed_bytes(self) -> int:
        """4 (6 B d + B n + 2 d²), twice that in float64; the input is c itself: n = d."""
        batch, dim = self.offset.shape
        return self.offset.element_size() * (6 * batch * dim + batch * dim + 2 * dim * dim)


def prepare(cell: QuadraticCell, seed: int = 0) -> PreparedQuadratic:
    """Draw a cell's problem, round it and find its truth.

    Raises:
        RuntimeError: If the optimality conditions of a reference do not hold.
    """
    problem = cell.problem(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    cotangent = torch.randn(problem.offset.shape, generator=generator, dtype=torch.float64).to(problem.dtype)
    phi, gamma = problem.geometry, problem.regularization
    if problem.kind == "convex" and gamma == 0 and problem.solution is not None:
        value, adjoint = designed_truth(problem, cotangent)
        offset, method, excluded = problem.offset, "designed active set", 0.0
    else:
        found = reference_solution(problem.weight, problem.offset, phi, gamma)
        keep = found.reached
        if not bool(keep.any()):
            raise RuntimeError(f"cell {cell.name!r}: the reference knows the limit of no sample")
        offset, cotangent, value = problem.offset[keep], cotangent[keep], found.value[keep]
        parts = zip(offset.split(_CHUNK), value.split(_CHUNK), found.active[keep].split(_CHUNK), strict=True)
        adjoint = torch.cat(
            [
                reference_gradient(problem.weight, c, z, active, phi, gamma, g)
                for (c, z, active), g in zip(parts, cotangent.split(_CHUNK), strict=True)
            ]
        )
        method, excluded = found.method, found.excluded
    weight = problem.weight.clone().requires_grad_()
    gradient = weight_gradient(adjoint, value)
    step = math.nan if problem.kind == "general" else problem.step or _local_step(problem, value)
    return PreparedQuadratic(cell, (weight,), cotangent, value, (gradient,), method, excluded, offset, phi, gamma, step)


def designed_truth(
    problem: Problem, cotangent: Float[Tensor, "batch d"]
) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch d"]]:
    """z and v = dL/dc of a convex problem with γ = 0, on the active set it was built with.

    With K = (−W)⁻¹ the solution is K(c + μ), the multipliers μ on the active set A from a system of its size:
    one factorization of −W serves the batch. The optimality conditions are checked on the rounded data.

    Args:
        problem: The problem, in any precision.
        cotangent: G = dL/dz.

    Raises:
        ValueError: If the problem is not convex with γ = 0 and a designed solution.
        RuntimeError: If its conditions do not hold: rounding has changed the active set.
    """
    if problem.kind != "convex" or problem.regularization != 0 or problem.solution is None or problem.active is None:
        raise ValueError(f"problem {problem.name!r} has no designed solution with γ = 0, use reference_solution")
    conditions = Conditions.checked(problem.weight, problem.offset, problem.geometry, 0.0)
    factor = torch.linalg.cholesky(-conditions.weight)
    inverse = torch.cholesky_inverse(factor)
    low, high = problem.geometry.bounds(torch.float64)
    upper = problem.active & (problem.solution > 0.5 * (max(low, -1e9) + min(high, 1e9)))
    fixed = torch.zeros_like(conditions.offset).masked_fill(problem.active & ~upper, low).masked_fill(upper, high)
    z = _constrained(inverse, conditions.offset, problem.active, fixed)
    nothing = torch.zeros_like(fixed)
    for _ in range(2):
        force = conditions.force(z).masked_fill(problem.active, 0.0)
        z = z + _constrained(inverse, force, problem.active, nothing)
    worst = float(conditions.residual(z, z).max())
    if not worst <= EXACT:
        raise RuntimeError(
            f"problem {problem.name!r}: the designed active set leaves the relative residual {worst:.2g}, more than "
            f"{EXACT:g}; rounding has changed it, take a smaller condition"
        )
    g = on_host(cotangent)
    v = _constrained(inverse, g, problem.active, nothing)
    v = v + _constrained(inverse, (g + v @ conditions.weight).masked_fill(problem.active, 0.0), problem.active, nothing)
    return z, v


def _constrained(
    inverse: Float[Tensor, "d d"],
    force: Float[Tensor, "batch d"],
    active: Bool[Tensor, "batch d"],
    fixed: Float[Tensor, "batch d"],
) -> Float[Tensor, "batch d"]:
    """x with x = `fixed` on the active set and (−W x)_j = `force`_j on the rest, given (−W)⁻¹."""
    found = force @ inverse
    for row, (mask, target) in enumerate(zip(active, fixed, strict=True)):
        index = mask.nonzero().squeeze(-1)
        if len(index):
            block = inverse[:, index]
            multiplier = torch.linalg.solve(block[index], target[index] - found[row, index])
            found[row] += block @ multiplier
            found[row, index] = target[index]
    return found


def _local_step(problem: Problem, value: Tensor) -> float:
    """τ = min(1, φ''/λ_max(−W)) with the smallest φ'' at the truth: for geometries without σ > 0."""
    phi = problem.geometry
    inside = value[phi.is_interior(value)]
    curvature = float(phi.curvature(phi.inverse_activation(inside)).min())
    largest = float(torch.linalg.eigvalsh(-on_host(problem.weight)).max())
    return min(1.0, curvature / largest)
