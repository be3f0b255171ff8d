"""Singular operators that are no matrix: whether there are many minimisers, which one MM goes to, and its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.linalg.nullspace import null_part
from implicit_bregman.operators import Blocks, Dense, Diagonal, Kronecker, LinearOperator, LowRank, Sparse, Stacked, Sum
from tests.problems import normal


def laplacian(d: int) -> Tensor:
    """Of a ring with chords: its null space is that of the constants."""
    matrix = torch.zeros(d, d, dtype=torch.float64)
    for step in (1, 3):
        shift = torch.eye(d, dtype=torch.float64).roll(step, 0)
        matrix += 2 * torch.eye(d) - shift - shift.mT
    return matrix


def gram(d: int, rank: int, seed: int = 0) -> Tensor:
    root = normal(d, rank, seed=seed)
    return root @ root.mT / rank


SINGULAR: dict[str, LinearOperator] = {
    "diagonal": Diagonal(torch.tensor([0.0, 0.5, 1.0, 2.0, 0.0, 1.0]).double()),
    "low rank": LowRank(normal(6, 2)),
    "kronecker": Kronecker(gram(2, 1), gram(3, 3, seed=1)),
    "sparse": Sparse(laplacian(8).to_sparse()),
    "blocks": Blocks([[gram(3, 2), None], [None, Diagonal(torch.ones(2).double())]]),
    "sum": Sum(LowRank(normal(6, 2)), Diagonal(torch.tensor([0.0, 0, 0, 1, 0, 0]).double())),
}


def solved(operator: LinearOperator, geometry: str, x: Tensor, **settings: object) -> tuple[ib.Solution, Tensor]:
    x = x.clone().requires_grad_()
    found = ib.find_critical_point(ib.QuadraticEnergy.from_operator(operator), geometry, x, **settings)
    (gradient,) = torch.autograd.grad(found.value, x, normal(*x.shape, seed=7).to(x.dtype))
    return found, gradient


@pytest.mark.parametrize("geometry", ["tanh", "softplus", "identity"])
@pytest.mark.parametrize("name", SINGULAR)
def test_all_is_that_of_the_matrix(name: str, geometry: str, dtype: torch.dtype) -> None:
    operator = SINGULAR[name].to(dtype)
    x = (0.5 * normal(4, operator.size) @ operator.dense().double()).to(dtype)
    (found, gradient), (twin, other) = (solved(one, geometry, x) for one in (operator, Dense(operator.dense())))
    assert torch.equal(found.status, twin.status)
    assert geometry == "softplus" or set(found.status.tolist()) == {ib.Status.NONUNIQUE}
    close = {"rtol": 0, "atol": 1e-9 if dtype == torch.float64 else 1e-4}
    torch.testing.assert_close(found.value, twin.value, **close)
    torch.testing.assert_close(gradient, other, **close)


def test_each_sample_is_judged_by_its_own_matrix() -> None:
    matrices = torch.stack([laplacian(8), laplacian(8) + torch.eye(8), 2 * laplacian(8)])
    x = 0.3 * (matrices @ normal(3, 8, 1)).squeeze(-1)
    found, gradient = solved(Stacked(matrices), "tanh", x)
    assert found.status.tolist() == [ib.Status.NONUNIQUE, ib.Status.CONVERGED, ib.Status.NONUNIQUE]
    assert set(found.adjoint.status.tolist()) == {ib.Status.CONVERGED}
    cotangent = normal(3, 8, seed=7)
    for row, matrix in enumerate(matrices):
        at = x[row : row + 1].clone().requires_grad_()
        one = ib.find_critical_point(ib.QuadraticEnergy.from_operator(Dense(matrix)), "tanh", at)
        torch.testing.assert_close(found.value[row], one.value[0], rtol=0, atol=1e-9)
        (own,) = torch.autograd.grad(one.value, at, cotangent[row : row + 1])
        torch.testing.assert_close(gradient[row], own[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["low rank", "kronecker"])
def test_a_wide_one_by_its_products(name: str) -> None:
    """MM's limit where MM arrives, and the shortest gradient, which is that of the pseudo-inverse."""
    operator = {
        "low rank": LowRank(normal(600, 20) / 20),
        "kronecker": Kronecker(gram(24, 20), gram(25, 25, seed=1) + torch.eye(25)),
    }[name]
    assert not operator.fits_a_matrix
    x = 0.2 * operator.product(normal(2, operator.size))
    found, gradient = solved(operator, "identity", x)
    assert set(found.status.tolist()) == {ib.Status.NONUNIQUE}
    assert set(found.adjoint.status.tolist()) == {ib.Status.CONVERGED}
    inverse = torch.linalg.pinv(operator.dense(), hermitian=True, rtol=1e-10)
    torch.testing.assert_close(gradient, normal(*x.shape, seed=7) @ inverse, rtol=1e-6, atol=1e-6)
    if bool((found.iterations < 1000).all()):
        torch.testing.assert_close(found.value.detach(), x @ inverse, rtol=0, atol=1e-8)
    assert float((operator.product(found.value.detach()) - x).abs().max()) <= 1e-9


@pytest.mark.parametrize("d", [8, 600])
def test_what_is_unbounded_below_does_not_converge(d: int) -> None:
    operator = Sparse(laplacian(d).to_sparse())
    energy = ib.QuadraticEnergy.from_operator(operator)
    x = torch.ones(1, d, dtype=torch.float64)  # along the null space
    with pytest.warns(ib.ConvergenceWarning):
        found = ib.find_critical_point(energy, "identity", x)
    assert found.status.tolist() == [ib.Status.DIVERGED]
    # (C stops it there)
    held = ib.find_critical_point(energy, "tanh", x)
    assert held.converged.all()
    torch.testing.assert_close(held.value, torch.ones_like(x), rtol=0, atol=1e-9)


def test_the_null_space_is_told_from_small_eigenvalues(dtype: torch.dtype) -> None:
    for least, null in ((0.0, True), (1e-3, False), (0.01 * torch.finfo(dtype).eps, True)):
        values = torch.linspace(0.5, 1.0, 6, dtype=dtype).index_fill(0, torch.tensor([2]), least)
        rows = torch.ones(2, 6, dtype=dtype)
        part, found = null_part(lambda v, h=values: h * v, rows, 1.0, torch.finfo(dtype).eps, 100)
        assert found.tolist() == [null, null]
        expected = torch.zeros_like(rows).index_fill(1, torch.tensor([2]), float(null))
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-9)
