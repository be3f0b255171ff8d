"""The bytes that a graph holds are counted exactly."""

import platform
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import implicit_bregman as ib
from implicit_bregman.experiments.learning.model import Architecture
from implicit_bregman.experiments.machine.memory import (
    activation_bytes,
    bytes_held_for_backward,
    keep_freed_memory,
    peak_bytes,
)

BATCH, WIDTH = 5, 8
FLOAT = 4


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(WIDTH, WIDTH, requires_grad=True)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(BATCH, WIDTH)


def test_input_of_a_product_and_output_of_tanh(weight: Tensor, x: Tensor) -> None:
    held = bytes_held_for_backward(lambda: (x @ weight).tanh().sum(), [weight])
    assert held == 2 * BATCH * WIDTH * FLOAT


def test_parameters_count_only_if_they_are_not_excluded(weight: Tensor, x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    assert bytes_held_for_backward(lambda: (leaf @ weight.mT).sum(), [leaf]) == WIDTH * WIDTH * FLOAT
    assert bytes_held_for_backward(lambda: (leaf @ weight.mT).sum(), [leaf, weight]) == 0


def test_a_shared_storage_counts_once_and_in_full(weight: Tensor) -> None:
    x = torch.randn(2 * BATCH, WIDTH)
    held = bytes_held_for_backward(lambda: (x[:BATCH] @ weight + x[BATCH:] @ weight).sum(), [weight])
    assert held == 2 * BATCH * WIDTH * FLOAT


def test_nothing_is_held_without_a_graph(weight: Tensor, x: Tensor) -> None:
    assert bytes_held_for_backward(lambda: (x @ weight.detach()).tanh().sum()) == 0


def test_checkpointing_holds_the_input_alone(weight: Tensor, x: Tensor) -> None:
    def block(value: Tensor) -> Tensor:
        return (value @ weight).tanh().exp().tanh()

    leaf = x.clone().requires_grad_()
    loss = lambda: checkpoint(block, leaf, use_reentrant=False).sum()  # noqa: E731
    assert bytes_held_for_backward(loss, [weight]) == BATCH * WIDTH * FLOAT
    assert bytes_held_for_backward(lambda: block(leaf).sum(), [weight]) == 4 * BATCH * WIDTH * FLOAT


class _Keeper(torch.autograd.Function):
    """Keeps one tensor in a list on its context, beside what it saves properly."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = [{"inner": torch.zeros(7)}]
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_what_a_custom_function_keeps_aside_is_found(x: Tensor) -> None:
    leaf = x.clone().requires_grad_()
    assert bytes_held_for_backward(lambda: _Keeper.apply(leaf).sum()) == BATCH * WIDTH * FLOAT + 7 * FLOAT


def test_implicit_memory_does_not_depend_on_the_iterations_and_unrolled_memory_does() -> None:
    x = torch.randn(BATCH, 3)
    model = Architecture(width=WIDTH).classifier((3,), 2)

    def held(solver: object, adjoint: object) -> int:
        model.layer.solver, model.layer.adjoint = solver, adjoint
        return activation_bytes(model, lambda: model(x).square().sum())

    implicit = [held(ib.solvers.MM(tol=tol, on_failure="ignore"), ib.adjoints.Implicit()) for tol in (1e-2, 1e-6)]
    unrolled = [held("auto", ib.adjoints.Unrolled(steps=steps)) for steps in (10, 20, 30)]
    assert implicit[0] == implicit[1]
    assert 0 < implicit[0] < unrolled[0]
    assert unrolled[2] - unrolled[1] == unrolled[1] - unrolled[0]
    assert unrolled[1] - unrolled[0] >= 10 * BATCH * WIDTH * FLOAT


def test_counting_does_not_change_the_gradients(weight: Tensor, x: Tensor) -> None:
    loss = lambda: (x @ weight).tanh().sum()  # noqa: E731
    bytes_held_for_backward(loss, [weight])
    loss().backward()
    expected = x.T @ (1 - (x @ weight).tanh().square())
    torch.testing.assert_close(weight.grad, expected.detach())


def test_the_cpu_keeps_no_peak() -> None:
    assert peak_bytes(lambda: None, torch.device("cpu")) is None


@pytest.mark.gpu
def test_peak_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    found = peak_bytes(lambda: torch.zeros(2**20, device="cuda").add(1).sum(), torch.device("cuda"))
    assert found is not None
    assert found >= 2 * 2**22


PAGE_FAULTS = """
import resource, torch
from implicit_bregman.experiments.machine.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
print(keep_freed_memory())
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_for_what_comes_next() -> None:
    done = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True, check=True)
    could, before, after = done.stdout.split()
    assert could == "True"
    assert int(after) < 0.1 * int(before)


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
