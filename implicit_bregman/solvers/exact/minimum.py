"""γ = 0 and one critical point of a quadratic f: from a guess of the active set to the exact point."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.objective import Objective
from implicit_bregman.operators.splitter import Splitter
from implicit_bregman.solvers.exact.active_set import solve_active_set, solve_projected_active_set
from implicit_bregman.solvers.exact.by_splitting import SplittingSteps, solve_by_splitting
from implicit_bregman.solvers.exact.interior_point import minimise_convex
from implicit_bregman.solvers.exact.result import ExactResult
from implicit_bregman.tensors import rows_where

#: Projected gradient steps that guess the active set.
_ALL = 7
#: A guess is not settled where the last step has changed the sets of more than this share of the samples; one that is
#: takes this share of the sets that are solved for.
_UNSETTLED, _SETTLED = 0.3, 0.25
#: Corrections of the active set before a sample is left to interior-point steps, and of a set that should be right.
_CORRECTIONS, _LAST_CORRECTIONS = 20, 8
#: The accuracy at which a splitting has mostly found the active set.
_SET = 1e-2


class Guess:
    """Projected gradient steps, which guess the active set.

    Args:
        objective: F.
        dual: the start.
        steps: how many to make.

    Attributes:
        energy: f.
        value: the point before the last step, (B, d).
        target: the point after it, (B, d); not projected, to tell on which side of a bound it ends.
        length: that of the steps.
        steps: their number.
    """

    def __init__(self, objective: Objective, dual: Float[Tensor, "batch d"], steps: int = _ALL) -> None:
        energy = objective.energy.factored
        assert energy is not None  # (who has no factorizations makes other steps)
        self.objective, self.energy, self.length = objective, energy, energy.gradient_step
        self._descent, self._bounds = energy.descent(self.length), objective.geometry.bounds(dual.dtype)
        self.value = objective.geometry.activation(dual)
        self.target = self._before = self._descent(self.value)
        self.steps = 1
        self.go_on(steps)

    def go_on(self, steps: int) -> None:
        """Make more steps, so that there are so many in all."""
        for _ in range(self.steps, steps):
            self._before, self.value = self.target, self.target.clamp(*self._bounds)
            self.target = self._descent(self.value)
        self.steps = max(self.steps, steps)

    def look(self) -> tuple[float, bool]:
        """How many bounds of a sample are active on average, and whether the last step changed the sets of many."""
        outside = self.target != self.target.clamp(*self._bounds)
        changed = (outside ^ (self._before != self.value)).any(-1)
        active, restless = torch.stack((outside.sum(), changed.sum())).tolist()
        return active / len(outside), restless > _UNSETTLED * len(outside)

    @property
    def can_split(self) -> bool:
        """Whether there are samples enough for the splitting's inverse to pay, and the size of H is known."""
        (batch, d), operator = self.target.shape, self.energy.operator
        return batch * operator.costs.splitting_per_sample >= d and math.isfinite(operator.factor.norm)

    def split(self, splitter: Splitter) -> SplittingSteps:
        """An operator splitting that starts here."""
        # A gradient step of the length α.
        target = torch.lerp(self.value, self.target, splitter.alpha / self.length)
        return SplittingSteps(self.objective, self.energy.offset, splitter, target)


def by_what_is_faster(guess: Guess, tol: float, max_iter: int) -> ExactResult:
    """By operator splitting where many bounds are active, else by the active set.

    A set that gradient steps are slow to find is guessed by a splitting too.

    Args:
        guess: the first steps.
        tol: bound on the residual.
        max_iter: bound on the number of iterations, sets and interior-point steps.
    """
    if not guess.can_split:
        return by_active_set(guess, tol, max_iter)
    d, operator = guess.target.shape[-1], guess.energy.operator
    costs = operator.costs
    active, is_unsettled = guess.look()
    # A set that has settled is solved for once, another several times.
    affordable = costs.splitting_iterations(active, d) * (1.0 if is_unsettled else _SETTLED)
    if affordable > costs.splitting_least or is_unsettled:
        splitter = Splitter.of(operator)
        if splitter.iterations(tol) <= affordable:
            return by_splitting(guess, guess.split(splitter), tol, max_iter)
        steps = _sharpened(guess, splitter, max_iter) if is_unsettled else None
        if steps is not None and splitter.iterations(tol) <= costs.splitting_iterations(guess.look()[0], d):
            return by_splitting(guess, steps, tol, max_iter)
    return by_active_set(guess, tol, max_iter)


def sharpen(guess: Guess, max_iter: int) -> None:
    """Guess the set by operator splitting where gradient steps are slow to find it and its inverse pays."""
    if guess.can_split and guess.look()[1]:
        _sharpened(guess, Splitter.of(guess.energy.operator), max_iter)


def _sharpened(guess: Guess, splitter: Splitter, max_iter: int) -> SplittingSteps | None:
    """The guess goes on by some iterations of the splitting; None where it takes too many."""
    count = splitter.iterations(_SET)
    if count > guess.energy.operator.costs.splitting_most:
        return None
    steps = guess.split(splitter)
    steps.advance(min(count, max_iter))
    guess.target, guess.steps = steps.target, guess.steps + steps.count
    return steps


def by_splitting(guess: Guess, steps: SplittingSteps, tol: float, max_iter: int) -> ExactResult:
    """By operator splitting; samples whose active set is then not certain, by correcting it."""
    found = solve_by_splitting(steps, guess.energy, tol, max_iter)
    found.tries.add_(guess.steps)
    rows = rows_where(~found.accepted)
    left = max_iter - int(found.steps.max())
    if len(rows) == 0 or left <= 1:
        return found
    again = _corrected(guess.objective.select(rows), steps.target[rows], tol, left)
    before = found.select(rows)
    return found.replace_rows(rows, replace(again, steps=before.steps + again.steps, tries=before.tries + again.tries))


def by_active_set(
    guess: Guess, tol: float, max_iter: int, steps: int = _ALL, corrections: int = _CORRECTIONS
) -> ExactResult:
    """By correcting the active set, a semismooth Newton method; by interior-point steps where it turns round.

    Args:
        guess: the first steps.
        tol: bound on the residual.
        max_iter: bound on the number of sets and interior-point steps.
        steps: how many steps are to guess the set.
        corrections: how often it is corrected.
    """
    guess.go_on(steps)
    found = _corrected(guess.objective, guess.target, tol, max_iter, corrections)
    found.tries.add_(guess.steps)
    return found


def _corrected(
    objective: Objective, target: Tensor, tol: float, max_iter: int, corrections: int = _CORRECTIONS
) -> ExactResult:
    lo, hi = objective.geometry.bounds(target.dtype)
    found = solve_projected_active_set(objective, target, tol, min(corrections, max_iter - 1))
    if found.complete:
        return found
    left = max_iter - int(found.steps.max())
    if left <= 1:
        return found
    rows = rows_where(~found.accepted)
    part = objective.select(rows)
    searched = minimise_convex(part, target[rows].clamp(lo, hi), tol, left - 1)
    # The set is right now: solve for its point once more, exactly.
    left -= int(searched.steps.max())
    exact = solve_active_set(
        part, searched.value, searched.gradient.to(target.dtype), tol, min(_LAST_CORRECTIONS, left - 1)
    )
    steps = found.steps[rows] + searched.steps + exact.steps
    tries = found.tries[rows] + searched.tries + exact.tries
    return found.replace_rows(rows, replace(exact, steps=steps, tries=tries))
