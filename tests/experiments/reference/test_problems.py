"""The collection of test problems: what is designed is there, and nonsense is refused."""

import math

import pytest
import torch

from implicit_bregman.experiments.reference.problems import KINDS, Problem, collection, make_problem
from implicit_bregman.legendre import geometry, separable_geometries

PROBLEMS = collection()


def designed(problem: Problem) -> bool:
    return problem.solution is not None


def every(problems: tuple[Problem, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("problem", problems, ids=[problem.name for problem in problems])


@every(tuple(filter(designed, PROBLEMS)))
def test_designed_solution_satisfies_the_optimality_conditions(problem: Problem) -> None:
    z, active = problem.solution, problem.active
    low, high = problem.geometry.bounds(torch.float64)
    slack = z @ problem.weight.T + problem.offset
    if problem.regularization > 0:
        slack = slack - problem.regularization * problem.geometry.inverse_activation(z)
    assert slack[~active].abs().sum() <= 1e-13 * z.numel()
    assert bool(((z > low) & (z < high))[~active].all())
    assert bool(((z == low) | (z == high))[active].all())
    outward = torch.where(z == high, slack, -slack)[active]
    assert bool((outward >= 0.05).all()), "complementarity must be strict"
    assert active.double().mean(-1).tolist() == [problem.active_share] * len(z)


@every(PROBLEMS)
def test_weight_is_of_the_kind_and_condition_asked_for(problem: Problem) -> None:
    weight = problem.weight
    symmetric_part = 0.5 * (weight + weight.T)
    eigenvalues = torch.linalg.eigvalsh(symmetric_part)
    sizes = eigenvalues.abs()
    assert float(sizes.max() / sizes.min()) == pytest.approx(problem.condition, rel=1e-6)
    assert problem.dtype == problem.offset.dtype == torch.float64
    if problem.kind == "general":
        assert float((weight - weight.T).abs().max()) > 0.1
        assert float(eigenvalues.max()) < 0
        with pytest.raises(ValueError, match="no objective"):
            _ = problem.step
        return
    assert torch.equal(weight, weight.T)
    sigma = problem.geometry.strong_convexity
    assert problem.step == pytest.approx(min(1.0, sigma / float(-eigenvalues.min())), abs=1e-15)
    if problem.kind == "convex":
        assert float(eigenvalues.max()) < 0
        return
    positive = int((eigenvalues > 0).sum())
    assert 0 < positive < len(weight)
    if problem.regularization == 0:
        assert problem.active_share == positive / len(weight)


def test_collection_covers_what_it_promises() -> None:
    names = [problem.name for problem in PROBLEMS]
    assert len(set(names)) == len(names)
    assert {problem.kind for problem in PROBLEMS} == set(KINDS)
    assert {problem.geometry.name for problem in PROBLEMS} >= {*separable_geometries(), "box"}
    convex = [problem for problem in PROBLEMS if problem.kind == "convex"]
    assert {problem.condition for problem in convex} >= {1.0, 10.0, 100.0, 1e3, 1e4}
    shares = [problem.active_share for problem in convex]
    assert min(shares) == 0
    assert max(shares) == 0.4
    assert 0.05 in shares
    for kind in ("convex", "indefinite"):
        found = [problem for problem in PROBLEMS if problem.kind == kind]
        assert any(len(problem.weight) >= 32 for problem in found)
        assert any(problem.step < 0.9 for problem in found)
        assert {problem.regularization > 0 for problem in found} == {True, False}


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_everything(kind: str) -> None:
    first, again, other = (make_problem(kind, active=0.2, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.offset, again.offset)
    assert not torch.equal(first.weight, other.weight)
    assert not torch.equal(first.offset, other.offset)


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    make_problem()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("phi", ["arctan", "sigmoid", "scaled_tanh", "softplus"])
def test_single_precision_stays_in_the_domain(phi: str) -> None:
    problem = make_problem(geometry=phi, active=0.3)
    single = problem.to(torch.float32)
    low, high = problem.geometry.domain
    assert single.dtype == single.offset.dtype == single.solution.dtype == torch.float32
    assert torch.equal(single.weight, single.weight.T)
    exact = single.solution.double()
    assert bool(((exact >= low) & (exact <= high)).all()), "float32(π/2) lies outside of arctan's domain"
    torch.testing.assert_close(exact, problem.solution, atol=3e-7, rtol=0)
    assert problem.to(torch.float64).solution.equal(problem.solution)


def test_indefinite_problem_has_no_designed_solution() -> None:
    problem = make_problem("indefinite", active=0.1)
    assert problem.solution is None
    assert problem.active is None
    assert problem.to(torch.float32).solution is None


def test_geometry_may_be_an_instance_and_the_name_chosen() -> None:
    phi = geometry("sigmoid").to_box(-1.0, 4.0)
    problem = make_problem(geometry=phi, active=0.25, name="mine", batch=0)
    assert problem.geometry is phi
    assert problem.name == "mine"
    assert problem.offset.shape == (0, 32)


def test_stiffness_is_in_units_of_sigma() -> None:
    problem = make_problem(geometry="sigmoid", stiffness=2.5)
    assert float(-torch.linalg.eigvalsh(problem.weight).min()) == pytest.approx(2.5 * 4)
    assert problem.step == pytest.approx(1 / 2.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(kind="concave"), "kind='concave' is unknown"),
        (dict(geometry="cosine"), "cosine"),
        (dict(dim=1), "dim=1"),
        (dict(batch=-1), "batch=-1"),
        (dict(condition=0.5), "condition=0.5"),
        (dict(condition=math.inf), "condition=inf"),
        (dict(active=1.0), r"active=1\.0"),
        (dict(active=-0.1), r"active=-0\.1"),
        (dict(regularization=-1.0), r"regularization=-1\.0"),
        (dict(regularization=math.nan), "regularization=nan"),
        (dict(stiffness=0.0), r"stiffness=0\.0"),
        (dict(geometry="identity", active=0.2), "no bound"),
        (dict(geometry="arcsinh", active=0.2, kind="general"), "no bound"),
        (dict(geometry="tanh", active=0.2, regularization=0.1), "keeps the solution inside"),
        (dict(kind="indefinite"), "negative curvature"),
        (dict(kind="indefinite", geometry="arcsinh", active=0.2), "unbounded"),
        (dict(kind="indefinite", geometry="softplus", active=0.2), "unbounded"),
        (dict(kind="indefinite", geometry="softplus", active=0.2, regularization=0.01), "unbounded"),
        (dict(kind="indefinite", geometry="exp", active=0.2, regularization=10.0), "unbounded"),
    ],
)
def test_nonsense_is_refused_in_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_problem(**settings)
    assert "\n" not in str(caught.value)
