"""The recorded trace: what really happened, from the start to each sample's own stop."""

from __future__ import annotations

import pytest
import torch

import implicit_bregman as ib
from implicit_bregman.experiments.reference.problems import make_problem
from tests.solvers.helpers import ALL, FIRST_ORDER, ITERATIVE, own_objective, own_residual, solve, solver_of

CASES = {
    "active": {"active": 0.3},
    "gamma": {"regularization": 0.3},
    "several": {"kind": "indefinite", "active": 0.25, "regularization": 0.1},
    "sin": {"geometry": "sin", "active": 0.3},
}


@pytest.mark.parametrize("solver", ALL)
@pytest.mark.parametrize("name", CASES)
def test_trace(name: str, solver: str, dtype: torch.dtype) -> None:
    problem = make_problem(dim=8, batch=5, condition=10.0, seed=3, **CASES[name]).to(dtype)
    found = solve(problem, solver, trace=True, max_iter=200)
    trace = found.trace
    steps = int(found.iterations.max()) + 1
    assert trace.residual.shape == trace.objective.shape == (steps, 5)
    assert trace.dual.shape == (steps, 5, 8)

    assert torch.equal(trace.dual[0], torch.zeros(5, 8, dtype=dtype)), "the first row is the start"
    running = torch.arange(steps)[:, None] <= found.iterations
    if solver.startswith("torchdeq"):  # it cannot drop samples: a row ends where the sample's own result is
        running = running & torch.isfinite(trace.residual)
    for recorded in (trace.residual, trace.objective, trace.dual[..., 0]):
        assert torch.equal(torch.isfinite(recorded), running), "NaN after the stop, and only there"

    eps = torch.finfo(dtype).eps
    residual, objective = own_residual(problem, trace.dual), own_objective(problem, trace.dual)
    assert torch.allclose(trace.residual[running], residual[running], rtol=1e-3, atol=64 * eps)
    assert torch.allclose(trace.objective[running], objective[running], rtol=1e-3, atol=256 * eps)
    assert not bool(found.exact.any()), "no exact solve in traces"


@pytest.mark.parametrize("solver", ITERATIVE)
def test_last_row_is_the_result(solver: str) -> None:
    problem = make_problem(dim=8, batch=5, condition=10.0, active=0.3, seed=3)
    found = solve(problem, solver, trace=True)
    last = found.iterations[None]
    assert torch.equal(found.trace.residual.gather(0, last)[0], found.residual)
    assert torch.equal(found.trace.objective.gather(0, last)[0], found.objective)
    for i, k in enumerate(found.iterations.tolist()):
        assert torch.equal(found.trace.dual[k, i], found.dual[i])


def test_trace_of_mm_is_mm() -> None:
    problem = make_problem("indefinite", "sigmoid", 8, 4, 10.0, 0.25, 0.1, seed=2)
    found = solve(problem, "mm", trace=True, max_iter=50)
    y, tau, gamma = torch.zeros(4, 8).double(), problem.step, problem.regularization
    for row in found.trace.dual:
        seen = torch.isfinite(row)
        assert torch.allclose(row[seen], y[seen], rtol=1e-12, atol=1e-13)
        z = problem.geometry.activation(y)
        y = (y + tau * (z @ problem.weight + problem.offset)) / (1 + tau * gamma)


def test_objective_of_mm_never_rises() -> None:
    problem = make_problem("indefinite", "tanh", 12, 6, 10.0, 0.25, 0.1, stiffness=3.0, seed=2)
    objective = solve(problem, "mm", trace=True).trace.objective
    assert bool(((objective[1:] - objective[:-1]).nan_to_num() <= 1e-13).all())


def test_no_objective_without_symmetry() -> None:
    problem = make_problem("general", "tanh", 8, 4, 10.0)
    found = solve(problem, "anderson", trace=True)
    assert found.objective is None
    assert bool(torch.isnan(found.trace.objective).all())
    assert bool(torch.isfinite(found.trace.residual[0]).all())


@pytest.mark.parametrize("solver", ALL)
def test_no_trace_unless_asked_for(solver: str) -> None:
    problem = make_problem(dim=4, batch=2)
    assert solve(problem, solver, max_iter=5).trace is None


@pytest.mark.parametrize("solver", FIRST_ORDER)  # a trace of Newton for γ = 0 is one of projected steps
def test_tracing_changes_nothing_but_the_exact_solve(solver: str) -> None:
    problem = make_problem(dim=8, batch=5, condition=10.0, active=0.3, seed=3)
    traced, plain = (solve(problem, solver, **kw) for kw in ({"trace": True}, {"exact": False}))
    assert torch.equal(traced.value, plain.value)
    assert torch.equal(traced.evaluations, plain.evaluations)


def test_trace_with_invalid_and_instant_samples() -> None:
    energy = ib.QuadraticEnergy.from_matrices(-0.5 * torch.eye(2).double())
    x = torch.tensor([[0.0, 0.0], [0.3, 0.1], [torch.nan, 0.0]]).double()
    found = ib.find_critical_point(energy, "tanh", x, solver=solver_of("mm", trace=True))
    assert found.iterations[0] == 0
    assert torch.isfinite(found.trace.residual[:, 0]).tolist() == [True] + [False] * int(found.iterations[1])
    assert found.status[2] == ib.Status.INVALID_INPUT
