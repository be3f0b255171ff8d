"""Operator splitting: the same critical points as Newton's method, with and without symmetry."""

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.legendre import separable_geometries

D, B = 12, 9


def problem(symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    root, skew = torch.randn(2, D, D, generator=generator, dtype=torch.float64)
    hessian = root @ root.mT / D + 0.1 * torch.eye(D).double()
    if not symmetric:
        hessian = hessian + (skew - skew.mT) / D**0.5
    x, cotangent = torch.randn(2, B, D, generator=generator, dtype=torch.float64)
    return -hessian.to(dtype), (2 * x).to(dtype), cotangent.to(dtype)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("geometry", [name for name in separable_geometries() if name != "identity"])
def test_it_finds_what_newtons_method_finds(geometry: str, gamma: float, symmetric: bool, dtype: torch.dtype) -> None:
    weight, x, cotangent = problem(symmetric, dtype)
    results = []
    for solver in (ib.solvers.Splitting(), ib.solvers.Newton()):
        w, c = weight.clone().requires_grad_(), x.clone().requires_grad_()
        found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(w), geometry, c, None, gamma, solver)
        assert found.converged.all(), found.status
        results.append((found.value.detach(), *torch.autograd.grad(found.value, [w, c], cotangent)))
    tol = 1e-4 if dtype == torch.float32 else 1e-8
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=tol, atol=tol)


@pytest.mark.parametrize("gamma", [0.0, 0.2])
@pytest.mark.parametrize("geometry", ["tanh", "softplus"])
def test_without_exact_solve(geometry: str, gamma: float) -> None:
    weight, x, cotangent = problem(True, torch.float64)
    plain, exact = (
        ib.find_critical_point(
            ib.QuadraticEnergy.from_matrices(weight), geometry, x.requires_grad_(), None, gamma, solver
        )
        for solver in (ib.solvers.Splitting(exact=False), ib.solvers.Newton())
    )
    assert plain.converged.all()
    assert int(plain.iterations.max()) > 6
    torch.testing.assert_close(plain.value, exact.value, rtol=1e-9, atol=1e-9)
    ours, theirs = (torch.autograd.grad(found.value, x, cotangent)[0] for found in (plain, exact))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_max_iter_is_a_bound() -> None:
    weight, x, _ = problem(False, torch.float64)
    solver = ib.solvers.Splitting(max_iter=7, exact=False, on_failure="ignore")
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(weight), "tanh", x, solver=solver)
    assert int(found.iterations.max()) == 7
    assert (found.status == ib.Status.MAX_ITER).any()


@pytest.mark.parametrize("weight", ["symmetric", "general"])
def test_several_critical_points_are_refused(weight: str) -> None:
    energy = ib.QuadraticEnergy.from_matrices(
        torch.eye(2) if weight == "symmetric" else torch.tensor([[1.0, 2], [0, 1]])
    )
    with pytest.raises(ValueError, match="one critical point"):
        ib.find_critical_point(energy, "tanh", torch.ones(1, 2), solver="splitting")


def test_impossible_settings() -> None:
    with pytest.raises(ValueError, match="step"):
        ib.solvers.Splitting(step=0.0)
    with pytest.raises(ValueError, match="trace"):
        ib.solvers.Splitting(trace=True)


@pytest.mark.parametrize("step", [0.05, 0.5, 5.0])
def test_any_step_leads_there(step: float) -> None:
    weight, x, _ = problem(False, torch.float64)
    energy = ib.QuadraticEnergy.from_matrices(weight)
    found = ib.find_critical_point(energy, "sigmoid", x, regularization=0.3, solver=ib.solvers.Splitting(step=step))
    exact = ib.find_critical_point(energy, "sigmoid", x, regularization=0.3)
    torch.testing.assert_close(found.value, exact.value, rtol=1e-9, atol=1e-9)


def test_operators_without_a_matrix() -> None:
    a, b = (torch.tensor([[2.0, -0.5], [-0.5, 1.0]]).double(), torch.eye(3).double() + 0.2)
    energy = ib.QuadraticEnergy.from_operator(ib.operators.Kronecker(a, b))
    x = torch.randn(4, 6).double()
    for gamma in (0.0, 0.3):
        found = ib.find_critical_point(energy, "tanh", x, regularization=gamma, solver="splitting")
        exact = ib.find_critical_point(energy, "tanh", x, regularization=gamma)
        assert found.converged.all()
        torch.testing.assert_close(found.value, exact.value, rtol=1e-9, atol=1e-9)
