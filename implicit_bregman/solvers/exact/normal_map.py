"""γ = 0 and a field without a potential: Newton's method on the normal map E(w) = F(Π(w)) + w − Π(w).

Its zeros are the equilibria z = Π(w), with F = 0 inside C and a multiplier z − w at a bound (Robinson, "Normal maps
induced by linear transformations", 1992). The direction solves (JD + I − D)Δw = −E by GMRES, with D = 1 for the
coordinates inside C and 0 for the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.linearization import linearize_on_free_set
from implicit_bregman.objective import Objective, RowsOfTensors
from implicit_bregman.solvers.exact.result import ExactResult

#: Lengths of a step that are tried, each a quarter of the one before.
_TRIALS = 12
#: Relative residual of the linear systems, far from the solution and near it, and the most products in one.
_LOOSE, _TIGHT, _PRODUCTS = 0.1, 1e-4, 100
#: How far below the tolerance the error is driven.
_BELOW = 0.1


@dataclass(frozen=True)
class _Iterate(RowsOfTensors):
    """An iterate: w, z = Π(w), F(z), E(w), the scale of F, E relative to it (its largest entry), steps and tries."""

    point: Tensor
    value: Tensor
    gradient: Tensor
    error: Tensor
    scale: Tensor
    size: Tensor
    steps: Tensor
    tries: Tensor


def normal_newton(objective: Objective, value: Float[Tensor, "batch d"], tol: float, max_steps: int) -> ExactResult:
    """Newton steps from z = `value`, each sample until its own stop, or until no step brings it any further.

    Args:
        objective: F with γ = 0, without a potential.
        value: the start, in C.
        tol: bound on the residual.
        max_steps: bound on the number of steps.
    """
    lo, hi = objective.geometry.bounds(value.dtype)
    none = torch.zeros(len(value), dtype=torch.int64, device=value.device)
    gradient = objective.energy.gradient(value).detach()
    # A coordinate that −F holds at a bound starts beyond it.
    aim = value - gradient
    at = _iterate(objective, torch.where((aim <= lo) | (aim >= hi), aim, value), none, none + 2)
    final, rows, before = at, torch.arange(len(value), device=value.device), torch.full_like(at.size, torch.inf)
    moved = torch.ones_like(none, dtype=torch.bool)
    while True:
        running = moved & (at.size > _BELOW * tol) & torch.isfinite(at.size) & (at.steps < max_steps)
        # (good enough, and getting better too slowly)
        running &= ~((at.size <= tol) & (at.size > 0.5 * before))
        final = final.replace_rows(rows, at)
        kept = running.nonzero().squeeze(-1)
        if len(kept) == 0:
            return _result(objective, final, tol)
        rows, at, before, objective = rows[kept], at.select(kept), before[kept], objective.select(kept)
        forcing = (at.size / before).square().clamp(_TIGHT, _LOOSE)
        before = at.size
        at, moved = _search(objective, at, _direction(objective, at, forcing))


def _iterate(objective: Objective, point: Tensor, steps: Tensor, tries: Tensor) -> _Iterate:
    value = point.clamp(*objective.geometry.bounds(point.dtype))
    gradient = objective.energy.gradient(value).detach()
    error, scale = gradient + point - value, objective.scale(objective.energy.terms(gradient))
    return _Iterate(point, value, gradient, error, scale, (error.abs() / scale).amax(-1), steps, tries)


def _direction(objective: Objective, at: _Iterate, forcing: Tensor) -> Float[Tensor, "batch d"]:
    free = objective.movable(at.value == at.point)
    system = linearize_on_free_set(objective.energy.hessian(at.value), free, at.point.dtype)
    return system.forward_step(-at.error, forcing, _PRODUCTS).value


def _search(objective: Objective, at: _Iterate, move: Tensor) -> tuple[_Iterate, Tensor]:
    """The longest of the trial steps that lowers ‖E‖, and which samples have found one."""
    accepted, good = at, torch.zeros_like(at.size, dtype=torch.bool)
    rows, size = torch.arange(len(good), device=good.device), torch.linalg.vector_norm(at.error, dim=-1)
    for trial in range(_TRIALS):
        start, part = at.select(rows), objective.select(rows)
        new = _iterate(part, start.point + 0.25**trial * move[rows], start.steps + 1, start.tries + 1 + trial)
        better = torch.linalg.vector_norm(new.error, dim=-1) < size[rows]
        accepted = accepted.replace_rows(rows[better], new.select(better.nonzero().squeeze(-1)))
        good = good.index_fill(0, rows[better], True)
        rows = rows[~better]
        if len(rows) == 0:
            break
    return accepted, good


def _result(objective: Objective, at: _Iterate, tol: float) -> ExactResult:
    geometry, dtype = objective.geometry, at.value.dtype
    lo, hi = geometry.bounds(dtype)
    free, margin = objective.movable(at.value == at.point), 10 * tol
    residual = objective.residual(at.value, at.gradient, at.scale)
    gap, weak = torch.minimum(at.value - lo, hi - at.value), at.gradient.abs() <= margin * at.scale
    accepted = (residual <= tol) & (at.size <= tol)
    dual = geometry.finite_dual(at.value, dtype)
    return ExactResult(
        value=at.value,
        dual=dual,
        unrounded=at.value,
        unrounded_dual=dual,
        free=free,
        gradient=at.gradient,
        scale=at.scale,
        residual=residual,
        accepted=accepted,
        degenerate=accepted & objective.movable(torch.where(free, gap <= margin * objective.unit, weak)).any(-1),
        steps=at.steps,
        tries=at.tries,
    )
