"""The simplex: coordinates of a block that are nonnegative, or in a box, and have a given sum."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.legendre.arguments import check_dtype, positive_float, real_float
from implicit_bregman.legendre.base import LegendreFunction
from implicit_bregman.legendre.coupling import Coupling
from implicit_bregman.legendre.halfline import Exp
from implicit_bregman.legendre.mirror import MirrorMap
from implicit_bregman.legendre.once import once
from implicit_bregman.legendre.sigmoidal import Sigmoid
from implicit_bregman.legendre.tsallis import (
    SORTED_ORDERS,
    TsallisEntropy,
    entmax_level,
    level_of_support,
    order_share,
)
from implicit_bregman.settings import check_count
from implicit_bregman.transforms import has_tangent, is_wrapped, transformed

#: Safeguarded Newton steps for the level of a block. Bisection alone would take 60 in float64.
_STEPS = 40


@dataclass(frozen=True)
class Simplex(MirrorMap):
    """C = {z : lo ≤ z ≤ hi, Σz = total} for each block of coordinates, φ the sum of an entropy of each of them.

    Without an upper bound φ = Σ z log z and ρ(y) = total · softmax(y). With bounds ("box section", "capped simplex")
    φ is that of `sigmoid` moved to [lo, hi], and with an `order` α in (1, 2] it is Σ (z^α − z)/(α(α − 1)), Tsallis's
    entropy, so that ρ is entmax and many coordinates are exactly 0 (sparsemax for α = 2). In both cases ρ(y)_j =
    ρ₀(y_j − ν) with the level ν at which the sum is right.
    A block is the last dimension of the state's shape, states of shape (m, n) being m blocks of n coordinates, or
    `size` coordinates of it: states of width mn are then m blocks as well.

    Elementwise methods (`curvature`, `slope`, `dual_potential`) are those of the coordinates' own φ₀ at the same z.
    The derivative of ρ is D = diag(s) − s sᵀ/Σs, s = `slope`.

    Args:
        total: the sum, > 0.
        lo: lower bound of every coordinate; 0 unless `hi` is given.
        hi: upper bound of every coordinate; None: there is none.
        order: α of the entropy, in [1, 2]; 1, Shannon's, unless there are no bounds. A tensor without dimensions, in
            (1, 2], gets a gradient from ρ, ρ⁻¹, solutions and their objectives; its number is read at every solve.
        size: number of consecutive coordinates in a block; None: the last dimension is one.

    Raises:
        TypeError: for a bound that is no number.
        RuntimeError: for an order that torch.func or forward mode follows.
        ValueError: for bounds, an order or a size out of range; and once the state's shape is known, for a sum that no
            point within the bounds has.
    """

    total: float = 1.0
    lo: float = 0.0
    hi: float | None = None
    order: float | Tensor = 1.0
    size: int | None = None

    name: ClassVar[str] = "simplex"
    max_curvature: ClassVar[float] = math.inf
    curvature_at_infinity: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", positive_float(self.total, "simplex: total"))
        object.__setattr__(self, "lo", real_float(self.lo, "simplex: lo"))
        if not isinstance(self.order, Tensor):
            object.__setattr__(self, "order", real_float(self.order, "simplex: order"))
        self._check_order()
        if self.hi is not None:
            object.__setattr__(self, "hi", real_float(self.hi, "simplex: hi"))
        object.__setattr__(self, "_known_base", (self._alpha, self._entropy()))
        if self.size is not None:
            check_count("simplex: size", self.size)
        object.__setattr__(self, "_coupling", Coupling(self.total, self.size))

    _known_base: tuple[float, LegendreFunction] = field(init=False, repr=False, compare=False)
    _coupling: Coupling = field(init=False, repr=False, compare=False)

    @property
    def coupling(self) -> Coupling:
        return self._coupling

    def _check_order(self) -> None:
        order, least = self.order, "[1"
        if isinstance(order, Tensor):
            if order.dim() or not order.is_floating_point():
                raise ValueError(
                    f"simplex: order must be a number or a floating-point tensor without dimensions, got {order.dtype} "
                    f"of shape {tuple(order.shape)}"
                )
            if is_wrapped(order) or has_tangent(order):
                raise RuntimeError(
                    "simplex: order is a constant for torch.func transforms and forward mode: detach it there, or "
                    "differentiate with loss.backward()"
                )
            least = "(1"
        if not 1.0 <= self._alpha <= 2.0 or (isinstance(order, Tensor) and self._alpha == 1.0):
            raise ValueError(f"simplex: order must be in {least}, 2], got {self._alpha}")

    @property
    def _alpha(self) -> float:
        return float(self.order.detach() if isinstance(self.order, Tensor) else self.order)

    @property
    def _base(self) -> LegendreFunction:
        """φ₀, that of each coordinate."""
        alpha, base = self._known_base
        if isinstance(self.order, Tensor) and alpha != self._alpha:
            self._check_order()
            base = self._entropy()
            object.__setattr__(self, "_known_base", (self._alpha, base))
        return base

    def _entropy(self) -> LegendreFunction:
        if self.hi is None:
            if self.lo != 0.0:
                raise ValueError(f"simplex: lo = {self.lo} without an upper bound: give hi as well, or lo=0")
            return Exp() if self._alpha == 1.0 else TsallisEntropy(self._alpha)
        if self._alpha != 1.0:
            raise ValueError(f"simplex: order = {self._alpha} with bounds of the coordinates: leave out one of them")
        return Sigmoid().to_box(self.lo, self.hi)

    @property
    def _is_softmax(self) -> bool:
        return self.hi is None and self._alpha == 1.0

    def for_states(self, event: tuple[int, ...], like: Tensor | None = None) -> Simplex:
        n = event[-1] if self.size is None else self.size
        if event[-1] % n:
            raise ValueError(f"simplex: blocks of size = {n} do not divide the last dimension {event[-1]} of the state")
        most = math.inf if self.hi is None else n * self.hi
        if not n * self.lo < self.total < most:
            raise ValueError(
                f"simplex: no {n} coordinates between lo = {self.lo:g} and hi = {self.hi} have the sum total = "
                f"{self.total:g} with room to spare: it has to lie between {n * self.lo:g} and {most:g}"
            )
        return replace(self, size=n)

    def to_box(self, lo: float, hi: float) -> Simplex:  # type: ignore[override]
        """The same with other bounds of the coordinates.

        Raises:
            TypeError: for a bound that is no number.
            ValueError: for bounds that are not finite and increasing.
        """
        return replace(self, lo=lo, hi=hi)

    @property
    def elementwise(self) -> LegendreFunction:
        return self._base

    @property
    def is_legendre(self) -> bool:
        return self._base.is_legendre

    @property
    def domain(self) -> tuple[float, float]:
        return self.lo, self.total if self.hi is None else self.hi

    @property
    def strong_convexity(self) -> float:
        return self.total ** (self._alpha - 2.0) if self.hi is None else self._base.strong_convexity

    @property
    def strong_convexity_in_sums(self) -> float:
        """By Pinsker's inequality."""
        return 1.0 / self.total if self._is_softmax else 0.0

    # Maps --------------------------------------------------------------------------------------------------------

    def activation(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ρ(y): total · softmax(y) without bounds and order; differentiable to any order."""
        check_dtype(y, "argument")
        if self._is_softmax:
            share = torch.softmax(self.coupling.split(y), -1).flatten(-2)
            return share if self.total == 1.0 else self.total * share
        if y.requires_grad and torch.is_grad_enabled() and not transformed() and not torch.compiler.is_compiling():
            return self.followed(_Activation.apply(y, self), y)
        return self.followed(self._activated(self.gauged(y)), y)

    def _activated(self, gauged: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self._base.activation(gauged).clamp_max(self.domain[1])

    def project_dual(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """y less the level of each block, and, where φ is not Legendre, cut to the range of φ'."""
        return self._base.project_dual(self.gauged(y))

    def gauged(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """y less the level ν of each block, so that ρ₀(y − ν) has the right sum."""
        check_dtype(y, "argument")
        blocks, least = self.coupling.split(y), torch.finfo(y.dtype).min
        if self._is_softmax:
            shifted = torch.log_softmax(blocks, -1)
            shifted = shifted if self.total == 1.0 else shifted + math.log(self.total)
            return shifted.clamp_min(least).flatten(-2)
        if self._alpha in SORTED_ORDERS:
            return self._gauged_by_sorting(blocks).flatten(-2)
        shifted = blocks - self._level(blocks.detach())
        # (once more from numbers that are small, where those of y were large)
        shifted = shifted - self._level(shifted.detach())
        # Two Newton steps of length 0 that autograd follows: they carry the first two derivatives of the level.
        known = self._base.activation(shifted.detach()).sum(-1, keepdim=True)
        for _ in range(2):
            excess = self._base.activation(shifted).sum(-1, keepdim=True) - known
            slope = self._base.slope(shifted).sum(-1, keepdim=True).clamp_min(torch.finfo(y.dtype).tiny)
            shifted = shifted - excess / slope
        return shifted.flatten(-2)

    def _gauged_by_sorting(self, blocks: Float[Tensor, "*blocks n"]) -> Float[Tensor, "*blocks n"]:
        """`gauged` for one of `SORTED_ORDERS`, of which 2 is the projection onto the simplex."""
        y = blocks.detach()
        projects = self._alpha == 2.0
        rough = _level_of_projection(y, 0.0, math.inf, self.total) if projects else entmax_level(y, self.total)
        excess = self._base.activation(y).sum(-1, keepdim=True) - self.total
        # (a dual that has been gauged before stays as it is, so that no coordinate leaves its bound by rounding)
        done = excess.abs() <= 8 * torch.finfo(y.dtype).eps * self.total
        shifted = blocks - rough.masked_fill(done, 0.0)
        level = level_of_support(self._alpha, shifted, self.total)
        return shifted - (level - torch.where(done, level.detach(), 0.0))

    def _level(self, y: Float[Tensor, "*blocks n"]) -> Float[Tensor, "*blocks 1"]:
        """ν with Σρ₀(y − ν) = total: Newton's steps, bisection where they leave the bracket."""
        least, most = self._bracket(y)
        # (0 is the level of a dual that has been chosen before)
        level = torch.zeros_like(least).clamp(least, most)
        enough = 4 * torch.finfo(y.dtype).eps * y.shape[-1] * max(abs(end) for end in (*self.domain, self.total))
        watched = not transformed()
        for _ in range(_STEPS):
            excess = self._base.activation(y - level).sum(-1, keepdim=True) - self.total
            if watched and bool((excess.abs() <= enough).all()):
                break
            least, most = torch.where(excess >= 0, level, least), torch.where(excess <= 0, level, most)
            slope = self._base.slope(y - level).sum(-1, keepdim=True)
            moved = level + excess / slope
            inside = (moved > least) & (moved < most)
            level = torch.where(inside, moved, 0.5 * least + 0.5 * most)
        return level

    def _at_top(self, n: int) -> int:
        """How many of n coordinates are at the upper bound if all but one are at a bound."""
        return 0 if self.hi is None else min(int((self.total - n * self.lo) / (self.hi - self.lo)), n - 1)

    def _bracket(self, y: Float[Tensor, "*blocks n"]) -> tuple[Tensor, Tensor]:
        """Ends between which the level lies, no farther from each other than duals that count.

        If all coordinates were at a bound but one, that would be the k-th largest. With a lower level than the least it
        and those above it alone have the sum; with a higher one than the most it and those below have too little of it.
        """
        n, lo, hi, whole = y.shape[-1], self.lo, self.hi, self._at_top(y.shape[-1])
        near = y.topk(whole + 1, dim=-1).values[..., -1:]
        above = (self.total - (n - whole - 1) * lo) / (whole + 1)
        below = self.total / n if hi is None else (self.total - whole * hi) / (n - whole)
        inner = self._base.inner_bounds(y.dtype)
        ends = self._base.inverse_activation(y.new_tensor([above, below]).clamp(*inner))
        return near - ends[0], near - ends[1]

    def inverse_activation(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ρ₀⁻¹(z): of all duals that stand for z the one without a level."""
        y = self._base.inverse_activation(z)
        return y + self.followed_inverse(y.detach()) if self.requires_grad and torch.is_grad_enabled() else y

    def curvature(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self._base.curvature(self.gauged(y))

    def log_curvature(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self._base.log_curvature(self.gauged(y))

    def log_curvature_slope(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self._base.log_curvature_slope(self.gauged(y))

    def slope(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self._base.slope(self.gauged(y))

    def dual_potential(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        y = self.gauged(y)
        terms = self._base.dual_potential(y)
        return terms + self._linear * self._base.activation(y) if self._linear else terms

    def potential(self, z: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """φ(z), summed over the last dimension: Σ z log z without bounds and order. NaN outside the box."""
        terms = self._base.potential(z)
        return (terms + self._linear * z if self._linear else terms).sum(-1)

    @property
    def _linear(self) -> float:
        """The multiple of Σz, a constant, that φ has more than φ₀."""
        if self.hi is not None:
            return 0.0
        return 1.0 if self._alpha == 1.0 else -1.0 / (self._alpha * (self._alpha - 1.0))

    def conjugate(self, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """φ*(y) = max over z in C of ⟨z, y⟩ − φ(z), summed over the last dimension: logsumexp(y) for total 1."""
        blocks = self.coupling.split(y)
        if self._is_softmax:
            value = torch.logsumexp(blocks, -1)
            value = value if self.total == 1.0 else self.total * (value - math.log(self.total))
            return value.sum(-1)
        shifted = self.coupling.split(self.gauged(y))
        level = (blocks - shifted).mean(-1) - self._linear
        return (self._base.conjugate(shifted).sum(-1) + self.total * level).sum(-1)

    def divergence(
        self, u: Float[Tensor, "*batch features"], v: Float[Tensor, "*batch features"]
    ) -> Float[Tensor, "*batch"]:
        """D_φ(u, v) for two points of C: Σ u log(u/v) without an upper bound."""
        return self._base.divergence(u, v)

    def dual_divergence(
        self, p: Float[Tensor, "*batch features"], q: Float[Tensor, "*batch features"]
    ) -> Float[Tensor, "*batch"]:
        return self._base.dual_divergence(self.project_dual(p), self.project_dual(q))

    def is_interior(self, z: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        return self._base.is_interior(z)

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        # (the sum is no bound: at a vertex of C nothing holds the coordinate that has all of it)
        return self._base.bounds(dtype)

    def inner_bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        return self._base.inner_bounds(dtype)

    def saturated_dual(self, dtype: torch.dtype) -> tuple[float, float]:
        """Finite duals that stand for the bounds of the coordinates: see `LegendreFunction.saturated_dual`."""
        return self._base.saturated_dual(dtype)

    def finite_dual(self, z: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
        return self._base.finite_dual(z, dtype)

    # Derivatives in the order ----------------------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        return isinstance(self.order, Tensor) and self.order.requires_grad

    def detach(self) -> Simplex:
        return replace(self, order=self.order.detach()) if isinstance(self.order, Tensor) else self

    def _of_order(self, derivative: Tensor) -> Tensor:
        """0, with this derivative in the order."""
        assert isinstance(self.order, Tensor)
        return derivative * (self.order - self.order.detach()).to(derivative)

    def followed(self, z: Float[Tensor, "*shape"], dual: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if not self.requires_grad or not torch.is_grad_enabled():
            return z
        # That of ρ₀ at a fixed y, and the level that keeps the sum.
        y, split = self.gauged(dual), self.coupling.split
        share, slope = split(order_share(self._alpha, y)), split(self._base.slope(y))
        least = torch.finfo(y.dtype).tiny
        level = share.sum(-1, keepdim=True) / slope.sum(-1, keepdim=True).clamp_min(least)
        return z + self._of_order((share - slope * level).flatten(-2))

    def followed_inverse(self, dual: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        y, a = self.gauged(dual), self._alpha - 1.0
        inside = y > 0
        # z^a (a log z − 1)/a², with a y = z^a
        grown = a * torch.where(inside, y, 1.0 / a)
        return once(self._of_order(torch.where(inside, grown * (grown.log() - 1.0), 0.0) / a**2))

    def followed_potential(self, dual: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        alpha, y = self._alpha, self.gauged(dual)
        z, scale = self._base.activation(y), alpha * (alpha - 1.0)
        inside = z > 0
        power = z.pow(alpha)
        direct = power * torch.where(inside, z, 1.0).log() / scale - (power - z) * (2 * alpha - 1.0) / scale**2
        # and what moves z, at a fixed y
        moved = self.followed(torch.zeros_like(z), dual)
        return (self._of_order(direct) + y * moved).sum(-1)

    # What C asks of a step ------------------------------------------------------------------------------------------

    def project(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Π_C(z), the nearest point of C, differentiable: sparsemax for total 1 (Martins and Astudillo, 2016)."""
        check_dtype(z, "argument")
        blocks, hi = self.coupling.split(z.double()), math.inf if self.hi is None else self.hi
        # Relative to a coordinate near the level, so that large numbers do no harm; what is far from it is on a bound.
        whole, far = self._at_top(blocks.shape[-1]), 4 * max(map(abs, self.domain))
        blocks = (blocks - blocks.detach().topk(whole + 1, dim=-1).values[..., -1:]).clamp(-far, far)
        rough = blocks - _level_of_projection(blocks.detach(), self.lo, hi, self.total)
        free = (rough > self.lo) & (rough < hi)
        held = torch.where(free, 0.0, rough.clamp(self.lo, hi))
        # The level once more from the coordinates that are free, to the last digit and with its derivative.
        left = self.total - held.sum(-1, keepdim=True)
        level = (torch.where(free, blocks, 0.0).sum(-1, keepdim=True) - left) / free.sum(-1, keepdim=True).clamp_min(1)
        inside = (blocks - level).clamp(self.lo, hi)
        return torch.where(free, inside, held).flatten(-2).to(z.dtype)

    def feasible_step(
        self, z: Float[Tensor, "batch d"], step: Float[Tensor, "batch d"], bounds: tuple[float, float]
    ) -> Float[Tensor, "batch d"]:
        split = self.coupling.split
        z, step, nearest = split(z), split(step), split(self.project(z - step))
        lo, hi = bounds
        free = (nearest > lo) & (nearest < hi)
        # Not the difference of two z, which has lost the digits of a short step: the coordinates that are free share
        # what those that end on a bound leave.
        held = torch.where(free, 0.0, z - nearest)
        shared = (held + torch.where(free, step, 0.0)).sum(-1, keepdim=True) / free.sum(-1, keepdim=True).clamp_min(1)
        return torch.where(free, step - shared, held).flatten(-2)

    def tangential(self, total: Float[Tensor, "batch d"], dual: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return self.coupling.centred(total, self.slope(dual))

    def common_scale(self, scale: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return self.coupling.largest(scale)

    def derivative(self, slope: Float[Tensor, "batch d"], v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return self.coupling.derivative(slope, v)


class _Activation(torch.autograd.Function):
    """ρ with its derivative in closed form, for `backward` alone: the graph of a level is several times as long."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, phi: Simplex) -> Tensor:
        gauged = phi.gauged(y)
        # (an optimizer may change the order meanwhile)
        ctx.phi = replace(phi, order=phi._alpha) if isinstance(phi.order, Tensor) else phi
        ctx.save_for_backward(y, gauged)
        return phi._activated(gauged)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, gauged = ctx.saved_tensors
        phi = ctx.phi
        if torch.is_grad_enabled():  # (the derivative is to be differentiated)
            gauged = phi.gauged(y)
        return phi.derivative(phi._base.slope(gauged), grad), None


def _level_of_projection(z: Float[Tensor, "*blocks n"], lo: float, hi: float, total: float) -> Tensor:
    """θ with Σ clamp(z − θ, lo, hi) = total, (…, 1).

    The sum is piecewise linear in θ, with breaks at z − lo and z − hi.
    """
    n = z.shape[-1]
    breaks, change = z - lo, torch.ones_like(z)
    if math.isfinite(hi):
        breaks, change = torch.cat([breaks, z - hi], -1), torch.cat([change, -change], -1)
    breaks, order = breaks.sort(-1, descending=True)
    free = change.gather(-1, order).cumsum(-1)
    # The sum at each break, from the highest on, where all coordinates are at lo.
    drop = breaks[..., :-1] - breaks[..., 1:]
    sums = n * lo + torch.cat([torch.zeros_like(z[..., :1]), (free[..., :-1] * drop).cumsum(-1)], -1)
    place = ((sums <= total).sum(-1, keepdim=True) - 1).clamp_min(0)
    rest = total - sums.gather(-1, place)
    return breaks.gather(-1, place) - rest / free.gather(-1, place).clamp_min(1)
