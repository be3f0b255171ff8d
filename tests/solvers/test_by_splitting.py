"""γ = 0 and many active bounds: the operator splitting ends at the exact points that Newton's method finds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.adjoints.implicit import linearize_outcome
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


@pytest.mark.parametrize("geometry", ["softplus", "sigmoid"])
@pytest.mark.parametrize("skew", [0.0, 1.0])
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3, 1e-4])
def test_a_loose_solve_keeps_its_promise(tol: float, skew: float, geometry: str, dtype: torch.dtype) -> None:
    """Also where other methods, in float64, solve the samples whose active set is not certain."""
    hessian, c = layer(0.5, skew, dtype)
    found = outcome(hessian, c, geometry, ib.solvers.Auto(tol=tol), ALWAYS)
    assert bool((found.status <= int(ib.Status.DEGENERATE)).all())
    assert float(found.point.residual.max()) <= tol
    exact = outcome(hessian.double(), c.double(), geometry, ib.solvers.Splitting(tol=1e-12)).point.value
    error = (found.point.value.double() - exact).abs().amax(-1) / exact.abs().amax(-1).clamp(max=1.0)
    assert bool((error[found.status == int(ib.Status.CONVERGED)] <= 2 * tol).all())


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
    assert outcome(hessian, c, "softplus", costs=ALWAYS).splitter is not None
    assert outcome(hessian, c, "softplus", costs=replace(ALWAYS, splitting_per_sample=0)).splitter is None
    assert outcome(hessian, c, "softplus", costs=replace(ALWAYS, splitting_block=0)).splitter is None
    assert outcome(hessian, c[:2], "softplus", costs=ALWAYS).splitter is None  # too few samples for its inverse
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


@pytest.mark.parametrize("d", [5, 12])
def test_a_coordinate_at_its_bound_has_no_part_in_the_gradient(d: int, dtype: torch.dtype) -> None:
    """Much skewed and far out: a set that is not certain is found again, from duals that reach no bound."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    hessian = 0.1 * torch.eye(d).double() + root @ root.mT / d + 10 * (root - root.mT) / d**0.5
    c = 1e3 * torch.randn(60, d, generator=generator, dtype=torch.float64)
    x = c.to(dtype).requires_grad_()
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(-hessian.to(dtype)), "softplus", x)
    found.value.sum().backward()
    solved = found.status == ib.Status.CONVERGED
    assert bool(solved.sum() > 50)
    z = found.value.detach().double()
    force = x.detach().double() - z @ hessian.mT
    active = (z <= 1e-6) & (force < -1e-3)
    assert float(x.grad[active & solved[:, None]].abs().max()) == 0.0
    free = (~active).double()
    system = free[:, :, None] * hessian.mT * free[:, None, :] + torch.diag_embed(1 - free)
    v = torch.linalg.solve(system, free[:, :, None]).squeeze(-1)
    wrong = (x.grad.double() - v).abs().amax(-1) / v.abs().amax(-1).clamp_min(1e-3)
    assert float(wrong[solved].max()) <= (1e-3 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize("max_iter", [1, 2, 4])
def test_converged_means_a_residual_within_the_tolerance(max_iter: int) -> None:
    """Also where the condition is so near to 1 that the error is no larger than the residual."""
    generator = torch.Generator().manual_seed(11)
    root, c = torch.randn(40, 40, generator=generator).double(), torch.randn(60, 40, generator=generator).double()
    hessian = torch.eye(40).double() + 0.02 * (root - root.mT) / 40**0.5
    found = outcome(hessian, 2 * c, "softplus", ib.solvers.Auto(tol=1e-3, max_iter=max_iter))
    assert bool((found.point.residual[found.status <= 1] <= 1e-3).all())


@pytest.mark.parametrize("skew", [0.0, 1.0])
@pytest.mark.parametrize(
    ("size", "dtype"), [(1e23, torch.float32), (1e25, torch.float32), (1e160, torch.float64), (1e-170, torch.float64)]
)
def test_the_size_of_the_matrix_does_not_matter(size: float, skew: float, dtype: torch.dtype) -> None:
    hessian, c = layer(0.5, skew, torch.float64)
    x = (size * c).to(dtype)
    found = ib.find_critical_point(
        ib.QuadraticEnergy.from_matrices((-size * hessian).to(dtype)),
        "softplus",
        x,
        solver=ib.solvers.Auto(on_failure="ignore"),
    )
    exact = outcome(hessian, c, "softplus").point.value
    right = (found.value.double() - exact).abs().amax(-1) <= 1e-5
    assert bool((right | ~found.converged).all())
    if skew or dtype == torch.float64:  # (float32 without skew says STALLED)
        assert bool(found.converged.all())


@pytest.mark.parametrize("size", [1e-3, 1e-2])
def test_small_values_have_as_many_digits(size: float) -> None:
    hessian, c = layer(0.3, 0.0, torch.float64)
    found = outcome(hessian.float(), size * c.float(), "softplus", costs=ALWAYS).point.value
    exact = outcome(hessian, size * c.float().double(), "softplus", Newton()).point.value
    assert float((found.double() - exact).abs().amax() / exact.abs().amax()) <= 1e-5


def test_the_backward_pass_keeps_the_reflection_only_where_it_splits() -> None:
    hessian, c = layer(1.0, 0.0, torch.float64)
    for solver, more in (("auto", 1), (Newton(), 0)):
        energy = ib.QuadraticEnergy.from_operator(Dense(hessian, costs=ALWAYS)).bind(c)
        found = solver_named(solver).solve(Objective(energy, ib.geometry("softplus"), 0.0), torch.zeros_like(c))
        kept = linearize_outcome(Objective(energy, ib.geometry("softplus"), 0.0), found).pack()[0]
        matrices = [tensor for tensor in kept if tensor.shape == (D, D)]
        assert len(matrices) == 2 + more  # H, its inverse
