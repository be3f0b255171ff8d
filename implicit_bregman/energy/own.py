"""What an energy brings along where the usual methods do not fit its problem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from implicit_bregman.legendre import MirrorMap

if TYPE_CHECKING:  # (names of what is passed through: nothing here depends on it)
    from implicit_bregman.backward import AdjointReport
    from implicit_bregman.objective import Objective
    from implicit_bregman.solvers.base import Outcome, Solver


class OwnMethods(ABC):
    """How an energy's problem is solved and differentiated, where its critical points are not isolated.

    Solvers and adjoints ask the energy for them (`BoundEnergy.own`), not for its class.

    Attributes:
        name: what calls for these methods, as the user writes it, for messages.
    """

    name: str

    @abstractmethod
    def check(self, geometry: MirrorMap, regularization: float) -> None:
        """Refuse a geometry for which the limit of MM is not what these methods compute.

        Raises:
            ValueError: naming the remedies.
        """

    @abstractmethod
    def needs_start(self, regularization: float) -> bool:
        """Whether the derivative cannot be told from the limit alone, but depends on the start."""

    @abstractmethod
    def solve(self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver) -> Outcome:
        """The limit of MM from y⁰ = `dual`, within the settings of `solver`."""

    @abstractmethod
    def judge(self, objective: Objective, outcome: Outcome, tol: float) -> Outcome:
        """The outcome of any solver, with the statuses that this problem has."""

    @abstractmethod
    def attach(
        self,
        objective: Objective,
        outcome: Outcome,
        dual: Float[Tensor, "batch d"],
        method: str,
        on_failure: str,
    ) -> tuple[Float[Tensor, "batch d"], AdjointReport]:
        """The value of `outcome`, found from y⁰ = `dual`, with its implicit gradient.

        Args:
            objective: F.
            outcome: of any solver.
            dual: y⁰.
            method: see `Implicit`.
            on_failure: see `Implicit`.

        Raises:
            ValueError: for a `method` that has no meaning here.
        """

    @abstractmethod
    def record(self, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]) -> tuple[Tensor, ...]:
        """What of an outcome `replay` needs: tensors with a row for each sample."""

    @abstractmethod
    def replay(
        self, objective: Objective, record: tuple[Tensor, ...], dual: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        """The value of a recorded outcome as a function of an energy and a start that transforms follow."""
