"""γ = 0: projected Newton steps on the free coordinates, with a line search on the objective.

The two-metric projection method of Bertsekas (1982): coordinates at a bound that −∇f holds there are fixed, the others
get a Newton direction, and the step is searched for along its projection onto C. Where F is convex the reduced system
is damped in proportion to the residual (Li, Fukushima, Qi and Yamashita, 2004): it is then definite also where the
Hessian is singular, and the convergence stays superlinear. The direction comes from one factorization per sample, of
its free block, or for a large d and for energies of a user's own from CG with Hessian products alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.energy.contract import BoundEnergy, Evaluation
from implicit_bregman.legendre.mirror import Ends
from implicit_bregman.objective import Objective, RowsOfTensors
from implicit_bregman.per_sample import Running, all_rows, iterate
from implicit_bregman.solvers.exact.result import ExactResult

#: Steps within which the smallest residual has to halve, or f to fall clearly, where a precision may be at its end.
_PATIENCE = 20
#: Trial lengths of a step, each a quarter of the one before.
_TRIALS = 25
#: Share of the decrease promised by the slope that a step has to bring (Armijo).
_ARMIJO = 1e-4
#: Relative residual of the linear systems far from the solution, and near it.
_LOOSE, _TIGHT = 0.1, 1e-6
#: How far below the tolerance the residual is driven.
_BELOW = 0.1


@dataclass(frozen=True)
class _Iterate(RowsOfTensors):
    """An iterate in C.

    Attributes:
        value: z, (B, d).
        f: f(z), (B,).
        gradient: ∇f(z), (B, d).
        scale: what the entries of ∇f are measured against, (B, d).
        residual: see `Objective.residual`, (B,).
        steps: Newton steps, (B,).
        tries: evaluations of ∇f, (B,).
    """

    value: Tensor
    f: Tensor
    gradient: Tensor
    scale: Tensor
    residual: Tensor
    steps: Tensor
    tries: Tensor


@dataclass(frozen=True)
class _Run(Running):
    """The samples that are still running.

    Attributes:
        energy: f.
        at: the iterates.
        length: of a gradient step that has proved itself, (b,).
        best, idle: the smallest residual, and the steps since it was last halved or f fell clearly, (b,).
        stuck: whether the last step led nowhere, or not far enough, (b,).
        far: the size of z beyond which a sample is given up, (b,).
    """

    energy: BoundEnergy
    at: _Iterate
    length: Tensor
    best: Tensor
    idle: Tensor
    stuck: Tensor
    far: Tensor


def projected_newton(
    objective: Objective,
    value: Float[Tensor, "batch d"],
    tol: float,
    max_steps: int,
    record: Callable[[Tensor, Tensor], None] | None = None,
    far: Float[Tensor, " batch"] | None = None,
) -> ExactResult:
    """Projected Newton steps from z = `value`, each sample until its own stop; a quadratic f in float64.

    Args:
        objective: F with γ = 0. Where it is not convex, a sample that meets negative curvature is given up.
        value: the start, in C.
        tol: bound on the residual.
        max_steps: bound on the number of steps.
        record: called with the iterates and their rows before every step, and at the end.
        far: the size of z beyond which a sample is given up, (B,); None: as long as it is finite.
    """
    energy = objective.energy.double() if objective.energy.affine else objective.energy
    bounds = objective.geometry.bounds(objective.energy.dtype)
    start = value.to(energy.dtype).clamp(*bounds)
    none = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    at = _iterate(objective, energy, start, bounds, none, none + 1)
    target = _BELOW * tol if record is None else tol  # a trace ends where the tolerance is met

    def going(run: _Run, count: int) -> Bool[Tensor, " batch"]:
        if count == max_steps:
            return torch.zeros_like(run.stuck)
        at = run.at
        # (an infinite residual does not go on, nor does NaN)
        going = (at.residual > target) & (at.residual < torch.inf) & ~run.stuck
        return going if far is None else going & (at.value.abs().amax(-1) <= run.far)

    def step(run: _Run, count: int) -> _Run:
        free = objective.movable(~_held(objective, run.at, bounds, run.length))
        direction, bent = _direction(objective, run.energy, run.at, free)
        at, moved, length = _search(objective, run.energy, run.at, direction, free, bounds, run.length)
        stuck = ~moved | (bent & (not objective.convex))
        if record is None:  # good enough, and getting better too slowly
            stuck |= (at.residual <= tol) & (at.residual > 0.5 * run.at.residual)
        new = replace(run, at=at, length=length, stuck=stuck)
        return new if energy.affine else _watched(run, new)

    def write(run: _Run) -> None:
        # (of the stuck ones there is nothing new to tell)
        rows = (~run.stuck).nonzero().squeeze(-1)
        if record is not None and len(rows):
            record(run.at.value[rows], run.rows[rows])

    reach = torch.full_like(at.residual, torch.inf) if far is None else far
    run = _Run(all_rows(start), energy, at, torch.ones_like(at.residual), at.residual, none, none > 0, reach)
    found = iterate(run, step, going, lambda run, _: run.at, None if record is None else write)
    return _result(objective, found, bounds, tol)


def _watched(old: _Run, new: _Run) -> _Run:
    """The run after a step, with the samples stuck whose precision may be at its end."""
    at, before = new.at, old.at
    halved = at.residual <= 0.5 * old.best
    fell = before.f - at.f > 4 * _uncertainty(before.f, at.f)
    idle = torch.where(halved | fell, 0, old.idle + 1)
    return replace(
        new, best=torch.where(halved, at.residual, old.best), idle=idle, stuck=new.stuck | (idle >= _PATIENCE)
    )


def _iterate(
    objective: Objective,
    energy: BoundEnergy,
    value: Tensor,
    bounds: Ends,
    steps: Tensor,
    tries: Tensor,
) -> _Iterate:
    at: Evaluation = energy.evaluate(value)
    assert at.value is not None  # only asked of energies that have an objective
    scale = objective.scale(energy.terms(at.gradient))
    residual = objective.residual(value, at.gradient, scale, bounds)
    return _Iterate(value, at.value, at.gradient, scale, residual, steps, tries)


def _held(objective: Objective, at: _Iterate, bounds: Ends, length: Tensor) -> Bool[Tensor, "batch d"]:
    """The coordinates that a short projected gradient step would leave at, or bring to, a bound."""
    lo, hi = bounds
    # Within this distance a bound counts as reached, so that the set settles (Bertsekas' ε).
    near = objective.unit * at.residual.clamp_max(1e-2)[:, None]
    reach = torch.minimum(length[:, None] * at.gradient.abs(), near)
    return ((at.value - lo <= reach) & (at.gradient > 0)) | ((hi - at.value <= reach) & (at.gradient < 0))


def _direction(
    objective: Objective, energy: BoundEnergy, at: _Iterate, free: Bool[Tensor, "batch d"]
) -> tuple[Tensor, Tensor]:
    """The Newton direction on the free coordinates, −∇f on the others, and where curvature was not positive."""
    right = torch.where(free, -at.gradient, 0.0)
    damping = torch.zeros_like(right)
    if objective.convex:
        damping = at.residual[:, None] * at.scale / (objective.unit + at.value.abs())
    tol, hessian = at.residual.clamp(_TIGHT, _LOOSE), energy.hessian(at.value)
    found, positive = hessian.solve_damped_on(free, right, damping, tol, at_once=not objective.unique)
    return _downhill(found, at, free), ~positive


def _downhill(found: Tensor, at: _Iterate, free: Tensor) -> Tensor:
    """What was found on the free coordinates, −∇f on the others, and on all where nothing was found."""
    # (CG that meets negative curvature at once has the value 0)
    none = (found == 0).all(-1, keepdim=True)
    return torch.where(free & ~none, found, -at.gradient)


def _search(
    objective: Objective,
    energy: BoundEnergy,
    at: _Iterate,
    direction: Tensor,
    free: Tensor,
    bounds: Ends,
    length: Tensor,
) -> tuple[_Iterate, Bool[Tensor, " batch"], Tensor]:
    """The longest of the trial steps along the projection arc that lowers f enough; which samples moved."""
    accepted, good = at, torch.zeros_like(at.residual, dtype=torch.bool)
    rows = torch.arange(len(good), device=good.device)
    step = torch.ones_like(length)
    for trial in range(_TRIALS):
        start, part = at.select(rows), energy.select(rows)
        moved = (start.value + step[rows, None] * direction[rows]).clamp(*bounds)
        # Held coordinates go to their bound, by a gradient step of the length that has proved itself.
        held = (start.value - (length[rows] * step[rows])[:, None] * start.gradient).clamp(*bounds)
        moved = torch.where(free[rows], moved, held)
        tries = at.tries[rows] + 1 + trial
        new = _iterate(objective, part, moved, bounds, start.steps + 1, tries)
        ok = _is_lower(part, start, new)
        if trial == 0 and bool(ok.all()):
            return new, ok, (2 * length).clamp_max(1e3)
        accepted = accepted.replace_rows(rows, new.where(ok, replace(start, tries=tries)))
        good = good.index_copy(0, rows, ok)
        rows = rows[~ok]
        if len(rows) == 0:
            break
        step = step.index_copy(0, rows, 0.25 * step[rows])
    # A sample that had to shorten its step learns a shorter gradient step.
    length = torch.where(step < 1, length * step.clamp_min(0.25), (2 * length).clamp_max(1e3))
    return accepted, good, length


def _is_lower(energy: BoundEnergy, old: _Iterate, new: _Iterate) -> Bool[Tensor, " batch"]:
    """Whether f has fallen by a share of what its slope promised, up to rounding.

    The trapezoidal rule does not cancel and is exact for a quadratic; for another f it decides where the values differ
    by no more than their rounding error.
    """
    eps = torch.finfo(old.value.dtype).eps
    shift = new.value - old.value
    promised = (old.gradient * shift).sum(-1)
    terms = 0.5 * (old.gradient + new.gradient) * shift
    change, noise = terms.sum(-1), 4 * eps * (terms.abs() + old.scale * shift.abs()).sum(-1)
    if not energy.affine:
        difference = new.f - old.f
        uncertain = _uncertainty(old.f, new.f)
        clear = difference.abs() > 4 * uncertain
        change, noise = torch.where(clear, difference, change), torch.where(clear, 0.0, noise)
    finite = torch.isfinite(new.f) & torch.isfinite(new.residual)
    moved = (shift != 0).any(-1)
    return finite & moved & ((change <= _ARMIJO * promised) | ((change <= noise) & (new.residual < old.residual)))


def _uncertainty(old: Tensor, new: Tensor) -> Tensor:
    """The rounding error of the difference of two values of f."""
    return 8 * torch.finfo(old.dtype).eps * (new.abs() + old.abs() + 1)


def _result(objective: Objective, at: _Iterate, bounds: Ends, tol: float) -> ExactResult:
    geometry, dtype = objective.geometry, objective.energy.dtype
    lo, hi = bounds
    accepted = at.residual <= tol
    # At a bound is what is as near to it as the residual asks, and would go there. (A start may come from a dual, which
    # reaches none.)
    reach = torch.where(accepted[:, None], objective.relative_step(at.gradient, at.scale).abs(), 0.0)
    reach = reach.clamp_max(objective.unit * tol)
    at_lo, at_hi = (at.value - lo <= reach) & (at.gradient > 0), (hi - at.value <= reach) & (at.gradient < 0)
    free = objective.movable(~(at_lo | at_hi))
    value = torch.where(at_lo, lo, torch.where(at_hi, hi, at.value))
    dual = geometry.finite_dual(value, dtype)
    gap = torch.minimum(value - lo, hi - value)
    near, weak = gap <= 10 * tol * objective.unit, at.gradient.abs() <= 10 * tol * at.scale
    thin = objective.movable(torch.where(free, near, weak)).any(-1)
    return ExactResult(
        value=value.to(dtype),
        dual=dual.to(dtype),
        unrounded=value,
        unrounded_dual=dual,
        free=free,
        gradient=at.gradient,
        scale=at.scale,
        residual=at.residual.to(dtype),
        accepted=accepted,
        degenerate=thin & accepted,
        steps=at.steps,
        tries=at.tries,
    )
