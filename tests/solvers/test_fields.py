"""Equilibria of networks: every solver, several geometries and γ, against SciPy; failures with a status."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import implicit_bregman as ib
from tests.problems import Attention, D, Network, inputs, tokens

SOLVERS = ("auto", "newton", "mm", "anderson", "broyden")
#: Geometry, γ.
SETTINGS = [
    ("tanh", 1.0),
    ("sigmoid", 2.0),
    ("softplus", 1.0),
    ("identity", 1.0),
    ("sin", 1.0),
    ("arctan", 0.7),
    ("identity", 0.0),
    ("softplus", 0.0),
    ("tanh", 0.0),
]


def field_of(regularization: float, **settings: object) -> Network:
    return Network(plus_z=regularization == 0, **settings)


def by_scipy(field: Network, geometry: str, gamma: float, x: Tensor) -> Tensor:
    """The equilibria, sample by sample, by SciPy's hybrid method on the fixed-point equation in z."""
    phi = ib.geometry(geometry)
    lo, hi = phi.domain

    def equation(z: np.ndarray, row: Tensor) -> np.ndarray:
        at = torch.from_numpy(z)[None]
        with torch.no_grad():
            value = field(at, row[None])
            image = phi.activation(phi.project_dual(-value / gamma)) if gamma else (at - value).clamp(lo, hi)
        return z - image[0].numpy()

    found = [scipy.optimize.root(equation, np.full(6, 0.1), (row,), tol=1e-13) for row in x]
    assert all(np.abs(each.fun).max() < 1e-10 for each in found)
    return torch.from_numpy(np.stack([each.x for each in found]))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_solver_finds_the_equilibrium(setting: tuple[str, float], dtype: torch.dtype) -> None:
    geometry, gamma = setting
    field, x = field_of(gamma), inputs()
    wanted = by_scipy(field, geometry, gamma, x)
    tol = 1e-9 if dtype == torch.float64 else 2e-5
    for solver in SOLVERS:
        found = ib.find_critical_point(field.to(dtype), geometry, x.to(dtype), regularization=gamma, solver=solver)
        assert bool(found.converged.all()), (solver, found)
        assert found.objective is None
        assert found.value.dtype == dtype
        torch.testing.assert_close(found.value.double().detach(), wanted, rtol=0, atol=tol)


def test_gamma_one_is_the_usual_fixed_point() -> None:
    field, x = Network(), inputs()
    z = ib.find_critical_point(field, "tanh", x, regularization=1.0).value
    torch.testing.assert_close(z, torch.tanh(field.network(z, x)), rtol=0, atol=1e-10)


def test_gamma_zero_on_the_half_line_is_a_relu_network() -> None:
    field, x = Network(plus_z=True), inputs()
    found = ib.find_critical_point(field, "softplus", x)
    z = found.value
    torch.testing.assert_close(z, torch.relu(field.network(z, x)), rtol=0, atol=1e-10)
    at_bound = z < 1e-9
    assert bool(at_bound.any())
    assert bool((found.multiplier[at_bound] < 0).all())
    assert not bool(found.multiplier[~at_bound].any())


def test_a_fixed_point_map_that_is_no_contraction() -> None:
    """The map z ↦ N(z) has the slope −12 at 0."""

    class Steep(ib.Field):
        def field(self, z: Tensor, x: Tensor) -> Tensor:
            return 4 * torch.tanh(3 * z) - x + 2 * z.roll(1, -1)

    x = torch.linspace(-3, 3, 24, dtype=D).reshape(4, 6)
    field = Steep()
    found = ib.find_critical_point(field, "identity", x, regularization=1.0)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.value, -field(found.value, x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("solver", ["auto", "anderson"])
def test_a_sample_does_not_depend_on_its_batch_mates(gamma: float, solver: str) -> None:
    field, x = field_of(gamma), inputs(7) * torch.linspace(0.1, 3, 7, dtype=D)[:, None]
    whole = ib.find_critical_point(field, "tanh", x, regularization=gamma, solver=solver)
    assert len(set(whole.evaluations.tolist())) > 1  # each stops by itself
    for row in range(7):
        alone = ib.find_critical_point(field, "tanh", x[row : row + 1], regularization=gamma, solver=solver)
        torch.testing.assert_close(alone.value, whole.value[row : row + 1], rtol=0, atol=1e-9)


def test_event_shapes_and_pytrees() -> None:
    field, x = Attention(), tokens()
    for solver in SOLVERS:
        found = ib.find_critical_point(field, "tanh", x, regularization=1.0, solver=solver)
        assert found.value.shape == (4, 3, 4)
        assert bool(found.converged.all())
        torch.testing.assert_close(found.value, torch.tanh(-field(found.value, x)), rtol=0, atol=1e-9)


def test_leading_shapes_starts_and_empty_batches() -> None:
    field, x = Network(), inputs(6).reshape(2, 3, 4)
    layer = ib.CriticalPoint(field, "tanh", 1.0)
    found = layer.solve(x)
    assert found.value.shape == (2, 3, 6)
    again = layer.solve(x, initial=found)
    assert int(again.evaluations.max()) == 1
    assert layer.solve(x, initial_dual=torch.ones(2, 3, 6, dtype=D)).converged.all()
    assert layer(x[:0]).shape == (0, 3, 6)


def test_the_number_of_evaluations_is_that_of_the_calls() -> None:
    field, calls = Network(), []
    field.register_forward_hook(lambda _, arguments, __: calls.append(len(arguments[0])))
    with torch.no_grad():
        for solver in ("auto", "mm", "broyden"):
            calls.clear()
            found = ib.find_critical_point(field, "tanh", inputs(1), regularization=1.0, solver=solver)
            assert int(found.evaluations) == sum(calls)


class Rotation(ib.Field):
    """F = −(Az + x) with A thrice a rotation: no fixed-point iteration converges."""

    def field(self, z: Tensor, x: Tensor) -> Tensor:
        return -torch.stack([-3 * z[..., 1], 3 * z[..., 0]], -1) - x


def test_rotations() -> None:
    x = torch.tensor([[0.5, -1.0], [0.0, 2.0]], dtype=D)
    found = ib.find_critical_point(Rotation(), "tanh", x, regularization=1.0)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.value, torch.tanh(-Rotation()(found.value, x)), rtol=0, atol=1e-10)
    slow = ib.solvers.MM(max_iter=300, on_failure="ignore")
    failed = ib.find_critical_point(Rotation(), "tanh", x, regularization=1.0, solver=slow)
    assert {ib.Status(code) for code in failed.status.tolist()} <= {ib.Status.MAX_ITER, ib.Status.STALLED}


class Hopeless(ib.Field):
    """F = 1 + z² with γ = 0 on the line: no zero."""

    def field(self, z: Tensor, x: Tensor) -> Tensor:
        return 1 + z.square() + 0 * x


@pytest.mark.parametrize("solver", [ib.solvers.Newton(max_iter=200), ib.solvers.Anderson(max_iter=200), "mm"])
def test_where_there_is_no_equilibrium_the_status_says_so(solver: str | ib.solvers.Solver) -> None:
    with pytest.warns(ib.ConvergenceWarning, match="find_critical_point: some samples failed"):
        found = ib.find_critical_point(Hopeless(), "identity", torch.ones(2, 1, dtype=D), solver=solver)
    assert not bool(found.converged.any())
    assert bool(torch.isfinite(found.value).all())


def test_nan_of_the_field_or_the_input_spoils_no_other_sample() -> None:
    class Root(ib.Field):
        def field(self, z: Tensor, x: Tensor) -> Tensor:
            return -0.5 * (z + x).sqrt()  # NaN where z + x < 0

    x = torch.tensor([[1.0], [-2.0], [torch.nan]], dtype=D)
    with pytest.warns(ib.ConvergenceWarning):
        found = ib.find_critical_point(
            Root(), "identity", x, regularization=1.0, solver=ib.solvers.Newton(max_iter=100)
        )
    assert ib.Status(int(found.status[0])) == ib.Status.CONVERGED
    assert ib.Status(int(found.status[1])).failed
    assert ib.Status(int(found.status[2])) == ib.Status.INVALID_INPUT
    assert bool(torch.isfinite(found.value[:2]).all())


@pytest.mark.parametrize("solver", [ib.solvers.Newton(trace=True), ib.solvers.Broyden(trace=True)])
def test_traces(solver: ib.solvers.Solver) -> None:
    found = ib.find_critical_point(Network(), "tanh", inputs(), regularization=1.0, solver=solver)
    assert found.trace is not None
    assert bool(found.trace.objective.isnan().all())
    last = found.trace.residual.nan_to_num(torch.inf).amin(0)
    torch.testing.assert_close(last, found.residual)


def test_splitting_is_for_quadratic_energies() -> None:
    with pytest.raises(ValueError, match="Splitting"):
        ib.find_critical_point(Network(), "tanh", inputs(), regularization=1.0, solver="splitting")


def test_torchdeq_as_a_solver() -> None:
    found = ib.find_critical_point(
        Network(), "tanh", inputs(), regularization=1.0, solver=ib.solvers.TorchDEQ("anderson", {"lam": 1e-12})
    )
    wanted = ib.find_critical_point(Network(), "tanh", inputs(), regularization=1.0)
    torch.testing.assert_close(found.value, wanted.value, rtol=0, atol=1e-9)


def test_a_small_gamma_is_reached_along_a_curve(dtype: torch.dtype) -> None:
    field, x = Network(16, 4, size=3.0).to(dtype), inputs(8).to(dtype)
    gamma = 0.03
    tol = None if dtype == torch.float64 else 1e-5
    found = ib.find_critical_point(field, "tanh", x, regularization=gamma, solver=ib.solvers.Newton(tol=tol))
    assert bool(found.converged.all())
    limit = 1e-9 if dtype == torch.float64 else 1e-4
    z = found.value.detach()
    assert float((gamma * found.dual + field(z, x)).detach().abs().max()) <= limit
    short = ib.solvers.Anderson(tol=tol, max_iter=500, on_failure="ignore")
    assert not bool(ib.find_critical_point(field, "tanh", x, regularization=gamma, solver=short).converged.all())
