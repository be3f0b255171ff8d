"""Gradients at the ends of the range: small γ, large z, cotangents of any size, samples that fail."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

import implicit_bregman as ib

DTYPES = (torch.float32, torch.float64)


def gradient_of_offset(
    weight: Tensor, offset: Tensor, geometry: str, gamma: float, **options: object
) -> tuple[ib.Solution, Tensor]:
    """The solution, and d(Σz)/dc, (B, d)."""
    x = offset.clone().requires_grad_()
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(weight), geometry, x, None, gamma, **options)
    (gradient,) = torch.autograd.grad(found.value.sum(), x)
    return found, gradient


# Small γ ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["auto", "newton", "mm", "anderson", "broyden"])
@pytest.mark.parametrize("size", [1e-3, 1e-8, 1e-12])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_small_gamma_is_not_rounded_away(solver: str, size: float, dtype: torch.dtype) -> None:
    """At z = 0 tanh has φ'' = 1: dz/dc = 1/(γ + w) with W = −w."""
    weight, offset = torch.full((1, 1), -size, dtype=dtype), torch.zeros(2, 1, dtype=dtype)
    _, gradient = gradient_of_offset(weight, offset, "tanh", size, solver=solver)
    torch.testing.assert_close(gradient, torch.full_like(offset, 0.5 / size), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_small_gamma_next_to_a_large_coordinate(dtype: torch.dtype) -> None:
    """τ is about 1e-3, and τγ = 1e-6 is the rounding error of 1 + τγ in float32."""
    weight = torch.block_diag(torch.tensor([[-1.0, -1000.0], [1000.0, -1.0]]), torch.tensor([[-1e-3]])).to(dtype)
    _, gradient = gradient_of_offset(weight, torch.zeros(1, 3, dtype=dtype), "tanh", 1e-3)
    assert float(gradient[0, 2]) == pytest.approx(500.0, rel=1e-5)


# One MM step at the solution, where MM has no fixed step ------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "w", "c"),
    [
        *((solver, *of) for solver in ("auto", "mm") for of in ((1.0, 100.0), (0.7, 1e5), (3.0, 1.0))),
        ("auto", 1.0, 1e-3),
        pytest.param("mm", 1.0, 1e-3, marks=pytest.mark.slow),  # (many thousand steps)
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_at_the_solution_contract_where_sigma_is_zero(
    solver: str, w: float, c: float, dtype: torch.dtype
) -> None:
    """exp, f = ½wz² − cz: dz/dc = 1/w. A damped step leaves |1 − λτwz| of the error, and τ ≤ 1/(wz) with τ ≤ 1."""
    weight, offset = torch.full((1, 1), -w, dtype=dtype), torch.full((1, 1), c, dtype=dtype)
    tau = min(1.0, 1 / c)
    if solver == "auto":
        _, one = gradient_of_offset(weight, offset, "exp", 0.0, solver=solver, adjoint="one_step")
        assert float(one) == pytest.approx(tau * c / w, rel=1e-4)
    phantom = ib.adjoints.Phantom(steps=5, damping=0.5)
    of = ib.solvers.MM(exact=False, on_failure="ignore") if solver == "mm" else solver
    found, gradient = gradient_of_offset(weight, offset, "exp", 0.0, solver=of, adjoint=phantom)
    if bool(found.converged.all()):
        assert 0 < float(gradient) <= (1 + 1e-5) / w
        if solver == "auto":
            assert float(gradient) == pytest.approx((1 - (1 - 0.5 * tau * c) ** 5) / w, rel=1e-3)


def test_the_step_at_the_solution_majorizes_for_a_matrix() -> None:
    """Against NumPy's eigenvalues: phantom steps tend to the implicit gradient."""
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    weight = -(root @ root.T) - 0.5 * torch.eye(5, dtype=torch.float64)
    offset = 20 * torch.rand(4, 5, generator=generator, dtype=torch.float64)
    found, one = gradient_of_offset(weight, offset, "exp", 0.2, adjoint="one_step")
    for z, ours in zip(found.value.detach().numpy(), one.numpy(), strict=True):
        half = np.sqrt(np.diag(z))
        tau = min(1.0, 1 / np.linalg.eigvalsh(half @ -weight.numpy() @ half).max())
        np.testing.assert_allclose(ours, z * tau / (1 + 0.2 * tau), rtol=0.1)
    many = ib.adjoints.Phantom(steps=20_000, damping=1.0)
    _, phantom = gradient_of_offset(weight, offset[:1], "exp", 0.2, adjoint=many)
    _, exact = gradient_of_offset(weight, offset[:1], "exp", 0.2)
    torch.testing.assert_close(phantom, exact, rtol=1e-4, atol=1e-6)


# Samples that fail --------------------------------------------------------------------------------------------------

#: Free and not monotone on an unbounded domain: from any start but 0 the iterates run away.
EXPANDING = [[0.5, 1.0], [-1.0, 0.5]]


@pytest.mark.parametrize("adjoint", ["implicit", "phantom", "one_step"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_diverged_sample_has_no_gradient_and_says_so(adjoint: str, dtype: torch.dtype) -> None:
    weight = torch.tensor(EXPANDING, dtype=dtype, requires_grad=True)
    x = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    energy = ib.QuadraticEnergy.from_matrices(weight)
    with pytest.warns(ib.ConvergenceWarning, match="find_critical_point: some samples failed. DIVERGED"):
        found = ib.find_critical_point(energy, "identity", x, solver="mm", adjoint=adjoint)
    assert found.status.tolist() == [ib.Status.DIVERGED, ib.Status.CONVERGED]
    # (the loss may overflow as well)
    of_weight, of_x = torch.autograd.grad((found.value.square() + found.value).sum(), (weight, x))
    if adjoint == "implicit":
        assert found.adjoint.status.tolist() == [ib.Status.DIVERGED, ib.Status.CONVERGED]
        exact = torch.linalg.solve(-weight.detach().T, torch.ones(2, dtype=dtype))
        torch.testing.assert_close(of_x[1], exact, rtol=1e-5, atol=1e-6)
    assert not bool(of_x[0].any())
    assert bool(of_x[1].any())
    assert not bool(of_weight.any()), "z = 0 in the sample that is left"


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_unrolled_sample_that_overflows(checkpoint: bool, dtype: torch.dtype) -> None:
    weight = torch.tensor(EXPANDING, dtype=dtype, requires_grad=True)
    x = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    steps = 300 if dtype == torch.float32 else 2000
    adjoint = ib.adjoints.Unrolled(steps=steps, last=20, checkpoint=checkpoint)
    energy = ib.QuadraticEnergy.from_matrices(weight)
    with pytest.warns(ib.ConvergenceWarning, match="DIVERGED"):
        found = ib.find_critical_point(energy, "identity", x, adjoint=adjoint)
    assert found.status.tolist() == [ib.Status.DIVERGED, ib.Status.TRUNCATED]
    assert bool(found.value.isfinite().all())
    of_weight, of_x = torch.autograd.grad(found.value.sum(), (weight, x))
    alone = ib.find_critical_point(energy, "identity", x[1:], adjoint=adjoint)
    expected_weight, expected_x = torch.autograd.grad(alone.value.sum(), (weight, x))
    torch.testing.assert_close(of_x[1], expected_x[1])
    assert not bool(of_x[0].any())
    torch.testing.assert_close(of_weight, expected_weight)


@pytest.mark.parametrize("steps", [1, 2, 10, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_backtracking_does_not_accept_an_overflow(steps: int, dtype: torch.dtype) -> None:
    """exp from z = 1, c = 100: y = 100 would be the first step with τ = 1. The limit is (134, 68)."""
    weight = torch.tensor([[-1.0, 0.5], [0.5, -1.0]], dtype=dtype, requires_grad=True)
    c = torch.tensor([[100.0, 1.0], [1.0, 1.0]], dtype=dtype, requires_grad=True)
    found = ib.find_critical_point(
        ib.QuadraticEnergy.from_matrices(weight), "exp", c, adjoint=ib.adjoints.Unrolled(steps=steps)
    )
    assert found.status.tolist() == [ib.Status.TRUNCATED] * 2
    gradients = torch.autograd.grad(found.value.sum(), (weight, c))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    if steps == 100:
        assert float(found.value.detach()[0, 0]) > 130


# Cotangents ---------------------------------------------------------------------------------------------------------


def general_layer(d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """W, c and dL/dz of a monotone layer without symmetry."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5 - 1.5 * torch.eye(d).double()
    offset, cotangent = torch.randn(2, 4, d, generator=generator, dtype=torch.float64)
    return weight.to(dtype), offset.to(dtype), cotangent.to(dtype)


@pytest.mark.parametrize("size", [1e-35, 1e-20, 1e-10, 1e10, 1e20, 1e35])
@pytest.mark.parametrize(
    ("method", "symmetric"), [("gmres", False), ("auto", False), ("auto", True), ("cg", True), ("dense", True)]
)
@pytest.mark.parametrize("gamma", [0.0, 0.05])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_size_of_one_cotangent_does_not_matter(
    size: float, method: str, symmetric: bool, gamma: float, dtype: torch.dtype
) -> None:
    """d = 65 is beyond what "auto" factorizes."""
    weight, offset, cotangent = general_layer(65, dtype)
    weight = 0.5 * (weight + weight.T) if symmetric else weight
    energy = ib.QuadraticEnergy.from_matrices(weight)
    x = offset.requires_grad_()
    adjoint = ib.adjoints.Implicit(method=method)
    found = ib.find_critical_point(energy, "tanh", x, None, gamma, adjoint=adjoint)
    (plain,) = torch.autograd.grad(found.value, x, cotangent, retain_graph=True)
    scale = torch.tensor([1.0, size, 0.0, 1.0], dtype=dtype)[:, None]
    (scaled,) = torch.autograd.grad(found.value, x, scale * cotangent)
    assert found.adjoint.status.tolist() == [0] * 4
    scaled[1] /= size
    expected = plain * torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=dtype)[:, None]
    torch.testing.assert_close(scaled, expected, rtol=1e-4, atol=2e-5 if dtype == torch.float32 else 1e-9)
    assert bool((found.gradient_error <= 1e-3).all())


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("adjoint", ["implicit", "shine", "phantom", "one_step", "unrolled"])
def test_a_cotangent_that_is_not_finite_reaches_the_parameters(number: float, adjoint: str) -> None:
    """What a `GradScaler` looks for; warnings are errors here, and there is none."""
    weight = (-torch.eye(2)).requires_grad_()
    x = torch.tensor([[0.1, 0.2], [0.3, 0.4]], requires_grad=True)
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(weight), "tanh", x, adjoint=adjoint)
    cotangent = torch.tensor([[number, 1.0], [1.0, 1.0]])
    of_weight, of_x = torch.autograd.grad(found.value, (weight, x), cotangent)
    assert not bool(of_weight.isfinite().all())
    assert of_x.isfinite().all(-1).tolist() == [False, True]


def test_an_invalid_sample_in_the_loss_spoils_no_other() -> None:
    """The NaN of its value does not come back: it is put in place of the value after the adjoint."""
    weight = (-torch.eye(2)).requires_grad_()
    x = torch.tensor([[torch.nan, 0.2], [0.3, 0.4]], requires_grad=True)
    with pytest.warns(ib.ConvergenceWarning, match="INVALID_INPUT"):
        found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(weight), "tanh", x)
    of_weight, of_x = torch.autograd.grad(found.value.square().sum(), (weight, x))
    torch.testing.assert_close(of_x, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    torch.testing.assert_close(of_weight, torch.tensor([[0.6], [0.8]]) * torch.tensor([[0.3, 0.4]]))


@pytest.mark.parametrize("method", ["auto", "cg", "gmres", "dense"])
def test_an_empty_batch(method: str) -> None:
    weight = (-torch.eye(3)).requires_grad_()
    x = torch.zeros(0, 3, requires_grad=True)
    for gamma in (0.0, 0.3):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            energy = ib.QuadraticEnergy.from_matrices(weight)
            found = ib.find_critical_point(energy, "tanh", x, None, gamma, adjoint=ib.adjoints.Implicit(method=method))
        of_weight, of_x = torch.autograd.grad(found.value.sum(), (weight, x))
        assert of_x.shape == (0, 3)
        assert not bool(of_weight.any())
        assert found.gradient_error.shape == (0,)
