"""Implicit differentiation of the Bregman projection, in its r-dimensional dual.

z = ρ(y) with y = y⁰ + Vλ and Vᵀz + ελ = β. With D = diag ρ'(y), S = VᵀDV + εI and g = dL/dz, differentiating both
equations gives

    S w = VᵀD g,    p = D(g − Vw),
    dL/dβ = w,    dL/dy⁰ = p,    dL/dV = pλᵀ − zwᵀ,    dL/dε = −wᵀλ.

ε = 0 for a system with a solution inside C; the energy's ε for one without; γ, with y⁰ = 0, for γ > 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.backward import AdjointReport, differentiable, report_backward
from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.linalg.norms import norm, ratio
from implicit_bregman.objective import Objective
from implicit_bregman.projection.basis import Basis
from implicit_bregman.projection.differentiable import Record, follow
from implicit_bregman.projection.error import Unsolved, forward_errors, refined_error
from implicit_bregman.projection.system import solve_projection_system
from implicit_bregman.solvers.base import DEFAULT_TOL, Outcome
from implicit_bregman.status import Status
from implicit_bregman.transforms import batched_again, is_batched, pull

if TYPE_CHECKING:
    from implicit_bregman.projection.energy import BoundLowRank

#: The methods of `Implicit` that have a meaning here: both factorize the r × r systems.
METHODS = ("auto", "dense")


def attach_projection(
    energy: BoundLowRank,
    objective: Objective,
    outcome: Outcome,
    dual: Float[Tensor, "batch d"],
    method: str,
    on_failure: str,
) -> tuple[Float[Tensor, "batch d"], AdjointReport]:
    """The value of `outcome`, found from y⁰ = `dual`, with the exact gradient for V, β and y⁰.

    Raises:
        ValueError: if `method` is an iterative one.
    """
    if method not in METHODS:
        raise ValueError(
            f'adjoint method "{method}" has no meaning for a low-rank weight, whose r x r systems are '
            f"factorized: use method={' or '.join(repr(name) for name in METHODS)}"
        )
    gamma, point = objective.regularization, outcome.point
    report = AdjointReport()
    if not torch.is_grad_enabled():
        return point.value.detach(), report
    slope = objective.geometry.slope(point.dual)
    value, multiplier, soft, known = record_projection(energy, objective, outcome, dual)
    state = _State(
        on_failure,
        report,
        objective.geometry,
        energy.basis,
        value,
        slope,
        multiplier.to(value.dtype),
        soft,
        known,
        gamma == 0,
        *forward_errors(energy, objective, dual.detach(), point.dual, value, slope, multiplier, soft),
    )
    softness = softness_of(energy, gamma)
    return _AttachProjection.apply(value, energy.vectors, energy.target, dual, softness, state), report


def record_projection(
    energy: BoundLowRank, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]
) -> Record:
    """What of an outcome, found from y⁰ = `dual`, its derivatives depend on."""
    value = outcome.point.value.detach()
    multiplier = _multiplier(energy, objective, outcome, dual.detach())
    known = torch.isfinite(multiplier.to(value.dtype)).all(-1)
    usable = differentiable(outcome)
    known = known if usable is None else known & usable
    return value, torch.where(known[:, None], multiplier, 0.0), _is_soft(objective, outcome), known


def softness_of(energy: BoundLowRank, gamma: float) -> Float[Tensor, ""]:
    """ε of the samples that have one: γ, or that of an infeasible system."""
    return energy.vectors.new_full((), gamma) if gamma else energy.softness


def _is_soft(objective: Objective, outcome: Outcome) -> Bool[Tensor, " batch"]:
    """The samples with ε > 0."""
    infeasible = outcome.status == int(Status.INFEASIBLE)
    return torch.ones_like(infeasible) if objective.regularization else infeasible


def _multiplier(
    energy: BoundLowRank, objective: Objective, outcome: Outcome, start: Tensor
) -> Float[Tensor, "batch r"]:
    """λ in float64, read off the outcome, so that it is right for every solver.

    Vλ = y − y⁰ leaves out the part of λ that V maps to 0, and does not hold where a solver other than `Newton` met
    an infeasible system or the dual was clamped: (β − Vᵀz)/ε, which loses digits for a small ε, does.
    """
    gamma, point = objective.regularization, outcome.point
    with torch.no_grad():
        base = torch.zeros_like(start) if gamma else start
        by_dual = energy.basis.multiplier((point.dual - base).double() @ energy.basis.range)
        soft = _is_soft(objective, outcome)
        if not bool(soft.any()):
            return by_dual
        epsilon = gamma or float(energy.softness)
        by_miss = (energy.target.double() - point.value.double() @ energy.vectors.double()) / (epsilon or 1.0)
        if gamma and objective.geometry.is_legendre:
            null = energy.basis.null
            return by_dual + by_miss @ null @ null.mT
        return torch.where(soft[:, None], by_miss, by_dual)


@dataclass(frozen=True)
class _State:
    """What the backward pass needs besides its differentiable inputs."""

    on_failure: str
    report: AdjointReport
    geometry: LegendreFunction
    basis: Basis
    value: Float[Tensor, "batch d"]
    slope: Float[Tensor, "batch d"]
    multiplier: Float[Tensor, "batch r"]
    soft: Bool[Tensor, " batch"]
    known: Bool[Tensor, " batch"]
    """The samples that have a derivative."""
    moves: bool
    """Whether the result depends on y⁰: γ = 0."""
    spread: Float[Tensor, "batch d"]
    """What `slope` may be off by, relative to itself."""
    unsolved: Unsolved | None
    """The samples whose gradient has an error beyond rounding."""


class _AttachProjection(torch.autograd.Function):
    """z ↦ z, whose backward is the r-dimensional adjoint."""

    @staticmethod
    def forward(
        value: Tensor, vectors: Tensor, target: Tensor, start: Tensor, softness: Tensor, state: _State
    ) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        state: _State = inputs[5]
        ctx.on_failure, ctx.report, ctx.moves, ctx.geometry = (
            state.on_failure,
            state.report,
            state.moves,
            state.geometry,
        )
        # z is the output, which autograd keeps anyway.
        basis = state.basis
        ctx.save_for_backward(
            output,
            *inputs[1:5],
            state.slope,
            state.multiplier,
            state.soft,
            state.known,
            state.spread,
            basis.range,
            basis.lift,
            basis.null,
            basis.equations,
            *(() if state.unsolved is None else state.unsolved.tensors()),
        )

    @staticmethod
    @batched_again
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        value, *of, slope, multiplier, soft, known, spread, columns, lift, null, equations = ctx.saved_tensors[:14]
        vectors, _, _, softness = of
        rest, again = ctx.saved_tensors[14:], torch.is_grad_enabled()

        def followed(*of: Tensor) -> Tensor:
            return follow(ctx.geometry, (value.detach(), multiplier.double(), soft, known), *of)

        if is_batched(gradient):
            # (there is no report for so many)
            return None, *pull(followed, of, torch.where(known[:, None], gradient, 0.0)), None
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            usable = torch.isfinite(gradient).all(-1)
            g = torch.where((usable & known)[:, None], gradient, 0.0).double()
            epsilon = torch.where(soft, softness.double(), 0.0)
            basis = Basis(columns, lift, null, equations, vectors.double())
            w, p, singular, residual = solve_projection_system(basis, slope.double(), epsilon, g)
            error = residual + ratio(norm(spread * p), norm(p))
            if rest:
                here, tol = Unsolved(*rest), DEFAULT_TOL[value.dtype]
                g_here, w_here, p_here = (part[here.rows] for part in (g, w, p))
                more = refined_error(here, ctx.geometry, basis, float(softness), tol, g_here, w_here, p_here)
                error = error.index_add(0, here.rows, more)
            if not bool(usable.all()):
                # What is not finite goes on, so that whoever scales the loss sees it.
                w, p = (torch.where(usable[:, None], rows, torch.nan) for rows in (w, p))
            status = torch.where(singular, int(Status.SINGULAR), int(Status.CONVERGED))
            status = torch.where(usable, status, int(Status.INVALID_INPUT))
            needs = ctx.needs_input_grad
            lam = multiplier.double()
            dv = p.mT @ lam - value.double().mT @ w if needs[1] else None
            depsilon = -(torch.where(soft[:, None], w * lam, 0.0)).sum() if needs[4] else None
        residual, error = residual.to(gradient.dtype), error.to(gradient.dtype)
        ctx.report.fill(status, residual, torch.zeros_like(status), error, known)
        report_backward("implicit adjoint", ctx.report.status, ctx.on_failure)
        if again:
            with torch.autocast(gradient.device.type, enabled=False):
                return None, *pull(followed, of, torch.where(known[:, None], gradient, 0.0)), None
        return (
            None,
            None if dv is None else dv.to(vectors.dtype),
            w.to(gradient.dtype) if needs[2] else None,
            (p.to(gradient.dtype) if ctx.moves else torch.zeros_like(gradient)) if needs[3] else None,
            None if depsilon is None else depsilon.to(softness.dtype),
            None,
        )
