"""The Bregman projection as a smooth convex problem in r unknowns.

MM on f = ½‖Vᵀz − β‖² moves y within y⁰ + range(V). Its limit is z = ρ(y⁰ + Vλ), where λ minimises the smooth convex
function Σφ*(y⁰ + Vλ) − βᵀλ + (ε/2)‖λ‖². Three problems have this form:

* γ = 0, where Vᵀz = β has a solution inside C: ε = 0, the Bregman projection of z⁰ onto {Vᵀz = β}
  (Bauschke and Borwein, 1997);
* γ = 0, where it has none: the softened form min D(z, z⁰) + ‖Vᵀz − β‖²/(2ε) with the energy's ε;
* γ > 0: the critical point of f + γφ, with y⁰ = 0 and ε = γ.

`DualProblem` is that of a matrix V, in coordinates of its range; `map_problem` has that of a linear map.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.legendre import MirrorMap
from implicit_bregman.majorization import inner_step
from implicit_bregman.objective import RowsOfTensors
from implicit_bregman.projection.basis import Basis

#: Where ρ is cut off, so that nothing computed of it overflows: no solution lies there.
HUGE = 1e120
#: No step in the dual is longer.
FAR = 1e307
#: How far a step may go beyond saturation, where nothing changes any more: as many times the larger of both duals.
_GROWTH = 8.0
#: Part of the tolerance, and of the target, below which a gradient that still halves is followed no further.
_NOTHING = 1e-9


@dataclass(frozen=True)
class ProjectionProblem(RowsOfTensors):
    """Σφ*(y⁰ + Qμ) − αᵀμ + ½ε‖λ‖² in coordinates μ of what Vλ can be.

    Attributes:
        geometry: φ.
        start: y⁰, (B, d).
        target: α, (B, k), so that Vᵀz = β is Qᵀz = α.
        tolerated: by how much each equation of Vᵀz + ελ = β may be missed, (B, r).
        nothing: the gradient's norm that counts as 0, (B,).
        softness: ε.
    """

    geometry: MirrorMap
    start: Tensor
    target: Tensor
    tolerated: Tensor
    nothing: Tensor
    softness: float

    def begin(self) -> At:
        """The first iterate."""
        return self.evaluate(torch.zeros_like(self.target), self.start)

    @abstractmethod
    def evaluate(self, mu: Float[Tensor, "batch k"], y: Float[Tensor, "batch d"]) -> At:
        """The gradient, its rounding error and the curvatures at μ, where y = y⁰ + Qμ."""

    @abstractmethod
    def direction(self, at: At, reach: Float[Tensor, " batch"]) -> tuple[Float[Tensor, "batch k"], Tensor]:
        """Newton's step with a ridge that bounds its length by `reach`, and not 0 where it was not found, (B,)."""

    @abstractmethod
    def across(self, mu: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch d"]:
        """Qμ."""

    @abstractmethod
    def across_sizes(self, mu: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch d"]:
        """|Q|μ."""

    @abstractmethod
    def missed(self, gradient: Float[Tensor, "batch k"]) -> Float[Tensor, "batch r"]:
        """What the equations are missed by, of the gradient for ε = 0."""

    @abstractmethod
    def weights(self, mu: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch r"]:
        """Weights w of the equations with μᵀα = wᵀβ."""

    @property
    def is_tame(self) -> bool:
        """Whether ρ and ρ' are bounded, so that nothing has to be cut off."""
        return self.geometry.is_bounded and self.geometry.strong_convexity > 0

    def most_length(self, at: At, change: Float[Tensor, "batch d"]) -> Tensor:
        """How many times `change` can be made before a y overflows, has no ρ(y), or leaves saturation far behind."""
        size, (low, high) = at.dual.abs(), map(abs, self.geometry.saturated_dual(torch.float64))
        if isinstance(low, float) and low == high and self.geometry.is_bounded:
            room = _GROWTH * size.clamp_min(low)
        else:
            below, above = (
                _room(size, is_open, dual) for is_open, dual in zip(self.geometry.open_ends, (low, high), strict=True)
            )
            room = torch.where(change < 0, below, above)
        most = (room / change.abs().clamp_min(1e-300)).amin(-1, keepdim=True)
        return inner_step(self.geometry, at.dual, -change, most).squeeze(-1)

    def holds(self, at: At) -> Tensor:
        """Whether each equation holds within what is tolerated, (B,)."""
        return (self.missed(at.gradient).abs() <= 0.9 * self.tolerated).all(-1)

    def moved(self, at: At, move: Float[Tensor, "batch k"], change: Float[Tensor, "batch d"]) -> At:
        """The iterate at μ + `move`, y + `change`.

        y is carried, not computed from μ: y⁰ may be so large that the sum would lose its digits.
        """
        return self.evaluate(at.mu + move, at.dual + change)

    def is_infeasible(self, at: At) -> Tensor:
        """Whether ε = 0 and a hyperplane proves that no z in C meets all equations within what is tolerated, (B,)."""
        if self.softness or not at.mu.shape[1]:
            return torch.zeros_like(at.size, dtype=torch.bool)
        return self._separated(torch.stack((-at.gradient, at.mu))).any(0)

    def _separated(self, normal: Float[Tensor, "normals batch r"]) -> Bool[Tensor, "normals batch"]:
        lo, hi = self.geometry.domain
        size = normal.abs().amax(-1, keepdim=True)
        normal = normal / torch.where(size > 0, size, 1.0)
        direction, least = self.across(normal), torch.zeros_like(size[..., 0])
        if not self.geometry.is_bounded:
            # What is 0 up to rounding does not count at an infinite end of C: it refutes all but gigantic z.
            noise = 1e-15 * self.across_sizes(normal.abs())
            direction = torch.where(direction.abs() <= 8 * noise, 0.0, direction)
            least = 1e-3 * self.target.abs().amax(-1)
            # The largest value of ⟨Q·normal, z⟩ on C; 0 · ∞ counts as 0.
            above = torch.where(direction > 0, direction * hi, 0.0) + torch.where(direction < 0, direction * lo, 0.0)
        else:
            above = torch.maximum(direction * hi, direction * lo)
        terms = normal * self.target
        margin = terms.sum(-1) - above.sum(-1)
        doubt = 1e-13 * (terms.abs().sum(-1) + above.abs().sum(-1))
        # ⟨normal, α − Qᵀz⟩ = ⟨w, β − Vᵀz⟩
        tolerated = (self.weights(normal).abs() * self.tolerated).sum(-1)
        return torch.isfinite(margin) & (margin > tolerated + doubt + least) & (size.squeeze(-1) > 0)


@dataclass(frozen=True)
class DualProblem(ProjectionProblem):
    """The problem in the coordinates μ of V's range, with λ = Tμ and α = Eᵀβ.

    They make it as well conditioned as the geometry allows, and strictly convex whatever the rank of V.

    Attributes:
        basis: Q, T and E.
        equations: QᵀV, which turns the gradient into what the equations are missed by, (k, r); in a tuple because it
            has no row per sample.
        metric: εTᵀT, (k, k); in a tuple, too.
    """

    basis: Basis
    equations: tuple[Tensor]
    metric: tuple[Tensor]

    def evaluate(self, mu: Float[Tensor, "batch k"], y: Float[Tensor, "batch d"]) -> At:
        z, slope = self.geometry.activation(y), self.geometry.slope(y)
        if not self.is_tame:
            z, slope = z.clamp(-HUGE, HUGE), slope.clamp(max=HUGE)
        gradient = torch.addmm(self.target, z, self.basis.range, beta=-1.0)
        terms = torch.addcmul(z.abs(), slope, y.abs().clamp_(max=FAR))
        noise = torch.addmm(self.target.abs(), terms, self.basis.sizes)
        if self.softness:
            gradient = gradient + mu @ self.metric[0]
            noise = noise + mu.abs() @ self.metric[0].abs()
        rounding = 4 * torch.finfo(z.dtype).eps * noise.amax(-1) if mu.shape[1] else z.new_zeros(len(z))
        return At(mu, y, slope, gradient, torch.linalg.vector_norm(gradient, dim=-1), rounding)

    def direction(self, at: At, reach: Float[Tensor, " batch"]) -> tuple[Float[Tensor, "batch k"], Tensor]:
        hessian = self.basis.gram(at.slope)
        if self.softness:
            hessian += self.metric[0]
        diagonal = hessian.diagonal(dim1=-2, dim2=-1)
        diagonal += (at.size / reach)[:, None]
        scale = diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny).rsqrt_()
        hessian *= scale.unsqueeze(-1)
        hessian *= scale.unsqueeze(-2)
        factor, info = torch.linalg.cholesky_ex(hessian)
        move = torch.cholesky_solve((scale * at.gradient).unsqueeze(-1), factor).squeeze(-1) * scale
        return move.neg_(), info

    def across(self, mu: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch d"]:
        return mu @ self.basis.across

    def across_sizes(self, mu: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch d"]:
        return mu @ self.basis.sizes.mT

    def missed(self, gradient: Float[Tensor, "batch k"]) -> Float[Tensor, "batch r"]:
        return gradient @ self.equations[0]

    def weights(self, mu: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch r"]:
        return mu @ self.basis.equations.mT


@dataclass(frozen=True)
class At(RowsOfTensors):
    """One iterate of the dual problem: μ, y, ρ'(y), the gradient, its norm and the rounding error of its entries."""

    mu: Tensor
    dual: Tensor
    slope: Tensor
    gradient: Tensor
    size: Tensor
    rounding: Tensor


def dual_problem(
    basis: Basis,
    target: Float[Tensor, "batch r"],
    geometry: MirrorMap,
    start: Float[Tensor, "batch d"],
    softness: float,
    tol: float,
) -> DualProblem:
    """The problem of projecting ρ(y⁰) onto {Vᵀz + ελ = β}.

    Args:
        basis: of V's range.
        target: β.
        geometry: φ.
        start: y⁰, in float64.
        softness: ε ≥ 0.
        tol: by how much each equation may be missed, relative to its size.
    """
    beta, vectors = target.detach().double(), basis.vectors
    # (where ε > 0 dependent equations may ask for different things: the shortest λ then meets them halfway)
    target = beta @ (basis.lift if softness else basis.equations)
    tolerated = tol * (basis.lengths + beta.abs())
    size = torch.linalg.vector_norm(target, dim=-1)
    nothing = _NOTHING * tol * torch.where(size > 0, size, 1.0).clamp_max(1.0)
    return DualProblem(
        geometry=geometry,
        start=start,
        target=target,
        tolerated=tolerated,
        nothing=nothing,
        softness=softness,
        basis=basis,
        equations=(basis.across @ vectors,),
        metric=(softness * basis.metric,),
    )


def _room(size: Tensor, is_open: bool | Tensor, dual: float | Tensor) -> Tensor:
    """How far y may go towards an end of C, given the size that it has and the dual that stands for the end."""
    if isinstance(is_open, bool):
        return torch.full_like(size, FAR) if is_open else _GROWTH * size.clamp_min(dual)
    # (where lo = hi every dual does, such as 0)
    return torch.where(is_open | (dual == 0), FAR, _GROWTH * torch.maximum(size, torch.as_tensor(dual)))
