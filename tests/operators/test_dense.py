"""The matrix that all samples share: definiteness, inverse, twin, and that nothing is computed twice or unasked."""

import pytest
import torch
from torch import Tensor

from implicit_bregman.operators import Dense
from implicit_bregman.operators import dense as module


def matrix_with(eigenvalues: Tensor, generator: torch.Generator) -> Tensor:
    """Symmetric, in float64."""
    basis, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator).double())
    matrix = (basis * eigenvalues.double()) @ basis.mT
    return 0.5 * (matrix + matrix.mT)


def shared_of(matrix: Tensor, **settings: object) -> Dense:
    return Dense(matrix, symmetric=True, **settings)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6])
def test_inverse(condition: float, dtype: torch.dtype, generator: torch.Generator) -> None:
    matrix = matrix_with(torch.logspace(0, -float(torch.tensor(condition).log10()), 24), generator).to(dtype)
    found = shared_of(matrix)
    assert found.is_definite()
    inverse = found.inverse
    assert inverse is not None
    # What refinement needs: ‖I − KH‖ well below 1, whatever the condition.
    error = torch.eye(24).double() - inverse.double() @ matrix.double()
    assert float(torch.linalg.matrix_norm(error, 2)) < 0.1
    assert torch.allclose(inverse, inverse.mT)


def test_an_inverse_that_single_precision_cannot_give_comes_in_double(generator: torch.Generator) -> None:
    easy, hard = (matrix_with(torch.logspace(0, -power, 24), generator).float() for power in (2, 5.5))
    assert shared_of(easy).inverse.dtype == torch.float32
    assert shared_of(hard).inverse.dtype == torch.float64


@pytest.mark.parametrize("least", [-0.5, -1e-3, 0.0])
def test_what_is_not_definite_has_no_inverse(least: float, dtype: torch.dtype, generator: torch.Generator) -> None:
    found = shared_of(matrix_with(torch.linspace(least, 1, 12), generator).to(dtype))
    assert not found.is_definite()
    assert found.inverse is None
    assert found.known_inverse is None
    assert found.is_definite(shift=0.6)


def test_semidefinite_up_to_rounding(dtype: torch.dtype, generator: torch.Generator) -> None:
    found = shared_of(matrix_with(torch.tensor([0.0, 0.5, 1.0]), generator).to(dtype))
    assert not found.is_definite()
    assert found.is_definite(or_semidefinite=True)


def test_not_a_number_is_refused_when_the_spectrum_is_asked_for() -> None:
    found = shared_of(torch.full((3, 3), torch.nan))
    with pytest.raises(ValueError, match=r"not finite|NaN"):
        found.is_definite()


def test_what_is_known_is_not_computed(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    matrix = matrix_with(torch.linspace(0.2, 1, 8), generator)
    calls: list[str] = []
    for name in ("cholesky_ex", "eigvalsh"):
        real = getattr(torch.linalg, name)
        monkeypatch.setattr(torch.linalg, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    known = shared_of(matrix, least=0.1)
    assert known.is_definite()
    assert calls == []
    found = shared_of(matrix)
    assert found.is_definite()
    assert found.inverse is found.inverse
    assert calls == ["cholesky_ex"]
    assert found.spectrum is found.spectrum
    assert calls == ["cholesky_ex", "eigvalsh"]


def test_a_margin_within_rounding_is_not_believed() -> None:
    found = shared_of(torch.diag(torch.tensor([1e8, 0.0])), least=1e-3)
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
    found = shared_of(matrix)
    shift, inverse = found.damped_inverse(0.5)
    exact = torch.linalg.inv(matrix.double() + 0.5 * torch.eye(9).double())
    assert shift == 0.5
    assert torch.allclose(inverse.double(), exact, atol=1e-4 if dtype == torch.float32 else 1e-12)
    assert found.damped_inverse(0.5)[1] is inverse
    assert found.damped_inverse(0.4)[1] is inverse  # near enough to precondition with
    assert found.damped_inverse(0.05) is None  # still indefinite
    assert found.damped_inverse(2.0)[0] == 2.0


@pytest.mark.parametrize("largest", [1e-3, 1.0, 50.0])
def test_gradient_step_is_about_the_reciprocal_of_the_largest(largest: float, generator: torch.Generator) -> None:
    eigenvalues = largest * torch.logspace(0, -2, 40)
    guess = shared_of(matrix_with(eigenvalues, generator)).gradient_step
    assert 0.7 <= guess * largest <= 1.6  # a step below 2/λ_max does not overshoot
    exact = shared_of(matrix_with(eigenvalues, generator))
    _ = exact.spectrum
    assert exact.gradient_step * largest == pytest.approx(1.0, rel=1e-4)


def test_gradient_step_of_nothing() -> None:
    assert shared_of(torch.zeros(3, 3)).gradient_step > 0


def test_worth_inverting() -> None:
    def worth(d: int, batch: int) -> bool:
        return Dense(torch.empty(d, d, device="meta"), symmetric=True).is_worth_inverting(batch)

    assert worth(module._ALWAYS, 1)
    assert not worth(4 * module._ALWAYS, 1)
    assert worth(4 * module._ALWAYS, 64)
