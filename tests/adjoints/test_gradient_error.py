"""`Solution.gradient_error`: an estimate to the order of magnitude, by one more Newton step."""

import mpmath
import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.experiments.reference.oracle import reference_gradient, reference_solution
from implicit_bregman.experiments.reference.problems import Problem, make_problem

SILENT = ib.adjoints.Implicit(on_failure="ignore")


def estimate_and_error(
    problem: Problem, solver: ib.solvers.Solver, adjoint: ib.adjoints.Implicit
) -> tuple[Tensor, Tensor]:
    """The estimate, and the true relative error of each sample's v zᵀ, (B,)."""
    weight, offset = problem.weight.clone().requires_grad_(), problem.offset.clone().requires_grad_()
    energy = ib.QuadraticEnergy.from_matrices(weight)
    found = ib.find_critical_point(energy, problem.geometry, offset, None, problem.regularization, solver, adjoint)
    cotangent = torch.randn(problem.offset.shape, generator=torch.Generator().manual_seed(1)).to(problem.dtype)
    assert found.gradient_error is None
    (found.value * cotangent).sum().backward()
    wide = problem.to(torch.float64)
    exact = reference_solution(wide.weight, wide.offset, wide.geometry, wide.regularization)
    v = reference_gradient(
        wide.weight, wide.offset, exact.value, exact.active, wide.geometry, wide.regularization, cotangent.double()
    )
    outer = v[:, :, None] * exact.value[:, None, :]
    ours = offset.grad.double()[:, :, None] * found.value.detach().double()[:, None, :]
    error = torch.linalg.matrix_norm(ours - outer) / torch.linalg.matrix_norm(outer)
    return found.gradient_error.double(), error


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize(
    "settings",
    [
        {"regularization": 0.3},
        {"regularization": 0.05, "geometry": "sigmoid"},
        {"active": 0.0},
        {"active": 0.3},
        {"active": 0.3, "geometry": "arctan"},
    ],
    ids=str,
)
def test_the_order_of_magnitude_of_an_early_stop(settings: dict[str, object], tol: float) -> None:
    problem = make_problem(**{"dim": 16, "batch": 12, "condition": 30.0, "seed": 2, **settings})
    solver = ib.solvers.MM(tol=tol, exact=False, on_failure="ignore")
    estimate, error = estimate_and_error(problem, solver, SILENT)
    ratio = (estimate / error).log10().abs()
    assert float(ratio.median()) <= 1.0, f"median {ratio.median():.2f}"
    assert float(ratio.max()) <= 2.0, f"worst {ratio.max():.2f}"


@pytest.mark.parametrize("tol", [1e-1, 1e-3])
def test_a_backward_solve_that_stops_early(tol: float) -> None:
    problem = make_problem(dim=80, batch=6, condition=100.0, regularization=0.05)
    adjoint = ib.adjoints.Implicit(method="cg", tol=tol)
    estimate, error = estimate_and_error(problem, ib.solvers.Newton(), adjoint)
    assert bool((estimate <= 2 * tol).all())
    assert bool((error <= 30 * estimate).all())
    assert bool((estimate <= 30 * error).all())


@pytest.mark.parametrize("settings", [{"active": 0.2}, {"regularization": 0.1}], ids=str)
def test_default_settings_promise_what_they_keep(settings: dict[str, object], dtype: torch.dtype) -> None:
    problem = make_problem(**{"dim": 32, "batch": 8, "condition": 1e3, **settings}).to(dtype)
    estimate, error = estimate_and_error(problem, ib.solvers.Newton(), ib.adjoints.Implicit())
    limit = 1e-4 if dtype == torch.float32 else 1e-8
    assert float(error.max()) <= limit
    assert float(estimate.max()) <= limit


def test_it_has_the_shape_of_the_batch() -> None:
    layer = ib.BregmanDEQ(4, 6)
    solution = layer.solve(torch.randn(2, 3, 4))
    solution.value.sum().backward()
    assert solution.gradient_error.shape == (2, 3)
    assert layer.last_solution.gradient_error is solution.gradient_error


def test_a_gradient_of_zero_is_no_division_by_zero() -> None:
    layer = ib.BregmanDEQ(4, 6)
    solution = layer.solve(torch.randn(3, 4))
    (0 * solution.value).sum().backward()
    assert bool((solution.gradient_error <= 1e-6).all())


class Cubic(ib.Energy):
    """z³/3 − xz on z ≥ 0: z = √x, dz/dx = 1/(2√x)."""

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return (z**3 / 3 - x * z).sum(-1)


@pytest.mark.parametrize("size", [1e-4, 1e-8, 1e-12])
@pytest.mark.parametrize("geometry", ["bent", "softplus"])
def test_it_is_relative_to_the_size_of_z(geometry: str, size: float) -> None:
    x = torch.full((1, 1), size, dtype=torch.float64, requires_grad=True)
    found = ib.find_critical_point(Cubic(1, convex=True), geometry, x, adjoint=SILENT)
    found.value.sum().backward()
    z, gradient = float(found.value.detach()), float(x.grad)
    error = abs(gradient * z / (0.5) - 1) + abs(gradient / (0.5 / size**0.5) - 1) + abs(z / size**0.5 - 1)
    assert float(found.gradient_error) >= error / 30
    assert float(found.gradient_error) <= max(30 * error, 1e-6)


def test_a_derivative_that_is_infinite_is_flagged() -> None:
    x = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    found = ib.find_critical_point(Cubic(1, convex=True), "bent", x)
    with pytest.warns(ib.ConvergenceWarning, match="implicit adjoint: some samples failed. SINGULAR"):
        found.value.sum().backward()
    assert found.adjoint.status.tolist() == [ib.Status.SINGULAR]
    assert float(found.gradient_error) >= 0.3
    solver = ib.solvers.MM(tol=1e-4, max_iter=300, exact=False, on_failure="ignore")
    early = ib.find_critical_point(Cubic(1, convex=True), "bent", x, solver=solver)
    early.value.sum().backward()
    assert float(early.gradient_error) >= 0.3


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("exactly", [True, False])
def test_the_size_of_the_loss_does_not_matter(scale: float, exactly: bool) -> None:
    problem = make_problem(dim=16, batch=4, condition=30.0, active=0.3, seed=2).to(torch.float32)
    x = problem.offset.clone().requires_grad_()
    solver = ib.solvers.MM(tol=1e-3, exact=exactly)
    energy = ib.QuadraticEnergy.from_matrices(problem.weight)
    found = ib.find_critical_point(energy, problem.geometry, x, None, 0.0, solver, SILENT)
    found.value.sum().backward(retain_graph=True)
    plain = found.gradient_error
    (scale * found.value).sum().backward()
    torch.testing.assert_close(found.gradient_error, plain, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1e-3])
def test_the_size_of_z_does_not_matter(gamma: float) -> None:
    """tanh is odd and nearly linear at z ~ 1e-16, which is exact to rounding."""
    x = torch.tensor([[1e-16, -2e-16]], dtype=torch.float64, requires_grad=True)
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(2, dtype=torch.float64))
    for solver in ("auto", "mm"):
        found = ib.find_critical_point(energy, "tanh", x, None, gamma, solver, SILENT)
        found.value.sum().backward()
        z = found.value.detach()
        error = float((z * (1 + gamma) / x.detach() - 1).abs().max())
        assert float(found.gradient_error) >= error / 30
        assert float(found.gradient_error) <= 30 * error + 1e-9


SOLVERS = {"mm": ib.solvers.MM, "anderson": ib.solvers.Anderson, "broyden": ib.solvers.Broyden}


@pytest.mark.slow
def test_within_a_factor_of_thirty() -> None:
    """Over geometries, γ, solvers and tolerances: nine of ten, and hardly any far below a gradient that is wrong."""
    good, far_below, count = 0, 0, 0
    for number, (geometry, gamma) in enumerate(
        (name, gamma)
        for name in ("tanh", "sigmoid", "softplus", "bent", "arctan", "exp")
        for gamma in (0.0, 1e-3, 1e-2, 0.1, 1.0)
    ):
        for solver, method in SOLVERS.items():
            tol = 10.0 ** -(2 + (number + len(solver)) % 6)
            generator = torch.Generator().manual_seed(number)
            root = torch.randn(8, 8, generator=generator, dtype=torch.float64)
            weight = -(root @ root.T) / 8 - 0.05 * torch.eye(8).double()
            x, g = torch.randn(2, 4, 8, generator=generator, dtype=torch.float64)
            x = x.requires_grad_()
            energy = ib.QuadraticEnergy.from_matrices(weight)
            outer = []
            for how in (method(tol=tol, exact=False, max_iter=1000, on_failure="ignore"), ib.solvers.Newton()):
                found = ib.find_critical_point(energy, geometry, x, None, gamma, how, SILENT)
                (v,) = torch.autograd.grad(found.value, x, g)
                outer.append((v[:, :, None] * found.value.detach()[:, None, :], found.gradient_error))
            (ours, estimate), (exact, _) = outer
            error = torch.linalg.matrix_norm(ours - exact) / torch.linalg.matrix_norm(exact)
            ratio = (estimate / error)[error > 1e-9]
            good += int(((ratio >= 1 / 30) & (ratio <= 30)).sum())
            far_below += int((ratio < 1 / 30).sum())
            count += len(ratio)
    assert count >= 250
    assert good >= 0.9 * count, f"{good} of {count}"
    assert far_below <= 0.02 * count, f"{far_below} of {count}"


@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "softplus", "exp"])
@pytest.mark.parametrize("gamma", [0.002, 0.03])
def test_a_saturated_unit_passes_its_own_error_on(geometry: str, gamma: float, dtype: torch.dtype) -> None:
    """ρ'(y)/γ changes by a factor with y: what E and rounding leave of an error in y is the error of the gradient."""
    pushes = [-40.0, -27.0, -14.0, -7.0, -3.0]
    x = (gamma * torch.tensor(pushes, dtype=dtype)[:, None]).requires_grad_()
    weight = torch.tensor([[-0.3]], dtype=dtype)
    energy = ib.QuadraticEnergy.from_matrices(weight)
    found = ib.find_critical_point(energy, geometry, x, None, gamma, "auto", SILENT)
    found.value.sum().backward()
    rho = {
        "tanh": mpmath.tanh,
        "sigmoid": lambda y: 1 / (1 + mpmath.exp(-y)),
        "softplus": lambda y: mpmath.log1p(mpmath.exp(y)),
        "exp": mpmath.exp,
    }[geometry]
    with mpmath.workdps(120):
        stiff = mpmath.mpf(-float(weight))
        for row in range(len(pushes)):
            c = mpmath.mpf(float(x.detach()[row]))
            begin = mpmath.mpf(float(found.dual.detach()[row]))
            y = mpmath.findroot(lambda y, c=c: gamma * y + stiff * rho(y) - c, begin)
            slope = mpmath.diff(rho, y)
            error = float(abs(mpmath.mpf(float(x.grad[row])) * (gamma + stiff * slope) / slope - 1))
            told = float(found.gradient_error[row])
            assert told >= error / 30 or error <= torch.finfo(dtype).eps
            assert told <= 30 * error + 1e4 * torch.finfo(dtype).eps, (told, error)


@pytest.mark.parametrize("solver", ["auto", "newton", "mm"])
def test_a_multiplier_at_a_bound_is_no_error(solver: str, dtype: torch.dtype) -> None:
    """φ' of `sin` is finite at ±1: E is not 0 there for γ > 0 either."""
    x = torch.tensor([[3.0, 0.2], [0.1, -2.0]], dtype=dtype, requires_grad=True)
    weight = torch.tensor([[-1.0, 0.3], [0.3, -0.8]], dtype=dtype)
    energy = ib.QuadraticEnergy.from_matrices(weight)
    found = ib.find_critical_point(energy, "sin", x, None, 0.1, solver, SILENT)
    found.value.sum().backward()
    assert (found.value.abs() == 1).any(-1).all()
    assert float(found.gradient_error.max()) <= (1e-8 if dtype == torch.float64 else 1e-3)
