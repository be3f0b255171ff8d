"""The interface of a Legendre function φ: mirror map, conjugate, curvature, divergence.

Everything is elementwise and written in the dual variable y = φ'(z) wherever possible: y stays finite and exact
where z = ρ(y) has long been rounded to the boundary of C = closure of dom φ (Bauschke & Borwein, "Legendre functions
and the method of random Bregman projections", 1997).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.legendre.arguments import SUPPORTED_DTYPES, check_dtype, positive_float
from implicit_bregman.legendre.derivatives import apply_divergence, apply_map
from implicit_bregman.legendre.mirror import Ends, MirrorMap
from implicit_bregman.legendre.rounding import next_up, round_down, round_nearest


@dataclass(frozen=True)
class LegendreFunction(MirrorMap):
    """A scalar convex function φ on a closed interval C, applied to every element of a tensor.

    Subclasses are frozen dataclasses of their parameters: hashable, comparable and picklable. They implement the
    underscored methods in plain torch operations; the public ones add the exact derivatives, which the chain rule
    through the stable formulas would lose (ρ' = 1/φ''(ρ), (φ*)' = ρ, φ' = ρ⁻¹).

    All elementwise methods keep shape, dtype and device and take float32 or float64 tensors only. Half precision
    and integers raise a TypeError: convert with `.float()` first.
    """

    max_curvature: ClassVar[float] = math.inf
    """sup φ''."""
    curvature_at_infinity: ClassVar[float] = math.inf
    """Limit of φ'' towards the infinite end of C; inf if C is bounded."""
    # Derived from the parameters once, because ρ needs them at every call.
    _bounds: dict[torch.dtype, tuple[float, float]] = field(init=False, repr=False, compare=False)
    _saturated: dict[torch.dtype, tuple[float, float]] = field(init=False, repr=False, compare=False)
    _inner_bounds: dict[torch.dtype, tuple[float, float]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_parameters()
        lo, hi = self.domain
        bounds = {dtype: (-round_down(-lo, dtype), round_down(hi, dtype)) for dtype in SUPPORTED_DTYPES}
        gaps = {t: (_gap(t, low, hi - lo), _gap(t, high, hi - lo)) for t, (low, high) in bounds.items()}
        saturated = {t: (-self._saturation(t, low), self._saturation(t, high)) for t, (low, high) in gaps.items()}
        inner = {
            t: (-self._last_inside(t, -low, gaps[t][0]), self._last_inside(t, high, gaps[t][1]))
            for t, (low, high) in bounds.items()
        }
        object.__setattr__(self, "_bounds", bounds)
        object.__setattr__(self, "_saturated", saturated)
        object.__setattr__(self, "_inner_bounds", inner)

    def _check_parameters(self) -> None:
        """Converts every parameter to a positive float, or raises ValueError."""
        for parameter in fields(self):
            if parameter.compare:
                value = positive_float(getattr(self, parameter.name), f"{self.name}: {parameter.name}")
                object.__setattr__(self, parameter.name, value)

    @property
    def is_legendre(self) -> bool:
        """Whether φ is essentially smooth: |φ'| → ∞ at every finite end of C."""
        return True

    @property
    def elementwise(self) -> LegendreFunction:
        return self

    @property
    @abstractmethod
    def domain(self) -> tuple[float, float]:
        """The ends (lo, hi) of C, either of them possibly infinite."""

    @property
    @abstractmethod
    def strong_convexity(self) -> float:
        """σ = inf φ''."""

    # Elementwise maps -------------------------------------------------------------------------------------------

    def activation(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ρ(y) = ∇φ*(y), a point of C also after rounding. Its derivative is `slope`, exact at any |y|."""
        return apply_map(self, "activation", y)

    def inverse_activation(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ρ⁻¹(z) = φ'(z) for z in C: ±inf at a bound of a Legendre φ, NaN outside C."""
        return apply_map(self, "inverse_activation", z)

    def potential(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """φ(z) for z in C, bounds included; NaN outside C."""
        return apply_map(self, "potential", z)

    def conjugate(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """φ*(y) = max over z in C of zy − φ(z)."""
        return apply_map(self, "conjugate", y)

    def curvature(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """φ''(ρ(y)); inf where it exceeds the largest number of the dtype."""
        return apply_map(self, "curvature", y)

    def log_curvature(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """log φ''(ρ(y)): finite wherever the dtype can hold it (it grows like |y| at most)."""
        return apply_map(self, "log_curvature", y)

    def log_curvature_slope(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The derivative of `log_curvature` in y; not differentiable again."""
        with torch.no_grad():
            return self._log_curvature_slope(y)

    def slope(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ρ'(y) = 1/φ''(ρ(y)), finite for every finite y."""
        return apply_map(self, "slope", y)

    def dual_potential(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """φ(ρ(y)), without the loss that rounding ρ(y) to the boundary would cause."""
        return apply_map(self, "dual_potential", y)

    def project_dual(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The dual point of the same ρ(y) nearest to 0; y itself if φ is Legendre and y in `dual_domain`.

        A y beyond `dual_domain` becomes the last of the `dual_bounds`.
        """
        check_dtype(y, "argument")
        return self._project_dual(y)

    def _project_dual(self, y: Tensor) -> Tensor:
        return y

    def project(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Π_C(z): z cut to `bounds`."""
        check_dtype(z, "argument")
        return z.clamp(*self.bounds(z.dtype))

    def feasible_step(
        self, z: Float[Tensor, "batch d"], step: Float[Tensor, "batch d"], bounds: Ends
    ) -> Float[Tensor, "batch d"]:
        # (not the move of z itself, which a large z would absorb)
        lo, hi = bounds
        return step.clamp_(z - hi, z - lo) if math.isfinite(lo) or math.isfinite(hi) else step

    def is_interior(self, z: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Whether z lies strictly inside C and is finite, elementwise; False for a bound rounded to the dtype."""
        check_dtype(z, "argument")
        lo, hi = self.domain
        return (z > lo) & (z < hi)

    # Bregman divergence -----------------------------------------------------------------------------------------

    def divergence(
        self, u: Float[Tensor, "*batch features"], v: Float[Tensor, "*batch features"]
    ) -> Float[Tensor, "*batch"]:
        """The Bregman divergence D_φ(u, v) = Σ φ(u) − φ(v) − φ'(v)(u − v), without cancellation.

        Args:
            u: Points of C; the bounds may be among them.
            v: Points of C, broadcast against `u`, of the same dtype. At a bound of a Legendre φ the result is inf
                unless u = v.

        Returns:
            The sum over the last dimension; never negative, and 0 exactly where u = v.

        Raises:
            TypeError: If the arguments are not both float32 or both float64.
        """
        return apply_divergence(self, u, v, dual=False)

    def dual_divergence(
        self, p: Float[Tensor, "*batch features"], q: Float[Tensor, "*batch features"]
    ) -> Float[Tensor, "*batch"]:
        """The Bregman divergence D_φ(ρ(p), ρ(q)) of two dual points, without rounding either ρ.

        Args:
            p: Dual points of the first argument.
            q: Dual points of the second argument, broadcast against `p`, of the same dtype.

        Returns:
            The sum over the last dimension; never negative, and 0 exactly where ρ(p) = ρ(q), up to underflow.

        Raises:
            TypeError: If the arguments are not both float32 or both float64.
        """
        return apply_divergence(self, p, q, dual=True)

    # Floating-point constants -----------------------------------------------------------------------------------

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        """The smallest and the largest number of `dtype` in C (∓inf where C is unbounded).

        A bound that is no number of `dtype` is rounded into C: float32 rounds π/2 up, and tan is negative there.
        """
        return _of_dtype(self._bounds, dtype)

    def inner_bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        """The numbers of `dtype` next to `bounds`, strictly inside, at which ρ⁻¹ is as good as `saturated_dual`.

        At and between them ρ⁻¹ and φ'' are finite. At a bound of 0, where floats are dense, and at an infinite one they
        are where ρ⁻¹ reaches `saturated_dual`.
        """
        return _of_dtype(self._inner_bounds, dtype)

    def saturated_dual(self, dtype: torch.dtype) -> tuple[float, float]:
        """Finite duals (y_lo, y_hi) that stand for the bounds: |ρ(y) − bound| ≤ eps·min(max(1, |bound|), hi − lo).

        At an infinite end it is that of `dual_bounds`.
        """
        return _of_dtype(self._saturated, dtype)

    def finite_dual(self, z: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
        """A y that is finite in `dtype` and stands for z: ρ(y) = z to rounding.

        It is ρ⁻¹(z); at (or beyond) the `bounds` of `dtype` `saturated_dual`; and, where ρ⁻¹ overflows before that, the
        last of the `dual_bounds`. (For arcsinh this is the case from |z| = 89.4 in float32 and 710.4 in float64 on,
        which no finite dual reaches.) Not differentiable.

        Args:
            z: points of C, in float64 or in `dtype`.
            dtype: the precision that y is going to have.
        """
        with torch.no_grad():
            y = self.inverse_activation(z).clamp_(*self.dual_bounds(dtype))
            ends = zip(self.domain, self.bounds(dtype), self.saturated_dual(dtype), (torch.le, torch.ge), strict=True)
            for end, bound, saturated, reaches in ends:
                if math.isfinite(end):
                    y.masked_fill_(reaches(z, bound), saturated)
        return y

    def _saturation(self, dtype: torch.dtype, gap: float) -> float:
        return float(torch.finfo(dtype).max) if math.isinf(gap) else self._dual_at_gap(gap)

    def _last_inside(self, dtype: torch.dtype, bound: float, gap: float) -> float:
        """The largest number to which ρ⁻¹ is applied, for an upper bound or the mirror image of a lower one."""
        if math.isinf(bound):
            return self._largest_primal(dtype)
        return min(-next_up(-bound, dtype), round_nearest(bound - gap, dtype))

    def _largest_primal(self, dtype: torch.dtype) -> float:
        """ρ of the saturated dual at an infinite end of C."""
        return float(torch.finfo(dtype).max)

    def _dual_at_gap(self, gap: float) -> float:
        """|y| from which on ρ(y) is within `gap` of the finite bound it approaches; not called if there is none."""
        raise NotImplementedError

    def to_box(
        self, lo: float | Float[Tensor, "*features"], hi: float | Float[Tensor, "*features"]
    ) -> LegendreFunction:
        """This function moved affinely to [lo, hi], with the dual scale unchanged.

        Args:
            lo: New lower bound; a number, or a floating-point tensor of the event shape of the states, or of one that
                broadcasts to it.
            hi: New upper bound, in the same way; above `lo`, or as tensors not below.

        Returns:
            The function with ρ(y) = m + s (ρ₀(y) − m₀), where m is the centre of [lo, hi] and s the ratio of the
            widths; its strong convexity is that of this one divided by s. Of tensors a `Boxes`, with bounds of its own
            for each coordinate: where lo = hi it stays there, where one bound is infinite it has the map of softplus,
            shifted to the other, and where both are, that of the identity. Gradients flow to tensors of bounds.

        Raises:
            TypeError: If a bound is no number and no floating-point tensor.
            ValueError: If C is unbounded, or the new bounds are not finite and increasing; of tensors if not lo ≤ hi.
        """
        raise ValueError(f"to_box: {self.name} has the unbounded domain {self.domain}; choose a bounded one")

    # To be implemented: plain torch operations, NaN-free for the arguments stated above -----------------------------

    @abstractmethod
    def _activation(self, y: Tensor) -> Tensor: ...

    @abstractmethod
    def _inverse_activation(self, z: Tensor) -> Tensor: ...

    @abstractmethod
    def _potential(self, z: Tensor) -> Tensor: ...

    @abstractmethod
    def _conjugate(self, y: Tensor) -> Tensor: ...

    @abstractmethod
    def _curvature(self, y: Tensor) -> Tensor: ...

    @abstractmethod
    def _log_curvature(self, y: Tensor) -> Tensor: ...

    @abstractmethod
    def _slope(self, y: Tensor) -> Tensor: ...

    @abstractmethod
    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        """Derivative of log φ''(ρ(y)) in y."""

    @abstractmethod
    def _dual_potential(self, y: Tensor) -> Tensor: ...

    @abstractmethod
    def _divergence(self, u: Tensor, v: Tensor, d: Tensor) -> Tensor:
        """Elementwise D(u, v), given d = u − v, which a change of scale must not round a second time."""

    @abstractmethod
    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        """Elementwise D(ρ(p), ρ(q)), given d = q − p."""


def _of_dtype(pairs: dict[torch.dtype, tuple[float, float]], dtype: torch.dtype) -> tuple[float, float]:
    if dtype not in pairs:
        raise TypeError(f"dtype: got {dtype}; give torch.float32 or torch.float64")
    return pairs[dtype]


def _gap(dtype: torch.dtype, bound: float, width: float) -> float:
    """A distance from `bound` that rounds to none: an eighth of eps, of the bound or, if it is less, of C's width."""
    return 0.125 * float(torch.finfo(dtype).eps) * min(max(1.0, abs(bound)), width)
