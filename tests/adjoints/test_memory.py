"""What a forward pass holds for its backward pass, counted from autograd's saved tensors."""

from __future__ import annotations

import pytest
import torch

import implicit_bregman as ib
from implicit_bregman.experiments.machine.memory import activation_bytes
from tests.adjoints.helpers import saved_bytes

B, N, D = 64, 24, 48


def held(layer: ib.BregmanDEQ, x: torch.Tensor) -> int:
    with saved_bytes([*layer.parameters()]) as total:
        value = layer(x)
    assert value.requires_grad
    return total[0]


@pytest.mark.parametrize("weight", ["convex", "symmetric", "monotone", "general"])
@pytest.mark.parametrize("regularization", [0.0, 0.3])
@pytest.mark.parametrize("x_has_gradient", [False, True])
@pytest.mark.parametrize("batch", [1, B])
def test_implicit_holds_little(weight: str, regularization: float, x_has_gradient: bool, batch: int) -> None:
    """At most 6 vectors of z's and one of x's size per sample, and two matrices, in float32."""
    layer = ib.BregmanDEQ(N, D, weight=weight, regularization=regularization)
    x = torch.randn(batch, N, requires_grad=x_has_gradient)
    bound = 4 * (6 * batch * D + batch * N + 2 * D * D)
    assert held(layer, x) <= bound
    # Nothing hides where autograd's hooks do not see it.
    assert activation_bytes(layer, lambda: layer(x).sum()) <= bound


@pytest.mark.parametrize("adjoint", ["implicit", "phantom", "one_step"])
def test_memory_does_not_grow_with_the_iterations(adjoint: str) -> None:
    layer = ib.BregmanDEQ(N, D, adjoint=adjoint)
    x = 3 * torch.randn(B, N)
    counts, sizes = [], []
    for tol in (1e-1, 1e-3):
        layer.solver = ib.solvers.MM(tol=tol, exact=False)
        sizes.append(held(layer, x))
        assert layer.last_solution is not None
        counts.append(int(layer.last_solution.iterations.max()))
    assert counts[1] >= 4 * counts[0]
    assert sizes[0] == sizes[1]


def test_memory_of_unrolling_grows_with_the_steps() -> None:
    layer = ib.BregmanDEQ(N, D)
    x = torch.randn(B, N)
    sizes = {}
    for steps in (10, 20, 40):
        layer.adjoint = ib.adjoints.Unrolled(steps=steps)
        sizes[steps] = held(layer, x)
    assert sizes[40] - sizes[20] == 2 * (sizes[20] - sizes[10])
    per_step = (sizes[40] - sizes[20]) / 20
    assert per_step >= 4 * B * D
    layer.adjoint = "implicit"
    assert held(layer, x) < sizes[10]


def test_without_gradients_nothing_is_held() -> None:
    layer = ib.BregmanDEQ(N, D)
    with torch.no_grad(), saved_bytes([]) as total:
        layer(torch.randn(B, N))
    assert total[0] == 0


def test_the_last_solution_keeps_no_graph() -> None:
    layer = ib.BregmanDEQ(N, D)
    value = layer(torch.randn(B, N))
    last = layer.last_solution
    assert last is not None
    assert value.grad_fn is not None
    for tensor in (last.value, last.dual, last.residual, last.step, last.objective):
        assert tensor is not None
        assert not tensor.requires_grad
