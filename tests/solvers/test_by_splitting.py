"""γ = 0 and many active bounds: the operator splitting ends at the exact points that Newton's method finds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.objective import Objective
from implicit_bregman.operators import Costs, Dense
from implicit_bregman.solvers import Newton, Outcome, solver_named

D, B = 30, 40
#: A splitting whatever it costs.
ALWAYS = Costs(splitting_block=10**6)


def layer(least: float, skew: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Like monDEQ's: about half of the units are at 0."""
    generator = torch.Generator().manual_seed(5)
    root, other = torch.randn(2, D, D, generator=generator, dtype=torch.float64) / D**0.5
    hessian = least * torch.eye(D).double() + root.mT @ root + skew * (other.mT - other)
    return hessian.to(dtype), torch.randn(B, D, generator=generator, dtype=torch.float64).to(dtype)


def outcome(hessian: Tensor, c: Tensor, geometry: str, solver: object = "auto", costs: Costs | None = None) -> Outcome:
    operator = Dense(hessian) if costs is None else Dense(hessian, costs=costs)
    energy = ib.QuadraticEnergy.from_operator(operator).bind(c)
    objective = Objective(energy, ib.geometry(geometry), 0.0)
    start = torch.zeros_like(c)
    return solver_named(solver).solve(objective, start)


@pytest.mark.parametrize("geometry", ["softplus", "sigmoid", "sin"])
@pytest.mark.parametrize("skew", [0.0, 1.0])
@pytest.mark.parametrize("least", [1.0, 0.1])
def test_the_points_are_those_of_float64(least: float, skew: float, geometry: str, dtype: torch.dtype) -> None:
    hessian, c = layer(least, skew, dtype)
    c = 3 * c if geometry == "sin" else c
    found = outcome(hessian, c, geometry, costs=ALWAYS)
    assert found.splitter is not None
    assert found.complete
    exact = outcome(hessian.double(), c.double(), geometry, Newton() if skew == 0 else ib.solvers.Splitting(tol=1e-12))
    tol = 3e-6 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found.point.value.double(), exact.point.value, rtol=0, atol=tol)
    lo, hi = ib.geometry(geometry).bounds(dtype)
    at_bound = (found.point.value <= lo) | (found.point.value >= hi)
    assert torch.equal(found.free, ~at_bound)
    assert 0.2 < float(at_bound.double().mean()) < 0.9


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_the_gradient_is_that_of_the_active_set(skew: float, dtype: torch.dtype) -> None:
    hessian, c = layer(0.3, skew, dtype)
    w, x, g = (-hessian).requires_grad_(), c.clone().requires_grad_(), torch.randn_like(c)
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(w), "softplus", x)
    found.value.backward(g)
    assert bool((found.adjoint.status == ib.Status.CONVERGED).all())
    assert int(found.adjoint.iterations.min()) > 0  # (no factorization)
    free = (found.value.detach() > 0).double()
    system = free[:, :, None] * hessian.double().mT * free[:, None, :] + torch.diag_embed(1 - free)
    v = torch.linalg.solve(system, (free * g.double())[:, :, None]).squeeze(-1)
    tol = 1e-5 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(x.grad.double(), v, rtol=tol, atol=tol)
    torch.testing.assert_close(w.grad.double(), v.mT @ found.value.detach().double(), rtol=tol, atol=20 * tol)


def test_a_weak_multiplier_keeps_its_status(dtype: torch.dtype) -> None:
    """Sample 3 has a coordinate at its bound with the multiplier 0: the active set is not certain there."""
    hessian, c = layer(1.0, 0.0, dtype)
    value = outcome(hessian.double(), c.double(), "softplus", Newton()).point.value[3]
    at = int((value <= 0).nonzero()[0])
    c[3, at] = (hessian.double() @ value.clamp_min(0))[at].to(dtype)
    found, newtons = (outcome(hessian, c, "softplus", solver) for solver in ("auto", Newton()))
    assert found.status.tolist() == newtons.status.tolist()
    torch.testing.assert_close(
        found.point.value, newtons.point.value, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-9
    )


def test_a_sample_is_left_alone_when_it_has_stopped() -> None:
    hessian, c = layer(0.3, 0.0, torch.float64)
    together = outcome(hessian, c, "softplus")
    for row in (0, 17):
        costs = Costs(splitting_per_sample=D, splitting_block=1000)
        alone = outcome(hessian, c[row : row + 1], "softplus", costs=costs)
        assert alone.splitter is not None
        assert int(alone.iterations) == int(together.iterations[row])
        torch.testing.assert_close(alone.point.value[0], together.point.value[row], rtol=0, atol=1e-9)


def test_the_costs_choose_the_route() -> None:
    hessian, c = layer(1.0, 0.0, torch.float64)
    assert outcome(hessian, c, "softplus").splitter is not None
    assert outcome(hessian, c, "softplus", costs=Costs(splitting_per_sample=0)).splitter is None
    assert outcome(hessian, c[:2], "softplus").splitter is None  # too few samples for its inverse
    assert outcome(hessian, c, "softplus", Newton()).splitter is None


@pytest.mark.parametrize("max_iter", [1, 5])
def test_max_iter_is_a_bound(max_iter: int) -> None:
    hessian, c = layer(0.1, 0.0, torch.float64)
    found = outcome(hessian, c, "softplus", ib.solvers.Auto(max_iter=max_iter), ALWAYS)
    assert int(found.iterations.max()) <= max_iter
    assert bool((found.status == ib.Status.MAX_ITER).any())


def test_a_set_that_gradient_steps_are_slow_to_find() -> None:
    """Few bounds look active at first: a splitting guesses the set, and one set is solved for."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(40, 40, generator=generator, dtype=torch.float64) / 40**0.5
    hessian = root.mT @ root + 0.05 * torch.eye(40).double()
    c = 0.6 * torch.randn(64, 40, generator=generator, dtype=torch.float64)
    fast, slow = outcome(hessian, c, "tanh"), outcome(hessian, c, "tanh", Newton())
    assert fast.splitter is None or fast.complete
    torch.testing.assert_close(fast.point.value, slow.point.value, rtol=0, atol=1e-9)
