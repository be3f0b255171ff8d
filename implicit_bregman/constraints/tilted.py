"""An energy with another linear term: f(z; x) − ⟨c, z⟩, for many c."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.bound import BoundAffine
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.energy.inputs import Inputs


class TiltedQuadratic(Energy):
    """½⟨z, Hz⟩ − ⟨c₀ + c, z⟩ of an input (c,), with all that has been computed of H.

    Args:
        bound: the energy at its own input, of which c₀ is the offset.
        event: the shape of a state.
    """

    def __init__(self, bound: BoundAffine, event: tuple[int, ...]) -> None:
        super().__init__(event)
        self._bound = bound

    @property
    def symmetric(self) -> bool:
        return self._bound.symmetric

    def bind(self, x: Any) -> BoundEnergy:
        return self._bound.remake()(self._bound.operator, self._bound.offset + x[0])


class TiltedOwn(Energy):
    """f(z; x) − ⟨c, z⟩ of an input (c, x).

    Args:
        energy: f, with a `value`.
        event: the shape of a state.
    """

    def __init__(self, energy: Energy, event: tuple[int, ...]) -> None:
        super().__init__(event, convex=energy.convex)
        self.energy = energy

    def value(self, z: Float[Tensor, "*batch *features"], x: Any) -> Float[Tensor, "*batch"]:
        tilt, own = x
        flat = isinstance(self.energy.features, (int, type(None)))
        of = z.flatten(1) if flat else z
        value: Tensor = self.energy(of, own)
        return value - torch.linalg.vecdot(z.flatten(1), tilt)


def tilted(energy: Energy, bound: BoundEnergy, x: Inputs, event: tuple[int, ...]) -> tuple[Energy, tuple[Any, ...]]:
    """The energy that takes a further linear term c, and what comes behind c in its input.

    Raises:
        TypeError: for an energy without either of both forms.
    """
    if bound.affine and bound.own is None:
        return TiltedQuadratic(cast(BoundAffine, bound), event), ()
    if bound.own is not None or not energy.symmetric:
        raise TypeError(
            f"{type(energy).__name__} has no critical points under constraints: use a QuadraticEnergy that is not "
            "low rank, or an Energy with a value"
        )
    return TiltedOwn(energy, event), (x,)
