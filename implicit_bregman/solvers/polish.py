"""KKT polish: for γ = 0 and an affine ∇f, one solve on the free block gives the critical point exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Bool
from torch import Tensor

from implicit_bregman.energy.base import BoundEnergy
from implicit_bregman.linalg.masked import solve_on_free_set
from implicit_bregman.objective import Objective, Point, RowsOfTensors

#: How often the active set of a problem with one critical point is corrected within one polish.
_CORRECTIONS = 8


@dataclass(frozen=True)
class Polished(RowsOfTensors):
    """What a polish found, one row per sample.

    Attributes:
        value, dual: z and y, (B, d). An active coordinate sits on the float next to its bound inside C; its dual
            is finite and saturated.
        exact: the float64 point before rounding to `value`, possibly outside C if not accepted, (B, d).
        free: which coordinates are not at a bound, (B, d).
        gradient: ∇f at `exact`, in float64, (B, d).
        residual: as in `Point`, (B,).
        accepted: whether the KKT conditions hold within the tolerance, (B,).
        degenerate: whether one of them holds without margin, (B,).
        tries: active sets that were solved for, (B,).
    """

    value: Tensor
    dual: Tensor
    exact: Tensor
    free: Tensor
    gradient: Tensor
    residual: Tensor
    accepted: Tensor
    degenerate: Tensor
    tries: Tensor


def can_polish(objective: Objective) -> bool:
    """Whether a polish exists for this kind of problem."""
    return objective.energy.affine and objective.regularization == 0


def active_set(objective: Objective, point: Point) -> tuple[Bool[Tensor, "batch d"], Bool[Tensor, "batch d"]]:
    """The coordinates that a projected gradient step would put on the lower and on the upper bound."""
    return _projected(objective, point.value, point.gradient, objective.geometry.bounds(point.value.dtype))


def polish(objective: Objective, point: Point, tol: float) -> Polished:
    """Solve for the critical point that has the active set of `point`, and test it.

    If F has only one critical point, a set that fails is corrected by the signs it violates and solved for again
    (the primal-dual active-set iteration of Hintermüller, Ito and Kunisch, 2002), a few times at most: whatever
    then passes the KKT test is the solution. Otherwise the first set has to be right. One evaluation of ∇f a try.

    All of it is done in float64, so that a float32 solve loses no digits here.

    Args:
        objective: F, with γ = 0 and a quadratic f.
        point: the iterates.
        tol: how far, relative to the scale of the residual, the KKT conditions may be violated. A multiplier or a
            distance to a bound below ten times this is called degenerate.
    """
    energy = objective.energy.double()
    bounds = objective.geometry.bounds(point.value.dtype)
    at_lo, at_hi = active_set(objective, point)
    found = _solve(objective, energy, at_lo, at_hi, tol)
    if objective.unique:
        for _ in range(_CORRECTIONS):
            wrong = (~found.accepted & torch.isfinite(found.exact.sum(-1))).nonzero().squeeze(-1)
            if len(wrong) == 0:
                break
            part = found.select(wrong)
            at_lo, at_hi = _projected(objective, part.exact, part.gradient, bounds)
            retried = _solve(objective, energy.select(wrong), at_lo, at_hi, tol)
            found = found.replace_rows(wrong, replace(retried, tries=part.tries + 1))
    return found


def _projected(
    objective: Objective, value: Tensor, gradient: Tensor, bounds: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    curvature = objective.energy.curvature
    length = 1.0 if curvature is None else 1 / curvature.clamp_min(torch.finfo(curvature.dtype).tiny)
    target = value - length * gradient
    return target < bounds[0], target > bounds[1]


def _on_bounds(at_lo: Tensor, at_hi: Tensor, lo: float, hi: float) -> Tensor:
    """`lo` or `hi` where a coordinate is active, 0 elsewhere, in float64."""
    zero = torch.zeros(at_lo.shape, dtype=torch.float64, device=at_lo.device)
    return zero.masked_fill(at_lo, lo).masked_fill(at_hi, hi)


def _solve(objective: Objective, energy: BoundEnergy, at_lo: Tensor, at_hi: Tensor, tol: float) -> Polished:
    """The point with the given active set, in float64, and whether the KKT conditions hold there."""
    matrix = energy.shared_hessian
    assert matrix is not None  # can_polish
    dtype = objective.energy.dtype
    lo, hi = objective.geometry.bounds(dtype)
    free = ~(at_lo | at_hi)
    on_bounds = _on_bounds(at_lo, at_hi, lo, hi)
    inside, solved = solve_on_free_set(matrix, free, -energy.gradient(on_bounds), energy.symmetric)
    exact = torch.where(free, inside, on_bounds)

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
    saturated = _on_bounds(at_lo, at_hi, y_lo, y_hi)
    dual = torch.where(free, dual, saturated).clamp(y_lo, y_hi).to(dtype)
    return Polished(
        value=exact.clamp(lo, hi).to(dtype),
        dual=dual,
        exact=exact,
        free=free,
        gradient=at.gradient,
        residual=residual.to(dtype),
        accepted=accepted,
        degenerate=thin & accepted,
        tries=torch.ones_like(accepted, dtype=torch.int64),
    )


@dataclass(frozen=True)
class PolishSchedule(RowsOfTensors):
    """When to polish: once the active set has stood still, and never twice for the same set without need.

    Attributes:
        code: a hash of the active set, (B,).
        refused: the hash of the last set whose polish failed, (B,).
        stable: for how many steps the set has stood still, (B,).
        wait: for how many it has to, (B,); doubled by each failure.
    """

    code: Tensor
    refused: Tensor
    stable: Tensor
    wait: Tensor

    @classmethod
    def start(cls, batch: int, device: torch.device) -> PolishSchedule:
        """A schedule that has seen nothing yet."""
        zeros = torch.zeros(batch, dtype=torch.int64, device=device)
        return cls(zeros - 1, zeros - 1, zeros, zeros + 3)

    def update(self, objective: Objective, point: Point) -> PolishSchedule:
        """Take note of the active set of the next iterate."""
        at_lo, at_hi = active_set(objective, point)
        keys = _hash_keys(point.value.shape[-1], at_lo.device)
        code = (at_lo * keys[0] + at_hi * keys[1]).sum(-1)
        stable = torch.where(code == self.code, self.stable + 1, 0)
        return PolishSchedule(code, self.refused, stable, self.wait)

    @property
    def due(self) -> Bool[Tensor, " batch"]:
        """Which samples are to be polished now."""
        return (self.stable >= self.wait) & (self.code != self.refused)

    def failed(self, mask: Bool[Tensor, " batch"]) -> PolishSchedule:
        """The schedule after the polish of some samples was refused."""
        return PolishSchedule(
            self.code,
            torch.where(mask, self.code, self.refused),
            self.stable,
            torch.where(mask, 2 * self.wait, self.wait),
        )


@lru_cache(maxsize=32)
def _hash_keys(width: int, device: torch.device) -> Tensor:
    """Fixed random whole numbers, (2, width): sums over different sets of them differ."""
    return torch.randint(1, 2**40, (2, width), generator=torch.Generator().manual_seed(0)).to(device)
