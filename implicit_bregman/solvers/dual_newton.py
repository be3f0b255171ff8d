"""γ > 0: Newton's method on the optimality condition in dual coordinates, E(y) = γy + ∇f(ρ(y)) = 0.

A step solves (γ + H D) Δy = −E with D = ρ'(y). With S = √D and v = DΔy = Sq it is the symmetric system
(γ + S H S) q = −S E, the adjoint system at that point: both are solved by the same `Linearization`.
Beyond the clamp of a φ that is not Legendre ρ' is 0, y runs on, and γ times the excess is the multiplier: one
equation covers interior and active coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.energy.base import BoundEnergy
from implicit_bregman.energy.bound import BoundQuadratic
from implicit_bregman.linalg.chunks import chunks
from implicit_bregman.linalg.dense import solve_general
from implicit_bregman.linearization import Linearization
from implicit_bregman.objective import Objective, RowsOfTensors
from implicit_bregman.solvers.chebyshev import chebyshev_steps
from implicit_bregman.solvers.finished import Finished

#: Newton steps made before an iterate is given up.
_STEPS = 60
#: A step is shortened to a quarter so often at most.
_SHORTENINGS = 12
#: The error, relative to the size of its terms, at which single precision hands over to double.
_HAND_OVER = 1e-4
#: How far below the tolerance the error is driven: the last step is nearly always much better than asked.
_BELOW = 0.1
#: γ/λ_max from which on a step that is not needed for E is not needed for z.
_WELL = 0.05
#: A sample whose error is below this part of the tolerance before the last steps is left as it is.
_CLOSE = 0.5
#: Relative residual of the linear systems: loose far from the solution (Eisenstat and Walker), and at the end.
_LOOSE, _TIGHT = 0.1, 1e-4
#: D below which Δy is not recovered from v = DΔy.
_FLAT = 1e-2


@dataclass(frozen=True)
class _Iterate(RowsOfTensors):
    """An iterate of Newton's method.

    Attributes:
        dual, value: y and ρ(y), (B, d).
        gradient: ∇f there, (B, d).
        error: E(y), (B, d).
        scale: what the entries of ∇f are measured against, (B, d).
        size: the largest entry of |E| / scale, (B,).
        steps: Newton steps, (B,).
        tries: evaluations of ∇f, (B,).
    """

    dual: Tensor
    value: Tensor
    gradient: Tensor
    error: Tensor
    scale: Tensor
    size: Tensor
    steps: Tensor
    tries: Tensor


def newton(
    objective: Objective,
    dual: Float[Tensor, "batch d"],
    tol: float,
    max_steps: int = _STEPS,
    record: Callable[[Tensor, Tensor], None] | None = None,
) -> Finished:
    """Newton's method from y = `dual`, each sample until its own stop.

    A quadratic f is finished in float64, whatever its precision.

    Args:
        objective: F with γ > 0 and a quadratic f, or any f if F is convex.
        dual: the start y.
        tol: bound on the error E, each entry relative to its own terms.
        max_steps: bound on the number of steps.
        record: called with the duals and their rows before every step, and at the end. All steps are then made in
            float64.
    """
    energy = objective.energy
    max_steps = min(_STEPS, max_steps)
    # A trace ends where the tolerance is met.
    enough = _CLOSE * tol if _is_well_conditioned(objective) else 0.0
    swept, limit = None, max(_BELOW * tol, enough)
    if record is None and objective.unique and isinstance(energy, BoundQuadratic) and energy.symmetric:
        swept = _swept(objective, energy, _unclamped(objective, energy, dual), limit)
        if swept is not None and bool((swept.size <= limit).all()):
            return _finished(objective, swept, tol)
    none = torch.zeros(len(dual), dtype=torch.int64, device=dual.device)
    at = _evaluate(objective, energy, _unclamped(objective, energy, dual), none, none + 1)
    if swept is not None:
        at = _better(at, swept)
    if dual.dtype != torch.float64 and energy.affine:
        if record is None:
            at = _iterate(objective, energy, at, max(_HAND_OVER, tol), max_steps)
        energy = energy.double()
        at = _evaluate(objective, energy, at.dual.double(), at.steps, at.tries + 1)
    at = _iterate(objective, energy, at, _BELOW * tol if record is None else tol, max_steps, record, enough)
    return _finished(objective, at, tol)


def _is_well_conditioned(objective: Objective) -> bool:
    """Whether an error E is no great error of z: γ is no small part of λ_max."""
    energy = objective.energy
    return isinstance(energy, BoundQuadratic) and objective.regularization * energy.gradient_step >= _WELL


def _unclamped(objective: Objective, energy: BoundEnergy, dual: Tensor) -> Tensor:
    """The same points, with the duals of active coordinates where the equation wants them, beyond the clamp."""
    gamma, geometry = objective.regularization, objective.geometry
    if geometry.is_legendre:
        return dual
    active = geometry.slope(dual) == 0
    if not bool(active.any()):
        return dual
    wanted = energy.gradient(geometry.activation(dual)).detach() / -gamma
    active &= geometry.project_dual(wanted) == geometry.project_dual(dual)
    return torch.where(active, wanted, dual)


def _swept(objective: Objective, energy: BoundQuadratic, dual: Tensor, tol: float) -> _Iterate | None:
    """The iterates after a few Chebyshev steps, in float64, where there is a use for them."""
    found = chebyshev_steps(objective, energy, dual, tol)
    if found is None:
        return None
    swept, count, evaluations = found
    steps = torch.full_like(dual[:, 0], count, dtype=torch.int64)
    return _evaluate(objective, energy.double(), swept.double(), steps, steps + (evaluations + 1 - count))


def _better(at: _Iterate, swept: _Iterate) -> _Iterate:
    """The iterates after the Chebyshev steps where these have gained something, else the start."""
    gained = torch.isfinite(swept.size) & (swept.size < 0.1 * at.size)
    tries = at.tries + swept.tries
    return replace(swept.to(at.dual.dtype), tries=tries).where(gained, replace(at, tries=tries))


def _evaluate(objective: Objective, energy: BoundEnergy, dual: Tensor, steps: Tensor, tries: Tensor) -> _Iterate:
    """The iterate y = `dual`."""
    value = objective.geometry.activation(dual)
    gradient = energy.gradient(value).detach()
    error = torch.add(gradient, dual, alpha=objective.regularization)
    scale = objective.scale(energy.terms(gradient))
    return _Iterate(dual, value, gradient, error, scale, (error.abs() / scale).amax(-1), steps, tries)


def _iterate(
    objective: Objective,
    energy: BoundEnergy,
    at: _Iterate,
    target: float,
    max_steps: int,
    record: Callable[[Tensor, Tensor], None] | None = None,
    enough: float = 0.0,
) -> _Iterate:
    """Newton steps until |E| ≤ target · scale (or `enough` · scale at the start), or as far as rounding lets them."""
    final, rows = at, torch.arange(len(at.size), device=at.size.device)
    rounding = 8 * torch.finfo(at.dual.dtype).eps
    before = None
    while True:
        if record is not None:
            record(at.dual, rows)
        limit, enough = max(target, rounding, enough), 0.0
        running = (at.size > limit) & torch.isfinite(at.size) & (at.steps < max_steps)
        if not bool(running.all()):
            final = final.replace_rows(rows, at)
            kept = running.nonzero().squeeze(-1)
            rows, at, energy = rows[kept], at.select(kept), energy.select(kept)
            before = None if before is None else before[kept]
        if len(rows) == 0:
            return final
        move = _move(objective, energy, at, before, target)
        before = at.size
        at, moved = _search(objective, energy, at, move)
        if not bool(moved.all()):
            final = final.replace_rows(rows, at)
            kept = moved.nonzero().squeeze(-1)
            rows, at, energy, before = rows[kept], at.select(kept), energy.select(kept), before[kept]


def _move(objective: Objective, energy: BoundEnergy, at: _Iterate, before: Tensor | None, target: float) -> Tensor:
    """Δy."""
    geometry, gamma = objective.geometry, objective.regularization
    slope = geometry.slope(at.dual)
    # The Hessian of a quadratic energy is the same everywhere, and its products are made in either precision.
    hessian = objective.energy.hessian(at.value) if energy.affine else energy.hessian(at.value)
    system = Linearization(hessian, slope, torch.full_like(slope, gamma))
    if hessian.shared is not None and not (objective.unique and energy.symmetric):
        parts = [_factorized_move(system, at.error, rows) for rows in chunks(slope)]
        return torch.nan_to_num(torch.cat(parts), nan=0.0, posinf=0.0, neginf=0.0)
    # As exact as the progress of the last step promises this one to be, and no more than the goal asks for.
    goal = (0.3 * target / at.size).clamp(1e-7, _LOOSE)
    forcing = torch.full_like(at.size, _LOOSE) if before is None else (at.size / before).square().clamp(_TIGHT, _LOOSE)
    v, bent = system.newton_step(at.error, torch.maximum(forcing, goal))
    if not objective.unique:
        # Negative curvature: not near a minimum, and so not certain to be near MM's limit.
        v = torch.where(bent[:, None], torch.nan, v)
    steep = slope > _FLAT * slope.amax(-1, keepdim=True)
    if bool(steep.all()):
        return v / slope
    product = hessian.product(v)
    return torch.where(steep, v / torch.where(steep, slope, 1.0), -(at.error + product) / gamma)


def _factorized_move(system: Linearization, error: Tensor, rows: slice) -> Tensor:
    """Δy for a part of the batch, by one factorization per sample, in float64."""
    slope, shift, right = system.slope[rows].double(), system.shift[rows].double(), -error[rows].double()
    shared = system.hessian.shared
    assert shared is not None  # a quadratic energy
    if shared.symmetric:
        root = slope.sqrt()
        matrix = system.dense(True, rows, torch.float64)
        factor, info = torch.linalg.cholesky_ex(matrix)
        q = torch.cholesky_solve((root * right)[:, :, None], factor)
        if bool((info != 0).any()):
            general, _ = solve_general(matrix, (root * right)[:, :, None])
            q = torch.where((info == 0)[:, None, None], q, general)
        return ((right - shared.product(root * q.squeeze(-1))) / shift).to(error.dtype)
    jacobian = torch.diag_embed(shift) + shared.wide.matrix * slope[:, None, :]
    return solve_general(jacobian, right[:, :, None])[0].squeeze(-1).to(error.dtype)


def _search(
    objective: Objective, energy: BoundEnergy, at: _Iterate, move: Tensor
) -> tuple[_Iterate, Bool[Tensor, " batch"]]:
    """The step along Δy that is accepted, shortened as often as needed, and which samples moved at all."""
    new = _evaluate(objective, energy, at.dual + move, at.steps + 1, at.tries + 1)
    good = _is_accepted(objective, at, new)
    if bool(good.all()):
        return new, good
    accepted, length = new.where(good, at), 1.0
    rows = (~good).nonzero().squeeze(-1)
    for trial in range(_SHORTENINGS):
        length *= 0.25
        start, part = at.select(rows), energy.select(rows)
        tries = at.tries[rows] + 2 + trial
        new = _evaluate(objective, part, start.dual + length * move[rows], start.steps + 1, tries)
        better = _is_accepted(objective, start, new)
        accepted = accepted.replace_rows(rows, new.where(better, replace(start, tries=tries)))
        good = good.index_copy(0, rows, better)
        rows = rows[~better]
        if len(rows) == 0:
            break
    return accepted, good


def _is_accepted(objective: Objective, old: _Iterate, new: _Iterate) -> Bool[Tensor, " batch"]:
    """Whether F has fallen enough, seen from its slopes at both ends, or E is half of what it was.

    Along Δz the slope of F is ⟨E, Δz⟩. By convexity F has fallen by at least minus the slope at the end; the
    trapezoidal rule for both slopes is exact for a quadratic. Slopes, unlike values, do not cancel. Where F is not
    convex, E alone decides.
    """
    finite = torch.isfinite(new.size) & torch.isfinite(new.dual.sum(-1))
    if not objective.unique or not objective.energy.symmetric:
        return finite & (torch.linalg.vector_norm(new.error, dim=-1) < torch.linalg.vector_norm(old.error, dim=-1))
    shift = new.value - old.value
    before, after = (old.error * shift).sum(-1), (new.error * shift).sum(-1)
    halved = new.error.abs().amax(-1) <= 0.5 * old.error.abs().amax(-1)
    return finite & (((before < 0) & (after <= -0.5 * before)) | halved)


def _finished(objective: Objective, at: _Iterate, tol: float) -> Finished:
    geometry, gamma, dtype = objective.geometry, objective.regularization, objective.energy.dtype
    dual = geometry.project_dual(at.dual)
    lo, hi = geometry.bounds(dual.dtype)
    if geometry.is_legendre:
        error, free = at.error, torch.ones_like(dual, dtype=torch.bool)
    else:
        error, free = torch.add(at.gradient, dual, alpha=gamma), dual == at.dual
    residual = objective.residual(at.value, error, at.scale, (lo, hi))
    # The residual alone is held down by the distance to a bound: ask it of the equation as well.
    accepted = (residual <= tol) & (at.size <= tol)
    degenerate = torch.zeros_like(accepted)
    if not geometry.is_legendre:
        multiplier = gamma * (at.dual - dual).abs()
        degenerate = (~free & (multiplier <= 10 * tol * at.scale)).any(-1) & accepted
    lowered = dual.to(dtype)
    return Finished(
        value=geometry.activation(lowered),
        dual=lowered,
        exact=at.value,
        exact_dual=dual,
        free=free,
        gradient=at.gradient,
        scale=at.scale,
        residual=residual.to(dtype),
        accepted=accepted,
        degenerate=degenerate,
        steps=at.steps,
        tries=at.tries,
    )
