"""Batched CG and GMRES: right, each sample on its own, and honest about systems they cannot solve."""

import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor

from implicit_bregman.linalg import LinearSolution, conjugate_gradient, gcr, gmres

METHODS = (conjugate_gradient, gmres, gcr)
every_method = pytest.mark.parametrize("method", METHODS, ids=["cg", "gmres", "gcr"])


def with_eigenvalues(eigenvalues: Tensor, generator: torch.Generator) -> Tensor:
    """A symmetric matrix with these eigenvalues, in float64."""
    d = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    matrix = (basis * eigenvalues) @ basis.mT
    return 0.5 * (matrix + matrix.mT)


def definite(d: int, condition: float, generator: torch.Generator) -> Tensor:
    return with_eigenvalues(torch.logspace(0, -torch.log10(torch.tensor(condition)), d).double(), generator)


def general(d: int, generator: torch.Generator) -> Tensor:
    """Well conditioned, far from symmetric."""
    return 2 * torch.eye(d, dtype=torch.float64) + torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5


def solve(
    method: object,
    matrix: Tensor,
    rhs: Tensor,
    tol: float | None = None,
    max_iter: int = 500,
    preconditioner: Tensor | None = None,
    **settings: int,
) -> LinearSolution:
    """Run a method in the precision of `rhs`; `preconditioner` is a diagonal."""
    matrix = matrix.to(rhs.dtype)
    tol = (1e-12 if rhs.dtype == torch.float64 else 1e-5) if tol is None else tol
    scale = torch.ones(len(matrix), dtype=rhs.dtype) if preconditioner is None else preconditioner.to(rhs.dtype)
    return method(lambda v: v @ matrix.mT, rhs, lambda r: r / scale, tol, max_iter, **settings)


def residuals(matrix: Tensor, found: Tensor, rhs: Tensor) -> Tensor:
    """‖b − Ax‖ / ‖b‖ per sample, in float64; 0 where b = 0."""
    error = rhs.double() - found.double() @ matrix.mT
    size = torch.linalg.vector_norm(rhs.double(), dim=-1)
    return torch.linalg.vector_norm(error, dim=-1) / torch.where(size > 0, size, 1.0)


# Right --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1.0, 100.0])
@every_method
def test_definite_systems_against_a_dense_solve(
    method: object, condition: float, dtype: torch.dtype, generator: torch.Generator
) -> None:
    matrix = definite(24, condition, generator)
    rhs = torch.randn(5, 24, generator=generator, dtype=torch.float64).to(dtype)
    found = solve(method, matrix, rhs)
    exact = torch.linalg.solve(matrix, rhs.double().mT).mT
    tolerance = condition * (1e-11 if dtype == torch.float64 else 2e-5)
    assert bool(found.converged.all())
    assert bool(found.positive.all())
    assert found.value.dtype == dtype
    assert float((found.value - exact).abs().max() / exact.abs().max()) <= tolerance


def test_general_systems_against_a_dense_solve(dtype: torch.dtype, generator: torch.Generator) -> None:
    matrix = general(24, generator)
    assert not torch.allclose(matrix, matrix.mT)
    rhs = torch.randn(5, 24, generator=generator, dtype=torch.float64).to(dtype)
    found = solve(gmres, matrix, rhs)
    exact = torch.linalg.solve(matrix, rhs.double().mT).mT
    assert bool(found.converged.all())
    assert float((found.value - exact).abs().max()) <= (1e-10 if dtype == torch.float64 else 1e-4)


def test_cg_takes_as_many_products_as_scipy(generator: torch.Generator) -> None:
    # Fewer steps than dimensions: beyond, the order of rounding decides how many there are.
    matrix = definite(40, 10.0, generator)
    rhs = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    found = solve(conjugate_gradient, matrix, rhs, tol=1e-8)
    for sample, b in enumerate(rhs.numpy()):
        steps: list[object] = []
        _, failed = scipy.sparse.linalg.cg(matrix.numpy(), b, rtol=1e-8, atol=0.0, maxiter=500, callback=steps.append)
        assert failed == 0
        assert abs(int(found.iterations[sample]) - len(steps)) <= 1


def test_gmres_against_scipy_with_restarts(generator: torch.Generator) -> None:
    matrix = general(40, generator)
    rhs = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    found = solve(gmres, matrix, rhs, tol=1e-10, restart=8)
    assert bool(found.converged.all())
    for sample, b in enumerate(rhs.numpy()):
        wanted, failed = scipy.sparse.linalg.gmres(matrix.numpy(), b, rtol=1e-10, atol=0.0, restart=8, maxiter=100)
        assert failed == 0
        assert torch.allclose(found.value[sample], torch.from_numpy(wanted), rtol=1e-7, atol=1e-9)


@every_method
def test_reported_residual_is_the_true_one(method: object, dtype: torch.dtype, generator: torch.Generator) -> None:
    matrix = definite(16, 30.0, generator)
    rhs = torch.randn(4, 16, generator=generator, dtype=torch.float64).to(dtype)
    for max_iter in (3, 200):
        found = solve(method, matrix, rhs, max_iter=max_iter)
        slack = 1e-13 if dtype == torch.float64 else 1e-5
        assert torch.allclose(found.residual.double(), residuals(matrix, found.value, rhs), rtol=1e-2, atol=slack)


@every_method
def test_a_preconditioner_changes_the_cost_and_not_the_answer(method: object, generator: torch.Generator) -> None:
    scale = torch.logspace(0, 4, 30).double()
    matrix = definite(30, 3.0, generator) * scale.sqrt() * scale.sqrt()[:, None]
    rhs = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    plain = solve(method, matrix, rhs, tol=1e-10, max_iter=2000)
    helped = solve(method, matrix, rhs, tol=1e-10, preconditioner=matrix.diagonal())
    exact = torch.linalg.solve(matrix, rhs.mT).mT
    assert bool(helped.converged.all())
    assert torch.allclose(helped.value, exact, rtol=1e-5, atol=1e-8)
    assert bool((helped.iterations <= plain.iterations).all())


@every_method
def test_size_of_the_right_hand_side_does_not_matter(method: object, generator: torch.Generator) -> None:
    matrix = definite(12, 10.0, generator)
    rhs = torch.randn(1, 12, generator=generator)
    scale = torch.tensor([1e-15, 1e-8, 1.0, 1e8, 1e15])[:, None]
    found = solve(method, matrix, scale * rhs)
    exact = torch.linalg.solve(matrix, (scale * rhs).double().mT).mT
    assert bool(found.converged.all())
    assert bool(found.positive.all())
    assert float(((found.value - exact) / scale).abs().max()) <= 1e-4


@pytest.mark.parametrize("size", [1e-35, 1e-25, 1e25, 1e35])
@every_method
def test_nor_do_squares_that_leave_the_range(method: object, size: float, generator: torch.Generator) -> None:
    """One such row in float32, and its batch-mates as without it."""
    matrix = definite(12, 10.0, generator)
    rhs = torch.randn(3, 12, generator=generator)
    plain = solve(method, matrix, rhs)
    rhs[1] *= size
    found = solve(method, matrix, rhs)
    assert bool(found.converged.all())
    assert torch.equal(found.value[::2], plain.value[::2])
    torch.testing.assert_close(found.value[1] / size, plain.value[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_gmres_for_matrices_of_any_size(size: float, generator: torch.Generator) -> None:
    matrix = general(8, generator) * size
    rhs = torch.randn(3, 8, generator=generator)
    found = solve(gmres, matrix, rhs)
    assert bool(found.converged.all())
    exact = torch.linalg.solve(matrix, rhs.double().mT).mT
    torch.testing.assert_close(found.value.double() * size, exact * size, rtol=1e-3, atol=1e-4)


def test_an_operator_that_overflows_for_one_sample_spoils_no_other(generator: torch.Generator) -> None:
    matrix = general(6, generator).float()
    rhs = torch.randn(3, 6, generator=generator)
    scale = torch.tensor([1.0, torch.inf, 1.0])[:, None]
    found = gmres(lambda v: scale * (v @ matrix.mT), rhs, lambda r: r, 1e-5, 100)
    clean = gmres(lambda v: v @ matrix.mT, rhs, lambda r: r, 1e-5, 100)
    assert found.converged.tolist() == [True, False, True]
    assert bool(found.value.isfinite().all())
    torch.testing.assert_close(found.value[::2], clean.value[::2])


# Each sample on its own ---------------------------------------------------------------------------------------------


@every_method
def test_results_do_not_depend_on_the_batch(method: object, generator: torch.Generator) -> None:
    matrix = definite(20, 100.0, generator)
    rhs = torch.randn(6, 20, generator=generator, dtype=torch.float64)
    # The first has an easy right-hand side, so that it stops long before its batch-mates.
    rhs[0] = torch.linalg.eigh(matrix)[1][:, 3]
    together = solve(method, matrix, rhs, tol=1e-8)
    for sample in range(6):
        alone = solve(method, matrix, rhs[sample : sample + 1], tol=1e-8)
        # (that all methods are within the tolerance times the condition is all that can be said)
        assert torch.allclose(alone.value[0], together.value[sample], rtol=1e-5 if method is gcr else 1e-6, atol=1e-9)
        if method is conjugate_gradient:
            assert abs(int(alone.iterations) - int(together.iterations[sample])) <= 1


@every_method
def test_a_sample_is_left_alone_once_it_has_converged(method: object, generator: torch.Generator) -> None:
    """To the last bit: it has the value that it had when it converged, however long the others take."""
    matrix = definite(20, 1e4, generator)
    values, vectors = torch.linalg.eigh(matrix)
    easy, hard = vectors[:, 3] + vectors[:, 5], torch.randn(20, generator=generator, dtype=torch.float64)
    settings = {"tol": 1e-8, "restart": 3} if method is gmres else {"tol": 1e-8}
    found = solve(method, matrix, torch.stack([easy, hard]), **settings)
    stopped = int(found.iterations[0])
    assert stopped <= 3
    assert int(found.iterations[1]) > 10
    then = solve(method, matrix, torch.stack([easy, hard]), max_iter=stopped, **settings)
    assert torch.equal(found.value[0], then.value[0])
    assert torch.allclose(found.value[0], vectors[:, 3] / values[3] + vectors[:, 5] / values[5], rtol=1e-7)


def test_cg_counts_the_products_it_makes(generator: torch.Generator) -> None:
    matrix, made = definite(15, 50.0, generator), []

    def operator(v: Tensor) -> Tensor:
        made.append(1)
        return v @ matrix

    rhs = torch.randn(4, 15, generator=generator, dtype=torch.float64)
    found = conjugate_gradient(operator, rhs, lambda r: r, 1e-10, 200)
    assert len(made) == int(found.iterations.max())


@every_method
def test_zero_right_hand_side_is_solved_by_zero(method: object, dtype: torch.dtype, generator: torch.Generator) -> None:
    matrix = definite(10, 10.0, generator)
    rhs = torch.randn(3, 10, generator=generator, dtype=torch.float64).to(dtype)
    rhs[1] = 0
    found = solve(method, matrix, rhs)
    assert bool(found.converged.all())
    assert torch.equal(found.value[1], torch.zeros(10, dtype=dtype))
    assert found.residual[1] == 0
    assert found.iterations[1] == 0
    everywhere = solve(method, matrix, torch.zeros(2, 10, dtype=dtype))
    assert torch.equal(everywhere.value, torch.zeros(2, 10, dtype=dtype))
    assert bool(everywhere.converged.all())


@every_method
def test_empty_batch(method: object, generator: torch.Generator) -> None:
    found = solve(method, definite(10, 10.0, generator), torch.zeros(0, 10))
    assert found.value.shape == (0, 10)
    assert found.converged.shape == (0,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@every_method
def test_a_right_hand_side_that_is_not_finite_spoils_no_other(
    method: object, bad: float, generator: torch.Generator
) -> None:
    matrix = definite(10, 10.0, generator)
    rhs = torch.randn(3, 10, generator=generator)
    clean = solve(method, matrix, rhs)
    rhs[1, 4] = bad
    found = solve(method, matrix, rhs)
    assert found.converged.tolist() == [True, False, True]
    assert torch.allclose(found.value[::2], clean.value[::2], rtol=1e-4)


# Honest -------------------------------------------------------------------------------------------------------------


@every_method
def test_no_nan_where_a_tolerance_cannot_be_reached(
    method: object, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Asked for less than rounding allows, the recurrences run on with residuals far below it."""
    matrix = definite(16, 100.0, generator)
    rhs = torch.randn(4, 16, generator=generator, dtype=torch.float64).to(dtype)
    found = solve(method, matrix, rhs, tol=1e-30 if dtype == torch.float64 else 1e-15, max_iter=2000)
    exact = torch.linalg.solve(matrix, rhs.double().mT).mT
    assert bool(torch.isfinite(found.value).all())
    assert bool(torch.isfinite(found.residual).all())
    error = float((found.value - exact).abs().max() / exact.abs().max())
    assert error <= (1e-11 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize("max_iter", [1, 4])
@every_method
def test_too_few_iterations_are_reported(method: object, max_iter: int, generator: torch.Generator) -> None:
    matrix = definite(20, 100.0, generator)
    found = solve(method, matrix, torch.randn(3, 20, generator=generator, dtype=torch.float64), max_iter=max_iter)
    assert not bool(found.converged.any())
    assert found.iterations.tolist() == [max_iter] * 3
    assert bool((found.residual > 1e-12).all())


def test_cg_reports_an_indefinite_system(dtype: torch.dtype, generator: torch.Generator) -> None:
    eigenvalues = torch.linspace(-1, 2, 12, dtype=torch.float64)
    matrix = with_eigenvalues(eigenvalues, generator)
    vectors = torch.linalg.eigh(matrix)[1]
    rhs = torch.stack([torch.ones(12).double(), vectors[:, -1]]).to(dtype)  # the second never sees the negative ones
    found = solve(conjugate_gradient, matrix, rhs, tol=1e-5)
    assert found.positive.tolist() == [False, True]
    assert found.converged.tolist() == [False, True]
    assert bool(torch.isfinite(found.value).all())


def test_gmres_solves_an_indefinite_system(generator: torch.Generator) -> None:
    matrix = with_eigenvalues(torch.tensor([-2.0, -1.0, 0.5, 1.0, 3.0]).double(), generator)
    rhs = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    found = solve(gmres, matrix, rhs)
    assert bool(found.converged.all())
    assert torch.allclose(found.value, torch.linalg.solve(matrix, rhs.mT).mT)


@every_method
def test_a_singular_system_without_solution_is_reported(
    method: object, dtype: torch.dtype, generator: torch.Generator
) -> None:
    matrix = torch.diag(torch.tensor([0.0, 1.0, 2.0, 3.0])).double()
    rhs = torch.ones(2, 4, dtype=dtype)
    rhs[1, 0] = 0  # this one has a solution
    found = solve(method, matrix, rhs)
    assert found.converged.tolist() == [False, True]
    assert bool(torch.isfinite(found.value).all())
    assert torch.allclose(found.value[1, 1:].double(), torch.tensor([1.0, 1 / 2, 1 / 3]).double(), rtol=1e-5)


@every_method
def test_a_nearly_singular_system_without_solution_stays_finite(
    method: object, dtype: torch.dtype, generator: torch.Generator
) -> None:
    matrix = with_eigenvalues(torch.tensor([0.0, *torch.linspace(1, 10, 7)]).double(), generator)
    found = solve(method, matrix, torch.randn(4, 8, generator=generator, dtype=torch.float64).to(dtype))
    assert bool(torch.isfinite(found.value).all())
    assert bool(torch.isfinite(found.residual).all())
    if method is gmres:  # CG's own residual may be small at a huge iterate: its callers compute the true one
        assert not bool(found.converged.any())


def test_gmres_gives_up_on_a_cycle_that_gains_nothing(generator: torch.Generator) -> None:
    shift = torch.roll(torch.eye(6, dtype=torch.float64), 1, 0)
    rhs = torch.eye(6, dtype=torch.float64)[:1]
    stuck = solve(gmres, shift, rhs, restart=3, max_iter=10_000)
    assert not bool(stuck.converged.any())
    assert int(stuck.iterations) == 3
    assert bool(solve(gmres, shift, rhs).converged.all()), "without a restart it takes d steps"


def test_gmres_makes_no_more_products_than_it_needs(dtype: torch.dtype, generator: torch.Generator) -> None:
    matrix, calls = torch.eye(60, dtype=torch.float64), []
    matrix[0, 1:4] = torch.tensor([0.5, -1.0, 2.0])  # (the minimal polynomial has degree 2)
    rhs = torch.randn(5, 60, generator=generator, dtype=torch.float64).to(dtype)

    def product(v: Tensor) -> Tensor:
        calls.append(1)
        return v @ matrix.to(v.dtype).mT

    found = gmres(product, rhs, torch.Tensor.clone, 1e-5, 500)
    assert bool(found.converged.all())
    assert len(calls) <= 3  # with the one that looks at the result
    assert found.iterations.tolist() == [2] * 5


# GCR ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.3, 0.8, 1.2], ids=["near to 1", "farther", "far"])
def test_gcr_takes_about_as_many_products_as_gmres(
    spread: float, dtype: torch.dtype, generator: torch.Generator
) -> None:
    matrix = torch.eye(80, dtype=torch.float64)
    matrix = matrix + spread * torch.randn(80, 80, generator=generator, dtype=torch.float64) / 80**0.5
    rhs = torch.randn(4, 80, generator=generator, dtype=torch.float64).to(dtype)
    found, wanted = (solve(method, matrix, rhs, tol=1e-4) for method in (gcr, gmres))
    assert bool(found.converged.all())
    assert bool((residuals(matrix, found.value, rhs) <= 1e-4).all())
    assert int(found.iterations.max()) <= int(wanted.iterations.max()) + (2 if spread < 1 else 10)


def test_gcr_for_matrices_of_any_size(generator: torch.Generator) -> None:
    matrix = general(8, generator)
    rhs = torch.randn(3, 8, generator=generator)
    for size in (1e-10, 1e10):
        found = solve(gcr, matrix * size, rhs)
        assert bool(found.converged.all())
        exact = torch.linalg.solve(matrix, rhs.double().mT).mT
        torch.testing.assert_close(found.value.double() * size, exact, rtol=1e-3, atol=1e-4)


def test_gcr_leaves_what_goes_astray_to_gmres(generator: torch.Generator) -> None:
    matrix = general(6, generator).float()
    rhs = torch.randn(3, 6, generator=generator)
    scale = torch.tensor([1.0, torch.inf, 1.0])[:, None]
    found = gcr(lambda v: scale * (v @ matrix.mT), rhs, lambda r: r, 1e-5, 100)
    assert found.converged.tolist() == [True, False, True]
    assert bool(torch.isfinite(found.value).all())
    clean = solve(gmres, matrix.double(), rhs)
    torch.testing.assert_close(found.value[[0, 2]], clean.value[[0, 2]], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_gcr_makes_no_more_products_than_it_may(most: int, generator: torch.Generator) -> None:
    calls = []

    def product(v: Tensor) -> Tensor:
        calls.append(1)
        return v @ matrix.mT

    matrix = 3 * general(30, generator)
    rhs = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    found = gcr(product, rhs, lambda r: r, 1e-3, most)
    assert found.iterations.tolist() == [most] * 2
    assert len(calls) == most
    assert not bool(found.converged.any())


@pytest.mark.parametrize("size", [1e1, 1e3, 1e5])
@pytest.mark.parametrize("tol", [1e-3, 1e-5])
def test_gcr_is_honest_where_steps_grow_before_they_shrink(size: float, tol: float, dtype: torch.dtype) -> None:
    """What is subtracted on the way has rounding errors of the largest residual on the way."""
    eps = torch.finfo(dtype).eps
    tol = tol if dtype == torch.float32 else tol * 1e-7
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.eye(4, dtype=torch.float64)
        matrix += size * torch.randn(4, 4, generator=generator, dtype=torch.float64)
        matrix = matrix.to(dtype).double()
        rhs = torch.randn(3, 4, generator=generator, dtype=torch.float64).to(dtype)
        found = solve(gcr, matrix, rhs, tol)
        reach = torch.linalg.matrix_norm(matrix, 2) * found.value.double().norm(dim=-1) / rhs.double().norm(dim=-1)
        true = residuals(matrix, found.value, rhs)
        assert (true <= 1.5 * tol + 20 * eps * reach)[found.converged].all()
        assert (true <= 0.2 * tol + 2 * found.residual + 20 * eps * reach)[found.converged].all()
