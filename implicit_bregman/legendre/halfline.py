"""Legendre functions on the half line [0, ∞)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from implicit_bregman.legendre import divergences
from implicit_bregman.legendre._elementary import asinh, softplus
from implicit_bregman.legendre.base import LegendreFunction
from implicit_bregman.legendre.series import (
    dilogarithm_exp,
    negative_dilogarithm,
    softplus_potential_small,
)


@dataclass(frozen=True)
class Softplus(LegendreFunction):
    """ρ(y) = log(1 + e^(βy))/β with sharpness β on [0, ∞); φ(z) = z²/2 + (Li₂(e^(−βz)) − π²/6)/β².

    Frecon et al., 2022, Table 1, print φ with a slip: the derivative of theirs is not ρ⁻¹.
    """

    sharpness: float = 1.0

    name: ClassVar[str] = "softplus"
    curvature_at_infinity: ClassVar[float] = 1.0

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, math.inf

    @property
    def strong_convexity(self) -> float:
        return 1.0

    def _dual_at_gap(self, gap: float) -> float:
        return max(0.0, -math.log(gap * self.sharpness) / self.sharpness)

    def _activation(self, y: Tensor) -> Tensor:
        return functional.softplus(y, beta=self.sharpness, threshold=40.0)

    def _inverse_activation(self, z: Tensor) -> Tensor:
        # log(eˣ − 1) as x + log(1 − e⁻ˣ); with z itself, since its multiple may overflow.
        return z + torch.log(-torch.expm1(-z * self.sharpness)) / self.sharpness

    def _potential(self, z: Tensor) -> Tensor:
        x = z * self.sharpness
        near = softplus_potential_small(x.clamp(max=2.0))
        far = 0.5 * x * x - math.pi**2 / 6 + dilogarithm_exp(x.clamp(min=2.0))
        return torch.where(x <= 2.0, near, far) / self.sharpness**2

    def _conjugate(self, y: Tensor) -> Tensor:
        x = y * self.sharpness
        tail = negative_dilogarithm(-x.abs())
        return torch.where(x > 0, math.pi**2 / 6 + 0.5 * x * x - tail, tail) / self.sharpness**2

    def _dual_potential(self, y: Tensor) -> Tensor:
        x = y * self.sharpness
        size = x.abs()
        tail = negative_dilogarithm(-size)
        # For x > 0, x ρ − φ* with ρ = x + softplus(−x) written out.
        above = 0.5 * x * x - math.pi**2 / 6 + size * softplus(-size) + tail
        return torch.where(x > 0, above, -size * softplus(-size) - tail) / self.sharpness**2

    def _curvature(self, y: Tensor) -> Tensor:
        return 1.0 + torch.exp(-self.sharpness * y)

    def _log_curvature(self, y: Tensor) -> Tensor:
        return softplus(-self.sharpness * y)

    def _slope(self, y: Tensor) -> Tensor:
        return torch.sigmoid(self.sharpness * y)

    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        return -self.sharpness * torch.sigmoid(-self.sharpness * y)

    def _divergence(self, u: Tensor, v: Tensor, d: Tensor) -> Tensor:
        b = self.sharpness
        return divergences.softplus_primal(b * u, b * v, b * d) / b**2

    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        b = self.sharpness
        return divergences.softplus_dual(b * p, b * q, b * d) / b**2


@dataclass(frozen=True)
class Exp(LegendreFunction):
    """φ(z) = z log z − z on [0, ∞), ρ(y) = eʸ (Boltzmann-Shannon entropy); σ = 0.

    ρ and its slope stop at the largest number of the dtype instead of overflowing.
    """

    name: ClassVar[str] = "exp"
    is_exponential: ClassVar[bool] = True
    curvature_at_infinity: ClassVar[float] = 0.0

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, math.inf

    @property
    def strong_convexity(self) -> float:
        return 0.0

    def _dual_at_gap(self, gap: float) -> float:
        return -math.log(gap)

    def _activation(self, y: Tensor) -> Tensor:
        return torch.exp(y).clamp(max=torch.finfo(y.dtype).max)

    def _inverse_activation(self, z: Tensor) -> Tensor:
        return torch.log(z)

    def _potential(self, z: Tensor) -> Tensor:
        return torch.xlogy(z, z) - z

    def _conjugate(self, y: Tensor) -> Tensor:
        return torch.exp(y)

    def _dual_potential(self, y: Tensor) -> Tensor:
        return torch.exp(y) * (y - 1.0)

    def _curvature(self, y: Tensor) -> Tensor:
        return torch.exp(-y)

    def _log_curvature(self, y: Tensor) -> Tensor:
        return -y

    def _slope(self, y: Tensor) -> Tensor:
        return self._activation(y)

    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        return torch.full_like(y, -1.0)

    def _divergence(self, u: Tensor, v: Tensor, d: Tensor) -> Tensor:
        return divergences.entropy(u, v, d)

    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        return divergences.exp_dual(p, q, d)


@dataclass(frozen=True)
class Bent(LegendreFunction):
    """ρ(y) = (y + √(y² + p))/2 with smoothness p on [0, ∞): a smooth ReLU; φ(z) = z²/2 − (p/4) log z."""

    smoothness: float = 1.0

    name: ClassVar[str] = "bent"
    curvature_at_infinity: ClassVar[float] = 1.0

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, math.inf

    @property
    def strong_convexity(self) -> float:
        return 1.0

    def _dual_at_gap(self, gap: float) -> float:
        return max(0.0, 0.25 * self.smoothness / gap - gap)

    def _root(self, y: Tensor) -> Tensor:
        """√(y² + p) without overflow."""
        return torch.hypot(y, y.new_full((), math.sqrt(self.smoothness)))

    def _half_line(self, y: Tensor, root: Tensor) -> Tensor:
        """ρ(y) = max(y, 0) + ρ(−|y|), a sum of positive terms."""
        return y.clamp(min=0.0) + 0.5 * self.smoothness / (y.abs() + root)

    def _activation(self, y: Tensor) -> Tensor:
        return self._half_line(y, self._root(y))

    def _inverse_activation(self, z: Tensor) -> Tensor:
        return z - 0.25 * self.smoothness / z

    def _potential(self, z: Tensor) -> Tensor:
        return 0.5 * z * z - 0.25 * self.smoothness * torch.log(z)

    def _conjugate(self, y: Tensor) -> Tensor:
        p = self.smoothness
        rho = self._activation(y)
        return 0.5 * rho * rho + 0.25 * p * (self._log_activation(y) - 1.0)

    def _dual_potential(self, y: Tensor) -> Tensor:
        rho = self._activation(y)
        return 0.5 * rho * rho - 0.25 * self.smoothness * self._log_activation(y)

    def _log_activation(self, y: Tensor) -> Tensor:
        """log ρ(y), also where ρ(y) itself underflows."""
        size = torch.log(0.5 * y.abs() + 0.5 * self._root(y))
        return torch.where(y > 0, size, math.log(0.25 * self.smoothness) - size)

    def _log_ratio(self, y: Tensor) -> Tensor:
        """log of (ρ(y)/(√p/2))², = 2 arsinh(y/√p)."""
        return 2.0 * asinh(y / math.sqrt(self.smoothness))

    def _curvature(self, y: Tensor) -> Tensor:
        return self._slope(y).reciprocal()

    def _log_curvature(self, y: Tensor) -> Tensor:
        return softplus(-self._log_ratio(y))

    def _slope(self, y: Tensor) -> Tensor:
        root = self._root(y)
        return self._half_line(y, root) / root

    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        root = self._root(y)
        # The public ρ, since |y| would cost its derivative at 0.
        return -2.0 * self.activation(-y) / root / root

    def _divergence(self, u: Tensor, v: Tensor, d: Tensor) -> Tensor:
        gap = divergences.bent_gap(u / v, d / v).where(d != 0.0, 0.0)
        return 0.5 * d * d + 0.25 * self.smoothness * gap

    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        root_p, root_q = self._root(p), self._root(q)
        u, v = self._half_line(p, root_p), self._half_line(q, root_q)
        # ρ(p)/ρ(q) and ρ(p) − ρ(q) from the larger of ρ(±y), since the smaller may underflow.
        size_p, size_q = 0.5 * p.abs() + 0.5 * root_p, 0.5 * q.abs() + 0.5 * root_q
        quarter = 0.25 * self.smoothness
        rising = torch.where(q > 0, size_p / size_q, size_p * (size_q / quarter))
        falling = torch.where(q > 0, quarter / size_p / size_q, size_q / size_p)
        ratio = torch.where(p > 0, rising, falling)
        scaled = -d / (root_p + root_q)
        step = scaled * (u + v)
        return 0.5 * step * step + quarter * divergences.bent_gap(ratio, scaled * (ratio + 1.0))


@dataclass(frozen=True)
class Burg(LegendreFunction):
    """φ(z) = −log z on [0, ∞), ρ(y) = −1/y for y < 0 (Burg's entropy); φ(0) = ∞, σ = 0.

    φ' takes negative values only (`dual_domain`), and for y ≥ 0 there is no ρ(y): φ*(y) = ∞. Every other map takes such
    a y for the last number below 0 (`project_dual`), where ρ is as large as the dtype allows. MM's steps are short
    enough to stay below 0, and other steps that do not are rejected.
    """

    name: ClassVar[str] = "burg"
    curvature_at_infinity: ClassVar[float] = 0.0
    dual_domain: ClassVar[tuple[float, float]] = (-math.inf, 0.0)
    middle: ClassVar[float] = -1.0

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, math.inf

    @property
    def strong_convexity(self) -> float:
        return 0.0

    def dual_bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        # (the reciprocal of a smaller number may overflow)
        return super().dual_bounds(dtype)[0], -float(torch.finfo(dtype).tiny)

    def _dual_at_gap(self, gap: float) -> float:
        return 1.0 / gap

    def _saturation(self, dtype: torch.dtype, gap: float) -> float:
        return self.dual_bounds(dtype)[1] if math.isinf(gap) else super()._saturation(dtype, gap)

    def _largest_primal(self, dtype: torch.dtype) -> float:
        return -1.0 / self.dual_bounds(dtype)[1]

    def _project_dual(self, y: Tensor) -> Tensor:
        return y.clamp(max=self.dual_bounds(y.dtype)[1])

    def _activation(self, y: Tensor) -> Tensor:
        return -self._project_dual(y).reciprocal()

    def _inverse_activation(self, z: Tensor) -> Tensor:
        # (also −0 is the bound)
        return -torch.where(z >= 0.0, z.abs(), torch.nan).reciprocal()

    def _potential(self, z: Tensor) -> Tensor:
        return -torch.log(z)

    def _conjugate(self, y: Tensor) -> Tensor:
        return torch.where(y >= 0.0, torch.inf, -1.0 - torch.log(-y))

    def _dual_potential(self, y: Tensor) -> Tensor:
        return torch.log(-self._project_dual(y))

    def _curvature(self, y: Tensor) -> Tensor:
        return self._project_dual(y).square()

    def _log_curvature(self, y: Tensor) -> Tensor:
        return 2.0 * self._dual_potential(y)

    def _slope(self, y: Tensor) -> Tensor:
        return self._activation(y).square().clamp(max=torch.finfo(y.dtype).max)

    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        return 2.0 * self._project_dual(y).reciprocal()

    def _divergence(self, u: Tensor, v: Tensor, d: Tensor) -> Tensor:
        return divergences.burg(u, v, d)

    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        return divergences.burg(q, p, d)
