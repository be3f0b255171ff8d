"""Unrolling is differentiation of exactly L MM steps: full, checkpointed, truncated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from tests.adjoints.helpers import (
    ALL_CASES,
    BACKTRACKING_CASE,
    Case,
    directional_errors,
    learned_case,
    mm_by_hand,
    relative_errors,
    saved_bytes,
)

#: One of each kind of geometry, of weight and of step; exp has no fixed step and backtracks.
CASES = [
    Case("tanh", active=0.34),
    Case("tanh", active=0.34, stiffness=4.0),
    Case("sin", active=0.34, regularization=0.3),
    Case("bent", active=0.34),
    Case("arcsinh", regularization=0.3),
    Case("sigmoid", "general", active=0.34, weight="general"),
    Case("tanh", "indefinite", active=0.2, weight="symmetric"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("steps", [1, 7])
def test_it_is_mm_written_out(case: Case, steps: int) -> None:
    learned, _ = learned_case(case)
    solution = learned.solve(ib.adjoints.Unrolled(steps=steps))
    tau = float(solution.step[0])
    value = mm_by_hand(learned, steps, tau)
    torch.testing.assert_close(solution.value, value, rtol=1e-12, atol=1e-14)
    found, exact = learned.differentiate(solution.value), learned.differentiate(value)
    assert max(relative_errors(found, exact).values()) <= 1e-12
    torch.testing.assert_close(found["initial"], exact["initial"], rtol=1e-11, atol=1e-13)
    assert bool(found["initial"].any())


@pytest.mark.parametrize("case", [*CASES, BACKTRACKING_CASE], ids=str)
def test_every_gradient_is_the_finite_difference(case: Case) -> None:
    """τ is held fixed in the gradient, so W is left out where τ depends on it (τ < 1)."""
    learned, _ = learned_case(replace(case, stiffness=0.8 * case.stiffness))
    adjoint = ib.adjoints.Unrolled(steps=5)
    solution = learned.solve(adjoint)
    fixed = bool((solution.step == 1).all())
    names = tuple(name for name in learned.leaves() if fixed or not name.startswith("weight_map"))
    errors = directional_errors(learned, learned.differentiate(solution.value), adjoint, names)
    assert "initial" in errors
    assert {name for name, error in errors.items() if not error <= 1e-6} == set()


@pytest.mark.parametrize("case", [*CASES, BACKTRACKING_CASE], ids=str)
@pytest.mark.parametrize(("steps", "last"), [(1, None), (2, None), (10, None), (10, 5)])
def test_checkpointing_changes_nothing(case: Case, steps: int, last: int | None) -> None:
    learned, _ = learned_case(case)
    plain = learned.solve(ib.adjoints.Unrolled(steps=steps, last=last))
    saved = learned.solve(ib.adjoints.Unrolled(steps=steps, last=last, checkpoint=True))
    assert torch.equal(plain.value, saved.value)
    expected, found = learned.differentiate(plain.value), learned.differentiate(saved.value)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("last", [1, 4])
def test_truncation_is_a_detached_start(case: Case, last: int) -> None:
    learned, _ = learned_case(case)
    truncated = learned.solve(ib.adjoints.Unrolled(steps=10, last=last))
    full = learned.solve(ib.adjoints.Unrolled(steps=10))
    assert torch.equal(truncated.value, full.value)
    start = learned.solve(ib.adjoints.Unrolled(steps=10 - last)).detach()
    rest = ib.find_critical_point(
        learned.energy,
        learned.geometry,
        learned.x,
        start,
        learned.regularization,
        adjoint=ib.adjoints.Unrolled(steps=last),
    )
    torch.testing.assert_close(rest.value, truncated.value, rtol=1e-13, atol=1e-15)
    expected, found = learned.differentiate(rest.value), learned.differentiate(truncated.value)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-11, atol=1e-14)
    assert not bool(found["initial"].any())
    assert float((found["x"] - learned.differentiate(full.value)["x"]).norm()) > 0


def test_truncating_nothing_is_unrolling() -> None:
    learned, _ = learned_case(CASES[0])
    found, full = (learned.gradients(ib.adjoints.Unrolled(steps=6, last=last)) for last in (6, None))
    assert all(torch.equal(found[name], full[name]) for name in full)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_truncated_not_failed(case: Case) -> None:
    """Warnings are errors here: none is given, however far from the limit the value is."""
    learned, _ = learned_case(case)
    solution = learned.solve(ib.adjoints.Unrolled(steps=3))
    assert solution.status.tolist() == [ib.Status.TRUNCATED] * 3
    assert solution.iterations.tolist() == [3, 3, 3]
    assert not bool(solution.converged.any())
    assert not bool(solution.exact.any())
    torch.testing.assert_close(learned.geometry.activation(solution.dual), solution.value.detach())
    assert float(solution.residual.max()) > 1e-6


@pytest.mark.parametrize("solver", ["auto", "mm", ib.solvers.MM(exact=False)], ids=str)
def test_auto_and_mm_are_accepted(solver: object) -> None:
    learned, _ = learned_case(CASES[0])
    solution = learned.solve(ib.adjoints.Unrolled(steps=4), solver)
    assert torch.equal(solution.value, learned.solve(ib.adjoints.Unrolled(steps=4)).value)


@pytest.mark.parametrize("solver", ["anderson", "broyden", ib.solvers.Anderson()], ids=str)
def test_other_solvers_are_refused(solver: object) -> None:
    learned, _ = learned_case(CASES[0])
    with pytest.raises(ValueError, match=r'Unrolled is MM itself: use solver="auto" or MM, got (Anderson|Broyden)'):
        learned.solve(ib.adjoints.Unrolled(steps=4), solver)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, got 2.5"),
        ({"steps": 4, "last": 0}, "last must be a whole number of at least 1, got 0"),
        ({"steps": 4, "last": 5}, "last must not exceed steps = 4, got 5"),
        ({"steps": 4, "checkpoint": 2}, "checkpoint must be True or False, got 2"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ib.adjoints.Unrolled(**settings)  # type: ignore[arg-type]


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(TypeError, match="Unrolled has no setting 'depth'; its settings are steps, checkpoint, last"):
        ib.adjoints.Unrolled(depth=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "softplus"])
def test_second_derivatives(geometry: str, checkpoint: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    weight = -weight @ weight.T - 0.1 * torch.eye(3, dtype=torch.float64)
    weight = (0.8 * weight / torch.linalg.matrix_norm(weight, 2)).requires_grad_()  # τ = 1 and stays so
    x = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    initial = ib.geometry(geometry).activation(torch.randn(2, 3, generator=generator, dtype=torch.float64))
    adjoint = ib.adjoints.Unrolled(steps=3, checkpoint=checkpoint)

    def value(matrix: Tensor, x: Tensor, initial: Tensor) -> Tensor:
        energy = ib.QuadraticEnergy.from_matrices(0.5 * (matrix + matrix.T))
        return ib.find_critical_point(energy, geometry, x, initial, 0.1, adjoint=adjoint).value

    inputs = (weight, x, initial.requires_grad_())
    assert torch.autograd.gradgradcheck(value, inputs, atol=1e-6, rtol=1e-4)


def test_memory_grows_with_steps_and_checkpointing_bounds_it() -> None:
    learned, _ = learned_case(CASES[0])
    held = {}
    for steps in (16, 64):
        for checkpoint in (False, True):
            with saved_bytes(list(learned.energy.parameters())) as total:
                learned.solve(ib.adjoints.Unrolled(steps=steps, checkpoint=checkpoint))
            held[steps, checkpoint] = total[0]
    assert held[64, False] >= 3 * held[16, False]
    assert held[64, True] <= 2.5 * held[16, True]
    assert held[64, True] < 0.5 * held[64, False]


@pytest.mark.parametrize("case", [case for case in ALL_CASES if case.kind != "indefinite"], ids=str)
def test_float32_follows_float64(case: Case) -> None:
    learned, _ = learned_case(case)
    adjoint = ib.adjoints.Unrolled(steps=20)
    single = learned.to(torch.float32)
    found, exact = single.gradients(adjoint), single.to(torch.float64).gradients(adjoint)
    assert max(relative_errors(found, exact).values()) <= 1e-4
