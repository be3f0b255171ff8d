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
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.linalg.norms import norm, ratio
from implicit_bregman.objective import Objective
from implicit_bregman.operators.linear_map import DenseMap
from implicit_bregman.projection.basis import Basis
from implicit_bregman.projection.differentiable import Record, follow, recorded
from implicit_bregman.projection.error import Solved, forward_errors, refined_error
from implicit_bregman.projection.system import solve_projection_system
from implicit_bregman.solvers.base import DEFAULT_TOL, Outcome
from implicit_bregman.status import Status
from implicit_bregman.transforms import batched_again, is_batched, pull

if TYPE_CHECKING:
    from implicit_bregman.projection.energy import BoundEquations, BoundLowRank

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
    gamma, point, report = objective.regularization, outcome.point, AdjointReport()
    if not torch.is_grad_enabled():
        return point.value.detach(), report
    soft, usable = is_soft(objective, outcome), differentiable(outcome)
    state = _State(on_failure, report, objective.geometry, gamma, energy.basis, point.dual, soft, usable)
    value, softness = point.value.detach(), softness_of(energy, gamma)
    return _AttachProjection.apply(value, energy.vectors, energy.target, dual, softness, state), report


def record_projection(
    energy: BoundLowRank, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]
) -> Record:
    """What of an outcome, found from y⁰ = `dual`, its derivatives depend on."""
    point, gamma = outcome.point, objective.regularization
    solved = Solved(
        objective.geometry,
        gamma,
        energy.basis,
        energy.target.detach(),
        dual.detach(),
        float(softness_of(energy, gamma)),
        point.dual,
        point.value.detach(),
        is_soft(objective, outcome),
    )
    return recorded(solved.value, solved.multiplier(), solved.soft, differentiable(outcome))


def softness_of(energy: BoundEquations, gamma: float) -> Float[Tensor, ""]:
    """ε of the samples that have one: γ, or that of an infeasible system."""
    return energy.target.new_full((), gamma) if gamma else energy.softness


def is_soft(objective: Objective, outcome: Outcome) -> Bool[Tensor, " batch"]:
    """The samples with ε > 0."""
    infeasible = outcome.status == int(Status.INFEASIBLE)
    return torch.ones_like(infeasible) if objective.regularization else infeasible


@dataclass(frozen=True)
class _State:
    """What the backward pass needs besides its differentiable inputs."""

    on_failure: str
    report: AdjointReport
    geometry: MirrorMap
    gamma: float
    basis: Basis
    dual: Float[Tensor, "batch d"]
    soft: Bool[Tensor, " batch"]
    usable: Bool[Tensor, " batch"] | None
    """The samples that may have a derivative; None: all."""


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
        ctx.on_failure, ctx.report, ctx.geometry, ctx.gamma = (
            state.on_failure,
            state.report,
            state.geometry,
            state.gamma,
        )
        # z is the output, which autograd keeps anyway.
        ctx.save_for_backward(output, *inputs[1:5], state.dual, state.soft, state.usable, *state.basis.tensors())

    @staticmethod
    @batched_again
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        value, *of, dual, soft, forward, columns, lift, null, equations = ctx.saved_tensors
        vectors, target, start, softness = of
        again = torch.is_grad_enabled()
        with torch.no_grad():
            basis = Basis(columns, lift, null, equations, vectors.detach().double())
            solved = Solved(ctx.geometry, ctx.gamma, basis, target, start, float(softness), dual, value.detach(), soft)
            _, multiplier, _, known = record = recorded(solved.value, solved.multiplier(), soft, forward)

        def followed(vectors: Tensor, *of: Tensor) -> Tensor:
            return follow(ctx.geometry, DenseMap, record, *of, vectors)

        if is_batched(gradient):
            # (there is no report for so many)
            return None, *pull(followed, of, torch.where(known[:, None], gradient, 0.0)), None
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            usable = torch.isfinite(gradient).all(-1)
            g = torch.where((usable & known)[:, None], gradient, 0.0).double()
            epsilon = torch.where(soft, softness.double(), 0.0)
            slope = ctx.geometry.slope(dual)
            w, p, singular, residual = solve_projection_system(basis, slope.double(), epsilon, g)
            spread, here = forward_errors(solved, slope, multiplier)
            error = residual + ratio(norm(spread * p), norm(p))
            if here is not None:
                g_here, w_here, p_here = (part[here.rows] for part in (g, w, p))
                tol = DEFAULT_TOL[value.dtype]
                more = refined_error(here, ctx.geometry, basis, solved.softness, tol, g_here, w_here, p_here)
                error = error.index_add(0, here.rows, more)
            if not bool(usable.all()):
                # What is not finite goes on, so that whoever scales the loss sees it.
                w, p = (torch.where(usable[:, None], rows, torch.nan) for rows in (w, p))
            status = torch.where(singular, int(Status.SINGULAR), int(Status.CONVERGED))
            status = torch.where(usable, status, int(Status.INVALID_INPUT))
            needs = ctx.needs_input_grad
            dv = p.mT @ multiplier - value.double().mT @ w if needs[1] else None
            depsilon = -(torch.where(soft[:, None], w * multiplier, 0.0)).sum() if needs[4] else None
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
            (p.to(gradient.dtype) if not ctx.gamma else torch.zeros_like(gradient)) if needs[3] else None,
            None if depsilon is None else depsilon.to(softness.dtype),
            None,
        )
