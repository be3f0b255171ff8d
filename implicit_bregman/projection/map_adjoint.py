"""Implicit differentiation of the Bregman projection for V a linear map.

With D = diag ρ'(y), S = VᵀDV + εI and g = dL/dz, as in `adjoint`,

    S w = VᵀD g,    p = D(g − Vw),    dL/dβ = w,    dL/dy⁰ = p,

and the gradients of V's tensors are those of ⟨p, Vλ⟩ − ⟨w, Vᵀz⟩. A transport plan has D = diag(z). Where a row of it
has no mass, λ is −∞ there and S singular; but z is linear in that mass, and the limit of the row's equation is

    w_i = Σ_j q_ij (g_ij − w_j),    q_ij = z_ij / (mass of row i),

which is the derivative for masses that grow. The same goes for columns. (Derivatives of higher order, and those of
transforms, leave it out: they do not move what has no mass.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.backward import AdjointReport, differentiable, report_backward
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.linalg.norms import norm, ratio
from implicit_bregman.objective import Objective
from implicit_bregman.operators.linear_map import LinearMap, RebuildMap
from implicit_bregman.projection.adjoint import is_soft, softness_of
from implicit_bregman.projection.differentiable import Record, follow, recorded, solved
from implicit_bregman.projection.map_problem import is_plan
from implicit_bregman.solvers.base import Outcome
from implicit_bregman.status import Status
from implicit_bregman.transforms import batched_again, is_batched, pull

if TYPE_CHECKING:
    from implicit_bregman.projection.constraints import BoundConstraints

#: The relative residual that is a failure.
_FAILED = 1e-6
#: Equations that are missed by so many rounding errors of their terms hold.
_ROUNDING = 100


def attach_map(
    energy: BoundConstraints,
    objective: Objective,
    outcome: Outcome,
    dual: Float[Tensor, "batch d"],
    method: str,
    on_failure: str,
) -> tuple[Float[Tensor, "batch d"], AdjointReport]:
    """The value of `outcome`, found from y⁰ = `dual`, with the exact gradient for V, β and y⁰.

    Raises:
        ValueError: if `method` is not "auto".
    """
    if method != "auto":
        raise ValueError(
            f'adjoint method "{method}" has no meaning for V an operator, whose structure says how its r x r systems '
            'are solved: use method="auto"'
        )
    gamma, point, report = objective.regularization, outcome.point, AdjointReport()
    value = point.value.detach()
    if not torch.is_grad_enabled():
        return value, report
    tensors, rebuild = energy.equations.pack()
    state = _State(
        on_failure,
        report,
        objective.geometry,
        gamma,
        rebuild,
        point.dual,
        is_soft(objective, outcome),
        differentiable(outcome),
    )
    attached: Tensor = _AttachMap.apply(value, state, energy.target, dual, softness_of(energy, gamma), *tensors)
    return attached, report


def record_map(
    energy: BoundConstraints, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]
) -> Record:
    """What of an outcome, found from y⁰ = `dual`, its derivatives depend on."""
    gamma, soft = objective.regularization, is_soft(objective, outcome)
    base = torch.zeros_like(dual) if gamma else dual.detach()
    softness = float(softness_of(energy, gamma))
    value = outcome.point.value.detach()
    multiplier = _multiplier(
        energy.exact, energy.target, value, outcome.point.dual - base, soft, softness, objective.geometry.pinned
    )
    return recorded(value, multiplier, soft, differentiable(outcome))


def _multiplier(
    equations: LinearMap,
    target: Tensor,
    value: Tensor,
    moved: Tensor,
    soft: Tensor,
    softness: float,
    pinned: Bool[Tensor, " d"] | None,
) -> Float[Tensor, "batch r"]:
    """λ in float64: of Vλ = y − y⁰, or for ε > 0 (β − Vᵀz)/ε."""
    told = torch.ones_like(moved, dtype=torch.float64)
    # (the dual of a coordinate with lo = hi is 0, whatever λ is)
    told = told if pinned is None else told.masked_fill(pinned, 0.0)
    solve = equations.inverted_gram(told, told.new_zeros(len(told), 1))
    by_dual = equations.shortest(solve(equations.product(told * moved, adjoint=True)))
    by_miss = (target.detach().double() - equations.product(value.double(), adjoint=True)) / (softness or 1.0)
    return torch.where(soft[:, None], by_miss, by_dual)


@dataclass(frozen=True)
class _State:
    """What the backward pass needs besides its differentiable inputs."""

    on_failure: str
    report: AdjointReport
    geometry: MirrorMap
    gamma: float
    rebuild: RebuildMap
    dual: Float[Tensor, "batch d"]
    soft: Bool[Tensor, " batch"]
    usable: Bool[Tensor, " batch"] | None
    """The samples that may have a derivative; None: all."""


class _AttachMap(torch.autograd.Function):
    """z ↦ z, whose backward is the adjoint."""

    @staticmethod
    def forward(
        value: Tensor, state: _State, target: Tensor, start: Tensor, softness: Tensor, *tensors: Tensor
    ) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        state: _State = inputs[1]
        ctx.on_failure, ctx.report, ctx.geometry, ctx.gamma, ctx.rebuild = (
            state.on_failure,
            state.report,
            state.geometry,
            state.gamma,
            state.rebuild,
        )
        # z is the output, which autograd keeps anyway.
        ctx.save_for_backward(output, state.dual, state.soft, state.usable, *inputs[2:])

    @staticmethod
    @batched_again
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        value, dual, soft, forward, *of = ctx.saved_tensors
        target, start, softness, *tensors = of
        again, geometry = torch.is_grad_enabled(), ctx.geometry
        needs_multiplier = any(ctx.needs_input_grad[5:]) or again or is_batched(gradient) or bool(soft.any())
        with torch.no_grad():
            exact = ctx.rebuild(*(t.detach().double() if t.is_floating_point() else t for t in tensors))
            epsilon = torch.where(soft, softness.double(), 0.0)
            base = 0.0 if ctx.gamma else start.detach()
            multiplier = torch.zeros_like(target, dtype=torch.float64)
            if needs_multiplier:
                multiplier = _multiplier(
                    exact, target, value.detach(), dual - base, soft, float(softness), geometry.pinned
                )
            _, multiplier, _, known = record = recorded(value.detach(), multiplier, soft, forward)

        def followed(*of: Tensor) -> Tensor:
            return follow(geometry, ctx.rebuild, record, *of)

        if again or is_batched(gradient):
            # (there is no report for so many)
            return None, None, *pull(followed, of, torch.where(known[:, None], gradient, 0.0))
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            usable = torch.isfinite(gradient).all(-1)
            g = torch.where((usable & known)[:, None], gradient, 0.0).double()
            z = value.double()
            slope = z if geometry.is_exponential else geometry.slope(dual).double()
            solve = exact.inverted_gram(slope, epsilon[:, None])
            w, residual = solved(exact, slope, epsilon, solve, exact.product(slope * g, adjoint=True))
            singular = ~(residual <= _FAILED)
            w = torch.where(singular[:, None], 0.0, w)
            p = slope * (g - exact.product(w))
            if is_plan(exact, geometry):
                w = _with_empty_lines(exact, target, dual.double(), g, w)
            w = torch.where(soft[:, None], w, exact.shortest(w))
            spread = _spread(exact, solve, z, epsilon[:, None] * multiplier - target.double())
            spread = spread * geometry.log_curvature_slope(dual).abs()
            error = residual + ratio(norm(spread * p), norm(p))
            if not bool(usable.all()):
                # What is not finite goes on, so that whoever scales the loss sees it.
                w, p = (torch.where(usable[:, None], rows, torch.nan) for rows in (w, p))
            status = torch.where(singular, int(Status.SINGULAR), int(Status.CONVERGED))
            status = torch.where(usable, status, int(Status.INVALID_INPUT))
            depsilon = -(torch.where(soft[:, None], w * multiplier, 0.0)).sum()
        of_tensors: tuple[Tensor | None, ...] = tuple(None for _ in tensors)
        if any(ctx.needs_input_grad[5:]):

            def paired(*tensors: Tensor) -> Tensor:
                equations = ctx.rebuild(*tensors)
                return (p * equations.product(multiplier)).sum() - (w * equations.product(z, adjoint=True)).sum()

            found = pull(paired, [t.double() if t.is_floating_point() else t for t in tensors], p.new_ones(()))
            of_tensors = tuple(None if f is None else f.to(t.dtype) for f, t in zip(found, tensors, strict=True))
        residual, error = residual.to(gradient.dtype), error.to(gradient.dtype)
        ctx.report.fill(status, residual, torch.zeros_like(status), error, known)
        report_backward("implicit adjoint", ctx.report.status, ctx.on_failure)
        by_start = torch.zeros_like(gradient) if ctx.gamma else p.to(gradient.dtype)
        return None, None, w.to(gradient.dtype), by_start, depsilon.to(softness.dtype), *of_tensors


def _spread(
    equations: LinearMap, solve: Callable[[Tensor], Tensor], z: Tensor, rest: Tensor
) -> Float[Tensor, "batch d"]:
    """How far one more Newton step would move y; 0 where the equations hold to rounding, inf where it is not found."""
    image = equations.product(z, adjoint=True)
    missed = image + rest
    step = equations.product(solve(missed)).abs()
    holds = norm(missed) <= _ROUNDING * torch.finfo(z.dtype).eps * (norm(image) + norm(rest))
    return torch.where(torch.isfinite(step), step, torch.where(holds, 0.0, torch.inf)[:, None])


def _with_empty_lines(equations: LinearMap, target: Tensor, dual: Tensor, g: Tensor, w: Tensor) -> Tensor:
    """w where a row or a column of the plan has no mass: see the module's docstring."""
    empty = target == 0
    if not bool(empty.any()):
        return w
    assert equations.plan is not None
    rows = equations.plan[0]
    y, g = dual.unflatten(-1, equations.plan), g.unflatten(-1, equations.plan)
    of_rows, of_columns = w[:, :rows], w[:, rows:]
    by_row = (y.softmax(-1) * (g - of_columns[:, None, :])).sum(-1)
    by_column = (y.softmax(-2) * (g - of_rows[:, :, None])).sum(-2)
    return torch.where(empty, torch.cat([by_row, by_column], -1), w)
