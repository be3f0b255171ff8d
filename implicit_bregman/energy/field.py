"""What is set to zero where nothing is minimised: a field F_θ(z; x), which any network may be."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.energy.autograd import Derivative
from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.inputs import Inputs, map_tensors, normal
from implicit_bregman.transforms import pull, push, transformed


class Field(Energy):
    """A learnable field F_θ(z; x) without a potential. Subclass it and write `field`; nothing else is needed.

    The layer finds an equilibrium, F(z; x) + γ∇φ(z) ∈ −N_C(z): zero inside C, and at a bound of C directed out of it.
    With γ = 1 and F = −N it is the fixed point z = ρ(N(z, x)) of a network N, the usual deep-equilibrium layer. With
    γ = 0 and F(z, x) = z − N(z, x) it is the projection of N(z, x) onto C, such as z = relu(N(z, x)) on [0, ∞).

    Use it wherever an `Energy` fits, with the same `features` and inputs: in `find_critical_point`, in
    `CriticalPoint`, and in a sum with energies. Derivatives come from autograd. Every evaluation calls the module,
    `field(z, x)`, so that its hooks run. The samples of a batch must not depend on each other (no batch normalization
    in training), and two evaluations must agree (no dropout inside): each sample is solved on its own.

    There is no certificate. A field may have no equilibrium or several, and the solvers find any one. MM from z⁰, with
    τ = 1, need not converge.

    Args:
        features: the shape of a state z: d, or a tuple such as (C, H, W). None: as wide as x, one tensor.
        monotone: state that F(·; x) is monotone, ⟨F(z) − F(w), z − w⟩ ≥ 0, for every x and θ. For γ > 0 there is
            one equilibrium then. A wrong statement costs that guarantee.

    Raises:
        TypeError: for features of another kind.
        ValueError: for features below 1.
    """

    is_field = True

    def __init__(self, features: int | Sequence[int] | None = None, *, monotone: bool = False) -> None:
        super().__init__(features, convex=monotone)

    @property
    def monotone(self) -> bool:
        """Whether it is declared to be monotone."""
        return self.convex

    @property
    def symmetric(self) -> bool:
        return False

    def field(self, z: Float[Tensor, "*batch *features"], x: Inputs) -> Float[Tensor, "*batch *features"]:
        """F_θ(z; x), of the shape of z. To be written by the subclass."""
        raise TypeError(f"{type(self).__name__} must define field(z, x): what has to vanish next to γ∇φ(z)")

    def forward(self, z: Float[Tensor, "*batch *features"], x: Inputs) -> Float[Tensor, "*batch *features"]:
        """The same as `field`: what the solvers call, so that hooks run as they do on any other module."""
        return self.field(z, x)

    def value(self, z: Float[Tensor, "*batch *features"], x: Inputs) -> NoReturn:
        """Refused: there is no potential.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{type(self).__name__} is a field and has no value: use field(z, x)")

    def gradient(self, z: Float[Tensor, "*batch *features"], x: Inputs) -> Float[Tensor, "*batch *features"]:
        """F_θ(z; x), which stands for the gradient of an energy."""
        if not transformed():
            return self._checked(z, x)
        with differentiable_twice():
            return self._checked(z, x)

    def jacobian_product(
        self,
        z: Float[Tensor, "*batch *features"],
        x: Inputs,
        v: Float[Tensor, "*batch *features"],
        adjoint: bool = False,
    ) -> Float[Tensor, "*batch *features"]:
        """J v, or Jᵀv, with J = ∂F/∂z. Not differentiable again."""
        return self._derivative(z, x)(v, adjoint)

    def hessian_product(
        self, z: Float[Tensor, "*batch *features"], x: Inputs, v: Float[Tensor, "*batch *features"]
    ) -> Float[Tensor, "*batch *features"]:
        """J v, which stands for the product with the Hessian of an energy."""
        return self.jacobian_product(z, x, v)

    def _derivative(self, z: Tensor, x: Inputs) -> Derivative:
        if not transformed():
            return _Jacobian(self, z, x)

        def product(v: Tensor, adjoint: bool) -> Tensor:
            moved = (lambda z: self.gradient(z, x)), (z,)
            return pull(*moved, v)[0] if adjoint else push(*moved, (v,))  # type: ignore[return-value]

        return product

    def _value_and_gradient(self, z: Tensor, x: Inputs) -> tuple[None, Tensor]:
        return None, self._checked(z, x)

    def _checked(self, z: Tensor, x: Inputs) -> Tensor:
        """F(z; x), refusing what is not a tensor like z."""
        value = self._called(z, x)
        if isinstance(value, Tensor) and value.shape == z.shape and value.dtype == z.dtype:
            return value
        found = f"{tuple(value.shape)} and {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{type(self).__name__}.field must return a tensor of z's shape {tuple(z.shape)} and dtype {z.dtype}, got "
            f"{found}: states of several dimensions are declared by features=(C, H, W)"
        )


class _Jacobian:
    """J = ∂F/∂z at one batch of states: F is evaluated once for all products of a kind."""

    def __init__(self, field: Field, z: Tensor, x: Inputs) -> None:
        self.field = field
        self.z = normal(z).detach()
        self.x = map_tensors(lambda tensor: normal(tensor).detach(), x)

    def __call__(self, v: Tensor, adjoint: bool) -> Tensor:
        image, at = self._value if adjoint else self._pulled
        return _pulled_back(image, at, normal(v).detach(), retain_graph=True).detach()

    @cached_property
    def _value(self) -> tuple[Tensor, Tensor]:
        """F(z) and z, of which autograd makes Jᵀv."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = self.z.clone().requires_grad_()
            return self.field._checked(leaf, self.x), leaf

    @cached_property
    def _pulled(self) -> tuple[Tensor, Tensor]:
        """Jᵀu and u, of which autograd makes (Jᵀ)ᵀv."""
        with torch.inference_mode(False), torch.enable_grad(), differentiable_twice():
            leaf = self.z.clone().requires_grad_()
            value = self.field._checked(leaf, self.x)
            u = torch.zeros_like(value, requires_grad=True)
            return _pulled_back(value, leaf, u, create_graph=True), u


def _pulled_back(image: Tensor, at: Tensor, cotangent: Tensor, **options: bool) -> Tensor:
    """The vector-Jacobian product, 0 where the image does not depend on the point."""
    if not image.requires_grad:
        return torch.zeros_like(at)
    with torch.inference_mode(False), torch.enable_grad():
        (product,) = torch.autograd.grad(image, at, cotangent, allow_unused=True, **options)
    return torch.zeros_like(at) if product is None else product


def differentiable_twice() -> AbstractContextManager[None]:
    """A context in which attention is computed by operations with a second derivative: the fused ones have none."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context
