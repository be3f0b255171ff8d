"""The oracle against designed solutions, other minimisers, plain MM and finite differences."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from implicit_bregman.experiments.reference.basin import in_basin
from implicit_bregman.experiments.reference.optimality import Conditions
from implicit_bregman.experiments.reference.oracle import (
    EXACT,
    Reference,
    finite_difference_gradient,
    reference_gradient,
    reference_solution,
    share_on_reference_limit,
    weight_gradient,
)
from implicit_bregman.experiments.reference.problems import Problem, collection, make_problem
from implicit_bregman.legendre import geometry

PROBLEMS = collection()
DESIGNED = [problem for problem in PROBLEMS if problem.solution is not None]
INDEFINITE = [problem for problem in PROBLEMS if problem.kind == "indefinite"]
SMALL = [problem for problem in PROBLEMS if len(problem.weight) <= 20]


def several_minima(problem: Problem) -> bool:
    least = problem.regularization * problem.geometry.strong_convexity
    return problem.kind == "indefinite" and float(torch.linalg.eigvalsh(problem.weight).max()) > least


BASINS = [problem for problem in SMALL if several_minima(problem)]


def every(problems: list[Problem]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("problem", problems, ids=[problem.name for problem in problems])


def solve(problem: Problem, initial_dual: Tensor | None = None, max_steps: int = 2**13) -> Reference:
    return reference_solution(
        problem.weight,
        problem.offset,
        problem.geometry,
        problem.regularization,
        initial_dual=initial_dual,
        max_steps=max_steps,
    )


def mm(problem: Problem, dual: Tensor, steps: int) -> Tensor:
    """The dual iterate of plain majorization-minimization."""
    phi, gamma, tau = problem.geometry, problem.regularization, problem.step
    for _ in range(steps):
        force = phi.activation(dual) @ problem.weight.T + problem.offset
        dual = phi.project_dual((dual + tau * force) / (1 + tau * gamma))
    return dual


def error(found: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


# A single solution ------------------------------------------------------------------------------------------


@every(DESIGNED)
def test_finds_the_designed_solution(problem: Problem) -> None:
    found = solve(problem)
    if problem.regularization > 0:
        assert found.method == "newton"
    else:
        assert found.method == ("projection" if problem.kind == "general" else "bvls")
    torch.testing.assert_close(found.value, problem.solution, atol=1e-14 + 1e-15 * problem.condition, rtol=0)
    assert torch.equal(found.active, problem.active)
    assert bool((found.residual <= EXACT).all())
    assert bool(found.reached.all())
    assert found.excluded == 0


@pytest.mark.parametrize("phi", ["tanh", "softplus"])
@pytest.mark.parametrize("condition", [10.0, 1e6])
def test_optimality_where_nothing_was_designed(phi: str, condition: float, generator: torch.Generator) -> None:
    problem = make_problem(geometry=phi, dim=12, batch=20, condition=condition)
    offset = 0.3 * torch.randn(20, 12, generator=generator, dtype=torch.float64)
    found = reference_solution(problem.weight, offset, problem.geometry)
    low, high = problem.geometry.domain
    z, force = found.value, found.value @ problem.weight.T + offset
    noise = 1e-12 * (1 + z.abs().max())
    assert 0 < int(found.active.sum()) < z.numel()
    assert bool((force[~found.active].abs() <= noise).all())
    assert bool((force[z == low] <= noise).all())
    assert bool((force[z == high] >= -noise).all())
    assert bool(((z >= low) & (z <= high)).all())


@pytest.mark.parametrize("active", [0.0, 0.25])
def test_projection_and_bvls_agree(active: float) -> None:
    """A W that is not symmetric by 1e-7 goes another way and must end next to the symmetric one's."""
    problem = make_problem(dim=16, batch=6, active=active)
    skewed = problem.weight.clone()
    skewed[0, 1] += 1e-7
    bvls, projection = (
        reference_solution(weight, problem.offset, problem.geometry) for weight in (problem.weight, skewed)
    )
    assert (bvls.method, projection.method) == ("bvls", "projection")
    assert 0 < float((bvls.value - projection.value).abs().max()) < 2e-5
    assert torch.equal(bvls.active, projection.active)


def test_scipy_finds_the_same_root() -> None:
    problem = make_problem(geometry="tanh", dim=12, batch=3, condition=30.0, regularization=0.2)
    weight, gamma = problem.weight.numpy(), problem.regularization
    for z, c in zip(solve(problem).value.numpy(), problem.offset.numpy(), strict=True):
        dual, _, status, message = scipy.optimize.fsolve(
            lambda y, c=c: gamma * y - weight @ np.tanh(y) - c, np.zeros_like(c), xtol=1e-12, full_output=True
        )
        assert status == 1, message
        np.testing.assert_allclose(np.tanh(dual), z, atol=1e-10)


def test_scipy_finds_the_same_minimum() -> None:
    problem = make_problem(geometry="sigmoid", dim=8, batch=3, condition=10.0, regularization=0.5)
    weight, gamma = problem.weight.numpy(), problem.regularization
    for z, c in zip(solve(problem).value.numpy(), problem.offset.numpy(), strict=True):
        found = scipy.optimize.minimize(
            lambda u, c=c: -0.5 * u @ weight @ u - c @ u + gamma * (u @ np.log(u) + (1 - u) @ np.log1p(-u)),
            np.full_like(c, 0.5),
            bounds=[(1e-9, 1 - 1e-9)] * len(c),
            options={"ftol": 1e-15, "gtol": 1e-10},
        )
        np.testing.assert_allclose(found.x, z, atol=1e-5)


def test_a_wrong_answer_of_bvls_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(active=0.2, dim=8)

    def give_up(matrix: np.ndarray, *_: object, **__: object) -> scipy.optimize.OptimizeResult:
        size = matrix.shape[1]
        return scipy.optimize.OptimizeResult(x=np.zeros(size), active_mask=np.zeros(size))

    monkeypatch.setattr(scipy.optimize, "lsq_linear", give_up)
    with pytest.raises(RuntimeError, match="relative residual"):
        solve(problem)


def test_too_few_projections_are_noticed() -> None:
    with pytest.raises(RuntimeError, match="projection: relative residual"):
        solve(make_problem("general", active=0.25, condition=1e4), max_steps=1)


# Several critical points ------------------------------------------------------------------------------------


@every(INDEFINITE)
def test_reached_points_are_strict_local_minima(problem: Problem) -> None:
    found = solve(problem, max_steps=2**16)
    assert found.method == ("mm" if several_minima(problem) else "newton")
    assert found.excluded <= (0.25 if problem.geometry.name == "arctan" else 0.0)
    z, low, high = found.value, *problem.geometry.bounds(torch.float64)
    slack = z @ problem.weight.T + problem.offset
    hessian = -problem.weight.expand(len(z), -1, -1)
    if problem.regularization > 0:
        assert int(found.active.sum()) == 0
        dual = slack / problem.regularization
        torch.testing.assert_close(problem.geometry.activation(dual), z, atol=1e-12, rtol=0)
        hessian = hessian + torch.diag_embed(problem.regularization * problem.geometry.curvature(dual))
    for k in found.reached.nonzero().flatten():
        active = found.active[k]
        if problem.regularization == 0:
            assert float(slack[k][~active].abs().max()) < 1e-14
            assert bool((torch.where(z[k] == high, slack[k], -slack[k])[active] > 0).all())
            assert bool(((z[k] == low) | (z[k] == high))[active].all())
            assert float(active.double().mean()) >= problem.active_share
        assert float(torch.linalg.eigvalsh(hessian[k][~active][:, ~active]).min()) > 0
    if problem.regularization == 0:
        assert 0.05 <= float(found.active[found.reached].double().mean()) <= 0.45


@every([problem for problem in BASINS if problem.geometry.name != "arctan"])
def test_mm_goes_on_to_the_limit_that_was_proved(problem: Problem) -> None:
    found = solve(problem)
    z = problem.geometry.activation(mm(problem, torch.zeros_like(problem.offset), 4000))
    assert float((z - found.value)[found.reached].abs().max()) < 1e-2


def test_slow_geometry_approaches_the_limit_that_was_proved() -> None:
    """Arctan's active coordinates are still 1e-3 off when the active set has long been certain."""
    problem = next(problem for problem in INDEFINITE if problem.geometry.name == "arctan")
    found = solve(problem, max_steps=2**10)
    assert 0 < int(found.reached.sum()) < len(found.reached), "some are certain by now, some are not"
    dual = mm(problem, torch.zeros_like(problem.offset), 2**10)
    before = (problem.geometry.activation(dual) - found.value)[found.reached].abs().amax(-1)
    after = problem.geometry.activation(mm(problem, dual, 7 * 2**10)) - found.value
    assert bool((before > 1e-5).all())
    assert bool((after[found.reached].abs().amax(-1) < 0.3 * before).all())


def test_unreached_samples_show_mm_as_it_is() -> None:
    problem = next(problem for problem in INDEFINITE if problem.geometry.name == "arctan")
    found = solve(problem, max_steps=20)
    z = problem.geometry.activation(mm(problem, torch.zeros_like(problem.offset), 20))
    assert found.excluded > 0
    assert torch.equal(found.value[~found.reached], z[~found.reached])
    assert bool((found.residual[~found.reached] > 1e-4).all())


def test_the_start_decides_the_limit() -> None:
    problem = make_problem("indefinite", dim=20, batch=8, condition=30.0, active=0.1)
    from_zero = solve(problem)
    start = torch.linspace(-3, 3, 160, dtype=torch.float64).reshape(8, 20)
    elsewhere = solve(problem, initial_dual=start)
    share, excluded = share_on_reference_limit(elsewhere.value, from_zero)
    assert 0 < share < 1
    assert excluded == 0


def test_certificate_holds_in_the_basin_and_not_beyond_the_saddle() -> None:
    """-½·0.5 z² - 0.1 z on [-1, 1]: minima at both ends, between them the maximum at z = -0.2."""
    phi = geometry("tanh")
    weight, offset = torch.tensor([[0.5]]).double(), torch.tensor([0.1]).double().expand(4, 1)
    dual = torch.tensor([[3.0], [0.5], [-0.1], [-0.3]]).double()
    proved = [
        in_basin(weight, offset, phi, 0.0, torch.full_like(dual, end), torch.ones_like(dual).bool(), dual)
        for end in (1.0, -1.0)
    ]
    beyond = phi.activation(dual).squeeze(-1) < -0.2
    assert bool(proved[0][0])
    assert not bool((proved[0] & beyond).any())
    assert not bool((proved[1] & ~beyond).any())


@every(BASINS)
def test_certificate_is_never_wrong(problem: Problem, generator: torch.Generator) -> None:
    """Certify limits of one start from the iterates of another: it must hold only where both end together."""
    found = solve(problem)
    start = 0.5 * torch.randn(problem.offset.shape, generator=generator, dtype=torch.float64)
    other = solve(problem, initial_dual=start)
    both = found.reached & other.reached
    same = (found.value - other.value).abs().amax(-1) < 1e-6
    certified = 0
    for steps in (0, 50, 1000):
        dual = mm(problem, start, steps)
        proved = both & in_basin(
            problem.weight,
            problem.offset,
            problem.geometry,
            problem.regularization,
            found.value.nan_to_num(0.0),
            found.active,
            dual,
        )
        assert not bool((proved & ~same).any())
        certified += int(proved.sum())
    assert certified > 0


@pytest.mark.parametrize("phi", ["identity", "arcsinh", "softplus"])
def test_an_objective_without_a_minimum_is_reported(phi: str) -> None:
    weight = torch.diag(torch.tensor([0.3, -1.0], dtype=torch.float64))
    offset = torch.tensor([[1.0, 0.2], [0.5, 0.1]], dtype=torch.float64)
    found = reference_solution(weight, offset, geometry(phi), max_steps=2**12)
    assert found.excluded == 1
    assert not bool(found.reached.any())


# Gradients --------------------------------------------------------------------------------------------------


@every(SMALL)
def test_gradient_is_that_of_finite_differences(problem: Problem, generator: torch.Generator) -> None:
    reached = solve(problem).reached
    problem = dataclasses.replace(problem, offset=problem.offset[reached])
    found = solve(problem)
    target = torch.randn(problem.offset.shape, generator=generator, dtype=torch.float64)
    entries = [(0, 0), (1, 4), (5, 2)]
    arguments = (problem.weight, problem.offset, problem.geometry, problem.regularization)
    by_offset, by_weight = finite_difference_gradient(
        lambda z: (target * z + 0.5 * z**2).sum(-1), *arguments, entries=entries
    )
    weight, offset, phi, gamma = arguments
    v = reference_gradient(weight, offset, found.value, found.active, phi, gamma, target + found.value)
    assert error(v, by_offset) <= 1e-6
    assert not bool(v[found.active].any())
    full = weight_gradient(v, found.value)
    if problem.kind != "general":
        full = full + full.T - torch.diag(full.diagonal())
    assert error(torch.stack([full[entry] for entry in entries]), by_weight) <= 1e-6


@pytest.mark.parametrize("phi", ["tanh", "sigmoid", "isru"])
def test_gradient_where_the_value_is_rounded_to_the_bound(phi: str) -> None:
    """For W = -I the adjoint is g / (γφ'' + 1), however large φ'' is; z itself no longer knows it."""
    function = geometry(phi)
    dual = torch.tensor([[18.0, 40.0, 90.0, 400.0]], dtype=torch.float64)
    z = function.activation(dual)
    offset = dual + z
    g = torch.full_like(z, 2.0)
    inside = torch.zeros_like(z, dtype=torch.bool)
    v = reference_gradient(-torch.eye(4, dtype=torch.float64), offset, z, inside, function, 1.0, g)
    torch.testing.assert_close(v, 2 / (function.curvature(dual) + 1), rtol=1e-11, atol=0)


def test_gradient_uses_the_transpose() -> None:
    weight = torch.tensor([[-1.0, 0.5], [0.0, -2.0]], dtype=torch.float64)
    z, g = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    v = reference_gradient(weight, z, z, torch.zeros(1, 2).bool(), geometry("tanh"), 0.0, g)
    torch.testing.assert_close(v, torch.tensor([[1.0, 0.25]], dtype=torch.float64))


def test_singular_adjoint_is_refused() -> None:
    z = torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="singular in 3 of 3"):
        reference_gradient(0 * torch.eye(2), z, z, z.bool(), geometry("tanh"), 0.0, z + 1)


def test_finite_differences_refuse_unknown_limits() -> None:
    weight = torch.diag(torch.tensor([0.3, -1.0], dtype=torch.float64))
    with pytest.raises(RuntimeError, match="limit is unknown in 100%"):
        finite_difference_gradient(lambda z: z.sum(-1), weight, torch.ones(2, 2).double(), geometry("identity"))


# The interface ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["convex", "indefinite", "general"])
def test_near_follows_a_small_change_and_refuses_a_large_one(kind: str) -> None:
    problem = make_problem(kind, dim=10, batch=4, condition=10.0, active=0.3)
    base = solve(problem)

    def follow(shift: float) -> Reference:
        return reference_solution(problem.weight, problem.offset + shift, problem.geometry, near=base)

    afresh = reference_solution(problem.weight, problem.offset + 1e-4, problem.geometry)
    torch.testing.assert_close(follow(1e-4).value, afresh.value, atol=1e-13, rtol=0)
    torch.testing.assert_close(follow(0.0).value, base.value, atol=1e-14, rtol=0)
    with pytest.raises(RuntimeError, match="not near enough"):
        follow(3.0)


def test_share_counts_the_reached_and_reports_the_others() -> None:
    reference = Reference(
        value=torch.tensor([[0.0, 1.0]] * 4, dtype=torch.float64),
        active=torch.tensor([[False, True]] * 4),
        residual=torch.tensor([0.0, 0.0, 0.0, 1.0]),
        reached=torch.tensor([True, True, True, False]),
        method="mm",
    )
    values = torch.tensor([[1e-8, 1.0], [0.1, 1.0], [math.nan, 1.0], [0.0, 1.0]])
    assert share_on_reference_limit(values, reference) == (pytest.approx(1 / 3), 0.25)
    assert share_on_reference_limit(values, reference, tolerance=0.2) == (pytest.approx(2 / 3), 0.25)
    nothing = dataclasses.replace(reference, reached=torch.zeros(4, dtype=torch.bool))
    share, excluded = share_on_reference_limit(values, nothing)
    assert math.isnan(share)
    assert excluded == 1


@pytest.mark.parametrize("kind", ["convex", "indefinite", "general"])
@pytest.mark.parametrize("regularization", [0.0, 0.1])
def test_empty_batch(kind: str, regularization: float) -> None:
    active = 0.25 if kind == "indefinite" else 0.0
    problem = make_problem(kind, batch=0, dim=6, active=active, regularization=regularization)
    found = solve(problem)
    assert found.value.shape == found.active.shape == (0, 6)
    assert found.residual.shape == found.reached.shape == (0,)
    assert found.excluded == 0


def test_single_precision_input_is_solved_in_double() -> None:
    problem = make_problem(active=0.2).to(torch.float32)
    weight = problem.weight.clone().requires_grad_()
    found = reference_solution(weight, problem.offset, problem.geometry)
    assert found.value.dtype == found.residual.dtype == torch.float64
    assert not found.value.requires_grad
    assert bool((found.residual <= EXACT).all())


def test_symmetry_up_to_rounding_counts_as_symmetry() -> None:
    problem = make_problem(active=0.2)
    rounded = problem.weight.clone()
    rounded[0, 1] *= 1 + 2e-16
    assert reference_solution(rounded, problem.offset, problem.geometry).method == "bvls"


def test_residual_vanishes_only_at_the_solution() -> None:
    problem = make_problem(active=0.2, dim=8)
    conditions = Conditions.checked(problem.weight, problem.offset, problem.geometry, 0.0)
    off = problem.solution.clone()
    off[:, 0] = torch.where(problem.active[:, 0], 0.9 * off[:, 0], off[:, 0] + 1e-3)
    assert bool((conditions.residual(problem.solution, off) < 1e-15).all())
    assert bool((conditions.residual(off, off) > 1e-5).all())


@pytest.mark.parametrize(
    ("weight", "offset", "options", "message"),
    [
        (torch.eye(2, 3), torch.zeros(1, 2), {}, r"weight has shape \(2, 3\)"),
        (-torch.eye(2), torch.zeros(2), {}, r"offset has shape \(2,\)"),
        (-torch.eye(2), torch.zeros(1, 3), {}, r"offset has shape \(1, 3\)"),
        (-torch.eye(2), torch.zeros(1, 2), {"regularization": -1.0}, r"regularization=-1\.0"),
        (-torch.eye(2), torch.zeros(1, 2), {"max_steps": 0}, "max_steps=0"),
        (torch.tensor([[1.0, 1.0], [0.0, -1.0]]), torch.zeros(1, 2), {}, "neither symmetric nor monotone"),
        (
            torch.eye(2) - 2 * torch.eye(2)[:1].T @ torch.eye(2)[:1],
            torch.zeros(1, 2),
            {"geometry": geometry("exp")},
            "no automatic step",
        ),
    ],
)
def test_bad_input_is_refused(weight: Tensor, offset: Tensor, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference_solution(weight, offset, **{"geometry": geometry("tanh"), **options})
