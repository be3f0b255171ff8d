"""γ > 0: the critical point by operator splitting, in the precision of the samples, then corrected in float64.

The strong convexity of γφ, μ = γσ, is made H's share. With H' = H + μI and R = (I + αH')⁻¹ the iteration is

    t = (2R − I)u + 2αRc,    (1 − αμ)ρ(y) + αγy = t for y,    u ← 2ρ(y) − t.

What is left of φ is convex, its reflection no expansion, and that of H' contracts by (√κ − 1)/(√κ + 1) with
κ = (L + μ)/(m + μ). Of the scalar equations one Newton step is made, from the last y, as long as it leaves a small part
of the change of t. That change is also what the error is known by: at z = ρ(y) that of the critical point's equation is
γy + ∇f(z) = −(I + αH')Δt/2α, Δt the step that follows.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.energy.bound import BoundAffine
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre.prox import prox_dual
from implicit_bregman.objective import Objective
from implicit_bregman.operators.splitter import FAR_ABOVE, Splitter
from implicit_bregman.solvers.exact.dual_newton import dual_result
from implicit_bregman.solvers.exact.dual_state import Iterate, evaluate
from implicit_bregman.solvers.exact.result import ExactResult
from implicit_bregman.solvers.exact.solve import rounding_accepted
from implicit_bregman.tensors import rows_where

#: Newton steps on the scalar equations, and the part of the change they may leave, before these are solved exactly.
_STEPS, _PART = 2, 0.1
#: The share of the tolerance aimed at; the rounding errors that are left at least, of the scalar equations and of E.
_AIM, _ROUNDED, _LEFT = 0.3, 4, 32
#: Iterations, relative to what is expected, and those without a smaller step after which a sample has met rounding.
_LONGEST, _IDLE = 2, 2
#: Most corrections, the share of the tolerance from which on there is none, and what one has to leave at most.
_CORRECTIONS, _ENOUGH, _GAIN = 3, 0.5, 0.5


def split_dual(
    objective: Objective,
    energy: BoundAffine,
    splitter: Splitter,
    dual: Float[Tensor, "batch d"],
    tol: float,
    max_iter: int,
) -> ExactResult:
    """The critical points, accepted where E = γy + ∇f(ρ(y)) is small relative to its terms.

    Args:
        objective: F, with γ > 0, one critical point and a quadratic f.
        energy: f.
        splitter: of the Hessian.
        dual: the start y.
        tol: bound on the residual.
        max_iter: bound on the iterations.
    """
    near, steps = _iterated(objective, energy, splitter, dual, tol, max_iter)
    # (rounding in E matters where it comes near to what is asked for)
    precise = tol < FAR_ABOVE * torch.finfo(near.dtype).eps
    wide, near = (energy.double(), near.double()) if precise else (energy, near)
    at = evaluate(objective, wide, near, steps, torch.ones_like(steps))
    for _ in range(_CORRECTIONS):
        rows = rows_where(at.size > _ENOUGH * tol)
        if len(rows) == 0:
            break
        before = at.select(rows)
        after = _corrected(objective, wide.select(rows), splitter.select(rows), before, tol)
        better = after.size < before.size
        at = at.replace_rows(rows, after.where(better, replace(before, tries=after.tries)))
        if not bool((after.size <= _GAIN * before.size).any()):
            break
    return replace(rounding_accepted(objective, dual_result(objective, at, tol), tol), splitter=splitter)


def _iterated(
    objective: Objective, energy: BoundAffine, splitter: Splitter, dual: Tensor, tol: float, max_iter: int
) -> tuple[Float[Tensor, "batch d"], Int[Tensor, " batch"]]:
    """y of each sample where E is about small enough, or as small as it becomes, and the iterations until then."""
    eps = torch.finfo(dual.dtype).eps
    prox = _Prox(objective.geometry, objective.regularization, splitter)
    level = max(_AIM * tol, _LEFT * eps)
    weight = objective.scale(energy.offset.abs()).reciprocal().mul_(splitter.per_step)
    # (2R − I)u + 2αRc = (2R − I)(u + αc) + αc
    force, most = splitter.embed(energy.offset) * splitter.alpha, min(max_iter, _LONGEST * splitter.iterations(level))
    y, z = dual, objective.geometry.activation(dual)
    # A start in the middle says nothing of z, another also what it is on the larger space of a dilation.
    given = dual != objective.geometry.middle
    first = splitter.forward(z, energy.offset) if bool(given.any()) else None
    u = splitter.embed(torch.lerp(prox.image(y, z), z, 2.0))
    final, steps, before = y, torch.zeros(len(y), dtype=torch.int64, device=y.device), None
    idle, going = torch.zeros_like(steps), torch.ones_like(steps, dtype=torch.bool)
    for count in range(1, most + 1):
        if count == 1 and first is not None:
            u, v = torch.lerp(first, splitter.embed(z), 2.0), first
        else:
            v = splitter.reflect(u.add_(force), force)
        y, z, change = prox.after(splitter.restrict(v), y, z)
        u = splitter.moved(u, v, z)
        size = change.mul_(weight).abs_().amax(-1)
        final, steps = torch.where(going[:, None], y, final), torch.where(going, count, steps)
        # (one step further it is smaller as the last one was)
        left = size if before is None else size * (size / before).clamp_max_(1.0)
        idle = idle if before is None else torch.where(size < 0.9 * before, 0, idle + 1)
        going = going & (left > level) & (idle < _IDLE)
        before = size
        if not bool(going.any()):
            break
    return final, steps


def _corrected(objective: Objective, energy: BoundAffine, splitter: Splitter, at: Iterate, tol: float) -> Iterate:
    """The iterates after a step of Newton's method, whose linear system is split the same way."""
    slope = objective.geometry.slope(at.dual)
    aim, weight = tol / float(at.size.max()), at.scale.amin(-1, keepdim=True) / at.scale
    move = splitter.solve_scaled(slope, objective.regularization, -at.error, weight, max(aim, 1e-4))
    return evaluate(objective, energy, at.dual + move.value.to(at.dual.dtype), at.steps + 1, at.tries + 1)


class _Prox:
    """The map from t to y with (1 − αμ)ρ(y) + αγy = t.

    Args:
        geometry: φ.
        gamma: γ.
        splitter: whose α and μ they are.
    """

    def __init__(self, geometry: MirrorMap, gamma: float, splitter: Splitter) -> None:
        self._geometry = geometry
        self._own, self._weight = splitter.prox_weight, splitter.alpha * gamma

    def image(self, y: Float[Tensor, "batch d"], z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """t, of y and z = ρ(y)."""
        return (self._own * z).add_(y, alpha=self._weight)

    def after(
        self, t: Float[Tensor, "batch d"], y: Float[Tensor, "batch d"], z: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch d"], Float[Tensor, "batch d"]]:
        """y, z = ρ(y) and the change of t, from y and z before."""
        change = excess = t - self.image(y, z)
        rounding = _ROUNDED * torch.finfo(t.dtype).eps * t.abs().amax(-1)
        enough = torch.maximum(_PART * change.abs().amax(-1), rounding)
        for _ in range(_STEPS):
            y = y + excess / (self._own * self._geometry.slope(y)).add_(self._weight)
            z = self._geometry.activation(y)
            excess = t - self.image(y, z)
            if bool((excess.abs().amax(-1) <= enough).all()):
                return y, z, change
        y = prox_dual(self._geometry, t / self._own, self._weight / self._own, y)
        return y, self._geometry.activation(y), change
