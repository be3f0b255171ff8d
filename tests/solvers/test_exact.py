"""The exact solve on its own: it has to refuse what is wrong by little, and the loop what is proved for elsewhere."""

from typing import Any

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.objective import Objective, Point
from implicit_bregman.solvers.exact.active_set import point_with
from implicit_bregman.solvers.loop import run
from implicit_bregman.status import Status


def objective_of(weight: Tensor, offset: Tensor, geometry: str = "tanh") -> Objective:
    phi = ib.geometry(geometry)
    energy = ib.QuadraticEnergy.from_matrices(weight).bind(offset)
    return Objective(energy, phi, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("violation", [1e-2, 1e-4, 1e-6, 1e-8])
def test_an_active_set_that_is_wrong_by_little_is_refused(violation: float, dtype: torch.dtype) -> None:
    """W = −I, c just inside the bound: with z on the bound only the multiplier's sign is wrong, by `violation`."""
    weight, offset = -torch.eye(2).double(), torch.tensor([[1 - violation, 0.2]], dtype=torch.float64)
    objective = objective_of(weight, offset)
    objective.energy.dtype = dtype
    lower, upper = torch.tensor([[False, False]]), torch.tensor([[True, False]])
    assert not bool(point_with(objective, objective.energy.double(), lower, upper, 1e-10).accepted)
    right = point_with(objective, objective.energy.double(), lower, lower, 1e-10)
    assert bool(right.accepted)
    assert torch.allclose(right.unrounded, offset, rtol=0, atol=1e-14)


@pytest.mark.parametrize("violation", [1e-2, 1e-4, 1e-6, 1e-8])
def test_a_free_coordinate_that_leaves_the_domain_is_refused(violation: float) -> None:
    offset = torch.tensor([[1 + violation, 0.2]], dtype=torch.float64)
    objective = objective_of(-torch.eye(2).double(), offset)
    nowhere = torch.zeros(1, 2, dtype=torch.bool)
    assert not bool(point_with(objective, objective.energy.double(), nowhere, nowhere, 1e-10).accepted)


class Tempter:
    """An accelerator that always proposes one and the same point, wherever it is."""

    class Memory:
        def select(self, index: Tensor) -> "Tempter.Memory":
            return self

    def __init__(self, dual: Tensor) -> None:
        self.dual = dual
        self.asked = 0

    def start(self, objective: Objective, point: Point) -> Any:
        return Tempter.Memory()

    def propose(self, objective: Objective, memory: Any, point: Point, fresh: Tensor) -> tuple[Any, Tensor]:
        self.asked += int((~fresh).sum())
        return memory, self.dual.expand_as(point.dual)


def test_a_lower_minimum_elsewhere_does_not_tempt() -> None:
    """W = ½, c = 0.1 on [−1, 1]: from z⁰ < −0.2 MM goes to −1, though F is lower at 1, where the proposals point."""
    objective = objective_of(torch.tensor([[0.5]]).double(), torch.tensor([[0.1]]).double())
    tempter = Tempter(torch.tensor([[4.0]]).double())
    start = torch.atanh(torch.tensor([[-0.5]]).double())
    outcome = run(ib.solvers.Anderson(exact=False, max_iter=500), objective, start, tempter)
    assert tempter.asked > 0  # MM's limit was certain, and proposals were listened to
    assert int(outcome.status[0]) == Status.CONVERGED
    assert float(outcome.point.value[0, 0]) == pytest.approx(-1.0, abs=1e-9)
