"""Plain majorization-minimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from implicit_bregman.objective import Objective
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.loop import run


@dataclass(frozen=True)
class MM(Solver):
    """y⁺ = (y − τ∇f(ρ(y)))/(1 + τγ), repeated: the paper's algorithm (Definition 2.2), whose limit defines h.

    Its settings are those of every solver: see `Solver`.
    """

    is_mm: ClassVar[bool] = True

    def solve(self, objective: Objective, dual: Float[Tensor, "batch d"]) -> Outcome:
        """Iterate from `dual` until each sample has stopped."""
        return run(self, objective, dual, accelerator=None)
