"""Legendre functions on a bounded interval with an algebraic or exponential ρ (Frecon et al., 2022, Table 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from implicit_bregman.legendre import divergences
from implicit_bregman.legendre._elementary import hypot1, log1p, log1p_square, logistic_slope, softplus
from implicit_bregman.legendre.box import BoundedLegendreFunction, Place


@dataclass(frozen=True)
class ISRU(BoundedLegendreFunction):
    """φ(z) = −√(λ² − z²) on [−λ, λ] with scale λ, ρ(y) = λy/√(1 + y²)."""

    scale: float = 1.0

    name: ClassVar[str] = "isru"

    @property
    def domain(self) -> tuple[float, float]:
        return -self.scale, self.scale

    @property
    def strong_convexity(self) -> float:
        return 1.0 / self.scale

    def _dual_at_gap(self, gap: float) -> float:
        return math.sqrt(0.5 * self.scale / gap)

    def _activation(self, y: Tensor) -> Tensor:
        lo, hi = self._bounds[y.dtype]
        return (y / hypot1(y) * self.scale).clamp(lo, hi)

    def _lower_gap(self, y: Tensor) -> Tensor:
        h = hypot1(y)
        small = 1.0 / h / (h + y.abs())
        return self.scale * torch.where(y < 0, small, 1.0 + y / h)

    def _inverse_at(self, z: Place) -> Tensor:
        return z.offset / torch.sqrt(z.below * z.above)

    def _potential_at(self, z: Place) -> Tensor:
        return -torch.sqrt(z.below * z.above)

    def _conjugate(self, y: Tensor) -> Tensor:
        return self.scale * hypot1(y)

    def _conjugate_excess(self, y: Tensor) -> Tensor:
        return self.scale / (hypot1(y) + y.abs())

    def _dual_potential(self, y: Tensor) -> Tensor:
        return -self.scale / hypot1(y)

    def _curvature(self, y: Tensor) -> Tensor:
        return hypot1(y).pow(3) / self.scale

    def _log_curvature(self, y: Tensor) -> Tensor:
        return 1.5 * log1p_square(y) - math.log(self.scale)

    def _slope(self, y: Tensor) -> Tensor:
        return hypot1(y).reciprocal().pow(3) * self.scale

    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        h = hypot1(y)
        return 3.0 * (y / h) / h

    def _divergence_at(self, u: Place, v: Place, d: Tensor) -> Tensor:
        root_u, root_v = torch.sqrt(u.below * u.above), torch.sqrt(v.below * v.above)
        mixed = 0.5 * (u.above * v.below + u.below * v.above) + root_u * root_v
        return ((self.scale * d) ** 2 / root_v / mixed).where(d != 0.0, 0.0)

    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        return self.scale * divergences.isru_dual(p, q, d)


@dataclass(frozen=True)
class Sigmoid(BoundedLegendreFunction):
    """φ(z) = z log z + (1 − z) log(1 − z) on [0, 1], ρ(y) = 1/(1 + e⁻ʸ)."""

    name: ClassVar[str] = "sigmoid"

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, 1.0

    @property
    def strong_convexity(self) -> float:
        return 4.0

    def _dual_at_gap(self, gap: float) -> float:
        return max(0.0, -math.log(gap))

    def _activation(self, y: Tensor) -> Tensor:
        return torch.sigmoid(y)

    def _offset(self, y: Tensor) -> Tensor:
        return 0.5 * torch.tanh(0.5 * y)

    def _lower_gap(self, y: Tensor) -> Tensor:
        return torch.sigmoid(y)

    def _inverse_at(self, z: Place) -> Tensor:
        return _log_ratio(z)

    def _potential_at(self, z: Place) -> Tensor:
        gap = torch.minimum(z.below, z.above)
        return torch.xlogy(gap, gap) + torch.special.xlog1py(1.0 - gap, -gap)

    def _conjugate(self, y: Tensor) -> Tensor:
        return softplus(y)

    def _conjugate_excess(self, y: Tensor) -> Tensor:
        return torch.log1p(torch.exp(-y.abs()))

    def _dual_potential(self, y: Tensor) -> Tensor:
        # φ is even about 1/2, so that only y ≥ 0 matters: −log(1 + e⁻ʸ) − y e⁻ʸ/(1 + e⁻ʸ).
        size = y.abs()
        return -(torch.log1p(torch.exp(-size)) + size * torch.sigmoid(-size))

    def _curvature(self, y: Tensor) -> Tensor:
        return 2.0 + 2.0 * torch.cosh(y)

    def _log_curvature(self, y: Tensor) -> Tensor:
        size = y.abs()
        return torch.add(size, torch.log1p(torch.exp(-size)), alpha=2.0)

    def _slope(self, y: Tensor) -> Tensor:
        return logistic_slope(-y.abs())

    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        return torch.tanh(0.5 * y)

    def _divergence_at(self, u: Place, v: Place, d: Tensor) -> Tensor:
        lower = divergences.entropy(u.below, v.below, d)
        return lower + divergences.entropy(u.above, v.above, -d)

    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        return divergences.sigmoid_dual(p, q, d)


@dataclass(frozen=True)
class Tanh(BoundedLegendreFunction):
    """φ(z) = ½[(1 + z) log(1 + z) + (1 − z) log(1 − z)] on [−1, 1], ρ(y) = tanh y."""

    name: ClassVar[str] = "tanh"

    @property
    def domain(self) -> tuple[float, float]:
        return -1.0, 1.0

    @property
    def strong_convexity(self) -> float:
        return 1.0

    def _dual_at_gap(self, gap: float) -> float:
        return max(0.0, -0.5 * math.log(0.5 * gap))

    def _activation(self, y: Tensor) -> Tensor:
        return torch.tanh(y)

    def _lower_gap(self, y: Tensor) -> Tensor:
        return 2.0 * torch.sigmoid(2.0 * y)

    def _inverse_activation(self, z: Tensor) -> Tensor:
        return torch.atanh(z)

    def _inverse_at(self, z: Place) -> Tensor:
        return 0.5 * _log_ratio(z)

    def _potential_at(self, z: Place) -> Tensor:
        offset = z.offset.clamp(-0.5, 0.5)
        near = offset * torch.atanh(offset) + 0.5 * torch.log1p(-offset * offset)
        far = 0.5 * (torch.xlogy(z.below, z.below) + torch.xlogy(z.above, z.above))
        return torch.where(z.offset.abs() <= 0.5, near, far)

    def _conjugate(self, y: Tensor) -> Tensor:
        size = y.abs()
        near = 0.5 * torch.log1p(torch.sinh(size.clamp(max=1.0)).square())
        return torch.where(size <= 1.0, near, size + self._conjugate_excess(y))

    def _conjugate_excess(self, y: Tensor) -> Tensor:
        return torch.log1p(torch.exp(-2.0 * y.abs())) - math.log(2.0)

    def _dual_potential(self, y: Tensor) -> Tensor:
        size = y.abs()
        small = size.clamp(max=1.0)
        near = small * torch.tanh(small) - 0.5 * torch.log1p(torch.sinh(small).square())
        far = math.log(2.0) - 2.0 * size * torch.sigmoid(-2.0 * size) - torch.log1p(torch.exp(-2.0 * size))
        return torch.where(size <= 1.0, near, far)

    def _curvature(self, y: Tensor) -> Tensor:
        return torch.cosh(y).square()

    def _log_curvature(self, y: Tensor) -> Tensor:
        twice = 2.0 * y.abs()
        log_sum = torch.log1p(torch.exp(-twice)) - math.log(2.0)
        return torch.add(twice, log_sum, alpha=2.0)

    def _slope(self, y: Tensor) -> Tensor:
        return 4.0 * logistic_slope(-2.0 * y.abs())

    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        return 2.0 * torch.tanh(y)

    def _divergence_at(self, u: Place, v: Place, d: Tensor) -> Tensor:
        lower = divergences.entropy(u.below, v.below, d)
        return 0.5 * (lower + divergences.entropy(u.above, v.above, -d))

    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        return divergences.sigmoid_dual(2.0 * p, 2.0 * q, 2.0 * d)


@dataclass(frozen=True)
class DoubleBurg(BoundedLegendreFunction):
    """φ(z) = −log z − log(1 − z) on [0, 1], ρ(y) = ½ + ½w/(1 + √(1 + w²)) with w = y/2; φ = ∞ at both ends.

    A box [lo, hi] of width s has φ(z) = −s log((z − lo)/s) − s log((hi − z)/s): see `to_box`.
    """

    name: ClassVar[str] = "double_burg"

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, 1.0

    @property
    def strong_convexity(self) -> float:
        return 8.0

    def _dual_at_gap(self, gap: float) -> float:
        return 1.0 / gap

    def _activation(self, y: Tensor) -> Tensor:
        return self._lower_gap(y)

    def _offset(self, y: Tensor) -> Tensor:
        # z(1 − z) = 1/(2(1 + h)) with h = √(1 + w²), and z − ½ = y z(1 − z)/2.
        return 0.25 * y / (1.0 + hypot1(0.5 * y))

    def _lower_gap(self, y: Tensor) -> Tensor:
        h = hypot1(0.5 * y)
        small = 0.5 * (1.0 + _excess(h, y)) / (1.0 + h)
        return torch.where(y < 0, small, 0.5 + 0.25 * y / (1.0 + h))

    def _inverse_at(self, z: Place) -> Tensor:
        return 2.0 * z.offset / (z.below * z.above)

    def _potential_at(self, z: Place) -> Tensor:
        return -(torch.log(z.below) + torch.log(z.above))

    def _conjugate(self, y: Tensor) -> Tensor:
        return y.clamp(min=0.0) + self._conjugate_excess(y)

    def _conjugate_excess(self, y: Tensor) -> Tensor:
        h = hypot1(0.5 * y)
        return _excess(h, y) - 1.0 - (math.log(2.0) + log1p(h))

    def _dual_potential(self, y: Tensor) -> Tensor:
        return math.log(2.0) + log1p(hypot1(0.5 * y))

    def _curvature(self, y: Tensor) -> Tensor:
        h = hypot1(0.5 * y)
        return 4.0 * h * (1.0 + h)

    def _log_curvature(self, y: Tensor) -> Tensor:
        w = 0.5 * y
        return math.log(4.0) + (0.5 * log1p_square(w) + log1p(hypot1(w)))

    def _slope(self, y: Tensor) -> Tensor:
        h = hypot1(0.5 * y)
        return 0.25 / h / (1.0 + h)

    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        h = hypot1(0.5 * y)
        return 0.25 * (y / h) * (1.0 / h + 1.0 / (1.0 + h))

    def _divergence_at(self, u: Place, v: Place, d: Tensor) -> Tensor:
        return divergences.burg(u.below, v.below, d) + divergences.burg(u.above, v.above, -d)

    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        return divergences.double_burg_dual(p, q, self._lower_gap, d)


def _excess(h: Tensor, y: Tensor) -> Tensor:
    """h − |y|/2 for h = √(1 + y²/4), without cancellation."""
    return (h + 0.5 * y.abs()).reciprocal()


def _log_ratio(z: Place) -> Tensor:
    """log(z.below/z.above), accurate relative to itself next to a bound and next to the centre."""
    return log1p(2.0 * z.offset.abs() / torch.minimum(z.below, z.above)).copysign(z.offset)
