"""The Bregman projection at any scale: far starts, huge duals, unequal equations; INFEASIBLE is said by proof alone."""

from __future__ import annotations

import math
import warnings
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman import ConvergenceWarning, Status
from implicit_bregman.legendre import separable_geometries
from tests.problems import low_rank
from tests.solvers.test_kept_starts import softmax

LEGENDRE = [name for name in separable_geometries() if ib.geometry(name).is_legendre]
DOUBLE = torch.float64
ITERATIVE = ("mm", "anderson", "broyden")


def column(*entries: float, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.tensor([entries], dtype=dtype)


# Closed forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [(1e6, 5e5), (1e9, 3e8), (2e3, 1e3), (5e5, 1e6)])
def test_bent_from_far(first: float, second: float) -> None:
    """z₁ + z₂ = 3/2 and z₁ − 1/(4z₁) − z₂ + 1/(4z₂) as at the start, by mpmath."""
    found = ib.find_critical_point(low_rank([[1.0], [1.0]]), "bent", column(1.5), column(first, second))
    assert found.status.tolist() == [Status.CONVERGED]
    with mpmath.workdps(60):

        def dual(z: mpmath.mpf) -> mpmath.mpf:
            return z - 1 / (4 * z)

        apart = dual(mpmath.mpf(first)) - dual(mpmath.mpf(second))
        low, high = mpmath.mpf(10) ** -20, mpmath.mpf(3) / 2 - mpmath.mpf(10) ** -20
        for _ in range(200):
            middle = mpmath.sqrt(low * high) if high > 2 * low else (low + high) / 2
            smaller = dual(middle) - dual(mpmath.mpf(3) / 2 - middle) < apart
            low, high = (middle, high) if smaller else (low, middle)
        exact = [float(low), float(mpmath.mpf(3) / 2 - low)]
    # y⁰ of this size is rounded at 1e-16 of itself.
    torch.testing.assert_close(found.value[0].tolist(), exact, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("target", [3.0, 100.0, 359.0, 360.0, 500.0, 700.0, 710.0, -640.0])
def test_arcsinh_with_large_targets(target: float) -> None:
    found = ib.find_critical_point(low_rank([[1.0]]), "arcsinh", column(target))
    assert found.status.tolist() == [Status.CONVERGED]
    assert float(found.value) == pytest.approx(target, rel=1e-13)
    assert float(ib.geometry("arcsinh").activation(found.dual)) == pytest.approx(target, rel=1e-13)
    # Equal shares, by symmetry.
    several = ib.find_critical_point(low_rank([[1.0], [1.0], [1.0]]), "arcsinh", column(3 * target))
    torch.testing.assert_close(several.value, column(target, target, target), rtol=1e-12, atol=0)


@pytest.mark.parametrize("top", [1e2, 1e3, 1e5])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_exp_from_duals_whose_points_overflow_or_underflow(top: float, sign: float, dtype: torch.dtype) -> None:
    duals = (sign * top, sign * top - 1.0, sign * top - 3.0)
    energy = low_rank([[1.0], [1.0], [1.0]], dtype)
    found = ib.find_critical_point(energy, "exp", column(1.0, dtype=dtype), initial_dual=column(*duals, dtype=dtype))
    assert found.status.tolist() == [Status.CONVERGED]
    tolerance = top * 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.value[0].tolist(), softmax((0.0, -1.0, -3.0)), rtol=tolerance, atol=tolerance)


def test_a_value_beyond_the_precision_says_so() -> None:
    """Two equal shares of 6e38, in float32."""
    energy = low_rank([[1.0], [-1.0]], torch.float32)
    start = torch.tensor([[100.0, 100.0]])
    with pytest.warns(ConvergenceWarning, match="OVERFLOW: the value exceeds the range"):
        found = ib.find_critical_point(energy, "exp", torch.tensor([[0.0]]), initial_dual=start)
    assert found.status.tolist() == [Status.OVERFLOW]
    assert bool(torch.isfinite(found.value).all())


# Known solutions ------------------------------------------------------------------------------------------------------


KNOWN = {
    "seed": st.integers(0, 10_000),
    "size": st.integers(1, 8),
    "rank": st.integers(1, 8),
    "far": st.floats(0.0, 3.0),
    "long": st.floats(-1.0, 1.5),
    "unequal": st.floats(0.0, 4.0),
    "sparse": st.booleans(),
    "single": st.booleans(),
}
BARRIERS = ("burg", "double_burg")


def solves_a_known_one(
    name: str,
    seed: int,
    size: int,
    rank: int,
    far: float,
    long: float,
    unequal: float,
    sparse: bool,
    single: bool,
) -> None:
    """z = ρ(y⁰ + Vλ) for a λ drawn at random solves the system that it is put into, and is the only solution."""
    assume(rank <= size)
    torch.manual_seed(seed)
    phi, dtype = ib.geometry(name), torch.float32 if single else DOUBLE
    v = torch.randn(size, rank, dtype=DOUBLE)
    v = (v > 0).double() if sparse else v
    v = (v * 10 ** (unequal * torch.randn(rank, dtype=DOUBLE).clamp(-1, 1))).to(dtype).double()
    y0 = (10**far * torch.randn(3, size, dtype=DOUBLE)).to(dtype).double()
    y0 = y0 if phi.has_every_dual else -y0.abs()
    unit = v / v.norm(dim=0).clamp_min(1e-30)
    shift = 10**long * torch.randn(3, rank, dtype=DOUBLE) @ unit.mT
    if not phi.has_every_dual:
        # y⁰ + Vλ has to stay among the duals.
        shift *= torch.where(shift > 0, -0.9 * y0 / shift, torch.inf).amin(-1, keepdim=True).clamp_max(1)
    y = y0 + shift
    # The sums of numbers of many sizes do not determine the small ones.
    assume(name != "exp" or float(y.max()) < 6)
    z = phi.activation(y)
    assume(name != "burg" or float(z.max() / z.min()) < (100.0 if single else 1e6))
    target = (z @ v).to(dtype)
    found = ib.find_critical_point(low_rank(v.tolist(), dtype), phi, target, initial_dual=y0.to(dtype))
    assert bool(found.converged.all())
    miss = found.value.double() @ v - target.double()
    terms = v.norm(dim=0) + torch.maximum(found.value.double().abs() @ v.abs(), target.double().abs())
    assert bool((miss.abs() <= (3e-6 if single else 1e-11) * terms).all())
    # The dual has not left y⁰ + range(V), and stands for the value.
    torch.testing.assert_close(phi.activation(found.dual), found.value, rtol=1e-5 if single else 1e-9, atol=1e-7)


@settings(max_examples=120)
@given(name=st.sampled_from([name for name in LEGENDRE if name not in BARRIERS]), **KNOWN)
def test_a_known_solution_is_found(**drawn: Any) -> None:
    solves_a_known_one(**drawn)


@settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
@given(name=st.sampled_from(BARRIERS), **KNOWN)
def test_a_known_solution_is_found_by_barriers(**drawn: Any) -> None:
    solves_a_known_one(**drawn)


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1.0, 1e4, 1e8])
def test_equations_are_judged_each_in_its_own_units(scale: float, dtype: torch.dtype) -> None:
    """One equation times any number is the same equation."""
    v = torch.tensor([[1.0, 0.5], [-0.3, 1.0], [0.2, 0.7]], dtype=dtype)
    target = torch.tensor([[0.4, 0.6], [0.1, -0.5]], dtype=dtype)
    plain = ib.find_critical_point(low_rank(v.tolist(), dtype), "tanh", target)
    unit = torch.tensor([1.0, scale], dtype=dtype)
    found = ib.find_critical_point(low_rank((v * unit).tolist(), dtype), "tanh", target * unit)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.value, plain.value, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-11)


# INFEASIBLE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["auto", *ITERATIVE])
def test_dependent_columns_that_ask_for_different_things_are_infeasible(solver: str, dtype: torch.dtype) -> None:
    """0 · z = 1, of which ∇f knows nothing; the second sample asks for 0 · z = 0."""
    energy = low_rank([[1.0, 0.0], [0.0, 0.0]], dtype)
    target = torch.tensor([[0.5, 1.0], [0.5, 0.0]], dtype=dtype)
    with pytest.warns(ConvergenceWarning, match="INFEASIBLE"):
        found = ib.find_critical_point(energy, "tanh", target, solver=solver)
    assert found.status.tolist() == [Status.INFEASIBLE, Status.CONVERGED]
    assert float(found.value[1, 0]) == pytest.approx(0.5, abs=1e-5)


def test_a_target_that_rounding_put_outside_is_met_within_the_tolerance() -> None:
    """tanh(30) is 1 in float32: the vertex is on the bound of what can be reached, and β a rounding error beyond."""
    torch.manual_seed(2)
    v = torch.randn(5, 5)
    y = 30 * torch.randn(20, 5, dtype=DOUBLE).sign()
    target = (torch.tanh(y) @ v.double()).float() * (1 + 1e-7)
    found = ib.find_critical_point(low_rank(v.tolist(), torch.float32), "tanh", target)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.value.double(), torch.tanh(y), rtol=0, atol=1e-4)


def test_what_cannot_be_solved_is_proved() -> None:
    """The sum of numbers ≥ 0 is not −1, also with columns that other coordinates do not enter."""
    energy = low_rank([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    target = torch.tensor([[-1.0, 0.5], [1.0, 0.5]], dtype=DOUBLE)
    for name in ("exp", "softplus", "bent"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = ib.find_critical_point(energy, name, target)
        assert found.status.tolist() == [Status.INFEASIBLE, Status.CONVERGED], name
        assert int(found.iterations.max()) <= 60


def test_a_row_at_its_bound_costs_few_steps() -> None:
    """β = 0 on [0, ∞) is met at the bound, which y reaches one step after the other."""
    found = ib.find_critical_point(low_rank([[1.0], [1.0]]), "exp", column(0.0))
    assert found.status.tolist() == [Status.DEGENERATE]
    assert float(found.value.max()) <= 1e-12
    assert int(found.iterations) <= 60
    assert math.isfinite(float(found.dual.min()))
