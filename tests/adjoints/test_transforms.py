"""What cannot be differentiated further says so, and torch.compile; see test_derivatives for what can."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

import implicit_bregman as ib

pytestmark = pytest.mark.whole
ADJOINTS = ["implicit", "phantom", "one_step", "shine", "unrolled"]


@pytest.fixture
def layer() -> ib.BregmanDEQ:
    return ib.BregmanDEQ(4, 5, dtype=torch.float64)


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 4, generator=generator, dtype=torch.float64)


def test_double_backward_of_unrolled_works(layer: ib.BregmanDEQ, x: Tensor) -> None:
    layer.adjoint = ib.adjoints.Unrolled(steps=4)
    (first,) = torch.autograd.grad(layer(x.requires_grad_()).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert bool(second.any())


def test_double_backward_of_shine_is_refused(layer: ib.BregmanDEQ, x: Tensor) -> None:
    """Differentiating its inverse twice would give the derivative of another function."""
    layer.adjoint = "shine"
    value = layer(x.requires_grad_()).square().sum()
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(value, x, create_graph=True)


def test_batched_gradients_of_shine_are_refused(layer: ib.BregmanDEQ, x: Tensor) -> None:
    layer.adjoint = "shine"
    value = layer(x.requires_grad_())
    many = torch.ones(2, *value.shape, dtype=x.dtype)
    message = r"shine adjoint has no batched backward \(is_grads_batched=True, vectorize=True, vmap\): "
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(value, x, many, is_grads_batched=True)
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.functional.jacobian(layer, x, vectorize=True)


@pytest.mark.parametrize("adjoint", ["implicit", "phantom", "one_step", "unrolled"])
def test_batched_gradients_are_right(layer: ib.BregmanDEQ, x: Tensor, adjoint: str) -> None:
    layer.adjoint = adjoint
    expected = torch.autograd.functional.jacobian(layer, x)
    torch.testing.assert_close(torch.autograd.functional.jacobian(layer, x, vectorize=True), expected)


def test_jacobian_row_by_row(layer: ib.BregmanDEQ, x: Tensor) -> None:
    """One backward pass per output, as the refusals advise."""
    jacobian = torch.autograd.functional.jacobian(layer, x)
    step = 1e-6
    for column in range(4):
        shift = step * torch.eye(4, dtype=torch.float64)[column]
        change = (layer(x + shift) - layer(x - shift)).detach() / (2 * step)
        # Samples do not see each other: only the diagonal blocks are not 0.
        torch.testing.assert_close(jacobian[:, :, :, column].sum(2), change, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("tangent_of", ["x", "parameter", "initial"])
@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode_of_shine_is_refused(layer: ib.BregmanDEQ, x: Tensor, tangent_of: str, grad: bool) -> None:
    """Never a tangent that is silently lost."""
    layer.adjoint = "shine"
    initial = torch.zeros(3, 5, dtype=torch.float64)
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        if tangent_of == "x":
            x = forward_ad.make_dual(x, torch.ones_like(x))
        elif tangent_of == "initial":
            initial = forward_ad.make_dual(initial, torch.ones_like(initial))
        else:
            bias = parameters["energy.bias"]
            parameters["energy.bias"] = forward_ad.make_dual(bias, torch.ones_like(bias))
        with pytest.raises(RuntimeError, match=r"Shine does not run inside .* and forward mode"):
            functional_call(_Started(layer), {f"layer.{k}": v for k, v in parameters.items()}, (x, initial))


class _Started(nn.Module):
    """The layer with an explicit start."""

    def __init__(self, layer: ib.BregmanDEQ) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, initial: Tensor) -> Tensor:
        return self.layer.solve(x, initial).value


def test_functional_call_has_gradients(layer: ib.BregmanDEQ, x: Tensor) -> None:
    expected = torch.autograd.grad(layer(x).square().sum(), tuple(layer.parameters()))
    replaced = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}
    found = torch.autograd.grad(functional_call(layer, replaced, (x,)).square().sum(), tuple(replaced.values()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_matches_eager(adjoint: str, backend: str, x: Tensor) -> None:
    torch.compiler.reset()
    model = nn.Sequential(
        nn.Linear(4, 6, dtype=torch.float64),
        nn.ReLU(),
        ib.BregmanDEQ(6, 5, geometry="sigmoid", adjoint=adjoint, dtype=torch.float64),
        nn.Linear(5, 2, dtype=torch.float64),
    )
    compiled = torch.compile(model, backend=backend)
    outcomes = []
    for network in (model, compiled):
        leaf = x.clone().requires_grad_()
        value = network(leaf)
        outcomes.append((value, *torch.autograd.grad(value.square().sum(), (leaf, *model.parameters()))))
    for eager, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(other, eager, rtol=1e-12, atol=1e-14)
    assert model[2].last_solution is not None
    torch.compiler.reset()


def test_a_compiled_model_trains(x: Tensor) -> None:
    torch.compiler.reset()
    model = nn.Sequential(ib.BregmanDEQ(4, 5, dtype=torch.float64), nn.Linear(5, 1, dtype=torch.float64))
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (compiled(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    torch.compiler.reset()
