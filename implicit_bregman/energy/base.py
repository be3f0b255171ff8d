"""What is minimised: f_θ(z; x), its gradient and its Hessian-vector product."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman.energy.autograd import BoundByAutograd, Derivative
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.energy.inputs import Inputs, map_tensors, normal, tensors_of
from implicit_bregman.settings import is_number
from implicit_bregman.transforms import transformed


class Energy(nn.Module):
    """A learnable objective f_θ(z; x), one number per sample. Subclass it and write `value`; nothing else is needed.

    The gradient and the Hessian-vector product come from autograd, also inside `torch.inference_mode()`. Every
    evaluation calls the module, `energy(z, x)`, so its hooks run: pruning, weight normalization, your own. The backward
    pass evaluates it again with the parameters, buffers and tensor attributes of the forward pass, even if the module
    has others by then. If one of them was changed in place, autograd raises its own error.

    A subclass that knows an upper bound of its curvature (the largest eigenvalue of ∇²f over C, for every x)
    overrides `curvature_bound`. MM then takes a fixed step. Without it, backtracking finds the step of each sample.

    `features` and x decide what the batch is. For a state that is a vector (`features` is an int or None) and an x that
    is one tensor (*, n), the batch is all of x's dimensions but the last, as for `nn.Linear`. Else it is the first
    dimension of x: give `features=(C, H, W)` for images z, `features=(d,)` for vectors z that go with images x. x may
    then have any shape behind the batch, and may be a tuple, list or dict (a pytree) of such tensors, which need not
    all be floating point. Inside, a batch of several leading dimensions is one: `value` gets z of shape (B, d) or
    (B, C, H, W) and x with B samples in front, and returns (B,).

    Args:
        features: the shape of a state z: d, or a tuple such as (C, H, W). None: as wide as x, one tensor.
        convex: state that f(·; x) is convex for every x and θ. It lets the accelerated solvers skip the
            precautions that keep them in MM's own basin. A wrong statement costs those guarantees.

    Attributes:
        input_width: n, where x has to be one tensor of that width; None: whatever `value` takes.
        takes_half: whether half-precision parameters are lifted by the energy itself.

    Raises:
        TypeError: for features of another kind.
        ValueError: for features below 1.
    """

    takes_half = False
    #: Whether it is a nonlinear field without a potential: see `Field`.
    is_field: bool = False

    def __init__(self, features: int | Sequence[int] | None = None, *, convex: bool = False) -> None:
        super().__init__()
        self.features = _checked_features(features)
        self.convex = convex

    @property
    def input_width(self) -> int | None:
        """How wide an x that is one tensor has to be; None: x may be anything that `value` takes."""
        return None

    def event_shape(self, x: Inputs) -> int | tuple[int, ...] | None:
        """The shape of a state that goes with the input x; None: as wide as x. Here: `features`, whatever x is."""
        return self.features

    def value(self, z: Float[Tensor, "*batch *features"], x: Inputs) -> Float[Tensor, "*batch"]:
        """f_θ(z; x), one number per sample. To be written by the subclass."""
        raise TypeError(f"{type(self).__name__} must define value(z, x): an Energy is its value")

    def forward(self, z: Float[Tensor, "*batch *features"], x: Inputs) -> Float[Tensor, "*batch"]:
        """The same as `value`: what the solvers call, so that hooks run as they do on any other module."""
        return self.value(z, x)

    @property
    def symmetric(self) -> bool:
        """Whether there is an objective; only a quadratic energy without symmetry has none."""
        return True

    @property
    def has_matrix(self) -> bool:
        """Whether H is one matrix for all samples whatever x is, and x enters through an offset alone."""
        return False

    def shared_hessian(self) -> Float[Tensor, "d d"] | None:
        """∇²f, detached, (d, d), if it is one matrix for all samples that the solvers hold as such; else None."""
        return None

    @property
    def samples(self) -> int | None:
        """The number of samples that it is for, where each has an operator of its own; None: any."""
        return None

    def curvature_range(self) -> tuple[Tensor | None, Tensor | float | None]:
        """Least and largest curvature of f that are known: bounds of the eigenvalues of ∇²f, or None."""
        return None, self.curvature_bound()

    def curvature_bound(self) -> Tensor | float | None:
        """An upper bound of the largest eigenvalue of ∇²f(·; x), or None (the default) if none is known.

        It is asked for once per solve, before the module is called: compute it from the parameters themselves, not from
        an attribute that a hook makes of them in each call.
        """
        return None

    def gradient(self, z: Float[Tensor, "*batch *features"], x: Inputs) -> Float[Tensor, "*batch *features"]:
        """∇f_θ(z; x), differentiable again (in z and θ) where grad mode is on."""
        return self._value_and_gradient(z, x)[1]

    def hessian_product(
        self, z: Float[Tensor, "*batch *features"], x: Inputs, v: Float[Tensor, "*batch *features"]
    ) -> Float[Tensor, "*batch *features"]:
        """∇²f_θ(z; x) v, by differentiating the gradient once more. Not differentiable again."""
        if transformed():
            hessian: Tensor = torch.func.vjp(lambda z: self.gradient(z, x), z)[1](v)[0]
            return hessian
        return _Hessian(self, z, x)(v)

    def bind(self, x: Inputs) -> BoundEnergy:
        """This energy at the input x, with B samples in front, as the solvers see it."""
        return BoundByAutograd(self, x)

    def __add__(self, other: object) -> Energy:
        """The energy f + g of the same z and x; a quadratic one keeps its resolvent as preconditioner."""
        from implicit_bregman.energy.sums import SumEnergy  # which is an Energy

        return SumEnergy(self, other) if isinstance(other, Energy) else NotImplemented

    def _derivative(self, z: Tensor, x: Inputs) -> Derivative:
        """Products with the Hessian at z; the gradient is evaluated once for all, unless the subclass knows better."""
        if transformed() or type(self).hessian_product is not Energy.hessian_product:
            return lambda v, adjoint: self.hessian_product(z, x, v)
        return _Hessian(self, z, x)

    def _value_and_gradient(self, z: Tensor, x: Inputs) -> tuple[Tensor | None, Tensor]:
        if transformed():
            gradient, value = torch.func.grad(self._total, has_aux=True)(z, x)
            return value, gradient
        differentiable = torch.is_grad_enabled() and self._needs_gradient(z, x)
        with torch.inference_mode(False), torch.enable_grad():
            point = normal(z)
            if not (differentiable and point.requires_grad):
                point = point.detach().requires_grad_()
            value = self._checked(point, map_tensors(normal, x))
            if not value.requires_grad:
                return value, torch.zeros_like(point)
            (gradient,) = torch.autograd.grad(value.sum(), point, create_graph=differentiable, allow_unused=True)
        return value, torch.zeros_like(point) if gradient is None else gradient

    def _checked(self, z: Tensor, x: Inputs) -> Tensor:
        """f(z; x), refusing what is not one number per sample."""
        value = self._called(z, x)
        event = len(self.features) if isinstance(self.features, tuple) else 1
        wanted = z.shape[: z.dim() - event]
        if value.shape == wanted:
            return value
        only = f"the features {self.features}" if isinstance(self.features, tuple) else "the features"
        raise ValueError(
            f"{type(self).__name__}.value must return one number per sample, shape {tuple(wanted)}, got "
            f"{tuple(value.shape)}: sum over {only} only (here z has the shape {tuple(z.shape)}; states that are not "
            "vectors, such as images, are declared by features=(C, H, W))"
        )

    def _total(self, z: Tensor, x: Inputs) -> tuple[Tensor, Tensor]:
        value = self._checked(z, x)
        return value.sum(), value

    def _needs_gradient(self, z: Tensor, x: Inputs) -> bool:
        """Whether f(z; x) depends on anything that requires a gradient, known to the module or not."""
        known = chain((z,), tensors_of(x), self.parameters())
        return any(tensor.requires_grad for tensor in known) or self._called(z, x).requires_grad

    def _called(self, z: Tensor, x: Inputs) -> Tensor:
        """`energy(z, x)`, hooks and all, but not what `energy.compile()` makes of it: it has one derivative only."""
        value: Tensor = self._call_impl(z, x)
        return value


class _Hessian:
    """∇²f at one batch of states: ∇f is evaluated once, and differentiated for each product."""

    def __init__(self, energy: Energy, z: Tensor, x: Inputs) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            self._at = normal(z).detach().requires_grad_()
            self._gradient = energy._value_and_gradient(self._at, map_tensors(normal, x))[1]

    def __call__(self, v: Tensor, adjoint: bool = False) -> Tensor:
        if not self._gradient.requires_grad:  # f is linear in z
            return torch.zeros_like(v)
        with torch.inference_mode(False):
            along = normal(v).detach()
            (product,) = torch.autograd.grad(self._gradient, self._at, along, retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if product is None else product.detach()


def _checked_features(features: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    if features is None:
        return None
    sizes = tuple(features) if isinstance(features, (tuple, list)) else (features,)
    if not sizes or not all(is_number(size, numbers.Integral) for size in sizes):
        raise TypeError(f"features must be a whole number, a tuple of such as (C, H, W), or None, got {features!r}")
    if min(sizes) < 1:
        raise ValueError(f"features must be at least 1, got {features}")
    plain = tuple(int(size) for size in sizes)
    return plain if isinstance(features, (tuple, list)) else plain[0]
