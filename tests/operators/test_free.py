"""Solves with the free blocks through the shared inverse, against a dense solve per sample."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from implicit_bregman.operators import free as module
from implicit_bregman.operators.costs import DEFAULT_COSTS, Costs
from implicit_bregman.operators.factor import Factor
from implicit_bregman.operators.free import free_blocks, solve_free_blocks
from implicit_bregman.operators.packing import packed
from tests.problems import matrix_with

D, BATCH = 14, 9


#: Costs by which the blocks are factorized, iterated with and split into groups.
ROUTES = {"factorized": Costs(), "iterated": Costs(block=0), "grouped": Costs(split_from=0, split_share=1.0)}


@pytest.fixture(params=list(ROUTES))
def route(request: pytest.FixtureRequest) -> str:
    return request.param


def problem(
    share: float, condition: float, dtype: torch.dtype, generator: torch.Generator, costs: Costs = DEFAULT_COSTS
) -> tuple[Factor, Tensor, Tensor, Tensor]:
    eigenvalues = torch.logspace(0, -float(torch.tensor(condition).log10()), D)
    matrix = matrix_with(eigenvalues, generator).to(dtype)
    free = torch.rand(BATCH, D, generator=generator) >= share
    free[0], free[1] = True, False
    rhs, fixed = torch.randn(2, BATCH, D, generator=generator, dtype=torch.float64).to(dtype)
    return Factor(matrix, True, costs=costs), free, rhs, fixed


def exact_solution(matrix: Tensor, free: Tensor, rhs: Tensor, fixed: Tensor) -> Tensor:
    z = torch.where(free, 0.0, fixed.double())
    for sample in range(len(z)):
        F, A = free[sample], ~free[sample]
        right = rhs[sample, F].double() - matrix[F][:, A] @ z[sample, A]
        z[sample, F] = torch.linalg.solve(matrix[F][:, F], right)
    return z


@pytest.mark.parametrize("condition", [3.0, 1e3, 1e6])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.8, 1.0])
def test_against_a_dense_solve(
    route: str, share: float, condition: float, dtype: torch.dtype, generator: torch.Generator
) -> None:
    shared, free, rhs, fixed = problem(share, condition, dtype, generator, ROUTES[route])
    z, excess, solved, products, *_ = solve_free_blocks(shared, free, rhs, fixed)
    assert bool(solved.all())
    assert 1 <= products <= module._REFINEMENTS
    exact = exact_solution(shared.wide.matrix, free, rhs, fixed)
    size = exact.abs().amax(-1, keepdim=True)
    assert float(((z - exact) / size).abs().max()) <= 1e-12 * condition
    # The fixed entries are exact, and the excess is Hz − b with b = 0 outside F.
    assert torch.equal(z[~free], fixed.double()[~free])
    inside = torch.where(free, rhs.double(), 0.0)
    assert torch.allclose(excess, z @ shared.wide.matrix - inside, rtol=0, atol=1e-12 * float(size.max()))


def test_products_are_counted(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    shared, free, rhs, fixed = problem(0.3, 100.0, dtype, generator)
    calls: list[Tensor] = []
    real = shared.wide.excess
    monkeypatch.setattr(shared.wide, "excess", lambda z, b: (calls.append(z), real(z, b))[1])
    products = solve_free_blocks(shared, free, rhs, fixed).products
    assert products == len(calls)


def test_rows_do_not_disturb_each_other(generator: torch.Generator) -> None:
    shared, free, rhs, fixed = problem(0.3, 100.0, torch.float64, generator)
    together, *_ = solve_free_blocks(shared, free, rhs, fixed)
    for sample in range(BATCH):
        row = slice(sample, sample + 1)
        alone, *_ = solve_free_blocks(shared, free[row], rhs[row], fixed[row])
        assert torch.allclose(alone, together[row], rtol=0, atol=1e-11)


def test_entries_outside_the_free_set_do_not_matter(generator: torch.Generator) -> None:
    shared, free, rhs, _ = problem(0.3, 10.0, torch.float32, generator)
    found, *_ = solve_free_blocks(shared, free, rhs)
    other, _, solved, *_ = solve_free_blocks(shared, free, torch.where(free, rhs, torch.nan))
    assert bool(solved.all())
    assert torch.equal(found, other)
    assert bool((found[~free] == 0).all())


def test_an_empty_batch(generator: torch.Generator) -> None:
    shared, free, rhs, fixed = problem(0.3, 10.0, torch.float64, generator)
    z, _, solved, *_ = solve_free_blocks(shared, free[:0], rhs[:0], fixed[:0])
    assert z.shape == (0, D)
    assert solved.shape == (0,)


def test_what_is_not_finite_is_said(generator: torch.Generator) -> None:
    shared, free, rhs, fixed = problem(0.3, 10.0, torch.float64, generator)
    rhs[2, free[2].nonzero()[0]] = torch.inf
    _, _, solved, *_ = solve_free_blocks(shared, free, rhs, fixed)
    assert not bool(solved[2])
    assert bool(solved[torch.arange(BATCH) != 2].all())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 1.0])
def test_kept_factors_give_the_same(route: str, share: float, dtype: torch.dtype, generator: torch.Generator) -> None:
    """What is packed for the backward pass, and unpacked there."""
    costs = replace(ROUTES[route], kept_block=D)
    shared, free, rhs, _ = problem(share, 100.0, dtype, generator, costs)
    tensors, rebuild = packed(free_blocks(shared, free).to_keep(D, costs))
    again = rebuild(*tensors)
    assert (again is None) == (route == "grouped"), "groups are made again in the backward pass"
    first, second = solve_free_blocks(shared, free, rhs), solve_free_blocks(shared, free, rhs, blocks=again)
    assert torch.equal(first.value, second.value)
    assert torch.equal(first.residual, second.residual)


def test_large_factors_are_not_kept(generator: torch.Generator) -> None:
    shared, free, *_ = problem(0.4, 10.0, torch.float64, generator)
    assert free_blocks(shared, free).to_keep(D, Costs(kept_block=0)) is None


def test_one_large_set_among_small_ones_is_solved_apart(generator: torch.Generator) -> None:
    """Padding all to the largest would cost many times as much; values and the gradients that follow are the same."""
    d, batch = 64, 400
    matrix = matrix_with(torch.logspace(0, -1, d), generator)
    free = torch.ones(batch, d, dtype=torch.bool)
    free[:, :2] = False
    free[7, :32] = False
    shared, rhs = Factor(matrix, True), torch.randn(batch, d, generator=generator, dtype=torch.float64)
    blocks = free_blocks(shared, free)
    assert sorted(len(rows) for rows, _ in blocks.groups) == [1, batch - 1]
    assert [rows.tolist() for rows, _ in blocks.groups if len(rows) == 1] == [[7]]
    found = solve_free_blocks(shared, free, rhs)
    few = torch.tensor([0, 7, 200])
    exact = exact_solution(shared.wide.matrix, free[few], rhs[few], torch.zeros(3, d))
    torch.testing.assert_close(found.value[few], exact, rtol=1e-10, atol=1e-11)
    assert blocks.to_keep(d, Costs()) is None
