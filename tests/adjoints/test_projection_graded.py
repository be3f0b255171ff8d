"""The projection's adjoint where the slopes differ by many orders of magnitude, against many digits."""

from __future__ import annotations

import mpmath
import pytest
import torch

import implicit_bregman as ib
from implicit_bregman.projection.basis import Basis
from implicit_bregman.projection.system import solve_projection_system
from tests.problems import low_rank


@pytest.mark.parametrize("orders", [0, 8, 20, 60, 150])
@pytest.mark.parametrize("sparse", [False, True])
def test_against_many_digits(orders: int, sparse: bool) -> None:
    torch.manual_seed(orders)
    for size, rank in [(2, 1), (4, 2), (5, 4), (8, 3), (8, 6)]:
        v = torch.randn(size, rank, dtype=torch.float64)
        v = (v > 0).double() if sparse else v
        if torch.linalg.matrix_rank(v) < rank:
            continue
        slope = 10 ** (-orders * torch.rand(1, size, dtype=torch.float64))
        g = torch.randn(1, size, dtype=torch.float64)
        w, p, singular, _ = solve_projection_system(Basis.of(v), slope, torch.zeros(1).double(), g)
        assert not bool(singular.any())
        with mpmath.workdps(3 * orders + 60):
            a, d, b = mpmath.matrix(v.tolist()), mpmath.diag(slope[0].tolist()), mpmath.matrix(g[0].tolist())
            exact_w = mpmath.lu_solve(a.T * d * a, a.T * d * b)
            exact_p = d * (b - a * exact_w)
            assert mpmath.norm(exact_w - mpmath.matrix(w[0].tolist())) <= 1e-7 * mpmath.norm(exact_w)
            assert mpmath.norm(exact_p - mpmath.matrix(p[0].tolist())) <= 1e-9 * mpmath.norm(exact_p)


@pytest.mark.parametrize("apart", [1.0, 10.0, 50.0, 300.0])
def test_the_gradient_of_a_confident_softmax(apart: float) -> None:
    """z = softmax(y⁰): dz₁/dy₁ = z₁z₂ is as small as e^−300, and not 0, nor a rounding error."""
    dual = torch.tensor([[0.0, -apart]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    found = ib.find_critical_point(low_rank([[1.0], [1.0]]), "exp", one, initial_dual=dual)
    found.value[0, 0].backward()
    with mpmath.workdps(200):
        e = mpmath.exp(-mpmath.mpf(apart))
        expected = float(e / (1 + e) ** 2)
    torch.testing.assert_close(dual.grad[0].tolist(), [expected, -expected], rtol=1e-10, atol=0)
    assert found.adjoint.status.tolist() == [ib.Status.CONVERGED]
