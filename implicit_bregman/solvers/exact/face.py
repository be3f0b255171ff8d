"""γ = 0 and a quadratic f where the coordinates of C are coupled: the point on a given face of C, exactly.

On the face whose coordinates F are off their bounds, ∇f is to be constant along it: one solve with H_FF along the
directions that keep the sums. A face that fails is replaced by that of a projected gradient step, a semismooth Newton
method.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.linearization import linearize_on_free_set
from implicit_bregman.objective import Objective
from implicit_bregman.solvers.exact.active_set import at_point, corrected
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
    tol, energy, z = min(tol, _EXACT), objective.energy.double(), value.double()
    length = energy.hessian(z).gradient_step or 1.0
    found = _point_on(objective, torch.sub(z, energy.gradient(z), alpha=length), tol)

    def again(rows: Int[Tensor, " wrong"], target: Float[Tensor, "wrong d"]) -> ExactResult:
        return _point_on(objective.select(rows), target, tol)

    return corrected(found, again, length, corrections)


def _point_on(objective: Objective, target: Float[Tensor, "batch d"], tol: float) -> ExactResult:
    """The critical point on the face that Π_C(`target`) is on, and whether the conditions hold there."""
    energy, (lo, hi) = objective.energy.double(), objective.geometry.bounds(torch.float64)
    face = objective.geometry.project(target)
    free = (face > lo) & (face < hi)
    step, solved = _along_face(objective, face, energy.gradient(face), free)
    z = torch.where(free, face + step, face)
    gradient = energy.gradient(z)
    residual, degenerate = _judged(objective, z, gradient, free, tol)
    accepted = solved & (residual <= tol)
    scale = objective.scale(energy.terms(gradient))
    found = at_point(objective, z, free, gradient, scale, residual, accepted, degenerate & accepted)
    return replace(found, tries=2 * found.tries)


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
    scale = objective.scale(objective.energy.double().terms(gradient))
    total = coupling.centred(gradient, free.to(z.dtype))
    outside = torch.maximum(lo - z, z - hi).amax(-1).clamp_min(0) / objective.unit
    residual = torch.maximum(objective.residual(z.clamp(lo, hi), total, scale), outside)
    gap, margin = torch.minimum(z - lo, hi - z), 10 * tol
    thin = torch.where(free, gap <= margin * objective.unit, total.abs() <= margin * scale)
    return residual, thin.any(-1)
