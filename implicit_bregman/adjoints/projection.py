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

from implicit_bregman.adjoints.base import AdjointReport, report_backward
from implicit_bregman.adjoints.transforms import refuse_batched, refuse_higher_order
from implicit_bregman.energy.low_rank import Basis, BoundLowRank
from implicit_bregman.linalg.gram import weighted_gram
from implicit_bregman.objective import Objective
from implicit_bregman.solvers.base import Outcome
from implicit_bregman.status import Status

if TYPE_CHECKING:
    from implicit_bregman.adjoints.implicit import Implicit

#: The methods of `Implicit` that have a meaning here: both factorize the r × r systems.
METHODS = ("auto", "dense")
#: The least pivot of a system with a unit diagonal that counts as nonsingular.
_SINGULAR = 64 * torch.finfo(torch.float64).eps
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
    state = _State(
        adjoint,
        report,
        energy.basis,
        value,
        objective.geometry.slope(point.dual),
        _multiplier(objective, outcome, dual).to(value.dtype),
        _is_soft(objective, outcome),
        gamma == 0,
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
            domain = energy.basis.domain
            return by_dual + by_miss - (by_miss @ domain) @ domain.mT
        return torch.where(soft[:, None], by_miss, by_dual)


@dataclass(frozen=True)
class _State:
    """What the backward pass needs besides its differentiable inputs."""

    adjoint: Implicit
    report: AdjointReport
    basis: Basis
    value: Float[Tensor, "batch d"]
    slope: Float[Tensor, "batch d"]
    multiplier: Float[Tensor, "batch r"]
    soft: Bool[Tensor, " batch"]
    moves: bool
    """Whether the result depends on y⁰: γ = 0."""


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
        ctx.adjoint, ctx.report, ctx.moves = state.adjoint, state.report, state.moves
        # z is the output, which autograd keeps anyway.
        basis = state.basis
        ctx.save_for_backward(
            output,
            inputs[1],
            inputs[4],
            state.slope,
            state.multiplier,
            state.soft,
            basis.range,
            basis.values,
            basis.domain,
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_higher_order("implicit")
        refuse_batched("implicit", gradient)
        value, vectors, softness, slope, multiplier, soft, *parts = ctx.saved_tensors
        adjoint: Implicit = ctx.adjoint
        with torch.autocast(gradient.device.type, enabled=False):
            usable = torch.isfinite(gradient).all(-1)
            g = torch.where(usable[:, None], gradient, 0.0).double()
            epsilon = torch.where(soft, softness.double(), 0.0)
            w, p, singular, residual = solve_projection_system(Basis(*parts), slope.double(), epsilon, g)
            if not bool(usable.all()):
                # What is not finite goes on, so that whoever scales the loss sees it.
                w, p = (torch.where(usable[:, None], rows, torch.nan) for rows in (w, p))
            status = torch.where(singular, int(Status.SINGULAR), int(Status.CONVERGED))
            status = torch.where(usable, status, int(Status.INVALID_INPUT))
            needs = ctx.needs_input_grad
            lam = multiplier.double()
            dv = p.mT @ lam - value.double().mT @ w if needs[1] else None
            depsilon = -(torch.where(soft[:, None], w * lam, 0.0)).sum() if needs[4] else None
        residual = residual.to(gradient.dtype)
        ctx.report.fill(status, residual, torch.zeros_like(status), residual)
        report_backward("implicit adjoint", status, adjoint.on_failure)
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

    Where V's columns are dependent, w is the shortest solution. Where the system is singular, that of the least
    squares problem, and the sample is marked.

    Returns:
        w (B, r), p (B, d), whether the system is singular (B,), its relative residual (B,).
    """
    pulled = slope * gradient
    right = pulled @ basis.range
    matrix = weighted_gram(basis.range, slope) + torch.diag_embed(epsilon[:, None] / basis.values.square())
    s, singular = _solve_scaled(matrix, right)
    error = torch.linalg.vector_norm((matrix @ s[:, :, None]).squeeze(-1) - right, dim=-1)
    size = torch.linalg.vector_norm(right, dim=-1)
    residual = error / torch.where(size > 0, size, 1.0)
    p = slope * (gradient - s @ basis.range.mT)
    return basis.multiplier(s), p, singular | ~(residual <= _SOLVED), residual


def _solve_scaled(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """x with A x = b, A positive semidefinite and scaled to a unit diagonal, and whether A is singular, (B,).

    The scaling makes saturated samples, whose A is tiny as a whole, as good as any.
    """
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    scaled = scale[:, :, None] * matrix * scale[:, None, :]
    rhs = (scale * right)[:, :, None]
    factor, info = torch.linalg.cholesky_ex(scaled)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    singular = (info != 0) | (pivots <= _SINGULAR).any(-1) | ~torch.isfinite(pivots.sum(-1))
    x = torch.cholesky_solve(rhs, factor)
    rows = singular.nonzero().squeeze(-1)
    if len(rows):
        x = x.index_copy(0, rows, _least_squares(scaled[rows], rhs[rows]))
    return scale * x.squeeze(-1), singular


def _least_squares(matrix: Tensor, right: Tensor) -> Tensor:
    """The shortest x that minimises ‖A x − b‖, A symmetric."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > _SINGULAR * values[:, -1:].clamp_min(torch.finfo(values.dtype).tiny)
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    return vectors @ (inverse[:, :, None] * (vectors.mT @ right))
