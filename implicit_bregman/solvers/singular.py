"""γ = 0 and a quadratic f that is convex, but not strictly: a minimiser, whether it is the only one, and MM's limit.

All minimisers share Hz, hence the multipliers g = Hz − c. Let N be the coordinates that no multiplier holds at a bound:
the minimisers are the z ∈ C with these coordinates at their bounds and with the same H_NN z_N. Where H_NN is definite
there is one. Else MM goes to the one that is nearest to z⁰ in the sense of D: every MM step adds to y an element of
range(H) and a multiple of g, and ⟨·, z⟩ of both is the same for all minimisers z, so that all iterates, and the limit,
have the Bregman projection onto the minimisers in common. It is found in the dual: y_N = y⁰_N + Qλ, where Q is an
orthonormal basis of range(H_NN), and Qᵀz_N is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.energy.bound import BoundQuadratic
from implicit_bregman.linalg.semidefinite import range_basis, same_sets, solve_definite
from implicit_bregman.objective import Objective
from implicit_bregman.solvers.finished import Finished
from implicit_bregman.solvers.interior_point import minimise_convex
from implicit_bregman.solvers.projection import nearest
from implicit_bregman.status import Status

#: The residual that is asked of the minimiser: where a set is wrong, the conditions may be violated by very little.
_EXACT = 1e-10
#: A multiplier or a distance to a bound below so many times this is no more than 0.
_MARGIN = 10
#: How far, relative to 1 + |z⁰|, a sample has run away that has not converged.
_FAR = torch.finfo(torch.float64).eps ** -0.5


@dataclass(frozen=True)
class _Problem:
    """The quadratic problem in float64, and what is the same for all steps.

    Attributes:
        objective: F.
        energy: f in float64.
        tol: what the conditions may be violated by.
        eps: the rounding error of W as it was given.
    """

    objective: Objective
    energy: BoundQuadratic
    tol: float
    eps: float

    @property
    def bounds(self) -> tuple[float, float]:
        return self.objective.geometry.bounds(self.objective.energy.dtype)

    def judge(self, z: Float[Tensor, "batch d"], gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The scale of ∇f, (B, d), and the residual, (B,)."""
        scale = self.objective.scale(self.energy.terms(gradient))
        return scale, self.objective.residual(z, gradient, scale, self.bounds)

    def at(self, found: Finished, z: Float[Tensor, "batch d"]) -> Finished:
        """What was found, with another point."""
        gradient = self.energy.gradient(z)
        scale, residual = self.judge(z, gradient)
        return replace(found, exact=z, gradient=gradient, scale=scale, residual=residual, tries=found.tries + 1)

    def select(self, rows: Tensor) -> _Problem:
        """The problem of some samples."""
        return replace(self, objective=self.objective.select(rows), energy=self.energy.select(rows))


def limit_of_mm(
    objective: Objective, dual: Float[Tensor, "batch d"], tol: float, max_steps: int
) -> tuple[Finished, Tensor]:
    """The minimiser of F that MM goes to from y⁰ = `dual`, and its `Status`, (B,).

    Args:
        objective: F with γ = 0 and a quadratic f that is convex.
        dual: y⁰.
        tol: bound on the residual; the solver tries for less.
        max_steps: bound on the number of steps to a minimiser.
    """
    start = objective.geometry.activation(dual)
    asked = min(tol, _EXACT)
    found = minimise_convex(objective, start, asked, max_steps)
    energy = objective.energy
    assert isinstance(energy, BoundQuadratic)
    problem = _Problem(objective, energy.double(), asked, torch.finfo(energy.dtype).eps)
    found = replace(found, residual=found.residual.double(), accepted=found.residual <= tol)
    free = ~_held(problem, found)
    found, definite = _sharpened(problem, found, free)
    near = _near_bounds(problem, found.exact)
    status = torch.where((near & free).any(-1), int(Status.DEGENERATE), int(Status.CONVERGED))
    several = found.accepted & ~definite
    found = _on_bounds(problem, replace(found, free=free), free)
    if bool(several.any()):
        found, one = _nearest_to_start(problem, found, dual, several)
        status = torch.where(several, torch.where(one, int(Status.DEGENERATE), int(Status.NONUNIQUE)), status)
    away = found.exact.abs().amax(-1) > _FAR * (1 + start.abs().amax(-1))
    unsolved = torch.where(found.steps < max_steps, int(Status.STALLED), int(Status.MAX_ITER))
    status = torch.where(found.accepted, status, torch.where(away, int(Status.DIVERGED), unsolved))
    return replace(found, residual=found.residual.to(energy.dtype), degenerate=status == Status.DEGENERATE), status


def _held(problem: _Problem, found: Finished) -> Bool[Tensor, "batch d"]:
    """The coordinates that a multiplier clearly holds at a bound."""
    lo, hi = problem.bounds
    z, g = found.exact, found.gradient
    strict = g.abs() > _MARGIN * problem.tol * found.scale
    return strict & (((z <= lo) & (g > 0)) | ((z >= hi) & (g < 0)))


def _near_bounds(problem: _Problem, z: Tensor) -> Bool[Tensor, "batch d"]:
    lo, hi = problem.bounds
    return torch.minimum(z - lo, hi - z) <= _MARGIN * problem.tol * problem.objective.size(z)


def _sharpened(
    problem: _Problem, found: Finished, free: Bool[Tensor, "batch d"]
) -> tuple[Finished, Bool[Tensor, " batch"]]:
    """The minimisers after one exact solve on their free sets, where these are definite, and where they are."""
    matrix = problem.energy.shared.matrix
    step, definite = solve_definite(matrix, free, -found.gradient, problem.eps)
    moved = problem.at(found, (found.exact + step).clamp(*problem.bounds))
    better = definite & found.accepted & (moved.residual <= found.residual)
    return moved.where(better, replace(found, tries=moved.tries)), definite


def _on_bounds(problem: _Problem, found: Finished, free: Tensor, dual: Tensor | None = None) -> Finished:
    """What was found with `value` and the duals of its point; the dual on the free set may be given."""
    geometry, dtype = problem.objective.geometry, problem.objective.energy.dtype
    saturated = geometry.saturated_dual(dtype)
    known = geometry.inverse_activation(found.exact).clamp(*saturated)
    if dual is not None:
        most = torch.finfo(dtype).max * torch.finfo(dtype).eps
        known = torch.where(free, dual.clamp(-most, most), known)
    value = found.exact.to(dtype).clamp(*geometry.bounds(dtype))
    return replace(found, value=value, dual=known.to(dtype), exact_dual=known)


def _nearest_to_start(
    problem: _Problem, found: Finished, start: Tensor, several: Bool[Tensor, " batch"]
) -> tuple[Finished, Bool[Tensor, " batch"]]:
    """The minimisers nearest to the start where there are several, and where there seems to be one after all.

    There is one where bounds that no multiplier holds leave no way off the minimiser: then no point inside C is a
    minimiser, and the projection does not exist, while the block of the coordinates off their bounds is definite.
    """
    one = torch.zeros_like(several)
    matrix, geometry = problem.energy.shared.matrix, problem.objective.geometry
    for rows, columns in same_sets(found.free, several.nonzero().squeeze(-1)):
        part, inside = problem.select(rows), found.select(rows)
        basis = range_basis(matrix[columns][:, columns], problem.eps)
        y = start[rows].double()
        target = inside.exact[:, columns] @ basis
        near, steps = nearest(geometry, basis, y[:, columns], target)
        y[:, columns] = near
        z = torch.where(inside.free, geometry.activation(y), inside.exact).clamp(*problem.bounds)
        moved = part.at(inside, z)
        good = moved.residual <= torch.maximum(inside.residual, moved.residual.new_tensor(problem.tol))
        moved = _on_bounds(part, replace(moved, steps=moved.steps + steps), inside.free, y)
        found = found.replace_rows(rows, moved.where(good, replace(inside, steps=moved.steps)))
        loose = inside.free & ~_near_bounds(part, inside.exact)
        one = one.index_copy(0, rows, ~good & solve_definite(matrix, loose, inside.gradient, problem.eps)[1])
    return found, one
