"""A matrix that all samples share, and its factor: definiteness, inverse, twin, nothing computed twice or unasked."""

import pytest
import torch
from torch import Tensor

from implicit_bregman.operators import Costs, Dense, Diagonal
from implicit_bregman.operators.factor import Factor
from tests.problems import matrix_with


def factor_of(matrix: Tensor, **settings: object) -> Factor:
    return Factor(matrix, symmetric=True, **settings)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6])
def test_inverse(condition: float, dtype: torch.dtype, generator: torch.Generator) -> None:
    matrix = matrix_with(torch.logspace(0, -float(torch.tensor(condition).log10()), 24), generator).to(dtype)
    found = factor_of(matrix)
    assert found.is_definite()
    inverse = found.inverse
    assert inverse is not None
    # What refinement needs: ‖I − KH‖ well below 1, whatever the condition.
    error = torch.eye(24).double() - inverse.double() @ matrix.double()
    assert float(torch.linalg.matrix_norm(error, 2)) < 0.1
    assert torch.allclose(inverse, inverse.mT)


def test_an_inverse_that_single_precision_cannot_give_comes_in_double(generator: torch.Generator) -> None:
    easy, hard = (matrix_with(torch.logspace(0, -power, 24), generator).float() for power in (2, 5.5))
    assert factor_of(easy).inverse.dtype == torch.float32
    assert factor_of(hard).inverse.dtype == torch.float64


@pytest.mark.parametrize("least", [-0.5, -1e-3, 0.0])
def test_what_is_not_definite_has_no_inverse(least: float, dtype: torch.dtype, generator: torch.Generator) -> None:
    found = factor_of(matrix_with(torch.linspace(least, 1, 12), generator).to(dtype))
    assert not found.is_definite()
    assert found.inverse is None
    assert found.known_inverse is None
    assert found.is_definite(shift=0.6)


def test_semidefinite_up_to_rounding(dtype: torch.dtype, generator: torch.Generator) -> None:
    found = factor_of(matrix_with(torch.tensor([0.0, 0.5, 1.0]), generator).to(dtype))
    assert not found.is_definite()
    assert found.is_definite(or_semidefinite=True)


def test_not_a_number_is_refused_when_the_spectrum_is_asked_for() -> None:
    found = factor_of(torch.full((3, 3), torch.nan))
    with pytest.raises(ValueError, match=r"not finite|NaN"):
        found.is_definite()


def test_what_is_known_is_not_computed(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    matrix = matrix_with(torch.linspace(0.2, 1, 8), generator)
    calls: list[str] = []
    for name in ("cholesky_ex", "eigvalsh"):
        real = getattr(torch.linalg, name)
        monkeypatch.setattr(torch.linalg, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    known = factor_of(matrix, least=0.1)
    assert known.is_definite()
    assert calls == []
    found = factor_of(matrix)
    assert found.is_definite()
    assert found.inverse is found.inverse
    assert calls == ["cholesky_ex"]
    assert found.spectrum is found.spectrum
    assert calls == ["cholesky_ex", "eigvalsh"]


def test_a_margin_within_rounding_is_not_believed() -> None:
    found = factor_of(torch.diag(torch.tensor([1e8, 0.0])), least=1e-3)
    assert not found.is_definite()


def test_products_in_either_precision(generator: torch.Generator) -> None:
    weight = torch.randn(5, 5, generator=generator)
    found = Dense(weight, symmetric=False)
    v = torch.randn(3, 5, generator=generator)
    assert torch.allclose(found.product(v), v @ weight.mT)
    assert torch.allclose(found.product(v, adjoint=True), v @ weight)
    wide = found.product(v.double())
    assert wide.dtype == torch.float64
    assert torch.equal(wide, v.double() @ weight.double().mT)
    assert found.wide.wide is found.wide


def test_damped_inverse(dtype: torch.dtype, generator: torch.Generator) -> None:
    matrix = matrix_with(torch.linspace(-0.1, 1, 9), generator).to(dtype)
    found = factor_of(matrix)
    damped = found.damped_inverse(0.5)
    exact = torch.linalg.inv(matrix.double() + 0.5 * torch.eye(9).double())
    assert damped.shift == 0.5
    rounding = 1e-4 if dtype == torch.float32 else 1e-12
    assert torch.allclose(damped.inverse.double(), exact, atol=rounding)
    v, b = torch.randn(2, 3, 9, generator=generator).to(dtype)
    assert torch.allclose(damped(v).double(), v.double() @ exact, atol=10 * rounding)
    scaled = damped.scaled(0.25, dtype)(b, v, 2.0, 3.0).double()
    assert torch.allclose(scaled, 2 * b.double() + 0.75 * v.double() @ exact, atol=10 * rounding)
    assert found.damped_inverse(0.5) is damped
    assert found.damped_inverse(0.4) is damped  # near enough to precondition with
    assert found.damped_inverse(0.05) is None  # still indefinite
    assert found.damped_inverse(2.0).shift == 2.0


@pytest.mark.parametrize("largest", [1e-3, 1.0, 50.0])
def test_gradient_step_is_about_the_reciprocal_of_the_largest(largest: float, generator: torch.Generator) -> None:
    eigenvalues = largest * torch.logspace(0, -2, 40)
    guess = factor_of(matrix_with(eigenvalues, generator)).gradient_step
    assert 0.7 <= guess * largest <= 1.6  # a step below 2/λ_max does not overshoot
    exact = factor_of(matrix_with(eigenvalues, generator))
    _ = exact.spectrum
    assert exact.gradient_step * largest == pytest.approx(1.0, rel=1e-4)


def test_gradient_step_of_nothing() -> None:
    assert factor_of(torch.zeros(3, 3)).gradient_step > 0


def test_worth_inverting() -> None:
    costs = Costs(inverse_width=10, inverse_per_sample=3)
    assert [costs.pays_to_invert(*of) for of in ((10, 1), (11, 1), (40, 13), (40, 14))] == [True, False, False, True]


def test_costs_travel_with_the_operator(generator: torch.Generator) -> None:
    costs = Costs(inverse_width=0, inverse_per_sample=0)
    matrix = matrix_with(torch.linspace(0.2, 1, 8), generator).float()
    dear = Dense(matrix, True, costs=costs)
    tensors, rebuild = dear.pack()
    known, remake = dear.pack_known()
    twins = (dear, dear.wide, dear.to(torch.float64), dear.detach(), rebuild(*tensors), remake(*known))
    for twin in (*twins, Dense(matrix, True).with_costs(costs)):
        assert twin.costs == costs
        assert not twin.has_inverse(1000)
    assert Dense(matrix, True).has_inverse(1)


def test_what_is_known_is_passed_on(dtype: torch.dtype, generator: torch.Generator) -> None:
    """To the backward pass by its tensors, to the detached twin as the object itself; not with what it is made of."""
    found = Dense(matrix_with(torch.linspace(0.2, 1, 8), generator).to(dtype).requires_grad_(), True)
    assert len(found.pack_known()[0]) == 1
    inverse, damped = found.factor.inverse, found.damped_inverse(0.3)
    assert found.detach().factor is found.factor
    assert len(found.pack()[0]) == 1
    tensors, rebuild = found.pack_known()
    assert not any(tensor.requires_grad for tensor in tensors)
    again = rebuild(*tensors)
    assert torch.equal(again.factor.known_inverse, inverse)
    assert again.damped.shift == damped.shift
    assert torch.equal(again.damped.inverse, damped.inverse)


def test_systems_of_each_sample(dtype: torch.dtype, generator: torch.Generator) -> None:
    """diag(shift) + diag(left) H diag(right), by each of the ways to solve it."""
    matrix = torch.randn(5, 5, generator=generator).to(dtype)
    shift, left, right, b = torch.rand(4, 3, 5, generator=generator).double()
    wide = matrix.double()
    exact = [torch.diag(s) + torch.diag(p) @ wide @ torch.diag(q) for s, p, q in zip(shift, left, right, strict=True)]
    systems = Dense(matrix, False).systems(shift, left, right)
    found, good = systems.solve(b)
    assert bool(good.all())
    for system, x, y in zip(exact, found, b, strict=True):
        torch.testing.assert_close(system @ x, y)
    other = Dense(matrix.mT, False).systems(shift, left, right, adjoint=True).solve(b)[0]
    torch.testing.assert_close(other, found)
    column, row, rest = left, torch.cat([right, shift[:, :1]], -1), torch.cat([b, b[:, :1]], -1)
    x = systems.solve_bordered(column, row, rest)
    for number, system in enumerate(exact):
        bordered = torch.cat([torch.cat([system, column[number, :, None]], -1), row[number, None]])
        torch.testing.assert_close(bordered @ x[number], rest[number])


def test_symmetric_systems_of_each_sample(generator: torch.Generator) -> None:
    matrix = matrix_with(torch.linspace(-1, 1, 6), generator)
    shift = torch.tensor([2.0, 0.5, 1.0]).double()[:, None].expand(3, 6).clone()
    systems, b = Dense(matrix, True).systems(shift), torch.randn(3, 6, generator=generator).double()
    assert systems.are_definite().tolist()[:2] == [True, False]
    x = systems.solve_symmetric(b[:2].repeat(2, 1)[:3])
    torch.testing.assert_close(x[:2] @ matrix + shift[:2] * x[:2], b[:2])  # (the second by LU)
    alone = Dense(matrix, True).systems(shift[:1])
    torch.testing.assert_close(alone.factorized()(b[:1]), alone.solve_symmetric(b[:1]))
    raised = Dense(matrix, True).systems(shift[1:2]).solve_symmetric(b[1:2], jitter=1.0)
    torch.testing.assert_close(raised @ matrix + 1.5 * raised, b[1:2])


def test_an_operator_of_products_says_that_it_does_not_factorize() -> None:
    operator = Diagonal(torch.ones(3))
    assert not operator.factorizes
    assert operator.damped_inverse(1.0) is None
    with pytest.raises(TypeError, match="Diagonal has no factorizations"):
        operator.systems(torch.ones(2, 3))
