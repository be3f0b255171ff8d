"""What is left where rounding, and not the solver, decides: CONVERGED if that is all, at any precision and energy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.solvers.exact import dual_newton
from implicit_bregman.status import Status
from tests.problems import OwnQuadratic

E = ib.QuadraticEnergy.from_matrices
#: ½(z₁ − z₂)² + ½·10⁻³z₂²: Hz cancels where both are large.
CANCELS = torch.tensor([[1.0, -1.0], [-1.0, 1.0 + 1e-3]], dtype=torch.float64)


def cancelling(scale: float, small: float) -> tuple[Tensor, Tensor]:
    """c, and the z > 0 with Hz = c, of which H₂z is `small`."""
    c = torch.tensor([[scale, small]], dtype=torch.float64)
    second = (scale + small) / (CANCELS[1, 1] - 1.0)
    return c, torch.stack([second + scale, second])[None]


@pytest.mark.parametrize("gamma", [0.0, 1e-6])
@pytest.mark.parametrize("geometry", ["bent", "exp", "softplus"])
def test_terms_that_cancel(geometry: str, gamma: float) -> None:
    c, z = cancelling(1e6, 1e-6)
    found = ib.find_critical_point(E(-CANCELS), geometry, c, regularization=gamma)
    assert found.status.tolist() == [Status.CONVERGED]
    torch.testing.assert_close(found.value, z, rtol=1e-8 if not gamma else 1e-2, atol=0)
    # It shows in the residual that float64 could do no better.
    assert 1e-11 < float(found.residual) < 1e-3


@pytest.mark.parametrize("solver", ["mm", "anderson", "broyden", "newton"])
def test_a_monotone_field_too(solver: str) -> None:
    skew = torch.tensor([[0.0, 1e-3], [-1e-3, 0.0]], dtype=torch.float64)
    c, _ = cancelling(1e6, 1e-6)
    found = ib.find_critical_point(E(-CANCELS - skew), "bent", c, solver=solver)
    assert found.status.tolist() == [Status.CONVERGED]
    torch.testing.assert_close(found.value, torch.linalg.solve(CANCELS + skew, c.mT).mT, rtol=1e-8, atol=0)


def test_no_minimiser_is_not_explained_away() -> None:
    """Far out on a ray without curvature rounding hides the slope: that is no minimiser."""
    hessian = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    found = ib.find_critical_point(
        E(-hessian), "softplus", torch.tensor([[1.0, 1.0]], dtype=torch.float64), solver=quiet()
    )
    assert found.status.tolist() == [Status.DIVERGED]


def quiet() -> ib.solvers.Newton:
    return ib.solvers.Newton(on_failure="ignore")


@pytest.mark.parametrize("gamma", [0.0, 0.01])
@pytest.mark.parametrize("geometry", ["identity", "exp", "softplus", "tanh"])
def test_own_energies_in_single_precision(geometry: str, gamma: float, generator: torch.Generator) -> None:
    """Condition 4,000 and z of some thousands: ∇f is rounding long before it is below the tolerance."""
    q = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    hessian = (q * torch.logspace(-3.6, 0, 6, dtype=torch.float64)) @ q.mT
    x = 5 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    exact = ib.find_critical_point(E(-hessian), geometry, x, regularization=gamma).value
    energy, leaf = OwnQuadratic(hessian.float()), x.float().requires_grad_()
    found = ib.find_critical_point(energy, geometry, leaf, regularization=gamma)
    assert bool(found.converged.all())
    assert int(found.iterations.max()) <= 150
    error = torch.linalg.vector_norm(found.value.detach().double() - exact, dim=-1) / torch.linalg.vector_norm(
        exact, dim=-1
    )
    assert float(error.max()) <= 2e-3  # condition times the rounding error
    found.value.sum().backward()
    assert found.adjoint.status.tolist() == [Status.CONVERGED] * 4


def test_slopes_that_are_0_in_all_but_name() -> None:
    """exp(−98) is no normal float32: γ/ρ'(y) overflows."""
    energy = OwnQuadratic(torch.eye(2))
    x = torch.tensor([[1.0, -98.0]], requires_grad=True)
    found = ib.find_critical_point(energy, "exp", x, regularization=1.0)
    found.value.sum().backward()
    assert found.adjoint.status.tolist() == [Status.CONVERGED]
    z = float(found.value[0, 0].detach())
    torch.testing.assert_close(x.grad, torch.tensor([[z / (1 + z), 0.0]]), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("geometry", ["tanh", "isru", "sigmoid", "softplus", "arctan", "sin", "arcsinh", "identity"])
def test_single_precision_needs_no_factorization(
    geometry: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Condition 100, γ = 0.1: Chebyshev steps, and a correction by float64 errors where float32 rounds y."""
    monkeypatch.setattr(dual_newton, "_iterate", lambda *_: pytest.fail("Newton's method is not to be needed"))
    q = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64)).Q
    hessian = ((q * torch.logspace(-2, 0, 64, dtype=torch.float64)) @ q.mT).float()
    c = torch.randn(16, 64, generator=generator)
    found = ib.find_critical_point(E(-(hessian + hessian.mT) / 2), geometry, c, regularization=0.1)
    assert bool(found.converged.all())
