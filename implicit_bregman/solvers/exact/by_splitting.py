"""γ = 0: the active set by operator splitting, and the point that has it, for samples with many active bounds.

An active-set method factorizes a block for each sample and each correction of its set. Here all samples share one
resolvent. What is then missing of an exact point is found on the free coordinates by the same iteration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.energy.bound import BoundAffine
from implicit_bregman.objective import Objective, RowsOfTensors
from implicit_bregman.operators.splitter import Splitter
from implicit_bregman.solvers.exact.active_set import at_point, violation
from implicit_bregman.solvers.exact.result import ExactResult

#: So many looks at the residual are taken in the iterations that the condition suggests, and at most that many of them.
_LOOKS, _LONGEST = 8, 3
#: A residual above this share of the one before is rounding, or next to no progress.
_GAIN = 0.7
#: The residual of z may be a few times that of the iteration, which rounding keeps above so many times its unit.
_ASK, _ROUNDED = 0.3, 4
#: The error that is left where the set is certain, relative to the tolerance.
_ERROR = 2.0
#: A set is certain where all margins exceed so many times the error.
_CLEAR = 10.0


def solve_by_splitting(
    objective: Objective,
    energy: BoundAffine,
    splitter: Splitter,
    target: Float[Tensor, "batch d"],
    tol: float,
    max_iter: int,
) -> tuple[ExactResult, Float[Tensor, "batch d"]]:
    """The critical points, not accepted where the active set is not certain, and z − α∇f(z), (B, d).

    Args:
        objective: F, with γ = 0, one critical point and a quadratic f.
        energy: f.
        splitter: of its Hessian.
        target: z − α∇f(z) at some z, to start from.
        tol: bound on the residual.
        max_iter: bound on the iterations.
    """
    lo, hi = objective.geometry.bounds(target.dtype)
    level = _ERROR * tol / splitter.condition
    reached = max(_ASK * level, _ROUNDED * torch.finfo(target.dtype).eps)
    target, steps = _iterate(objective, energy.offset, splitter, target, reached, max_iter)
    wide = energy.double()
    free, z = (target >= lo) & (target <= hi), target.clamp(lo, hi).double()
    at = _judged(objective, wide, splitter, z, wide.gradient(z), tol, steps)
    rows = (~at.sure).nonzero().squeeze(-1)
    if len(rows):
        f, inside, before = wide.select(rows), free[rows], at.select(rows)
        solved = splitter.refine_on(inside, f.offset, before.z, 0.5 * level, objective.floor)
        steps = before.steps + solved.iterations
        again = _judged(objective, f, splitter, solved.value, solved.excess, tol, steps)
        at = at.replace_rows(rows, again)
    weak = torch.zeros_like(at.sure)
    found = at_point(objective, at.z, free, at.gradient, at.scale, at.residual, at.sure, weak)
    return replace(found, steps=at.steps, tries=at.steps + 1, splitter=splitter), target


def _iterate(
    objective: Objective, offset: Tensor, splitter: Splitter, target: Tensor, level: float, max_iter: int
) -> tuple[Tensor, Int[Tensor, " batch"]]:
    """2x − u where the residual is about `level`, or does not fall any more, and the iterations."""
    lo, hi = objective.geometry.bounds(target.dtype)
    base = splitter.base(offset)
    # |z − x| bounds the distance to a bound that holds z, and α times the gradient elsewhere.
    weight = (splitter.alpha * objective.scale(offset.abs())).reciprocal_().clamp_min_(1.0)
    few = splitter.iterations(level)
    most, every = min(max_iter, _LONGEST * few), max(2, few // _LOOKS)
    v, look, count, before = target, min(most, few // 2), 0, torch.inf
    z = v.clamp(lo, hi)
    # Whatever u the start had, α∇f(z) = z − v gives it.
    u = splitter.embed(torch.lerp(v, z, 2.0))
    while True:
        whole = splitter.reflect(u, base)
        v = splitter.restrict(whole)
        z = v.clamp(lo, hi)
        count += 1
        if count == look:
            gap = float(torch.sub(z, torch.lerp(splitter.restrict(u), v, 0.5)).mul_(weight).abs_().amax())
            if gap <= level or count == most or not gap <= _GAIN * before:
                break
            before, look = gap, min(most, look + every)
        u = splitter.moved(u, whole, z)
    return v, torch.full_like(target[:, 0], count, dtype=torch.int64)


@dataclass(frozen=True)
class _Judged(RowsOfTensors):
    """Points, and whether they are near their limits and their active sets certain.

    Attributes:
        z, gradient, scale: the points, ∇f there, and what its entries are measured against, (B, d).
        residual: see `Objective.residual`, (B,).
        sure: the verdict, (B,).
        steps: iterations, (B,).
    """

    z: Tensor
    gradient: Tensor
    scale: Tensor
    residual: Tensor
    sure: Tensor
    steps: Tensor


def _judged(
    objective: Objective,
    energy: BoundAffine,
    splitter: Splitter,
    z: Float[Tensor, "batch d"],
    gradient: Float[Tensor, "batch d"],
    tol: float,
    steps: Int[Tensor, " batch"],
) -> _Judged:
    scale = objective.scale(energy.terms(gradient))
    residual, margin = violation(objective, z, gradient, scale)
    error = splitter.condition * residual
    sure = (error <= _ERROR * tol) & (margin > _CLEAR * error)
    return _Judged(z, gradient, scale, residual, sure, steps)
