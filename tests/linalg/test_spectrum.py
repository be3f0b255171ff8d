"""Ends of the spectrum of a shared matrix, and what they say about definiteness."""

import pytest
import torch

from implicit_bregman.linalg import spectrum


def test_symmetric_matrix(dtype: torch.dtype, generator: torch.Generator) -> None:
    draw = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    matrix = (draw + draw.mT).to(dtype)
    exact = torch.linalg.eigvalsh(matrix.double())
    ends = spectrum(matrix, True)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    assert float(ends.lowest) == pytest.approx(float(exact[0]), abs=tolerance)
    assert float(ends.highest) == pytest.approx(float(exact[-1]), abs=tolerance)
    assert ends.curvature == ends.highest


def test_a_concave_matrix_has_curvature_zero() -> None:
    ends = spectrum(-torch.eye(3), True)
    assert ends.curvature == 0
    assert ends.highest == -1


def test_monotone_matrix_has_the_inverse_of_its_cocoercivity(generator: torch.Generator) -> None:
    """β ≤ ⟨Hv, v⟩/‖Hv‖² for all v, with equality for some: by its own definition, on many directions."""
    draw = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix = 3 * torch.eye(6, dtype=torch.float64) + draw - draw.mT
    ends = spectrum(matrix, False)
    v = torch.randn(20_000, 6, generator=generator, dtype=torch.float64)
    image = v @ matrix.mT
    beta = ((image * v).sum(-1) / image.square().sum(-1)).min()
    assert float(ends.lowest) == pytest.approx(3.0)
    assert float(ends.curvature) >= float(1 / beta) * (1 - 1e-12)
    assert float(ends.curvature) == pytest.approx(float(1 / beta), rel=0.05)


def test_a_matrix_that_is_not_monotone_has_its_norm(generator: torch.Generator) -> None:
    matrix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    ends = spectrum(matrix, False)
    assert ends.lowest < 0
    assert torch.allclose(ends.curvature, torch.linalg.matrix_norm(matrix, 2))


@pytest.mark.parametrize("symmetric", [True, False])
def test_definiteness_beyond_rounding(symmetric: bool, dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    clear, rounding = (spectrum(torch.diag(torch.tensor([s, 1.0], dtype=dtype)), symmetric) for s in (0.1, eps))
    assert clear.is_definite()
    assert not clear.is_definite(-0.2)
    assert not rounding.is_definite(), "an eigenvalue of rounding size proves nothing"
    assert rounding.is_definite(or_semidefinite=True)
    assert rounding.is_definite(0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_matrix_that_is_not_finite_is_refused(symmetric: bool, bad: float) -> None:
    matrix = torch.eye(3)
    matrix[1, 1] = bad
    with pytest.raises(ValueError, match=r"not finite|NaN or infinite"):
        spectrum(matrix, symmetric)


def test_it_keeps_no_graph() -> None:
    ends = spectrum(torch.eye(3, requires_grad=True), True)
    assert not ends.curvature.requires_grad
