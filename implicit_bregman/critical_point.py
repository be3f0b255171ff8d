"""The one function that joins geometry, energy, majorization, solver and adjoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.adjoints import Adjoint, AdjointReport, adjoint_named
from implicit_bregman.batch import Batch, as_states, in_front, only_start
from implicit_bregman.checks import check_energy, check_existence
from implicit_bregman.compilation import uncompiled, without_autocast
from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.inputs import Inputs, tensors_of
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre import geometry as lookup
from implicit_bregman.objective import Objective
from implicit_bregman.settings import check_nonnegative
from implicit_bregman.solution import Solution
from implicit_bregman.solvers import Outcome, Solver
from implicit_bregman.status import Status, report_failures
from implicit_bregman.tensors import refuse_recording, refuse_transforms
from implicit_bregman.transformed import Followed, Numbers, Recording, solve_numbers
from implicit_bregman.transforms import transformed
from implicit_bregman.valuation import Dependence, Valuation


@uncompiled
def find_critical_point(
    energy: Energy,
    geometry: str | MirrorMap,
    x: Float[Tensor, "*batch n"] | Inputs,
    initial: Float[Tensor, "*batch *features"] | Solution | None = None,
    regularization: float = 0.0,
    solver: str | Solver = "auto",
    adjoint: str | Adjoint = "implicit",
    initial_dual: Float[Tensor, "*batch *features"] | None = None,
) -> Solution:
    """h(x; θ) ∈ crit(f_θ(·; x) + γφ + ι_C), the limit of MM from z⁰ (Problem 2.1), or z_L (Problem 2.2).

    Each sample stops by its own residual and does not change afterwards. Half-precision inputs and parameters become
    float32 for the solve, and the value has x's precision. Under autocast the solve runs in the parameters'
    precision. `torch.compile` breaks the graph here. Inside `torch.func` transforms and forward mode there are the same
    numbers, with derivatives of every order, but no `trace` and no report of the backward pass.

    Args:
        energy: f.
        geometry: φ, by name or instance.
        x: input, (B, n) with any leading shape B. Where the energy's `features` are a tuple, x is a tensor with the
            batch in front and any shape behind. In either case x may be a tuple, list or dict of such tensors, nested
            (a pytree). Labels and masks may be among them. Gradients flow to all floating-point tensors.
        initial: z⁰, (B, d), or (B, C, H, W) where states have this shape, in int C. Or a `Solution` of this shape and
            device, whose dual is taken in x's precision (and cut to its largest numbers). None: ρ(0). A tensor is used
            as given. A sample of it has the status INVALID_INPUT if one of its entries lies on a bound, perhaps by
            rounding, or has no finite dual. Where z⁰ is so near a bound that ρ⁻¹ overflows, the largest finite dual
            replaces it, if its ρ differs by less than the smallest normal number.
        regularization: γ ≥ 0.
        solver: a name ("auto", "newton", "mm", "anderson", "broyden") or an instance.
        adjoint: a name ("implicit", "phantom", "one_step", "shine", "unrolled") or an instance.
        initial_dual: in place of `initial`, the start's dual y⁰ = ρ⁻¹(z⁰), of the same shape. Use it where z⁰ would
            round to a bound. It may have any finite entries. For a φ that is not Legendre, `project_dual` projects it.

    The gradient flows to `initial` or `initial_dual` where the start matters: with a low-rank weight and γ = 0, and
    through the steps of `Unrolled`. Elsewhere it is 0.

    Raises:
        TypeError: for tensors that are not floating point, or arguments of the wrong kind.
        ValueError: for shapes, dtypes or devices that do not fit, a start outside C or given twice, unknown names, an
            objective that is provably unbounded below, or a domain without a number of x's half precision.
        RuntimeError: if a sample fails and the solver's `on_failure` is "raise", inside transforms if the adjoint is
            `Shine`, and where the computation is recorded (`torch.jit.trace`, `torch.export`).
    """
    phi, how = lookup(geometry), adjoint_named(adjoint)
    check_energy(energy)
    method = how.solver_for(solver)
    starts = [start for start in (initial, initial_dual) if isinstance(start, Tensor)]
    refuse_recording([*tensors_of(x), *starts, *energy.parameters(), *energy.buffers()])
    gamma = check_nonnegative("regularization", regularization)
    if transformed():
        return _inside_transforms(energy, phi, x, initial, initial_dual, gamma, method, how)
    batch = Batch.of(energy, phi, x, initial, initial_dual)
    phi = batch.geometry
    with without_autocast(batch.dual.device.type):
        objective = _objective(energy, phi, batch.x, gamma)
        own = objective.energy.own
        if own is not None and how.follows_limit:
            own.check(phi, gamma)
        how.accepts(method, objective.energy)
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
    geometry: str | MirrorMap,
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
    refuse_transforms("attach_gradient", [*tensors_of(x), dual, *energy.parameters(), *energy.buffers()])
    gamma = check_nonnegative("regularization", regularization)
    batch = Batch.of(energy, phi, x, initial_dual=dual, called="dual")
    phi = batch.geometry
    with without_autocast(dual.device.type):
        objective = _objective(energy, phi, batch.x, gamma)
        how.accepts_iterate(objective)
        rows = batch.dual.detach()
        point = objective.evaluate(rows, objective.initial_step(rows))
        count = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        outcome = Outcome(point, count, count, count + 1, count > 0, torch.ones_like(rows, dtype=torch.bool), None)
        value, _ = how.attach(objective, outcome, rows)
        return batch.states(batch.finish(value, outcome.status)[0])


def _inside_transforms(
    energy: Energy,
    phi: MirrorMap,
    x: Inputs,
    initial: Tensor | Solution | None,
    initial_dual: Tensor | None,
    gamma: float,
    method: Solver,
    how: Adjoint,
) -> Solution:
    """The same where torch.func or forward mode is at work: see `transformed`."""
    batch, (name, start) = Batch.framed(energy, phi, x), only_start(initial, initial_dual)
    phi = batch.geometry
    rows = None if start is None else batch.start_rows(name, start)

    def solve(x: Inputs, rows: Tensor | None) -> tuple[Solution, tuple[Tensor, ...]]:
        recording = Recording(how, [])
        given = {} if rows is None else {name: rows.reshape(len(rows), *batch.event)}
        found = find_critical_point(energy, phi, x, regularization=gamma, solver=method, adjoint=recording, **given)
        return found, recording.records[0]

    at = solve_numbers(energy, solve, batch.x, rows)
    batch = batch.kept(at.status != int(Status.INVALID_INPUT))
    objective = Objective(energy.bind(batch.x), phi, gamma, unique=True)
    value = how.replay(objective, at.record, batch.followed_dual(name, rows))
    shaped = partial(in_front, batch.shape)
    return Solution(
        **{field: shaped(getattr(at, field)) for field in Numbers._fields if field not in ("value", "dual", "record")},
        value=batch.states(batch.masked(value).to(at.value.dtype)),
        dual=batch.states(at.dual),
        trace=None,
        adjoint=AdjointReport(),
        _valuation=Followed(
            objective.energy, phi, gamma, value, at.dual, shaped, partial(as_states, batch.shape, batch.event)
        ),
        _advice=partial(method.advice, dtype=batch.dual.dtype),
    )


def _objective(energy: Energy, phi: MirrorMap, x: Inputs, gamma: float) -> Objective:
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
    point = outcome.point
    dual = point.dual.detach()
    valuation = Valuation(
        geometry=objective.geometry,
        regularization=objective.regularization,
        point=point.value.detach(),
        dual=dual,
        gradient=point.gradient.detach(),
        known=point.objective,
        left_out=objective.regularization if outcome.without_potential else 0.0,
        shaped=partial(in_front, batch.shape),
        states=partial(as_states, batch.shape, batch.event),
        dependence=_dependence(objective, outcome, value) if torch.is_grad_enabled() else None,
    )
    return Solution(
        value=batch.states(value),
        dual=batch.states(dual),
        residual=batch.samples(batch.masked(point.residual)),
        iterations=batch.samples(outcome.iterations),
        evaluations=batch.samples(outcome.evaluations),
        status=batch.samples(status),
        exact=batch.samples(outcome.exact),
        step=batch.samples(point.step.squeeze(-1)),
        trace=batch.trace(outcome.trace),
        adjoint=report,
        _valuation=valuation,
        _advice=advice,
    )


def _dependence(objective: Objective, outcome: Outcome, value: Tensor) -> Dependence:
    """How F and z depend on x and θ."""
    moves = None
    if not outcome.complete:
        # Elsewhere F does not change with z to first order.
        moves = (outcome.status == int(Status.TRUNCATED)) | (outcome.status == int(Status.INFEASIBLE))
        moves = moves if bool(moves.any()) else None
    energy, z = objective.energy, outcome.point.value.detach()
    return Dependence(value, energy.value_at(z) if energy.symmetric else None, moves, energy.pack())
