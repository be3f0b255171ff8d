"""The implicit gradient is the active-set derivative, the finite difference and the limit of unrolling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import implicit_bregman as ib
from implicit_bregman.experiments.reference.oracle import (
    finite_difference_gradient,
    reference_gradient,
    reference_solution,
    weight_gradient,
)
from implicit_bregman.experiments.reference.problems import Problem, collection
from tests.adjoints.helpers import (
    ALL_CASES,
    Case,
    Learned,
    directional_errors,
    learned_case,
    mm_by_hand,
    reference,
    reference_gradients,
    relative_errors,
    worst_error,
)

pytestmark = pytest.mark.whole
LIMIT = {torch.float64: 1e-6, torch.float32: 1e-3}
SLOW = [case for case in ALL_CASES if case.slow]
LINEAR = [case for case in ALL_CASES if not case.slow]


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_implicit_is_the_active_set_derivative(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    learned, exact = learned_case(case)
    if dtype == torch.float32:
        learned = learned.to(dtype)
        exact = reference_gradients(learned)  # of the rounded problem
    learned = learned.to(dtype, device)
    solution = learned.solve()
    assert bool(solution.converged.all())
    found = learned.differentiate(solution.value)
    assert {name for name, error in relative_errors(found, exact).items() if not error <= LIMIT[dtype]} == set()
    assert not bool(found["initial"].any())
    assert solution.adjoint.status is not None
    assert not bool(solution.adjoint.status.any())


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_implicit_is_the_finite_difference_of_our_own_solve(case: Case) -> None:
    learned, _ = learned_case(case)
    errors = directional_errors(learned, learned.gradients())
    assert {name for name, error in errors.items() if not error <= 1e-6} == set()


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_implicit_is_the_finite_difference_of_the_oracle(case: Case) -> None:
    """W and c = x themselves as leaves; a symmetric W moves with its mirror image."""
    problem = case.problem()
    weight = problem.weight.clone().requires_grad_()
    offset = problem.offset.clone().requires_grad_()
    energy = ib.QuadraticEnergy.from_matrices(weight)
    solution = ib.find_critical_point(energy, problem.geometry, offset, regularization=case.regularization)
    _loss(solution.value).sum().backward()

    entries = [(0, 1), (4, 2), (3, 3)]
    by_offset, by_weight = finite_difference_gradient(
        _loss, problem.weight, problem.offset, problem.geometry, case.regularization, entries=entries
    )
    gradient = weight.grad
    assert gradient is not None
    if energy.symmetric:
        gradient = gradient + gradient.T - torch.diag(gradient.diagonal())
    ours = torch.stack([gradient[entry] for entry in entries])
    assert float((offset.grad - by_offset).norm() / by_offset.norm()) <= 1e-6
    assert float((ours - by_weight).norm() / by_weight.norm()) <= 1e-6


@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_implicit_is_the_limit_of_unrolling(case: Case) -> None:
    learned, _ = learned_case(case)
    steps = 300 if case.regularization > 0.1 else 800
    unrolled = learned.gradients(ib.adjoints.Unrolled(steps=steps))
    assert worst_error(learned.gradients(), unrolled) <= 1e-6
    assert float(unrolled["initial"].norm()) <= 1e-6 * float(unrolled["x"].norm())


@pytest.mark.parametrize("case", SLOW, ids=str)
def test_implicit_is_the_extrapolated_limit_of_unrolling_where_mm_is_slow(case: Case) -> None:
    """Arctan and bent approach an active bound like 1/k, isru like 1/k²: so does the unrolled gradient."""
    learned, exact = learned_case(case)
    order = 2 if learned.geometry.name == "isru" else 1
    short, long = (learned.gradients(ib.adjoints.Unrolled(steps=steps)) for steps in (600, 1200))
    errors = worst_error(short, exact), worst_error(long, exact)
    assert errors[1] <= 0.55 * errors[0]
    growth = 2.0**order
    limit = {name: (growth * long[name] - short[name]) / (growth - 1) for name in long}
    assert worst_error(limit, learned.gradients()) <= 0.1 * errors[1]


@pytest.mark.parametrize("problem", [p for p in collection() if p.kind != "indefinite"], ids=lambda p: p.name)
def test_shared_problems(problem: Problem, dtype: torch.dtype) -> None:
    """Conditions up to 1e4 and widths up to 48, with W and c as leaves."""
    rounded = problem.to(dtype)
    weight, offset = (t.clone().requires_grad_() for t in (rounded.weight, rounded.offset))
    energy = ib.QuadraticEnergy.from_matrices(weight)
    value = ib.find_critical_point(energy, problem.geometry, offset, regularization=problem.regularization).value
    generator = torch.Generator().manual_seed(3)
    cotangent = torch.randn(offset.shape, generator=generator, dtype=torch.float64)
    (value * cotangent.to(dtype)).sum().backward()

    setting = (problem.geometry, problem.regularization)
    known = reference_solution(rounded.weight, rounded.offset, *setting)
    v = reference_gradient(rounded.weight, rounded.offset, known.value, known.active, *setting, cotangent)
    assert offset.grad is not None
    assert weight.grad is not None
    assert float((offset.grad.double() - v).norm() / v.norm()) <= LIMIT[dtype]
    by_weight = weight_gradient(v, known.value)
    assert float((weight.grad.double() - by_weight).norm() / by_weight.norm()) <= LIMIT[dtype]


@pytest.mark.parametrize(
    "case",
    [
        Case("tanh", active=0.34),
        Case("sigmoid", regularization=0.3),
        Case("tanh", "indefinite", active=0.2, weight="symmetric"),
        Case("tanh", "general", active=0.34, weight="general"),
    ],
    ids=str,
)
def test_gradcheck(case: Case) -> None:
    """Every entry of x, z⁰ and of the raw parameters, by torch's own judge."""
    learned, _ = learned_case(case)
    solve = Solve(learned)
    names = [name for name, _ in solve.named_parameters()]

    def value(x: Tensor, initial: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(solve, dict(zip(names, parameters, strict=True)), (x, initial))

    leaves = (learned.x[:2], learned.initial[:2], *solve.parameters())
    inputs = tuple(leaf.detach().clone().requires_grad_() for leaf in leaves)
    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_train_and_eval_mode_agree(training: bool) -> None:
    layer = ib.BregmanDEQ(5, 6, dtype=torch.float64)
    x = torch.randn(4, 5, dtype=torch.float64)
    expected = torch.autograd.grad(layer(x).square().sum(), tuple(layer.parameters()))
    layer.train(training)
    found = torch.autograd.grad(layer(x).square().sum(), tuple(layer.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(bool(gradient.any()) for gradient in found)


@pytest.mark.parametrize("case", [c for c in ALL_CASES if c.kind == "indefinite" and not c.slow], ids=str)
def test_the_start_chooses_the_basin_but_has_no_gradient(case: Case) -> None:
    learned, _ = learned_case(case)
    step = ib.certify(learned.energy, learned.geometry, learned.regularization).step
    limit = mm_by_hand(learned, 2000, step)
    solution = learned.solve()
    torch.testing.assert_close(solution.value, limit, rtol=0, atol=1e-6)
    torch.testing.assert_close(solution.value.detach(), reference(learned).value, rtol=0, atol=1e-9)
    assert not bool(learned.differentiate(solution.value)["initial"].any())


def _loss(z: Tensor) -> Tensor:
    target = torch.linspace(-1.0, 2.0, z.shape[-1], dtype=z.dtype)
    return 0.5 * (z - target).square().sum(-1)


class Solve(nn.Module):
    """`find_critical_point` as a module, so that its parameters can be replaced."""

    def __init__(self, learned: Learned) -> None:
        super().__init__()
        self.energy = learned.energy
        self.settings = (learned.geometry, learned.regularization)

    def forward(self, x: Tensor, initial: Tensor) -> Tensor:
        geometry, gamma = self.settings
        return ib.find_critical_point(self.energy, geometry, x, initial, gamma).value
