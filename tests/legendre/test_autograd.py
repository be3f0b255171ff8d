"""Derivatives: right to second order, forward and backward, and far beyond where the chain rule would lose them."""

import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from implicit_bregman.legendre import LegendreFunction, geometry
from tests.versions import needs_torch

DUAL_MAPS = ("activation", "conjugate", "curvature", "log_curvature", "slope", "dual_potential")
PRIMAL_MAPS = ("inverse_activation", "potential")


def interior(case: Any, primal: bool = False) -> Tensor:
    """Points inside the clamp of sin (±π/2) that need a gradient."""
    y = case.inside(torch.tensor([-1.3, -0.6, 0.0, 0.2, 0.9, 1.4], dtype=torch.float64))
    return (case.geometry.activation(y) if primal else y).requires_grad_()


@pytest.mark.parametrize("method", DUAL_MAPS + PRIMAL_MAPS)
def test_first_and_second_derivatives(case: Any, method: str) -> None:
    x = interior(case, primal=method in PRIMAL_MAPS)
    function = getattr(case.geometry, method)
    # Boxes have steep walls: φ'' up to 300 at these points.
    assert gradcheck(function, x, eps=1e-7, rtol=1e-5, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, x, eps=1e-7, rtol=1e-4)


@pytest.mark.parametrize("method", ["divergence", "dual_divergence"])
def test_derivatives_of_the_divergence(case: Any, method: str) -> None:
    x = interior(case, primal=method == "divergence")
    left = x.detach()[:4, None].clone().requires_grad_()
    right = x.detach()[[1, 0, 3, 5], None].clone().requires_grad_()
    function = getattr(case.geometry, method)
    assert gradcheck(function, (left, right), eps=1e-7, rtol=1e-5, check_forward_ad=True)
    assert gradgradcheck(function, (left, right), eps=1e-7, rtol=1e-4)
    # Broadcasting and a single differentiable argument.
    total = function(left.detach(), right[0]).sum()
    (gradient,) = torch.autograd.grad(total, right)
    expected = torch.autograd.grad(function(left.detach(), right[0].expand_as(left)).sum(), right)[0]
    torch.testing.assert_close(gradient, expected)


def test_named_derivatives(case: Any, dtype: torch.dtype) -> None:
    """(φ*)' = ρ, φ' = ρ⁻¹, ρ' = slope, bit for bit."""
    phi: LegendreFunction = case.geometry
    y = interior(case).detach().to(dtype).requires_grad_()
    z = phi.activation(y).detach().requires_grad_()
    for value, variable, expected in (
        (phi.activation(y), y, phi.slope(y)),
        (phi.conjugate(y), y, phi.activation(y)),
        (phi.potential(z), z, phi.inverse_activation(z)),
    ):
        (gradient,) = torch.autograd.grad(value.sum(), variable)
        assert torch.equal(gradient, expected)


def test_derivative_at_huge_duals(case: Any, dtype: torch.dtype) -> None:
    """The derivative of ρ is the slope itself where ρ has rounded to its bound, and is never NaN."""
    phi: LegendreFunction = case.geometry
    y = case.inside(torch.tensor([-1e30, -1e5, -90.0, -10.0, 0.0, 10.0, 90.0, 1e5, 1e30], dtype=dtype))
    y.requires_grad_()
    (gradient,) = torch.autograd.grad(phi.activation(y).sum(), y, create_graph=True)
    assert torch.equal(gradient, phi.slope(y))
    (second,) = torch.autograd.grad(gradient.sum(), y)
    assert torch.isfinite(second).all()
    for method in ("log_curvature", "slope", "conjugate"):
        (gradient,) = torch.autograd.grad(getattr(phi, method)(y).sum(), y)
        assert not torch.isnan(gradient).any(), method


def test_slope_survives_saturation() -> None:
    """1 − tanh² is 0 from y = 9 on in float32; the derivative is not."""
    y = torch.tensor([12.0], requires_grad=True)
    phi = geometry("tanh")
    assert phi.activation(y).item() == 1.0
    phi.activation(y).backward()
    assert y.grad is not None
    assert y.grad.item() == pytest.approx(4 * math.exp(-24.0), rel=1e-6)


def test_clamped_sin_has_no_slope() -> None:
    y = torch.tensor([-3.0, 0.5, 3.0, math.pi / 2], requires_grad=True)
    phi = geometry("sin")
    for method, expected in (
        ("activation", math.cos(0.5)),
        ("curvature", math.sin(0.5) / math.cos(0.5) ** 2),
    ):
        (gradient,) = torch.autograd.grad(getattr(phi, method)(y).sum(), y)
        torch.testing.assert_close(gradient, torch.tensor([0.0, expected, 0.0, 0.0]))


def test_forward_mode(case: Any) -> None:
    phi: LegendreFunction = case.geometry
    y = interior(case).detach()
    tangent = torch.linspace(-1.0, 2.0, y.numel(), dtype=y.dtype)
    value, pushed = torch.func.jvp(phi.activation, (y,), (tangent,))
    assert torch.equal(value, phi.activation(y))
    torch.testing.assert_close(pushed, phi.slope(y) * tangent, rtol=1e-15, atol=0.0)
    # Also where gradients are off: forward mode has a switch of its own.
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(y, tangent)
        found = forward_ad.unpack_dual(phi.activation(dual)).tangent
    assert found is not None
    torch.testing.assert_close(found, phi.slope(y) * tangent, rtol=1e-15, atol=0.0)


def test_transforms_compose(case: Any) -> None:
    phi: LegendreFunction = case.geometry
    y = interior(case).detach()
    batch = torch.stack([y, 0.5 * y])
    # (vectorized code may round a strided input differently)
    torch.testing.assert_close(torch.func.vmap(phi.activation)(batch), phi.activation(batch), rtol=1e-15, atol=0.0)
    per_sample = torch.func.vmap(torch.func.grad(lambda row: phi.activation(row).sum()))(batch)
    torch.testing.assert_close(per_sample, phi.slope(batch), rtol=1e-15, atol=0.0)
    inner = torch.func.grad(lambda row: torch.func.vmap(phi.activation)(row).sum())(batch)
    torch.testing.assert_close(inner, phi.slope(batch), rtol=1e-15, atol=0.0)
    jacobian = torch.func.jacrev(torch.func.jacfwd(phi.conjugate))(y)
    diagonal = torch.einsum("iii->i", jacobian)
    torch.testing.assert_close(diagonal, phi.slope(y), rtol=1e-14, atol=0.0)
    pairs = torch.func.vmap(phi.dual_divergence, in_dims=(0, None))(batch, y)
    torch.testing.assert_close(pairs, phi.dual_divergence(batch, y), rtol=1e-14, atol=0.0)


def test_no_graph_without_need(case: Any) -> None:
    phi: LegendreFunction = case.geometry
    y = interior(case)
    assert phi.activation(y).grad_fn is not None
    assert phi.activation(y.detach()).grad_fn is None
    with torch.no_grad():
        assert phi.activation(y).grad_fn is None
    with torch.inference_mode():
        assert torch.equal(phi.activation(y), phi.activation(y.detach()))


def test_result_is_no_alias(case: Any) -> None:
    """An in-place update of the result must not reach the argument."""
    y = interior(case).detach()
    before = y.clone()
    for method in DUAL_MAPS:
        getattr(case.geometry, method)(y).add_(1.0)
        assert torch.equal(y, before), method


# torch.compile instantiates the autograd function it traces, which torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "fullgraph", [False, pytest.param(True, marks=needs_torch("2.11", "a geometry in one recorded graph"))]
)
@pytest.mark.parametrize("name", ["tanh", "isru", "softplus"])
def test_compiled_matches_eager(name: str, fullgraph: bool) -> None:
    phi = geometry(name)

    def function(y: Tensor) -> Tensor:
        return phi.activation(y) * phi.log_curvature(y) + phi.slope(y)

    torch.compiler.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=fullgraph)
    y = torch.tensor([-40.0, -1.0, 0.3, 25.0], requires_grad=True)
    torch.testing.assert_close(compiled(y), function(y))
    gradients = [torch.autograd.grad(f(y).sum(), y)[0] for f in (compiled, function)]
    torch.testing.assert_close(*gradients)


def test_gradient_flows_after_unpickling(case: Any) -> None:
    phi = pickle.loads(pickle.dumps(case.geometry))
    y = interior(case)
    (gradient,) = torch.autograd.grad(phi.activation(y).sum(), y)
    assert torch.equal(gradient, case.geometry.slope(y))
