"""A sample that fails spoils no other, and gradients do not depend on batch-mates or on the mode."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch

import implicit_bregman as ib
from implicit_bregman.objective import Objective
from implicit_bregman.solvers.base import Outcome
from tests.adjoints.helpers import Case, Learned, learned_case

CASES = [
    Case("tanh", active=0.34),
    Case("sigmoid", regularization=0.3, stiffness=4.0),
    Case("tanh", "general", active=0.34, weight="general"),
    Case("exp", active=0.34),
]
ADJOINTS = [
    ib.adjoints.Implicit(),
    ib.adjoints.Implicit(method="gmres"),
    ib.adjoints.Phantom(),
    ib.adjoints.OneStep(),
    ib.adjoints.Unrolled(steps=6),
    ib.adjoints.Unrolled(steps=6, checkpoint=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("spoiled", ["x", "initial"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_sample_that_is_not_finite_has_no_gradient_and_changes_no_other(
    case: Case, adjoint: ib.adjoints.Adjoint, spoiled: str, number: float
) -> None:
    learned, _ = learned_case(case)
    others = torch.tensor([0, 2])
    clean = _rows(learned, others)
    expected = clean.gradients(adjoint)

    dirty = _rows(learned, torch.arange(3))
    with torch.no_grad():
        getattr(dirty, spoiled)[1, 3] = number
    with pytest.warns(ib.ConvergenceWarning, match="INVALID_INPUT"):
        solution = dirty.solve(adjoint)
    assert solution.status[1] == ib.Status.INVALID_INPUT
    assert bool(solution.value[1].isnan().all())
    assert bool(solution.dual.isfinite().all())
    torch.testing.assert_close(solution.value[others], clean.solve(adjoint).value, rtol=1e-11, atol=1e-11)
    leaves = dirty.leaves()
    found = torch.autograd.grad(clean.loss(solution.value[others]), list(leaves.values()), allow_unused=True)
    for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
        ours = torch.zeros_like(leaf) if gradient is None else gradient
        if name in ("x", "initial"):
            assert not bool(ours[1].any())
            ours = ours[others]
        torch.testing.assert_close(ours, expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_even_a_loss_over_the_spoiled_sample_leaves_the_parameters_alone(adjoint: ib.adjoints.Adjoint) -> None:
    """A loss that includes the NaN is NaN; the gradient that reaches the parameters is the others'."""
    learned, _ = learned_case(CASES[0])
    clean = _rows(learned, torch.tensor([0, 2]))
    expected = torch.autograd.grad(clean.solve(adjoint).value.square().sum(), list(clean.energy.parameters()))
    dirty = _rows(learned, torch.arange(3))
    with torch.no_grad():
        dirty.x[1, 0] = torch.nan
    with pytest.warns(ib.ConvergenceWarning, match="INVALID_INPUT"):
        loss = dirty.solve(adjoint).value.square().sum()
    assert bool(loss.isnan())
    found = torch.autograd.grad(loss, list(dirty.energy.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_do_not_depend_on_batch_mates(case: Case) -> None:
    learned, _ = learned_case(case)
    together = learned.gradients()
    for row in range(3):
        alone = _rows(learned, torch.tensor([row])).gradients()
        torch.testing.assert_close(together["x"][row : row + 1], alone["x"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("geometry", ["exp", "softplus", "identity"])
@pytest.mark.parametrize("adjoint", ["implicit", "phantom", "one_step"])
def test_a_diverging_sample_gives_finite_gradients(geometry: str, adjoint: str) -> None:
    """W free and not monotone on an unbounded domain: nothing converges, nothing is NaN."""
    weight = torch.tensor([[0.5, 1.0], [-1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    energy = ib.QuadraticEnergy.from_matrices(weight)
    x = torch.ones(2, 2, dtype=torch.float64)
    with pytest.warns(ib.ConvergenceWarning, match="find_critical_point: some samples failed. DIVERGED"):
        solution = ib.find_critical_point(energy, geometry, x, adjoint=adjoint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ib.ConvergenceWarning)  # the adjoint system may be singular there
        (gradient,) = torch.autograd.grad(solution.value.sum(), weight)
    assert solution.status.tolist() == [ib.Status.DIVERGED] * 2
    assert bool(solution.value.isfinite().all())
    assert bool(solution.dual.isfinite().all())
    assert bool(gradient.isfinite().all())


def test_backward_twice_gives_the_same() -> None:
    learned, _ = learned_case(CASES[0])
    loss = learned.loss(learned.solve().value)
    leaves = list(learned.energy.parameters())
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_accumulate_over_two_solves() -> None:
    learned, _ = learned_case(CASES[0])
    total = learned.differentiate(torch.cat([learned.solve().value, learned.solve().value])[:3])
    once = learned.gradients()
    assert all(torch.equal(total[name], once[name]) for name in once)
    twice = torch.autograd.grad(
        learned.loss(learned.solve().value) + learned.loss(learned.solve().value), learned.energy.bias
    )
    torch.testing.assert_close(twice[0], 2 * once["bias"])


def _rows(learned: Learned, rows: torch.Tensor) -> Learned:
    """Some of the samples, as new leaves of a copy."""
    part = copy.copy(learned)
    part.x = learned.x.detach()[rows].clone().requires_grad_()
    part.initial = learned.initial.detach()[rows].clone().requires_grad_()
    part.direction = learned.direction[rows]
    return part


@pytest.mark.parametrize("adjoint", ["implicit", "phantom", "one_step"])
def test_a_sample_on_its_way_to_infinity_spoils_no_other(adjoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given up at |z| = 1e25 with any status, its v zᵀ would overflow."""
    solve, limit = ib.solvers.Auto.solve, 1e25

    def given_up(self: ib.solvers.Auto, objective: Objective, dual: torch.Tensor) -> Outcome:
        found = solve(self, objective, dual)
        value = found.point.value.index_fill(0, torch.tensor([1]), limit)
        status = found.status.index_fill(0, torch.tensor([1]), int(ib.Status.STALLED))
        point = replace(found.point, value=value, dual=found.point.dual.index_fill(0, torch.tensor([1]), limit))
        return replace(found, point=point, status=status, complete=False)

    weight = (-torch.eye(2)).requires_grad_()
    x = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    energy = ib.QuadraticEnergy.from_matrices(weight)
    alone = ib.find_critical_point(energy, "identity", x[:1], adjoint=adjoint).value
    (expected,) = torch.autograd.grad(alone.sum(), weight)
    monkeypatch.setattr(ib.solvers.Auto, "solve", given_up)
    with pytest.warns(ib.ConvergenceWarning, match="STALLED"):
        found = ib.find_critical_point(energy, "identity", x, adjoint=adjoint)
    (gradient,) = torch.autograd.grad(found.value.sum(), weight)
    torch.testing.assert_close(gradient, expected)
