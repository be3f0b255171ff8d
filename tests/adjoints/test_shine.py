"""SHINE: what Broyden's estimate is an inverse of, what its transpose is worth, and where it is refused."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.experiments.reference.problems import Problem, make_problem
from implicit_bregman.objective import Objective
from implicit_bregman.solvers.base import Outcome
from implicit_bregman.solvers.inverse import InverseEstimate
from tests.adjoints.helpers import Case, learned_case, reference_gradients, saved_bytes, worst_error

BROYDEN = ib.solvers.Broyden(memory=100, exact=False)
CASES = {
    "interior": {},
    "active": {"active": 0.34},
    "gamma": {"regularization": 0.3},
    "stiff": {"regularization": 0.1, "stiffness": 4.0},
    "half-line": {"geometry": "softplus", "active": 0.34},
    "not Legendre": {"geometry": "sin", "active": 0.34, "regularization": 0.3},
    "general": {"kind": "general", "active": 0.34},
    "general, gamma": {"kind": "general", "regularization": 0.2},
}
every_case = pytest.mark.parametrize("name", CASES)


def case(name: str, dim: int = 8, batch: int = 4) -> Problem:
    return make_problem(**{"dim": dim, "batch": batch, "condition": 10.0, "seed": 3, **CASES[name]})


def derivative(
    problem: Problem,
    adjoint: ib.adjoints.Adjoint,
    solver: ib.solvers.Solver = BROYDEN,
    initial: ib.Solution | None = None,
) -> tuple[Tensor, ib.Solution]:
    """v = dL/dc for L = ⟨G, z⟩ with a fixed random G."""
    x = problem.offset.clone().requires_grad_()
    energy = ib.QuadraticEnergy.from_matrices(problem.weight)
    found = ib.find_critical_point(energy, problem.geometry, x, initial, problem.regularization, solver, adjoint)
    (v,) = torch.autograd.grad((found.value * cotangent(problem)).sum(), x)
    return v, found


def cotangent(problem: Problem) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(problem.offset.shape, generator=generator, dtype=torch.float64).to(problem.dtype)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def cosine(found: Tensor, exact: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(found.double(), exact.double(), dim=-1).mean())


def objective_of(problem: Problem, offset: Tensor | None = None) -> Objective:
    energy = ib.QuadraticEnergy.from_matrices(problem.weight)
    bound = energy.bind(problem.offset if offset is None else offset)
    return Objective(bound, problem.geometry, problem.regularization)


def solved(problem: Problem, **settings: object) -> tuple[Objective, Outcome]:
    objective = objective_of(problem)
    solver = replace(BROYDEN, **settings)
    return objective, solver.solve_with_inverse(objective, torch.zeros_like(problem.offset))


def jacobian(objective: Objective, problem: Problem, outcome: Outcome) -> Tensor:
    """dr/dy of r(y) = ρ(y⁺) − ρ(y), (B, d, d), by autograd."""
    step = outcome.point.step

    def change(y: Tensor) -> Tensor:
        return (problem.geometry.activation(objective.iterate(y, step)) - problem.geometry.activation(y)).sum(0)

    return torch.autograd.functional.jacobian(change, outcome.point.dual).movedim(1, 0)


# The derivation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["interior", "gamma", "stiff", "general, gamma"])
@pytest.mark.parametrize("tol", [1e-11, 1e-2], ids=["converged", "early"])
def test_with_the_true_inverse_the_gradient_is_exact(name: str, tol: float) -> None:
    """−(dr/dy)⁻¹ from autograd in the place of Broyden's estimate: nothing of the derivation is used."""
    problem = case(name)
    _, outcome = solved(problem, tol=tol)
    x = problem.offset.clone().requires_grad_()
    objective = objective_of(problem, x)
    start = torch.diag_embed(1 / problem.geometry.slope(outcome.point.dual))
    updates = -torch.linalg.inv(jacobian(objective, problem, outcome)) - start
    eye = torch.eye(8, dtype=x.dtype).expand(4, 8, 8)
    count = torch.full_like(outcome.status, 8)
    exact = replace(outcome, inverse=InverseEstimate(updates.mT.contiguous(), eye, count))
    found = []
    for adjoint, at in ((ib.adjoints.Shine(), exact), (ib.adjoints.Implicit(), outcome)):
        value, _ = adjoint.attach(objective, at, torch.zeros_like(x))
        found.append(torch.autograd.grad((value * cotangent(problem)).sum(), x)[0])
    # √D for √D₊ is right at the limit only.
    assert error(*found) <= (1e-8 if tol < 1e-6 else 0.05)


@pytest.mark.parametrize("name", ["interior", "gamma", "stiff", "general, gamma"])
def test_the_estimate_is_the_negative_inverse(name: str) -> None:
    problem = case(name)
    objective, outcome = solved(problem)
    assert outcome.inverse is not None
    assert int(outcome.inverse.count.min()) >= 8, "fewer updates than dimensions say little"
    slope = problem.geometry.slope(outcome.point.dual)
    start = torch.diag_embed(1 / slope)
    estimate = start + outcome.inverse.left.mT @ outcome.inverse.right
    found = jacobian(objective, problem, outcome)
    eye = torch.eye(8, dtype=slope.dtype)
    before, after = (torch.linalg.matrix_norm(found @ inverse + eye) for inverse in (start, estimate))
    assert bool((after <= 0.7 * before).all())


def test_the_estimate_satisfies_the_last_secant_equation() -> None:
    problem = case("gamma")
    objective, outcome = solved(problem, trace=True, tol=1e-4)
    inverse, trace = outcome.inverse, outcome.trace
    assert inverse is not None
    assert trace is not None
    for i in range(4):
        last = int(outcome.iterations[i])
        duals = trace.dual[last - 1 : last + 1, i]
        one = objective.select(torch.tensor([i, i]))
        points = one.evaluate(duals, one.initial_step(duals))
        residuals, _ = one.primal_step(points)
        steps = points.next_dual - points.dual
        change = residuals[1] - residuals[0]
        mapped = steps[1] - steps[0] + inverse.left[i].mT @ (inverse.right[i] @ change)
        torch.testing.assert_close(mapped, -(duals[1] - duals[0]), rtol=1e-6, atol=1e-9)


# What it is worth ---------------------------------------------------------------------------------------------------


@every_case
def test_better_than_one_step(name: str, dtype: torch.dtype) -> None:
    problem = case(name).to(dtype)
    exact, _ = derivative(problem, ib.adjoints.Implicit(), ib.solvers.Newton())
    one_step, _ = derivative(problem, ib.adjoints.OneStep())
    found, solution = derivative(problem, ib.adjoints.Shine())
    assert bool(solution.converged.all())
    assert error(found, exact) <= 0.6 * error(one_step, exact)
    assert 1 - cosine(found, exact) <= 0.7 * (1 - cosine(one_step, exact))


@every_case
def test_refinement_tends_to_implicit(name: str, dtype: torch.dtype) -> None:
    problem = case(name).to(dtype)
    exact, _ = derivative(problem, ib.adjoints.Implicit())
    errors = []
    for refine in (0, 2, 5, 100):
        found, solution = derivative(problem, ib.adjoints.Shine(refine=refine))
        errors.append(error(found, exact))
        assert solution.adjoint.iterations is not None
        assert int(solution.adjoint.iterations.max()) <= 2 + 4 * refine
    assert errors[0] > 1e-3
    reached = 1e-8 if dtype == torch.float64 else 1e-4
    assert all(b < a or a <= reached for a, b in pairwise(errors))
    assert errors[-1] <= reached


@pytest.mark.parametrize("case", [Case("tanh", active=0.34), Case("sigmoid", regularization=0.3)], ids=str)
def test_every_parameter_gets_its_gradient(case: Case) -> None:
    learned, exact = learned_case(case)
    found = learned.gradients(ib.adjoints.Shine(refine=50))
    assert worst_error(found, exact) <= 1e-8
    assert not bool(found["initial"].any())
    assert worst_error(learned.gradients("shine"), reference_gradients(learned)) <= 0.5


def test_refinement_where_there_are_several_critical_points() -> None:
    problem = make_problem("indefinite", "tanh", 8, 4, 5.0, 0.25, 0.1, seed=3)
    exact, _ = derivative(problem, ib.adjoints.Implicit())
    found, _ = derivative(problem, ib.adjoints.Shine(refine=100))
    assert error(found, exact) <= 1e-8


@pytest.mark.parametrize("refine", [0, 1])
@every_case
def test_the_report_is_honest(name: str, refine: int) -> None:
    problem = case(name)
    v, solution = derivative(problem, ib.adjoints.Shine(refine=refine))
    exact, _ = derivative(problem, ib.adjoints.Implicit(), ib.solvers.Newton())
    report, estimated = solution.adjoint, solution.gradient_error
    assert report.status.tolist() == [ib.Status.CONVERGED] * 4
    # D₊(g − A u), written out on the coordinates inside C, where the shift is γ.
    slope = problem.geometry.slope(solution.dual)
    inside = slope > 1e-6
    curvature = problem.regularization / slope.clamp_min(1e-300)
    left = cotangent(problem) - curvature * v + v @ problem.weight
    left, right = (torch.where(inside, slope * part, 0.0) for part in (left, cotangent(problem)))
    own = left.norm(dim=-1) / right.norm(dim=-1)
    torch.testing.assert_close(report.residual, own, rtol=1e-2, atol=1e-6)
    true = (v - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert bool((estimated >= 0.1 * true).all())
    # The estimate's forward part counts an active bound of sin with γ > 0 as a residual, for every adjoint.
    if name != "not Legendre":
        assert bool((estimated <= 20 * true + 1e-8).all())


# Where there is no good estimate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["interior", "gamma", "general, gamma"])
def test_without_updates_it_is_one_step_scaled(name: str) -> None:
    problem = case(name)
    first, at = derivative(problem, ib.adjoints.OneStep())
    found, again = derivative(problem, ib.adjoints.Shine(), initial=at)
    assert again.iterations.tolist() == [0] * 4
    assert cosine(found, first) >= 1 - 1e-12


@pytest.mark.parametrize("name", ["interior", "active", "gamma"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e8])
def test_a_useless_estimate_does_no_harm(name: str, value: float) -> None:
    problem = case(name)
    _, outcome = solved(problem)
    x = problem.offset.clone().requires_grad_()
    objective = objective_of(problem, x)
    noise = value * torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    useless = replace(outcome, inverse=InverseEstimate(noise, noise.flip(0), outcome.status + 3))
    exact, _ = derivative(problem, ib.adjoints.Implicit())
    one_step, _ = derivative(problem, ib.adjoints.OneStep())
    reached, report = ib.adjoints.Shine().attach(objective, useless, torch.zeros_like(x))
    (found,) = torch.autograd.grad((reached * cotangent(problem)).sum(), x)
    assert error(found, exact) <= error(one_step, exact)
    assert bool(((found * cotangent(problem)).sum(-1) > 0).all()), "still a direction of descent"
    assert report.status.tolist() == [0] * 4


def test_a_cotangent_that_is_not_finite_is_said() -> None:
    problem = case("gamma")
    x = problem.offset.clone().requires_grad_()
    energy = ib.QuadraticEnergy.from_matrices(problem.weight)
    found = ib.find_critical_point(energy, "tanh", x, regularization=0.3, adjoint="shine")
    bad = cotangent(problem)
    bad[1, 2] = torch.nan
    (v,) = torch.autograd.grad(found.value, x, bad)
    assert found.adjoint.status.tolist() == [0, ib.Status.INVALID_INPUT, 0, 0]
    assert v.isnan().any(-1).tolist() == [False, True, False, False]
    strict = ib.find_critical_point(
        energy, "tanh", x, regularization=0.3, adjoint=ib.adjoints.Shine(on_failure="raise")
    )
    with pytest.raises(RuntimeError, match="shine adjoint: 1 of 4 samples failed"):
        torch.autograd.grad(strict.value, x, bad)


def test_an_early_stop_has_a_gradient() -> None:
    problem = case("gamma")
    solver = replace(BROYDEN, max_iter=3, on_failure="ignore")
    exact, _ = derivative(problem, ib.adjoints.Implicit(), solver)
    found, _ = derivative(problem, ib.adjoints.Shine(refine=100), solver)
    assert error(found, exact) <= 1e-8


def test_a_memory_that_starts_anew_keeps_its_newest_updates() -> None:
    problem = case("gamma")
    exact, _ = derivative(problem, ib.adjoints.Implicit())
    one_step, _ = derivative(problem, ib.adjoints.OneStep())
    for memory in (1, 4, 5):
        _, outcome = solved(problem, memory=memory)
        assert int(outcome.inverse.count.max()) <= memory
        assert outcome.inverse.left.shape == (4, int(outcome.inverse.count.max()), 8)
        found, _ = derivative(problem, ib.adjoints.Shine(), replace(BROYDEN, memory=memory))
        assert error(found, exact) < error(one_step, exact)


# Samples ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refine", [0, 2])
@pytest.mark.parametrize("name", ["active", "gamma", "general"])
def test_batch_mates_do_not_matter(name: str, refine: int) -> None:
    """A few steps only: what rounding does to the iterates grows with them."""
    problem = case(name)
    solver = replace(BROYDEN, max_iter=10, on_failure="ignore")
    adjoint = ib.adjoints.Shine(refine=refine)
    together, _ = derivative(problem, adjoint, solver)
    energy = ib.QuadraticEnergy.from_matrices(problem.weight)
    for rows in ([2, 0, 3, 1], [1]):
        x = problem.offset[rows].clone().requires_grad_()
        found = ib.find_critical_point(
            energy, problem.geometry, x, regularization=problem.regularization, solver=solver, adjoint=adjoint
        )
        (v,) = torch.autograd.grad((found.value * cotangent(problem)[rows]).sum(), x)
        torch.testing.assert_close(v, together[rows], rtol=1e-6, atol=1e-9)


def test_a_sample_with_nan_spoils_no_other() -> None:
    problem = case("gamma")
    clean, _ = derivative(problem, ib.adjoints.Shine())
    x = problem.offset.clone()
    x[2, 1] = torch.nan
    x.requires_grad_()
    energy = ib.QuadraticEnergy.from_matrices(problem.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ib.ConvergenceWarning)
        found = ib.find_critical_point(energy, "tanh", x, regularization=0.3, solver=BROYDEN, adjoint="shine")
        good = torch.tensor([0, 1, 3])
        (v,) = torch.autograd.grad((found.value[good] * cotangent(problem)[good]).sum(), x)
    # (how many samples are left at a step decides how products are rounded)
    assert torch.allclose(v[good], clean[good], rtol=0, atol=1e-14)


def test_empty_batch_and_leading_shape(generator: torch.Generator) -> None:
    layer = ib.BregmanDEQ(4, 5, regularization=0.3, adjoint="shine", dtype=torch.float64)
    layer(torch.zeros(0, 4, dtype=torch.float64)).sum().backward()
    x = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    solution = layer.solve(x)
    solution.value.sum().backward()
    assert solution.adjoint.residual.shape == (2, 3)
    assert solution.gradient_error.shape == (2, 3)
    assert layer(x[0, 0]).shape == (5,)


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["mm", "anderson", "newton", ib.solvers.Newton()], ids=str)
def test_other_solvers_are_refused(solver: str | ib.solvers.Solver) -> None:
    message = r'uses the inverse estimate of Broyden: use solver="auto" or Broyden\(exact=False\), got '
    with pytest.raises(ValueError, match=message):
        derivative(case("gamma"), ib.adjoints.Shine(), solver)  # type: ignore[arg-type]


def test_an_exact_solve_is_refused_where_it_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"which an exact solve leaves behind: use .* Broyden\(exact=False\)"):
        derivative(case("gamma"), ib.adjoints.Shine(), ib.solvers.Broyden())
    # With a trace there is no exact solve.
    derivative(case("gamma"), ib.adjoints.Shine(), ib.solvers.Broyden(trace=True))


@pytest.mark.parametrize("solver", ["auto", "broyden"])
def test_names_mean_broyden_without_exact_solve(solver: str) -> None:
    found, solution = derivative(case("gamma"), ib.adjoints.Shine(), solver)  # type: ignore[arg-type]
    expected, _ = derivative(case("gamma"), ib.adjoints.Shine(), BROYDEN)
    assert torch.equal(found, expected)
    assert not bool(solution.exact.any())


def test_a_given_iterate_has_no_estimate() -> None:
    problem = case("gamma")
    energy = ib.QuadraticEnergy.from_matrices(problem.weight)
    x = problem.offset.clone().requires_grad_()
    with pytest.raises(TypeError, match="Shine differentiates its own solve, whose inverse estimate it needs"):
        ib.attach_gradient(energy, "tanh", x, torch.zeros_like(x), 0.3, "shine")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"refine": -1}, ValueError, "refine must be a whole number of at least 0, got -1"),
        ({"refine": 1.5}, ValueError, "refine must be a whole number"),
        ({"on_failure": "print"}, ValueError, "on_failure must be one of warn, raise, ignore"),
        ({"steps": 3}, TypeError, "Shine has no setting 'steps'; its settings are refine, on_failure"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ib.adjoints.Shine(**settings)  # type: ignore[arg-type]


# Memory and training ------------------------------------------------------------------------------------------------


def test_the_estimate_is_kept_only_when_asked_for() -> None:
    problem = case("gamma")
    objective, outcome = solved(problem)
    assert outcome.inverse is not None
    without = BROYDEN.solve(objective, torch.zeros_like(problem.offset))
    assert without.inverse is None
    assert torch.equal(without.point.value, outcome.point.value)
    with torch.no_grad():
        plain, _, _ = ib.adjoints.Shine().solve(objective, torch.zeros_like(problem.offset), BROYDEN)
    assert plain.inverse is None


def test_memory_held_is_what_the_updates_take() -> None:
    layer = ib.BregmanDEQ(24, 48, regularization=0.3)
    x = torch.randn(64, 24)
    sizes, rows = [], []
    for tol in (1e-1, 1e-3):
        solver = ib.solvers.Broyden(memory=500, exact=False, tol=tol)
        layer.solver, layer.adjoint = solver, "shine"
        with saved_bytes([*layer.parameters()]) as total:
            layer(x)
        sizes.append(total[0])
        rows.append(int(layer.last_solution.iterations.max()))
        vectors = 2 * rows[-1] + 8
        assert total[0] <= 4 * (vectors * 64 * 48 + 64 * 24 + 2 * 48 * 48)
    assert rows[1] > rows[0]
    assert sizes[1] - sizes[0] == 4 * 2 * (rows[1] - rows[0]) * 64 * 48


@pytest.mark.parametrize("regularization", [0.0, 0.3])
@pytest.mark.parametrize("weight", ["convex", "general"])
def test_a_network_trains(weight: str, regularization: float, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(1)
    # Without the exact solve Broyden does not reach every bound.
    solver = replace(BROYDEN, max_iter=200, on_failure="ignore")
    layer = ib.BregmanDEQ(4, 8, weight=weight, regularization=regularization, solver=solver, adjoint="shine")
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), layer, torch.nn.Linear(8, 1)).to(device, dtype)
    x = torch.randn(16, 3).to(device, dtype)
    target = x.prod(-1, keepdim=True).tanh()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_user_energy(generator: torch.Generator) -> None:
    """Its Hessian is no matrix; where it is declared convex, Broyden learns from it."""

    class Quartic(ib.Energy):
        def value(self, z: Tensor, x: Tensor) -> Tensor:
            return ((z - x) ** 4 + 3 * (z - x) ** 2).sum(-1) + (z.sum(-1)) ** 2

    x = torch.randn(4, 6, generator=generator, dtype=torch.float64).requires_grad_()
    direction = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    gradients = {}
    for name, adjoint in {
        "exact": ib.adjoints.Implicit(),
        "one step": ib.adjoints.OneStep(),
        "shine": ib.adjoints.Shine(),
        "refined": ib.adjoints.Shine(refine=50),
    }.items():
        found = ib.find_critical_point(Quartic(convex=True), "tanh", x, None, 0.1, BROYDEN, adjoint)
        assert bool(found.converged.all())
        (gradients[name],) = torch.autograd.grad((found.value * direction).sum(), x)
    assert error(gradients["shine"], gradients["exact"]) <= 0.7 * error(gradients["one step"], gradients["exact"])
    assert error(gradients["refined"], gradients["exact"]) <= 1e-8
