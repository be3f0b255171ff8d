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

from implicit_bregman.adjoints.base import AdjointReport, differentiable, report_backward
from implicit_bregman.adjoints.error import norm, ratio
from implicit_bregman.adjoints.projection_error import Unsolved, forward_errors, refined_error
from implicit_bregman.adjoints.transforms import refuse_batched, refuse_higher_order
from implicit_bregman.energy.low_rank import Basis, BoundLowRank, column_lengths
from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.linalg.graded import graded_least_squares
from implicit_bregman.linalg.gram import weighted_gram
from implicit_bregman.objective import Objective
from implicit_bregman.solvers.base import DEFAULT_TOL, Outcome
from implicit_bregman.status import Status

if TYPE_CHECKING:
    from implicit_bregman.adjoints.implicit import Implicit

#: The methods of `Implicit` that have a meaning here: both factorize the r × r systems.
METHODS = ("auto", "dense")
#: Where a pivot of a system with a unit diagonal is smaller, or the part of Dg that is left over, the system is solved
#: from its factors, without their product.
_THIN = 1e-5
#: A relative residual that a solved system does not exceed.
_SOLVED = 1e-8


def attach_projection(
    adjoint: Implicit, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]
) -> tuple[Float[Tensor, "batch d"], AdjointReport]:
    """The value of `outcome`, found from y⁰ = `dual`, with the exact gradient for V, β and y⁰.

    Raises:
        ValueError: if the adjoint's `method` is an iterative one.
    """
    if adjoint.method not in METHODS:
        raise ValueError(
            f'adjoint method "{adjoint.method}" has no meaning for a low-rank weight, whose r x r systems are '
            f"factorized: use method={' or '.join(repr(name) for name in METHODS)}"
        )
    energy, gamma, point = objective.energy, objective.regularization, outcome.point
    assert isinstance(energy, BoundLowRank)
    report = AdjointReport()
    value = point.value.detach()
    if not torch.is_grad_enabled():
        return value, report
    slope, soft = objective.geometry.slope(point.dual), _is_soft(objective, outcome)
    multiplier = _multiplier(objective, outcome, dual)
    known = torch.isfinite(multiplier.to(value.dtype)).all(-1)
    usable = differentiable(outcome)
    known = known if usable is None else known & usable
    multiplier = torch.where(known[:, None], multiplier, 0.0)
    state = _State(
        adjoint,
        report,
        objective.geometry,
        energy.basis,
        value,
        slope,
        multiplier.to(value.dtype),
        soft,
        known,
        gamma == 0,
        *forward_errors(objective, dual.detach(), point.dual, value, slope, multiplier, soft),
    )
    softness = value.new_full((), gamma) if gamma else energy.softness
    return _AttachProjection.apply(value, energy.vectors, energy.target, dual, softness, state), report


def _is_soft(objective: Objective, outcome: Outcome) -> Bool[Tensor, " batch"]:
    """The samples with ε > 0."""
    infeasible = outcome.status == int(Status.INFEASIBLE)
    return torch.ones_like(infeasible) if objective.regularization else infeasible


def _multiplier(objective: Objective, outcome: Outcome, start: Tensor) -> Float[Tensor, "batch r"]:
    """λ in float64, read off the outcome, so that it is right for every solver.

    Vλ = y − y⁰ leaves out the part of λ that V maps to 0, and does not hold where a solver other than `Newton` met
    an infeasible system or the dual was clamped: (β − Vᵀz)/ε, which loses digits for a small ε, does.
    """
    energy, gamma, point = objective.energy, objective.regularization, outcome.point
    assert isinstance(energy, BoundLowRank)
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

    adjoint: Implicit
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
        ctx.adjoint, ctx.report, ctx.moves, ctx.geometry = state.adjoint, state.report, state.moves, state.geometry
        # z is the output, which autograd keeps anyway.
        basis = state.basis
        ctx.save_for_backward(
            output,
            inputs[1],
            inputs[4],
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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_higher_order("implicit")
        refuse_batched("implicit", gradient)
        value, vectors, softness, slope, multiplier, soft, known, spread, columns, lift, null, equations, *rest = (
            ctx.saved_tensors
        )
        adjoint: Implicit = ctx.adjoint
        with torch.autocast(gradient.device.type, enabled=False):
            usable = torch.isfinite(gradient).all(-1)
            g = torch.where((usable & known)[:, None], gradient, 0.0).double()
            epsilon = torch.where(soft, softness.double(), 0.0)
            basis = Basis(columns, lift, null, equations, vectors.double())
            w, p, singular, residual = solve_projection_system(basis, slope.double(), epsilon, g)
            error = residual + ratio(norm(spread * p), norm(p))
            if rest:
                here, tol = Unsolved(*rest), DEFAULT_TOL[value.dtype]
                g_here, w_here, p_here = (part[here.rows] for part in (g, w, p))
                more = refined_error(
                    here, ctx.geometry, basis, float(softness), tol, g_here, w_here, p_here, solve_projection_system
                )
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
        report_backward("implicit adjoint", ctx.report.status, adjoint.on_failure)
        return (
            None,
            None if dv is None else dv.to(vectors.dtype),
            w.to(gradient.dtype) if needs[2] else None,
            (p.to(gradient.dtype) if ctx.moves else torch.zeros_like(gradient)) if needs[3] else None,
            None if depsilon is None else depsilon.to(softness.dtype),
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        raise RuntimeError("the implicit adjoint has no forward mode (jvp): use backward() or torch.autograd.grad")


def solve_projection_system(
    basis: Basis,
    slope: Float[Tensor, "batch d"],
    epsilon: Float[Tensor, " batch"],
    gradient: Float[Tensor, "batch d"],
) -> tuple[Float[Tensor, "batch r"], Float[Tensor, "batch d"], Bool[Tensor, " batch"], Float[Tensor, " batch"]]:
    """w and p of the module's docstring, in the orthonormal coordinates of V's range.

    Where V's columns are dependent, w is the shortest solution. Where the system is singular, it is one of them, p is
    unique all the same, and the sample is marked.

    Returns:
        w (B, r), p (B, d), whether the system is singular (B,), its relative residual (B,).
    """
    pulled = slope * gradient
    right = pulled @ basis.range
    matrix = weighted_gram(basis.range, slope) + epsilon[:, None, None] * basis.metric
    s, thin = _solve_scaled(matrix, right)
    error = torch.linalg.vector_norm((matrix @ s[:, :, None]).squeeze(-1) - right, dim=-1)
    size = torch.linalg.vector_norm(right, dim=-1)
    residual = error / torch.where(size > 0, size, 1.0)
    p = slope * (gradient - s @ basis.range.mT)
    w, singular = basis.multiplier(s), torch.zeros_like(thin)
    # What of Dg the constraints leave over has lost its digits where it is small.
    lost = torch.linalg.vector_norm(p, dim=-1) <= _THIN * torch.linalg.vector_norm(pulled, dim=-1)
    rows = (thin | ~(residual <= _SOLVED) | (lost & (s.shape[1] < p.shape[1]))).nonzero().squeeze(-1)
    if len(rows):
        exact = _solve_factored(basis, slope[rows], epsilon[rows], gradient[rows])
        w, p, singular = (old.index_copy(0, rows, new) for old, new in zip((w, p, singular), exact, strict=True))
        residual = residual.index_fill(0, rows, torch.finfo(residual.dtype).eps)
    return w, p, singular, residual


def _solve_scaled(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """x with A x = b, A positive semidefinite and scaled to a unit diagonal, and whether A is nearly singular, (B,).

    The scaling makes saturated samples, whose A is tiny as a whole, as good as any.
    """
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    scaled = scale[:, :, None] * matrix * scale[:, None, :]
    factor, info = torch.linalg.cholesky_ex(scaled)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    thin = (info != 0) | (pivots <= _THIN).any(-1) | ~torch.isfinite(pivots.sum(-1))
    x = torch.cholesky_solve((scale * right)[:, :, None], factor)
    return scale * x.squeeze(-1), thin


def _solve_factored(
    basis: Basis, slope: Tensor, epsilon: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Bool[Tensor, " batch"]]:
    """The same as the solution and the residual of a least squares problem, √D(Vw − g) and √ε w.

    Where the entries of D differ by orders of magnitude, S has lost the small ones. V itself, at unit length, is used
    instead of the orthonormal Q, in which what depends on what is rounded.

    Returns:
        w (B, r), p (B, d), whether S is singular to rounding where V is not (B,).
    """
    root, lengths = slope.sqrt(), column_lengths(basis.vectors)
    matrix = root[:, :, None] * (basis.vectors / lengths)
    right, spare = root * gradient, basis.null.shape[1]
    if bool((epsilon > 0).any()):
        below = epsilon.sqrt()[:, None, None] * (1 / lengths).diag()
        matrix = torch.cat([matrix, below], 1)
        right = torch.cat([right, right.new_zeros(len(right), len(lengths))], 1)
    unit, left, dependent = graded_least_squares(matrix, right)
    w = unit / lengths
    # Of all solutions the shortest; with ε > 0 there is one.
    w = torch.where((epsilon > 0)[:, None], w, w - (w @ basis.null) @ basis.null.mT)
    return w, root * left[:, : slope.shape[1]], dependent > torch.where(epsilon > 0, 0, spare)


def record_projection(
    adjoint: Implicit, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]
) -> tuple[Tensor, ...]:
    raise NotImplementedError


def replay_projection(objective: Objective, record: tuple[Tensor, ...], dual: Tensor) -> Tensor:
    raise NotImplementedError
