"""Legendre functions on the whole real line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from implicit_bregman.legendre import divergences
from implicit_bregman.legendre._elementary import asinh, hypot1, log1p_square, sinh
from implicit_bregman.legendre.base import LegendreFunction
from implicit_bregman.legendre.rounding import next_up, round_nearest


@dataclass(frozen=True)
class Identity(LegendreFunction):
    """φ(z) = z²/2 on R, ρ(y) = y: the Euclidean geometry."""

    name: ClassVar[str] = "identity"
    max_curvature: ClassVar[float] = 1.0
    curvature_at_infinity: ClassVar[float] = 1.0

    @property
    def domain(self) -> tuple[float, float]:
        return -math.inf, math.inf

    @property
    def strong_convexity(self) -> float:
        return 1.0

    def _activation(self, y: Tensor) -> Tensor:
        return y.clone()

    def _inverse_activation(self, z: Tensor) -> Tensor:
        return z.clone()

    def _potential(self, z: Tensor) -> Tensor:
        return 0.5 * z * z

    def _conjugate(self, y: Tensor) -> Tensor:
        return 0.5 * y * y

    def _dual_potential(self, y: Tensor) -> Tensor:
        return 0.5 * y * y

    def _curvature(self, y: Tensor) -> Tensor:
        return torch.ones_like(y)

    def _log_curvature(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y)

    def _slope(self, y: Tensor) -> Tensor:
        return torch.ones_like(y)

    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y)

    def _divergence(self, u: Tensor, v: Tensor, d: Tensor) -> Tensor:
        return 0.5 * d * d

    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        return 0.5 * d * d


@dataclass(frozen=True)
class Arcsinh(LegendreFunction):
    """φ(z) = cosh z on R, ρ(y) = arsinh y (Frecon et al., 2022, Table 1)."""

    name: ClassVar[str] = "arcsinh"

    @property
    def domain(self) -> tuple[float, float]:
        return -math.inf, math.inf

    @property
    def strong_convexity(self) -> float:
        return 1.0

    def _largest_primal(self, dtype: torch.dtype) -> float:
        # One step below, so that the rounding of sinh cannot make it overflow.
        largest = round_nearest(math.asinh(super()._largest_primal(dtype)), dtype)
        return -next_up(-largest, dtype)

    def _activation(self, y: Tensor) -> Tensor:
        return asinh(y)

    def _inverse_activation(self, z: Tensor) -> Tensor:
        return sinh(z)

    def _potential(self, z: Tensor) -> Tensor:
        return torch.cosh(z)

    def _conjugate(self, y: Tensor) -> Tensor:
        return y * asinh(y) - hypot1(y)

    def _dual_potential(self, y: Tensor) -> Tensor:
        return hypot1(y)

    def _curvature(self, y: Tensor) -> Tensor:
        return hypot1(y)

    def _log_curvature(self, y: Tensor) -> Tensor:
        return 0.5 * log1p_square(y)

    def _slope(self, y: Tensor) -> Tensor:
        return hypot1(y).reciprocal()

    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        h = hypot1(y)
        return y / h / h

    def _divergence(self, u: Tensor, v: Tensor, d: Tensor) -> Tensor:
        return divergences.arcsinh_primal(u, v, d)

    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        return divergences.arcsinh_dual(p, q, d)
