"""The projection's methods, as the energy hands them to solvers and adjoints."""

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
from implicit_bregman.projection.adjoint import attach_projection, record_projection, softness_of
from implicit_bregman.projection.differentiable import follow
from implicit_bregman.projection.solve import judge, project
from implicit_bregman.solvers.base import Outcome, Solver

if TYPE_CHECKING:
    from implicit_bregman.projection.energy import BoundEquations, BoundLowRank


@dataclass(frozen=True)
class ProjectionMethods(OwnMethods):
    """How a projection is solved and differentiated: in its r multipliers.

    Attributes:
        energy: f.
    """

    energy: BoundEquations

    def check(self, geometry: MirrorMap, regularization: float) -> None:
        check_projection(geometry, regularization)

    def needs_start(self, regularization: float) -> bool:
        return regularization == 0

    def solve(self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver) -> Outcome:
        return project(self.energy, objective, dual, solver)

    def judge(self, objective: Objective, outcome: Outcome, tol: float) -> Outcome:
        return judge(self.energy, objective, outcome, tol)

    def replay(
        self, objective: Objective, record: tuple[Tensor, ...], dual: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        energy, gamma = self.energy, objective.regularization
        value, multiplier, soft, known = record
        start = torch.zeros_like(dual) if gamma else dual
        tensors, rebuild = energy.equations.pack()
        of = energy.target, start, softness_of(energy, gamma), *tensors
        return follow(objective.geometry, rebuild, (value, multiplier, soft, known), *of)


@dataclass(frozen=True)
class LowRankMethods(ProjectionMethods):
    """The same for V a matrix, in coordinates of its range."""

    energy: BoundLowRank
    name = 'weight="low_rank"'

    def attach(
        self,
        objective: Objective,
        outcome: Outcome,
        dual: Float[Tensor, "batch d"],
        method: str,
        on_failure: str,
    ) -> tuple[Float[Tensor, "batch d"], AdjointReport]:
        return attach_projection(self.energy, objective, outcome, dual, method, on_failure)

    def record(self, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]) -> tuple[Tensor, ...]:
        return record_projection(self.energy, objective, outcome, dual)


def check_projection(geometry: MirrorMap, regularization: float) -> None:
    """Refuse a geometry for which MM's limit is no Bregman projection, or y = 0 is no dual to start from.

    Raises:
        ValueError: naming the remedies.
    """
    if geometry.coupling is not None:
        raise ValueError(
            f"{geometry.name} couples its coordinates, which a Bregman projection does not know of: use a geometry "
            "of single coordinates, such as exp, and give the sums as further constraints"
        )
    if regularization == 0 and not geometry.is_legendre:
        raise ValueError(
            f'{geometry.name} is not Legendre: its dual iterates are clamped, so that with weight="low_rank" and '
            "regularization=0 the limit of MM is not the Bregman projection and has no gradient here: use another "
            "geometry (isru and tanh have the same domain), regularization > 0, or adjoint=adjoints.Unrolled(steps=...)"
        )
    if regularization and not geometry.has_every_dual:
        raise ValueError(
            f'{geometry.name} has no ρ(0), from which weight="low_rank" starts with regularization > 0: use '
            "regularization=0, or another geometry (exp, softplus and bent have the same domain)"
        )
