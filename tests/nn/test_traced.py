"""A layer inside what records a model: one graph, without breaks, equal to eager."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import implicit_bregman as ib
from tests.versions import needs_torch

pytestmark = pytest.mark.whole
F64 = torch.float64
LAYERS: dict[str, dict[str, Any]] = {
    "convex": {},
    "monotone": {"weight": "monotone", "regularization": 0.2},
    "general": {"weight": "general", "geometry": "sigmoid"},
    "symmetric": {"weight": "symmetric", "regularization": 0.5, "geometry": "softplus"},
    "settings": {
        "geometry": ib.geometry("isru", scale=2.0),
        "solver": ib.solvers.Anderson(memory=3, tol=1e-9),
        "adjoint": ib.adjoints.Implicit(method="dense"),
    },
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network(layer: nn.Module, dtype: torch.dtype = F64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), layer, nn.Linear(5, 2)).to(dtype)


def both(model: nn.Module, other: Any, x: Tensor) -> None:
    """The same values and gradients, to rounding."""
    results = []
    for call in (model, other):
        leaf = x.clone().requires_grad_()
        value = call(leaf)
        results.append((value, *torch.autograd.grad(value.square().sum(), (leaf, *model.parameters()))))
    rounding = 64 * torch.finfo(x.dtype).eps
    for eager, recorded in zip(*results, strict=True):
        torch.testing.assert_close(recorded, eager, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_whole_graph(name: str, dtype: torch.dtype) -> None:
    model = network(ib.BregmanDEQ(6, 5, **LAYERS[name]), dtype)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (3, 7):
        both(model, compiled, torch.randn(batch, 4, dtype=dtype))
    both(model, compiled, torch.randn(2, 3, 4, dtype=dtype))


def test_settings_that_change_are_noticed() -> None:
    model, x = network(ib.BregmanDEQ(6, 5)), torch.randn(3, 4, dtype=F64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    before = compiled(x)
    model[2].regularization = 0.7
    torch.testing.assert_close(compiled(x), model(x))
    assert not torch.allclose(compiled(x), before)
    model[2].solver = ib.solvers.MM(max_iter=1, on_failure="ignore")
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("adjoint", ["unrolled", "phantom", "one_step"])
def test_other_adjoints_break_the_graph_as_before(adjoint: str) -> None:
    model, x = network(ib.BregmanDEQ(6, 5, adjoint=adjoint)), torch.randn(3, 4, dtype=F64)
    both(model, torch.compile(model, backend="aot_eager"), x)
    torch.compiler.reset()
    # (PyTorch 2.6 names the function instead of the reason)
    with pytest.raises(Exception, match=r"how many steps it makes depends on the data|find_critical_point"):
        torch.compile(model, fullgraph=True, backend="aot_eager")(x)


def test_given_matrices() -> None:
    """Whose symmetry is looked at when the operator runs."""
    for W in (-torch.eye(3, dtype=F64), torch.tensor([[-1.0, 0.5, 0], [0, -1, 0], [0, 0, -1]], dtype=F64)):
        torch.compiler.reset()
        layer = ib.CriticalPoint(ib.QuadraticEnergy.from_matrices(nn.Parameter(W)), "tanh")
        both(layer, torch.compile(layer, fullgraph=True, backend="aot_eager"), torch.randn(4, 3, dtype=F64))


def test_a_sample_that_is_not_finite_spoils_no_other() -> None:
    layer = ib.BregmanDEQ(3, 4, solver=ib.solvers.Newton(on_failure="ignore"), dtype=F64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.tensor([[0.3, 0.1, 0.2], [torch.nan, 0.0, 0.0]], dtype=F64, requires_grad=True)
    found = compiled(x)
    assert bool(found[1].isnan().all())
    torch.testing.assert_close(found[:1], layer(x[:1]))
    found[0].sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in layer.parameters())


def test_a_failure_is_reported() -> None:
    solver = ib.solvers.MM(max_iter=1, tol=1e-12, exact=False, on_failure="raise")
    layer = ib.BregmanDEQ(3, 4, solver=solver, dtype=F64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="MAX_ITER"):
        compiled(torch.ones(2, 3, dtype=F64))


def exported(model: nn.Module, strict: bool) -> torch.export.ExportedProgram:
    """For any number of samples."""
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    return torch.export.export(model, (torch.randn(3, 4, dtype=F64),), dynamic_shapes=shapes, strict=strict)


def same_for_every_batch(program: torch.export.ExportedProgram, model: nn.Module) -> None:
    for batch in (3, 11):
        x = torch.randn(batch, 4, dtype=F64)
        torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_export(name: str, strict: bool) -> None:
    model = network(ib.BregmanDEQ(6, 5, **LAYERS[name]))
    same_for_every_batch(exported(model, strict), model)


@needs_torch("2.11", "saving a program for any number of samples")
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # (PyTorch 2.11, of its own file)
@pytest.mark.parametrize("name", LAYERS)
def test_an_exported_program_comes_back_from_a_file(name: str) -> None:
    model, file = network(ib.BregmanDEQ(6, 5, **LAYERS[name])), io.BytesIO()
    torch.export.save(exported(model, strict=False), file)
    file.seek(0)
    same_for_every_batch(torch.export.load(file), model)


def test_the_operator_keeps_the_rules_of_its_kind() -> None:
    """PyTorch's own check of a custom operator: its schema, its shapes, its derivative under recording."""
    layer = ib.BregmanDEQ(3, 4, dtype=F64)
    matrix, known = layer.energy.matrix_to_trace()
    arguments = (matrix.detach().requires_grad_(), torch.randn(5, 4, dtype=F64, requires_grad=True), *known)
    torch.library.opcheck(torch.ops.implicit_bregman.critical_point.default, (*arguments, layer.settings))
