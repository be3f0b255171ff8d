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
from implicit_bregman.tensors import rows_where

#: So many looks at the residual are taken in the iterations that the condition suggests, and at most that many of them.
_LOOKS, _LONGEST = 8, 3
#: A residual above this share of the one before is rounding, or next to no progress.
_GAIN = 0.7
#: The residual of z may be a few times that of the iteration, which rounding keeps above so many times its unit.
_ASK, _ROUNDED = 0.3, 4
#: The error that is left where the set is certain, relative to the tolerance: float64 has digits to spare.
_ERROR = {torch.float32: 2.0, torch.float64: 0.2}
#: The least size of z that the error is measured by.
_TINY = 1e-4
#: Where it is not, a margin below so many times the tolerance counts as none.
_THIN = 10.0
#: A set is certain where all margins exceed so many times the error.
_CLEAR = 10.0


class SplittingSteps:
    """Iterations of the splitting, for all samples together.

    Args:
        objective: F, with γ = 0, one critical point and a quadratic f.
        offset: c, (B, d).
        splitter: of the Hessian.
        target: z − α∇f(z) at some z, to start from.

    Attributes:
        target: 2x − u, (B, d), which is z − α∇f(z) in the limit.
        count: how many were made.
    """

    def __init__(
        self,
        objective: Objective,
        offset: Float[Tensor, "batch d"],
        splitter: Splitter,
        target: Float[Tensor, "batch d"],
    ) -> None:
        self.objective, self.splitter, self._offset = objective, splitter, offset
        self._bounds, self._base = objective.geometry.bounds(target.dtype), splitter.base(offset)
        self.target, self.count = target, 0
        # u, and 2x − u, where the iteration works.
        self._before = self._after = target

    def advance(self, count: int) -> None:
        """Make some iterations."""
        splitter = self.splitter
        for _ in range(count):
            z = self.target.clamp(*self._bounds)
            if self.count:
                self._before = splitter.moved(self._before, self._after, z)
            else:
                # Whatever u the start had, α∇f(z) = z − target gives it.
                self._before = splitter.embed(torch.lerp(self.target, z, 2.0))
            self._after = splitter.reflect(self._before, self._base)
            self.target = splitter.restrict(self._after)
            self.count += 1

    def advance_until(self, level: float, max_iter: int) -> tuple[Float[Tensor, "batch d"], Int[Tensor, " batch"]]:
        """`target` of each sample where its residual is about `level`, or does not fall any more, and when that was."""
        # |z − x| bounds the distance to a bound that holds z, and α times the gradient elsewhere.
        scale = self.objective.scale(self._offset.abs())
        weight = (self.splitter.alpha * scale).reciprocal_().clamp_min_(1.0)
        few = self.splitter.iterations(level)
        most, every = min(max_iter, _LONGEST * few), max(2, few // _LOOKS)
        self.advance(min(most, max(1, few // 2)) - self.count)
        final, stopped, before = self.target, torch.full_like(self.target[:, 0], self.count, dtype=torch.int64), None
        going = torch.ones_like(stopped, dtype=torch.bool)
        while True:
            x = torch.lerp(self.splitter.restrict(self._before), self.target, 0.5)
            gap = (self.target.clamp(*self._bounds) - x).mul_(weight).abs_().amax(-1)
            final = torch.where(going[:, None], self.target, final)
            stopped = torch.where(going, self.count, stopped)
            going = going & (gap > level) & (True if before is None else gap <= _GAIN * before)
            if self.count >= most or not bool(going.any()):
                return final, stopped
            before = gap
            self.advance(min(every, most - self.count))


def solve_by_splitting(steps: SplittingSteps, energy: BoundAffine, tol: float, max_iter: int) -> ExactResult:
    """The critical points, not accepted where the active set is not certain.

    Args:
        steps: those made so far, which are continued.
        energy: f.
        tol: bound on the residual.
        max_iter: bound on the iterations.
    """
    objective, splitter = steps.objective, steps.splitter
    lo, hi = objective.geometry.bounds(steps.target.dtype)
    aim = _ERROR[steps.target.dtype] * tol
    level = aim / splitter.condition
    reached = max(_ASK * level, _ROUNDED * torch.finfo(steps.target.dtype).eps)
    target, stopped = steps.advance_until(reached, max_iter)
    wide = energy.double()
    free, z = objective.movable((target >= lo) & (target <= hi)), target.clamp(lo, hi).double()
    at = _judged(objective, wide, splitter, z, wide.gradient(z), tol, aim, torch.ones_like(stopped))
    rows = rows_where(~at.sure)
    if len(rows):
        f, inside, before = wide.select(rows), free[rows], at.select(rows)
        size = float(before.z.abs().amax(-1).clamp(_TINY, 1.0).min())
        solved = splitter.refine_on(inside, f.offset, before.z, 0.5 * level * size, objective.floor)
        tries = before.tries + solved.products
        at = at.replace_rows(rows, _judged(objective, f, splitter, solved.value, solved.excess, tol, aim, tries))
    found = at_point(objective, at.z, free, at.gradient, at.scale, at.residual, at.sure, at.thin)
    return replace(found, steps=stopped, tries=at.tries, splitter=splitter)


@dataclass(frozen=True)
class _Judged(RowsOfTensors):
    """Points, and whether they are near their limits and their active sets certain.

    Attributes:
        z, gradient, scale: the points, ∇f there, and what its entries are measured against, (B, d).
        residual: see `Objective.residual`, (B,).
        sure: the verdict, (B,).
        thin: whether a margin is as small as the tolerance, (B,).
        tries: evaluations of ∇f, (B,).
    """

    z: Tensor
    gradient: Tensor
    scale: Tensor
    residual: Tensor
    sure: Tensor
    thin: Tensor
    tries: Tensor


def _judged(
    objective: Objective,
    energy: BoundAffine,
    splitter: Splitter,
    z: Float[Tensor, "batch d"],
    gradient: Float[Tensor, "batch d"],
    tol: float,
    aim: float,
    tries: Int[Tensor, " batch"],
) -> _Judged:
    scale = objective.scale(energy.terms(gradient))
    residual, margin = violation(objective, z, gradient, scale)
    error = splitter.condition * residual
    # (a small z is wanted to as many digits)
    small = error <= aim * z.abs().amax(-1).clamp_max(1.0)
    sure = small & (residual <= tol) & (margin > _CLEAR * error)
    return _Judged(z, gradient, scale, residual, sure, ~sure & (margin <= _THIN * tol), tries)
