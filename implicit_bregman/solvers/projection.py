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

from implicit_bregman.energy.low_rank import BoundLowRank
from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.linalg.gram import weighted_gram
from implicit_bregman.objective import Objective, Point, RowsOfTensors
from implicit_bregman.solvers.base import Outcome, Solver, Trace
from implicit_bregman.status import Status

#: Newton steps after which a system that is still unsolved counts as one that has no solution.
_STEPS = 300
#: A Newton step with the ridge c‖gradient‖ is at most 1/c long; so long is the first one.
_FIRST_REACH = 10.0
#: Reach below which no step is worth trying any more.
_LEAST_REACH = 1e-14
#: Within this factor of the rounding error a gradient that no longer halves is as small as it gets.
_NEAR_ROUNDING = 1e3


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
        softness = gamma if gamma else 0.0
        problem = _dual_problem(energy, objective.geometry, start, softness, tol)
        found = _minimise(problem, solver.max_iter, history)
        if not gamma:
            found = _soften_infeasible(energy, objective, start, found, solver, history)
        return _outcome(objective, start, problem, found, solver, history)


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
    goal = 1e-15 * (1 + target.abs().sum(-1))
    problem = _DualProblem(geometry, basis, start, target, torch.zeros_like(target), goal)
    found = _minimise(problem, _STEPS, None)
    return problem.dual(found.mu), found.steps


@dataclass(frozen=True)
class _DualProblem(RowsOfTensors):
    """Σφ*(y⁰ + Qμ) − αᵀμ + ½ μᵀEμ: the problem in the coordinates μ = ΣPᵀλ of V = QΣPᵀ.

    They make it as well conditioned as the geometry allows, and strictly convex whatever the rank of V.

    Attributes:
        start: y⁰, (B, d).
        target: α = Σ⁻¹Pᵀβ, (B, k).
        weight: E = εΣ⁻², (B, k).
        goal: the gradient's norm at which Vᵀz + ελ is within a tenth of the tolerance of β, (B,).
    """

    geometry: LegendreFunction
    basis: Tensor
    start: Tensor
    target: Tensor
    weight: Tensor
    goal: Tensor

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [(name, getattr(self, name)) for name in ("start", "target", "weight", "goal")]

    def dual(self, mu: Float[Tensor, "batch k"]) -> Float[Tensor, "batch d"]:
        """y = y⁰ + Qμ."""
        return self.start + mu @ self.basis.mT

    def evaluate(self, mu: Float[Tensor, "batch k"]) -> _At:
        """The gradient, its rounding error and the curvatures at μ."""
        y = self.dual(mu)
        z = self.geometry.activation(y)
        slope = self.geometry.slope(y)
        gradient = z @ self.basis + self.weight * mu - self.target
        noise = (z.abs() + slope * y.abs()) @ self.basis.abs() + (self.weight * mu).abs() + self.target.abs()
        rounding = 4 * torch.finfo(z.dtype).eps * noise.amax(-1) if mu.shape[1] else z.new_zeros(len(z))
        return _At(mu, y, slope, gradient, torch.linalg.vector_norm(gradient, dim=-1), rounding)

    def is_infeasible(self, at: _At) -> Tensor:
        """Whether E = 0 and a hyperplane proves that Qᵀz stays away from α on C, clearly beyond `goal`, (B,)."""
        hard = (self.weight == 0).all(-1)
        return hard & (self._separated(-at.gradient) | self._separated(at.mu))

    def _separated(self, normal: Tensor) -> Tensor:
        lo, hi = self.geometry.domain
        direction = normal @ self.basis.mT
        # The largest value of ⟨Q·normal, z⟩ on C; 0 · ∞ counts as 0.
        above = torch.where(direction > 0, direction * hi, 0.0) + torch.where(direction < 0, direction * lo, 0.0)
        size = torch.linalg.vector_norm(normal, dim=-1)
        margin = (normal * self.target).sum(-1) - above.sum(-1)
        noise = 1e-13 * ((normal * self.target).abs().sum(-1) + above.abs().sum(-1))
        return torch.isfinite(margin) & (margin > 100 * size * self.goal + noise) & (size > 0)


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
class _Minimiser(RowsOfTensors):
    """Where the minimisation ended.

    Attributes:
        mu: (B, k).
        steps, evaluations: (B,).
        refuted: whether the system was proved to have no solution, (B,).
        solved: whether the gradient vanishes up to its rounding error or `goal`, (B,).
        limited: whether `max_iter` ended it, (B,).
    """

    mu: Tensor
    steps: Tensor
    evaluations: Tensor
    refuted: Tensor
    solved: Tensor
    limited: Tensor


def _dual_problem(
    energy: BoundLowRank, geometry: LegendreFunction, start: Tensor, softness: Tensor | float, tol: float
) -> _DualProblem:
    basis, beta = energy.basis, energy.target.detach().double()
    target = (beta @ basis.domain) / basis.values
    weight = (softness / basis.values.square()).expand_as(target)
    largest = basis.values[0] if len(basis.values) else 1.0
    goal = 0.1 * tol * (1 + beta.abs().amax(-1)) / largest
    return _DualProblem(geometry, basis.range, start, target, weight, goal)


def _minimise(problem: _DualProblem, max_iter: int, history: list[tuple[Tensor, Tensor]] | None) -> _Minimiser:
    """Newton's method with a ridge of c‖gradient‖, c adapted to how well the quadratic model predicts the decrease.

    Saturation in one direction (a curvature near 0) then does not shorten the step in the others, as a line search
    along Newton's direction would; the convergence is superlinear (Li, Fukushima, Qi and Yamashita, 2004).
    """
    batch = len(problem.start)
    mu = torch.zeros_like(problem.target)
    count = torch.zeros(batch, dtype=torch.int64, device=mu.device)
    result = _Minimiser(mu, count, count + 1, count > 0, count > 0, count > 0)
    rows = torch.arange(batch, device=mu.device)
    at = problem.evaluate(mu)
    stuck, reach = torch.zeros_like(at.size, dtype=torch.bool), torch.full_like(at.size, _FIRST_REACH)
    for step in range(min(max_iter, _STEPS) + 1):
        if history is not None:
            history.append((rows, at.dual))
        refuted = problem.is_infeasible(at)
        near = at.size <= torch.maximum(_NEAR_ROUNDING * at.rounding, problem.goal)
        flat = (at.size <= at.rounding) | (near & stuck)
        stopped = flat | refuted | (reach < _LEAST_REACH)
        limited = ~stopped & (step >= max_iter)
        stopped = stopped | limited | torch.full_like(stopped, step >= _STEPS)
        if bool(stopped.any()):
            done = stopped.nonzero().squeeze(-1)
            ended = torch.full_like(rows[done], step)
            end = _Minimiser(at.mu[done], ended, ended + 1, refuted[done], flat[done], limited[done])
            result = result.replace_rows(rows[done], end)
            kept = (~stopped).nonzero().squeeze(-1)
            rows, problem, at, stuck, reach = (
                rows[kept],
                problem.select(kept),
                at.select(kept),
                stuck[kept],
                reach[kept],
            )
        if len(rows) == 0:
            break
        new, ratio = _newton_step(problem, at, reach)
        accepted = ratio > 1e-3
        stuck = ~(accepted & (new.size <= 0.5 * at.size))
        at = new.where(accepted, at)
        reach = torch.where(ratio > 0.75, 8 * reach, torch.where(ratio > 0.25, reach, 0.25 * reach))
    return result


def _newton_step(problem: _DualProblem, at: _At, reach: Tensor) -> tuple[_At, Tensor]:
    """The next iterate, and the decrease of the objective as a part of what its quadratic model predicts."""
    ridge = at.size / reach
    hessian = weighted_gram(problem.basis, at.slope) + torch.diag_embed(problem.weight + ridge[:, None])
    factor, info = torch.linalg.cholesky_ex(hessian)
    move = -torch.cholesky_solve(at.gradient[:, :, None], factor).squeeze(-1)
    move = torch.where((info == 0)[:, None] & torch.isfinite(move), move, 0.0)
    new = problem.evaluate(at.mu + move)
    # φ*(y⁺) − φ*(y) − ρ(y)(y⁺ − y) is a Bregman divergence, computed without cancellation.
    slope = (at.gradient * move).sum(-1)
    rise = problem.geometry.dual_divergence(at.dual, new.dual) + 0.5 * (problem.weight * move.square()).sum(-1)
    predicted = -0.5 * slope + 0.5 * ridge * move.square().sum(-1)
    ratio = (-slope - rise) / torch.where(predicted > 0, predicted, 1.0)
    usable = (predicted > 0) & torch.isfinite(ratio) & torch.isfinite(new.size + new.slope.sum(-1))
    return new, torch.where(usable, ratio, -1.0)


def _soften_infeasible(
    energy: BoundLowRank,
    objective: Objective,
    start: Tensor,
    found: _Minimiser,
    solver: Solver,
    history: list[tuple[Tensor, Tensor]] | None,
) -> _Minimiser:
    """The samples whose system has no solution, solved once more in the softened form and marked `refuted`."""
    y = start + found.mu @ energy.basis.range.mT
    tol, beta = solver.tolerance(energy.dtype), energy.target.detach().double()
    error, _ = _errors(objective, energy, y, objective.geometry.activation(y))
    # What V's dependent columns ask for, no z can give.
    apart = (beta - (beta @ energy.basis.domain) @ energy.basis.domain.mT).abs().amax(-1)
    consistent = apart <= tol * (1 + beta.abs().amax(-1))
    infeasible = ~(consistent & (found.solved | (error <= tol))) & ~found.limited
    rows = infeasible.nonzero().squeeze(-1)
    if len(rows) == 0:
        return replace(found, refuted=infeasible)
    part = energy.select(rows)
    assert isinstance(part, BoundLowRank)
    softened = _dual_problem(part, objective.geometry, start[rows], energy.softness.detach().double(), tol)
    inner: list[tuple[Tensor, Tensor]] | None = None if history is None else []
    again = _minimise(softened, solver.max_iter, inner)
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


def _errors(objective: Objective, energy: BoundLowRank, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """How far z is from solving Vᵀz = β (γ > 0: from being critical), relative to the terms, and ∇f, in float64."""
    vectors, target = energy.vectors.detach().double(), energy.target.detach().double()
    image = z @ vectors
    miss = image - target
    gradient = miss @ vectors.mT
    total = gradient + objective.regularization * y
    error = total.abs().amax(-1) / _scale(image, target, vectors)
    if not objective.regularization:
        error = torch.maximum(error, miss.abs().amax(-1) / (1 + torch.maximum(image.abs(), target.abs()).amax(-1)))
    return error, gradient


def _scale(image: Tensor, target: Tensor, vectors: Tensor) -> Tensor:
    """1 + the size of the terms of ∇f."""
    return 1 + torch.maximum((image @ vectors.mT).abs().amax(-1), (target @ vectors.mT).abs().amax(-1))


def _outcome(
    objective: Objective,
    start: Tensor,
    problem: _DualProblem,
    found: _Minimiser,
    solver: Solver,
    history: list[tuple[Tensor, Tensor]] | None,
) -> Outcome:
    energy, geometry = objective.energy, objective.geometry
    assert isinstance(energy, BoundLowRank)
    dtype, tol = energy.dtype, solver.tolerance(energy.dtype)
    exact_dual = problem.dual(found.mu)
    exact = geometry.activation(exact_dual)
    error, gradient = _errors(objective, energy, exact_dual, exact)
    point = _point(objective, geometry.project_dual(exact_dual), exact, gradient)

    solved = error <= tol
    unsolved = torch.where(found.limited, int(Status.MAX_ITER), int(Status.STALLED))
    status = torch.where(solved, int(Status.CONVERGED), unsolved)
    status = torch.where(found.refuted, int(Status.INFEASIBLE), status)
    none = torch.zeros_like(solved)
    free = torch.ones_like(point.value, dtype=torch.bool)
    trace = None if history is None else _trace(objective, history, len(start), dtype)
    return Outcome(point, status, found.steps, found.evaluations, none, free, trace)


def _point(objective: Objective, dual: Tensor, exact: Tensor, gradient: Tensor) -> Point:
    """The float64 result rounded once to the samples' precision, with the residual that it has before."""
    dtype = objective.energy.dtype
    largest = torch.finfo(dtype).max
    rounded = dual.clamp(-largest, largest).to(dtype)
    point = objective.evaluate(rounded, objective.initial_step(rounded))
    total = gradient + objective.regularization * dual
    residual = objective.residual(exact, total, point.scale.double())
    return replace(
        point,
        value=exact.to(dtype).clamp(*objective.geometry.bounds(dtype)),
        gradient=gradient.to(dtype),
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

    INFEASIBLE where it turned out to have no solution: there MM ends at a minimiser of f on C with an active bound, so
    that the projected residual vanishes and ∇f does not. DEGENERATE by the rank of V, not by multipliers: ∇f is 0 at
    every solution, however many of its coordinates are next to a bound.
    """
    energy = objective.energy
    if not isinstance(energy, BoundLowRank) or objective.regularization:
        return outcome
    point = outcome.point
    done = (outcome.status == Status.CONVERGED) | (outcome.status == Status.DEGENERATE)
    thin = _is_degenerate(objective, point.value, tol)
    status = torch.where(thin, int(Status.DEGENERATE), int(Status.CONVERGED))
    error = (point.gradient.abs() / point.scale).amax(-1)
    status = torch.where(error > 10 * tol, int(Status.INFEASIBLE), status)
    return replace(outcome, status=torch.where(done, status, outcome.status))
