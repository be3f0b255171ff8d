"""The projection's methods for V a linear map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.backward import AdjointReport
from implicit_bregman.energy.own import OwnMethods
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.objective import Objective
from implicit_bregman.projection.adjoint import softness_of
from implicit_bregman.projection.map_adjoint import attach_map, record_map
from implicit_bregman.projection.map_differentiable import follow_map
from implicit_bregman.projection.methods import check_projection
from implicit_bregman.projection.solve import judge, project
from implicit_bregman.solvers.base import Outcome, Solver

if TYPE_CHECKING:
    from implicit_bregman.projection.constraints import BoundConstraints


@dataclass(frozen=True)
class MapMethods(OwnMethods):
    """How a projection with structured equations is solved and differentiated: in its r multipliers.

    Attributes:
        energy: f.
    """

    energy: BoundConstraints
    name = "V an operator"

    def check(self, geometry: MirrorMap, regularization: float) -> None:
        check_projection(geometry, regularization)

    def needs_start(self, regularization: float) -> bool:
        return regularization == 0

    def solve(self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver) -> Outcome:
        return project(self.energy, objective, dual, solver)

    def judge(self, objective: Objective, outcome: Outcome, tol: float) -> Outcome:
        return judge(self.energy, objective, outcome, tol)

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

    def replay(
        self, objective: Objective, record: tuple[Tensor, ...], dual: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        energy, gamma = self.energy, objective.regularization
        value, multiplier, soft, known = record
        start = torch.zeros_like(dual) if gamma else dual
        tensors, rebuild = energy.equations.pack()
        of = energy.target, start, softness_of(energy, gamma), *tensors
        return follow_map(objective.geometry, rebuild, (value, multiplier, soft, known), *of)
