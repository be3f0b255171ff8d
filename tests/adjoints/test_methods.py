"""The ways to solve the adjoint system agree, whatever the forward solver did, and say so when they fail."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.experiments.reference.problems import make_problem
from tests.adjoints.helpers import (
    ALL_CASES,
    BOUNDED,
    Case,
    Learned,
    learned_case,
    reference_gradients,
    relative_errors,
    worst_error,
)

METHODS = ("auto", "cg", "gmres", "dense")
CASES = [
    Case("tanh", active=0.34),
    Case("sigmoid", regularization=0.3, stiffness=4.0),
    Case("sin", active=0.34, regularization=0.3),
    Case("bent", active=0.34),
    Case("tanh", "indefinite", active=0.2, weight="symmetric"),
    Case("sigmoid", "general", regularization=0.2, weight="general"),
    Case("arctan", "general", active=0.34, weight="general"),
]
#: Solvers that reach every case without the exact solve.
STEPWISE = [case for case in ALL_CASES if not case.slow]


@pytest.mark.parametrize(
    ("case", "method"),
    [(case, method) for case in CASES for method in METHODS if (case.weight, method) != ("general", "cg")],
    ids=str,
)
def test_methods_agree(case: Case, method: str, dtype: torch.dtype) -> None:
    learned, exact = _in(case, dtype)
    found = learned.gradients(ib.adjoints.Implicit(method=method))
    assert worst_error(found, exact) <= (1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(
    ("kind", "gamma", "method"),
    [
        (kind, gamma, how)
        for kind, gamma in (("convex", 0.0), ("convex", 0.3), ("indefinite", 0.3), ("general", 0.0), ("general", 0.3))
        for how in ("auto", "cg", "gmres")
        if (kind, how) != ("general", "cg")
    ],
)
def test_methods_agree_beyond_the_small_dense_width(kind: str, gamma: float, method: str, dtype: torch.dtype) -> None:
    """At d = 80 `auto` iterates where γ > 0. A small residual is not a small error: compare with the dense solve."""
    active = 0.1 if gamma == 0 or kind == "indefinite" else 0.0
    problem = make_problem(kind, "tanh", dim=80, batch=4, condition=20.0, active=active, regularization=gamma)
    weight = problem.weight.to(dtype).requires_grad_()
    energy = ib.QuadraticEnergy.from_matrices(weight)
    gradients, reports = [], []
    for how in ("dense", method):
        x = problem.offset.to(dtype).requires_grad_()
        solution = ib.find_critical_point(
            energy, "tanh", x, regularization=gamma, adjoint=ib.adjoints.Implicit(method=how)
        )
        assert bool(solution.converged.all())
        gradients.append(torch.autograd.grad(solution.value.square().sum(), (weight, x)))
        reports.append(solution.adjoint)
    for exact, found in zip(*gradients, strict=True):
        assert float((found - exact).norm() / exact.norm()) <= (1e-8 if dtype == torch.float64 else 1e-4)
    assert reports[1].status is not None
    assert not bool(reports[1].status.any())
    if method in ("cg", "gmres"):
        assert reports[1].iterations is not None
        assert int(reports[1].iterations.max()) > 1


@pytest.mark.parametrize("on_bounds", [False, True])
@pytest.mark.parametrize("gamma", [0.1, 1.0])
@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "exp", "identity", "sin"])
def test_chebyshev_steps_give_the_dense_gradient(
    geometry: str, gamma: float, on_bounds: bool, dtype: torch.dtype
) -> None:
    """Also where ρ' is 0 on active bounds (sin), and where nearly all of dL/dz lies on such coordinates."""
    active = 0.2 if geometry == "sin" else 0.0
    problem = make_problem("convex", geometry, 80, 6, 50.0, active, gamma)
    weight = problem.weight.to(dtype).requires_grad_()
    energy = ib.QuadraticEnergy.from_matrices(weight)
    g = torch.randn(6, 80, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    gradients, counts = [], []
    for method in ("dense", "auto", "cg"):
        x = problem.offset.to(dtype).requires_grad_()
        solution = ib.find_critical_point(
            energy, geometry, x, regularization=gamma, adjoint=ib.adjoints.Implicit(method=method)
        )
        flat = problem.geometry.slope(solution.dual) < 0.3
        weighted = torch.where(flat, 1e3 * g, g) if on_bounds else g
        gradients.append(torch.autograd.grad((weighted * solution.value).sum(), (weight, x)))
        assert solution.adjoint.iterations is not None
        counts.append(solution.adjoint.iterations)
        assert not bool(solution.adjoint.status.any())
    for exact, found in zip(gradients[0], gradients[1], strict=True):
        assert float((found - exact).norm() / exact.norm()) <= (1e-9 if dtype == torch.float64 else 1e-4)
    # The steps are the same for all samples, which conjugate gradients are not: these take over where the steps do not
    # get there.
    if dtype == torch.float32 and not on_bounds:
        assert int(counts[1].min()) == int(counts[1].max()) > 0


@pytest.mark.parametrize("case", STEPWISE, ids=str)
@pytest.mark.parametrize("solver", [ib.solvers.MM, ib.solvers.Anderson, ib.solvers.Broyden], ids=lambda s: s.__name__)
def test_without_exact_solve(case: Case, solver: type[ib.solvers.MM], dtype: torch.dtype) -> None:
    """Then the scaled system at the iterate and its next MM iterate does the work."""
    learned, exact = _in(case, dtype)
    solution = learned.solve(solver=solver(exact=False))
    assert bool(solution.converged.all())
    assert not bool(solution.exact.any())
    assert worst_error(learned.differentiate(solution.value), exact) <= (1e-6 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize("case", [case for case in ALL_CASES if case.slow], ids=str)
def test_without_exact_solve_where_mm_is_slow(case: Case, dtype: torch.dtype) -> None:
    learned, exact = _in(case, dtype)
    solution = learned.solve(solver=ib.solvers.Anderson(exact=False, tol=1e-9 if dtype == torch.float64 else 1e-5))
    assert bool(solution.converged.all())
    assert worst_error(learned.differentiate(solution.value), exact) <= (1e-6 if dtype == torch.float64 else 1e-3)
    # The accelerated solvers overshoot into saturation, where τ∇f is lost beside y: converged must still mean exact.
    for solver in (ib.solvers.Anderson, ib.solvers.Broyden):
        solution = learned.solve(solver=solver(exact=False, max_iter=1000, on_failure="ignore"))
        each = _error_per_sample(learned.differentiate(solution.value)["x"], exact["x"])
        assert bool((each[solution.converged] <= (1e-6 if dtype == torch.float64 else 1e-3)).all())
    # Plain MM does not get there. Its gradient is as far off as its point, not more.
    solution = learned.solve(solver=ib.solvers.MM(exact=False, max_iter=1000, on_failure="ignore"))
    assert not bool(solution.converged.all())
    assert worst_error(learned.differentiate(solution.value), exact) <= 1e-2


@pytest.mark.parametrize(
    ("method", "exactly"),
    [("anderson", True), ("broyden", True), ("fixed_point_iter", True), ("fixed_point_iter", False)],
)
def test_torchdeq_on_the_dual_map_gives_the_same_gradient(method: str, exactly: bool) -> None:
    pytest.importorskip("torchdeq")
    learned, exact = learned_case(Case("tanh", active=0.34))
    solution = learned.solve(solver=ib.solvers.TorchDEQ(method, tol=1e-9, exact=exactly))
    assert bool(solution.converged.all())
    assert worst_error(learned.differentiate(solution.value), exact) <= (1e-12 if exactly else 1e-6)


@pytest.mark.parametrize("geometry", [*BOUNDED, "softplus", "bent"], ids=str)
@pytest.mark.parametrize("gamma", [0.0, 1e-2])
@pytest.mark.parametrize("exactly", [True, False])
def test_far_in_saturation(geometry: str, gamma: float, exactly: bool, dtype: torch.dtype) -> None:
    """x a hundred times too large: most coordinates are saturated, φ'' overflows, and the others still count."""
    learned = copy.copy(learned_case(Case(geometry))[0])
    learned.regularization = gamma
    push = torch.tensor([[1.0], [10.0], [100.0]], dtype=torch.float64)
    learned.x = (push * learned.x.detach()).requires_grad_()
    learned = learned.to(dtype)
    exact = reference_gradients(learned)
    tol = 1e-9 if dtype == torch.float64 else 1e-5
    solution = learned.solve(solver=ib.solvers.Anderson(exact=exactly, tol=tol))
    assert bool(solution.converged.all())
    found = learned.differentiate(solution.value)
    # The residual, and with it the error of a point that is not exact, is relative to the size of x.
    limit = 1e-6 if dtype == torch.float64 else 1e-3
    assert worst_error(found, exact) <= (limit if exactly else 10 * limit)
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())


@pytest.mark.parametrize("case", [case for case in ALL_CASES if case.active and case.kind != "indefinite"], ids=str)
@pytest.mark.parametrize("exactly", [True, False], ids=["exact", "plain"])
def test_warm_start_at_the_solution(case: Case, exactly: bool, dtype: torch.dtype) -> None:
    """A dual that is so large that y⁺ rounds to y must not make an active coordinate look free."""
    learned, exact = _in(case, dtype)
    first = learned.solve()
    again = ib.find_critical_point(
        learned.energy,
        learned.geometry,
        learned.x,
        first,
        learned.regularization,
        ib.solvers.MM(exact=exactly, max_iter=50),
    )
    assert bool(again.converged.all())
    assert worst_error(learned.differentiate(again.value), exact) <= (1e-6 if dtype == torch.float64 else 1e-3)
    attached = ib.attach_gradient(learned.energy, learned.geometry, learned.x, first.dual, learned.regularization)
    assert worst_error(learned.differentiate(attached), exact) <= (1e-6 if dtype == torch.float64 else 1e-3)


def test_the_gradient_along_a_trace_tends_to_the_exact_one() -> None:
    learned, exact = learned_case(Case("tanh", active=0.34))
    trace = learned.solve(solver=ib.solvers.MM(trace=True)).trace
    assert trace is not None
    errors = []
    for dual in trace.dual[[0, 5, 10, 20, 40]]:
        value = ib.attach_gradient(learned.energy, learned.geometry, learned.x, dual)
        errors.append(worst_error(learned.differentiate(value), exact))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("exactly", [True, False])
def test_at_a_degenerate_multiplier_the_gradient_is_one_sided(exactly: bool) -> None:
    """W = −I and c = (1, 0.3): z = c, and the first coordinate has just reached its bound, with multiplier 0."""
    x = torch.tensor([[1.0, 0.3], [0.5, 0.3]], dtype=torch.float64, requires_grad=True)
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(2, dtype=torch.float64))
    solution = ib.find_critical_point(energy, "tanh", x, solver=ib.solvers.Anderson(exact=exactly, tol=1e-8))
    assert solution.status.tolist() == [ib.Status.DEGENERATE, ib.Status.CONVERGED]
    assert solution.converged.tolist() == [True, True]
    assert "the gradient is one-sided there" in solution.message
    torch.testing.assert_close(solution.value, x, rtol=0, atol=1e-7)
    (gradient,) = torch.autograd.grad(solution.value.sum(), x)
    # dz/dc is 1 from inside and 0 from outside; the other coordinates have their derivative, 1.
    assert 0 <= float(gradient[0, 0]) <= 1 + 1e-12
    torch.testing.assert_close(gradient[:, 1], torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(gradient[1, 0], torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS)
def test_a_singular_system_is_reported(method: str) -> None:
    """W has a null vector along which z⁰ decides, which MM's steps do not tell; dz/dc does not exist."""
    weight, x, solve = _singular(ib.adjoints.Implicit(method=method))
    solution = solve()
    assert solution.converged.tolist() == [True, True]
    with pytest.warns(ib.ConvergenceWarning, match="implicit adjoint: some samples failed"):
        gradients = torch.autograd.grad(solution.value.sum(), (weight, x))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    status = solution.adjoint.status
    assert status is not None
    assert all(ib.Status(code).failed for code in status.tolist())
    if method != "gmres":
        assert status.tolist() == [ib.Status.SINGULAR] * 2


@pytest.mark.parametrize("method", METHODS)
def test_a_failure_can_raise_or_be_ignored(method: str) -> None:
    _, x, solve = _singular(ib.adjoints.Implicit(method=method, on_failure="raise"))
    value = solve().value.sum()
    with pytest.raises(RuntimeError, match="implicit adjoint: 2 of 2 samples failed"):
        torch.autograd.grad(value, x)
    _, x, solve = _singular(ib.adjoints.Implicit(method=method, on_failure="ignore"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (gradient,) = torch.autograd.grad(solve().value.sum(), x)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("method", ["cg", "gmres"])
def test_too_few_iterations_are_reported(method: str) -> None:
    learned, _ = learned_case(Case("tanh", active=0.34))
    solution = learned.solve(ib.adjoints.Implicit(method=method, max_iter=1))
    with pytest.warns(ib.ConvergenceWarning, match="MAX_ITER"):
        learned.differentiate(solution.value)
    report = solution.adjoint
    assert report.status is not None
    assert report.residual is not None
    assert report.iterations is not None
    assert report.status.tolist() == [ib.Status.MAX_ITER] * 3
    assert bool((report.residual > 1e-3).all())
    assert report.iterations.tolist() == [1, 1, 1]


@pytest.mark.parametrize("method", METHODS)
def test_at_a_saddle_the_derivative_is_the_regular_one(method: str, dtype: torch.dtype) -> None:
    """MM that starts on a saddle stays there. The system is indefinite but regular: v = −W⁻¹g."""
    weight = torch.tensor([[0.5, 0.2, 0.0], [0.2, -0.6, 0.1], [0.0, 0.1, -0.8]], dtype=dtype)
    x = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
    solution = ib.find_critical_point(
        ib.QuadraticEnergy.from_matrices(weight), "tanh", x, adjoint=ib.adjoints.Implicit(method=method)
    )
    cotangent = torch.tensor([[1.0, 2.0, -1.0], [0.0, 1.0, 3.0]], dtype=dtype)
    (found,) = torch.autograd.grad(solution.value, x, cotangent)
    torch.testing.assert_close(found, -torch.linalg.solve(weight, cotangent.T).T)
    assert solution.adjoint.status is not None
    assert not bool(solution.adjoint.status.any())


def test_the_report_is_empty_before_backward() -> None:
    learned, _ = learned_case(Case("tanh", active=0.34))
    report = learned.solve().adjoint
    assert (report.status, report.residual, report.iterations) == (None, None, None)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_cotangent_that_is_not_finite_goes_on_and_spoils_no_other_sample(number: float) -> None:
    """A `GradScaler` looks for it in the parameters' gradients; warnings are errors here, and there is none."""
    learned, exact = learned_case(Case("tanh", active=0.34))
    solution = learned.solve()
    leaves = learned.leaves()
    cotangent = (solution.value + learned.direction).detach()
    cotangent[1, 2] = number
    grads = torch.autograd.grad(solution.value, list(leaves.values()), cotangent, allow_unused=True)
    found = dict(zip(leaves, grads, strict=True))
    assert solution.adjoint.status is not None
    assert solution.adjoint.status.tolist() == [0, ib.Status.INVALID_INPUT, 0]
    assert float(_error_per_sample(found["x"], exact["x"])[[0, 2]].max()) <= 1e-12
    assert bool(found["x"][1].isnan().all())
    assert not any(bool(gradient.isfinite().any()) for name, gradient in found.items() if name in ("bias",))


def test_methods_that_do_not_fit_are_refused() -> None:
    learned, _ = learned_case(Case("tanh", "general", active=0.34, weight="general"))
    with pytest.raises(ValueError, match='"cg" needs a symmetric weight: use method="gmres"'):
        learned.gradients(ib.adjoints.Implicit(method="cg"))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"method": "lu"}, ValueError, "method must be one of auto, cg, gmres, dense, got 'lu'"),
        ({"tol": 0.0}, ValueError, "tol must be positive and finite, got 0.0"),
        ({"tol": -1e-6}, ValueError, "tol must be positive"),
        ({"max_iter": 0}, ValueError, "max_iter must be a whole number of at least 1, got 0"),
        ({"on_failure": "log"}, ValueError, "on_failure must be one of warn, raise, ignore, got 'log'"),
        ({"tolerance": 1e-6}, TypeError, "no setting 'tolerance'; its settings are method, tol, max_iter, on_failure"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ib.adjoints.Implicit(**settings)  # type: ignore[arg-type]


def _in(case: Case, dtype: torch.dtype) -> tuple[Learned, dict[str, Tensor]]:
    learned, exact = learned_case(case)
    if dtype == torch.float64:
        return learned, exact
    rounded = learned.to(dtype)
    return rounded, reference_gradients(rounded)


def _error_per_sample(found: Tensor, exact: Tensor) -> Tensor:
    return (found.double() - exact).norm(dim=-1) / exact.norm(dim=-1)


def _singular(adjoint: ib.adjoints.Implicit) -> tuple[Tensor, Tensor, object]:
    weight = torch.diag(torch.tensor([-1.0, -0.5, 0.0], dtype=torch.float64)).requires_grad_()
    x = torch.tensor([[0.3, -0.2, 0.0], [0.1, 0.2, 0.0]], dtype=torch.float64, requires_grad=True)

    def solve() -> ib.Solution:
        energy = ib.QuadraticEnergy.from_matrices(weight)
        return ib.find_critical_point(energy, "tanh", x, solver="mm", adjoint=adjoint)

    return weight, x, solve


def test_relative_errors_see_a_transposed_weight() -> None:
    """The comparison itself: with non-symmetric W, dL/dW = v zᵀ must not be mistaken for z vᵀ."""
    _, exact = learned_case(Case("tanh", "general", active=0.34, weight="general"))
    wrong = {**exact, "weight_map.entries": exact["weight_map.entries"].T}
    assert relative_errors(wrong, exact)["weight_map.entries"] > 0.1
