"""The interface of a Legendre function φ: mirror map, conjugate, curvature, divergence.

Everything is elementwise and written in the dual variable y = φ'(z) wherever possible: y stays finite and exact
where z = ρ(y) has long been rounded to the boundary of C = closure of dom φ (Bauschke & Borwein, "Legendre functions
and the method of random Bregman projections", 1997).
"""

from __future__ import annotations

import math
import numbers
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd import forward_ad

SUPPORTED_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=True)
class LegendreFunction(ABC):
    """A scalar convex function φ on a closed interval C, applied to every element of a tensor.

    Subclasses are frozen dataclasses of their parameters: hashable, comparable and picklable. They implement the
    underscored methods in plain torch operations; the public ones add the exact derivatives, which the chain rule
    through the stable formulas would lose (ρ' = 1/φ''(ρ), (φ*)' = ρ, φ' = ρ⁻¹).

    All elementwise methods keep shape, dtype and device and take float32 or float64 tensors only. Half precision
    and integers raise a TypeError: convert with `.float()` first.
    """

    name: ClassVar[str]
    _bounds: ClassVar[dict[torch.dtype, tuple[float, float]]]
    max_curvature: ClassVar[float] = math.inf
    """sup φ''."""
    curvature_at_infinity: ClassVar[float] = math.inf
    """Limit of φ'' towards the infinite end of C; inf if C is bounded."""

    def __post_init__(self) -> None:
        self._check_parameters()
        lo, hi = self.domain
        bounds = {dtype: (-_round_down(-lo, dtype), _round_down(hi, dtype)) for dtype in SUPPORTED_DTYPES}
        object.__setattr__(self, "_bounds", bounds)

    def _check_parameters(self) -> None:
        """Converts every parameter to a positive float, or raises ValueError."""
        for field in fields(self):
            value = positive_float(getattr(self, field.name), f"{self.name}: {field.name}")
            object.__setattr__(self, field.name, value)

    @property
    def is_legendre(self) -> bool:
        """Whether φ is essentially smooth: |φ'| → ∞ at every finite end of C."""
        return True

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
        return _apply(self, "activation", y)

    def inverse_activation(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ρ⁻¹(z) = φ'(z) for z in C: ±inf at a bound of a Legendre φ, NaN outside C."""
        return _apply(self, "inverse_activation", z)

    def potential(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """φ(z) for z in C, bounds included; NaN outside C."""
        return _apply(self, "potential", z)

    def conjugate(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """φ*(y) = max over z in C of zy − φ(z)."""
        return _apply(self, "conjugate", y)

    def curvature(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """φ''(ρ(y)); inf where it exceeds the largest number of the dtype."""
        return _apply(self, "curvature", y)

    def log_curvature(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """log φ''(ρ(y)): finite wherever the dtype can hold it (it grows like |y| at most)."""
        return _apply(self, "log_curvature", y)

    def slope(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ρ'(y) = 1/φ''(ρ(y)), finite for every finite y."""
        return _apply(self, "slope", y)

    def dual_potential(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """φ(ρ(y)), without the loss that rounding ρ(y) to the boundary would cause."""
        return _apply(self, "dual_potential", y)

    def project_dual(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The dual point of the same ρ(y) nearest to 0: y itself if φ is Legendre."""
        check_dtype(y, "argument")
        return self._project_dual(y)

    def _project_dual(self, y: Tensor) -> Tensor:
        return y

    def is_interior(self, z: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Whether z lies strictly inside C and is finite, elementwise."""
        check_dtype(z, "argument")
        lo, hi = self.domain
        return (z > lo) & (z < hi)

    # Bregman divergence -----------------------------------------------------------------------------------------

    def divergence(
        self, u: Float[Tensor, "*batch features"], v: Float[Tensor, "*batch features"]
    ) -> Float[Tensor, "*batch"]:
        """D_φ(u, v) = φ(u) − φ(v) − φ'(v)(u − v), summed over the last dimension; never negative."""
        return _apply_divergence(self, u, v, dual=False)

    def dual_divergence(
        self, p: Float[Tensor, "*batch features"], q: Float[Tensor, "*batch features"]
    ) -> Float[Tensor, "*batch"]:
        """D_φ(ρ(p), ρ(q)), summed over the last dimension; never negative, and ρ is never rounded."""
        return _apply_divergence(self, p, q, dual=True)

    # Floating-point constants -----------------------------------------------------------------------------------

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        """The smallest and the largest number of `dtype` in C (−inf, inf where C is unbounded)."""
        if dtype not in self._bounds:
            raise TypeError(f"dtype: got {dtype}; give torch.float32 or torch.float64")
        return self._bounds[dtype]

    def saturated_dual(self, dtype: torch.dtype) -> tuple[float, float]:
        """Finite duals (y_lo, y_hi) with |ρ(y) − bound| ≤ eps·max(1, |bound|); ∓√(largest number) at an infinite end."""
        lo, hi = self.bounds(dtype)
        return -self._saturation(dtype, lo), self._saturation(dtype, hi)

    def _saturation(self, dtype: torch.dtype, bound: float) -> float:
        info = torch.finfo(dtype)
        if math.isinf(bound):
            return float(info.max) ** 0.5
        # An eighth of eps rounds to the bound itself.
        return self._dual_at_gap(0.125 * float(info.eps) * max(1.0, abs(bound)))

    def _dual_at_gap(self, gap: float) -> float:
        """|y| from which on ρ(y) is within `gap` of the bound it approaches."""
        raise NotImplementedError

    def to_box(self, lo: float, hi: float) -> LegendreFunction:
        """This function moved affinely to [lo, hi], with the dual scale unchanged.

        Args:
            lo: New lower bound.
            hi: New upper bound, above `lo`.

        Raises:
            ValueError: If C is unbounded, or the new bounds are not finite and increasing.
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


# Derivatives in closed form: each map of the interface differentiates into the others.
_DERIVATIVES: dict[str, Callable[[LegendreFunction, Tensor], Tensor]] = {
    "activation": lambda phi, y: phi.slope(y),
    "inverse_activation": lambda phi, z: phi.curvature(phi.inverse_activation(z)),
    "potential": lambda phi, z: phi.inverse_activation(z),
    "conjugate": lambda phi, y: phi.activation(y),
    # The clamp keeps ∞·0 = NaN away from duals beyond the bound of a φ that is not Legendre.
    "curvature": lambda phi, y: (
        phi.curvature(y).clamp(max=torch.finfo(y.dtype).max) * phi._log_curvature_slope(y)
    ),
    "log_curvature": lambda phi, y: phi._log_curvature_slope(y),
    "slope": lambda phi, y: -phi.slope(y) * phi._log_curvature_slope(y),
    "dual_potential": lambda phi, y: phi.project_dual(y) * phi.slope(y),
}


class _ElementwiseFunction(torch.autograd.Function):
    """One map of a Legendre function with its closed-form derivative, to any order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, phi: LegendreFunction, method: str) -> Tensor:
        return getattr(phi, "_" + method)(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, LegendreFunction, str], output: Tensor) -> None:
        x, ctx.phi, ctx.method = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return grad * _DERIVATIVES[ctx.method](ctx.phi, x), None, None


class _ElementwiseForwardMode(_ElementwiseFunction):
    """The same with forward-mode derivatives, which torch.compile does not trace."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return tangent * _DERIVATIVES[ctx.method](ctx.phi, x)


class _DivergenceFunction(torch.autograd.Function):
    """Elementwise D_φ(u, v), in primal (u, v) or dual (p, q) coordinates, with its closed-form derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(left: Tensor, right: Tensor, phi: LegendreFunction, dual: bool) -> Tensor:
        return _divergence_terms(phi, left, right, dual)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, LegendreFunction, bool], output: Tensor
    ) -> None:
        left, right, ctx.phi, ctx.dual = inputs
        ctx.save_for_backward(left, right)
        ctx.save_for_forward(left, right)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        left, right = ctx.saved_tensors
        by_left, by_right = _divergence_derivatives(ctx.phi, left, right, ctx.dual)
        return grad * by_left, grad * by_right, None, None

    @staticmethod
    def jvp(ctx: Any, tangent_left: Tensor | None, tangent_right: Tensor | None, *_: None) -> Tensor:
        left, right = ctx.saved_tensors
        by_left, by_right = _divergence_derivatives(ctx.phi, left, right, ctx.dual)
        out = torch.zeros_like(by_left)
        if tangent_left is not None:
            out = out + tangent_left * by_left
        if tangent_right is not None:
            out = out + tangent_right * by_right
        return out


def _divergence_derivatives(
    phi: LegendreFunction, left: Tensor, right: Tensor, dual: bool
) -> tuple[Tensor, Tensor]:
    if dual:
        by_right = phi.activation(right) - phi.activation(left)
        return phi.slope(left) * (phi.project_dual(left) - phi.project_dual(right)), by_right
    y_right = phi.inverse_activation(right)
    return phi.inverse_activation(left) - y_right, phi.curvature(y_right) * (right - left)


def _apply(phi: LegendreFunction, method: str, x: Tensor) -> Tensor:
    check_dtype(x, "argument")
    if _records_derivatives(x):
        function = _ElementwiseFunction if torch.compiler.is_compiling() else _ElementwiseForwardMode
        return function.apply(x, phi, method)
    return getattr(phi, "_" + method)(x)


def _apply_divergence(phi: LegendreFunction, left: Tensor, right: Tensor, dual: bool) -> Tensor:
    check_dtype(left, "first argument")
    check_dtype(right, "second argument")
    if left.dtype != right.dtype:
        raise TypeError(f"arguments differ in dtype: {left.dtype} and {right.dtype}; convert one of them")
    left, right = torch.broadcast_tensors(left, right)
    if _records_derivatives(left, right):
        return _DivergenceFunction.apply(left, right, phi, dual).sum(-1)
    return _divergence_terms(phi, left, right, dual).sum(-1)


def _divergence_terms(phi: LegendreFunction, left: Tensor, right: Tensor, dual: bool) -> Tensor:
    if dual:
        p, q = phi._project_dual(left), phi._project_dual(right)
        return phi._dual_divergence(p, q, q - p).clamp(min=0.0)
    return phi._divergence(left, right, left - right).clamp(min=0.0)


def _records_derivatives(*inputs: Tensor) -> bool:
    """False only if nothing can ask for a derivative: the autograd wrapper would be pure overhead."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return True
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def check_dtype(x: Tensor, argument: str) -> None:
    """Raises TypeError unless `x` is a float32 or float64 tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{argument}: got {type(x).__name__}; give a float32 or float64 tensor")
    if x.dtype not in SUPPORTED_DTYPES:
        raise TypeError(f"{argument}: got dtype {x.dtype}; convert to torch.float32 or torch.float64")


def positive_float(value: float, argument: str) -> float:
    """`value` as a float; raises ValueError unless it is a finite positive number."""
    number = real_float(value, argument)
    if not number > 0:
        raise ValueError(f"{argument} must be positive, got {value!r}")
    return number


def real_float(value: float, argument: str) -> float:
    """`value` as a float; raises TypeError for a non-number and ValueError for inf or NaN."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{argument} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{argument} must be finite, got {value!r}")
    return float(value)


def round_nearest(value: float, dtype: torch.dtype) -> float:
    """The number of `dtype` nearest to `value`; infinities kept, and an overflow cut to the largest number."""
    if dtype == torch.float64 or math.isinf(value):
        return value
    limit = float(torch.finfo(dtype).max)
    (rounded,) = struct.unpack("<f", struct.pack("<f", max(-limit, min(limit, value))))
    return float(rounded)


def _round_down(value: float, dtype: torch.dtype) -> float:
    """The largest number of `dtype` not above `value`."""
    rounded = round_nearest(value, dtype)
    if rounded <= value:
        return rounded
    (bits,) = struct.unpack("<i", struct.pack("<f", rounded))
    return float(struct.unpack("<f", struct.pack("<i", bits - 1 if rounded > 0 else bits + 1))[0])
