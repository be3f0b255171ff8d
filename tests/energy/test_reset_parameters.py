"""Every module that owns parameters can draw them anew: made on "meta", emptied, then reset."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import implicit_bregman as ib

KINDS = ("convex", "symmetric", "monotone", "general")
SETTINGS = [*({"weight": kind} for kind in KINDS), {"weight": "low_rank", "rank": 2}]


def reset(module: nn.Module) -> None:
    if callable(getattr(module, "reset_parameters", None)):
        module.reset_parameters()


def emptied(module: nn.Module) -> nn.Module:
    module = module.to_empty(device="cpu")
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.detach().fill_(torch.nan)
    return module


@pytest.mark.parametrize("geometry", ["tanh", "sigmoid"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_layer_made_on_meta(settings: dict[str, object], geometry: str) -> None:
    made = ib.BregmanDEQ(3, 4, geometry, device="meta", **settings)
    layer = emptied(made).apply(reset)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in layer.parameters())
    x = 0.1 * torch.randn(5, 3)
    assert bool(layer.solve(x).converged.all())
    if settings["weight"] == "low_rank":  # the middle of C solves the system at the start
        middle = layer.geometry.activation(torch.zeros(4))
        assert torch.allclose(middle @ layer.energy.weight_map.vectors, layer.energy.bias)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_layer_resets_all_of_itself_as_it_was_made(settings: dict[str, object]) -> None:
    torch.manual_seed(3)
    made = ib.BregmanDEQ(3, 4, "sigmoid", **settings)
    layer = ib.BregmanDEQ(3, 4, "sigmoid", **settings)
    torch.manual_seed(3)
    emptied(layer).reset_parameters()
    for one, other in zip(made.parameters(), layer.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("parents_first", [True, False])
def test_every_module_that_owns_parameters_has_it(parents_first: bool) -> None:
    model = nn.Sequential(
        ib.BregmanDEQ(3, 4, weight="low_rank", rank=2, device="meta"),
        ib.BregmanDEQ(4, 4, weight="general", bias=False, device="meta"),
        ib.FeedForward([4, 3, 3], kind="bregman", device="meta"),
        ib.EuclideanLinear(3, 2, device="meta"),
    )
    emptied(model)
    modules = list(model.modules())
    for module in modules if parents_first else reversed(modules):
        if any(True for _ in module.parameters(recurse=False)):
            module.reset_parameters()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in [*model.parameters(), *model.buffers()])


def test_given_matrices_stay() -> None:
    W, b = nn.Parameter(-torch.eye(3)), nn.Parameter(torch.ones(3))
    energy = ib.QuadraticEnergy.from_matrices(W, b=b).apply(reset)
    assert torch.equal(energy.weight, -torch.eye(3))
    assert torch.equal(energy.bias, torch.ones(3))
