"""Phantom and one-step gradients: what they are defined as, and where they tend to."""

from __future__ import annotations

import pytest
import torch

import implicit_bregman as ib
from tests.adjoints.helpers import BACKTRACKING_CASE, Case, learned_case, mm_by_hand, relative_errors, worst_error

CASES = [
    Case("tanh", active=0.34),
    Case("sigmoid", regularization=0.3, stiffness=4.0),
    Case("sin", active=0.34, regularization=0.3),
    Case("bent", active=0.34),
    Case("arcsinh", "general", regularization=0.2, weight="general"),
    Case("tanh", "indefinite", active=0.2, weight="symmetric"),
]
EXACT = ("implicit", "phantom", "one_step")


@pytest.mark.parametrize("case", [*CASES, BACKTRACKING_CASE], ids=str)
def test_the_value_does_not_depend_on_the_adjoint(case: Case) -> None:
    learned, _ = learned_case(case)
    solutions = [learned.solve(adjoint) for adjoint in EXACT]
    for other in solutions[1:]:
        assert torch.equal(other.value, solutions[0].value)
        assert torch.equal(other.dual, solutions[0].dual)
        assert torch.equal(other.status, solutions[0].status)
        assert torch.equal(other.evaluations, solutions[0].evaluations)
    with torch.no_grad():
        assert torch.equal(learned.solve().value, solutions[0].value)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("exactly", [True, False])
def test_one_step_is_one_differentiated_mm_step(case: Case, exactly: bool) -> None:
    learned, _ = learned_case(case)
    solver = ib.solvers.Anderson(exact=exactly, tol=1e-9)
    solution = learned.solve(ib.adjoints.OneStep(), solver)
    by_hand = mm_by_hand(learned, 1, float(solution.step[0]), solution.dual)
    attached = solution.value.detach() + (by_hand - by_hand.detach())
    found, exact = learned.differentiate(solution.value), learned.differentiate(attached)
    assert max(relative_errors(found, exact).values()) <= 1e-12
    assert not bool(found["initial"].any())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_phantom_tends_to_implicit(case: Case, damping: float) -> None:
    learned, exact = learned_case(case)
    errors = [
        worst_error(learned.gradients(ib.adjoints.Phantom(steps=steps, damping=damping)), exact)
        for steps in (1, 20, 800)
    ]
    assert errors[0] > 1e-2
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] <= 1e-6


def test_phantom_with_one_undamped_step_is_one_step() -> None:
    learned, _ = learned_case(CASES[0])
    phantom = learned.gradients(ib.adjoints.Phantom(steps=1, damping=1.0))
    one_step = learned.gradients(ib.adjoints.OneStep())
    assert all(torch.equal(phantom[name], one_step[name]) for name in phantom)


def test_phantom_is_damped_steps_written_out() -> None:
    learned, _ = learned_case(Case("tanh", active=0.34, stiffness=4.0))
    solution = learned.solve(ib.adjoints.Phantom(steps=3, damping=0.25))
    y, step = solution.dual, ib.certify(learned.energy, learned.geometry).step
    for _ in range(3):
        force = -learned.energy.gradient(learned.geometry.activation(y), learned.x)
        y = 0.75 * y + 0.25 * (y + step * force)
    found = learned.differentiate(solution.value)
    exact = learned.differentiate(learned.geometry.activation(y))
    assert max(relative_errors(found, exact).values()) <= 1e-10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"damping": 0.0}, "damping must be positive and finite, got 0.0"),
        ({"damping": 1.5}, r"damping must be in \(0, 1\], got 1.5"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ib.adjoints.Phantom(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("adjoint", EXACT)
def test_attach_gradient_is_the_adjoint_at_a_given_iterate(adjoint: str) -> None:
    learned, _ = learned_case(Case("tanh", active=0.34))
    solution = learned.solve(adjoint, ib.solvers.Anderson(exact=False))
    value = ib.attach_gradient(
        learned.energy, learned.geometry, learned.x, solution.dual, learned.regularization, adjoint
    )
    assert torch.equal(value, solution.value)
    expected, found = learned.differentiate(solution.value), learned.differentiate(value)
    assert max(relative_errors(found, expected).values()) <= 1e-12


def test_attach_gradient_refuses_unrolled() -> None:
    learned, _ = learned_case(Case("tanh", active=0.34))
    dual = learned.solve().dual
    with pytest.raises(TypeError, match="Unrolled differentiates its own iterations"):
        ib.attach_gradient(learned.energy, learned.geometry, learned.x, dual, adjoint="unrolled")
    with pytest.raises(ValueError, match=r"dual must have shape \(3, 6\), got \(2, 6\)"):
        ib.attach_gradient(learned.energy, learned.geometry, learned.x, dual[:2])
