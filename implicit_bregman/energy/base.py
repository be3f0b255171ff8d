"""What is minimised: f_θ(z; x), its gradient and its Hessian-vector product."""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from implicit_bregman.energy.inputs import Inputs, floating_tensors, map_tensors, pack, tensors_of
from implicit_bregman.energy.snapshot import Again, Place, Snapshot
from implicit_bregman.operators import Dense, LinearOperator, Rebuild
from implicit_bregman.settings import is_number

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

    `features` and x say what the batch is. For a state that is a vector (`features` is an int or None) and an x that is
    one tensor (*, n), the batch is all of x's dimensions but the last, as for `nn.Linear`. Else it is the first
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

    def __init__(self, features: int | Sequence[int] | None = None, *, convex: bool = False) -> None:
        super().__init__()
        self.features = _checked_features(features)
        self.convex = convex

    @property
    def input_width(self) -> int | None:
        """How wide an x that is one tensor has to be; None: x may be anything that `value` takes."""
        return None

    def value(self, z: Float[Tensor, "*batch *features"], x: Inputs) -> Float[Tensor, "*batch"]:
        """f_θ(z; x), one number per sample. To be written by the subclass."""
        raise TypeError(f"{type(self).__name__} must define value(z, x): an Energy is its value")

    def forward(self, z: Float[Tensor, "*batch *features"], x: Inputs) -> Float[Tensor, "*batch"]:
        """The same as `value`: what the solvers call, so that hooks run as they do on any other module."""
        return self.value(z, x)

    @property
    def symmetric(self) -> bool:
        """Whether there is an objective; only a "free" quadratic energy has none."""
        return True

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
        with torch.inference_mode(False), torch.enable_grad():
            leaf = _normal(z).detach().requires_grad_()
            gradient = self._value_and_gradient(leaf, map_tensors(_normal, x))[1]
            if not gradient.requires_grad:  # f is linear in z
                return torch.zeros_like(v)
            (product,) = torch.autograd.grad(gradient, leaf, _normal(v).detach(), allow_unused=True)
        return torch.zeros_like(v) if product is None else product.detach()

    def bind(self, x: Inputs) -> BoundEnergy:
        """This energy at the input x, with B samples in front, as the solvers see it."""
        return _BoundByAutograd(self, x)

    def _value_and_gradient(self, z: Tensor, x: Inputs) -> tuple[Tensor, Tensor]:
        differentiable = torch.is_grad_enabled() and self._needs_gradient(z, x)
        with torch.inference_mode(False), torch.enable_grad():
            point = _normal(z)
            if not (differentiable and point.requires_grad):
                point = point.detach().requires_grad_()
            value = self._called(point, map_tensors(_normal, x))
            self._check_value(value, z)
            if not value.requires_grad:
                return value, torch.zeros_like(point)
            (gradient,) = torch.autograd.grad(value.sum(), point, create_graph=differentiable, allow_unused=True)
        return value, torch.zeros_like(point) if gradient is None else gradient

    def _check_value(self, value: Tensor, z: Tensor) -> None:
        """Refuse what is not one number per sample."""
        event = len(self.features) if isinstance(self.features, tuple) else 1
        wanted = z.shape[: z.dim() - event]
        if value.shape == wanted:
            return
        only = f"the features {self.features}" if isinstance(self.features, tuple) else "the features"
        raise ValueError(
            f"{type(self).__name__}.value must return one number per sample, shape {tuple(wanted)}, got "
            f"{tuple(value.shape)}: sum over {only} only (here z has the shape {tuple(z.shape)}; states that are not "
            "vectors, such as images, are declared by features=(C, H, W))"
        )

    def _needs_gradient(self, z: Tensor, x: Inputs) -> bool:
        """Whether f(z; x) depends on anything that requires a gradient, known to the module or not."""
        known = chain((z,), tensors_of(x), self.parameters())
        return any(tensor.requires_grad for tensor in known) or self._called(z, x).requires_grad

    def _called(self, z: Tensor, x: Inputs) -> Tensor:
        """`energy(z, x)`, hooks and all, but not what `energy.compile()` makes of it: it has one derivative only."""
        value: Tensor = self._call_impl(z, x)
        return value


class _BoundByAutograd(BoundEnergy):
    """A user's energy at a fixed input, for states as rows."""

    symmetric = True
    affine = False

    def __init__(
        self, energy: Energy, x: Inputs, curvature: Tensor | None = None, snapshot: Snapshot | None = None
    ) -> None:
        self.energy = energy
        self.x = x
        self.snapshot = Snapshot.of(energy) if snapshot is None else snapshot
        like = next(floating_tensors(energy, x), None)
        self.dtype = torch.get_default_dtype() if like is None else like.dtype
        if curvature is None:
            bound = energy.curvature_bound()
            if bound is not None:
                device = tensors_of(x)[0].device
                curvature = torch.as_tensor(bound, dtype=self.dtype, device=device).detach()
        self._curvature = curvature

    @property
    def curvature(self) -> Tensor | None:
        return self._curvature

    def evaluate(self, z: Tensor) -> Evaluation:
        with torch.no_grad():
            value, gradient = self.energy._value_and_gradient(_states(self.energy, z), self.x)
        return Evaluation(value.detach(), _rows(gradient.detach()))

    def gradient(self, z: Tensor) -> Tensor:
        return _rows(self.energy.gradient(_states(self.energy, z), self.x))

    def value_at(self, z: Tensor) -> Callable[[], Tensor]:
        # At once: by the time that somebody asks, the module may hold other parameters.
        return partial(_identity, self.energy._called(_states(self.energy, z), self.x))

    def again(self) -> AbstractContextManager[object]:
        return Again(tensors_of(self.x), self.snapshot.unchanged())

    def hessian(self, z: Tensor) -> LinearOperator:
        return _HessianByAutograd(self.energy, self.x, z, self.snapshot)

    def is_strictly_convex(self, curvature: float, strictly: bool) -> bool:
        return self.energy.convex

    def double(self) -> BoundEnergy:
        raise TypeError("only a quadratic energy has a float64 twin")

    def select(self, index: Tensor) -> BoundEnergy:
        return _BoundByAutograd(self.energy, _selected(self.x, index), self._curvature, self.snapshot)


class _HessianByAutograd(LinearOperator):
    """The Hessian of a user's energy, whose tensors were those of `snapshot` when it was bound."""

    symmetric = True

    def __init__(self, energy: Energy, x: Inputs, z: Tensor, snapshot: Snapshot) -> None:
        self.energy = energy
        self.x = x
        self.z = z
        self.snapshot = snapshot

    def product(self, v: Tensor, adjoint: bool = False) -> Tensor:
        z, direction = (_states(self.energy, rows) for rows in (self.z, v.to(self.z.dtype)))
        return _rows(self.energy.hessian_product(z, self.x, direction)).to(v.dtype)

    @property
    def size(self) -> int:
        return self.z.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        return self.z.dtype

    def at(self, z: Tensor) -> LinearOperator:
        return type(self)(self.energy, self.x, z, self.snapshot)

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        kept, (inputs, rebuild) = self.snapshot.unchanged(), pack(self.x)
        tensors = tuple(_normal(tensor).detach() for tensor in (self.z, *inputs, *kept.tensors))
        return tensors, partial(_rebuild, self.energy, kept.places, rebuild, len(inputs))

    def select(self, index: Tensor) -> LinearOperator:
        return type(self)(self.energy, _selected(self.x, index), self.z[index], self.snapshot)


class _LaterHessian(_HessianByAutograd):
    """The same in the backward pass, with the tensors of the forward pass."""

    def product(self, v: Tensor, adjoint: bool = False) -> Tensor:
        with self.snapshot.restored():
            return super().product(v, adjoint)


def _rebuild(
    energy: Energy,
    places: Sequence[Place],
    rebuild_inputs: Callable[..., Inputs],
    count: int,
    z: Tensor,
    *tensors: Tensor,
) -> LinearOperator:
    x = rebuild_inputs(*tensors[:count])
    return _LaterHessian(energy, x, z, Snapshot(places, tensors[count:]))


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


def _states(energy: Energy, rows: Float[Tensor, "B d"]) -> Tensor:
    """Rows in the shape in which the energy takes states."""
    event = energy.features
    return rows.reshape(len(rows), *event) if isinstance(event, tuple) else rows


def _rows(states: Tensor) -> Float[Tensor, "B d"]:
    return states.flatten(1) if states.dim() > 2 else states


def _selected(x: Inputs, index: Tensor) -> Inputs:
    return map_tensors(lambda tensor: tensor[index], x)


def _identity(value: Tensor) -> Tensor:
    return value


def _normal(tensor: Tensor) -> Tensor:
    """A copy that autograd accepts, if the tensor was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor
