"""Newton's method, in the form that the problem's structure allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.energy.bound import BoundQuadratic
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.objective import Objective, Point
from implicit_bregman.solvers.anderson import Anderson
from implicit_bregman.solvers.base import Outcome, Solver, Trace
from implicit_bregman.solvers.chord import chord_steps
from implicit_bregman.solvers.continuation import can_continue, follow_curve
from implicit_bregman.solvers.exact.active_set import solve_active_set, solve_projected_active_set, within_rounding
from implicit_bregman.solvers.exact.dual_newton import newton
from implicit_bregman.solvers.exact.interior_point import minimise_convex
from implicit_bregman.solvers.exact.normal_map import normal_newton
from implicit_bregman.solvers.exact.projected_newton import projected_newton
from implicit_bregman.solvers.exact.result import ExactResult, exact_outcome
from implicit_bregman.solvers.exact.singular import (
    failure,
    far_from,
    has_others,
    limit_of_mm,
    minimised_by_products,
    off_bounds,
)
from implicit_bregman.solvers.exact.solve import rounding_accepted, solve_exactly
from implicit_bregman.solvers.fixed_point import anderson_steps, path_outcome
from implicit_bregman.solvers.loop import run
from implicit_bregman.solvers.splitting import Splitting, active_set_guess
from implicit_bregman.status import Status

#: Fixed-point steps on a field without an objective after which, at a residual above this, continuation takes over.
_FIELD_STEPS, _FIELD_NEAR = 300, 1e-3
#: Iterations of the splitting on a monotone field with γ > 0, after which Newton's method goes on from the start.
_MONOTONE_STEPS = 50
#: Anderson's steps on a network's field, for γ > 0 and γ = 0, then Newton's products, and steps along the curve.
_NETWORK_STEPS, _NETWORK_PRODUCTS, _NETWORK_CURVE = (60, 20), 1000, 200
#: What steps with one Jacobian for all samples aim at, relative to the tolerance.
_CHORD_AIM = 0.01
#: MM steps on a convex energy without a matrix, before a minimiser is looked for from there.
_CONVEX_STEPS = 1000
#: Projected gradient steps that guess the active set.
_GUESSES = 6
#: Where more than this share of the coordinates are then at a bound, others than one step before, and there is a sample
#: for so many of them, so many iterations of the operator splitting improve the guess.
_CROWDED, _FOR_EACH, _SPLITTINGS = 0.2, 4, 12
#: Corrections of the active set before a sample is left to projected Newton steps.
_CORRECTIONS = 20
#: Corrections of a set that should be right.
_LAST_CORRECTIONS = 8
#: Residuals, and the numbers of MM steps, at which MM hands an energy that is not convex over to Newton steps, one
#: after the other if these are refused,
_STAGES = ((1e-3, 300), (1e-5, 1000), (1e-7, 3000))
#: and how far from there, relative to the size of z, these may end: farther is another basin.
_REACH = 0.05


@dataclass(frozen=True)
class Newton(Solver):
    """Newton's method; for a quadratic energy with one factorization for the whole batch, forward and backward.

    - γ = 0, one critical point: the active set is guessed by a few projected gradient steps and corrected until
      the optimality conditions hold (a semismooth Newton method), through the inverse of −W that all samples and the
      adjoint share. Where d is too large for the number of samples, and for an energy of your own: projected Newton
      steps by conjugate gradients, with a line search on the objective.
    - γ > 0, one critical point: for a quadratic energy a few Chebyshev steps, where these are few (γ no small part of
      λ_max(−W)); then, where they are not enough, Newton's method in coordinates that suit both y and z, so that γ → 0
      takes no more steps: by conjugate gradients, preconditioned with the shared factor where γ is small, or one
      factorization per sample where that is faster, with a line search on the objective.
    - γ = 0 and a quadratic energy that is convex, but not strictly (−W ⪰ 0 up to rounding, or declared so): steps of an
      interior-point method, whose number hardly depends on the problem, with one factorization each per sample. The
      minimiser is then proved to be the only one, or replaced by the one that is nearest to the start (`NONUNIQUE`).
      The same steps serve the samples whose active set does not settle.
    - Several critical points: MM steps first. For a quadratic energy until it is proved which critical point MM is
      going to (as `solvers.Anderson` does); for an energy of your own until MM's residual is small, or it has
      made some hundred steps, after which a Newton point counts if it is near, not higher, and no negative curvature
      was met; else MM goes on.
    - `weight="low_rank"`: in the r-dimensional dual of the Bregman projection.
    - Without an objective (monotone or general W): where the equilibrium is known to be unique, for γ > 0 Newton steps
      with one Jacobian for the whole batch as far as they pay, else `solvers.Splitting`. Elsewhere 300 steps of
      `solvers.Anderson`, then Newton's method from near an equilibrium. Where the steps come near none, a curve of
      equilibria is followed from a large γ down to the γ that is asked for.
    - A `Field`: steps of Anderson's method without a safeguard, at most 60, or 20 for γ = 0; then Newton's, whose
      linear systems GMRES solves, on the equation in y for γ > 0 and the normal map for γ = 0; for γ > 0 then the
      continuation in γ; and the rest by `solvers.Anderson`.

    Quadratic problems in float32 end with steps in float64, so that the result does not lose digits to the condition
    number.

    Args:
        tol: see `Solver`.
        max_iter: bound on the number of steps of all kinds together: active sets solved for, Newton, interior-point
            and MM steps. One of them costs at most a factorization per sample, or 3d + 20 products with the Hessian,
            and 25 evaluations of f, so that max_iter bounds the work. For γ > 0 it also bounds the products inside
            all Newton steps together. (Only the end at a minimiser that is not unique is not counted in: at most
            300 steps of its own.)
        exact: see `Solver`; it matters where MM steps are made.
        trace: see `Solver`. For γ = 0 the steps traced are projected Newton steps.
        on_failure: see `Solver`.
    """

    def solve(self, objective: Objective, dual: Float[Tensor, "batch d"]) -> Outcome:
        """Go from `dual` to a critical point, each sample until its own stop."""
        dual = dual.detach()
        own = objective.energy.own
        if own is not None:
            return own.solve(objective, dual, self)
        with torch.no_grad():
            parts = None if self.trace or objective.unique else objective.energy.apart()
            if parts:
                return self._one_by_one(objective, parts, dual)
            if len(dual) == 0 or not objective.energy.symmetric:
                return self._without_objective(objective, dual)
            if objective.unique:
                return self._completed(objective, dual, *self._directly(objective, dual))
            if objective.energy.affine and objective.convex and not self.trace:
                if objective.energy.matrix_form is None:
                    return self._convex(objective, dual)
                found, status = limit_of_mm(objective, dual, self.tolerance(dual.dtype), self.max_iter)
                return replace(exact_outcome(objective, found, None), status=status)
            if objective.energy.affine or self.trace:
                return self._accelerated().solve(objective, dual)
            return self._after_mm(objective, dual)

    def advice(self, status: Status, dtype: torch.dtype) -> str:
        return "" if status == Status.MAX_ITER else super().advice(status, dtype)

    def _accelerated(self) -> Anderson:
        """What is used where second-order steps are not: it makes MM's own steps until their limit is certain."""
        return Anderson(
            tol=self.tol, max_iter=self.max_iter, exact=self.exact, trace=self.trace, on_failure=self.on_failure
        )

    def _one_by_one(self, objective: Objective, parts: list[BoundEnergy], dual: Tensor) -> Outcome:
        """Each sample by the matrix that it has for itself: it may have one critical point where others have not."""
        geometry, gamma = objective.geometry, objective.regularization
        alone = [Objective(part, geometry, gamma) for part in parts]
        return _joined([(one, self.solve(one, start)) for one, start in zip(alone, dual.split(1), strict=True)])

    def _convex(self, objective: Objective, dual: Tensor) -> Outcome:
        """γ = 0 and a convex f of whose H there is no matrix: MM's limit, or a minimiser near its iterates."""
        tol, first = self.tolerance(dual.dtype), min(self.max_iter, _CONVEX_STEPS)
        outcome = replace(self._accelerated(), max_iter=first, exact=False).solve(objective, dual)
        off = off_bounds(objective, outcome.point.value, tol)
        limits = (outcome.status == Status.CONVERGED) | (outcome.status == Status.DEGENERATE)
        several = limits & has_others(objective, off)
        outcome = replace(
            outcome,
            status=torch.where(several, int(Status.NONUNIQUE), outcome.status),
            exact=several,  # (so that its derivative is that on its free set)
            free=off,
        )
        # (so few steps cannot tell what runs away)
        rows = (~several & torch.isfinite(outcome.point.value.sum(-1))).nonzero().squeeze(-1)
        left = self.max_iter - first
        if len(rows) == 0 or left == 0:
            return outcome
        part = objective.select(rows)
        found, status = minimised_by_products(part, outcome.point.value[rows], tol, left)
        return _merged(objective, outcome, rows, replace(exact_outcome(part, found, None), status=status))

    def _without_objective(self, objective: Objective, dual: Tensor) -> Outcome:
        """A field: operator splitting where it is monotone, then Newton's method; others as `_field` says."""
        if objective.energy.is_field and not self.trace:
            return self._of_network(objective, dual)
        if self.trace or len(dual) == 0 or not (objective.unique and objective.energy.affine):
            return self._field(objective, dual)
        direct = self._by_chords(objective, dual)
        if direct is not None:
            return direct
        # (Newton's method without symmetry takes a matrix to factorize)
        goes_on = bool(objective.regularization) and objective.energy.matrix_form is not None
        most = min(self.max_iter, _MONOTONE_STEPS) if goes_on else self.max_iter
        outcome = Splitting(tol=self.tol, max_iter=most, exact=False).solve(objective, dual)
        if goes_on:
            outcome = self._from_start(objective, outcome, dual)
        return self._rest(objective, outcome, dual, lambda left: replace(self, max_iter=left)._field)

    def _of_network(self, objective: Objective, dual: Tensor) -> Outcome:
        """Any equilibrium of a field: Anderson's steps, then Newton's by GMRES; the rest with a safeguard."""
        tol, first = self.tolerance(dual.dtype), min(self.max_iter, _NETWORK_STEPS[objective.regularization == 0])
        point, evaluations = anderson_steps(objective, dual, tol, first)
        outcome = path_outcome(objective, point, evaluations, tol)
        rows, left = _unsolved(outcome), self.max_iter - first
        if len(rows) == 0 or left == 0:
            return outcome
        part = objective.select(rows)
        if objective.regularization:
            found = newton(part, point.dual[rows], tol, min(left, _NETWORK_PRODUCTS))
        else:
            found = normal_newton(part, point.value[rows], tol, min(left, _NETWORK_PRODUCTS))
        found = replace(found, accepted=found.accepted | within_rounding(part, part.energy, found, tol))
        good = found.accepted.nonzero().squeeze(-1)
        outcome = replace(outcome, iterations=outcome.iterations.index_add(0, rows, found.steps))
        outcome = replace(outcome, evaluations=outcome.evaluations.index_add(0, rows, found.tries))
        solved = exact_outcome(part.select(good), found.select(good), None)
        nothing = torch.zeros_like(solved.iterations)
        solved = replace(solved, iterations=nothing, evaluations=nothing)
        outcome = _merged(objective, outcome, rows[good], solved)
        if can_continue(objective):
            most = min(self.max_iter, int(outcome.iterations.max()) + _NETWORK_CURVE)
            outcome = replace(self, max_iter=most)._continued(objective, outcome, _unsolved(outcome))
        return self._rest(objective, outcome, dual, lambda left: replace(self._accelerated(), max_iter=left).solve)

    def _by_chords(self, objective: Objective, dual: Tensor) -> Outcome | None:
        """γ > 0: steps with one Jacobian for all samples, where they solve every one."""
        if not objective.regularization:
            return None
        tol = self.tolerance(dual.dtype)
        found = chord_steps(objective.double(), dual.double(), _CHORD_AIM * tol, self.max_iter)
        if found is None:
            return None
        near, count = found
        judged = rounding_accepted(objective, newton(objective, near, tol, 1), tol)
        if not judged.complete:
            return None
        return exact_outcome(
            objective, replace(judged, steps=judged.steps + count, tries=judged.tries + count + 1), None
        )

    def _field(self, objective: Objective, dual: Tensor) -> Outcome:
        """Fixed-point steps, Newton's from near an equilibrium, and the continuation in γ from elsewhere."""
        method = self._accelerated()
        if self.trace or not can_continue(objective) or self.max_iter <= _FIELD_STEPS:
            return method.solve(objective, dual)
        outcome = replace(method, max_iter=_FIELD_STEPS).solve(objective, dual)
        near = (outcome.status == Status.MAX_ITER) & (outcome.point.residual <= _FIELD_NEAR)
        outcome = self._sharpened(objective, outcome, near.nonzero().squeeze(-1))
        outcome = self._continued(objective, outcome, _unsolved(outcome))
        return self._rest(objective, outcome, dual, lambda left: replace(method, max_iter=left).solve)

    def _rest(
        self,
        objective: Objective,
        outcome: Outcome,
        dual: Tensor,
        solver: Callable[[int], Callable[[Objective, Tensor], Outcome]],
    ) -> Outcome:
        """`outcome`, with what is unsolved left to a solver that is made for the iterations that are left."""
        rows = _unsolved(outcome)
        left = self._left(outcome, rows) if len(rows) else 0
        if not left:
            return outcome
        return _merged(objective, outcome, rows, solver(left)(objective.select(rows), dual[rows]))

    def _from_start(self, objective: Objective, outcome: Outcome, dual: Tensor) -> Outcome:
        """`outcome`, with what failed replaced by Newton's solution: there is one, and its steps come nearer to it."""
        rows = (outcome.status >= int(Status.MAX_ITER)).nonzero().squeeze(-1)
        if len(rows) == 0:
            return outcome
        part, tol = objective.select(rows), self.tolerance(dual.dtype)
        found = rounding_accepted(part, newton(part, dual[rows], tol, self._left(outcome, rows)), tol)
        good = found.accepted.nonzero().squeeze(-1)
        return _merged(objective, outcome, rows[good], exact_outcome(part.select(good), found.select(good), None))

    def _sharpened(self, objective: Objective, outcome: Outcome, rows: Int[Tensor, " some"]) -> Outcome:
        """`outcome` with those of its `rows` replaced that have an equilibrium nearby."""
        if len(rows) == 0:
            return outcome
        part, point = objective.select(rows), outcome.point.select(rows)
        found = solve_exactly(part, point, self.tolerance(point.dual.dtype))
        moved = (found.value - point.value).abs().amax(-1)
        reach = _REACH * (1 + point.value.abs().amax(-1))
        good = (found.accepted & (moved <= reach)).nonzero().squeeze(-1)
        return _merged(objective, outcome, rows[good], exact_outcome(part.select(good), found.select(good), None))

    def _continued(self, objective: Objective, outcome: Outcome, rows: Int[Tensor, " some"]) -> Outcome:
        """`outcome` with those of its `rows` replaced for which continuation finds an equilibrium."""
        if len(rows) == 0:
            return outcome
        part, tol = objective.select(rows), self.tolerance(outcome.point.dual.dtype)
        start, reached, steps = follow_curve(part, outcome.point.dual[rows], max(1, self._left(outcome, rows)))
        outcome = replace(
            outcome,
            iterations=outcome.iterations.index_add(0, rows, steps),
            evaluations=outcome.evaluations.index_add(0, rows, steps),
        )
        kept = reached.nonzero().squeeze(-1)
        part, start = part.select(kept), objective.geometry.project_dual(start[kept]).to(outcome.point.dual.dtype)
        found = solve_exactly(part, part.evaluate(start, part.initial_step(start)), tol)
        good = found.accepted.nonzero().squeeze(-1)
        return _merged(objective, outcome, rows[kept[good]], exact_outcome(part.select(good), found.select(good), None))

    def _directly(self, objective: Objective, dual: Tensor) -> tuple[ExactResult, Trace | None]:
        """One critical point: Newton steps from the start."""
        tol, energy = self.tolerance(dual.dtype), objective.energy.matrix_form
        log = _Log(objective, dual) if self.trace else None
        if objective.regularization:
            found = newton(objective, dual, tol, self.max_iter, None if log is None else log.add_duals)
            if not found.complete:
                # Newton's own test is stricter than the residual, which is what counts in the end.
                found = replace(found, accepted=found.accepted | (found.residual <= tol))
        elif log is None and energy is not None and _has_inverse(energy, len(dual)):
            found = _by_active_set(objective, energy, dual, tol, self.max_iter)
        else:
            start = objective.geometry.activation(dual)
            found = projected_newton(objective, start, tol, self.max_iter, None if log is None else log.add_values)
        found = rounding_accepted(objective, found, tol)
        if log is None:
            return found, None
        # The last row of a trace is the result, also in the last digit, which may depend on the size of the batch.
        trace = log.trace()
        dual = found.dual if trace is None else _last(trace.dual, found.steps)
        point = objective.evaluate(dual, torch.ones_like(dual[:, :1]))
        return replace(found, dual=dual, value=point.value, residual=point.residual), trace

    def _completed(self, objective: Objective, dual: Tensor, found: ExactResult, trace: Trace | None) -> Outcome:
        """The outcome, with the samples that Newton gave up left to MM, where its steps may lead further."""
        outcome = exact_outcome(objective, found, trace)
        if found.complete or (objective.regularization and objective.energy.affine):
            return outcome
        final = self._is_final(objective, dual, found)
        if bool(final.any()):
            status = failure(objective, found, self.max_iter)
            outcome = replace(outcome, status=torch.where(final, status, outcome.status))
        rows = (~found.accepted & ~final & (found.steps < self.max_iter)).nonzero().squeeze(-1)
        if len(rows) == 0:
            return outcome
        left = self.max_iter - int(found.steps[rows].max())
        rest = run(replace(self, trace=False, max_iter=left), objective.select(rows), dual[rows], None)
        return _merged(objective, outcome, rows, rest)

    def _is_final(self, objective: Objective, dual: Tensor, found: ExactResult) -> Bool[Tensor, " batch"]:
        """The failures that MM would not mend: γ = 0 and a quadratic f, or a sample that runs away, (B,)."""
        failed = ~found.accepted & torch.isfinite(found.unrounded.sum(-1))
        if objective.regularization:
            return torch.zeros_like(failed)
        if objective.energy.affine:
            return failed
        return failed & (found.unrounded.abs().amax(-1) > far_from(objective.geometry.activation(dual)))

    def _after_mm(self, objective: Objective, dual: Tensor) -> Outcome:
        """An energy that may have several critical points, and no certificate: Newton only from nearby."""
        tol = self.tolerance(dual.dtype)
        outcome: Outcome | None = None
        rows = torch.arange(len(dual), device=dual.device)
        for near, steps in (*(stage for stage in _STAGES if stage[0] > tol), (tol, self.max_iter)):
            left = self._left(outcome, rows)
            # (of few steps, Newton's method needs its share)
            most = left if near == tol else min(steps, (left + 1) // 2)
            stage = replace(self, tol=near, max_iter=most)
            walked = run(stage, objective.select(rows), dual[rows], None)
            outcome = walked if outcome is None else _merged(objective, outcome, rows, walked)
            alive = walked.status != Status.DIVERGED
            left = self._left(outcome, rows)
            if near == tol or left == 0:
                break
            found, sure = self._from_nearby(objective.select(rows), walked.point, tol, left)
            sure &= alive
            spent = outcome.iterations.index_add(0, rows, torch.where(sure, 0, found.steps))
            tried = outcome.evaluations.index_add(0, rows, found.tries)
            outcome = replace(outcome, iterations=spent, evaluations=tried)
            kept = sure.nonzero().squeeze(-1)
            good = exact_outcome(objective.select(rows[kept]), found.select(kept), None)
            good = replace(good, evaluations=torch.ones_like(good.evaluations))  # the rest is counted above
            outcome = _merged(objective, outcome, rows[kept], good)
            rows = rows[~sure & alive]
            dual = outcome.point.dual
            if len(rows) == 0 or self._left(outcome, rows) == 0:
                break
        assert outcome is not None
        return outcome

    def _left(self, outcome: Outcome | None, rows: Tensor) -> int:
        """How many steps may still be made by some of the samples."""
        return self.max_iter if outcome is None else max(0, self.max_iter - int(outcome.iterations[rows].max()))

    def _from_nearby(
        self, objective: Objective, point: Point, tol: float, max_steps: int
    ) -> tuple[ExactResult, Tensor]:
        """Newton steps from MM's iterates, and whether their end is near them and not higher, (B,)."""
        if objective.regularization:
            found = newton(objective, point.dual, tol, max_steps)
        else:
            found = projected_newton(objective, point.value, tol, max_steps)
        size = 1 + point.value.abs().amax(-1)
        moved = (found.value - point.value).abs().amax(-1)
        reached = objective.evaluate(found.dual, objective.initial_step(found.dual))
        rise, noise = objective.increase(point, reached)
        tries = found.tries + 1
        return replace(found, tries=tries), found.accepted & (moved <= _REACH * size) & (rise <= noise)


def _unsolved(outcome: Outcome) -> Int[Tensor, " some"]:
    """The samples that more steps, or others, may still bring to an equilibrium."""
    return ((outcome.status == Status.MAX_ITER) | (outcome.status == Status.STALLED)).nonzero().squeeze(-1)


def _has_inverse(energy: BoundQuadratic, batch: int) -> bool:
    return energy.shared.is_worth_inverting(batch) and energy.shared.inverse is not None


def _is_unsettled(before: Tensor, target: Tensor, lo: float, hi: float) -> bool:
    """Whether many bounds are active, and in most samples others than one step before."""
    outside = (target < lo) | (target > hi)
    if bool(outside.sum() <= _CROWDED * outside.numel()):
        return False
    changed = (outside != ((before < lo) | (before > hi))).any(-1)
    return bool(changed.sum() > 0.5 * len(changed))


def _by_active_set(
    objective: Objective, energy: BoundQuadratic, dual: Tensor, tol: float, max_iter: int
) -> ExactResult:
    """γ = 0: guess the active set by a few projected gradient steps, correct it, and search on where it turns round."""
    geometry, (lo, hi) = objective.geometry, objective.geometry.bounds(dual.dtype)
    descent = energy.descent(energy.gradient_step)
    # The last step is not projected, to tell on which side of a bound it ends.
    before = target = descent(geometry.activation(dual))
    for _ in range(_GUESSES):
        before = target
        target = descent(target.clamp(lo, hi))
    looks = _GUESSES + 1
    if len(dual) * _FOR_EACH >= dual.shape[-1] and _is_unsettled(before, target, lo, hi):
        # Each set that is not the right one costs as much as many iterations.
        target = active_set_guess(objective, geometry.finite_dual(target.clamp(lo, hi), dual.dtype), _SPLITTINGS)
        looks += _SPLITTINGS
    found = solve_projected_active_set(objective, target, tol, min(_CORRECTIONS, max_iter - 1))
    found.tries.add_(looks)
    if found.complete:
        return found
    left = max_iter - int(found.steps.max())
    if left <= 1:
        return found
    rows = (~found.accepted).nonzero().squeeze(-1)
    part = objective.select(rows)
    searched = minimise_convex(part, target[rows].clamp(lo, hi), tol, left - 1)
    # The set is right now: solve for its point once more, exactly.
    left -= int(searched.steps.max())
    exact = solve_active_set(
        part, searched.value, searched.gradient.to(dual.dtype), tol, min(_LAST_CORRECTIONS, left - 1)
    )
    steps = found.steps[rows] + searched.steps + exact.steps
    tries = found.tries[rows] + searched.tries + exact.tries
    return found.replace_rows(rows, replace(exact, steps=steps, tries=tries))


def _merged(objective: Objective, first: Outcome, rows: Int[Tensor, " some"], second: Outcome) -> Outcome:
    """`first` with some of its rows replaced by those of `second`, whose cost is added."""
    if len(rows) == 0:
        return first

    def put(old: Tensor, new: Tensor) -> Tensor:
        return old.index_copy(0, rows, new.to(old.dtype))

    return replace(
        first,
        point=_with_steps(objective, first).point.replace_rows(rows, _with_steps(objective, second).point),
        without_steps=False,
        complete=False,
        without_potential=False,
        blocks=None,
        status=put(first.status, second.status),
        iterations=put(first.iterations, first.iterations[rows] + second.iterations),
        evaluations=put(first.evaluations, first.evaluations[rows] + second.evaluations),
        exact=put(first.exact, second.exact),
        free=put(first.free, second.free),
    )


def _with_steps(objective: Objective, outcome: Outcome) -> Outcome:
    """The same, to go with outcomes of MM steps: τ is known, and F is."""
    point = outcome.point
    if outcome.without_potential and point.objective is not None:
        point = replace(point, objective=point.objective + objective.potential(point.dual))
    if outcome.without_steps:
        point = replace(point, step=objective.initial_step(point.dual))
    return replace(outcome, point=point, without_steps=False, without_potential=False)


def _joined(solved: list[tuple[Objective, Outcome]]) -> Outcome:
    """The outcomes of several batches as that of one."""
    exact = all(outcome.without_steps for _, outcome in solved)
    outcomes = [outcome if exact else _with_steps(part, outcome) for part, outcome in solved]

    return replace(
        outcomes[0],
        point=Point.cat([outcome.point for outcome in outcomes]),
        status=torch.cat([outcome.status for outcome in outcomes]),
        iterations=torch.cat([outcome.iterations for outcome in outcomes]),
        evaluations=torch.cat([outcome.evaluations for outcome in outcomes]),
        exact=torch.cat([outcome.exact for outcome in outcomes]),
        free=torch.cat([outcome.free for outcome in outcomes]),
        complete=all(outcome.complete for outcome in outcomes),
        blocks=None,
    )


def _last(rows: Tensor, steps: Tensor) -> Tensor:
    """Of each sample, (B,), the row of its last step: (K, B, d) → (B, d)."""
    return rows[steps, torch.arange(len(steps), device=steps.device)]


class _Log:
    """Builds a `Trace` from the iterates of a method."""

    def __init__(self, objective: Objective, like: Tensor) -> None:
        self.objective = objective
        self.like = like
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def add_duals(self, dual: Tensor, index: Tensor) -> None:
        """One iteration, in dual coordinates."""
        dual = self.objective.geometry.project_dual(dual.to(self.like.dtype))
        part = self.objective.select(index)
        point = part.evaluate(dual, part.initial_step(dual))
        missing = torch.full_like(self.like[:, 0], torch.nan)
        value = missing[index] if point.objective is None else point.objective
        self.rows.append(
            (
                missing.index_copy(0, index, point.residual),
                missing.index_copy(0, index, value),
                torch.full_like(self.like, torch.nan).index_copy(0, index, dual),
            )
        )

    def add_values(self, value: Tensor, index: Tensor) -> None:
        """One iteration, in primal coordinates."""
        self.add_duals(self.objective.geometry.finite_dual(value, self.like.dtype), index)

    def trace(self) -> Trace | None:
        """The trace; None where not a step was needed."""
        if not self.rows:
            return None
        return Trace(*(torch.stack(column) for column in zip(*self.rows, strict=True)))
