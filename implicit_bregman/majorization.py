"""Majorization-minimization in the geometry of φ: one step, the step-size rule, the descent certificate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre import geometry as lookup
from implicit_bregman.settings import check_nonnegative, check_positive

if TYPE_CHECKING:
    from implicit_bregman.energy.base import Energy

#: The part of the way to the end of the duals that a step may go.
_OF_THE_WAY = 0.9


def mm_step(
    geometry: MirrorMap,
    dual: Float[Tensor, "*batch d"],
    gradient: Float[Tensor, "*batch d"],
    step: Float[Tensor, "*#batch #d"],
    regularization: float,
) -> Float[Tensor, "*batch d"]:
    """y⁺ = (y − τ∇f) / (1 + τγ): the minimiser of ⟨∇f, ·⟩ + γφ + D_φ(·, z)/τ over C, in dual coordinates.

    With γ = 0 and τ = 1 this is the paper's Bregman layer (Definition 4.3). Where φ is not Legendre (sin) the
    result is projected back onto the range of ∇φ.

    Args:
        geometry: φ.
        dual: y = ∇φ(z), (B, d).
        gradient: ∇f(z), (B, d).
        step: τ > 0, broadcastable to (B, d).
        regularization: γ ≥ 0.
    """
    moved = dual - step * gradient
    if regularization:
        moved = moved / (1 + step * regularization)
    return geometry.project_dual(moved)


def inner_step(
    geometry: MirrorMap,
    dual: Float[Tensor, "*batch d"],
    gradient: Float[Tensor, "*batch d"],
    step: Float[Tensor, "*#batch 1"],
) -> Float[Tensor, "*batch 1"]:
    """τ, shortened per sample where y − τ∇f would leave the duals for which there is a ρ(y).

    Its every coordinate goes 9/10 of the way to the end at most; for burg this keeps 1 + τz∇f ≥ 1/10. Beyond, the
    surrogate is unbounded below.

    Args:
        geometry: φ.
        dual: y = ∇φ(z), (B, d).
        gradient: ∇f(z), (B, d).
        step: τ > 0, broadcastable to (B, 1).
    """
    if geometry.has_every_dual:
        return step
    lo, hi = geometry.dual_domain
    with torch.no_grad():
        room = torch.where(gradient > 0, dual - lo, dual - hi)
        longest = torch.where(gradient == 0, torch.inf, room / gradient).amin(-1, keepdim=True)
        return torch.minimum(step, _OF_THE_WAY * longest)


def relative_curvature(
    curvature: Tensor | None, geometry: MirrorMap, matrix: Float[Tensor, "d d"] | None = None
) -> Tensor | None:
    """L ≥ 0 with f below its linear part plus L·D_φ on C, detached; None where no bound or no σ > 0 is known.

    L = λ_max(∇²f)/σ. On the simplex, where blocks have a given sum, L₁/σ₁ may be less: the same in ‖·‖₁.

    Args:
        curvature: λ_max(∇²f), if it is known.
        geometry: φ.
        matrix: ∇²f, where it is one symmetric matrix for all samples.
    """
    known = []
    if curvature is not None and geometry.strong_convexity > 0:
        known.append(curvature.detach() / geometry.strong_convexity)
    if matrix is not None and geometry.coupling is not None and geometry.strong_convexity_in_sums > 0:
        known.append(geometry.coupling.largest_curvature(matrix.detach()) / geometry.strong_convexity_in_sums)
    return torch.stack(known).amin() if known else None


def automatic_step(
    curvature: Tensor | None, geometry: MirrorMap, matrix: Float[Tensor, "d d"] | None = None
) -> Tensor | None:
    """τ = min(1, 1/L), with which the surrogate majorizes; None (backtrack) where L is not known.

    The arguments are those of `relative_curvature`.
    """
    relative = relative_curvature(curvature, geometry, matrix)
    return None if relative is None else 1.0 / relative.clamp_min(1.0)


@dataclass(frozen=True)
class Certificate:
    """What is guaranteed of MM on F = f + γφ + ι_C.

    Attributes:
        step: τ, or None where it is found by backtracking (each step then descends by test, not by theorem).
        curvature_bound: λ_max(∇²f), for the quadratic energy λ_max(−W); None if unknown. For a non-symmetric W
            the reciprocal of its cocoercivity constant, or ‖W‖₂ if it is not monotone.
        curvature_least: λ_min(∇²f) (of the symmetric part); None if unknown.
        strong_convexity: σ = inf φ''.
        relative_curvature: L with L·D_φ above what f curves: λ_max/σ, or less where φ is the entropy of a simplex;
            None if unknown.
        has_objective: whether W is symmetric; without an objective nothing can descend.
        majorizes: whether the MM surrogate lies above f everywhere on C: τL ≤ 1.
        descends: whether every step is guaranteed not to raise F: τL ≤ 2.
        unique: whether there is at most one critical point.
        converges: whether the iterates are guaranteed to converge (C bounded or F coercive taken for granted).
        rate: factor by which D_φ(z*, z) is guaranteed to shrink per step; None if no rate is known beforehand.
            For γ = 0 the rate depends on the solution and is not known beforehand.
    """

    step: float | None
    curvature_bound: float | None
    curvature_least: float | None
    strong_convexity: float
    relative_curvature: float | None
    has_objective: bool
    majorizes: bool
    descends: bool
    unique: bool
    converges: bool
    rate: float | None

    def __str__(self) -> str:
        def shown(value: float | None) -> str:
            return "unknown" if value is None else f"{value:.6g}"

        return (
            f"step {'by backtracking' if self.step is None else shown(self.step)}, largest curvature "
            f"{shown(self.curvature_bound)}, sigma {self.strong_convexity:.6g}, relative curvature "
            f"{shown(self.relative_curvature)}: "
            f"{'majorizes' if self.majorizes else 'no majorant'}, "
            f"{'descends' if self.descends else 'descent not guaranteed'}, rate {shown(self.rate)}"
        )


def certify(
    energy: Energy, geometry: str | MirrorMap, regularization: float = 0.0, step: float | None = None
) -> Certificate:
    """What can be said of MM before a single step is made.

    For symmetric W, f(z) − f(z⁺) = D(z, z⁺)/τ + D(z⁺, z)/τ + ½ dzᵀW dz ≥ (σ/τ − λ_max(−W)/2)‖dz‖², so the
    surrogate majorizes iff τ λ_max(−W) ≤ σ (for equal coordinates), and f still falls up to 2σ. This replaces
    Proposition 4.1 and Theorem 5.1 of the paper, whose conditions are not sufficient as printed. On the simplex the
    same holds in ‖·‖₁, with constants that often allow a longer step: see `relative_curvature`.

    Args:
        energy: f.
        geometry: φ, by name or instance.
        regularization: γ ≥ 0.
        step: τ to be judged; default the automatic one, min(1, 1/L).

    Raises:
        ValueError: if `regularization` is negative or `step` is not positive.
    """
    phi = lookup(geometry)
    regularization = check_nonnegative("regularization", regularization)
    if step is not None:
        check_positive("step", step)
    lowest, curvature = energy.curvature_range()
    symmetric = energy.symmetric
    matrix = energy.shared_hessian() if phi.coupling is not None and symmetric else None
    known = None if curvature is None else torch.as_tensor(curvature)
    relative = relative_curvature(known, phi, matrix)
    tau = step
    if tau is None:
        automatic = automatic_step(known, phi, matrix)
        tau = None if automatic is None else float(automatic)
        tau = 1.0 if tau is None and energy.is_field else tau
    bound = None if curvature is None else float(curvature)
    least = None if lowest is None else float(lowest)
    slack = 1 + 1e-6  # τ = 1/L was rounded
    reach = tau * float(relative) if tau is not None and relative is not None else math.inf
    majorizes = symmetric and reach <= slack
    descends = symmetric and (tau is None or reach <= 2 * slack)
    weak = _relative_weak_convexity(least, energy.convex, phi)
    # (without symmetry, `convex` stands for a promise that the field is monotone)
    monotone = symmetric or energy.convex or (least is not None and least > 0)
    # γ > 0 also needs the surrogate to majorize: the rate below is that of relative smoothness.
    rate = None
    if weak is not None and symmetric and majorizes and tau is not None and regularization > weak:
        rate = (1 + tau * weak) / (1 + tau * regularization)
    # An eigenvalue that is 0 up to rounding proves nothing.
    eps = torch.finfo(lowest.dtype).eps if lowest is not None else 0.0
    definite = least is not None and least > 16 * eps * max(abs(least), bound or 0.0)
    unique = definite or (weak is not None and monotone and weak < regularization)
    strict = reach < 2
    converges = phi.is_legendre and (strict or tau is None) and (symmetric or (least is not None and least > 0))
    return Certificate(
        tau,
        bound,
        least,
        phi.strong_convexity,
        None if relative is None else float(relative),
        symmetric,
        bool(majorizes),
        bool(descends),
        bool(unique),
        bool(converges),
        rate,
    )


def _relative_weak_convexity(least: float | None, convex: bool, phi: MirrorMap) -> float | None:
    """ω such that f + ωφ is convex (negative: f is strongly convex relative to φ); None if unknown."""
    if least is None:
        return 0.0 if convex else None
    if least >= 0:
        return -least / phi.max_curvature if math.isfinite(phi.max_curvature) else 0.0
    return -least / phi.strong_convexity if phi.strong_convexity > 0 else math.inf
