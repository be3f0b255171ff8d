"""Closed-form derivatives of the maps of a Legendre function, to any order and in both modes.

The chain rule through a stable formula is right only where the formula does not saturate: 1 − tanh² is 0 once tanh has
rounded to 1, and a branch that `torch.where` discards still contributes NaN. But each map differentiates into the
others, (φ*)' = ρ, φ' = ρ⁻¹, ρ' = 1/φ''(ρ), and those are stable everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from implicit_bregman.compilation import uncompiled_before_2_11
from implicit_bregman.legendre.arguments import check_dtype
from implicit_bregman.transforms import primals, transformed

if TYPE_CHECKING:
    from implicit_bregman.legendre.base import LegendreFunction

_DERIVATIVES: dict[str, Callable[[LegendreFunction, Tensor], Tensor]] = {
    "activation": lambda phi, y: phi.slope(y),
    "inverse_activation": lambda phi, z: phi.curvature(phi.inverse_activation(z)),
    "potential": lambda phi, z: phi.inverse_activation(z),
    "conjugate": lambda phi, y: phi.activation(y),
    # The clamp keeps ∞·0 = NaN away from duals beyond the bound of a φ that is not Legendre.
    "curvature": lambda phi, y: phi.curvature(y).clamp(max=torch.finfo(y.dtype).max) * phi._log_curvature_slope(y),
    "log_curvature": lambda phi, y: phi._log_curvature_slope(y),
    "slope": lambda phi, y: -phi.slope(y) * phi._log_curvature_slope(y),
    "dual_potential": lambda phi, y: phi.project_dual(y) * phi.slope(y),
}


class _ElementwiseFunction(torch.autograd.Function):
    """One map of a Legendre function with its closed-form derivative, to any order."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return grad * _DERIVATIVES[ctx.method](ctx.phi, x), None, None


class _PlainElementwise(_ElementwiseFunction):
    """The one for `backward` alone: torch inspects the signature of one with a `setup_context` at every call."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, phi: LegendreFunction, method: str) -> Tensor:
        ctx.phi, ctx.method = phi, method
        ctx.save_for_backward(x)
        return getattr(phi, "_" + method)(x)


class _TransformableElementwise(_ElementwiseFunction):
    """The one that the transforms of torch.func and torch.compile can take apart."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, phi: LegendreFunction, method: str) -> Tensor:
        return getattr(phi, "_" + method)(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, LegendreFunction, str], output: Tensor) -> None:
        x, ctx.phi, ctx.method = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)


class _ForwardModeElementwise(_TransformableElementwise):
    """The same with forward-mode derivatives, which torch.compile does not trace."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        with primals(ctx.saved_tensors) as (x,):
            return tangent * _DERIVATIVES[ctx.method](ctx.phi, x)


class _DivergenceFunction(torch.autograd.Function):
    """Elementwise D_φ(u, v), in primal (u, v) or dual (p, q) coordinates, with its closed-form derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(left: Tensor, right: Tensor, phi: LegendreFunction, dual: bool) -> Tensor:
        return _divergence_terms(phi, left, right, dual)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, LegendreFunction, bool], output: Tensor) -> None:
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
        with primals(ctx.saved_tensors) as (left, right):
            by_left, by_right = _divergence_derivatives(ctx.phi, left, right, ctx.dual)
            out = torch.zeros_like(by_left)
            if tangent_left is not None:
                out = out + tangent_left * by_left
            if tangent_right is not None:
                out = out + tangent_right * by_right
            return out


def _divergence_derivatives(phi: LegendreFunction, left: Tensor, right: Tensor, dual: bool) -> tuple[Tensor, Tensor]:
    if dual:
        by_right = phi.activation(right) - phi.activation(left)
        return phi.slope(left) * (phi.project_dual(left) - phi.project_dual(right)), by_right
    y_right = phi.inverse_activation(right)
    return phi.inverse_activation(left) - y_right, phi.curvature(y_right) * (right - left)


@uncompiled_before_2_11
def _transformable(x: Tensor, phi: LegendreFunction, method: str) -> Tensor:
    return _TransformableElementwise.apply(x, phi, method)


@uncompiled_before_2_11
def _divergence(left: Tensor, right: Tensor, phi: LegendreFunction, dual: bool) -> Tensor:
    return _DivergenceFunction.apply(left, right, phi, dual)


def apply_map(phi: LegendreFunction, method: str, x: Tensor) -> Tensor:
    """`method` of phi at x, with its closed-form derivative where one is asked for."""
    check_dtype(x, "argument")
    recorded = x.requires_grad and torch.is_grad_enabled()
    if not recorded and not transformed():
        return getattr(phi, "_" + method)(x)
    if torch.compiler.is_compiling():
        return _transformable(x, phi, method)
    function = _ForwardModeElementwise if transformed() else _PlainElementwise
    return function.apply(x, phi, method)


def apply_divergence(phi: LegendreFunction, left: Tensor, right: Tensor, dual: bool) -> Tensor:
    """The divergence of two primal or two dual points, summed over the last dimension."""
    check_dtype(left, "first argument")
    check_dtype(right, "second argument")
    if left.dtype != right.dtype:
        raise TypeError(f"arguments differ in dtype: {left.dtype} and {right.dtype}; convert one of them")
    left, right = torch.broadcast_tensors(left, right)
    # Without a derivative to be asked for, the autograd wrapper would be pure overhead.
    if (torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)) or transformed():
        return _divergence(left, right, phi, dual).sum(-1)
    return _divergence_terms(phi, left, right, dual).sum(-1)


def _divergence_terms(phi: LegendreFunction, left: Tensor, right: Tensor, dual: bool) -> Tensor:
    if dual:
        p, q = phi._project_dual(left), phi._project_dual(right)
        return phi._dual_divergence(p, q, q - p).clamp(min=0.0)
    return phi._divergence(left, right, left - right).clamp(min=0.0)
