"""How wrong the gradient of a Bregman projection is where the solver stopped before its equations held to rounding.

A few Newton steps in the r-dimensional dual go on from there, to z₂, and the adjoint system there gives w₂ and p₂. The
relative error of what was returned is about

    max(‖w₂ − w‖/‖w₂‖, ‖p₂ − p‖/‖p₂‖) + ‖z₂ − z‖/‖z₂‖ + the relative residual of the backward solve,

each relative to the larger of both: near saturation w is as small as ρ'(y), and may be too large by orders of magnitude
where z is right to all digits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.legendre import MirrorMap
from implicit_bregman.linalg.dense import solve_general
from implicit_bregman.linalg.norms import norm, ratio
from implicit_bregman.objective import RowsOfTensors
from implicit_bregman.projection.basis import Basis
from implicit_bregman.projection.newton import Minimiser, minimise
from implicit_bregman.projection.problem import dual_problem
from implicit_bregman.projection.system import solve_projection_system

#: Newton steps in the dual that go on from where the solver stopped, at most.
_STEPS = 20
#: So many eps of the samples' precision, and of the float64 in which Newton's method works, are rounding.
_ROUNDING, _ROUNDING_OF_NEWTON = 16, 4e3
#: The same for y, whose rounding errors MM adds up.
_ROUNDING_OF_DUAL = 100
#: Of p, what is this much smaller than Dg, of which it is the rest, counts as 0.
_NOTHING = 1e-8


@dataclass(frozen=True)
class Solved:
    """A solution that some solver has found.

    Attributes:
        geometry: φ.
        regularization: γ.
        basis: of V's range.
        target: β, (B, r).
        start: y⁰, (B, d).
        softness: ε of the samples that have one.
        dual, value: y and z, (B, d).
        soft: which samples have ε > 0, (B,).
    """

    geometry: MirrorMap
    regularization: float
    basis: Basis
    target: Tensor
    start: Tensor
    softness: float
    dual: Tensor
    value: Tensor
    soft: Tensor

    @property
    def base(self) -> Float[Tensor, "batch d"]:
        """What y is Vλ away from: y⁰, or 0 for γ > 0."""
        return torch.zeros_like(self.start) if self.regularization else self.start

    def multiplier(self) -> Float[Tensor, "batch r"]:
        """λ in float64, read off the solution, so that it is right for every solver.

        Vλ = y − y⁰ leaves out the part of λ that V maps to 0, and does not hold where a solver other than `Newton` met
        an infeasible system or the dual was clamped: (β − Vᵀz)/ε, which loses digits for a small ε, does.
        """
        basis = self.basis
        with torch.no_grad():
            moved, pinned = (self.dual - self.base).double(), self.geometry.pinned
            # (the dual of a coordinate with lo = hi is 0, whatever λ is)
            by_dual = (
                basis.multiplier(moved @ basis.range)
                if pinned is None
                else moved[:, ~pinned] @ torch.linalg.pinv(basis.vectors[~pinned]).mT
            )
            if not bool(self.soft.any()):
                return by_dual
            by_miss = (self.target.double() - self.value.double() @ basis.vectors) / (self.softness or 1.0)
            if self.regularization and self.geometry.is_legendre:
                return by_dual + by_miss @ basis.null @ basis.null.mT
            return torch.where(self.soft[:, None], by_miss, by_dual)


@dataclass(frozen=True)
class Unsolved(RowsOfTensors):
    """The samples whose equations do not hold to rounding: what the steps to come need of them.

    Attributes:
        rows: which they are, (b,).
        dual: y = y⁰ + Qμ, (b, d).
        coordinates: μ, (b, k).
        value: z, (b, d).
        target: β, (b, r).
        soft: whether ε > 0, (b,).
    """

    rows: Tensor
    dual: Tensor
    coordinates: Tensor
    value: Tensor
    target: Tensor
    soft: Tensor


def forward_errors(
    at: Solved, slope: Float[Tensor, "batch d"], multiplier: Float[Tensor, "batch r"]
) -> tuple[Float[Tensor, "batch d"], Unsolved | None]:
    """What ρ'(y) may be off by relative to itself, (B, d), and the samples that more steps have to judge; None: none.

    Those are where the equations Qᵀz + εTᵀλ = α (ε > 0: Tᵀβ) or y = y⁰ + Vλ do not hold to rounding. The residual of
    the solver does not tell: next to a bound, what is missing may be large. In the others ρ'(y) is off by what rounding
    the sum y⁰ + Vλ makes of y, and by what one Newton step would still change.
    """
    geometry, basis, soft = at.geometry, at.basis, at.soft
    with torch.no_grad():
        eps, target, vectors = torch.finfo(at.dual.dtype).eps, at.target.double(), basis.vectors
        y, z, base = at.dual.double(), at.value.double(), at.base.double()
        # (a clamped y has left y⁰ + range(V))
        mu = (y - base) @ basis.range if geometry.is_legendre else multiplier @ (vectors.mT @ basis.range)
        moved = mu @ basis.range.mT
        clean = base + moved
        off = norm(y - geometry.project_dual(clean))
        holds = off <= _ROUNDING_OF_DUAL * eps * (norm(base) + norm(moved))

        pull = torch.where(soft[:, None], at.softness * mu @ basis.metric, 0.0)
        wanted = torch.where(soft[:, None], target @ basis.lift, target @ basis.equations)
        missed = z @ basis.range + pull - wanted
        miss = norm(missed)
        terms = norm(z) + norm(slope.double() * y) + norm(pull) + norm(wanted)
        rounding = _ROUNDING * eps + _ROUNDING_OF_NEWTON * torch.finfo(z.dtype).eps
        found = ~(holds & (miss <= rounding * terms)) & torch.isfinite(off + miss)
        change = eps * ((multiplier.abs() @ vectors.abs().mT) + base.abs())
        if bool((miss > _ROUNDING * torch.finfo(z.dtype).eps * terms).any()):
            matrix = basis.gram(slope.double()) + at.softness * soft[:, None, None] * basis.metric
            step = solve_general(matrix, missed[..., None])[0].squeeze(-1) @ basis.range.mT
            change = torch.where(found[:, None], change, change + step.abs())
        spread = (change * geometry.log_curvature_slope(at.dual).abs()).to(at.dual.dtype)
        rows = found.nonzero().squeeze(-1)
        if len(rows) == 0:
            return spread, None
        # (where y⁰ is large and y is not, their sum has lost digits that y has)
        begin = torch.where(holds[:, None], y, clean) if geometry.is_legendre else clean
        return spread, Unsolved(rows, begin[rows], mu[rows], z[rows], target[rows], soft[rows])


def refined_error(
    here: Unsolved,
    geometry: MirrorMap,
    basis: Basis,
    softness: float,
    tol: float,
    g: Float[Tensor, "batch d"],
    w: Float[Tensor, "batch r"],
    p: Float[Tensor, "batch d"],
) -> Float[Tensor, " batch"]:
    """The estimate of the module's docstring without the residual, for the samples of `here`, (b,).

    Args:
        here: where the solver stopped.
        geometry: φ.
        basis: of V's range.
        softness: ε where it is not 0.
        tol: by how much the equations may be missed before a system counts as one without a solution.
        g: dL/dz of these samples, (b, d).
        w: what was returned, (b, r).
        p: and this, (b, d).
    """
    dual, soft = _further(here, geometry, basis, softness, tol)
    value, slope = geometry.activation(dual), geometry.slope(dual)
    w_new, p_new, *_ = solve_projection_system(basis, slope, softness * soft.double(), g)
    of_w, of_z = _change(w, w_new, 0.0), _change(here.value, value, 0.0)
    of_p = _change(p, p_new, _NOTHING * norm(slope * g))
    error = torch.maximum(of_w, of_p) + of_z
    # (NaN: nothing is known)
    return torch.where(torch.isnan(error), torch.inf, error)


def _change(old: Tensor, new: Tensor, nothing: Tensor | float) -> Float[Tensor, " batch"]:
    """‖new − old‖ relative to the larger norm, which counts as at least `nothing`."""
    return ratio(norm(new - old), torch.maximum(norm(old), norm(new)).clamp_min(nothing))


def _further(
    here: Unsolved, geometry: MirrorMap, basis: Basis, softness: float, tol: float
) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
    """y after some more Newton steps, and which samples turned out to be of the softened form, as Newton solves it."""
    dual, soft = here.dual, here.soft
    rows = (~soft).nonzero().squeeze(-1)
    if len(rows):
        found = _steps(here.select(rows), geometry, basis, 0.0, tol)
        dual = dual.index_copy(0, rows, found.dual)
        soft = soft.index_copy(0, rows, found.refuted)
    rows = soft.nonzero().squeeze(-1)
    if len(rows):
        found = _steps(here.select(rows), geometry, basis, softness, tol)
        dual = dual.index_copy(0, rows, found.dual)
    return dual, soft


def _steps(here: Unsolved, geometry: MirrorMap, basis: Basis, softness: float, tol: float) -> Minimiser:
    problem = dual_problem(basis, here.target, geometry, here.dual, softness, tol)
    # Its coordinates are counted from y on: ε‖λ‖²/2 from Tμ on.
    problem = replace(problem, target=problem.target - here.coordinates @ problem.metric[0])
    return minimise(problem, _STEPS)
