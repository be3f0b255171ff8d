"""γ > 0: an iterate of Newton's method in the dual, and how the steps of a sample have gone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.objective import Objective, RowsOfTensors

#: Steps without a smaller error after which a sample as near as this, or at its rounding error, is left.
_IDLE, NEAR = 10, 1e-6


@dataclass(frozen=True)
class Iterate(RowsOfTensors):
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


def evaluate(objective: Objective, energy: BoundEnergy, dual: Tensor, steps: Tensor, tries: Tensor) -> Iterate:
    """The iterate y = `dual`, cut where there is no ρ(y)."""
    geometry = objective.geometry
    dual = geometry.gauged(geometry.into_dual_domain(dual))
    value = geometry.activation(dual)
    gradient = energy.gradient(value).detach()
    error = objective.total(gradient, dual)
    scale = objective.scale(energy.terms(gradient))
    return Iterate(dual, value, gradient, error, scale, (error.abs() / scale).amax(-1), steps, tries)


@dataclass(frozen=True)
class Course(RowsOfTensors):
    """How the steps of a sample have gone.

    Attributes:
        before: the error of the iterate before, (B,).
        best: the least error so far, (B,).
        idle: steps since it fell to a half, (B,).
        exact: whether the next direction has to be exact: the last one led nowhere, and E has not become smaller than
            ever since, (B,).
        chord: where the last step had to be shortened much, the slopes of ρ over the whole of it, (B, d): they tell
            which coordinates it would have pushed against a bound; else NaN.
        stuck: whether no step leads any further, (B,).
    """

    before: Tensor
    best: Tensor
    idle: Tensor
    exact: Tensor
    chord: Tensor
    stuck: Tensor

    @staticmethod
    def at_start(at: Iterate) -> Course:
        """No step has been made."""
        size, none = at.size, torch.full_like(at.dual, torch.nan)
        no = torch.zeros_like(size, dtype=torch.bool)
        return Course(torch.full_like(size, torch.nan), size, torch.zeros_like(size), no, none, no)

    def after(
        self, old: Tensor, new: Iterate, moved: Tensor, chord: Tensor, convex: bool, energy: BoundEnergy
    ) -> Course:
        """After a step from the error `old` to an iterate, or one that has found no way to go."""
        idle = torch.where(new.size < 0.5 * self.best, 0, self.idle + 1)
        stuck = ~moved & self.exact
        if not convex:
            # Steps that only find their way by the error may be on it to a point where the error is least.
            stuck = stuck | ~moved | (idle >= _IDLE)
        elif bool((idle >= _IDLE).any()):
            stuck = stuck | ((idle >= _IDLE) & (new.size <= rounding_error(energy, new).clamp_min(NEAR)))
        return Course(
            before=torch.where(moved, old, self.before),
            best=torch.minimum(self.best, new.size),
            idle=idle,
            exact=~moved | (self.exact & (new.size >= self.best)),
            chord=chord,
            stuck=stuck,
        )


def rounding_error(energy: BoundEnergy, at: Iterate) -> Tensor:
    """What rounding may make of the error, (B,)."""
    return (energy.hessian(at.value).rounding(at.value) / at.scale).amax(-1)


class Budget:
    """The products with H that are left to the conjugate gradients of all steps."""

    def __init__(self, products: int) -> None:
        self.left = products
