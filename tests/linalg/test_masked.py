"""Solves with the free block of a shared matrix, one free set per sample."""

import pytest
import torch
from torch import Tensor

from implicit_bregman.operators import Costs, Dense

#: Batches that take the three routes: one factorization per set, per sample, and iterations.
ROUTES = ("by set", "by sample", "iterative")


def system(d: int, symmetric: bool, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    """Positive definite if symmetric, else well conditioned."""
    draw = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    matrix = draw @ draw.mT if symmetric else draw
    return (matrix + 2 * torch.eye(d, dtype=torch.float64)).to(dtype)


def free_sets(route: str, batch: int, d: int, generator: torch.Generator) -> Tensor:
    free = torch.rand(batch, d, generator=generator) < 0.6
    free[0], free[1] = False, True
    return free[torch.arange(batch) % 3] if route == "by set" else free


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest) -> str:
    return request.param


def solve_on_free_set(
    matrix: Tensor, free: Tensor, rhs: Tensor, symmetric: bool, definite: bool = False, route: str = "by sample"
) -> tuple[Tensor, Tensor]:
    costs = Costs(free_width=0 if route == "iterative" else 512)
    return Dense(matrix, symmetric, costs=costs).solve_on(free, rhs, definite)


@pytest.mark.parametrize("symmetric", [True, False])
def test_against_a_dense_solve_per_sample(
    route: str, symmetric: bool, dtype: torch.dtype, generator: torch.Generator
) -> None:
    matrix = system(7, symmetric, generator, dtype)
    free = free_sets(route, 48, 7, generator)
    rhs = torch.randn(48, 7, generator=generator, dtype=dtype)
    found, solved = solve_on_free_set(matrix, free, rhs, symmetric, route=route)
    assert bool(solved.all())
    assert found.dtype == dtype
    assert bool((found[~free] == 0).all())
    for sample in range(48):
        F = free[sample]
        exact = torch.linalg.solve(matrix[F][:, F].double(), rhs[sample, F].double())
        assert torch.allclose(found[sample, F].double(), exact, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_entries_outside_the_free_set_do_not_matter(route: str, symmetric: bool, generator: torch.Generator) -> None:
    matrix = system(7, symmetric, generator)
    free = free_sets(route, 48, 7, generator)
    rhs = torch.randn(48, 7, generator=generator, dtype=torch.float64)
    found, _ = solve_on_free_set(matrix, free, rhs, symmetric, route=route)
    other, solved = solve_on_free_set(matrix, free, torch.where(free, rhs, torch.nan), symmetric, route=route)
    assert bool(solved.all())
    assert torch.equal(found, other)


def test_a_right_hand_side_that_is_not_finite_spoils_no_other(route: str, generator: torch.Generator) -> None:
    matrix = system(7, True, generator)
    free = free_sets(route, 48, 7, generator)
    rhs = torch.randn(48, 7, generator=generator, dtype=torch.float64)
    clean, _ = solve_on_free_set(matrix, free, rhs, True, route=route)
    rhs[1] = torch.nan
    found, solved = solve_on_free_set(matrix, free, rhs, True, route=route)
    others = torch.arange(48) != 1
    assert not bool(solved[1])
    assert bool(solved[others].all())
    assert torch.allclose(found[others], clean[others], rtol=1e-10)


@pytest.mark.parametrize("route", ["by set", "by sample"])
def test_blocks_that_are_not_positive_definite_are_refused_on_request(route: str, generator: torch.Generator) -> None:
    matrix = torch.diag(torch.tensor([-1.0, 1.0, 2.0]))
    free = torch.tensor([[True, True, True], [False, True, True]])
    if route == "by set":
        free = free.repeat(10, 1)
    rhs = torch.ones(free.shape)
    _, refused = solve_on_free_set(matrix, free, rhs, True, definite=True, route=route)
    assert refused.tolist() == [False, True] * (len(free) // 2)
    found, solved = solve_on_free_set(matrix, free, rhs, True, route=route)
    assert bool(solved.all())
    assert torch.allclose(found[0], torch.tensor([-1.0, 1.0, 0.5]))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("route", ["by set", "by sample"])
def test_singular_blocks_are_reported(route: str, symmetric: bool) -> None:
    matrix = torch.diag(torch.tensor([0.0, 1.0, 2.0]))
    matrix[1, 2] = 0.0 if symmetric else 0.5
    free = torch.tensor([[True, True, True], [False, True, True], [False, False, False]])
    if route == "by set":
        free = free.repeat(10, 1)
    found, solved = solve_on_free_set(matrix, free, torch.ones(free.shape), symmetric, route=route)
    assert solved[:3].tolist() == [False, True, True]
    assert bool(torch.isfinite(found).all())


def test_empty_batch(generator: torch.Generator) -> None:
    found, solved = solve_on_free_set(
        system(5, True, generator), torch.zeros(0, 5, dtype=torch.bool), torch.zeros(0, 5).double(), True
    )
    assert found.shape == (0, 5)
    assert solved.shape == (0,)
