"""Numbers of NumPy count as numbers, and are kept as Python's own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import implicit_bregman as ib

WHOLE = [np.int64(3), np.int32(3), np.uint8(3)]
REAL = [np.float64(0.25), np.float32(0.25), np.float16(0.25)]


@pytest.mark.parametrize("count", WHOLE, ids=lambda n: type(n).__name__)
def test_whole_numbers(count: np.integer) -> None:
    for made in (
        ib.adjoints.Unrolled(steps=count, last=count),
        ib.adjoints.Phantom(steps=count),
        ib.adjoints.Shine(refine=count),
        ib.adjoints.Implicit(max_iter=count),
        ib.solvers.MM(max_iter=count),
        ib.solvers.Anderson(memory=count, max_iter=count),
        ib.solvers.Broyden(memory=count),
        ib.solvers.Newton(max_iter=count),
    ):
        kept = [value for value in vars(made).values() if value == 3]
        assert kept
        assert all(type(value) is int for value in kept)
        assert made == copy.deepcopy(made)
    layer = ib.BregmanDEQ(count, np.int64(4), weight="low_rank", rank=count, regularization=0.1)
    assert layer(torch.zeros(2, 3)).shape == (2, 4)
    assert "rank=3" in repr(layer)


@pytest.mark.parametrize("number", REAL, ids=lambda n: type(n).__name__)
def test_real_numbers(number: np.floating) -> None:
    assert type(ib.solvers.MM(tol=number).tol) is float
    assert type(ib.adjoints.Implicit(tol=number).tol) is float
    assert type(ib.adjoints.Phantom(damping=number).damping) is float
    assert type(ib.solvers.Anderson(ridge=number).ridge) is float
    layer = ib.BregmanDEQ(3, 4, regularization=number, margin=number, dtype=torch.float64)
    assert type(layer.regularization) is float
    assert type(layer.energy.weight_map.margin) is float
    x = torch.randn(2, 3, dtype=torch.float64)
    found = ib.find_critical_point(layer.energy, "tanh", x, regularization=number)
    assert torch.equal(found.value, ib.find_critical_point(layer.energy, "tanh", x, regularization=0.25).value)
    soft = ib.BregmanDEQ(3, 4, weight="low_rank", rank=2, softening=number).energy.weight_map.softening
    assert type(soft) is float


@pytest.mark.parametrize("bad", [np.int64(0), np.float64(2.0), True, np.bool_(True), 2.0, "2", None, torch.tensor(2)])
def test_what_is_no_count(bad: object) -> None:
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got"):
        ib.adjoints.Unrolled(steps=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.float32("nan"), np.float64("inf"), np.float64(-1), np.bool_(True), "1", 1j])
def test_what_is_no_real_number(bad: object) -> None:
    with pytest.raises(ValueError, match="regularization must be a finite number >= 0, got"):
        ib.BregmanDEQ(3, 4, regularization=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tol must be positive and finite, got"):
        ib.solvers.MM(tol=bad)  # type: ignore[arg-type]


def test_a_tensor_is_refused_because_it_would_have_no_gradient() -> None:
    gamma = torch.tensor(0.1, requires_grad=True)
    with pytest.raises(ValueError, match=r"regularization must be .*it has no gradient here, give float\(\.\.\.\)"):
        ib.BregmanDEQ(3, 4, regularization=gamma)  # type: ignore[arg-type]
