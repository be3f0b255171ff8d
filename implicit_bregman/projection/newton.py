"""Newton's method for the dual problem of the Bregman projection."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.linalg.gram import weighted_gram
from implicit_bregman.objective import RowsOfTensors
from implicit_bregman.projection.basis import Basis
from implicit_bregman.projection.problem import At, DualProblem, dual_problem

#: Newton steps after which a sample is given up, and those within which its smallest gradient has to halve.
_STEPS, _PATIENCE = 300, 150
#: So many steps are made before it is asked whether the system has no solution.
_HOPEFUL = 2
#: A Newton step with the ridge c‖gradient‖ is at most 1/c long; so long is the first one.
_FIRST_REACH = 10.0
#: Bounds of that length: below, no step is worth trying any more; above, it overflows.
_LEAST_REACH, _MOST_REACH = 1e-14, 1e307
#: Trial lengths along one direction.
_TRIALS = 40
#: Within this factor of the rounding error a gradient that no longer halves is as small as it gets.
_NEAR_ROUNDING = 1e3
#: The tolerance of equations that are to hold as far as rounding lets them.
_ROUNDING = 1e-15


@dataclass(frozen=True)
class Minimiser(RowsOfTensors):
    """Where the minimisation ended.

    Attributes:
        dual: y, (B, d).
        steps, evaluations: (B,).
        refuted: whether the system was proved to have no solution, (B,).
        limited: whether `max_iter` ended it, (B,).
    """

    dual: Tensor
    steps: Tensor
    evaluations: Tensor
    refuted: Tensor
    limited: Tensor


@dataclass(frozen=True)
class _State(RowsOfTensors):
    """The samples that are still running.

    Attributes:
        rows: which they are, (b,).
        evaluations: (b,).
        stuck: whether the last step did not halve the gradient, (b,).
        best, idle: the smallest gradient, and the steps since it was last halved, (b,).
        reach: how long a Newton step may be, (b,).
    """

    rows: Tensor
    evaluations: Tensor
    stuck: Tensor
    best: Tensor
    idle: Tensor
    reach: Tensor


def minimise(problem: DualProblem, max_iter: int, history: list[tuple[Tensor, Tensor]] | None) -> Minimiser:
    """Newton's method with a ridge of c‖gradient‖, and a search along its direction for the slope to end.

    The ridge keeps saturation in one direction (a curvature near 0) from shortening the step in the others, as a
    search along Newton's direction alone would; the convergence is superlinear (Li, Fukushima, Qi and Yamashita, 2004).
    The search goes far where the curvature changes by orders of magnitude on the way (exp, arcsinh). Slopes decide it,
    which unlike values neither cancel nor overflow.
    """
    at = problem.evaluate(torch.zeros_like(problem.target), problem.start)
    none = torch.zeros_like(at.size, dtype=torch.bool)
    count = torch.zeros_like(at.size, dtype=torch.int64)
    result = Minimiser(at.dual, count, count + 1, none, none)
    rows = torch.arange(len(count), device=count.device)
    state = _State(rows, count + 1, none, at.size, count, torch.full_like(at.size, _FIRST_REACH))
    for step in range(min(max_iter, _STEPS) + 1):
        if history is not None:
            history.append((state.rows, at.dual))
        # (which takes as much as a step, and most samples are solved in a few)
        refuted = problem.is_infeasible(at) if step >= _HOPEFUL else none[state.rows]
        near = (at.size <= _NEAR_ROUNDING * at.rounding) | problem.holds(at)
        flat = (at.size <= torch.maximum(at.rounding, problem.nothing)) | (near & state.stuck)
        stopped = flat | refuted | (state.reach < _LEAST_REACH) | ~torch.isfinite(at.size)
        limited = ~stopped & (step >= max_iter)
        stopped = stopped | limited | (state.idle >= _PATIENCE) | torch.full_like(stopped, step >= _STEPS)
        if bool(stopped.any()):
            ended = torch.full_like(state.evaluations, step)
            end = Minimiser(at.dual, ended, state.evaluations, refuted, limited)
            done, kept = stopped.nonzero().squeeze(-1), (~stopped).nonzero().squeeze(-1)
            result = result.replace_rows(state.rows[done], end.select(done))
            problem, at, state, near = problem.select(kept), at.select(kept), state.select(kept), near[kept]
        if len(state.rows) == 0:
            break
        move = _direction(problem, at, state.reach)
        new, length, trials = _search(problem, at, move)
        # Where the equations hold as far as they can, a step that brings nothing is not made.
        worse = near & ~(new.size < at.size)
        new, length = at.where(worse, new), torch.where(worse, 0.0, length)
        moved = (length[:, None] * move).abs().amax(-1)
        longer = torch.maximum(8 * state.reach, 8 * moved).clamp_max(_MOST_REACH)
        shorter = torch.where(length >= 0.25, state.reach, state.reach * length.clamp_min(0.05))
        halved = new.size <= 0.5 * state.best
        state = replace(
            state,
            evaluations=state.evaluations + trials,
            stuck=new.size > 0.5 * at.size,
            best=torch.where(halved, new.size, state.best),
            idle=torch.where(halved, 0, state.idle + 1),
            reach=torch.where(length >= 1, longer, shorter),
        )
        at = new
    return result


def nearest(
    geometry: LegendreFunction,
    basis: Float[Tensor, "d k"],
    start: Float[Tensor, "batch d"],
    target: Float[Tensor, "batch k"],
) -> tuple[Float[Tensor, "batch d"], Tensor]:
    """The dual of the point with Qᵀz = `target` that is nearest to ρ(y⁰) in the sense of D, and the steps taken, (B,).

    As far as rounding lets it; where no point inside C has Qᵀz = `target`, y ends far out.

    Args:
        geometry: φ.
        basis: Q, with orthonormal columns, in float64.
        start: y⁰, in float64.
        target: Qᵀz.
    """
    if not basis.shape[1]:
        return start, torch.zeros_like(start[:, 0], dtype=torch.int64)
    problem = dual_problem(Basis.of(basis), target, geometry, start, 0.0, _ROUNDING)
    found = minimise(problem, _STEPS, None)
    return found.dual, found.steps


def _direction(problem: DualProblem, at: At, reach: Tensor) -> Tensor:
    """Newton's step with the ridge; where rounding spoils it, that of the ridge alone."""
    ridge = (at.size / reach)[:, None]
    hessian = weighted_gram(problem.basis.range, at.slope)
    if problem.softness:
        hessian = hessian + problem.metric[0]
    hessian = hessian + torch.diag_embed(ridge.expand_as(at.mu))
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    factor, info = torch.linalg.cholesky_ex(scale[:, :, None] * hessian * scale[:, None, :])
    move = -scale * torch.cholesky_solve((scale * at.gradient)[:, :, None], factor).squeeze(-1)
    usable = (info == 0) & torch.isfinite(move.sum(-1)) & ((at.gradient * move).sum(-1) < 0)
    move = torch.where(usable[:, None], move, -at.gradient / ridge)
    return move * problem.most_length(at, move)[:, None].clamp_max(1.0)


def _search(problem: DualProblem, at: At, move: Tensor) -> tuple[At, Tensor, Tensor]:
    """The iterate at t·`move`, t (0 where none was found), and the number of trials, (B,).

    By convexity the objective has fallen where the slope along the way is still negative at its end. A t is accepted
    if at least half of the slope is gone then, or half of the gradient.
    """
    opening = (at.gradient * move).sum(-1)
    new = problem.moved(at, move)
    slope = (new.gradient * move).sum(-1)
    length = torch.ones_like(opening)
    trials = torch.ones_like(opening, dtype=torch.int64)
    done = _is_accepted(at, new, opening, slope)
    if bool(done.all()):
        return new, length, trials
    length = torch.where(done, length, 0.0)
    new = new.where(done, at)
    rows = (~done).nonzero().squeeze(-1)
    low, high = torch.zeros_like(opening), torch.full_like(opening, torch.inf)
    trial, factor = torch.ones_like(opening), torch.full_like(opening, 4.0)
    most = problem.most_length(at, move)
    for _ in range(_TRIALS):
        falls = slope[rows] <= 0
        low[rows] = torch.where(falls, trial[rows], low[rows])
        high[rows] = torch.where(falls, high[rows], trial[rows])
        trial[rows] = _next_length(low[rows], high[rows], factor[rows]).minimum(most[rows])
        factor[rows] = factor[rows].square().clamp_max(1e16)
        rows = rows[(trial[rows] > low[rows]) & (trial[rows] < high[rows]) & (trial[rows] > 1e-30)]
        if len(rows) == 0:
            break
        start = at.select(rows)
        tried = problem.select(rows).moved(start, trial[rows, None] * move[rows])
        slope[rows] = (tried.gradient * move[rows]).sum(-1)
        trials[rows] += 1
        accepted = _is_accepted(start, tried, opening[rows], slope[rows])
        # The farthest descent so far is kept for the case that nothing better turns up.
        better = accepted | (slope[rows] <= 0)
        new = new.replace_rows(rows, tried.where(better, new.select(rows)))
        length[rows] = torch.where(better, trial[rows], length[rows])
        rows = rows[~accepted]
    return new, length, trials


def _is_accepted(at: At, new: At, opening: Tensor, slope: Tensor) -> Tensor:
    return torch.isfinite(new.size) & (((slope <= 0) & (slope >= 0.5 * opening)) | (new.size <= 0.5 * at.size))


def _next_length(low: Tensor, high: Tensor, factor: Tensor) -> Tensor:
    """Out by growing factors, or in between: geometrically while the ends are far apart."""
    between = torch.where(high > 4 * low, (low * high).sqrt(), 0.5 * (low + high))
    between = torch.where(low > 0, between, high / factor)
    return torch.where(torch.isinf(high), low * factor, between)
