"""What cells of whole layers have in common: z = h(x; θ) by `CriticalPoint`, differentiated for θ and for x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.energy.base import Energy
from implicit_bregman.experiments.benchmark.prepared import Prepared, Value
from implicit_bregman.legendre import MirrorMap

Model = TypeVar("Model", bound=Energy)


@dataclass(frozen=True, eq=False)
class PreparedLayer(Prepared, Generic[Model]):
    """A cell of a layer. Its parameters are x and those of the energy, or field.

    Attributes:
        energy: f, or the field.
        geometry: φ.
        regularization: γ.
    """

    energy: Model
    geometry: MirrorMap
    regularization: float

    @property
    def x(self) -> Float[Tensor, "batch *input"]:
        """x, with gradient."""
        return self.parameters[0]

    def ours(self, tol: float | None = None) -> Value:
        solver = "auto" if tol is None else ib.solvers.Auto(tol=tol)
        return layer_value(self, self.energy, solver, ib.adjoints.Implicit(tol=tol))


def layer_value(
    prepared: PreparedLayer[Model], energy: Energy, solver: str | ib.solvers.Solver, adjoint: ib.adjoints.Adjoint
) -> Value:
    """z of the cell's x by a layer of this library."""
    layer = ib.CriticalPoint(energy, prepared.geometry, prepared.regularization, solver, adjoint)
    return lambda: layer(prepared.x)
