"""The backward pass of an own energy sees the tensors of the forward pass, or raises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import implicit_bregman as ib
from tests.problems import Scaled

Adjoint = str | ib.adjoints.Adjoint

#: Those that evaluate the energy in the backward pass, and one that does not.
LATER: list[Adjoint] = [
    "implicit",
    ib.adjoints.Implicit("cg"),
    ib.adjoints.Implicit("gmres"),
    "shine",
]
ADJOINTS: list[Adjoint] = [*LATER, ib.adjoints.Unrolled(steps=60)]


class Model(nn.Module):
    """An own energy inside a larger model."""

    def __init__(self, energy: ib.Energy, adjoint: Adjoint) -> None:
        super().__init__()
        self.energy = energy
        self.adjoint = adjoint

    def forward(self, x: Tensor) -> Tensor:
        return ib.find_critical_point(self.energy, "tanh", x, adjoint=self.adjoint).value


def inputs(dtype: torch.dtype) -> Tensor:
    return torch.tensor([[0.5]], dtype=dtype, requires_grad=True)


def check(value: Tensor, x: Tensor, a: Tensor, scale: float) -> None:
    dx, da = torch.autograd.grad(value.sum(), (x, a))
    tolerance = 1e-4 if x.dtype == torch.float32 else 1e-8
    assert float(dx) == pytest.approx(1 / scale, rel=tolerance)
    assert float(da) == pytest.approx(-0.5 / scale**2, rel=tolerance)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_functional_call_with_other_parameters(adjoint: Adjoint, dtype: torch.dtype) -> None:
    x, a = inputs(dtype), torch.tensor([3.0], dtype=dtype, requires_grad=True)
    model = Model(Scaled(dtype, 1.0), adjoint)
    check(functional_call(model, {"energy.a": a}, (x,)), x, a, 3.0)
    assert float(model.energy.a.detach()) == 1.0


def put(energy: Scaled) -> None:
    energy.a = nn.Parameter(torch.full_like(energy.a, 8.0))


def put_attribute(energy: Scaled) -> None:
    del energy.a
    energy.a = torch.full((1,), 8.0, dtype=energy.dtype)


def put_data(energy: Scaled) -> None:
    energy.a.data = torch.full_like(energy.a, 8.0)


@pytest.mark.parametrize("change", [put, put_attribute, put_data])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_a_parameter_replaced_in_between(
    adjoint: Adjoint, change: Callable[[Scaled], None], dtype: torch.dtype
) -> None:
    x, energy = inputs(dtype), Scaled(dtype)
    a, model = energy.a, Model(energy, adjoint)
    value = model(x)
    change(energy)
    now = energy.a
    check(value, x, a, 2.0)
    assert energy.a is now, "the module is left as it was found"
    assert torch.allclose(model(x), x / 8, rtol=1e-4)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_a_hypernetwork(adjoint: Adjoint, dtype: torch.dtype) -> None:
    """A tensor with a graph of its own takes the parameter's place, another one for each call."""
    x, energy = inputs(dtype), Scaled(dtype)
    del energy.a
    code = torch.tensor([1.0], dtype=dtype, requires_grad=True)
    values = []
    for scale in (2.0, 4.0, 8.0):
        energy.a = scale * code
        values.append(Model(energy, adjoint)(x))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-8
    for value, scale in zip(values, (2.0, 4.0, 8.0), strict=True):
        dx, dcode = torch.autograd.grad(value.sum(), (x, code), retain_graph=True)
        assert float(dx) == pytest.approx(1 / scale, rel=tolerance)
        assert float(dcode) == pytest.approx(-0.5 / scale, rel=tolerance)


def step_sgd(energy: Scaled) -> None:
    energy.a.grad = torch.full_like(energy.a, -60.0)
    torch.optim.SGD(energy.parameters(), lr=0.1).step()


def load(energy: Scaled) -> None:
    energy.load_state_dict({"a": torch.full_like(energy.a, 8.0)})


@pytest.mark.parametrize("change", [step_sgd, load])
@pytest.mark.parametrize("adjoint", LATER, ids=str)
def test_a_parameter_changed_in_place_is_an_error(
    adjoint: Adjoint, change: Callable[[Scaled], None], dtype: torch.dtype
) -> None:
    x, energy = inputs(dtype), Scaled(dtype)
    value = Model(energy, adjoint)(x)
    change(energy)
    assert float(energy.a.detach()) == pytest.approx(8.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


@pytest.mark.parametrize("adjoint", ["implicit", "shine"])
def test_a_quadratic_weight_changed_in_place_does_not_matter(adjoint: str, dtype: torch.dtype) -> None:
    """H = −W was made of it in the forward pass."""
    W = nn.Parameter(torch.tensor([[-2.0]], dtype=dtype))
    x = inputs(dtype)
    value = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(W), "tanh", x, adjoint=adjoint).value
    expected = torch.autograd.grad(value.sum(), [W, x], retain_graph=True)
    with torch.no_grad():
        W.fill_(-8.0)
    for found, gradient in zip(torch.autograd.grad(value.sum(), [W, x]), expected, strict=True):
        assert torch.equal(found, gradient)


@pytest.mark.parametrize("change", [put, put_attribute])
def test_checkpointed_steps_are_recomputed_as_they_were(change: Callable[[Scaled], None], dtype: torch.dtype) -> None:
    x, energy = inputs(dtype), Scaled(dtype)
    wanted = [x, energy.a]
    value = Model(energy, ib.adjoints.Unrolled(steps=5, checkpoint=True))(x)
    expected = torch.autograd.grad(value.sum(), wanted, retain_graph=True)
    change(energy)
    for found, gradient in zip(torch.autograd.grad(value.sum(), wanted), expected, strict=True):
        assert torch.equal(found, gradient)


@pytest.mark.parametrize("change", [step_sgd, load])
def test_checkpointed_steps_notice_a_change_in_place(change: Callable[[Scaled], None], dtype: torch.dtype) -> None:
    x, energy = inputs(dtype), Scaled(dtype)
    value = Model(energy, ib.adjoints.Unrolled(steps=5, checkpoint=True))(x)
    change(energy)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


def test_checkpointed_steps_of_a_projection_layer_notice_it() -> None:
    layer = ib.BregmanDEQ(3, 4, weight="low_rank", rank=2, adjoint=ib.adjoints.Unrolled(steps=5, checkpoint=True))
    value = layer(torch.randn(2, 3))
    with torch.no_grad():
        next(layer.energy.weight_map.parameters()).mul_(1.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


@pytest.mark.parametrize("adjoint", ["implicit", "shine", ib.adjoints.Unrolled(steps=60)], ids=str)
def test_saved_tensor_hooks_keep_the_forward_values(adjoint: Adjoint, dtype: torch.dtype) -> None:
    """Offloading: what is restored is what counts, whatever has become of the module's own tensors."""
    x, energy = inputs(dtype), Scaled(dtype)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy().copy(), torch.from_numpy):
        value = Model(energy, adjoint)(x)
    with torch.no_grad():
        energy.a.fill_(8.0)
    check(value, x, energy.a, 2.0)
    assert float(energy.a.detach()) == 8.0


def test_two_backward_passes_and_two_forward_passes(dtype: torch.dtype) -> None:
    energy, x = Scaled(dtype), inputs(dtype)
    model = Model(energy, "implicit")
    a, first = energy.a, model(x)
    energy.a = nn.Parameter(torch.tensor([4.0], dtype=dtype))
    b, second = energy.a, model(x)
    for _ in range(2):
        found = torch.autograd.grad((first + second).sum(), (x, a, b), retain_graph=True)
        for gradient, wanted in zip(found, (0.5 + 0.25, -0.5 / 4, -0.5 / 16), strict=True):
            assert float(gradient) == pytest.approx(wanted, rel=1e-4)


def test_what_evaluations_change_themselves_is_no_input(dtype: torch.dtype) -> None:
    """Counters, caches and running statistics, in buffers and attributes: neither an error nor set back."""

    class Counting(Scaled):
        def __init__(self) -> None:
            super().__init__(dtype)
            self.register_buffer("count", torch.zeros((), dtype=dtype))
            self.last: Tensor | None = None
            self.cached: Tensor | None = None

        def value(self, z: Tensor, x: Tensor) -> Tensor:
            self.count.add_(1)
            self.last = z.detach()
            if self.cached is None:
                self.cached = torch.ones((), dtype=z.dtype)
            return self.cached * super().value(z, x)

    energy, x = Counting(), inputs(dtype)
    first, second = (Model(energy, "implicit")(x) for _ in range(2))
    before = float(energy.count)
    check(first, x, energy.a, 2.0)
    check(second, x, energy.a, 2.0)
    assert float(energy.count) > before > 0


def test_submodules_count() -> None:
    class Deep(ib.Energy):
        def __init__(self) -> None:
            super().__init__(features=3, convex=True)
            self.net = nn.Sequential(nn.Linear(3, 4, dtype=torch.float64), nn.Softplus(), nn.Linear(4, 1).double())
            with torch.no_grad():
                self.net[2].weight.abs_()

        def value(self, z: Tensor, x: Tensor) -> Tensor:
            return self.net(z).squeeze(-1) + 0.5 * (z - x).square().sum(-1)

    energy = Deep()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    named = dict(energy.named_parameters())

    def gradients(change: bool) -> tuple[Tensor, ...]:
        value = Model(energy, "implicit")(x)
        if change:
            energy.net = nn.Sequential(*energy.net)  # another container of the same modules
            energy.net[0].weight = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
        return torch.autograd.grad(value.square().sum(), (x, *named.values()), allow_unused=True)

    for expected, found in zip(gradients(False), gradients(True), strict=True):
        assert (expected is None) == (found is None)
        assert expected is None or torch.allclose(expected, found, rtol=1e-9, atol=1e-12)
