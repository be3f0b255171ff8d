"""γ = 0 and a quadratic f where the coordinates of C are coupled: the point on a given face of C, exactly.

On the face whose coordinates F are off their bounds, ∇f is to be constant along it: one solve with H_FF along the
directions that keep the sums. A face that fails is replaced by that of a projected gradient step, a semismooth Newton
method.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.linearization import linearize_on_free_set
from implicit_bregman.objective import Objective
from implicit_bregman.solvers.exact.active_set import at_point
from implicit_bregman.solvers.exact.result import ExactResult
from implicit_bregman.tangent import TangentSystem

#: How often a face is replaced.
_CORRECTIONS = 20
#: How far an exact point may violate the conditions, and the residual of its linear system.
_EXACT, _LEFT = 1e-10, 1e-14


def solve_on_face(
    objective: Objective, value: Float[Tensor, "batch d"], tol: float, corrections: int = _CORRECTIONS
) -> ExactResult:
    """The critical points on the faces that projected gradient steps from z = `value` end on, tested in float64.

    Args:
        objective: F with γ = 0 and a quadratic f.
        value: the iterates.
        tol: bound on the residual. A multiplier or a distance to a bound below ten times this is called degenerate.
        corrections: how often a face may be replaced.
    """
    tol, energy, geometry = min(tol, _EXACT), objective.energy.double(), objective.geometry
    z, count = value.double(), 0
    length = energy.hessian(z).gradient_step or 1.0
    gradient = energy.gradient(z)
    done = torch.zeros_like(z[:, 0], dtype=torch.bool)
    while True:
        face = geometry.project(z - length * gradient)
        lo, hi = geometry.bounds(torch.float64)
        free = (face > lo) & (face < hi)
        step, solved = _along_face(objective, face, energy.gradient(face), free)
        new = torch.where(free, face + step, face)
        there = energy.gradient(new)
        residual, degenerate = _judged(objective, new, there, free, tol)
        accepted = solved & (residual <= tol)
        count += 1
        z = torch.where(done[:, None], z, new)
        gradient = torch.where(done[:, None], gradient, there)
        if count == 1:
            kept_free, kept_residual, kept_degenerate = free, residual, degenerate
        else:
            kept_free = torch.where(done[:, None], kept_free, free)
            kept_residual = torch.where(done, kept_residual, residual)
            kept_degenerate = torch.where(done, kept_degenerate, degenerate)
        done = done | accepted
        if count > corrections or bool(done.all()):
            break
    scale = objective.scale(energy.terms(gradient))
    found = at_point(objective, z, kept_free, gradient, scale, kept_residual, done, kept_degenerate & done)
    found.steps.mul_(count)
    found.tries.mul_(2 * count + 1)
    return found


def _along_face(
    objective: Objective, z: Tensor, gradient: Tensor, free: Bool[Tensor, "batch d"]
) -> tuple[Tensor, Bool[Tensor, " batch"]]:
    """v on the face with ∇f(z + v) constant along it."""
    hessian, coupling = objective.energy.hessian(z), objective.geometry.coupling
    assert coupling is not None
    if not hessian.factorizes:
        hessian = objective.energy.double().hessian(z)
    system = linearize_on_free_set(hessian, free, torch.float64, coupling=coupling)
    found = TangentSystem(system, coupling, adjoint=False).solve(-gradient, _LEFT, 10 * z.shape[-1] + 100)
    return found.value, torch.isfinite(found.value.sum(-1)) & found.positive


def _judged(
    objective: Objective, z: Tensor, gradient: Tensor, free: Bool[Tensor, "batch d"], tol: float
) -> tuple[Tensor, Bool[Tensor, " batch"]]:
    """The residual, and whether a condition holds with little margin, (B,)."""
    geometry, coupling = objective.geometry, objective.geometry.coupling
    assert coupling is not None
    lo, hi = geometry.bounds(objective.energy.dtype)
    scale = objective.scale(objective.energy.terms(gradient))
    total = coupling.centred(gradient, free.to(z.dtype))
    outside = torch.maximum(lo - z, z - hi).amax(-1).clamp_min(0) / objective.unit
    residual = torch.maximum(objective.residual(z.clamp(lo, hi), total, scale), outside)
    gap, margin = torch.minimum(z - lo, hi - z), 10 * tol
    thin = torch.where(free, gap <= margin * objective.unit, total.abs() <= margin * scale)
    return residual, thin.any(-1)
