"""A user's energy at a fixed input: its derivatives by autograd, also later, when its module has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.energy.contract import BoundEnergy, Evaluation, Packed
from implicit_bregman.energy.inputs import Inputs, floating_tensors, map_tensors, normal, pack, tensors_of
from implicit_bregman.energy.snapshot import Again, Place, Snapshot, compute_cached
from implicit_bregman.operators import LinearOperator, Rebuild
from implicit_bregman.transforms import transformed

if TYPE_CHECKING:
    from implicit_bregman.energy.base import Energy

Derivative = Callable[[Tensor, bool], Tensor]
"""(v, adjoint) ↦ the derivative of ∇f at one batch of states, or its transpose, times v; states as the energy has them.
"""


class BoundByAutograd(BoundEnergy):
    """A user's energy, or field, at a fixed input, for states as rows."""

    affine = False

    def __init__(
        self, energy: Energy, x: Inputs, curvature: Tensor | None = None, snapshot: Snapshot | None = None
    ) -> None:
        self.energy = energy
        self.symmetric = energy.symmetric
        self.x = x
        if snapshot is None:
            compute_cached(energy)
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
        return Evaluation(None if value is None else value.detach(), _rows(gradient.detach()))

    def gradient(self, z: Tensor) -> Tensor:
        return _rows(self.energy.gradient(_states(self.energy, z), self.x))

    def value(self, z: Tensor) -> Tensor:
        if not self.symmetric:
            raise TypeError(f"{type(self.energy).__name__} has no potential, and so no objective")
        return self.energy._called(_states(self.energy, z), self.x)

    def pack(self) -> Packed:
        kept, (inputs, rebuild) = self.snapshot.unchanged(), pack(self.x)
        rows = (*(True for _ in inputs), *(False for _ in kept.tensors))
        made = partial(_rebuild_bound, self.energy, self._curvature, kept.places, rebuild, len(inputs))
        return Packed((*inputs, *kept.tensors), rows, made)

    def value_at(self, z: Tensor) -> Callable[[], Tensor]:
        if not self.symmetric:
            return partial(self.value, z)  # (which says that there is none)
        # At once: by the time that somebody asks, the module may hold other parameters.
        return partial(_identity, self.value(z))

    def again(self) -> AbstractContextManager[object]:
        return Again(tensors_of(self.x), self.snapshot.unchanged())

    def hessian(self, z: Tensor) -> LinearOperator:
        return _HessianByAutograd(self.energy, self.x, z, self.snapshot)

    def is_strictly_convex(self, curvature: float, strictly: bool) -> bool:
        # (a monotone field has one equilibrium where γφ is strictly convex; an energy is declared to have one anyway)
        return self.energy.convex and (self.symmetric or curvature > 0 or strictly)

    def double(self) -> BoundEnergy:
        raise TypeError("only a quadratic energy has a float64 twin")

    def select(self, index: Tensor) -> BoundEnergy:
        return BoundByAutograd(self.energy, _selected(self.x, index), self._curvature, self.snapshot)


class _LaterBound(BoundByAutograd):
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
    energy: Energy,
    curvature: Tensor | None,
    places: Sequence[Place],
    rebuild_inputs: Callable[..., Inputs],
    count: int,
    *tensors: Tensor,
) -> BoundEnergy:
    return _LaterBound(energy, rebuild_inputs(*tensors[:count]), curvature, Snapshot(places, tensors[count:]))


class _HessianByAutograd(LinearOperator):
    """The Hessian of a user's energy, or the Jacobian of a field, whose tensors were those of `snapshot` when bound."""

    def __init__(self, energy: Energy, x: Inputs, z: Tensor, snapshot: Snapshot) -> None:
        self.energy = energy
        self.symmetric = energy.symmetric
        self.x = x
        self.z = z
        self.snapshot = snapshot

    def product(self, v: Tensor, adjoint: bool = False) -> Tensor:
        # (inside transforms z may be another one, whose products are another graph)
        derivative = self._derivative() if transformed() else self._kept
        return _rows(derivative(_states(self.energy, v.to(self.z.dtype)), adjoint)).to(v.dtype)

    def _derivative(self) -> Derivative:
        return self.energy._derivative(_states(self.energy, self.z), self.x)

    @cached_property
    def _kept(self) -> Derivative:
        return self._derivative()

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
        tensors = tuple(normal(tensor).detach() for tensor in (self.z, *inputs, *kept.tensors))
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
