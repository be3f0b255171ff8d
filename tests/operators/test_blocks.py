"""A grid of blocks: what is refused and where it stands, its symmetry, its bounds, and solves by its diagonal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.operators import Blocks, Dense, Diagonal, Kronecker, LinearOperator, Stacked
from tests.problems import definite, normal

EYE, WIDE = torch.eye(2), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("blocks", "kind", "message"),
    [
        (EYE, TypeError, r"list of rows"),
        ([EYE, EYE], TypeError, r"list of rows"),
        ([], ValueError, "at least one row"),
        ([[EYE, None], [EYE]], ValueError, "2 rows and row 1 has 1 blocks"),
        ([[EYE, None]], ValueError, "1 rows and row 0 has 2 blocks"),
        ([[EYE, "0"], [None, EYE]], TypeError, r"blocks\[0\]\[1\] must be an operator, a matrix or None, got str"),
        ([[EYE, EYE[0]], [None, EYE]], ValueError, r"blocks\[0\]\[1\] must be a floating-point matrix.*\(2,\)"),
        (
            [[EYE, EYE.long()], [None, EYE]],
            ValueError,
            r"blocks\[0\]\[1\] must be a floating-point matrix, got torch.int",
        ),
        ([[EYE, EYE.to_sparse()], [None, EYE]], ValueError, r"blocks\[0\]\[1\] has the layout"),
        ([[WIDE]], ValueError, r"blocks\[0\]\[0\] is on the diagonal and must be square, got shape \(2, 3\)"),
        (
            [[EYE, WIDE], [None, EYE]],
            ValueError,
            r"blocks\[0\]\[1\] has shape \(2, 3\), but row 0 is 2 high \(blocks\[0\]\[0\]\) and column 1 is 2 wide "
            r"\(blocks\[1\]\[1\]\)",
        ),
        ([[None, WIDE], [WIDE, EYE]], ValueError, r"blocks\[0\]\[1\] has shape \(2, 3\), .* column 1 is 2 wide"),
        ([[EYE, Diagonal(torch.ones(3))], [None, EYE]], ValueError, r"blocks\[0\]\[1\] has shape \(3, 3\)"),
        ([[EYE, None], [None, None]], ValueError, "row 1 and column 1 of blocks are None throughout"),
        ([[None]], ValueError, "row 0 and column 0"),
        (
            [[Stacked(torch.zeros(4, 2, 2)), None], [None, Stacked(torch.zeros(3, 2, 2))]],
            ValueError,
            r"blocks\[1\]\[1\] is for 3 samples, but blocks\[0\]\[0\] for 4",
        ),
    ],
)
def test_what_does_not_fit_is_named(blocks: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Blocks(blocks)


@pytest.mark.parametrize("place", [(0, 1), (1, 0)])
def test_a_part_without_a_block_of_its_own_is_as_wide_as_its_couplings(place: tuple[int, int]) -> None:
    blocks: list[list[Tensor | None]] = [[torch.eye(3), None], [None, None]]
    blocks[place[0]][place[1]] = torch.ones(3, 2) if place == (0, 1) else torch.ones(2, 3)
    operator = Blocks(blocks)
    assert operator.size == 5
    assert torch.equal(operator.dense()[3:, 3:], torch.zeros(2, 2))
    assert torch.equal(operator.diagonal(), torch.tensor([1.0, 1, 1, 0, 0]))


COUPLING = normal(2, 3)
OPERATOR, SKEW = Diagonal(torch.ones(2)), Dense(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))


@pytest.mark.parametrize(
    ("one", "other", "symmetric"),
    [
        (COUPLING, COUPLING.mT, True),
        (COUPLING, -COUPLING.mT, False),
        (None, None, True),
        (COUPLING, None, False),
        (OPERATOR, OPERATOR, True),
        (SKEW, SKEW, False),
        (SKEW, SKEW.matrix.mT, True),
        (OPERATOR, Diagonal(torch.full((2,), 2.0)), False),
    ],
)
def test_symmetry_is_looked_at(
    one: Tensor | LinearOperator | None, other: Tensor | LinearOperator | None, symmetric: bool
) -> None:
    width = 3 if one is COUPLING else 2
    operator = Blocks([[definite(2), one], [other, definite(width)]])
    assert operator.symmetric is symmetric
    assert torch.equal(operator.dense(), operator.dense().mT) is symmetric
    assert Blocks([[definite(2), one], [other, definite(width)]], symmetric=True).symmetric


def test_one_block_that_is_not_symmetric_is_enough() -> None:
    assert not Blocks([[SKEW, None], [None, EYE]]).symmetric


def test_bounds_are_sharp_for_one_coupling_and_see_through_a_skew_one() -> None:
    coupling = normal(3, 5)
    norm = float(torch.linalg.matrix_norm(coupling, 2))
    eyes = [torch.eye(3).double(), torch.eye(5).double()]
    operator = Blocks([[2 * eyes[0], coupling], [coupling.mT, 2 * eyes[1]]])
    assert operator.bounds() == pytest.approx((2 - norm, 2 + norm))
    skew = Blocks([[2 * eyes[0], coupling], [-coupling.mT, 2 * eyes[1]]])
    assert skew.bounds() == pytest.approx((2, 2))
    one_sided = Blocks([[2 * eyes[0], coupling], [None, 2 * eyes[1]]])
    assert one_sided.bounds() == pytest.approx((2 - norm / 2, 2 + norm / 2))


def test_no_bounds_where_a_part_has_none() -> None:
    class Unknown(Diagonal):
        def bounds(self) -> None:  # type: ignore[override]
            return None

    unknown = Unknown(torch.ones(4))
    assert Blocks([[unknown, None], [None, torch.eye(2)]]).bounds() is None
    eye = torch.eye(4)
    assert Blocks([[eye, unknown], [None, eye]]).bounds() is None


def test_solves_take_few_products_where_the_diagonal_blocks_are_the_trouble() -> None:
    """Two blocks of condition 1e4, weakly coupled: with their own inverses as preconditioner a handful is enough."""
    basis = torch.linalg.qr(normal(60, 60)).Q
    hard = (basis * torch.logspace(0, -4, 60).double()) @ basis.mT
    coupling = 1e-5 * normal(60, 60, seed=1)
    operator = Blocks([[hard, coupling], [coupling.mT, Kronecker(definite(6), definite(10, seed=1))]])
    products = []
    product = operator.product
    operator.product = lambda v, adjoint=False: products.append(1) or product(v, adjoint)  # type: ignore[method-assign]
    v = normal(4, 120, seed=2)
    found = operator.solve(v)
    assert len(products) <= 12
    torch.testing.assert_close(product(found), v, rtol=0, atol=1e-9)
    torch.testing.assert_close(operator.inverted(0.5)(v), operator.solve(v, 0.5))


def test_what_has_no_solution_is_nan() -> None:
    zero = Blocks([[torch.zeros(2, 2), None], [None, torch.eye(2)]])
    assert torch.isnan(zero.solve(torch.ones(1, 4))).all()


@pytest.mark.parametrize("gamma", [0.0, 0.2])
def test_two_branches_of_a_layer(gamma: float, dtype: torch.dtype) -> None:
    """The state of two branches that see each other through C: the equilibrium and all gradients, as of one matrix."""
    parts = [definite(4), definite(3, seed=1), 0.1 * normal(4, 3, seed=2)]
    p, q, c = (part.to(dtype).requires_grad_() for part in parts)
    x, cotangent = 3 * normal(6, 7, seed=3).to(dtype), normal(6, 7, seed=4).to(dtype)
    found = ib.find_critical_point(
        ib.QuadraticEnergy.from_operator(Blocks([[p, c], [c.mT, q]])), "sigmoid", x, regularization=gamma
    )
    whole = torch.cat([torch.cat([p, c], 1), torch.cat([c.mT, q], 1)])
    other = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(-whole), "sigmoid", x, regularization=gamma)
    assert found.converged.all()
    tol = 1e-8 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found.value, other.value, rtol=tol, atol=tol)
    for one, twin in zip(
        torch.autograd.grad(found.value, [p, q, c], cotangent),
        torch.autograd.grad(other.value, [p, q, c], cotangent),
        strict=True,
    ):
        one, twin = (g + g.mT if g.shape[0] == g.shape[1] else g for g in (one, twin))
        torch.testing.assert_close(one, twin, rtol=tol, atol=tol * float(twin.abs().max()))


def test_a_grid_within_a_grid() -> None:
    inner = Blocks([[definite(2), 0.1 * COUPLING], [0.1 * COUPLING.mT, definite(3)]])
    outer = Blocks([[inner, None], [None, Diagonal(torch.ones(2).double())]])
    v = normal(4, 7)
    torch.testing.assert_close(outer.product(outer.solve(v, 0.3)) + 0.3 * outer.solve(v, 0.3), v)
    assert outer.symmetric
    assert outer.bounds() == pytest.approx((min(inner.bounds()[0], 1.0), max(inner.bounds()[1], 1.0)))
    tensors, rebuild = outer.pack()
    assert torch.equal(rebuild(*tensors).dense(), outer.dense())
