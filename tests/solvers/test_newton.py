"""Newton on its own: few steps, the right route, the hand-over where it fails, energies of a user's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.experiments.reference.oracle import reference_solution
from implicit_bregman.experiments.reference.problems import Problem, make_problem
from implicit_bregman.objective import Objective
from implicit_bregman.operators import Costs
from implicit_bregman.solvers import newton
from implicit_bregman.solvers.exact import active_set
from implicit_bregman.solvers.exact.minimum import Guess, by_active_set
from implicit_bregman.solvers.exact.projected_newton import projected_newton
from implicit_bregman.solvers.loop import run
from tests.solvers.helpers import relative_error, solve

CONVERGED = (ib.Status.CONVERGED, ib.Status.DEGENERATE)


def objective_of(problem: Problem, rows: slice = slice(None)) -> Objective:
    energy = ib.QuadraticEnergy.from_matrices(problem.weight).bind(problem.offset[rows])
    return Objective(energy, problem.geometry, problem.regularization)


# Few steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [10.0, 1e3, 1e5])
@pytest.mark.parametrize("active", [0.0, 0.05, 0.4])
def test_active_set_in_few_steps(active: float, condition: float, dtype: torch.dtype) -> None:
    problem = make_problem(dim=60, batch=20, condition=condition, active=active).to(dtype)
    found = solve(problem, "newton")
    assert bool(found.converged.all())
    assert bool(found.exact.all())
    assert int(found.iterations.max()) <= 4
    exact = reference_solution(problem.weight.double(), problem.offset.double(), problem.geometry, 0.0)
    assert float(relative_error(found.value, exact.value).max()) <= (1e-5 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "softplus", "arctan", "isru", "sin", "bent", "arcsinh"])
def test_dual_newton_in_few_steps(geometry: str, gamma: float, dtype: torch.dtype) -> None:
    problem = make_problem(geometry=geometry, dim=40, batch=16, condition=1e3, regularization=gamma).to(dtype)
    found = solve(problem, "newton")
    assert bool(found.converged.all())
    assert int(found.iterations.max()) <= 25
    exact = reference_solution(problem.weight.double(), problem.offset.double(), problem.geometry, gamma)
    assert float(relative_error(found.value, exact.value).max()) <= (1e-5 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("gamma", [1e-4, 1e-2])
def test_dual_newton_where_the_solution_is_saturated(gamma: float, dtype: torch.dtype) -> None:
    """Multipliers of order 1 put |y| at 1/γ: z is rounded to its bound, y is not."""
    generator = torch.Generator().manual_seed(3)
    weight = make_problem(dim=30, batch=1, condition=100.0).weight.to(dtype)
    offset = 2 * torch.randn(12, 30, generator=generator, dtype=torch.float64).to(dtype)
    energy = ib.QuadraticEnergy.from_matrices(weight)
    found = ib.find_critical_point(energy, "tanh", offset, regularization=gamma, solver="newton")
    assert bool(found.converged.all())
    assert float(found.dual.abs().max()) > 0.5 / gamma
    exact = reference_solution(weight.double(), offset.double(), ib.geometry("tanh"), gamma)
    assert float(relative_error(found.value, exact.value).max()) <= (1e-5 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_the_exact_solve_is_newtons_own_and_cannot_be_switched_off(gamma: float, dtype: torch.dtype) -> None:
    """`exact` of the result says which route was taken, and the setting changes neither it nor the point."""
    active = 0.0 if gamma else 0.25
    problem = make_problem(dim=40, batch=6, condition=100.0, active=active, regularization=gamma).to(dtype)
    on, off = (solve(problem, "newton", exact=exactly) for exactly in (True, False))
    assert on.exact.tolist() == off.exact.tolist() == [gamma == 0] * 6
    assert torch.equal(on.value, off.value)
    assert torch.equal(on.iterations, off.iterations)


# Random problems, not designed ones -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "softplus"])
def test_random_offsets_against_the_oracle(geometry: str, seed: int) -> None:
    """Multipliers as they come, tiny ones among them, and condition 1000."""
    generator = torch.Generator().manual_seed(seed)
    weight = make_problem(dim=32, batch=1, condition=1e3, seed=seed).weight
    offset = torch.randn(16, 32, generator=generator, dtype=torch.float64)
    energy = ib.QuadraticEnergy.from_matrices(weight)
    found = ib.find_critical_point(energy, geometry, offset, solver="newton")
    assert bool(found.converged.all())
    assert bool(found.exact.all())
    exact = reference_solution(weight, offset, ib.geometry(geometry), 0.0)
    assert float(relative_error(found.value, exact.value).max()) <= 1e-9


# Routes -----------------------------------------------------------------------------------------------------------


def test_projected_newton_agrees_with_the_active_set(dtype: torch.dtype) -> None:
    problem = make_problem(dim=40, batch=12, condition=300.0, active=0.25).to(dtype)
    objective = objective_of(problem)
    tol = 1e-6 if dtype == torch.float32 else 1e-11
    found = projected_newton(objective, torch.zeros_like(problem.offset), tol, 200)
    assert bool(found.accepted.all())
    assert int(found.steps.max()) <= 40
    exact = reference_solution(problem.weight.double(), problem.offset.double(), problem.geometry, 0.0)
    assert torch.equal(~found.free, exact.active)
    assert float(relative_error(found.unrounded, exact.value).max()) <= (1e-4 if dtype == torch.float32 else 1e-9)


def test_wide_problems_with_few_samples_are_not_factorized(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(dim=40, batch=2, condition=100.0, active=0.2)
    costs = Costs(inverse_width=0, inverse_per_sample=1)
    monkeypatch.setattr(torch, "cholesky_inverse", lambda *a: pytest.fail("inverted"))
    weight = problem.weight.clone().requires_grad_()
    energy = ib.QuadraticEnergy.from_operator(ib.operators.Dense(-weight, costs=costs))
    found = ib.find_critical_point(energy, "tanh", problem.offset, solver="newton")
    assert bool(found.converged.all())
    assert float(relative_error(found.value.detach(), problem.solution).max()) <= 1e-9
    found.value.sum().backward()
    assert bool(torch.isfinite(weight.grad).all())


def test_a_set_that_turns_in_a_circle_is_left_to_interior_point_steps() -> None:
    problem = make_problem(dim=30, batch=10, condition=1e3, active=0.3)
    guess = Guess(objective_of(problem), torch.zeros_like(problem.offset), steps=1)
    found = by_active_set(guess, 1e-11, 100, steps=1, corrections=0)
    assert bool(found.accepted.all())
    assert float(relative_error(found.value, problem.solution).max()) <= 1e-9


def test_what_newton_gives_up_goes_to_mm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples 0 and 3 are declared failed; the others keep their result, and these get MM's."""

    class Bowl(ib.Energy):
        def value(self, z: Tensor, x: Tensor) -> Tensor:
            return (0.5 * z**2 - x * z).sum(-1)

    made, x = newton.projected_newton, torch.linspace(-2.0, 2.0, 10, dtype=torch.float64).reshape(5, 2)

    def failing(*arguments: object, **settings: object) -> object:
        found = made(*arguments, **settings)
        found.accepted[[0, 3]] = False
        return found

    monkeypatch.setattr(newton, "projected_newton", failing)
    monkeypatch.setattr(newton, "rounding_accepted", lambda objective, found, tol: found)
    steps = []
    monkeypatch.setattr(newton, "run", lambda *given: steps.append(len(given[2])) or run(*given))
    found = ib.find_critical_point(Bowl(2, convex=True), "tanh", x, solver="newton")
    assert steps == [2]
    assert bool(found.converged.all())
    assert float((found.value - x.clamp(-1, 1)).abs().max()) <= 1e-9


def test_max_iter_is_kept() -> None:
    problem = make_problem(dim=30, batch=4, condition=1e3, regularization=1e-3)
    found = solve(problem, "newton", max_iter=1)
    assert bool((found.status == ib.Status.MAX_ITER).all())
    assert "max_iter" in found.message


def test_nothing_is_decomposed_that_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The spectrum of W costs more than the whole solve: it is for MM alone."""
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda *a: pytest.fail("spectrum asked for"))
    layer = ib.BregmanDEQ(6, 8)
    layer(torch.randn(3, 6)).sum().backward()
    assert bool(torch.isnan(layer.last_solution.step).all())


# Trace ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_trace(gamma: float) -> None:
    problem = make_problem(dim=12, batch=4, condition=50.0, active=0.0 if gamma else 0.25, regularization=gamma)
    found = solve(problem, "newton", trace=True)
    trace = found.trace
    assert trace.residual.shape[1] == 4
    assert trace.dual.shape == (*trace.residual.shape, 12)
    assert len(trace.residual) == int(found.iterations.max()) + 1
    first, last = trace.residual[0], torch.stack([r[~r.isnan()][-1] for r in trace.residual.T])
    assert bool((last < first).all())
    # Objective values fall along the way.
    for sample in range(4):
        values = trace.objective[:, sample]
        values = values[~values.isnan()]
        assert bool((values[1:] <= values[:-1] + 1e-12).all())


# A user's energies ------------------------------------------------------------------------------------------------


class Quartic(ib.Energy):
    """Convex, not quadratic: ¼Σ(z − x)⁴ + ½ zᵀAz."""

    def __init__(self, matrix: Tensor, convex: bool = True) -> None:
        super().__init__(convex=convex)
        self.matrix = torch.nn.Parameter(matrix)

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.25 * ((z - x) ** 4).sum(-1) + 0.5 * ((z @ self.matrix) * z).sum(-1)


@pytest.fixture
def quartic() -> Quartic:
    return Quartic(-make_problem(dim=8, batch=1, condition=20.0, seed=5).weight)


@pytest.mark.parametrize("gamma", [0.0, 0.05])
@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "softplus", "arctan"])
@pytest.mark.parametrize("convex", [True, False])
def test_matrix_free_newton(convex: bool, geometry: str, gamma: float, quartic: Quartic) -> None:
    """The cure for energies that have no exact solve: small residuals, and bounds with small multipliers."""
    quartic.convex = convex
    x = 2 * torch.randn(24, 8, dtype=torch.float64)
    found = ib.find_critical_point(quartic, geometry, x, regularization=gamma, solver="newton")
    assert bool(found.converged.all())
    z = found.value.detach()
    with torch.no_grad():
        gradient = quartic.gradient(z, x).detach()
    total = gradient + gamma * found.dual
    lo, hi = ib.geometry(geometry).domain
    left = ((z - total).clamp(lo, hi) - z).abs().amax(-1)
    assert bool((left <= 2e-11 * (1 + gradient.abs().amax(-1))).all())


def test_gradient_of_a_user_energy(quartic: Quartic) -> None:
    x = torch.randn(3, 8, dtype=torch.float64)
    direction = torch.randn(3, 8, dtype=torch.float64)

    def loss() -> Tensor:
        found = ib.find_critical_point(quartic, "tanh", x, regularization=0.05, solver="newton")
        return (found.value * direction).sum()

    loss().backward()
    gradient = quartic.matrix.grad.clone()
    change = torch.randn(8, 8, dtype=torch.float64)
    with torch.no_grad():
        quartic.matrix += 1e-6 * change
        up = loss().item()
        quartic.matrix -= 2e-6 * change
        down = loss().item()
    assert float((gradient * change).sum()) == pytest.approx((up - down) / 2e-6, rel=1e-6)


class DoubleWell(ib.Energy):
    """(z² − ¼)² + small coupling: two minima per coordinate, so that the basin matters."""

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return ((z**2 - 0.25) ** 2).sum(-1) + 0.02 * (z * z.roll(1, -1)).sum(-1) - 0.02 * (x * z).sum(-1)


@pytest.mark.parametrize("gamma", [0.0, 0.01])
def test_not_convex_ends_where_mm_does(gamma: float) -> None:
    energy = DoubleWell()
    x = torch.randn(40, 6, dtype=torch.float64)
    start = (0.8 * torch.rand(40, 6, dtype=torch.float64) - 0.4).clamp(-0.9, 0.9)
    mm, ours = (
        ib.find_critical_point(energy, "tanh", x, start, regularization=gamma, solver=solver)
        for solver in (ib.solvers.MM(tol=1e-9), "newton")
    )
    assert bool(ours.converged.all())
    assert bool(mm.converged.all())
    assert float((mm.value - ours.value).detach().abs().max()) <= 1e-5
    assert len(mm.value.detach().round(decimals=1).unique(dim=0)) > 10
    assert float(ours.evaluations.double().mean()) < float(mm.evaluations.double().mean())


# Robustness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_one_bad_sample_spoils_no_other(gamma: float, dtype: torch.dtype) -> None:
    problem = make_problem(dim=12, batch=6, condition=30.0, regularization=gamma).to(dtype)
    offset = problem.offset.clone()
    offset[2, 3] = torch.nan
    offset[4, 1] = torch.inf
    energy = ib.QuadraticEnergy.from_matrices(problem.weight)
    with pytest.warns(ib.ConvergenceWarning, match="INVALID_INPUT"):
        found = ib.find_critical_point(energy, "tanh", offset, regularization=gamma, solver="newton")
    clean = solve(problem, "newton")
    kept = torch.tensor([0, 1, 3, 5])
    assert found.status[[2, 4]].tolist() == [ib.Status.INVALID_INPUT] * 2
    assert torch.allclose(found.value[kept], clean.value[kept], rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e4, 1e15])
@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_finite_input_never_gives_nan(gamma: float, scale: float, dtype: torch.dtype) -> None:
    problem = make_problem(dim=12, batch=6, condition=30.0).to(dtype)
    weight = problem.weight.clone().requires_grad_()
    energy = ib.QuadraticEnergy.from_matrices(weight)
    settings = ib.solvers.Newton(on_failure="ignore", max_iter=200)
    found = ib.find_critical_point(
        energy, "tanh", scale * problem.offset, regularization=gamma, solver=settings,
        adjoint=ib.adjoints.Implicit(on_failure="ignore"),
    )  # fmt: skip
    assert bool(torch.isfinite(found.value).all())
    assert bool(torch.isfinite(found.dual).all())
    found.value.sum().backward()
    assert bool(torch.isfinite(weight.grad).all())


def test_a_singular_weight_is_no_trap(dtype: torch.dtype) -> None:
    """W ⪯ 0 with a null direction: not unique, so MM's way; and on a box it converges."""
    weight = -torch.diag(torch.tensor([1.0, 0.5, 0.0])).to(dtype)
    offset = torch.tensor([[0.3, 0.2, 0.4], [0.1, -2.0, -0.4]], dtype=dtype)
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(weight), "tanh", offset, solver="newton")
    assert bool(found.converged.all())
    exact = torch.tensor([[0.3, 0.4, 1.0], [0.1, -1.0, -1.0]], dtype=dtype)
    assert torch.allclose(found.value, exact, atol=1e-5)


def test_settings_are_checked() -> None:
    with pytest.raises(TypeError, match="no setting 'memory'"):
        ib.solvers.Newton(memory=3)
    with pytest.raises(ValueError, match="max_iter"):
        ib.solvers.Newton(max_iter=0)


def test_corrections_reach_the_solution_from_any_set() -> None:
    """The active-set iteration by itself, from a useless guess."""
    problem = make_problem(dim=24, batch=8, condition=50.0, active=0.25)
    objective = objective_of(problem)
    useless = torch.full_like(problem.offset, 0.5)
    found = active_set.solve_active_set(objective, useless, torch.zeros_like(useless), 1e-11, corrections=20)
    assert bool(found.accepted.all())
    assert float(relative_error(found.unrounded, problem.solution).max()) <= 1e-9
