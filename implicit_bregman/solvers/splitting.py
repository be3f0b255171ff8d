"""Operator splitting: the quadratic part through its resolvent, γφ and the bounds through their proximal map.

With R = (I + αH)⁻¹, which all samples share, Peaceman and Rachford iterate

    x = R(u + αc),    z = prox(2x − u) of α(γφ + ι_C),    u ← u + 2(z − x),

one product and one elementwise map, for any H whose symmetric part is positive definite (monDEQ: Winston and Kolter,
2020). Half the step, Douglas and Rachford's, converges where it is merely semidefinite.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.legendre.prox import prox_dual
from implicit_bregman.objective import Objective
from implicit_bregman.operators.splitter import Splitter
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

    The iterations of a sample end where its residual is small; then, with `exact`, an exact solve is tried.

    Args:
        step: α. None: from the ends of the spectrum.
        tol: see `Solver`.
        max_iter: see `Solver`.
        exact: see `Solver`.
        trace: there is none of this solver.
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
            run = _Run(wide.select(rows), dual[rows], splitter.select(rows))
            reached, value = run.until(_BELOW * level, level, self.max_iter - steps[rows])
            dual = dual.index_copy(0, rows, reached)
            steps = steps.index_add(0, rows, run.steps)
            if ends_exactly:
                part, near = objective.select(rows), _rounded(reached, dtype)
                found = solve_exactly(part, part.evaluate(near, torch.ones_like(near[:, :1])), tol)
            else:
                found = run.found(reached, value, tol, dtype)
            calls = calls.index_add(0, rows, run.calls + 1 + found.tries)
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


class _Run:
    """The iteration for a batch, from its duals."""

    def __init__(self, objective: Objective, dual: Tensor, splitter: Splitter) -> None:
        self.objective = objective
        self.dual = dual
        self.splitter = splitter
        self.steps = torch.zeros(len(dual), dtype=torch.int64, device=dual.device)
        self.calls = torch.zeros_like(self.steps)

    def until(self, level: float, enough: float, most: Tensor) -> tuple[Tensor, Tensor]:
        """y and z, (B, d), of iterates whose residual is at most `level`, or at most `enough` and no longer falling.

        Of samples without such an iterate, the best one.
        """
        objective, dual = self.objective, self.dual
        point = objective.evaluate(dual, torch.ones_like(dual[:, :1]))
        self.calls += 2
        splitter, none = self.splitter, torch.zeros_like(dual)
        u, base = (
            splitter.embed(torch.add(point.value, point.gradient, alpha=splitter.alpha)),
            splitter.base(-objective.energy.gradient(none)),
        )
        # Of γ = 0 the iterate is z, whose dual is looked for at the end.
        final, best = (dual if objective.regularization else point.value).clone(), point.residual
        rows = (best > level).nonzero().squeeze(-1)
        objective, u, at, base, best = objective.select(rows), u[rows], final[rows], base[rows], best[rows]
        idle, left = torch.zeros_like(rows), int(most.min()) if len(most) else 0
        while left > 0 and len(rows):
            count = min(_LOOK, left)
            for _ in range(count):
                v = splitter.reflect(u, base)
                z, at = self._prox(splitter.restrict(v), at)
                u = splitter.moved(u, v, z)
            left -= count
            self.steps[rows] += count
            self.calls[rows] += 1
            residual = self._residual(objective, z, at)
            better = residual < best
            final[rows[better]] = at[better]
            idle = torch.where(residual < _GAIN * best, 0, idle + 1)
            best = torch.where(better, residual, best)
            going = (best > level) & (idle < torch.where(best > enough, _PATIENCE, 1)) & torch.isfinite(residual)
            if not bool(going.all()):
                kept = going.nonzero().squeeze(-1)
                objective, rows, u, at = objective.select(kept), rows[kept], u[kept], at[kept]
                base, best, idle = base[kept], best[kept], idle[kept]
                splitter = splitter.select(kept)
        geometry = objective.geometry
        if objective.regularization:
            return final, geometry.activation(final)
        return geometry.finite_dual(final, final.dtype), final

    def _prox(self, v: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """z, and its dual (γ = 0: z again)."""
        geometry, gamma = self.objective.geometry, self.objective.regularization
        if not gamma:
            z = v.clamp(*geometry.bounds(v.dtype))
            return z, z
        dual = prox_dual(geometry, v, self.splitter.alpha * gamma, near)
        return geometry.activation(dual), geometry.project_dual(dual)

    @staticmethod
    def _residual(objective: Objective, z: Tensor, dual: Tensor) -> Float[Tensor, " batch"]:
        gradient, gamma = objective.energy.gradient(z), objective.regularization
        total = torch.add(gradient, dual, alpha=gamma) if gamma else gradient
        return objective.residual(z, total, objective.scale(objective.energy.terms(gradient)))

    def found(
        self, dual: Float[Tensor, "batch d"], value: Float[Tensor, "batch d"], tol: float, dtype: torch.dtype
    ) -> ExactResult:
        """The iterates themselves in the samples' precision, accepted where their residual is small."""
        objective, (lo, hi) = self.objective, self.objective.geometry.bounds(dtype)
        point = objective.evaluate(dual, torch.ones_like(dual[:, :1]))
        if not objective.regularization:
            # (a bound itself, which no finite dual may reach)
            gradient = objective.energy.gradient(value)
            scale = objective.scale(objective.energy.terms(gradient))
            residual = objective.residual(value, gradient, scale)
            point = replace(point, value=value, gradient=gradient, scale=scale, residual=residual)
        ends = objective.geometry.bounds(value.dtype)
        free = (value > ends[0]) & (value < ends[1]) | bool(objective.regularization)
        none = torch.zeros(len(value), dtype=torch.int64, device=value.device)
        found = ExactResult(
            value=value.clamp(lo, hi).to(dtype),
            dual=_rounded(dual, dtype),
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
