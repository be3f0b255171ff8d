"""The Bregman projection: the low-rank problem, solved in its r-dimensional dual.

MM on f = ½‖Vᵀz − β‖² moves y within y⁰ + range(V). Its limit is z = ρ(y⁰ + Vλ), where λ minimises the smooth convex
function Σφ*(y⁰ + Vλ) − βᵀλ + (ε/2)‖λ‖². Three problems have this form:

* γ = 0, where Vᵀz = β has a solution inside C: ε = 0, the Bregman projection of z⁰ onto {Vᵀz = β}
  (Bauschke and Borwein, 1997);
* γ = 0, where it has none: the softened form min D(z, z⁰) + ‖Vᵀz − β‖²/(2ε) with the energy's ε;
* γ > 0: the critical point of f + γφ, with y⁰ = 0 and ε = γ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.energy.low_rank import Basis, BoundLowRank, column_lengths, inconsistency
from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.linalg.gram import weighted_gram
from implicit_bregman.objective import Objective, Point, RowsOfTensors
from implicit_bregman.solvers.base import Outcome, Solver, Trace
from implicit_bregman.status import Status

#: Newton steps after which a sample is given up, and those within which its smallest gradient has to halve.
_STEPS, _PATIENCE = 300, 150
#: A Newton step with the ridge c‖gradient‖ is at most 1/c long; so long is the first one.
_FIRST_REACH = 10.0
#: Bounds of that length: below, no step is worth trying any more; above, it overflows.
_LEAST_REACH, _MOST_REACH = 1e-14, 1e307
#: Trial lengths along one direction.
_TRIALS = 40
#: Within this factor of the rounding error a gradient that no longer halves is as small as it gets.
_NEAR_ROUNDING = 1e3
#: Where ρ is cut off, so that nothing computed of it overflows: no solution lies there.
_HUGE = 1e120
#: No step in the dual is longer.
_FAR = 1e307
#: How far a step may go beyond saturation, where nothing changes any more: as many times the larger of both duals.
_GROWTH = 8.0
#: Part of the tolerance, and of the target, below which a gradient that still halves is followed no further.
_NOTHING = 1e-9
#: The tolerance of equations that are to hold as far as rounding lets them.
_ROUNDING = 1e-15


def project(solver: Solver, objective: Objective, dual: Float[Tensor, "batch d"]) -> Outcome:
    """The limit of MM from y⁰ = `dual` on a low-rank energy, or the softened projection where that is infeasible.

    Args:
        solver: `tol` bounds the residual, `max_iter` the Newton steps; with `trace` every step is recorded.
        objective: F, with a `BoundLowRank`.
        dual: y⁰, (B, d).

    Raises:
        TypeError: if the energy is not a low-rank one.
    """
    energy = objective.energy
    if not isinstance(energy, BoundLowRank):
        raise TypeError(f"only a low-rank energy has an r-dimensional dual, got {type(energy).__name__}")
    with torch.no_grad():
        gamma, tol = objective.regularization, solver.tolerance(dual.dtype)
        history: list[tuple[Tensor, Tensor]] | None = [] if solver.trace else None
        start = torch.zeros_like(dual, dtype=torch.float64) if gamma else dual.detach().double()
        problem = dual_problem(energy.basis, energy.target, objective.geometry, start, gamma, tol)
        found = minimise(problem, solver.max_iter, history)
        if not gamma:
            found = _soften_infeasible(energy, objective, start, found, solver, history)
        return _outcome(objective, found, solver, history)


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


@dataclass(frozen=True)
class DualProblem(RowsOfTensors):
    """Σφ*(y⁰ + Qμ) − αᵀμ + ½ε‖λ‖² with λ = Tμ: the problem in the coordinates μ of V's range.

    They make it as well conditioned as the geometry allows, and strictly convex whatever the rank of V.

    Attributes:
        basis: Q and T.
        start: y⁰, (B, d).
        target: α = Eᵀβ, (B, k), so that Vᵀz = β is Qᵀz = α.
        tolerated: by how much each equation of Vᵀz + ελ = β may be missed, (B, r).
        nothing: the gradient's norm that counts as 0, (B,).
        equations: QᵀV, which turns the gradient into what the equations are missed by, (k, r); in a tuple because it
            has no row per sample.
        softness: ε.
        metric: εTᵀT, (k, k); in a tuple, too.
    """

    geometry: LegendreFunction
    basis: Basis
    start: Tensor
    target: Tensor
    tolerated: Tensor
    nothing: Tensor
    equations: tuple[Tensor]
    softness: float
    metric: tuple[Tensor]

    def evaluate(self, mu: Float[Tensor, "batch k"], y: Float[Tensor, "batch d"]) -> _At:
        """The gradient, its rounding error and the curvatures at μ, where y = y⁰ + Qμ."""
        z = self.geometry.activation(y).clamp(-_HUGE, _HUGE)
        slope = self.geometry.slope(y).clamp(max=_HUGE)
        gradient = z @ self.basis.range - self.target
        noise = (z.abs() + slope * y.abs().clamp(max=_FAR)) @ self.basis.range.abs() + self.target.abs()
        if self.softness:
            gradient = gradient + mu @ self.metric[0]
            noise = noise + mu.abs() @ self.metric[0].abs()
        rounding = 4 * torch.finfo(z.dtype).eps * noise.amax(-1) if mu.shape[1] else z.new_zeros(len(z))
        return _At(mu, y, slope, gradient, torch.linalg.vector_norm(gradient, dim=-1), rounding)

    def most_length(self, at: _At, move: Tensor) -> Tensor:
        """How many times `move` can be made before a y overflows or leaves saturation far behind, (B,)."""
        direction = move @ self.basis.range.mT
        size = at.dual.abs()
        room = torch.full_like(size, _FAR)
        ends = zip(self.geometry.domain, self.geometry.saturated_dual(torch.float64), (-1.0, 1.0), strict=True)
        for end, saturated, side in ends:
            if math.isfinite(end):
                known = _GROWTH * size.clamp_min(abs(saturated))
                room = torch.where(side * direction > 0, known, room)
        return (room / direction.abs().clamp_min(1e-300)).amin(-1)

    def holds(self, at: _At) -> Tensor:
        """Whether each equation holds within what is tolerated, (B,)."""
        return ((at.gradient @ self.equations[0]).abs() <= 0.9 * self.tolerated).all(-1)

    def moved(self, at: _At, move: Float[Tensor, "batch k"]) -> _At:
        """The iterate at μ + `move`.

        y is carried, not computed from μ: y⁰ may be so large that the sum would lose its digits.
        """
        return self.evaluate(at.mu + move, at.dual + move @ self.basis.range.mT)

    def is_infeasible(self, at: _At) -> Tensor:
        """Whether ε = 0 and a hyperplane proves that no z in C meets all equations within what is tolerated, (B,)."""
        if self.softness or not at.mu.shape[1]:
            return torch.zeros_like(at.size, dtype=torch.bool)
        return self._separated(-at.gradient) | self._separated(at.mu)

    def _separated(self, normal: Tensor) -> Tensor:
        lo, hi = self.geometry.domain
        size = normal.abs().amax(-1, keepdim=True)
        normal = normal / torch.where(size > 0, size, 1.0)
        direction = normal @ self.basis.range.mT
        noise = 1e-15 * (normal.abs() @ self.basis.range.abs().mT)
        # What is 0 up to rounding does not count at an infinite end of C: it refutes all but gigantic z.
        unbounded = math.isinf(lo) or math.isinf(hi)
        direction = torch.where(unbounded & (direction.abs() <= 8 * noise), 0.0, direction)
        # The largest value of ⟨Q·normal, z⟩ on C; 0 · ∞ counts as 0.
        above = torch.where(direction > 0, direction * hi, 0.0) + torch.where(direction < 0, direction * lo, 0.0)
        margin = (normal * self.target).sum(-1) - above.sum(-1)
        doubt = 1e-13 * ((normal * self.target).abs().sum(-1) + above.abs().sum(-1))
        least = 1e-3 * self.target.abs().amax(-1) if unbounded else 0.0
        # ⟨normal, α − Qᵀz⟩ = ⟨E·normal, β − Vᵀz⟩
        tolerated = ((normal @ self.basis.equations.mT).abs() * self.tolerated).sum(-1)
        return torch.isfinite(margin) & (margin > tolerated + doubt + least) & (size.squeeze(-1) > 0)


@dataclass(frozen=True)
class _At(RowsOfTensors):
    """One iterate of the dual problem: μ, y, ρ'(y), the gradient, its norm and the rounding error of its entries."""

    mu: Tensor
    dual: Tensor
    slope: Tensor
    gradient: Tensor
    size: Tensor
    rounding: Tensor


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


def dual_problem(
    basis: Basis,
    target: Float[Tensor, "batch r"],
    geometry: LegendreFunction,
    start: Float[Tensor, "batch d"],
    softness: float,
    tol: float,
) -> DualProblem:
    """The problem of projecting ρ(y⁰) onto {Vᵀz + ελ = β}.

    Args:
        basis: of V's range.
        target: β.
        geometry: φ.
        start: y⁰, in float64.
        softness: ε ≥ 0.
        tol: by how much each equation may be missed, relative to its size.
    """
    beta, vectors = target.detach().double(), basis.vectors
    # (where ε > 0 dependent equations may ask for different things: the shortest λ then meets them halfway)
    target = beta @ (basis.lift if softness else basis.equations)
    tolerated = tol * (column_lengths(vectors) + beta.abs())
    size = torch.linalg.vector_norm(target, dim=-1)
    nothing = _NOTHING * tol * torch.where(size > 0, size, 1.0).clamp_max(1.0)
    return DualProblem(
        geometry,
        basis,
        start,
        target,
        tolerated,
        nothing,
        (basis.range.mT @ vectors,),
        softness,
        (softness * basis.metric,),
    )


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
        refuted = problem.is_infeasible(at)
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


def _direction(problem: DualProblem, at: _At, reach: Tensor) -> Tensor:
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


def _search(problem: DualProblem, at: _At, move: Tensor) -> tuple[_At, Tensor, Tensor]:
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


def _is_accepted(at: _At, new: _At, opening: Tensor, slope: Tensor) -> Tensor:
    return torch.isfinite(new.size) & (((slope <= 0) & (slope >= 0.5 * opening)) | (new.size <= 0.5 * at.size))


def _next_length(low: Tensor, high: Tensor, factor: Tensor) -> Tensor:
    """Out by growing factors, or in between: geometrically while the ends are far apart."""
    between = torch.where(high > 4 * low, (low * high).sqrt(), 0.5 * (low + high))
    between = torch.where(low > 0, between, high / factor)
    return torch.where(torch.isinf(high), low * factor, between)


def _soften_infeasible(
    energy: BoundLowRank,
    objective: Objective,
    start: Tensor,
    found: Minimiser,
    solver: Solver,
    history: list[tuple[Tensor, Tensor]] | None,
) -> Minimiser:
    """The samples whose system has no solution, solved once more in the softened form and marked `refuted`.

    That it has none is proved: by a hyperplane, or by dependent columns that ask for different things.
    """
    tol = solver.tolerance(energy.dtype)
    infeasible = found.refuted | ~_is_consistent(energy, tol)
    rows = infeasible.nonzero().squeeze(-1)
    if len(rows) == 0:
        return found
    part = energy.select(rows)
    assert isinstance(part, BoundLowRank)
    softened = dual_problem(
        part.basis, part.target, objective.geometry, start[rows], float(energy.softness.detach().double()), tol
    )
    inner: list[tuple[Tensor, Tensor]] | None = None if history is None else []
    again = minimise(softened, solver.max_iter, inner)
    if history is not None and inner is not None:
        history.extend((rows[index], dual) for index, dual in inner)
    before = found.select(rows)
    again = replace(
        again,
        steps=again.steps + before.steps,
        evaluations=again.evaluations + before.evaluations,
        refuted=~again.limited,
    )
    return replace(found, refuted=infeasible).replace_rows(rows, again)


def _is_consistent(energy: BoundLowRank, tol: float) -> Tensor:
    """Whether dependent columns of V ask for the same, (B,), each equation judged by its own size."""
    if not energy.basis.null.shape[1]:
        return torch.ones_like(energy.target[:, 0], dtype=torch.bool)
    return inconsistency(energy.vectors, energy.target) <= tol


def _errors(objective: Objective, energy: BoundLowRank, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far z is from solving Vᵀz = β (γ > 0: from being critical), relative to the terms, in float64.

    Returns:
        That error, (B,); ∇f, (B, d); and 1 + the size of its terms, (B, d).
    """
    vectors, target = energy.vectors.detach().double(), energy.target.detach().double()
    miss = z @ vectors - target
    gradient = miss @ vectors.mT
    terms = torch.maximum(z.abs() @ vectors.abs(), target.abs())
    scale = 1 + terms @ vectors.abs().mT
    if objective.regularization:
        error = ((gradient + objective.regularization * y).abs() / scale).amax(-1)
    else:
        error = (miss.abs() / (column_lengths(vectors) + terms)).amax(-1)
    return error, gradient, scale


def _outcome(
    objective: Objective, found: Minimiser, solver: Solver, history: list[tuple[Tensor, Tensor]] | None
) -> Outcome:
    energy, geometry = objective.energy, objective.geometry
    assert isinstance(energy, BoundLowRank)
    dtype, tol = energy.dtype, solver.tolerance(energy.dtype)
    exact = geometry.activation(found.dual).clamp(-_HUGE, _HUGE)
    error, gradient, scale = _errors(objective, energy, found.dual, exact)
    point = _point(objective, geometry.project_dual(found.dual), exact, gradient, scale)

    unsolved = torch.where(found.limited, int(Status.MAX_ITER), int(Status.STALLED))
    status = torch.where(error <= tol, int(Status.CONVERGED), unsolved)
    status = torch.where(found.refuted, int(Status.INFEASIBLE), status)
    # (beyond _FAR the dual of the solution overflows float64)
    beyond = (exact.abs() > torch.finfo(dtype).max).any(-1)
    beyond |= (found.dual.abs() >= _FAR).any(-1) & ~found.refuted & (error > tol)
    status = torch.where(beyond, int(Status.OVERFLOW), status)
    free = torch.ones_like(point.value, dtype=torch.bool)
    trace = None if history is None else _trace(objective, history, len(status), dtype)
    return Outcome(point, status, found.steps, found.evaluations, torch.zeros_like(beyond), free, trace)


def _point(objective: Objective, dual: Tensor, exact: Tensor, gradient: Tensor, scale: Tensor) -> Point:
    """The float64 result rounded once to the samples' precision, with the residual that it has before."""
    dtype = objective.energy.dtype
    largest = torch.finfo(dtype).max
    rounded = dual.clamp(-largest, largest).to(dtype)
    point = objective.evaluate(rounded, objective.initial_step(rounded))
    total = gradient + objective.regularization * dual
    residual = objective.residual(exact, total, scale)
    low, high = objective.geometry.bounds(dtype)
    return replace(
        point,
        value=exact.clamp(max(low, -largest), min(high, largest)).to(dtype),
        gradient=gradient.clamp(-largest, largest).to(dtype),
        residual=residual.to(dtype),
    )


def _is_degenerate(objective: Objective, z: Tensor, tol: float) -> Tensor:
    """Whether so many coordinates are on their bounds that β cannot move freely, (B,).

    That is, whether the rows of V that belong to the others have a smaller rank than V.
    """
    energy = objective.energy
    assert isinstance(energy, BoundLowRank)
    result = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    if energy.basis.range.shape[1] == 0:
        return result
    lo, hi = objective.geometry.domain
    inside = torch.minimum(z - lo, hi - z) > 10 * tol
    rows = (~inside.all(-1)).nonzero().squeeze(-1)
    if len(rows) == 0:
        return result
    least = torch.linalg.eigvalsh(weighted_gram(energy.basis.range, inside[rows].double()))[:, 0]
    return result.index_copy(0, rows, least <= 1e-12)


def _trace(objective: Objective, history: list[tuple[Tensor, Tensor]], batch: int, dtype: torch.dtype) -> Trace:
    """Residual, objective and dual of every Newton step; NaN where a sample had already stopped."""
    residuals, objectives, duals = [], [], []
    for rows, exact in history:
        dual = objective.geometry.project_dual(exact).to(dtype)
        part = objective.select(rows)
        point = part.evaluate(dual, part.initial_step(dual))
        empty = dual.new_full((batch,), math.nan)
        assert point.objective is not None
        residuals.append(empty.index_copy(0, rows, point.residual))
        objectives.append(empty.index_copy(0, rows, point.objective))
        duals.append(empty[:, None].expand(batch, dual.shape[-1]).clone().index_copy(0, rows, dual))
    return Trace(torch.stack(residuals), torch.stack(objectives), torch.stack(duals))


def judge(objective: Objective, outcome: Outcome, tol: float) -> Outcome:
    """The outcome of any solver, with the statuses that a low-rank system has for γ = 0.

    INFEASIBLE where it turned out to have no solution: where dependent columns of V ask for different things, and where
    MM ended at a minimiser of f on C with an active bound, so that the projected residual vanishes and ∇f does not.
    DEGENERATE by the rank of V, not by multipliers: ∇f is 0 at every solution, however many of its coordinates are next
    to a bound.
    """
    energy = objective.energy
    if not isinstance(energy, BoundLowRank) or objective.regularization:
        return outcome
    point = outcome.point
    done = (outcome.status == Status.CONVERGED) | (outcome.status == Status.DEGENERATE)
    thin = _is_degenerate(objective, point.value, tol)
    status = torch.where(thin, int(Status.DEGENERATE), int(Status.CONVERGED))
    vectors, target = energy.vectors.detach(), energy.target.detach()
    terms = column_lengths(vectors).to(target.dtype) + torch.maximum(point.value.abs() @ vectors.abs(), target.abs())
    error = (point.gradient.abs() / (1 + terms @ vectors.abs().mT)).amax(-1)
    solvable = _is_consistent(energy, 10 * tol) & (error <= 10 * tol)
    status = torch.where(solvable, status, int(Status.INFEASIBLE))
    return replace(outcome, status=torch.where(done, status, outcome.status))
