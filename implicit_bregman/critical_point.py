"""The one function that joins geometry, energy, majorization, solver and adjoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.adjoints import Adjoint, AdjointReport, adjoint_named
from implicit_bregman.checks import check_existence, check_input
from implicit_bregman.compilation import uncompiled, without_autocast
from implicit_bregman.energy.base import Energy
from implicit_bregman.half import round_into
from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.legendre import geometry as lookup
from implicit_bregman.objective import Objective
from implicit_bregman.settings import check_nonnegative
from implicit_bregman.solution import Solution
from implicit_bregman.solvers import Outcome, Solver
from implicit_bregman.starts import start_dual
from implicit_bregman.status import Status, report_failures
from implicit_bregman.tensors import refuse_recording, refuse_transforms
from implicit_bregman.transformed import Followed, Numbers, Recording, solve_numbers
from implicit_bregman.transforms import transformed
from implicit_bregman.valuation import Dependence, Valuation


@uncompiled
def find_critical_point(
    energy: Energy,
    geometry: str | LegendreFunction,
    x: Float[Tensor, "*batch n"],
    initial: Float[Tensor, "*batch d"] | Solution | None = None,
    regularization: float = 0.0,
    solver: str | Solver = "auto",
    adjoint: str | Adjoint = "implicit",
    initial_dual: Float[Tensor, "*batch d"] | None = None,
) -> Solution:
    """h(x; θ) ∈ crit(f_θ(·; x) + γφ + ι_C), the limit of MM from z⁰ (Problem 2.1), or z_L (Problem 2.2).

    Each sample stops by its own residual and is then left alone. Half-precision inputs and parameters are lifted
    to float32 and the value is returned in x's precision; under autocast the solve runs in the parameters'
    precision. `torch.compile` breaks the graph here. vmap and forward mode are refused.

    Args:
        energy: f.
        geometry: φ, by name or instance.
        x: input, (B, n) with any leading shape B.
        initial: z⁰, (B, d), in int C; or a `Solution` of this shape and device, whose dual is taken in x's precision
            (and cut to its largest numbers). None: ρ(0). A tensor is used as given. A sample of it with an entry on a
            bound, to which the precision may have rounded it, or with one that no finite dual stands for, gets the
            status INVALID_INPUT; so near a bound that ρ⁻¹ overflows, the largest finite dual stands for z⁰ where its ρ
            differs by less than the smallest normal number.
        regularization: γ ≥ 0.
        solver: a name ("auto", "newton", "mm", "anderson", "broyden") or an instance.
        adjoint: a name ("implicit", "phantom", "one_step", "shine", "unrolled") or an instance.
        initial_dual: instead of `initial`, the start's dual y⁰ = ρ⁻¹(z⁰), (B, d): any finite numbers, where z⁰ would be
            rounded to a bound. For a φ that is not Legendre it is projected by `project_dual`.

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
    if not isinstance(energy, Energy):
        raise TypeError(f"energy must be an Energy, got {type(energy).__name__}: subclass implicit_bregman.Energy")
    method = how.solver_for(solver)
    starts = [start for start in (initial, initial_dual) if isinstance(start, Tensor)]
    refuse_recording([x, *starts, *energy.parameters(), *energy.buffers()])
    gamma = check_nonnegative("regularization", regularization)
    features = check_input(energy, x)
    if transformed():
        return _inside_transforms(energy, phi, x, initial, initial_dual, gamma, method, how)
    batch = x.shape[:-1]
    # Under autocast a half-precision x is a matter of the layer before; the parameters' precision is what counts.
    result_dtype = torch.float32 if torch.is_autocast_enabled(x.device.type) else x.dtype
    with without_autocast(x.device.type):
        flat = _lift(x, energy).reshape(batch.numel(), x.shape[-1])
        dual, usable = start_dual(phi, initial, initial_dual, flat, (*batch, features))
        clean = _clean(flat, usable)
        if clean is not None:
            flat, dual = torch.where(clean[:, None], flat, 0.0), torch.where(clean[:, None], dual, 0.0)
        objective = _objective(energy, phi, flat, gamma)
        own = objective.energy.own
        if own is not None and how.follows_limit:
            own.check(phi, gamma)
        how.accepts(method, objective.energy)
        outcome, value, report = how.solve(objective, dual, method)
        report.batch = batch if len(batch) != 1 else None
        status = outcome.status
        if clean is not None:
            status = torch.where(clean, status, int(Status.INVALID_INPUT))
            value = torch.where(clean[:, None], value, torch.nan)
        if result_dtype.itemsize == 2:
            value, status = round_into(phi, value, result_dtype, status)
        advice = partial(method.advice, dtype=flat.dtype)
        if not outcome.complete or clean is not None or result_dtype.itemsize == 2:
            report_failures("find_critical_point", status, method.on_failure, advice)
        return _solution(objective, outcome, value, status, clean, report, advice)


@uncompiled
def attach_gradient(
    energy: Energy,
    geometry: str | LegendreFunction,
    x: Float[Tensor, "*batch n"],
    dual: Float[Tensor, "*batch d"],
    regularization: float = 0.0,
    adjoint: str | Adjoint = "implicit",
) -> Float[Tensor, "*batch d"]:
    """ρ(dual) with the gradient that an adjoint computes at that iterate, converged or not.

    It measures how far the gradient is off along the iterations of a solver.

    Args:
        energy: f.
        geometry: φ, by name or instance.
        x: input, (B, n).
        dual: the iterate y, (B, d).
        regularization: γ ≥ 0.
        adjoint: `Implicit`, `Phantom` or `OneStep`, by name or instance.

    Raises:
        TypeError: for `Unrolled` and `Shine`, which need a solve of their own.
        ValueError: for shapes or dtypes that do not fit, and for `Implicit` with a low-rank weight and γ = 0,
            whose gradient depends on the start.
    """
    phi = lookup(geometry)
    how = adjoint_named(adjoint)
    refuse_transforms([x, dual, *energy.parameters(), *energy.buffers()])
    features = check_input(energy, x)
    if dual.shape != (*x.shape[:-1], features):
        raise ValueError(f"dual must have shape {(*x.shape[:-1], features)}, got {tuple(dual.shape)}")
    rows = dual.reshape(-1, features).detach()
    objective = _objective(energy, phi, x.reshape(-1, x.shape[-1]), check_nonnegative("regularization", regularization))
    how.accepts_iterate(objective)
    point = objective.evaluate(rows, objective.initial_step(rows))
    count = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    outcome = Outcome(point, count, count, count + 1, count > 0, torch.ones_like(rows, dtype=torch.bool), None)
    value, _ = how.attach(objective, outcome, rows)
    return value.reshape(dual.shape)


def _inside_transforms(
    energy: Energy,
    phi: LegendreFunction,
    x: Tensor,
    initial: Tensor | Solution | None,
    initial_dual: Tensor | None,
    gamma: float,
    method: Solver,
    how: Adjoint,
) -> Solution:
    """The same where torch.func or forward mode is at work: see `transformed`."""
    if isinstance(initial, Solution):
        initial, initial_dual = None, initial.dual.detach()
    start, features, batch = initial if initial_dual is None else initial_dual, check_input(energy, x), x.shape[:-1]
    flat = _lift(x, energy).reshape(batch.numel(), x.shape[-1])
    name = "initial" if initial_dual is None else "initial_dual"

    def solve(x: Tensor, start: Tensor | None) -> tuple[Solution, tuple[Tensor, ...]]:
        recording = Recording(how, [])
        given: dict[str, Any] = {} if start is None else {name: start}
        found = find_critical_point(energy, phi, x, regularization=gamma, solver=method, adjoint=recording, **given)
        return found, recording.records[0]

    rows = None if start is None else start.reshape(len(flat), features)
    at = solve_numbers(energy, solve, flat, rows)
    clean = (at.status != int(Status.INVALID_INPUT))[:, None]
    bound = energy.bind(torch.where(clean, flat, 0.0))
    objective = Objective(bound, phi, gamma, unique=True)
    value = how.replay(objective, at.record, _followed_start(phi, rows, name, clean, at))
    value = torch.where(clean, value, torch.nan)
    shaped = partial(_shaped, batch if len(batch) != 1 else None)
    return Solution(
        **{field: shaped(getattr(at, field)) for field in Numbers._fields if field not in ("value", "record")},
        value=shaped(value.to(at.value.dtype)),
        trace=None,
        adjoint=AdjointReport(),
        _valuation=Followed(bound, phi, gamma, value, at.dual, shaped),
        _advice=partial(method.advice, dtype=flat.dtype),
    )


def _followed_start(phi: LegendreFunction, rows: Tensor | None, name: str, clean: Tensor, at: Numbers) -> Tensor:
    """y⁰ as a function of what was given for it."""
    if rows is None:
        return torch.zeros_like(at.dual)
    if name == "initial_dual":
        return phi.project_dual(torch.where(clean, rows, 0.0).to(at.dual.dtype))
    middle = phi.activation(torch.zeros_like(at.dual)).to(rows.dtype)
    return phi.inverse_activation(torch.where(clean, rows, middle).double()).to(at.dual.dtype)


def _lift(x: Tensor, energy: Energy) -> Tensor:
    """x in the precision of the solve: the parameters' under autocast, never less than float32."""
    if x.dtype.itemsize == 2:
        own = next((p.dtype for p in energy.parameters() if p.is_floating_point()), torch.float32)
        return x.to(own if own.itemsize > 2 else torch.float32)
    return x


def _clean(flat: Tensor, usable: Tensor | None) -> Tensor | None:
    """Which samples have a finite input and a usable start, (B,); None: all."""
    # (the sum of finite entries may overflow: then each is looked at)
    if usable is None and math.isfinite(float(flat.detach().sum())):
        return None
    clean = torch.isfinite(flat).all(-1)
    clean = clean if usable is None else clean & usable
    return None if bool(clean.all()) else clean


def _objective(energy: Energy, phi: LegendreFunction, flat: Tensor, gamma: float) -> Objective:
    bound = energy.bind(flat)
    check_existence(bound, phi, gamma)
    return Objective(bound, phi, gamma)


def _solution(
    objective: Objective,
    outcome: Outcome,
    value: Tensor,
    status: Tensor,
    clean: Tensor | None,
    report: AdjointReport,
    advice: Callable[[Status], str],
) -> Solution:
    point = outcome.point

    shaped = partial(_shaped, report.batch)

    residual = point.residual if clean is None else torch.where(clean, point.residual, torch.nan)
    dual = shaped(point.dual.detach())
    valuation = Valuation(
        geometry=objective.geometry,
        regularization=objective.regularization,
        point=point.value.detach(),
        dual=point.dual.detach(),
        gradient=point.gradient.detach(),
        known=point.objective,
        left_out=objective.regularization if outcome.without_potential else 0.0,
        shaped=shaped,
        dependence=_dependence(objective, outcome, value) if torch.is_grad_enabled() else None,
    )
    return Solution(
        value=shaped(value),
        dual=dual,
        residual=shaped(residual),
        iterations=shaped(outcome.iterations),
        evaluations=shaped(outcome.evaluations),
        status=shaped(status),
        polished=shaped(outcome.polished),
        step=shaped(point.step.squeeze(-1)),
        trace=outcome.trace,
        adjoint=report,
        _valuation=valuation,
        _advice=advice,
    )


def _shaped(batch: torch.Size | None, rows: Tensor) -> Tensor:
    """In the leading shape of the batch, where that is not flat."""
    return rows if batch is None else rows.reshape((*batch, *rows.shape[1:]))


def _dependence(objective: Objective, outcome: Outcome, value: Tensor) -> Dependence:
    """How F and z depend on x and θ."""
    moves = None
    if not outcome.complete:
        # Elsewhere F does not change with z to first order.
        moves = (outcome.status == int(Status.TRUNCATED)) | (outcome.status == int(Status.INFEASIBLE))
        moves = moves if bool(moves.any()) else None
    energy, z = objective.energy, outcome.point.value.detach()
    return Dependence(value, energy.value_at(z), moves, energy.pack())
