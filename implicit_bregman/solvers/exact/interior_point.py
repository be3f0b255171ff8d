"""γ = 0 and a convex quadratic f: a primal-dual interior-point method (Mehrotra, 1992) for bounds.

The number of its steps, 6 to 25, hardly depends on the problem: not on the condition of H, nor on how many sets of
active bounds are nearly as good. It ends next to the solution, from where projected Newton steps need one or two more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.energy.bound import BoundQuadratic
from implicit_bregman.objective import Objective, RowsOfTensors
from implicit_bregman.per_sample import Running, all_rows, iterate
from implicit_bregman.solvers.exact.projected_newton import projected_newton
from implicit_bregman.solvers.exact.result import ExactResult

#: Residual at which it ends if it is clear which coordinates are held, residual at which it ends anyway, and the steps
#: after which projected Newton steps take over in any case.
_NEAR, _NEARER, _STEPS = 1e-9, 1e-11, 60
#: It is clear where the distance to the bound falls so many times as much in one step as the multiplier, or reversely.
_CLEAR = 5.0
#: How far beyond where it has to be running away a sample is given up.
_FAR = 1e3
#: How much of the way to the nearest bound a step may go.
_SHORT_OF_BOUND = 0.995
#: Share of the box's width that the start keeps from its bounds.
_MARGIN = 0.1
#: The least multiplier of the start, relative to the terms of the gradient.
_LEAST_MULTIPLIER = 1e-3
#: Added to the diagonal where a coordinate does not move.
_STIFF = 1e20
#: Added to the system relative to its diagonal.
_DAMPING = 16 * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class _Iterate(RowsOfTensors):
    """An iterate inside C.

    Attributes:
        value: z, (B, d).
        multipliers: of the finite bounds, (B, bounds, d).
        tendency: the factor by which each multiplier changed in the last step over that of the distance to its bound:
            far below 1 where the bound is left, far above where it is reached (the indicators of Tapia, 1980),
            (B, bounds, d).
        residual: see `Objective.residual`, (B,).
        steps: (B,).
    """

    value: Tensor
    multipliers: Tensor
    tendency: Tensor
    residual: Tensor
    steps: Tensor


@dataclass(frozen=True)
class _Run(Running):
    """The samples that are still running.

    Attributes:
        energy: f.
        at: the iterates.
        far: the size of z beyond which a sample is given up, (b,).
        going: which are neither near a solution nor given up, (b,).
    """

    energy: BoundQuadratic
    at: _Iterate
    far: Tensor
    going: Tensor


def minimise_convex(objective: Objective, start: Float[Tensor, "batch d"], tol: float, max_steps: int) -> ExactResult:
    """A minimiser of f on C, by interior-point steps, and projected Newton steps from where they end.

    Args:
        objective: F with γ = 0 and a convex quadratic f.
        start: z⁰, in C.
        tol: bound on the residual.
        max_steps: bound on the number of steps of both kinds together.
    """
    energy = objective.energy.double().factored
    assert energy is not None
    far = _FAR * runaway(energy, objective.unit, torch.finfo(torch.float64).eps)
    if objective.geometry.is_everything:
        return projected_newton(objective, start, tol, max_steps, far=far)
    near, steps = _interior_point(objective, energy, start, max_steps, far)
    found = projected_newton(objective, near, tol, max_steps - int(steps.max()), far=far)
    return replace(found, steps=found.steps + steps, tries=found.tries + steps + 1)


def runaway(energy: BoundQuadratic, unit: float | Float[Tensor, " d"], eps: float) -> Float[Tensor, " batch"]:
    """How large z is, (B,), where it has to be running away if it has not converged.

    Args:
        energy: f in float64.
        unit: a length that counts as large for a coordinate.
        eps: the rounding error of the problem's data.
    """
    return (torch.as_tensor(unit).max() + energy.offset.abs().amax(-1) * energy.gradient_step) * eps**-0.75


def _interior_point(
    objective: Objective, energy: BoundQuadratic, start: Float[Tensor, "batch d"], max_steps: int, far: Tensor
) -> tuple[Float[Tensor, "batch d"], Float[Tensor, " batch"]]:
    """A point next to a minimiser of f on C, on its bounds where these hold it, and the steps it took, (B,).

    Args:
        objective: F with γ = 0; C has a finite bound.
        energy: f in float64, convex.
        start: z⁰.
        max_steps: bound on the number of steps.
        far: the size of z beyond which a sample is given up, (B,).
    """
    lo, hi = objective.geometry.bounds(objective.energy.dtype)
    sides = _Sides.of(objective, start.device)

    def step(run: _Run, count: int) -> _Run:
        new, energy = _step(run.energy, run.at, sides), run.energy
        gradient = energy.gradient(new.value)
        residual = objective.residual(new.value, gradient, objective.scale(energy.terms(gradient)), (lo, hi))
        new = replace(new, residual=residual)
        good = torch.isfinite(residual) & (new.value.abs().amax(-1) <= run.far)
        at = new.where(good, run.at)
        clear = sides.where_there(new.tendency.log().abs() > math.log(_CLEAR), True).all(-1).all(-1)
        return replace(run, at=at, going=good & (residual > torch.where(clear, _NEAR, _NEARER)))

    def going(run: _Run, count: int) -> Bool[Tensor, " batch"]:
        return run.going if count < min(max_steps, _STEPS) else torch.zeros_like(run.going)

    at = _start(energy, start, lo, hi, len(sides.sign))
    run = _Run(all_rows(far), energy, at, far, torch.ones_like(far, dtype=torch.bool))
    final = iterate(run, step, going, lambda run, _: run.at)
    z = final.value
    for number, bound in enumerate(sides.bound):
        z = torch.where(final.tendency[:, number] > 1, bound, z)
    return z, final.steps


@dataclass(frozen=True)
class _Sides:
    """The finite bounds: of all coordinates the lower ones, the upper ones, or both in this order.

    Attributes:
        sign: 1 for a lower bound, −1 for an upper one, (bounds, d), or (bounds, 1) where they are the same for all; 0
            where there is none.
        bound: where it is, in the same way.
        there: which there are; None: all. A coordinate with lo = hi has none, and does not move.
        pinned: which coordinates these are; None: none.
    """

    sign: Tensor
    bound: Tensor
    there: Tensor | None
    pinned: Tensor | None

    @classmethod
    def of(cls, objective: Objective, device: torch.device) -> _Sides:
        """Those of the points of C."""
        pinned = objective.geometry.pinned
        signs: list[Tensor] = []
        bounds: list[Tensor] = []
        for sign, end in zip((1.0, -1.0), objective.geometry.bounds(objective.energy.dtype), strict=True):
            bound = torch.as_tensor(end, dtype=torch.float64, device=device).reshape(-1)
            there = torch.isfinite(bound) if pinned is None else torch.isfinite(bound) & ~pinned
            if bool(there.any()) or not (sign > 0 or signs):
                signs.append(torch.where(there, sign, 0.0).double())
                bounds.append(torch.where(there, bound, 0.0))
        directions, places = torch.stack(signs), torch.stack(bounds)
        there = directions != 0
        return cls(directions, places, None if bool(there.all()) else there, pinned)

    def where_there(self, of_bounds: Float[Tensor, "batch bounds d"], other: float) -> Float[Tensor, "batch bounds d"]:
        """What belongs to bounds, and something else where there is none."""
        return of_bounds if self.there is None else torch.where(self.there, of_bounds, other)

    def mean(self, of_bounds: Float[Tensor, "batch bounds d"]) -> Float[Tensor, "batch 1 1"]:
        """Of all bounds that there are."""
        if self.there is None:
            return of_bounds.mean((1, 2), keepdim=True)
        count = self.there.sum().clamp_min(1)
        return self.where_there(of_bounds, 0.0).sum((1, 2), keepdim=True) / count


def _start(energy: BoundQuadratic, start: Tensor, lo: Any, hi: Any, bounds: int) -> _Iterate:
    """z⁰, moved away from the bounds, and multipliers as large as the gradient there."""
    length = energy.offset.abs().amax(-1, keepdim=True) * energy.gradient_step
    width = torch.as_tensor(hi - lo, dtype=torch.float64, device=length.device)
    room = torch.where(torch.isfinite(width), _MARGIN * width, length.clamp_min(1.0))
    z = torch.minimum(torch.maximum(start.double(), lo + room), hi - room)
    gradient = energy.gradient(z)
    # (not 0 where z happens to be a minimiser)
    least = _LEAST_MULTIPLIER * energy.terms(gradient).amax(-1)
    largest = torch.maximum(gradient.abs().amax(-1), torch.where(least > 0, least, 1.0))
    multipliers = largest[:, None, None].expand(-1, bounds, z.shape[-1])
    none = torch.zeros_like(largest, dtype=torch.int64)
    return _Iterate(z, multipliers, torch.ones_like(multipliers), torch.full_like(largest, torch.inf), none)


def _step(energy: BoundQuadratic, at: _Iterate, sides: _Sides) -> _Iterate:
    """Mehrotra's predictor and corrector with one factorization of H + diag(Σ m/s), s the distances to the bounds."""
    sign, z, m = sides.sign, at.value, at.multipliers
    # (where there is no bound s and m are 1 and do not change)
    s = sides.where_there(sign * (z[:, None, :] - sides.bound), 1.0)
    unmet = energy.gradient(z) - (sign * m).sum(1)
    diagonal = energy.operator.diagonal().abs()
    least = _DAMPING * z.shape[-1] * diagonal
    if sides.pinned is not None:
        least = torch.where(sides.pinned, _STIFF * (1 + diagonal.max()), least)
    inverse = energy.operator.systems(sides.where_there(m / s, 0.0).sum(1) + least).factorized()

    def direction(complement: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        complement = sides.where_there(complement, 0.0)
        right = (sign * complement / s).sum(1) - unmet
        move = inverse(right)
        change = sign * move[:, None, :]
        # (0 where there is no bound, since `change` is)
        return move, change, (complement - m * change) / s

    _, ds, dm = direction(-m * s)
    length = torch.minimum(_longest(s, ds), _longest(m, dm))
    gap = sides.mean(m * s)
    after = sides.mean((s + length * ds) * (m + length * dm))
    centre = (
        (after / gap).pow(3) * gap if sides.there is None else (after / torch.where(gap > 0, gap, 1.0)).pow(3) * gap
    )
    move, ds, dm = direction(centre - m * s - ds * dm)
    length = (_SHORT_OF_BOUND * torch.minimum(_longest(s, ds), _longest(m, dm))).clamp_max(1.0)
    s_ratio, m_ratio = 1 + length * ds / s, 1 + length * dm / m
    return replace(
        at, value=z + length[:, 0] * move, multipliers=m * m_ratio, tendency=m_ratio / s_ratio, steps=at.steps + 1
    )


def _longest(x: Float[Tensor, "batch bounds d"], dx: Tensor) -> Float[Tensor, "batch 1 1"]:
    """The longest step of at most 1/0.995 along dx that leaves x ≥ 0."""
    shrinks = (-dx / x).amax((1, 2), keepdim=True)
    return 1 / shrinks.clamp_min(_SHORT_OF_BOUND)
