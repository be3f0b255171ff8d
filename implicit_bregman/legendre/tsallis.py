"""The entropy of Tsallis on the half line, of which the simplex makes entmax."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.legendre.base import LegendreFunction

#: |u/v − 1| below which the divergence is summed from its series, whose next term is below rounding.
_NEAR = 1e-3


def order_share(order: float, y: Tensor) -> Tensor:
    """∂ρ(y)/∂α: ρ(y)(1 − log((α − 1)y))/(α − 1)², 0 where y ≤ 0; differentiable in y."""
    a = order - 1.0
    inside = y > 0
    grown = a * torch.where(inside, y, 1.0 / a)
    return torch.where(inside, grown.pow(1.0 / a) * (1.0 - grown.log()) / a**2, 0.0)


#: Orders for which the level of a block, given its support, is the root of a linear or quadratic equation.
SORTED_ORDERS = (1.5, 2.0)


@dataclass(frozen=True)
class TsallisEntropy(LegendreFunction):
    """φ(z) = z^α/(α(α − 1)) on [0, ∞), ρ(y) = ((α − 1)y)₊^(1/(α − 1)), for an order α in (1, 2].

    φ' is 0 at the bound: φ is not essentially smooth, and coordinates become exactly 0. Peters, Niculae and Martins,
    "Sparse sequence-to-sequence models" (2019), whose entropy differs by a multiple of Σz.
    """

    order: float = 1.5

    name: ClassVar[str] = "tsallis"
    curvature_at_infinity: ClassVar[float] = 0.0

    @property
    def is_legendre(self) -> bool:
        return False

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, math.inf

    @property
    def strong_convexity(self) -> float:
        return 1.0 if self.order == 2.0 else 0.0

    def _dual_at_gap(self, gap: float) -> float:
        return 0.0

    def _project_dual(self, y: Tensor) -> Tensor:
        return y.clamp_min(0.0)

    def _activation(self, y: Tensor) -> Tensor:
        a = self.order - 1.0
        grown = a * self._project_dual(y)
        # (a square takes a fraction of the time of a power)
        raised = grown.square() if a == 0.5 else grown.pow(1.0 / a)
        return raised.clamp(max=torch.finfo(y.dtype).max)

    def _inverse_activation(self, z: Tensor) -> Tensor:
        a = self.order - 1.0
        return torch.where(z >= 0, z.clamp_min(0.0).pow(a) / a, torch.nan)

    def _potential(self, z: Tensor) -> Tensor:
        a = self.order
        return torch.where(z >= 0, z.clamp_min(0.0).pow(a) / (a * (a - 1.0)), torch.nan)

    def _conjugate(self, y: Tensor) -> Tensor:
        return self._activation(y).pow(self.order) / self.order

    def _dual_potential(self, y: Tensor) -> Tensor:
        return self._potential(self._activation(y))

    def _curvature(self, y: Tensor) -> Tensor:
        return self._slope(y).reciprocal()

    def _log_curvature(self, y: Tensor) -> Tensor:
        return (self.order - 2.0) * self._activation(y).clamp_min(torch.finfo(y.dtype).tiny).log()

    def _slope(self, y: Tensor) -> Tensor:
        if self.order == 1.5:  # (the root of a square)
            return 0.5 * self._project_dual(y)
        return torch.where(y > 0, self._activation(y).pow(2.0 - self.order), 0.0)

    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        z = self._activation(y)
        steep = (self.order - 2.0) * z.pow(1.0 - self.order)
        return torch.where(y > 0, steep.clamp(min=torch.finfo(y.dtype).min), 0.0)

    def _divergence(self, u: Tensor, v: Tensor, d: Tensor) -> Tensor:
        a = self.order
        inside = v > 0
        x = d / torch.where(inside, v, 1.0)
        # (1 + x)^α − 1 − αx, from its series where it cancels
        near = 0.5 * a * (a - 1) * x * x * (1 + (a - 2) * x / 3 * (1 + (a - 3) * x / 4 * (1 + (a - 4) * x / 5)))
        far = torch.expm1(a * torch.log1p(x.clamp_min(-1.0))) - a * x
        growth = torch.where(x.abs() < _NEAR, near, far)
        return torch.where(inside, v.pow(a) * growth, u.pow(a)) / (a * (a - 1.0))

    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        u, v = self._activation(p), self._activation(q)
        return self._divergence(u, v, u - v)


def entmax_level(y: Float[Tensor, "*blocks n"], total: float) -> Float[Tensor, "*blocks 1"]:
    """ν with Σρ₀(y − ν) = total for α = 1.5, from the coordinates in descending order.

    Peters, Niculae and Martins, 2019, Algorithm 2.
    """
    top = y.amax(-1, keepdim=True)
    # (what is farther below the largest coordinate has no share)
    x = (y - top).clamp_min(-2.0 * total**0.5).sort(-1, descending=True).values
    count = torch.arange(1, y.shape[-1] + 1, dtype=y.dtype, device=y.device)
    mean = x.cumsum(-1) / count
    levels = mean - _below_mean(1.5, x.square().cumsum(-1) - count * mean.square(), count, total)
    size = (levels <= x).sum(-1, keepdim=True)
    return top + levels.gather(-1, (size - 1).clamp_min(0))


def level_of_support(order: float, y: Float[Tensor, "*blocks n"], total: float) -> Float[Tensor, "*blocks 1"]:
    """ν for one of `SORTED_ORDERS` and y whose ν is 0 up to rounding: to the last digit, with all derivatives."""
    inside = y.detach() > 0
    count = inside.sum(-1, keepdim=True).clamp_min(1).to(y.dtype)
    mean = torch.where(inside, y, 0.0).sum(-1, keepdim=True) / count
    spread = torch.where(inside, y - mean, 0.0).square().sum(-1, keepdim=True)
    return mean - _below_mean(order, spread, count, total)


def _below_mean(order: float, spread: Tensor, count: Tensor, total: float) -> Tensor:
    """By how much the level is below the mean of the support, of that size and with that sum of squared deviations."""
    if order == 2.0:
        return total / count
    return ((4.0 * total - spread) / count).clamp_min(0.0).sqrt()
