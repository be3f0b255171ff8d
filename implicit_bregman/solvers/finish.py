"""Exact finishing of an iterate: the KKT polish (γ = 0) and Newton in the dual (γ > 0), in float64.

Both need a quadratic f, whose Hessian all samples share. What they return has been tested, so that a wrong guess
costs time and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from implicit_bregman.energy.base import BoundEnergy
from implicit_bregman.linalg.chunks import chunks
from implicit_bregman.linalg.masked import solve_on_free_set
from implicit_bregman.linearization import Linearization
from implicit_bregman.objective import Objective, Point, RowsOfTensors

#: How often the active set of a problem with one critical point is corrected within one polish.
_CORRECTIONS = 8
#: How far a polished point may violate the KKT conditions.
_EXACT = 1e-10
#: Newton steps made before an iterate is given up.
_NEWTON_STEPS = 12


@dataclass(frozen=True)
class Finished(RowsOfTensors):
    """What finishing found, one row per sample.

    Attributes:
        value, dual: z and y, (B, d). An active coordinate sits on the float next to its bound inside C; its dual
            is finite and saturated.
        exact: the float64 point before rounding to `value`, possibly outside C if not accepted, (B, d).
        exact_dual: its dual in float64, (B, d).
        free: which coordinates are not at a bound, (B, d).
        gradient: ∇f at `exact`, in float64, (B, d).
        residual: as in `Point`, (B,).
        accepted: whether the optimality conditions hold within the tolerance, (B,).
        degenerate: whether one of them holds without margin, (B,).
        tries: evaluations of ∇f, (B,).
    """

    value: Tensor
    dual: Tensor
    exact: Tensor
    exact_dual: Tensor
    free: Tensor
    gradient: Tensor
    residual: Tensor
    accepted: Tensor
    degenerate: Tensor
    tries: Tensor


def can_finish(objective: Objective) -> bool:
    """Whether exact finishing exists for this kind of problem."""
    return objective.energy.affine


def finish(objective: Objective, point: Point, tol: float) -> Finished:
    """The critical point that an iterate points to, if the optimality conditions then hold.

    Args:
        objective: F, with a quadratic f.
        point: the iterates.
        tol: how far, relative to the scale of the residual, the conditions may be violated. A multiplier or a
            distance to a bound below ten times this is called degenerate.
    """
    return newton(objective, point, tol) if objective.regularization else polish(objective, point, tol)


def polish(objective: Objective, point: Point, tol: float) -> Finished:
    """γ = 0: solve for the critical point that has the active set of `point`, and test it.

    If F has only one critical point, a set that fails is corrected by the signs it violates and solved for again
    (the primal-dual active-set iteration of Hintermüller, Ito and Kunisch, 2002), a few times at most: whatever
    then passes the KKT test is the solution. Otherwise the first set has to be right.
    """
    # A wrong active set may violate the conditions by very little, and its gradient be wrong by much: ask in float64
    # for more than the solver's tolerance.
    tol = min(tol, _EXACT)
    energy = objective.energy.double()
    bounds = objective.geometry.bounds(point.value.dtype)
    at_lo, at_hi = _projected(objective, point.value, point.gradient, bounds)
    found = _solve(objective, energy, at_lo, at_hi, tol)
    if objective.unique:
        for _ in range(_CORRECTIONS):
            wrong = (~found.accepted & torch.isfinite(found.exact.sum(-1))).nonzero().squeeze(-1)
            if len(wrong) == 0:
                break
            part = found.select(wrong)
            at_lo, at_hi = _projected(objective, part.exact, part.gradient, bounds)
            retried = _solve(objective, energy.select(wrong), at_lo, at_hi, tol)
            found = found.replace_rows(wrong, replace(retried, tries=part.tries + retried.tries))
    return found


def _projected(
    objective: Objective, value: Tensor, gradient: Tensor, bounds: tuple[float, float]
) -> tuple[Bool[Tensor, "batch d"], Bool[Tensor, "batch d"]]:
    """The coordinates that a projected gradient step would put on the lower and on the upper bound."""
    curvature = objective.energy.curvature
    length = 1.0 if curvature is None else 1 / curvature.clamp_min(torch.finfo(curvature.dtype).tiny)
    target = value - length * gradient
    return target < bounds[0], target > bounds[1]


def _on_bounds(at_lo: Tensor, at_hi: Tensor, lo: float, hi: float) -> Tensor:
    """`lo` or `hi` where a coordinate is active, 0 elsewhere, in float64."""
    zero = torch.zeros(at_lo.shape, dtype=torch.float64, device=at_lo.device)
    return zero.masked_fill(at_lo, lo).masked_fill(at_hi, hi)


def _solve(objective: Objective, energy: BoundEnergy, at_lo: Tensor, at_hi: Tensor, tol: float) -> Finished:
    """The point with the given active set, in float64, and whether the KKT conditions hold there."""
    matrix = energy.shared_hessian
    assert matrix is not None  # can_finish
    dtype = objective.energy.dtype
    lo, hi = objective.geometry.bounds(dtype)
    free = ~(at_lo | at_hi)
    fixed = _on_bounds(at_lo, at_hi, lo, hi)
    definite = energy.symmetric and not objective.unique  # known where there is one critical point
    inside, solved = solve_on_free_set(matrix, free, -energy.gradient(fixed), energy.symmetric, definite)
    exact = torch.where(free, inside, fixed)

    at = energy.evaluate(exact)
    slack = (tol * at.scale)[:, None]
    outside = (exact - exact.clamp(lo, hi)).abs()
    violation = torch.where(at_lo, -at.gradient, torch.where(at_hi, at.gradient, at.gradient.abs()))
    accepted = solved & (outside <= slack).all(-1) & (violation <= slack).all(-1)
    gap = torch.minimum(exact - lo, hi - exact)
    thin = torch.where(free, gap <= 10 * slack, at.gradient.abs() <= 10 * slack).any(-1)
    residual = ((exact - at.gradient).clamp(lo, hi) - exact).abs().amax(-1) / at.scale

    y_lo, y_hi = objective.geometry.saturated_dual(dtype)
    dual = objective.geometry.inverse_activation(exact.clamp(lo, hi))
    dual = torch.where(free, dual, _on_bounds(at_lo, at_hi, y_lo, y_hi)).clamp(y_lo, y_hi)
    return Finished(
        value=exact.clamp(lo, hi).to(dtype),
        dual=dual.to(dtype),
        exact=exact,
        exact_dual=dual,
        free=free,
        gradient=at.gradient,
        residual=residual.to(dtype),
        accepted=accepted,
        degenerate=thin & accepted,
        tries=torch.full_like(accepted, 2, dtype=torch.int64),
    )


def newton(objective: Objective, point: Point, tol: float) -> Finished:
    """γ > 0: Newton steps on γp + ∇f(ρ(p)) = 0, each halved while the equation's error does not fall.

    Beyond the clamp of a φ that is not Legendre ρ' is 0, p runs on, and γ times the excess is the multiplier: one
    equation covers interior and active coordinates.
    """
    energy, geometry, gamma = objective.energy.double(), objective.geometry, objective.regularization
    hessian = energy.hessian(point.value)
    p = point.dual.double()
    error = gamma * p + energy.gradient(geometry.activation(p))
    tries = torch.full((len(p),), 2, dtype=torch.int64, device=p.device)  # the first error, and the test at the end
    length = torch.ones_like(p[:, :1])
    for _ in range(_NEWTON_STEPS):
        size = torch.linalg.vector_norm(error, dim=-1)
        rounding = 8 * torch.finfo(p.dtype).eps * (1 + (error - gamma * p).abs().amax(-1))
        going = (size > rounding) & torch.isfinite(size)
        if not bool(going.any()):
            break
        # (γ + H D) Δp = −error; with v = D Δp this is the adjoint system of `Linearization` at a fixed point.
        slope = geometry.slope(p)
        system = Linearization(hessian, slope, torch.full_like(slope, gamma))
        move = torch.cat([_newton_move(system, error, rows) for rows in chunks(system.slope)])
        moved = p + torch.where(going[:, None], length * move, 0.0)
        moved_error = gamma * moved + energy.gradient(geometry.activation(moved))
        better = torch.linalg.vector_norm(moved_error, dim=-1) < size
        p = torch.where((going & better)[:, None], moved, p)
        error = torch.where((going & better)[:, None], moved_error, error)
        length = torch.where(better[:, None], (2 * length).clamp_max(1.0), 0.25 * length)
        tries = tries + going

    dtype = objective.energy.dtype
    dual = geometry.project_dual(p)
    exact = geometry.activation(dual)
    at = energy.evaluate(exact)
    lo, hi = geometry.bounds(torch.float64)
    residual = ((exact - at.gradient - gamma * dual).clamp(lo, hi) - exact).abs().amax(-1) / at.scale
    # The residual alone is held down by the distance to a bound: ask it of the equation as well.
    accepted = (residual <= tol) & (error.abs().amax(-1) <= tol * at.scale)
    at_bound = dual != p
    thin = (at_bound & (gamma * (p - dual).abs() <= 10 * (tol * at.scale)[:, None])).any(-1)
    return Finished(
        value=geometry.activation(dual.to(dtype)),
        dual=dual.to(dtype),
        exact=exact,
        exact_dual=dual,
        free=~at_bound,
        gradient=at.gradient,
        residual=residual.to(dtype),
        accepted=accepted,
        degenerate=thin & accepted,
        tries=tries,
    )


def _newton_move(system: Linearization, error: Tensor, rows: slice) -> Tensor:
    """Δp for a part of the batch."""
    slope, shift, right = system.slope[rows], system.shift[rows], -error[rows]
    if system.hessian.symmetric:
        # From the symmetric form: Δp = −(error + H S q)/γ with (γ + S H S) q = −S error.
        root = slope.sqrt()
        matrix = system.dense(True, rows, torch.float64)
        factor, info = torch.linalg.cholesky_ex(matrix)
        q = torch.cholesky_solve((root * right)[:, :, None], factor)
        if bool((info != 0).any()):
            general = torch.linalg.solve_ex(matrix, (root * right)[:, :, None]).result
            q = torch.where((info == 0)[:, None, None], q, general)
        move = (right - system.hessian.product(root * q.squeeze(-1))) / shift
    else:
        shared = system.hessian.matrix
        assert shared is not None  # can_finish
        jacobian = torch.diag_embed(shift) + shared * slope[:, None, :]
        move = torch.linalg.solve_ex(jacobian, right[:, :, None]).result.squeeze(-1)
    return torch.nan_to_num(move, nan=0.0, posinf=0.0, neginf=0.0)
