"""What cannot be computed with is refused in one line that names the argument and the remedy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

import implicit_bregman as ib
from implicit_bregman.critical_point import attach_gradient

E = ib.QuadraticEnergy.from_matrices


class Own(ib.Energy):
    """½zᵀz − xᵀz."""

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return (0.5 * z.square() - x * z).sum(-1)


def refuse(error: type[Exception], message: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def nested(layout: torch.layout) -> Tensor:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=layout)


UNUSUAL: dict[str, tuple[Callable[[], Tensor], str]] = {
    "sparse": (lambda: torch.eye(3).to_sparse(), r"{} has the layout torch.sparse_coo: .* {}.to_dense\(\)"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), r"{} has the layout torch.sparse_csr: .* {}.to_dense\(\)"),
    "nested": (lambda: nested(torch.strided), r"{} is a nested tensor: .* {}.to_padded_tensor"),
    "jagged": (lambda: nested(torch.jagged), r"{} is a nested tensor: .* {}.to_padded_tensor"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype:UserWarning")
@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("energy", [ib.QuadraticEnergy(3), E(-torch.eye(3)), Own()], ids=["layer", "given", "own"])
def test_unusual_tensors(energy: ib.Energy, kind: str) -> None:
    make, message = UNUSUAL[kind]
    tensor = make()
    refuse(ValueError, message.format("x", "x"), lambda: ib.find_critical_point(energy, "tanh", tensor))
    start = message.format("initial", "initial")
    refuse(ValueError, start, lambda: ib.find_critical_point(energy, "tanh", torch.ones(3, 3), tensor))
    refuse(ValueError, message.format("W", "W"), lambda: E(tensor))
    refuse(ValueError, message.format("U", "U"), lambda: E(-torch.eye(3), tensor))
    refuse(ValueError, message.format("b", "b"), lambda: E(-torch.eye(3), None, tensor))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype:UserWarning")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_feed_forward_layers(kind: str) -> None:
    make, message = UNUSUAL[kind]
    for layer in (ib.StandardLinear(3, 3), ib.BregmanLinear(3, 2), ib.FeedForward([3, 3, 2])):
        refuse(ValueError, message.format("z", "z"), lambda layer=layer: layer(make()))


def test_what_is_no_tensor() -> None:
    refuse(TypeError, "W must be a tensor, got ndarray", lambda: E(-np.eye(3)))
    refuse(TypeError, "b must be a tensor, got list", lambda: E(-torch.eye(2), None, [1.0, 2.0]))
    refuse(TypeError, "x must be a tensor, got ndarray", lambda: ib.BregmanDEQ(3, 4)(np.ones((2, 3))))


def test_the_meta_device() -> None:
    x = torch.randn(2, 3, device="meta")
    message = '"meta" device, where there are no numbers to compute with: move it'
    refuse(ValueError, f"x is on the {message}", lambda: ib.BregmanDEQ(3, 4, device="meta")(x))
    refuse(ValueError, f"x is on the {message}", lambda: ib.find_critical_point(Own(), "tanh", x))
    refuse(ValueError, f"W is on the {message}", lambda: E(torch.eye(3, device="meta")))


def test_a_matrix_for_each_sample() -> None:
    many = -torch.eye(3).expand(5, 3, 3)
    refuse(
        ValueError,
        "x has 4 samples, but there is one matrix for each of 5",
        lambda: ib.find_critical_point(E(many), "tanh", torch.ones(4, 3)),
    )
    refuse(ValueError, r"U must have shape \(3, n\)", lambda: E(-torch.eye(3), many))


@pytest.mark.parametrize(
    ("weight", "name", "letter"),
    [
        ("general", "weight_map.entries", "W"),
        ("symmetric", "weight_map.entries", "W"),
        ("convex", "weight_map.factor", "W"),
        ("low_rank", "weight_map.vectors", "V"),
        ("convex", "input_weight", "U"),
        ("low_rank", "input_weight", "U"),
    ],
)
def test_parameters_for_each_sample(weight: str, name: str, letter: str) -> None:
    """What a hypernetwork might try."""
    settings = {"rank": 2} if weight == "low_rank" else {}
    layer, x = ib.BregmanDEQ(3, 3, weight=weight, **settings), torch.randn(5, 3)
    many = torch.stack([dict(layer.energy.named_parameters())[name].detach()] * 5)
    message = (
        rf"{letter} must be one matrix for all samples, got shape \(5, .*: of one matrix per sample make the energy"
    )
    refuse(ValueError, message, lambda: functional_call(layer, {f"energy.{name}": many}, (x,)))


def test_bounds_for_each_coordinate() -> None:
    tanh = ib.geometry("tanh")
    for bound, kind in ((np.zeros(3), "ndarray"), ([0.0, 1.0], "list")):
        message = f"must be a number or a tensor, got {kind}"
        refuse(TypeError, f"to_box: lo {message}", lambda bound=bound: tanh.to_box(bound, 1.0))
        refuse(TypeError, f"to_box: hi {message}", lambda bound=bound: tanh.to_box(-1.0, bound))
    refuse(TypeError, r"to_box: lo must be floating point, got torch\.int64", lambda: tanh.to_box(torch.arange(3), 9.0))
    ahead = torch.tensor([0.0, 2.0])
    refuse(ValueError, r"to_box: lo must be at most hi, .* got \[2, 1\] at entry 1", lambda: tanh.to_box(ahead, 1.0))
    nowhere = torch.tensor([0.0, torch.inf])
    refuse(
        ValueError,
        r"to_box: lo must be at most hi, .* \[inf, inf\] at entry 1",
        lambda: tanh.to_box(nowhere, torch.inf),
    )
    refuse(ValueError, "to_box: .* do not broadcast", lambda: tanh.to_box(torch.zeros(2), torch.ones(3)))
    layer = ib.BregmanDEQ(2, 3, geometry=tanh.to_box(torch.zeros(2), 1.0))
    message = r"to_box: lo of shape \(2,\) does not broadcast to the shape \(3,\) of a state"
    refuse(ValueError, message, lambda: layer(torch.zeros(1, 2)))
    assert tanh.to_box(np.float32(0), np.int64(2)) == tanh.to_box(0.0, 2.0)


def test_attach_gradient_inside_a_transform() -> None:
    x = torch.randn(2, 3)
    message = r"attach_gradient does not run inside torch\.func transforms"
    refuse(RuntimeError, message, lambda: torch.func.vmap(lambda y: attach_gradient(Own(), "tanh", y, y))(x))


RECORDED: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "jit.trace": lambda layer, x: torch.jit.trace(layer, x),
    "export": lambda layer, x: torch.export.export(layer, (x,), strict=False),
    "make_fx": lambda layer, x: make_fx(layer, tracing_mode="fake")(x),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.trace(_method)?. is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("how", "adjoint"),  # (exported with the implicit gradient it is one operator: see tests/nn/test_traced.py)
    [
        (how, adjoint)
        for how in RECORDED
        for adjoint in ("implicit", "unrolled")
        if (how, adjoint) != ("export", "implicit")
    ],
)
def test_recording(how: str, adjoint: str) -> None:
    """A recording would fix the number of steps, and which coordinates are at their bounds."""
    layer, x = ib.BregmanDEQ(3, 4, adjoint=adjoint), torch.randn(2, 3)
    message = r"cannot be recorded \(torch.jit.trace, torch.export, make_fx\): .* Use torch.compile"
    refuse(RuntimeError, message, lambda: RECORDED[how](layer, x))
    layer(x).sum().backward()


def test_a_strict_export_gives_the_reason() -> None:
    torch.compiler.reset()
    # (PyTorch 2.6 names the function instead of the reason)
    with pytest.raises(Exception, match=r"how many steps it makes depends on the data|find_critical_point"):
        torch.export.export(ib.BregmanDEQ(3, 4, adjoint="unrolled"), (torch.randn(2, 3),), strict=True)
    torch.compiler.reset()
