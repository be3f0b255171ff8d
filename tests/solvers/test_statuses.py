"""How a solve ends, one test per status, and what the user is told about it."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman import ConvergenceWarning, Status
from implicit_bregman.experiments.reference.problems import Problem, make_problem
from tests.solvers.helpers import (
    ALL,
    FIRST_ORDER,
    ITERATIVE,
    exact_or_not,
    own_residual,
    relative_error,
    solve,
    solver_of,
)

#: Newton solves within max_iter what the tests of failure ask for.
NOT_NEWTON = [solver for solver in ALL if solver != "newton"]
every_solver = pytest.mark.parametrize("solver", ALL)
every_own_solver = pytest.mark.parametrize("solver", ITERATIVE)
every_first_order_solver = pytest.mark.parametrize("solver", FIRST_ORDER)


def small(**settings: object) -> Problem:
    return make_problem(**{"dim": 8, "batch": 3, "condition": 30.0, "active": 0.25, "seed": 4, **settings})


def statuses(found: ib.Solution) -> set[Status]:
    return {Status(int(code)) for code in found.status.flatten()}


def quadratic(weight: list[list[float]], dtype: torch.dtype) -> ib.QuadraticEnergy:
    return ib.QuadraticEnergy.from_matrices(torch.tensor(weight, dtype=dtype))


# The texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "remedies"),
    [
        (Status.MAX_ITER, ("max_iter", "tol")),
        (Status.STALLED, ("tol", "regularization", "initial")),
        (Status.DIVERGED, ("weight='convex'", "larger regularization", "bounded domain")),
        (Status.INVALID_INPUT, ("NaN or inf", "clean the input")),
        (Status.SINGULAR, ("regularization", "weight='convex'", "tol")),
        (Status.INFEASIBLE, ("lower the rank", "regularization > 0", "larger domain")),
    ],
)
def test_the_text_of_a_failure_names_its_remedies(status: Status, remedies: tuple[str, ...]) -> None:
    assert status.failed
    for remedy in remedies:
        assert remedy in status.text


def test_the_text_of_a_success_says_so() -> None:
    assert not any(
        status.failed for status in (Status.CONVERGED, Status.DEGENERATE, Status.TRUNCATED, Status.NONUNIQUE)
    )
    assert Status.CONVERGED.text.startswith("converged")
    assert "one-sided" in Status.DEGENERATE.text
    assert "not a failure" in Status.TRUNCATED.text
    assert len({status.text for status in Status}) == len(Status)


# One by one -----------------------------------------------------------------------------------------------------------


@every_solver
def test_converged(solver: str, dtype: torch.dtype) -> None:
    found = solve(small().to(dtype), solver, max_iter=30)
    assert statuses(found) == {Status.CONVERGED}
    assert bool(found.converged.all())
    assert found.message == f"3 x CONVERGED: {Status.CONVERGED.text}"
    assert "CONVERGED 3" in repr(found)


@pytest.mark.parametrize("solver", NOT_NEWTON)
def test_max_iter(solver: str, dtype: torch.dtype) -> None:
    problem = small().to(dtype)
    found = solve(problem, solver, max_iter=3, exact=False)
    assert statuses(found) == {Status.MAX_ITER}
    assert not bool(found.converged.any())
    assert bool((found.iterations <= 3).all())
    assert bool((own_residual(problem, found.dual) > 1e-6).all())


@every_first_order_solver
@pytest.mark.parametrize("max_iter", [1, 2, 10])
def test_max_iter_bounds_the_iterations(solver: str, max_iter: int) -> None:
    found = solve(small(), solver, max_iter=max_iter, exact=False)
    assert found.iterations.tolist() == [max_iter] * 3
    assert found.evaluations.tolist() == [max_iter + 1] * 3


@every_first_order_solver  # Newton ends in float64, and gets there
def test_stalled_in_single_precision_below_rounding(solver: str) -> None:
    problem = small(active=0.0, condition=5.0, batch=24).to(torch.float32)
    found = solve(problem, solver, tol=1e-12, exact=False)
    assert Status.STALLED in statuses(found)
    assert statuses(found) <= {Status.STALLED, Status.CONVERGED}, "an exact residual of 0 is not impossible"
    stalled = found.status == Status.STALLED
    assert bool((found.iterations[stalled] < 5000).all())
    assert bool((found.residual <= 1e-6).all()), "as good as single precision gets, but not what was asked for"


@every_own_solver
def test_slow_progress_is_not_called_stalled(solver: str) -> None:
    """A rate of 1 − 1e-4 per step is progress, with and without an objective."""
    slow = torch.diag(torch.logspace(0, -4, 4, dtype=torch.float64))
    rotation = torch.tensor([[0, 1, 0, 2], [-1, 0, 1, 0], [0, -1, 0, 1], [-2, 0, -1, 0]]).double()
    for weight in (-slow, -slow + 1e-5 * rotation):
        energy = ib.QuadraticEnergy.from_matrices(weight)
        c = 1e-4 * torch.tensor([[1.0, -2.0, 0.5, 1.5]]).double()
        method = solver_of(solver, exact=False, max_iter=1500)
        found = ib.find_critical_point(energy, "identity", c, solver=method)
        assert statuses(found) <= {Status.CONVERGED, Status.MAX_ITER}


def test_a_residual_that_oscillates_is_not_called_stalled() -> None:
    """Without an objective MM spirals in: its residual rises for more than a hundred steps at a time."""
    problem = make_problem("general", dim=10, batch=1, active=0.2, seed=3)
    found = solve(problem, "mm", exact=False, max_iter=3000)
    assert statuses(found) <= {Status.CONVERGED, Status.MAX_ITER}
    assert float(relative_error(found.value, problem.solution)) <= 1e-3


def test_a_coordinate_on_its_way_back_is_not_called_stalled() -> None:
    """At a bound with a multiplier of the wrong sign z and F stand still, while y runs back at constant speed."""
    energy = quadratic([[-0.1]], torch.float64)
    start = replace(
        ib.find_critical_point(energy, "tanh", torch.zeros(1, 1).double()), dual=torch.full((1, 1), 50.0).double()
    )
    c = torch.full((1, 1), 0.05, dtype=torch.float64)
    found = ib.find_critical_point(energy, "tanh", c, start, solver=solver_of("mm", exact=False))
    assert statuses(found) == {Status.CONVERGED}
    assert int(found.iterations) > 600
    assert float(found.value) == pytest.approx(0.5)


@pytest.mark.parametrize("geometry", ["identity", "softplus", "bent", "exp", "arcsinh"])
@every_own_solver
def test_diverged_by_drifting_along_a_flat_direction(geometry: str, solver: str, dtype: torch.dtype) -> None:
    """−W has the eigenvalue 0 and c points along it: F falls for ever. The other sample has a solution."""
    energy = quadratic([[-1.0, 0.0], [0.0, 0.0]], dtype)
    x = torch.tensor([[0.5, 0.3], [0.5, 0.0]], dtype=dtype)
    found = ib.find_critical_point(energy, geometry, x, solver=solver_of(solver, max_iter=300))
    assert found.status[0] == Status.DIVERGED
    assert bool(torch.isfinite(found.value).all())
    assert bool(torch.isfinite(found.dual).all())
    assert bool(torch.isfinite(found.residual).all())
    assert found.value[0, 1] > 1
    assert found.status[1] != Status.DIVERGED
    assert float(found.value[1, 0]) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_a_proposal_that_overflows_is_not_followed(solver: str) -> None:
    """exp: an accelerated dual of a few hundred is a z of 1e100 and more, and F is no number there."""
    for seed in (122057, 813561):
        problem = make_problem(geometry="exp", dim=3, batch=8, active=0.6, condition=1.0, stiffness=0.5, seed=seed)
        found = solve(problem, solver, exact=False, max_iter=3000)
        assert statuses(found) == {Status.CONVERGED}
        assert float(relative_error(found.value, problem.solution).max()) <= 1e-8


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
@pytest.mark.parametrize(
    "settings",
    [
        {"geometry": "arctan", "dim": 2, "condition": 300.0, "regularization": 1e-3, "seed": 636944},
        {"geometry": "isru", "dim": 2, "condition": 30.0, "regularization": 1e-3, "seed": 475884},
        {"geometry": "sin", "dim": 10, "condition": 300.0, "regularization": 1e-3, "seed": 151723},
        {"geometry": "softplus", "dim": 3, "condition": 30.0, "active": 0.3, "stiffness": 5.0, "seed": 783796},
    ],
    ids=lambda settings: settings["geometry"],
)
def test_acceleration_of_a_field_does_not_lead_away(solver: str, settings: dict[str, object]) -> None:
    """Without an objective the residual guards: it must not be allowed to grow step by step."""
    problem = make_problem("general", batch=8, **settings)
    found = solve(problem, solver, exact=False, max_iter=1000)
    assert statuses(found) <= {Status.CONVERGED, Status.MAX_ITER}
    start = own_residual(problem, torch.zeros_like(problem.offset))
    assert bool((found.residual <= start).all()), "never worse than where it began"
    assert float(found.converged.double().mean()) >= 0.5


@exact_or_not
@every_own_solver
def test_diverged_where_the_regularization_only_balances_the_curvature(solver: str, exactly: bool) -> None:
    """F = −cᵀz on the line: the relative residual tends to 0 at infinity, which is no convergence."""
    energy = quadratic([[0.5, 0.0], [0.0, 0.5]], torch.float64)
    method = solver_of(solver, exact=exactly, max_iter=500)
    found = ib.find_critical_point(energy, "identity", torch.ones(1, 2).double(), regularization=0.5, solver=method)
    assert statuses(found) == {Status.DIVERGED}
    assert bool(torch.isfinite(found.value).all())


@pytest.mark.parametrize("geometry", ["identity", "softplus", "exp", "arcsinh"])
@every_solver
def test_diverged_without_objective(geometry: str, solver: str, dtype: torch.dtype) -> None:
    energy = quadratic([[0.5, 1.0], [-1.0, 0.5]], dtype)
    x = torch.ones(2, 2, dtype=dtype)
    found = ib.find_critical_point(energy, geometry, x, solver=solver_of(solver, max_iter=500))
    assert bool(torch.isfinite(found.value).all())
    assert bool(torch.isfinite(found.dual).all())
    if solver in ITERATIVE:
        # The only zero of the field, −W⁻¹c, is repelling, and on the half-line there is none: MM runs away.
        assert statuses(found) == {Status.DIVERGED}
        return
    zero = torch.tensor([0.4, -1.2], dtype=dtype)
    assert torch.allclose(found.value[found.converged], zero, atol=1e-5), "torchdeq may find the zero, nothing else"
    if geometry in ("softplus", "exp"):
        assert statuses(found) == {Status.MAX_ITER}


class Cliff(ib.Energy):
    """−½ ‖z‖² + xᵀz: no lower bound, and the solver cannot know beforehand."""

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return -0.5 * z.square().sum(-1) + (x * z).sum(-1)


@pytest.mark.parametrize("geometry", ["identity", "arcsinh", "softplus", "exp"])
@every_solver
def test_diverged_by_a_user_energy_without_lower_bound(geometry: str, solver: str, dtype: torch.dtype) -> None:
    x = torch.full((2, 3), -1.0, dtype=dtype)
    found = ib.find_critical_point(Cliff(), geometry, x, solver=solver_of(solver, max_iter=400))
    assert bool(torch.isfinite(found.value).all())
    assert bool(torch.isfinite(found.residual).all())
    if solver.startswith("torchdeq"):  # it may find the maximum, z = x, which is critical
        assert torch.allclose(found.value[found.converged], x[found.converged], atol=1e-5)
    else:
        assert statuses(found) == {Status.DIVERGED}


@pytest.mark.parametrize("geometry", ["identity", "arcsinh", "softplus"])
@pytest.mark.parametrize(
    ("weight", "x"),
    [
        ([[-1.0, 0.0], [0.0, -1e-4]], [0.5, 0.1]),  # a minimum far away
        ([[-0.01, 0.009], [0.009, -0.01]], [0.0, 1.0]),  # a coordinate whose first step is 0
    ],
    ids=["far", "late"],
)
def test_a_minimum_far_away_is_not_divergence(weight: list[list[float]], x: list[float], geometry: str) -> None:
    method = solver_of("mm", exact=False, max_iter=200)
    found = ib.find_critical_point(
        quadratic(weight, torch.float64), geometry, torch.tensor([x]).double(), solver=method
    )
    assert statuses(found) == {Status.MAX_ITER}


@every_solver
@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "sin", "isru"])
def test_degenerate(geometry: str, solver: str, dtype: torch.dtype) -> None:
    """The unconstrained minimum lies exactly on the bound: its multiplier is 0, and the gradient one-sided."""
    energy = quadratic([[-1.0, 0.0], [0.0, -1.0]], dtype)
    x = torch.tensor([[1.0, 0.25], [1.5, 0.25], [0.75, 0.25]], dtype=dtype)
    found = ib.find_critical_point(energy, geometry, x, solver=solver_of(solver, max_iter=30))
    assert found.status.tolist() == [Status.DEGENERATE, Status.CONVERGED, Status.CONVERGED]
    assert bool(found.converged.all())
    wanted = torch.tensor([[1.0, 0.25], [1.0, 0.25], [0.75, 0.25]], dtype=dtype)
    assert torch.allclose(found.value, wanted, atol=1e-6)


def test_degenerate_without_exact_solve() -> None:
    """A looser tolerance can be met by MM alone; the multiplier is then as far from 0 as the tolerance."""
    energy = quadratic([[-1.0, 0.0], [0.0, -1.0]], torch.float64)
    x = torch.tensor([[1.0, 0.25], [1.5, 0.25]]).double()
    found = ib.find_critical_point(energy, "tanh", x, solver=solver_of("mm", exact=False, tol=1e-3))
    assert found.status.tolist() == [Status.DEGENERATE, Status.CONVERGED]


def test_degenerate_only_where_there_is_a_bound() -> None:
    energy = quadratic([[-1.0]], torch.float64)
    for geometry, gamma in (("identity", 0.0), ("tanh", 0.1)):
        found = ib.find_critical_point(energy, geometry, torch.ones(1, 1).double(), regularization=gamma)
        assert statuses(found) == {Status.CONVERGED}


@every_solver
def test_invalid_input(solver: str, dtype: torch.dtype) -> None:
    energy = quadratic([[-1.0, 0.0], [0.0, -1.0]], dtype)
    x = torch.tensor([[0.5, 0.25], [torch.nan, 0.0], [0.1, -torch.inf]], dtype=dtype)
    found = ib.find_critical_point(energy, "tanh", x, solver=solver_of(solver, max_iter=30))
    assert found.status.tolist() == [Status.CONVERGED, Status.INVALID_INPUT, Status.INVALID_INPUT]
    assert torch.isnan(found.value).all(-1).tolist() == [False, True, True]
    assert bool(torch.isfinite(found.dual).all())


def test_invalid_start() -> None:
    energy = quadratic([[-1.0, 0.0], [0.0, -1.0]], torch.float64)
    start = torch.tensor([[0.1, 0.1], [torch.nan, 0.0], [0.0, torch.inf]]).double()
    found = ib.find_critical_point(energy, "tanh", torch.zeros(3, 2).double(), start, solver=solver_of("mm"))
    assert found.status.tolist() == [Status.CONVERGED, Status.INVALID_INPUT, Status.INVALID_INPUT]


def test_truncated_is_not_a_failure() -> None:
    problem = small()
    energy = ib.QuadraticEnergy.from_matrices(problem.weight)
    solver = ib.solvers.MM(on_failure="raise")
    for adjoint in (ib.adjoints.Unrolled(steps=4), "unrolled"):
        found = ib.find_critical_point(energy, problem.geometry, problem.offset, solver=solver, adjoint=adjoint)
        assert statuses(found) == {Status.TRUNCATED}
        assert not bool(found.converged.any())


# What happens on failure ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", NOT_NEWTON)
def test_a_failure_warns_by_default_and_names_the_remedy(solver: str) -> None:
    with pytest.warns(ConvergenceWarning, match=r"some samples failed. MAX_ITER: .*raise max_iter") as caught:
        solve(small(), solver, max_iter=2, exact=False, on_failure="warn")
    assert len(caught) == 1


def test_the_default_is_to_warn() -> None:
    assert all(solver_of(name, on_failure="warn") == type(solver_of(name))(**_method(name)) for name in ALL)


def _method(name: str) -> dict[str, str]:
    return {"method": name.removeprefix("torchdeq ")} if name.startswith("torchdeq") else {}


def test_all_kinds_of_failure_are_named_once() -> None:
    energy = quadratic([[-1.0, 0.0], [0.0, -0.01]], torch.float64)
    x = torch.tensor([[0.3, 0.3], [torch.nan, 0.0], [0.2, 0.1]]).double()
    with pytest.warns(ConvergenceWarning, match=r"MAX_ITER: .*; INVALID_INPUT: ") as caught:
        ib.find_critical_point(energy, "tanh", x, solver=ib.solvers.MM(max_iter=2, exact=False))
    assert len(caught) == 1


@pytest.mark.parametrize("solver", NOT_NEWTON)
def test_a_failure_raises_on_request(solver: str) -> None:
    with pytest.raises(RuntimeError, match=r"3 of 3 samples failed. MAX_ITER: .*raise max_iter"):
        solve(small(), solver, max_iter=2, exact=False, on_failure="raise")


@pytest.mark.parametrize("solver", NOT_NEWTON)
def test_a_failure_is_silent_on_request(solver: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = solve(small(), solver, max_iter=2, exact=False, on_failure="ignore")
    assert statuses(found) == {Status.MAX_ITER}


@pytest.mark.parametrize("on_failure", ["warn", "raise"])
def test_success_is_silent(on_failure: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(small(), "anderson", on_failure=on_failure)


# What cannot be solved is refused beforehand --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("geometry", "weight", "gamma"),
    [
        ("identity", [[0.5, 0.0], [0.0, -1.0]], 0.0),
        ("identity", [[0.5, 0.0], [0.0, -1.0]], 0.4),
        ("arcsinh", [[-1.0, 2.0], [2.0, -1.0]], 0.0),
        ("softplus", [[0.5, 0.0], [0.0, -1.0]], 0.0),
        ("softplus", [[0.5, 0.0], [0.0, -1.0]], 0.4),
        ("bent", [[-1.0, 2.0], [2.0, -1.0]], 0.0),
        ("exp", [[0.1, 0.0], [0.0, -1.0]], 5.0),
    ],
)
def test_an_objective_that_is_provably_unbounded_is_refused(
    geometry: str, weight: list[list[float]], gamma: float, dtype: torch.dtype
) -> None:
    message = r"unbounded below on the domain .*weight='convex', a larger regularization, or a geometry with a bounded"
    with pytest.raises(ValueError, match=message):
        ib.find_critical_point(quadratic(weight, dtype), geometry, torch.zeros(1, 2, dtype=dtype), regularization=gamma)


@pytest.mark.parametrize(
    ("geometry", "weight", "gamma"),
    [
        ("tanh", [[0.5, 0.0], [0.0, -1.0]], 0.0),  # C is bounded
        ("identity", [[0.5, 0.0], [0.0, -1.0]], 0.6),  # γφ outgrows it
        ("arcsinh", [[0.5, 0.0], [0.0, -1.0]], 0.1),  # φ'' is unbounded
        ("softplus", [[0.5, 0.0], [0.0, -1.0]], 0.6),
        ("softplus", [[-1.0, -2.0], [-2.0, -1.0]], 0.0),  # indefinite, but bounded below where z ≥ 0
    ],
)
def test_what_has_a_minimum_is_not_refused(geometry: str, weight: list[list[float]], gamma: float) -> None:
    found = ib.find_critical_point(
        quadratic(weight, torch.float64), geometry, torch.full((1, 2), 0.1).double(), regularization=gamma
    )
    assert bool(found.converged.all())


def test_a_user_energy_cannot_be_refused_beforehand() -> None:
    with pytest.warns(ConvergenceWarning, match="DIVERGED: .*bounded domain"):
        ib.find_critical_point(Cliff(), "identity", torch.ones(1, 2))


@pytest.mark.parametrize(("dtype", "gamma"), [(torch.float32, 0.02), (torch.float64, 2e-3)])
def test_a_value_beyond_the_range_is_not_a_solution(dtype: torch.dtype, gamma: float) -> None:
    """γ log z = 2: z = exp(100) or exp(1000), for which the largest number stands."""
    weight = torch.diag(torch.tensor([-1.0, 0.0], dtype=dtype)).requires_grad_()
    energy = ib.QuadraticEnergy.from_matrices(weight)
    c = torch.tensor([[0.5, 2.0], [0.5, 0.0]], dtype=dtype, requires_grad=True)
    with pytest.warns(ib.ConvergenceWarning, match="OVERFLOW: the value exceeds the range"):
        found = ib.find_critical_point(energy, "exp", c, regularization=gamma)
    assert found.status.tolist() == [Status.OVERFLOW, Status.CONVERGED]
    found.value.sum().backward()
    assert bool(weight.grad.isfinite().all())
    assert c.grad[0].tolist() == [0.0, 0.0]
    assert float(c.grad[1, 0]) > 0


@pytest.mark.parametrize(("geometry", "most"), [("exp", 650), ("bent", 8000), ("softplus", 8000)])
def test_a_depth_that_no_critical_point_has_ends_the_run(geometry: str, most: int) -> None:
    """F = −½⟨c, z⟩ at critical points on a cone: far below, none is near."""
    scale = torch.tensor([1.0, 2.0, 0.5, 4.0, 0.25, 8.0], dtype=torch.float64)
    weight = scale[:, None] * (0.2 - torch.eye(6, dtype=torch.float64)) * scale  # bounded along all axes
    c = torch.tensor([[1.0, -1.0, 0.5, 0.2, 0.1, 0.3], [0.1] * 6], dtype=torch.float64)
    quiet = ib.solvers.Newton(on_failure="ignore")
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(weight), geometry, c, solver=quiet)
    assert found.status.tolist() == [Status.DIVERGED] * 2
    assert int(found.iterations.max()) <= most
