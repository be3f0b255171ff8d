"""What is minimised: f_θ(z; x), its gradient and its Hessian-vector product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from implicit_bregman.energy.own import OwnMethods
from implicit_bregman.energy.snapshot import Again, Place, Snapshot
from implicit_bregman.operators import Dense, LinearOperator, Rebuild
from implicit_bregman.transforms import transformed

if TYPE_CHECKING:
    from implicit_bregman.energy.bound import BoundQuadratic

PullBack = Callable[[Tensor, Tensor, tuple[bool, ...]], tuple[Tensor | None, ...]]
"""From v = dL/d(−∇f), z and what is needed to the gradients of an energy's `leaves`."""


@dataclass(frozen=True)
class Evaluation:
    """f and ∇f at one batch of points.

    Attributes:
        value: f(z; x), (B,), or None for a field that is no gradient.
        gradient: ∇f(z; x), (B, d).
    """

    value: Tensor | None
    gradient: Tensor


class Packed(NamedTuple):
    """What an energy at a fixed input is made of.

    Attributes:
        tensors: everything that it depends on, with its graph.
        rows: which of them have a row for each sample; None: one sample cannot be repeated, nor the batch.
        rebuild: the same energy of such tensors; it holds none itself.
    """

    tensors: tuple[Tensor, ...]
    rows: tuple[bool, ...] | None
    rebuild: Callable[..., BoundEnergy]


class BoundEnergy(ABC):
    """An energy at a fixed input x: what the solvers and the adjoints see. All batches are (B, d).

    Attributes:
        dtype: the precision of the samples.
        symmetric: whether the Hessian is symmetric, that is, whether there is an objective.
        affine: whether the gradient is affine in z (a quadratic energy), so that one linear solve on the free
            block of coordinates gives a critical point exactly.
        shared: the Hessian, where it is one constant matrix for all samples; else None.
        has_finish: whether, without such a matrix, Newton's method makes an iterate exact.
    """

    dtype: torch.dtype
    symmetric: bool
    affine: bool
    shared: Dense | None = None
    has_finish: bool = False

    @property
    def matrix_form(self) -> BoundQuadratic | None:
        """This energy, where it is quadratic with one matrix for all samples (`shared`); else None."""
        return None

    @property
    def own(self) -> OwnMethods | None:
        """Methods of its own, where its critical points are not isolated and the usual ones do not fit; else None."""
        return None

    @property
    def stiffness(self) -> Float[Tensor, " d"] | None:
        """How much the entries of ∇f change at most when no entry of z changes by more than 1; None: not known."""
        return None

    @property
    @abstractmethod
    def curvature(self) -> Tensor | None:
        """An upper bound of the largest eigenvalue of the Hessian (a 0-d tensor), or None if none is known.

        For an unsymmetric Hessian, the reciprocal of its cocoercivity constant.
        """

    @property
    def is_convex(self) -> bool:
        """Whether f is known to be convex up to rounding, though perhaps not strictly: asked where it is not."""
        return False

    @property
    def lowest(self) -> Tensor | None:
        """The least eigenvalue of the Hessian (of its symmetric part), or None if it is not known."""
        return None

    @abstractmethod
    def evaluate(self, z: Float[Tensor, "batch d"]) -> Evaluation:
        """f, ∇f and the size of its terms at z."""

    @abstractmethod
    def gradient(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """∇f(z; x), differentiable in z and in the parameters where grad mode is on."""

    def terms(self, gradient: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The largest term in each entry of ∇f, in size, (B, d), given ∇f; |∇f| where the terms are not known."""
        return gradient.abs()

    def leaves(self, z: Float[Tensor, "batch d"]) -> tuple[Tensor, ...]:
        """Tensors through which −∇f(z) at a fixed z depends on x and θ; by default −∇f(z) itself, with its graph."""
        return (-self.gradient(z),)

    @staticmethod
    def pull_back(
        v: Float[Tensor, "batch d"], z: Float[Tensor, "batch d"], needed: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        """The gradients of `leaves`, where they are needed, from v = dL/d(−∇f)."""
        return (v,)

    @abstractmethod
    def value(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """f(z; x), differentiable in z and in the parameters where grad mode is on."""

    @abstractmethod
    def pack(self) -> Packed:
        """The tensors that f depends on, with their graphs, and what makes the same energy of such tensors."""

    @abstractmethod
    def value_at(self, z: Float[Tensor, "batch d"]) -> Callable[[], Float[Tensor, " batch"]]:
        """f(z; x) up to a constant at a fixed z, differentiable (once) in x and θ as they are now, on demand."""

    @abstractmethod
    def again(self) -> AbstractContextManager[object]:
        """A context in which a later evaluation finds everything as it is now; it may be entered repeatedly.

        Entering it raises a RuntimeError if a tensor was changed in place meanwhile.
        """

    @abstractmethod
    def hessian(self, z: Float[Tensor, "batch d"]) -> LinearOperator:
        """∇²f(z; x), as a linear map."""

    @abstractmethod
    def is_strictly_convex(self, curvature: float, strictly: bool) -> bool:
        """Whether f + γφ is known to be strictly convex, where φ adds at least `curvature` = γσ.

        Args:
            curvature: γσ ≥ 0.
            strictly: whether γφ'' > `curvature` almost everywhere, so that f + curvature/2‖·‖² may be just convex.
        """

    @abstractmethod
    def double(self) -> BoundEnergy:
        """The same energy in float64, where it can be had (`affine`)."""

    @abstractmethod
    def select(self, index: Int[Tensor, " kept"]) -> BoundEnergy:
        """The same energy for some of the samples."""


class Energy(nn.Module):
    """A learnable objective f_θ(z; x), one number per sample. Subclass it and write `value`; nothing else is needed.

    The gradient and the Hessian-vector product come from autograd, also inside `torch.inference_mode()`. Every
    evaluation calls the module, `energy(z, x)`, so that its hooks run: pruning, weight normalization, one's own. The
    backward pass evaluates it again, with the parameters, buffers and tensor attributes of the forward pass, whatever
    the module holds by then; if one of them was changed in place, autograd raises its own error.

    A subclass that knows an upper bound of its curvature (the largest eigenvalue of ∇²f over C, for every x)
    overrides `curvature_bound`: MM then takes a fixed step; without it the step is found by backtracking,
    per sample.

    Args:
        features: d, the width of z. None: as wide as x.
        convex: state that f(·; x) is convex for every x and θ. It lets the accelerated solvers skip the
            precautions that keep them in MM's own basin. A wrong statement costs those guarantees.

    Attributes:
        in_features: n, the width that x has to have; None (the default): any.
        lifts_half: whether it binds half-precision parameters in float32; else they are refused.
    """

    in_features: int | None = None
    lifts_half: bool = False

    def __init__(self, features: int | None = None, *, convex: bool = False) -> None:
        super().__init__()
        if features is not None and features < 1:
            raise ValueError(f"features must be at least 1, got {features}")
        self.features = features
        self.convex = convex

    def value(self, z: Float[Tensor, "*batch d"], x: Tensor) -> Float[Tensor, "*batch"]:
        """f_θ(z; x), one number per sample. To be written by the subclass."""
        raise TypeError(f"{type(self).__name__} must define value(z, x): an Energy is its value")

    def forward(self, z: Float[Tensor, "*batch d"], x: Tensor) -> Float[Tensor, "*batch"]:
        """The same as `value`: what the solvers call, so that hooks run as they do on any other module."""
        return self.value(z, x)

    @property
    def symmetric(self) -> bool:
        """Whether there is an objective; only a quadratic energy without symmetry has none."""
        return True

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

    def gradient(self, z: Float[Tensor, "*batch d"], x: Tensor) -> Float[Tensor, "*batch d"]:
        """∇f_θ(z; x), differentiable again (in z and θ) where grad mode is on."""
        return self._value_and_gradient(z, x)[1]

    def hessian_product(
        self, z: Float[Tensor, "*batch d"], x: Tensor, v: Float[Tensor, "*batch d"]
    ) -> Float[Tensor, "*batch d"]:
        """∇²f_θ(z; x) v, by differentiating the gradient once more. Not differentiable again."""
        if transformed():
            hessian: Tensor = torch.func.vjp(lambda z: self.gradient(z, x), z)[1](v)[0]
            return hessian
        with torch.inference_mode(False), torch.enable_grad():
            leaf = _normal(z).detach().requires_grad_()
            gradient = self._value_and_gradient(leaf, _normal(x))[1]
            if not gradient.requires_grad:  # f is linear in z
                return torch.zeros_like(v)
            (product,) = torch.autograd.grad(gradient, leaf, _normal(v).detach(), allow_unused=True)
        return torch.zeros_like(v) if product is None else product.detach()

    def bind(self, x: Tensor) -> BoundEnergy:
        """This energy at the input x, (B, n), as the solvers see it."""
        return _BoundByAutograd(self, x)

    def _value_and_gradient(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        if transformed():
            gradient, value = torch.func.grad(self._total, has_aux=True)(z, x)
            return value, gradient
        differentiable = torch.is_grad_enabled() and self._needs_gradient(z, x)
        with torch.inference_mode(False), torch.enable_grad():
            point = _normal(z)
            if not (differentiable and point.requires_grad):
                point = point.detach().requires_grad_()
            value = self._checked(point, _normal(x))
            if not value.requires_grad:
                return value, torch.zeros_like(point)
            (gradient,) = torch.autograd.grad(value.sum(), point, create_graph=differentiable, allow_unused=True)
        return value, torch.zeros_like(point) if gradient is None else gradient

    def _checked(self, z: Tensor, x: Tensor) -> Tensor:
        value = self._called(z, x)
        if value.shape != z.shape[:-1]:
            raise ValueError(
                f"{type(self).__name__}.value must return one number per sample, shape {tuple(z.shape[:-1])}, "
                f"got {tuple(value.shape)}: sum over the features only"
            )
        return value

    def _total(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        value = self._checked(z, x)
        return value.sum(), value

    def _needs_gradient(self, z: Tensor, x: Tensor) -> bool:
        """Whether f(z; x) depends on anything that requires a gradient, known to the module or not."""
        if z.requires_grad or x.requires_grad or any(parameter.requires_grad for parameter in self.parameters()):
            return True
        return self._called(z, x).requires_grad

    def _called(self, z: Tensor, x: Tensor) -> Tensor:
        """`energy(z, x)`, hooks and all, but not what `energy.compile()` makes of it: it has one derivative only."""
        value: Tensor = self._call_impl(z, x)
        return value


class _BoundByAutograd(BoundEnergy):
    """A user's energy at a fixed input."""

    symmetric = True
    affine = False

    def __init__(
        self, energy: Energy, x: Tensor, curvature: Tensor | None = None, snapshot: Snapshot | None = None
    ) -> None:
        self.energy = energy
        self.x = x
        self.dtype = x.dtype
        self.snapshot = Snapshot.of(energy) if snapshot is None else snapshot
        if curvature is None:
            bound = energy.curvature_bound()
            if bound is not None:
                curvature = torch.as_tensor(bound, dtype=x.dtype, device=x.device).detach()
        self._curvature = curvature

    @property
    def curvature(self) -> Tensor | None:
        return self._curvature

    def evaluate(self, z: Tensor) -> Evaluation:
        with torch.no_grad():
            value, gradient = self.energy._value_and_gradient(z, self.x)
        gradient = gradient.detach()
        return Evaluation(value.detach(), gradient)

    def gradient(self, z: Tensor) -> Tensor:
        return self.energy.gradient(z, self.x)

    def value(self, z: Tensor) -> Tensor:
        return self.energy._called(z, self.x)

    def pack(self) -> Packed:
        kept = self.snapshot.unchanged()
        rows = (True, *(False for _ in kept.tensors))
        return Packed((self.x, *kept.tensors), rows, partial(_rebuild_bound, self.energy, self._curvature, kept.places))

    def value_at(self, z: Tensor) -> Callable[[], Tensor]:
        # At once: by the time that somebody asks, the module may hold other parameters.
        return partial(_identity, self.value(z))

    def again(self) -> AbstractContextManager[object]:
        return Again((self.x,), self.snapshot.unchanged())

    def hessian(self, z: Tensor) -> LinearOperator:
        return _HessianByAutograd(self.energy, self.x, z, self.snapshot)

    def is_strictly_convex(self, curvature: float, strictly: bool) -> bool:
        return self.energy.convex

    def double(self) -> BoundEnergy:
        raise TypeError("only a quadratic energy has a float64 twin")

    def select(self, index: Tensor) -> BoundEnergy:
        return _BoundByAutograd(self.energy, self.x[index], self._curvature, self.snapshot)


class _LaterBound(_BoundByAutograd):
    """The same with the tensors of its snapshot, whatever the module holds by then."""

    def evaluate(self, z: Tensor) -> Evaluation:
        with self.snapshot.restored():
            return super().evaluate(z)

    def gradient(self, z: Tensor) -> Tensor:
        with self.snapshot.restored():
            return super().gradient(z)

    def value(self, z: Tensor) -> Tensor:
        with self.snapshot.restored():
            return super().value(z)

    def hessian(self, z: Tensor) -> LinearOperator:
        return _LaterHessian(self.energy, self.x, z, self.snapshot)


def _rebuild_bound(
    energy: Energy, curvature: Tensor | None, places: Sequence[Place], x: Tensor, *tensors: Tensor
) -> BoundEnergy:
    return _LaterBound(energy, x, curvature, Snapshot(places, tensors))


class _HessianByAutograd(LinearOperator):
    """The Hessian of a user's energy, whose tensors were those of `snapshot` when it was bound."""

    symmetric = True

    def __init__(self, energy: Energy, x: Tensor, z: Tensor, snapshot: Snapshot) -> None:
        self.energy = energy
        self.x = x
        self.z = z
        self.snapshot = snapshot

    def product(self, v: Tensor, adjoint: bool = False) -> Tensor:
        return self.energy.hessian_product(self.z, self.x, v.to(self.z.dtype)).to(v.dtype)

    @property
    def size(self) -> int:
        return self.z.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        return self.z.dtype

    def at(self, z: Tensor) -> LinearOperator:
        return type(self)(self.energy, self.x, z, self.snapshot)

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        kept = self.snapshot.unchanged()
        tensors = tuple(_normal(tensor).detach() for tensor in (self.x, self.z, *kept.tensors))
        return tensors, partial(_rebuild, self.energy, kept.places)

    def select(self, index: Tensor) -> LinearOperator:
        return type(self)(self.energy, self.x[index], self.z[index], self.snapshot)


class _LaterHessian(_HessianByAutograd):
    """The same in the backward pass, with the tensors of the forward pass."""

    def product(self, v: Tensor, adjoint: bool = False) -> Tensor:
        with self.snapshot.restored():
            return super().product(v, adjoint)


def _rebuild(energy: Energy, places: Sequence[Place], x: Tensor, z: Tensor, *tensors: Tensor) -> LinearOperator:
    return _LaterHessian(energy, x, z, Snapshot(places, tensors))


def _identity(value: Tensor) -> Tensor:
    return value


def _normal(tensor: Tensor) -> Tensor:
    """A copy that autograd accepts, if the tensor was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor
