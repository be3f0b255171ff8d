"""What keeps accelerated iterates from raising F, from leaving MM's basin, and from going round in circles."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from implicit_bregman.objective import Objective, Point
from implicit_bregman.solvers.progress import Progress, State

#: The most proposals in vain that may follow one another.
_CREDIT = 20
#: A proposal that lowers F by less than this share of what MM's step promises, and does not reduce the residual by this
#: factor, was in vain.
_SHARE, _CLEARLY = 0.5, 0.9
#: Without an objective, the residual of an accelerated iterate may exceed the least so far by this factor.
_RESIDUAL_GROWTH = 2.0


def judged(state: State, new: Point, proposed: Tensor, certifies: bool) -> tuple[Tensor, Tensor]:
    """The merit of each candidate, and whether it is accepted, (b,) each.

    The merit is F relative to the start; where there is no objective, the residual.

    Args:
        state: where the samples are.
        new: where they are to go.
        proposed: which of these are proposals, (b,); the others are MM's own steps.
        certifies: whether proposals may be followed because of a certificate.
    """
    objective, old, progress = state.objective, state.point, state.progress
    if not objective.energy.symmetric:
        merit = new.residual
        below = merit <= _RESIDUAL_GROWTH * progress.best
    else:
        increase, noise = objective.increase(old, new)
        # A change within the rounding error counts as none; one that overflows, as a rise.
        change = torch.where(increase.abs() <= noise, 0.0, increase)
        merit = progress.window[:, -1] + torch.where(torch.isfinite(increase + noise), change, torch.inf)
        # The certificate holds for points that do not lie above the one it was given at.
        below = merit <= (progress.window[:, -1] if certifies else progress.window.amax(-1))
    near = torch.linalg.vector_norm(new.value - progress.anchor, dim=-1) <= progress.radius
    accepted = below & near
    plain = objective.majorized(old, new) if objective.backtracks else torch.ones_like(proposed)
    return merit, torch.where(proposed, accepted, plain) & new.finite


def balanced(
    objective: Objective, old: Point, new: Point, progress: Progress, merit: Tensor, proposed: Tensor, gained: Tensor
) -> tuple[Progress, Tensor]:
    """What proposals in vain have cost, against the steps that were progress; those who have none left rest.

    A safeguard that lets the merit rise for a while cannot keep proposals from going round in a circle. Never more of
    them in vain than other steps, and a return to the lowest point when they are given up, bound the time of an
    accelerated method by about twice that of MM.

    Returns:
        The bookkeeping, and the samples that leave their lowest point for the first time, (b,).
    """
    if not objective.energy.symmetric:  # a residual may rise for long, of MM too
        return progress, torch.zeros_like(proposed)
    # Of what MM's step promises, a proposal has to bring a share, or else come clearly closer.
    promise, noise = objective.promised_decrease(old)
    worthwhile = (merit <= progress.lowest - _SHARE * promise) & (merit < progress.lowest)
    worthwhile = worthwhile | (new.residual < _CLEARLY * progress.best)
    # (where F is as low as rounding lets it be seen, any progress will do)
    vain = proposed & ~torch.where(promise <= noise, gained, worthwhile)
    first = vain & ~progress.astray & (merit > progress.lowest)
    balance = torch.where(vain, progress.balance - 1, progress.balance + 1).clamp_max(_CREDIT)
    tired = vain & (balance <= 0)
    after = replace(
        progress,
        balance=balance,
        astray=(progress.astray | first) & (merit > progress.lowest),
        rest=torch.where(tired, progress.patience, (progress.rest - 1).clamp_min(0)),
        patience=torch.where(tired, 2 * progress.patience, progress.patience),
    )
    return after, first


def returned(state: State) -> State:
    """Back at the lowest point where proposals are given up above it."""
    progress = state.progress
    back = progress.astray & (progress.rest > 0)
    if not bool(back.any()):
        return state
    window = torch.where(back[:, None], progress.lowest[:, None], progress.window)
    after = replace(progress, window=window, astray=progress.astray & ~back, restart=progress.restart | back)
    return replace(state, point=state.lowest_point.where(back, state.point), progress=after)
