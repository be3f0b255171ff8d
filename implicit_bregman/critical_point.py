"""The one function that joins geometry, energy, majorization, solver and adjoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.adjoints import Adjoint, AdjointReport, Implicit, Shine, Unrolled, adjoint_named
from implicit_bregman.adjoints.shine import SHINE_SOLVER
from implicit_bregman.batch import Batch, in_front
from implicit_bregman.checks import check_energy, check_existence
from implicit_bregman.compilation import uncompiled, without_autocast
from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.inputs import Inputs, tensors_of
from implicit_bregman.energy.low_rank import BoundLowRank, check_projection
from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.legendre import geometry as lookup
from implicit_bregman.objective import Objective
from implicit_bregman.settings import check_nonnegative
from implicit_bregman.solution import Envelope, LazyObjective, Solution
from implicit_bregman.solvers import MM, Outcome, Solver, solver_named
from implicit_bregman.status import Status, report_failures
from implicit_bregman.tensors import refuse_transforms


@uncompiled
def find_critical_point(
    energy: Energy,
    geometry: str | LegendreFunction,
    x: Float[Tensor, "*batch n"] | Inputs,
    initial: Float[Tensor, "*batch *features"] | Solution | None = None,
    regularization: float = 0.0,
    solver: str | Solver = "auto",
    adjoint: str | Adjoint = "implicit",
    initial_dual: Float[Tensor, "*batch *features"] | None = None,
) -> Solution:
    """h(x; θ) ∈ crit(f_θ(·; x) + γφ + ι_C), the limit of MM from z⁰ (Problem 2.1), or z_L (Problem 2.2).

    Each sample stops by its own residual and is then left alone. Half-precision inputs and parameters are lifted
    to float32 and the value is returned in x's precision; under autocast the solve runs in the parameters'
    precision. `torch.compile` breaks the graph here. vmap and forward mode are refused.

    Args:
        energy: f.
        geometry: φ, by name or instance.
        x: input, (B, n) with any leading shape B. Where the energy's `features` are a tuple, a tensor with the batch
            in front, whatever its shape behind; and in any case a tuple, list or dict of such tensors, nested (a
            pytree), of which some may be labels or masks. Gradients flow to all that are floating point.
        initial: z⁰, (B, d), or (B, C, H, W) where states have this shape, in int C; or a `Solution` of this shape and
            device, whose dual is taken in x's precision (and cut to its largest numbers). None: ρ(0). A tensor is used
            as given. A sample of it with an entry on a bound, to which the precision may have rounded it, or with one
            that no finite dual stands for, gets the status INVALID_INPUT; so near a bound that ρ⁻¹ overflows, the
            largest finite dual stands for z⁰ where its ρ differs by less than the smallest normal number.
        regularization: γ ≥ 0.
        solver: a name ("auto", "newton", "mm", "anderson", "broyden") or an instance.
        adjoint: a name ("implicit", "phantom", "one_step", "shine", "unrolled") or an instance.
        initial_dual: instead of `initial`, the start's dual y⁰ = ρ⁻¹(z⁰), of the same shape: any finite numbers, where
            z⁰ would be rounded to a bound. For a φ that is not Legendre it is projected by `project_dual`.

    The gradient flows to `initial` or `initial_dual` where the start matters: with a low-rank weight and γ = 0, and
    through the steps of `Unrolled`. Elsewhere it is 0.

    Raises:
        TypeError: for tensors that are not floating point, or arguments of the wrong kind.
        ValueError: for shapes, dtypes or devices that do not fit, a start outside C or given twice, unknown names, an
            objective that is provably unbounded below, or a domain without a number of x's half precision.
        RuntimeError: if a sample fails and the solver's `on_failure` is "raise", inside `torch.func` transforms, and
            where the computation is recorded (`torch.jit.trace`, `torch.export`).
    """
    phi, how = lookup(geometry), adjoint_named(adjoint)
    check_energy(energy)
    method = _solver_for(solver, how)
    starts = [start for start in (initial, initial_dual) if isinstance(start, Tensor)]
    refuse_transforms([*tensors_of(x), *starts, *energy.parameters(), *energy.buffers()])
    gamma = check_nonnegative("regularization", regularization)
    batch = Batch.of(energy, phi, x, initial, initial_dual)
    with without_autocast(batch.dual.device.type):
        objective = _objective(energy, phi, batch.x, gamma)
        if isinstance(objective.energy, BoundLowRank) and not isinstance(how, Unrolled):
            check_projection(phi, gamma)
        outcome, value, report = how.solve(objective, batch.dual, method)
        report.batch = None if batch.is_flat else batch.shape
        value, status = batch.finish(value, outcome.status)
        advice = partial(method.advice, dtype=batch.dual.dtype)
        if not outcome.complete or batch.clean is not None or batch.half is not None:
            report_failures("find_critical_point", status, method.on_failure, advice)
        return _solution(objective, outcome, batch, value, status, report, advice)


@uncompiled
def attach_gradient(
    energy: Energy,
    geometry: str | LegendreFunction,
    x: Float[Tensor, "*batch n"] | Inputs,
    dual: Float[Tensor, "*batch *features"],
    regularization: float = 0.0,
    adjoint: str | Adjoint = "implicit",
) -> Float[Tensor, "*batch *features"]:
    """ρ(dual) with the gradient that an adjoint computes at that iterate, converged or not.

    It measures how far the gradient is off along the iterations of a solver.

    Args:
        energy: f.
        geometry: φ, by name or instance.
        x: input, (B, n), or what else the energy takes, as in `find_critical_point`.
        dual: the iterate y, (B, d), or (B, C, H, W) where states have this shape.
        regularization: γ ≥ 0.
        adjoint: `Implicit`, `Phantom` or `OneStep`, by name or instance.

    Raises:
        TypeError: for `Unrolled` and `Shine`, which need a solve of their own.
        ValueError: for shapes or dtypes that do not fit, and for `Implicit` with a low-rank weight and γ = 0,
            whose gradient depends on the start.
    """
    phi, how = lookup(geometry), adjoint_named(adjoint)
    check_energy(energy)
    refuse_transforms([*tensors_of(x), dual, *energy.parameters(), *energy.buffers()])
    gamma = check_nonnegative("regularization", regularization)
    batch = Batch.of(energy, phi, x, initial_dual=dual, called="dual")
    with without_autocast(dual.device.type):
        objective = _objective(energy, phi, batch.x, gamma)
        if isinstance(objective.energy, BoundLowRank) and isinstance(how, Implicit) and not gamma:
            raise ValueError(
                'with weight="low_rank" and regularization=0 the implicit gradient depends on the start, which a given '
                "iterate does not tell: use find_critical_point(..., initial=...)"
            )
        rows = batch.dual.detach()
        point = objective.evaluate(rows, objective.initial_step(rows))
        count = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        outcome = Outcome(point, count, count, count + 1, count > 0, torch.ones_like(rows, dtype=torch.bool), None)
        value, _ = how.attach(objective, outcome, rows)
        return batch.states(batch.finish(value, outcome.status)[0])


def _solver_for(solver: str | Solver, adjoint: Adjoint) -> Solver:
    if isinstance(adjoint, Shine) and solver in ("auto", "broyden"):
        return SHINE_SOLVER
    return MM() if isinstance(adjoint, Unrolled) and solver == "auto" else solver_named(solver)


def _objective(energy: Energy, phi: LegendreFunction, x: Inputs, gamma: float) -> Objective:
    bound = energy.bind(x)
    check_existence(bound, phi, gamma)
    return Objective(bound, phi, gamma)


def _solution(
    objective: Objective,
    outcome: Outcome,
    batch: Batch,
    value: Tensor,
    status: Tensor,
    report: AdjointReport,
    advice: Callable[[Status], str],
) -> Solution:
    point, dual = outcome.point, outcome.point.dual.detach()
    known = None if point.objective is None else batch.samples(point.objective)
    left_out = objective.regularization if outcome.without_potential else 0.0
    envelope = _envelope(objective, outcome, value, partial(in_front, batch.shape))
    return Solution(
        value=batch.states(value),
        dual=batch.states(dual),
        residual=batch.samples(batch.masked(point.residual)),
        iterations=batch.samples(outcome.iterations),
        evaluations=batch.samples(outcome.evaluations),
        status=batch.samples(status),
        polished=batch.samples(outcome.polished),
        step=batch.samples(point.step.squeeze(-1)),
        trace=batch.trace(outcome.trace),
        adjoint=report,
        _objective=LazyObjective(known, objective.geometry, left_out, batch.samples(dual), envelope),
        _advice=advice,
    )


def _envelope(
    objective: Objective, outcome: Outcome, value: Tensor, shaped: Callable[[Tensor], Tensor]
) -> Envelope | None:
    """How F depends on x, θ and z; None where there is no objective or nobody can ask for its gradient."""
    point = outcome.point
    if point.objective is None or not torch.is_grad_enabled():
        return None
    slope = None
    if not outcome.complete:
        # Elsewhere F does not change with z to first order.
        moves = (outcome.status == int(Status.TRUNCATED)) | (outcome.status == int(Status.INFEASIBLE))
        if bool(moves.any()):
            slope = torch.where(moves[:, None], point.gradient + objective.regularization * point.dual, 0.0)
    return Envelope(objective.energy.value_at(point.value.detach()), value, slope, shaped)
