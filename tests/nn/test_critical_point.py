"""The layer of any energy."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import implicit_bregman as ib

D = torch.float64


class Blend(ib.Energy):
    """½‖z‖² − ⟨a, z⟩ + ¼ s² Σ z⁴ for images z and x = {"image": a, "label": …}."""

    def __init__(self) -> None:
        super().__init__((1, 3, 3), convex=True)
        self.scale = nn.Parameter(torch.tensor([0.5, 1.0, 2.0], dtype=D))

    def value(self, z: Tensor, x: dict[str, Tensor]) -> Tensor:
        scale = self.scale[x["label"]][:, None, None, None]
        return (0.5 * z.square() - x["image"] * z + 0.25 * scale.square() * z.pow(4)).sum((1, 2, 3))


@pytest.fixture
def x(generator: torch.Generator) -> dict[str, Tensor]:
    image = 1.5 * torch.randn(4, 1, 3, 3, generator=generator, dtype=D)
    return {"image": image.requires_grad_(), "label": torch.tensor([2, 0, 1, 1])}


def test_it_is_the_function_with_its_settings(x: dict[str, Tensor]) -> None:
    energy, adjoint = Blend(), ib.adjoints.Phantom(steps=3)
    layer = ib.CriticalPoint(energy, "tanh", 0.2, ib.solvers.Anderson(), adjoint)
    assert layer.last_solution is None
    expected = ib.find_critical_point(energy, "tanh", x, None, 0.2, ib.solvers.Anderson(), adjoint)
    z = layer(x)
    assert torch.equal(z, expected.value)
    gradients = [torch.autograd.grad(value.sum(), (energy.scale, x["image"])) for value in (z, expected.value)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert torch.equal(layer.last_solution.value, z)
    assert not layer.last_solution.value.requires_grad


def test_a_start_may_be_given_in_three_ways(x: dict[str, Tensor]) -> None:
    layer = ib.CriticalPoint(Blend(), "tanh", adjoint=ib.adjoints.Unrolled(steps=1))
    start = torch.full((4, 1, 3, 3), 0.4, dtype=D)
    value = layer(x, start)
    assert not torch.equal(value, layer(x))
    torch.testing.assert_close(layer.solve(x, initial_dual=torch.atanh(start)).value, value)
    layer.adjoint = "implicit"
    assert layer.solve(x, layer.solve(x)).iterations.tolist() == [0] * 4


def test_settings_may_be_assigned_at_any_time(x: dict[str, Tensor]) -> None:
    layer = ib.CriticalPoint(Blend(), "tanh")
    layer.regularization, layer.solver, layer.adjoint = 0.5, "mm", "one_step"
    assert torch.equal(layer(x), ib.find_critical_point(layer.energy, "tanh", x, None, 0.5, "mm", "one_step").value)


def test_it_trains_within_a_model(generator: torch.Generator) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = ib.CriticalPoint(Blend(), "tanh", 0.1), nn.Linear(9, 1, dtype=D)

        def forward(self, x: dict[str, Tensor]) -> Tensor:
            return self.head(self.layer(x).flatten(1))

    model = Model()
    assert [name for name, _ in model.named_parameters()] == ["layer.energy.scale", "head.weight", "head.bias"]
    x = {"image": torch.randn(8, 1, 3, 3, generator=generator, dtype=D), "label": torch.arange(8) % 3}
    target = torch.tanh(x["image"].flatten(1).sum(-1, keepdim=True))
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.05), []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.equal(model.layer.energy.scale, Blend().scale)


def test_copies_and_state(x: dict[str, Tensor]) -> None:
    layer = ib.CriticalPoint(Blend(), "tanh", 0.2)
    value = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.last_solution is None
        assert torch.equal(other(x), value)
    other = ib.CriticalPoint(Blend(), "tanh", 0.2)
    with torch.no_grad():
        layer.energy.scale.mul_(0.5)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert "regularization=0.2" in repr(layer)
    assert "(energy): Blend()" in repr(layer)


def test_a_quadratic_energy_and_its_certificate() -> None:
    energy = ib.QuadraticEnergy.from_operator(ib.operators.Diagonal(torch.tensor([1.0, 2.0])))
    layer = ib.CriticalPoint(energy, "tanh")
    torch.testing.assert_close(layer(torch.tensor([[0.5, -1.0]])), torch.tensor([[0.5, -0.5]]))
    assert layer.certificate() == ib.certify(energy, "tanh")
    assert layer.certificate().unique


def test_the_deq_layer_is_one() -> None:
    assert issubclass(ib.BregmanDEQ, ib.CriticalPoint)
    layer = ib.BregmanDEQ(3, 4, dtype=D)
    x, start = torch.randn(5, 3, dtype=D), torch.full((5, 4), 0.3, dtype=D)
    layer.adjoint = ib.adjoints.Unrolled(steps=2)
    assert torch.equal(layer(x, start), layer.solve(x, initial=start).value)
    assert not torch.equal(layer(x, start), layer(x))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"energy": nn.Linear(2, 2)}, TypeError, "energy must be an Energy, got Linear: subclass implicit_bregman.En"),
        ({"geometry": "relu"}, ValueError, "unknown geometry 'relu'"),
        ({"regularization": -1.0}, ValueError, "regularization must be a finite number >= 0, got -1.0"),
        ({"solver": "sgd"}, ValueError, "solver must be one of auto"),
        ({"adjoint": "bptt"}, ValueError, "adjoint must be one of implicit"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_at_construction(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ib.CriticalPoint(**{"energy": Blend(), "geometry": "tanh", **settings})


def test_its_arguments_are_those_of_the_function() -> None:
    function = inspect.signature(ib.find_critical_point).parameters
    parameters = dict(inspect.signature(ib.CriticalPoint).parameters)
    assert parameters.pop("norm").default is None  # (what it does, it does once, to the module)
    for name, parameter in parameters.items():
        assert parameter.default == function[name].default
    assert list(parameters) == ["energy", "geometry", "regularization", "solver", "adjoint"]
