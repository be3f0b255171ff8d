"""Each sample on its own: when it stops, what it costs, and that its batch-mates do not matter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.energy.bound import BoundQuadratic
from implicit_bregman.experiments.reference.problems import Problem, make_problem
from implicit_bregman.objective import Objective
from implicit_bregman.operators import Dense
from implicit_bregman.operators.free import FreeSolution
from tests.solvers.helpers import ALL, ITERATIVE, exact_or_not, solve, solver_of, some

CASES = {
    "interior": {},
    "active": {"active": 0.3},
    "gamma": {"regularization": 0.3},
    "stiff": {"active": 0.2, "stiffness": 4.0},
    "general": {"kind": "general", "active": 0.25},
    "several": {"kind": "indefinite", "active": 0.25, "regularization": 0.1, "condition": 5.0},
    "sigma 0": {"geometry": "exp"},
}


def case(name: str, batch: int) -> Problem:
    return make_problem(**{"dim": 10, "condition": 10.0, "seed": 3, "batch": batch, **CASES[name]})


# Batch-mates ----------------------------------------------------------------------------------------------------------


@exact_or_not
@pytest.mark.parametrize("solver", ITERATIVE)
@pytest.mark.parametrize("name", CASES)
def test_results_do_not_depend_on_batch_mates(name: str, solver: str, exactly: bool) -> None:
    problem = case(name, 5)
    settings = {"exact": exactly, "max_iter": 2500}
    together = solve(problem, solver, **settings)
    assert bool(together.converged.all())
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = solve(some(problem, order), solver, **settings)
    alone = [solve(some(problem, [i]), solver, **settings) for i in range(5)]
    one_by_one = torch.cat([found.value for found in alone])
    for other in (shuffled.value[order.argsort()], one_by_one):
        assert float((together.value - other).abs().max()) <= 1e-8
    # Rounding differs with the shape of the batch, and may move the last step, but no more.
    iterations = torch.cat([found.iterations for found in alone])
    assert bool(((together.iterations - iterations).abs() <= 3 + 0.05 * iterations).all())
    statuses = torch.cat([found.status for found in alone])
    assert torch.equal(together.status, statuses)


def test_an_easy_sample_costs_the_same_beside_a_hard_one() -> None:
    energy = ib.QuadraticEnergy.from_matrices(-torch.diag(torch.tensor([1.0, 0.01]).double()))
    x = torch.tensor([[0.0, 0.0], [0.4, 0.0], [0.4, 5e-3]]).double()
    found = ib.find_critical_point(energy, "identity", x, solver=solver_of("mm", exact=False))
    assert found.iterations[0] == 0, "it starts at its solution"
    assert found.iterations[1] == 1, "τ = 1 solves it in one step"
    assert found.iterations[2] > 1000
    assert found.evaluations.tolist() == [1, 2, int(found.iterations[2]) + 1]


@pytest.mark.parametrize("solver", ITERATIVE)
def test_a_sample_that_has_stopped_is_left_alone(solver: str) -> None:
    """Its result is the iterate at which it first met the tolerance, whatever the others go on doing."""
    problem = case("active", 8)
    found = solve(problem, solver, trace=True, tol=1e-7)
    assert found.iterations.unique().numel() > 1
    for i in range(8):
        last = int(found.iterations[i])
        assert bool((found.trace.residual[:last, i] > 1e-7).all())
        assert float(found.trace.residual[last, i]) <= 1e-7
        assert torch.equal(found.trace.dual[last, i], found.dual[i])
        assert torch.equal(problem.geometry.activation(found.dual[i]), found.value[i])


@pytest.mark.parametrize("solver", ITERATIVE)
def test_a_sample_with_nan_spoils_no_other(solver: str, dtype: torch.dtype) -> None:
    problem = case("active", 6).to(dtype)
    clean = solve(problem, solver)
    offset = problem.offset.clone()
    offset[2, 3], offset[4, 0] = torch.nan, torch.inf
    found = solve(replace(problem, offset=offset), solver)
    good = torch.tensor([True, True, False, True, False, True])
    assert torch.equal(found.status == ib.Status.INVALID_INPUT, ~good)
    assert torch.equal(found.value[good], clean.value[good])
    assert bool(torch.isnan(found.value[~good]).all())
    assert bool(torch.isnan(found.residual[~good]).all())
    assert bool(torch.isfinite(found.dual).all())


@pytest.mark.parametrize("solver", ALL)
def test_empty_batch(solver: str, dtype: torch.dtype) -> None:
    found = solve(case("active", 0).to(dtype), solver)
    assert found.value.shape == (0, 10)
    assert found.status.shape == found.iterations.shape == found.residual.shape == (0,)
    assert found.value.dtype == dtype
    assert solve(case("active", 0), solver, trace=True).value.shape == (0, 10)


@pytest.mark.parametrize("solver", ALL)
def test_leading_shape(solver: str) -> None:
    problem = case("interior", 6)
    flat = solve(problem, solver, max_iter=30)
    shaped = solve(replace(problem, offset=problem.offset.reshape(2, 3, 10)), solver, max_iter=30)
    single = solve(replace(problem, offset=problem.offset[0]), solver, max_iter=30)
    assert torch.equal(shaped.value, flat.value.reshape(2, 3, 10))
    assert shaped.status.shape == shaped.residual.shape == shaped.evaluations.shape == (2, 3)
    assert shaped.dual.shape == (2, 3, 10)
    assert single.value.shape == (10,)
    assert single.status.shape == ()
    assert torch.allclose(single.value, flat.value[0], atol=1e-9)


# What is counted ------------------------------------------------------------------------------------------------------


class Counting(BoundQuadratic):
    """Counts the evaluations of ∇f, by whatever name, of itself and of what is made from it."""

    calls: Counter[str]

    def __init__(self, *arguments: object, calls: Counter[str] | None = None) -> None:
        super().__init__(*arguments)
        self.calls = Counter() if calls is None else calls

    def gradient(self, z: Tensor) -> Tensor:
        self.calls["gradient"] += 1
        return super().gradient(z)

    def force(self, z: Tensor) -> Tensor:
        self.calls["gradient"] += 1
        return super().force(z)

    def descent(self, length: float) -> Callable[[Tensor], Tensor]:
        step = super().descent(length)

        def counted(z: Tensor) -> Tensor:
            self.calls["gradient"] += 1
            return step(z)

        return counted

    def double(self) -> Counting:
        return Counting(self.operator, self.offset, calls=self.calls)

    def select(self, index: Tensor) -> Counting:
        return Counting(self.operator, self.offset[index], calls=self.calls)


@exact_or_not
@pytest.mark.parametrize("solver", ALL)
@pytest.mark.parametrize("name", CASES)
def test_evaluations_are_the_calls_really_made(
    name: str, solver: str, exactly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = case(name, 1)
    energy = Counting(Dense(-problem.weight, problem.kind != "general"), problem.offset)

    refine_on = Dense.refine_on

    def counted(*arguments: object) -> FreeSolution:
        # The refinement of an exact solve evaluates ∇f by itself; tests/operators counts these.
        result = refine_on(*arguments)
        energy.calls["gradient"] += result.products
        return result

    monkeypatch.setattr(Dense, "refine_on", counted)
    objective = Objective(energy, problem.geometry, problem.regularization)
    energy.calls.clear()
    method = solver_of(solver, exact=exactly, max_iter=100)
    outcome = method.solve(objective, torch.zeros_like(problem.offset))
    assert int(outcome.evaluations) == energy.calls["gradient"]
    # (an iteration of the splitting multiplies with a resolvent instead)
    splits = solver == "newton" and problem.kind == "general"
    assert splits or int(outcome.evaluations) > int(outcome.iterations)


class Quartic(ib.Energy):
    """A user's energy that counts the calls of `value`."""

    def __init__(self, convex: bool) -> None:
        super().__init__(convex=convex)
        self.calls = 0

    def hessian_product(self, z: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """Not an evaluation of ∇f."""
        before = self.calls
        product = super().hessian_product(z, x, v)
        self.calls = before
        return product

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return ((z - x) ** 4 + 3 * (z - x) ** 2).sum(-1)


@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("geometry", ["tanh", "exp"])
@pytest.mark.parametrize("solver", ALL)
def test_evaluations_of_a_user_energy(solver: str, geometry: str, convex: bool) -> None:
    energy = Quartic(convex)
    x = torch.full((1, 3), 0.4, dtype=torch.float64)
    with torch.no_grad():
        found = ib.find_critical_point(energy, geometry, x, solver=solver_of(solver, max_iter=80))
    assert int(found.evaluations) == energy.calls
    assert int(found.evaluations) > int(found.iterations)
