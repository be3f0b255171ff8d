"""What an adjoint declares, and that `find_critical_point` and `BregmanDEQ` ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.adjoints import AdjointReport
from implicit_bregman.energy import BoundEnergy
from implicit_bregman.objective import Objective
from implicit_bregman.solvers import MM, Auto, Broyden, Newton, Outcome, Solver

DECLARED = {
    "implicit": (Auto(), True),
    "phantom": (Auto(), True),
    "one_step": (Auto(), True),
    "shine": (Broyden(memory=100, exact=False, max_iter=1000), True),
    "unrolled": (MM(), False),
}


@pytest.mark.parametrize("name", DECLARED)
def test_the_table(name: str) -> None:
    adjoint = ib.adjoints.adjoint_named(name)
    assert (adjoint.solver_for("auto"), adjoint.follows_limit) == DECLARED[name]
    given = Newton(tol=1e-3)
    assert adjoint.solver_for(given) is given
    assert adjoint.solver_for("anderson") == ib.solvers.Anderson()
    with pytest.raises(ValueError, match="solver must be one of"):
        adjoint.solver_for("gauss")
    with pytest.raises(TypeError, match="solver must be a name or an instance"):
        adjoint.solver_for(None)


def test_under_shine_broyden_is_the_one_that_goes_with_it() -> None:
    shine = ib.adjoints.Shine()
    assert shine.solver_for("broyden") == shine.solver_for("auto")
    assert ib.adjoints.Implicit().solver_for("broyden") == Broyden()


@dataclass(frozen=True)
class Declared(ib.adjoints.Adjoint):
    """An adjoint from outside the package, which knows nothing of it."""

    default_solver: ClassVar[str | Solver] = MM(max_iter=3, on_failure="ignore")
    follows_limit: ClassVar[bool] = False

    def accepts(self, solver: Solver, energy: BoundEnergy) -> None:
        if isinstance(solver, Broyden):
            raise ValueError("Declared does not go with Broyden: use MM")
        if energy.dtype == torch.float64:
            raise ValueError("Declared needs float32: call .float()")

    def attach(self, objective: Objective, outcome: Outcome, dual: Tensor) -> tuple[Tensor, AdjointReport]:
        return outcome.point.value, AdjointReport()


def test_an_adjoint_from_outside_is_asked() -> None:
    energy, x = ib.QuadraticEnergy(3), torch.randn(2, 3)
    found = ib.find_critical_point(energy, "tanh", x, adjoint=Declared())
    assert int(found.iterations.max()) <= 3
    with pytest.raises(ValueError, match="Declared does not go with Broyden"):
        ib.find_critical_point(energy, "tanh", x, adjoint=Declared(), solver="broyden")
    with pytest.raises(ValueError, match="Declared needs float32"):
        ib.find_critical_point(energy.double(), "tanh", x.double(), adjoint=Declared())


def test_what_follows_the_path_may_start_from_x_and_clamp() -> None:
    """Neither of them is refused as it is for an adjoint that follows the limit."""
    for settings in ({"injection": "initial"}, {"geometry": "sin", "weight": "low_rank", "rank": 2}):
        layer = ib.BregmanDEQ(3, 3, adjoint=Declared(), **settings)
        assert layer(torch.zeros(2, 3)).shape == (2, 3)
        with pytest.raises(ValueError, match=r"makes h constant|is not Legendre"):
            ib.BregmanDEQ(3, 3, **settings)


def test_unrolled_accepts_what_declares_to_be_mm() -> None:
    class Named(MM):
        """A subclass."""

    layer = ib.BregmanDEQ(3, 3, adjoint=ib.adjoints.Unrolled(steps=2), solver=Named())
    assert layer(torch.zeros(2, 3)).shape == (2, 3)
    layer.solver = "newton"
    with pytest.raises(ValueError, match='adjoint Unrolled is MM itself: use solver="auto" or MM, got Newton'):
        layer(torch.zeros(2, 3))


def test_only_broyden_leaves_an_estimate() -> None:
    objective = Objective(ib.QuadraticEnergy(3).bind(torch.zeros(2, 3)), ib.geometry("tanh"), 0.0)
    assert [solver.estimates_inverse for solver in (Broyden(), MM(), Newton())] == [True, False, False]
    with pytest.raises(TypeError, match="MM has no estimate of the inverse Jacobian: use Broyden"):
        MM().solve_with_inverse(objective, torch.zeros(2, 3))


def test_an_energy_declares_its_form() -> None:
    dense = ib.QuadraticEnergy(3).bind(torch.zeros(2, 3))
    assert dense.factored is dense
    diagonal = ib.QuadraticEnergy.from_operator(ib.operators.Diagonal(torch.ones(3)))
    low_rank = ib.QuadraticEnergy(3, weight="low_rank", rank=2)
    for energy in (diagonal, low_rank):
        assert energy.bind(torch.zeros(2, 3)).factored is None
    assert (low_rank.bind(torch.zeros(2, 3)).own is None, dense.own) == (False, None)
