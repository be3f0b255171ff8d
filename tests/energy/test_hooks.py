"""Hooks, pruning and weight normalization, on the layer's energy and on one's own: as on any other module."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune

import implicit_bregman as ib
from tests.problems import Scaled

ADJOINTS = ["implicit", "phantom", "one_step", "shine", "unrolled", ib.adjoints.Unrolled(steps=4, checkpoint=True)]


def layer_for(weight: str, dtype: torch.dtype) -> ib.BregmanDEQ:
    settings = {"rank": 2, "regularization": 0.2} if weight == "low_rank" else {}
    return ib.BregmanDEQ(3, 4, weight=weight, dtype=dtype, **settings)


def old_weight_norm(module: nn.Module, name: str) -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        nn.utils.weight_norm(module, name)


def torchdeq_weight_norm(module: nn.Module, name: str) -> None:
    norm = pytest.importorskip("torchdeq.norm")
    norm.register_norm_module(type(module), "weight_norm", names=name, dims=0)
    norm.apply_norm(module, "weight_norm")
    module.register_forward_pre_hook(lambda this, _: this._deq_norm(this))  # what `reset_norm` does


NORMALIZATIONS: dict[str, Callable[[nn.Module, str], object]] = {
    "prune": lambda module, name: prune.l1_unstructured(module, name, 0.3),
    "weight_norm": old_weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "torchdeq": torchdeq_weight_norm,
    "parametrizations.weight_norm": parametrizations.weight_norm,
    "parametrizations.spectral_norm": parametrizations.spectral_norm,
}


def by_norm(g: Tensor, v: Tensor) -> Tensor:
    return g * v / torch.linalg.vector_norm(v, dim=1, keepdim=True)


def by_sigma(entries: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return entries / (u @ entries @ v)


#: U from the parameters that a normalization has left.
FORMULAS: dict[str, Callable[[nn.Module], Tensor]] = {
    "prune": lambda e: e.input_weight_orig * e.input_weight_mask,
    "weight_norm": lambda e: by_norm(e.input_weight_g, e.input_weight_v),
    "spectral_norm": lambda e: by_sigma(e.input_weight_orig, e.input_weight_u, e.input_weight_v),
    "torchdeq": lambda e: by_norm(e.input_weight_g, e.input_weight_v),
    "parametrizations.weight_norm": lambda e: by_norm(
        e.parametrizations.input_weight.original0, e.parametrizations.input_weight.original1
    ),
    "parametrizations.spectral_norm": lambda e: by_sigma(
        e.parametrizations.input_weight.original,
        e.parametrizations.input_weight[0]._u,
        e.parametrizations.input_weight[0]._v,
    ),
}


def trained(model: nn.Module, x: Tensor, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - 0.3).square().sum().backward()
        optimizer.step()


# The layer's energy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", NORMALIZATIONS)
@pytest.mark.parametrize("weight", ["convex", "general", "low_rank"])
def test_input_weight_is_what_the_formula_says_at_every_step(
    weight: str, how: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Value and gradients are those of a plain layer whose U is computed from the parameters outside."""
    plain = layer_for(weight, dtype)
    layer = copy.deepcopy(plain)
    NORMALIZATIONS[how](layer.energy, "input_weight")
    layer.eval()  # (spectral norm: no more power iterations)
    raw = dict(layer.named_parameters())
    others = {name: parameter for name, parameter in raw.items() if "input_weight" not in name}
    x = torch.randn(5, 3, generator=generator, dtype=dtype)
    tolerance = {"rtol": 1e-3, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-10}
    for _ in range(3):
        expected = functional_call(plain, {**others, "energy.input_weight": FORMULAS[how](layer.energy)}, (x,))
        wanted = torch.autograd.grad((expected - 0.3).square().sum(), list(raw.values()), allow_unused=True)
        z = layer(x)
        grads = torch.autograd.grad((z - 0.3).square().sum(), list(raw.values()), allow_unused=True)
        torch.testing.assert_close(z, expected, **tolerance)
        for gradient, other in zip(grads, wanted, strict=True):
            torch.testing.assert_close(gradient, other, **tolerance)
        with torch.no_grad():
            for parameter, gradient in zip(raw.values(), grads, strict=True):
                parameter.sub_(0.05 * gradient)


@pytest.mark.parametrize("name", ["factor", "vectors"])
def test_the_parameters_of_the_weight_are_pruned_too(name: str, dtype: torch.dtype) -> None:
    layer = layer_for("low_rank" if name == "vectors" else "convex", dtype)
    prune.l1_unstructured(layer.energy.weight_map, name, 0.25)
    x = torch.randn(5, 3, dtype=dtype)
    trained(layer, x)
    mask, original = (getattr(layer.energy.weight_map, f"{name}_{part}") for part in ("mask", "orig"))
    kept = (original * mask).detach()
    expected = -(kept @ kept.T) - (0.0 if name == "vectors" else 0.1) * torch.eye(4, dtype=dtype)
    layer(x)
    assert torch.allclose(layer.energy.weight, expected)
    assert not bool(original.grad[mask == 0].any())


@pytest.mark.parametrize("weight", ["convex", "symmetric", "monotone", "general", "low_rank"])
def test_hooks_see_one_call_for_each_solve(weight: str, dtype: torch.dtype) -> None:
    layer = layer_for(weight, dtype)
    width = 2 if weight == "low_rank" else 4
    x = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    seen: list[tuple[str, Tensor]] = []
    layer.energy.register_forward_pre_hook(lambda _, inputs: seen.append(("before", inputs[0])))
    layer.energy.register_forward_hook(lambda _, inputs, output: seen.append(("after", output)))
    layer.energy.register_full_backward_hook(lambda _, inner, outer: seen.append(("backward", outer[0])))
    layer(x).sum().backward()
    assert [name for name, _ in seen] == ["before", "after", "backward"]
    assert torch.equal(seen[0][1], x)
    expected = x @ layer.energy.input_weight.T + layer.energy.bias
    assert torch.allclose(seen[1][1], expected)
    assert seen[1][1].shape == seen[2][1].shape == (5, width)
    assert torch.allclose(seen[2][1] @ layer.energy.input_weight, x.grad)  # dL/dx = Uᵀ dL/dc
    layer.solve(x.detach())
    assert len(seen) == 5


def test_a_hook_may_change_the_offset(dtype: torch.dtype) -> None:
    layer = layer_for("convex", dtype)
    x = torch.randn(5, 3, dtype=dtype)
    layer.energy.register_forward_hook(lambda _, inputs, output: output + 0.25)
    moved = layer(x)
    layer.energy._forward_hooks.clear()
    with torch.no_grad():
        layer.energy.bias.add_(0.25)
    assert torch.allclose(layer(x), moved, rtol=1e-5)


# Own energies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_own_energies_are_called_as_modules(adjoint: str | ib.adjoints.Adjoint, dtype: torch.dtype) -> None:
    energy, calls = Scaled(dtype, features=2), []
    energy.register_forward_pre_hook(lambda *_: calls.append("before"))
    energy.register_forward_hook(lambda *_: calls.append("after"))
    x = torch.tensor([[0.5, -0.3]], dtype=dtype, requires_grad=True)
    found = ib.find_critical_point(energy, "tanh", x, adjoint=adjoint)
    assert calls.count("before") >= calls.count("after") > 0
    before = len(calls)
    found.value.sum().backward()
    # Those that differentiate the steps have the graph already, unless they compute it again.
    assert (len(calls) > before) == (adjoint not in ("phantom", "one_step", "unrolled"))


@pytest.mark.parametrize("adjoint", ["implicit", "shine", ib.adjoints.Unrolled(steps=60)], ids=str)
def test_a_pruned_own_energy_uses_what_its_mask_and_parameter_say_now(
    adjoint: str | ib.adjoints.Adjoint, dtype: torch.dtype
) -> None:
    energy = Scaled(dtype, features=2)
    prune.identity(energy, "a")
    x = torch.tensor([[0.5, -0.3]], dtype=dtype, requires_grad=True)
    for scale in (2.0, 2.5):
        with torch.no_grad():
            energy.a_orig.fill_(scale)
        z = ib.find_critical_point(energy, "tanh", x, adjoint=adjoint).value
        dx, da = torch.autograd.grad(z.sum(), (x, energy.a_orig))
        tolerance = 1e-4 if dtype == torch.float32 else 1e-7
        assert torch.allclose(z, x / scale, rtol=tolerance)
        assert torch.allclose(dx, torch.full_like(x, 1 / scale), rtol=tolerance)
        assert torch.allclose(da, -x[0] / scale**2, rtol=10 * tolerance)


def test_weight_norm_on_an_own_energy_trains() -> None:
    class Mixed(ib.Energy):
        def __init__(self) -> None:
            super().__init__(features=3, convex=True)
            self.mix = nn.Parameter(torch.eye(3, dtype=torch.float64))

        def value(self, z: Tensor, x: Tensor) -> Tensor:
            return 0.5 * (z @ self.mix.mT).square().sum(-1) + 0.1 * z.square().sum(-1) - (x * z).sum(-1)

    energy = Mixed()
    old_weight_norm(energy, "mix")
    x = torch.randn(4, 3, dtype=torch.float64)
    optimizer = torch.optim.SGD(energy.parameters(), lr=0.1)
    for _ in range(3):
        z = ib.find_critical_point(energy, "tanh", x, regularization=0.1).value
        mix = energy.mix_v / torch.linalg.vector_norm(energy.mix_v, dim=1, keepdim=True) * energy.mix_g
        force = -(z @ (mix.mT @ mix) + 0.2 * z - x) - 0.1 * torch.atanh(z)
        assert float(force.detach().abs().max()) <= 1e-8
        optimizer.zero_grad()
        z.square().sum().backward()
        optimizer.step()


def test_a_hook_may_change_an_own_energy(dtype: torch.dtype) -> None:
    energy = Scaled(dtype, features=2)
    x = torch.tensor([[0.5, -0.3]], dtype=dtype, requires_grad=True)
    energy.register_forward_hook(lambda _, inputs, output: output + 0.5 * inputs[0].square().sum(-1))
    z = ib.find_critical_point(energy, "tanh", x).value
    (dx,) = torch.autograd.grad(z.sum(), x)
    assert torch.allclose(z, x / 3, rtol=1e-4)
    assert torch.allclose(dx, torch.full_like(x, 1 / 3), rtol=1e-4)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_an_energy_that_was_told_to_compile(backend: str) -> None:
    """Compiled code has no second derivative, which the solvers need: it is evaluated as it is."""
    torch.compiler.reset()
    energy = Scaled(torch.float64, features=2)
    energy.compile(backend=backend)
    x = torch.tensor([[0.5, -0.3]], dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(ib.find_critical_point(energy, "tanh", x).value.sum(), x)
    assert torch.allclose(dx, torch.full_like(x, 0.5))
    torch.compiler.reset()
