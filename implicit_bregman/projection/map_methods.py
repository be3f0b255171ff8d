"""The projection's methods for V a linear map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from implicit_bregman.backward import AdjointReport
from implicit_bregman.objective import Objective
from implicit_bregman.projection.map_adjoint import attach_map, record_map
from implicit_bregman.projection.methods import ProjectionMethods
from implicit_bregman.solvers.base import Outcome

if TYPE_CHECKING:
    from implicit_bregman.projection.constraints import BoundConstraints


@dataclass(frozen=True)
class MapMethods(ProjectionMethods):
    """How a projection with structured equations is solved and differentiated."""

    energy: BoundConstraints
    name = "V an operator"

    def attach(
        self,
        objective: Objective,
        outcome: Outcome,
        dual: Float[Tensor, "batch d"],
        method: str,
        on_failure: str,
    ) -> tuple[Float[Tensor, "batch d"], AdjointReport]:
        return attach_map(self.energy, objective, outcome, dual, method, on_failure)

    def record(self, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]) -> tuple[Tensor, ...]:
        return record_map(self.energy, objective, outcome, dual)
