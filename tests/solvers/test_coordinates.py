"""Converged means every coordinate, whatever the scales of the others; large and far points are points too."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman import Status
from tests.solvers.helpers import ITERATIVE, solver_of

EVERY = pytest.mark.parametrize("solver", ITERATIVE)


def solved(weight: Tensor, geometry: str, c: Tensor, gamma: float = 0.0, **kwargs: object) -> ib.Solution:
    return ib.find_critical_point(ib.QuadraticEnergy.from_matrices(weight), geometry, c, regularization=gamma, **kwargs)


@EVERY
@pytest.mark.parametrize("offset", [1.1e6, 1e11, 1e25])
def test_a_large_offset_alone_does_not_pass(solver: str, offset: float, dtype: torch.dtype) -> None:
    """At z = 0 the projected gradient is 1, which a scale as large as c would hide."""
    found = solved(
        -torch.eye(1, dtype=dtype), "tanh", torch.full((1, 1), offset, dtype=dtype), solver=solver_of(solver)
    )
    assert bool(found.converged.all())
    assert float(found.value) == 1.0


@EVERY
def test_a_small_coordinate_beside_a_large_one(solver: str, dtype: torch.dtype) -> None:
    weight = torch.tensor([[-1.0, 0.1], [0.1, -1.0]], dtype=dtype)
    found = solved(weight, "tanh", torch.tensor([[1e6, 0.5]], dtype=dtype), 0.1, solver=solver_of(solver))
    assert bool(found.converged.all())
    expected = float(mpmath.findroot(lambda z: 0.1 * mpmath.atanh(z) + z - 0.6, 0.5))
    assert found.value[0, 1].item() == pytest.approx(expected, rel=3e-6 if dtype == torch.float32 else 1e-9)


@EVERY
@pytest.mark.parametrize("geometry", ["softplus", "bent", "exp", "tanh", "identity"])
def test_columns_of_any_scale(solver: str, geometry: str, dtype: torch.dtype) -> None:
    """Uncoupled coordinates with offsets of 1e-8 … 1e8: each as exact as alone, relative to max(1, |z|)."""
    scales = torch.logspace(-8, 8, 9, dtype=dtype)
    curvature = torch.linspace(0.5, 2.0, 9, dtype=dtype)
    c = torch.stack([scales, -scales, scales.flip(0)])
    found = solved(-torch.diag(curvature), geometry, c, solver=solver_of(solver, max_iter=5000))
    lo, hi = ib.geometry(geometry).domain
    expected = (c.double() / curvature.double()).clamp(lo, hi)
    assert bool(found.converged.all())
    slack = 2e-5 if dtype == torch.float32 else 1e-9
    assert bool(((found.value.double() - expected).abs() <= slack * expected.abs().clamp_min(1.0)).all())


@EVERY
def test_a_small_objective_is_solved_like_a_large_one(solver: str, dtype: torch.dtype) -> None:
    """F times a small number has the same critical points: the tolerance follows."""
    weight = torch.tensor([[-1.0, 0.3], [0.3, -0.8]], dtype=dtype)
    c = torch.tensor([[0.4, -0.7], [3.0, 0.1]], dtype=dtype)
    plain = solved(weight, "tanh", c, 0.3, solver=solver_of(solver))
    small = solved(1e-12 * weight, "tanh", 1e-12 * c, 0.3e-12, solver=solver_of("newton"))
    torch.testing.assert_close(small.value, plain.value, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-9)
    assert bool(small.converged.all())


@EVERY
def test_a_narrow_box_is_measured_by_its_width(solver: str, dtype: torch.dtype) -> None:
    phi = ib.geometry("tanh").to_box(-1e-7, 1e-7)
    c = torch.tensor([[3e-8, -1.0, 5e-8]], dtype=dtype)
    found = solved(-torch.eye(3, dtype=dtype), phi, c, solver=solver_of(solver))
    expected = torch.tensor([[3e-8, -1e-7, 5e-8]], dtype=dtype)
    torch.testing.assert_close(found.value, expected, rtol=1e-4, atol=0)


@EVERY
def test_what_overflows_is_not_accepted(solver: str, dtype: torch.dtype) -> None:
    weight = torch.tensor([[-1.0, 0.5], [0.5, -1.0]], dtype=dtype)
    found = solved(weight, "exp", torch.tensor([[100.0, 1.0]], dtype=dtype), solver=solver_of(solver))
    assert bool(found.converged.all())
    torch.testing.assert_close(found.value, torch.tensor([[134.0, 68.0]], dtype=dtype), rtol=1e-5, atol=0)


@EVERY
@pytest.mark.parametrize("exactly", [True, False])
def test_a_far_minimum_of_a_coercive_objective(solver: str, exactly: bool, dtype: torch.dtype) -> None:
    found = solved(
        -torch.eye(1, dtype=dtype),
        "softplus",
        torch.full((1, 1), 1e8, dtype=dtype),
        solver=solver_of(solver, exact=exactly),
    )
    assert found.status.tolist() == [Status.CONVERGED]
    assert float(found.value) == pytest.approx(1e8)


def test_a_general_layer_on_large_inputs() -> None:
    torch.manual_seed(0)
    layer = ib.BregmanDEQ(4, 3, "tanh", weight="general")
    with torch.no_grad():
        value = layer(1e7 * torch.randn(6, 4))
        force = value @ layer.energy.weight.T
    assert float(value.abs().min()) > 0.99, "the offset is so large that every coordinate is on a bound"
    assert bool(torch.isfinite(force).all())


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
@pytest.mark.parametrize(
    ("geometry", "start", "gamma"), [("sigmoid", 5.0, 0.1), ("tanh", 8.0, 0.0), ("isru", 8.0, 1.0)]
)
def test_accelerated_steps_are_not_lost_in_a_circle(solver: str, geometry: str, start: float, gamma: float) -> None:
    """From a saturated start, at most twice the steps of MM (and a few to begin with)."""
    initial = ib.geometry(geometry).activation(torch.tensor([[start]]).double())
    steps = {}
    for name in ("mm", solver):
        found = solved(
            -torch.eye(1).double(),
            geometry,
            torch.tensor([[0.3]]).double(),
            gamma,
            initial=initial,
            solver=solver_of(name, exact=False),
        )
        assert bool(found.converged.all())
        steps[name] = int(found.iterations)
    assert steps[solver] <= 2 * steps["mm"] + 5


def test_the_advice_is_for_this_solver_and_precision() -> None:
    c = torch.linspace(-2.0, 2.0, 4).double()[None]
    weight = -torch.diag(torch.logspace(-3, 0, 4)).double()
    short = solved(weight, "arctan", c, solver=ib.solvers.MM(max_iter=3, exact=False, on_failure="ignore"))
    assert 'solver="auto"' in short.message
    assert "exact=True" in short.message
    newton = solved(weight, "arctan", c, 0.1, solver=ib.solvers.Newton(max_iter=1, on_failure="ignore"))
    assert newton.status.tolist() == [Status.MAX_ITER]
    assert "raise max_iter" in newton.message
    assert "solver=" not in newton.message
    assert "float64" in ib.solvers.MM().advice(Status.STALLED, torch.float32)
    assert "float64" not in ib.solvers.MM().advice(Status.STALLED, torch.float64)
