"""Operator splitting: the quadratic part through its resolvent, γφ and the bounds through their proximal map.

With R = (I + αH)⁻¹, which all samples share, Peaceman and Rachford iterate

    x = R(u + αc),    z = prox(2x − u) of α(γφ + ι_C),    u ← u + 2(z − x),

one product and one elementwise map, for any H whose symmetric part is positive definite (monDEQ: Winston and Kolter,
2020). Half the step, Douglas and Rachford's, converges where it is merely semidefinite.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.legendre.prox import prox_dual
from implicit_bregman.objective import Objective, RowsOfTensors
from implicit_bregman.operators.splitter import Splitter
from implicit_bregman.per_sample import Running, all_rows, iterate
from implicit_bregman.settings import check_positive
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.exact.result import ExactResult, exact_outcome
from implicit_bregman.solvers.exact.solve import can_solve_exactly, rounding_accepted, solve_exactly
from implicit_bregman.status import Status

#: Residuals at which an exact solve is tried, before the tolerance itself.
_STAGES = (1e-3, 1e-6)
#: Iterations between two looks at the residual.
_LOOK = 6
#: A sample whose residual has not fallen by this factor within so many looks has met rounding.
_GAIN, _PATIENCE = 0.9, 8
#: The residual aimed at, relative to the tolerance: beyond it the error falls on as cheaply as before.
_BELOW = 0.01


@dataclass(frozen=True)
class Splitting(Solver):
    """Peaceman–Rachford splitting for problems with one critical point and a quadratic f, H symmetric or not.

    A sample iterates until its residual is small. With `exact`, the solver then tries an exact solve.

    Args:
        step: α. None: from the ends of the spectrum.
        tol: see `Solver`.
        max_iter: see `Solver`.
        exact: see `Solver`.
        trace: must be False: this solver records none.
        on_failure: see `Solver`.

    Raises:
        ValueError: for a step that is not positive, or `trace=True`.
    """

    step: float | None = None

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        super().__post_init__()
        if self.step is not None:
            check_positive("step", self.step)
        if self.trace:
            raise ValueError("trace = True: Splitting records no trace, use MM, Anderson, Broyden or Newton")

    def solve(self, objective: Objective, dual: Float[Tensor, "batch d"]) -> Outcome:
        """Go from `dual` to the critical point, each sample until its own stop.

        Raises:
            ValueError: if F is not known to have one critical point, or f is not quadratic.
        """
        if not objective.energy.affine or not objective.unique:
            raise ValueError(
                "Splitting needs a quadratic energy with one critical point (its symmetric part positive definite, "
                'perhaps thanks to regularization > 0): use weight="convex" or "monotone", or solver="auto"'
            )
        if objective.regularization and objective.geometry.coupling is not None:
            raise ValueError(
                f"Splitting has no proximal map of {objective.geometry.name} with regularization > 0: use "
                'solver="auto", or regularization=0'
            )
        with torch.no_grad():
            return self._outcome(objective, dual.detach())

    def _outcome(self, objective: Objective, dual: Tensor) -> Outcome:
        tol, dtype = self.tolerance(dual.dtype), dual.dtype
        # In float64 rounding neither stops the iteration nor decides which bounds are active.
        wide = objective.double()
        strong = objective.regularization * objective.geometry.strong_convexity
        known = Splitter.of(objective.energy.hessian(dual), strong, self.step)
        dual = dual.double()
        splitter = replace(known, operator=wide.energy.hessian(dual))
        ends_exactly = self.ends_exactly and can_solve_exactly(objective)
        levels = [*(level for level in _STAGES if level > tol and ends_exactly), tol]
        steps = torch.zeros(len(dual), dtype=torch.int64, device=dual.device)
        calls = torch.zeros_like(steps)
        rows, result = torch.arange(len(dual), device=dual.device), None
        for level in levels:
            part, left = wide.select(rows), self.max_iter - int(steps[rows].max()) if len(rows) else 0
            ended = _iterated(part, dual[rows], splitter.select(rows), _BELOW * level, level, left)
            reached, value = _dual_and_value(part, ended.at)
            dual = dual.index_copy(0, rows, reached)
            steps = steps.index_add(0, rows, ended.steps)
            if ends_exactly:
                part, near = objective.select(rows), _rounded(reached, dtype)
                found = solve_exactly(part, part.evaluate(near, torch.ones_like(near[:, :1])), tol)
            else:
                found = _found(part, reached, value, tol, dtype)
            calls = calls.index_add(0, rows, ended.calls + 1 + found.tries)
            found = replace(found, steps=steps[rows], tries=calls[rows])
            result = found if result is None else result.replace_rows(rows, found)
            rows = (~result.accepted).nonzero().squeeze(-1)
            if len(rows) == 0:
                break
        assert result is not None  # there is at least one level
        outcome = exact_outcome(objective, result, None)
        if len(rows) == 0:
            return outcome
        failed = torch.where(steps < self.max_iter, int(Status.STALLED), int(Status.MAX_ITER))
        return replace(outcome, status=torch.where(result.accepted, outcome.status, failed))


def _rounded(dual: Tensor, dtype: torch.dtype) -> Tensor:
    """A dual in another precision, finite."""
    return dual.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype)


@dataclass(frozen=True)
class _Run(Running):
    """The samples that are still running.

    Attributes:
        objective: F.
        splitter: the resolvent.
        u, base: of the iteration, (b, d).
        at: the iterate's dual, (b, d); for γ = 0 the iterate z itself, whose dual is looked for at the end.
        best_at, best: that of the smallest residual so far, and this residual, (b, d), (b,).
        idle: looks since it fell clearly, (b,).
        lost: whether the residual is not finite any more, (b,).
    """

    objective: Objective
    splitter: Splitter
    u: Tensor
    base: Tensor
    at: Tensor
    best_at: Tensor
    best: Tensor
    idle: Tensor
    lost: Tensor


@dataclass(frozen=True)
class _Ended(RowsOfTensors):
    """The best iterates as in `_Run`, the iterations, and the evaluations of ∇f, (B,) each."""

    at: Tensor
    steps: Tensor
    calls: Tensor


def _iterated(objective: Objective, dual: Tensor, splitter: Splitter, level: float, enough: float, most: int) -> _Ended:
    """Iterates whose residual is at most `level`, or at most `enough` and no longer falling.

    Of samples that have none after `most` iterations, or whose residual does not fall any more, the best one.
    """
    gamma = objective.regularization
    point = objective.evaluate(dual, torch.ones_like(dual[:, :1]))
    at = dual if gamma else point.value
    rows = all_rows(at)
    start = _Run(
        rows=rows,
        objective=objective,
        splitter=splitter,
        u=splitter.embed(torch.add(point.value, point.gradient, alpha=splitter.alpha)),
        base=splitter.base(-objective.energy.gradient(torch.zeros_like(dual))),
        at=at,
        best_at=at,
        best=point.residual,
        idle=torch.zeros_like(rows),
        lost=torch.zeros_like(rows, dtype=torch.bool),
    )

    def going(run: _Run, looks: int) -> Bool[Tensor, " batch"]:
        if looks * _LOOK >= most:
            return torch.zeros_like(run.lost)
        return (run.best > level) & (run.idle < torch.where(run.best > enough, _PATIENCE, 1)) & ~run.lost

    def step(run: _Run, looks: int) -> _Run:
        u, at = run.u, run.at
        for _ in range(min(_LOOK, most - looks * _LOOK)):
            v = run.splitter.reflect(u, run.base)
            z, at = _prox(run, run.splitter.restrict(v), at)
            u = run.splitter.moved(u, v, z)
        residual = _residual(run.objective, z, at)
        better = residual < run.best
        return replace(
            run,
            u=u,
            at=at,
            best_at=torch.where(better[:, None], at, run.best_at),
            best=torch.where(better, residual, run.best),
            idle=torch.where(residual < _GAIN * run.best, 0, run.idle + 1),
            lost=~torch.isfinite(residual),
        )

    def end(run: _Run, looks: int) -> _Ended:
        steps = torch.full_like(run.rows, min(looks * _LOOK, most))
        return _Ended(run.best_at, steps, torch.full_like(steps, 2 + looks))

    return iterate(start, step, going, end)


def _prox(run: _Run, v: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """z, and its dual (γ = 0: z again)."""
    geometry, gamma = run.objective.geometry, run.objective.regularization
    if not gamma:
        z = geometry.project(v)
        return z, z
    # (the strong convexity of γφ is H's share)
    own = run.splitter.prox_weight
    dual = prox_dual(geometry, v / own, run.splitter.alpha * gamma / own, near)
    return geometry.activation(dual), geometry.project_dual(dual)


def _residual(objective: Objective, z: Tensor, dual: Tensor) -> Float[Tensor, " batch"]:
    gradient = objective.energy.gradient(z)
    return objective.residual(z, objective.total(gradient, dual), objective.scale(objective.energy.terms(gradient)))


def _dual_and_value(objective: Objective, at: Tensor) -> tuple[Tensor, Tensor]:
    """y and z of an iterate as in `_Run`."""
    geometry = objective.geometry
    return (at, geometry.activation(at)) if objective.regularization else (geometry.finite_dual(at, at.dtype), at)


def _found(
    objective: Objective,
    dual: Float[Tensor, "batch d"],
    value: Float[Tensor, "batch d"],
    tol: float,
    dtype: torch.dtype,
) -> ExactResult:
    """The iterates themselves in the samples' precision, accepted where their residual is small."""
    lo, hi = objective.geometry.bounds(dtype)
    point = objective.evaluate(dual, torch.ones_like(dual[:, :1]))
    free = torch.ones_like(value, dtype=torch.bool)
    if not objective.regularization:
        # (a bound itself, which no finite dual may reach)
        gradient = objective.energy.gradient(value)
        scale = objective.scale(objective.energy.terms(gradient))
        residual = objective.residual(value, gradient, scale)
        # At a bound is what is as near to it as the tolerance allows, and would go there: a dual reaches none.
        ends, reach = objective.geometry.bounds(value.dtype), tol * objective.unit
        target = objective.geometry.project(value - objective.relative_step(gradient, scale))
        at_lo = (target <= ends[0]) & (value - ends[0] <= reach)
        at_hi = (target >= ends[1]) & (ends[1] - value <= reach)
        free = objective.movable(~(at_lo | at_hi))
        value = torch.where(at_lo, ends[0], torch.where(at_hi, ends[1], value))
        point = replace(point, value=value, gradient=gradient, scale=scale, residual=residual)
    none = torch.zeros(len(value), dtype=torch.int64, device=value.device)
    found = ExactResult(
        value=value.clamp(lo, hi).to(dtype),
        dual=objective.geometry.into_dual_domain(_rounded(dual, dtype)),
        unrounded=value,
        unrounded_dual=dual,
        free=free,
        gradient=point.gradient,
        scale=point.scale,
        residual=point.residual.to(dtype),
        accepted=point.residual <= tol,
        degenerate=objective.degenerate(point, 10 * tol),
        steps=none,
        tries=none + (0 if objective.regularization else 1),
    )
    return rounding_accepted(objective, found, tol)
