"""γ > 0: the direction of a Newton step in the dual, by conjugate gradients or one factorization per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.linearization import Linearization
from implicit_bregman.objective import Objective
from implicit_bregman.solvers.exact.dual_state import Budget, Course, Iterate
from implicit_bregman.tangent import TangentSystem
from implicit_bregman.tensors import rows_where

#: Relative residual of the linear systems: loose far from the solution (Eisenstat and Walker), and at the end,
_LOOSE, _TIGHT = 0.1, 1e-4
#: and where a looser one has led nowhere.
_EXACT = 1e-10
#: Products in one system without symmetry, which is no better solved by many more.
_MOST_OF_GMRES = 150
#: The least D that is divided by.
_LEAST_SLOPE = 1e-290
#: κD below which Δw follows from the equation of its own coordinate.
_FLAT = 0.1


def newton_move(
    objective: Objective,
    energy: BoundEnergy,
    at: Iterate,
    slope: Tensor,
    course: Course,
    target: float,
    budget: Budget,
) -> tuple[Tensor, Tensor]:
    """κ and Δw, with `slope` for D."""
    gamma = objective.regularization
    # What factorizes is the same everywhere, and its products are made in either precision.
    hessian = (energy if energy.factored is None else objective.energy).hessian(at.value)
    coupling = objective.geometry.coupling
    system = Linearization(hessian, slope, torch.full_like(slope, gamma), coupling=coupling)
    curvature = _own_curvature(system, at.error)
    v = _direction(objective, system, at, curvature, course, target, budget)
    weight = (curvature / gamma).clamp_max(torch.finfo(v.dtype).max ** 0.5)
    product = hessian.product(v)
    # Where D is small v says little of Δy; the equation of the coordinate itself does: γΔy = −E − Hv.
    steep = weight * slope > _FLAT
    plain, flat = v / torch.where(steep, slope, 1.0), -(at.error + product) / gamma
    if coupling is not None:
        # (both up to a number in each block: the one with which Σ sΔy = 0)
        flat = coupling.centred(flat, slope)
    return weight, torch.where(steep, plain, flat).addcmul_(weight, v)


def _own_curvature(system: Linearization, error: Tensor) -> Tensor:
    """H_jj, where it is known; else what stands for all of them, the curvature along DE. Not negative."""
    hessian, entries = system.hessian, system.hessian.diagonal()
    if entries is not None:
        return entries.to(error.dtype).clamp_min(0.0).reshape(-1, entries.shape[-1])
    along = system.slope * error
    along = along / along.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(error.dtype).tiny)
    curvature = torch.linalg.vecdot(along, hessian.product(along)) / torch.linalg.vecdot(along, along)
    return curvature.nan_to_num(0.0).clamp_min(0.0)[:, None]


def _direction(
    objective: Objective,
    system: Linearization,
    at: Iterate,
    curvature: Tensor,
    course: Course,
    target: float,
    budget: Budget,
) -> Tensor:
    """v, by conjugate gradients, or by one factorization per sample where that is faster or the others fail."""
    (batch, width), hessian, costs = at.error.shape, system.hessian, system.hessian.costs
    factorizes = can_factorize(objective)
    few = batch * width**3 <= costs.dual_work
    if hessian.factorizes and system.coupling is None and (few or not (objective.unique and hessian.symmetric)):
        return _factorized(system, at.error, torch.arange(batch, device=at.error.device), objective.unique)
    # As exact as the progress of the last step promises this one to be, and no more than the goal asks for.
    goal = (0.3 * target / at.size).clamp(1e-7, _LOOSE)
    forcing = (at.size / course.before).square().nan_to_num(_LOOSE).clamp(_TIGHT, _LOOSE)
    forcing = torch.where(course.exact, _EXACT, torch.maximum(forcing, goal))
    most = min(budget.left, costs.dual_patience + width // costs.dual_products) if factorizes else budget.left
    if system.coupling is not None:
        step = TangentSystem(system, system.coupling, adjoint=False).solve(-at.error, forcing, max(1, budget.left))
        budget.left -= int(step.iterations.max())
        v = step.value.to(at.error.dtype)
        return v if objective.unique else torch.where(step.positive[:, None], v, torch.nan)
    if not system.hessian.factorizes and not system.hessian.symmetric:
        step = system.forward_step(-at.error, forcing.to(at.error.dtype), min(most, _MOST_OF_GMRES))
        budget.left -= int(step.iterations.max())
        return system.slope * step.value
    found = system.newton_step(at.error, curvature, forcing, most)
    budget.left -= int(found.iterations.max())
    if not objective.unique:
        # Negative curvature: not near a minimum, and so not certain to be near MM's limit.
        return torch.where(found.positive[:, None], found.value, torch.nan)
    missing = rows_where(~found.converged)
    if len(missing) == 0 or not factorizes:
        return found.value
    return found.value.index_copy(0, missing, _factorized(system, at.error, missing, objective.unique))


def can_factorize(objective: Objective) -> bool:
    """Whether one factorization per sample is possible."""
    energy = objective.energy.factored if objective.geometry.coupling is None else None
    return energy is not None and energy.operator.size <= energy.costs.dual_width


def _factorized(system: Linearization, error: Tensor, rows: Tensor, convex: bool) -> Tensor:
    """v with (γD⁻¹ + H) v = −E for some of the samples, after scaling the diagonal to 1, in float64."""
    hessian, entries = system.hessian, system.hessian.diagonal()
    assert entries is not None  # what factorizes has them
    ratio = system.shift[rows].double() / system.slope[rows].double().clamp_min(_LEAST_SLOPE)
    root = (ratio + entries.double().clamp_min(0.0)).rsqrt()
    right, systems = -root * error[rows].double(), hessian.systems(ratio * root * root, root, root)
    if not hessian.symmetric:
        return (root * systems.solve(right)[0]).to(error.dtype)
    # (W was rounded, and the diagonal is 1)
    jitter = hessian.size * torch.finfo(hessian.dtype).eps if convex else None
    return (root * systems.solve_symmetric(right, jitter)).to(error.dtype)
