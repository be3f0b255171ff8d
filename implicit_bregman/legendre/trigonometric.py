"""Legendre functions on a bounded interval with a trigonometric ρ (Frecon et al., 2022, Table 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from implicit_bregman.legendre import divergences
from implicit_bregman.legendre._elementary import HALF_PI, HALF_PI_REST, hypot1, log1p_square
from implicit_bregman.legendre.box import BoundedLegendreFunction, Place


@dataclass(frozen=True)
class Arctan(BoundedLegendreFunction):
    """φ(z) = −log cos z on [−π/2, π/2], ρ(y) = arctan y; φ = ∞ at both ends."""

    name: ClassVar[str] = "arctan"
    _end_rest: ClassVar[float] = HALF_PI_REST[torch.float64]

    @property
    def domain(self) -> tuple[float, float]:
        return -math.pi / 2, math.pi / 2

    @property
    def strong_convexity(self) -> float:
        return 1.0

    def _dual_at_gap(self, gap: float) -> float:
        return 1.0 / gap

    def _activation(self, y: Tensor) -> Tensor:
        lo, hi = self._bounds[y.dtype]
        return torch.atan(y).clamp(lo, hi)

    def _lower_gap(self, y: Tensor) -> Tensor:
        return torch.atan2(torch.ones_like(y), -y)

    def _inverse_activation(self, z: Tensor) -> Tensor:
        # (beyond the end the tangent would change its sign)
        return torch.tan(z.clamp(*self._bounds[z.dtype]))

    def _inverse_at(self, z: Place) -> Tensor:
        near = torch.tan(z.offset.clamp(-math.pi / 4, math.pi / 4))
        far = torch.tan(torch.minimum(z.below, z.above)).reciprocal().copysign(z.offset)
        return torch.where(z.offset.abs() <= math.pi / 4, near, far)

    def _potential_at(self, z: Place) -> Tensor:
        near = -0.5 * torch.log1p(-torch.sin(z.offset.clamp(-math.pi / 4, math.pi / 4)).square())
        far = -torch.log(torch.sin(torch.minimum(z.below, z.above)))
        return torch.where(z.offset.abs() <= math.pi / 4, near, far)

    def _conjugate(self, y: Tensor) -> Tensor:
        return y * torch.atan(y) - 0.5 * log1p_square(y)

    def _conjugate_excess(self, y: Tensor) -> Tensor:
        size = y.abs()
        return -size * torch.atan2(torch.ones_like(y), size) - 0.5 * log1p_square(y)

    def _dual_potential(self, y: Tensor) -> Tensor:
        return 0.5 * log1p_square(y)

    def _curvature(self, y: Tensor) -> Tensor:
        return 1.0 + y * y

    def _log_curvature(self, y: Tensor) -> Tensor:
        return log1p_square(y)

    def _slope(self, y: Tensor) -> Tensor:
        return (1.0 + y * y).reciprocal()

    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        h = hypot1(y)
        return 2.0 * (y / h) / h

    def _divergence_at(self, u: Place, v: Place, d: Tensor) -> Tensor:
        gap_u, gap_v = torch.minimum(u.below, u.above), torch.minimum(v.below, v.above)
        return divergences.arctan_primal(gap_u, gap_v, u.offset, v.offset, d)

    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        return divergences.arctan_dual(p, q, d)


@dataclass(frozen=True)
class Sin(BoundedLegendreFunction):
    """φ(z) = √(1 − z²) + z arcsin z on [−1, 1]; ρ(y) = sin y for |y| ≤ π/2 and ±1 beyond.

    Not Legendre: φ' is finite at the bounds. ρ is the Bregman projection, and a dual beyond ±π/2 stands for the same
    point as ±π/2 (`project_dual`), where the slope is 0. `log_curvature` stops there at its value for the distance
    π/2 − |y| ~ eps, instead of rising to infinity.
    """

    name: ClassVar[str] = "sin"

    @property
    def is_legendre(self) -> bool:
        return False

    @property
    def domain(self) -> tuple[float, float]:
        return -1.0, 1.0

    @property
    def strong_convexity(self) -> float:
        return 1.0

    def _project_dual(self, y: Tensor) -> Tensor:
        half_pi = HALF_PI[y.dtype]
        return y.clamp(-half_pi, half_pi)

    def _dual_at_gap(self, gap: float) -> float:
        return math.pi / 2

    def _activation(self, y: Tensor) -> Tensor:
        return torch.sin(self._project_dual(y))

    def _lower_gap(self, y: Tensor) -> Tensor:
        y = self._project_dual(y)
        return 2.0 * torch.sin(0.5 * ((HALF_PI[y.dtype] + y) + HALF_PI_REST[y.dtype])).square()

    def _inverse_at(self, z: Place) -> Tensor:
        return torch.atan2(z.offset, torch.sqrt(z.below * z.above))

    def _potential_at(self, z: Place) -> Tensor:
        root = torch.sqrt(z.below * z.above)
        return root + z.offset * torch.atan2(z.offset, root)

    def _conjugate(self, y: Tensor) -> Tensor:
        clamped = self._project_dual(y)
        return (y - clamped).abs() - self._cosine(clamped)

    def _conjugate_excess(self, y: Tensor) -> Tensor:
        clamped = self._project_dual(y)
        return -clamped.abs() - self._cosine(clamped)

    def _dual_potential(self, y: Tensor) -> Tensor:
        y = self._project_dual(y)
        return y * torch.sin(y) + self._cosine(y)

    def _cosine(self, y: Tensor) -> Tensor:
        """cos y of a clamped y: the rounded π/2 counts as the exact one, also where it lies above it."""
        return functional.threshold(torch.cos(y), 1e-16, 0.0)

    def _curvature(self, y: Tensor) -> Tensor:
        return self._slope(y).reciprocal()

    def _log_curvature(self, y: Tensor) -> Tensor:
        return -torch.log(torch.cos(self._project_dual(y)).clamp(min=abs(HALF_PI_REST[y.dtype])))

    def _slope(self, y: Tensor) -> Tensor:
        return self._cosine(self._project_dual(y))

    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        inside = y.abs() < HALF_PI[y.dtype]
        return torch.where(inside, torch.tan(torch.where(inside, y, 0.0)), 0.0)

    def _divergence_at(self, u: Place, v: Place, d: Tensor) -> Tensor:
        root_u, root_v = torch.sqrt(u.below * u.above), torch.sqrt(v.below * v.above)
        # sin and cos of p − q; for equal signs the sine is rewritten so that it does not cancel.
        crossed = u.offset * root_v + v.offset * root_u
        apart = u.offset * root_v - v.offset * root_u
        together = d * (u.offset + v.offset) / crossed
        same_side = (u.offset * v.offset > 0) & (crossed != 0)
        sine = torch.where(same_side, together, apart)
        angle = torch.atan2(sine, root_u * root_v + u.offset * v.offset)
        return divergences.sin_from_angle(root_u, u.offset, angle)

    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        cosine = torch.sin((HALF_PI[p.dtype] - p.abs()) + HALF_PI_REST[p.dtype]).clamp(min=0.0)
        return divergences.sin_from_angle(cosine, torch.sin(p), -d)
