"""Half precision, autocast, float64: the stated rule.

Half-precision parameters and inputs are lifted to float32, solved, and the value returned in x's precision. Under
autocast the solve runs in the parameters' precision and returns at least float32.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import implicit_bregman as ib

HALF = [torch.float16, torch.bfloat16]
ADJOINTS = ["implicit", "phantom", "one_step", "unrolled"]


def layer_and_input(dtype: torch.dtype, **settings: object) -> tuple[ib.BregmanDEQ, Tensor]:
    layer = ib.BregmanDEQ(4, 5, **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.energy.bias.copy_(torch.linspace(-0.2, 0.2, 5))
    return layer.to(dtype), torch.randn(6, 4).to(dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("regularization", [0.0, 0.3])
def test_half_precision_parameters(dtype: torch.dtype, adjoint: str, regularization: float) -> None:
    layer, x = layer_and_input(dtype, adjoint=adjoint, regularization=regularization)
    x.requires_grad_()
    z = layer(x)
    assert z.dtype == dtype
    z.sum().backward()

    # The same numbers in float32 give the same, rounded once at the end.
    lifted = copy.deepcopy(layer).float()
    lifted.zero_grad()
    leaf = x.detach().float().requires_grad_()
    exact = lifted(leaf)
    exact.sum().backward()
    tolerance = 0.6 * torch.finfo(dtype).eps
    torch.testing.assert_close(z.float(), exact, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip((x, *layer.parameters()), (leaf, *lifted.parameters()), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.dtype == dtype
        error = (ours.grad.float() - theirs.grad).norm() / theirs.grad.norm()
        assert float(error) <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_solution(dtype: torch.dtype) -> None:
    layer, x = layer_and_input(dtype)
    solution = layer.solve(x)
    assert bool(solution.converged.all())
    assert solution.dual.dtype == torch.float32
    assert solution.residual.dtype == torch.float32
    assert float(solution.residual.max()) <= 1e-6
    again = layer.solve(x, initial=solution)
    assert torch.equal(again.value, solution.value)
    assert layer.solve(x, initial=torch.zeros(6, 5, dtype=dtype)).value.dtype == dtype
    assert layer(x[:0]).shape == (0, 5)
    assert layer.certificate().unique


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_mixed_precisions_are_refused(dtype: torch.dtype) -> None:
    layer, x = layer_and_input(dtype)
    with pytest.raises(ValueError, match=f"x is torch.float32, but .* of the energy is {dtype}: convert one of them"):
        layer(x.float())
    with pytest.raises(ValueError, match=f"x is {dtype}, but .* of the energy is torch.float32: convert one of them"):
        ib.BregmanDEQ(4, 5)(x)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("parameters", [torch.float32, torch.float64], ids=str)
def test_autocast(adjoint: str, parameters: torch.dtype) -> None:
    """The layer before emits bfloat16; the solve, its value and its gradients keep the parameters' precision."""
    layer, x = layer_and_input(parameters, adjoint=adjoint)
    before, after = nn.Linear(4, 4), nn.Linear(5, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = before(x.float())
        z = layer(hidden)
        output = after(z.float())
        loss = output.float().square().mean()
    assert hidden.dtype == torch.bfloat16
    assert output.dtype == torch.bfloat16
    assert z.dtype in (torch.float32, torch.float64)
    assert torch.equal(z.float(), layer(hidden.detach().to(parameters)).float())
    loss.backward()
    assert layer.energy.bias.grad is not None
    assert layer.energy.bias.grad.dtype == parameters
    assert before.weight.grad is not None
    assert bool(before.weight.grad.any())


def test_autocast_gradient_is_the_full_precision_gradient() -> None:
    layer, x = layer_and_input(torch.float32)
    hidden = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = layer(hidden)
    parameters = tuple(layer.parameters())
    found = torch.autograd.grad(z.square().sum(), (hidden, *parameters))
    leaf = hidden.detach().float().requires_grad_()
    expected = torch.autograd.grad(layer(leaf).square().sum(), (leaf, *parameters))
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(found[0].float(), expected[0], rtol=1e-2, atol=1e-2)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_adjoint_system_is_solved_in_full_precision_under_autocast() -> None:
    """Backward inside autocast (which torch advises against) rounds torch's own products, not our solve."""
    layer, x = layer_and_input(torch.float32)
    solution = layer.solve(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (gradient,) = torch.autograd.grad(solution.value.square().sum(), layer.energy.bias)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), layer.energy.bias)
    assert solution.adjoint.residual is not None
    assert float(solution.adjoint.residual.max()) <= 1e-6
    torch.testing.assert_close(gradient, expected)


def test_float64_is_solved_in_float64() -> None:
    layer, x = layer_and_input(torch.float64)
    solution = layer.solve(x)
    assert {t.dtype for t in (solution.value, solution.dual, solution.residual, solution.step)} == {torch.float64}
    assert float(solution.residual.max()) <= 1e-11


def test_the_default_dtype_is_respected() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        layer = ib.BregmanDEQ(4, 5)
        assert layer(torch.randn(2, 4)).dtype == torch.float64
    finally:
        torch.set_default_dtype(before)
    # And does not leak into a float32 layer.
    torch.set_default_dtype(torch.float64)
    try:
        z = ib.BregmanDEQ(4, 5, dtype=torch.float32)(torch.randn(2, 4, dtype=torch.float32))
        z.sum().backward()
        assert z.dtype == torch.float32
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("kind", ["standard", "euclidean", "bregman"])
@pytest.mark.parametrize("dtype", [*HALF, torch.float64], ids=str)
def test_feed_forward_in_every_precision(kind: str, dtype: torch.dtype) -> None:
    network = ib.FeedForward([4, 4, 3], kind=kind).to(dtype)
    x = 0.5 * (2 * torch.rand(5, 4) - 1).to(dtype)
    z = network(x.requires_grad_())
    assert z.dtype == dtype
    z.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    exact = copy.deepcopy(network).double()(x.detach().double())
    torch.testing.assert_close(z.double(), exact, rtol=0, atol=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("kind", ["standard", "euclidean", "bregman"])
@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "arctan"])
def test_feed_forward_under_autocast(kind: str, geometry: str) -> None:
    network = ib.FeedForward([4, 4, 3], geometry, kind)
    x = network.geometry.activation(torch.randn(5, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = network(x)
    torch.testing.assert_close(z.float(), network(x), rtol=0, atol=0.1)
    z.float().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


# Rounding into C ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("box", [(-0.3, 0.7), (0.1, 0.3), (-2.7, -0.1)], ids=str)
@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "isru", "arctan", "sin"])
def test_a_value_is_never_rounded_out_of_the_domain(
    geometry: str, box: tuple[float, float], dtype: torch.dtype
) -> None:
    """At an active bound it is the last number inside, and its gradient is that of the bound."""
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(2).to(dtype))
    x = torch.tensor([[9.0, -9.0], [0.2, 0.2]]).to(dtype).requires_grad_()
    found = ib.find_critical_point(energy, ib.geometry(geometry).to_box(*box), x)
    value = found.value.detach().double()
    assert bool(((value >= box[0]) & (value <= box[1])).all())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(value, x.detach().double().clamp(*box), rtol=eps, atol=0)
    found.value.sum().backward()
    assert x.grad[0].tolist() == [0.0, 0.0]


def test_a_gradient_passes_where_the_value_was_rounded_inwards() -> None:
    """z = 0.69995 in float32, 0.7002 in bfloat16: the number below it is returned, and dz/dx is 1."""
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(1, dtype=torch.bfloat16), torch.ones(1, 1).bfloat16())
    x = torch.full((1, 1), 0.69921875, dtype=torch.bfloat16, requires_grad=True)
    found = ib.find_critical_point(energy, ib.geometry("tanh").to_box(0.0, 0.69922), x)
    found.value.sum().backward()
    assert found.value.item() == 0.69921875
    assert x.grad.item() == 1.0


def test_a_value_beyond_half_precision_has_a_status() -> None:
    energy = ib.QuadraticEnergy.from_matrices(-0.1 * torch.eye(1).half(), torch.eye(1).half())
    x = torch.tensor([[7000.0], [6000.0]]).half()
    with pytest.warns(ib.ConvergenceWarning, match="OVERFLOW: the value exceeds the range .* instead of float16"):
        found = ib.find_critical_point(energy, "softplus", x)
    assert found.status.tolist() == [ib.Status.OVERFLOW, 0]
    assert found.value[0].item() == float("inf")
    assert found.converged.tolist() == [False, True]
    assert float(found.dual[0]) == pytest.approx(7000 / float(torch.tensor(0.1).half()), rel=1e-5)
    wide = ib.find_critical_point(
        ib.QuadraticEnergy.from_matrices(-0.1 * torch.eye(1).bfloat16(), torch.eye(1).bfloat16()),
        "softplus",
        x.bfloat16(),
    )
    assert bool(wide.converged.all())


def test_a_domain_without_a_half_number_is_refused() -> None:
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(1).bfloat16())
    with pytest.raises(ValueError, match=r"holds no number of torch\.bfloat16: compute in float32"):
        ib.find_critical_point(energy, ib.geometry("tanh").to_box(0.7001, 0.7002), torch.ones(1, 1).bfloat16())
