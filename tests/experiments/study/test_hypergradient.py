"""The study of gradient errors: its theory against autograd, its curves against the theory, what it writes."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from implicit_bregman.cli import main
from implicit_bregman.experiments.grid.run import Backend, Grid
from implicit_bregman.experiments.reference.problems import make_problem
from implicit_bregman.experiments.study.hypergradient import curves
from implicit_bregman.experiments.study.hypergradient import run as hypergradient
from implicit_bregman.experiments.study.hypergradient.curves import TRUNCATED, Curve, spread
from implicit_bregman.experiments.study.hypergradient.report import study_hypergradient
from implicit_bregman.experiments.study.hypergradient.settings import CASES, Case, HypergradientSettings
from implicit_bregman.experiments.study.hypergradient.summary import Reached, Result, lag, rate, reached, slowest
from implicit_bregman.experiments.study.hypergradient.theory import Exact, krylov_bound
from implicit_bregman.experiments.study.hypergradient.trials import Trial, measure
from implicit_bregman.experiments.study.hypergradient.work import counted
from implicit_bregman.majorization import mm_step

SMALL = replace(HypergradientSettings(), seeds=1, dim=65, batch=2, longest=50, cases=CASES[:1])


@pytest.fixture(scope="module", autouse=True)
def fewer_points() -> Iterator[None]:
    """The curves that are slow to measure are so at few points."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("FEW_POINTS", 6), ("MOST_BROYDEN", 20), ("MOST_NEWTON", 7), ("MOST_ANDERSON", 60)):
            patch.setattr(curves, name, value)
        patch.setattr(curves, "REFINEMENTS", (0, 8))
        yield


@pytest.fixture(scope="module")
def damped() -> Result:
    return measure(Trial(Case("γ", "tanh", 10.0, 0.0, 0.1, 250), 65, 2, 0))


@pytest.fixture(scope="module")
def bounded() -> Result:
    return measure(Trial(Case("tanh", "tanh", 5.0, 0.25, 0.0, 300), 65, 2, 1))


@pytest.fixture(scope="module")
def sublinear() -> Result:
    return measure(Trial(Case("arctan", "arctan", 5.0, 0.25, 0.0, 1000), 65, 2, 2))


def test_work_counts_products_and_factorizations() -> None:
    matrix, rows = torch.eye(6), torch.ones(3, 6, requires_grad=True)
    assert counted(lambda: rows @ matrix, 3, 6)[1] == 1
    # Backward: the gradient in the rows, not in the matrix.
    assert counted(lambda: torch.autograd.grad((rows @ matrix).sum(), rows), 3, 6)[1] == 2
    assert counted(lambda: torch.addmm(rows, rows, matrix), 3, 6)[1] == 1
    assert counted(lambda: torch.linalg.cholesky_ex(matrix.expand(3, 6, 6)), 3, 6)[1] == pytest.approx(6 / 6)
    assert counted(lambda: torch.linalg.solve(matrix, rows.T), 3, 6)[1] == pytest.approx(1 + 6 / (3 * 3))


@pytest.mark.parametrize(("geometry", "active", "gamma"), [("tanh", 0.0, 0.2), ("arctan", 0.3, 0.0)])
def test_the_contraction_is_that_of_autograds_jacobian(geometry: str, active: float, gamma: float) -> None:
    problem = make_problem("convex", geometry, 10, 3, 10.0, active, gamma, seed=3)
    exact = Exact.of(problem, 4)
    step = torch.tensor(problem.step, dtype=torch.float64)
    radii = []
    for row in range(3):

        def move(dual: torch.Tensor, row: int = row) -> torch.Tensor:
            z = problem.geometry.activation(dual)
            return mm_step(problem.geometry, dual, -(problem.weight @ z + problem.offset[row]), step, gamma)

        jacobian = torch.autograd.functional.jacobian(move, exact.dual[row])
        free = ~exact.active[row]
        radii.append(float(torch.linalg.eigvals(jacobian[free][:, free]).abs().max()))
    assert exact.contraction() == pytest.approx(max(radii), rel=1e-9)


def test_the_gradient_of_the_oracle_is_that_of_finite_differences() -> None:
    problem = make_problem("convex", "tanh", 8, 2, 5.0, 0.0, 0.2, seed=1)
    exact, shift = Exact.of(problem, 2), torch.zeros_like(problem.offset)
    shift[1, 3] = 1e-5
    losses = []
    for sign in (1, -1):
        moved = Exact.of(replace(problem, offset=problem.offset + sign * shift), 2)
        losses.append(float(0.5 * (moved.value - exact.target).square().sum()))
    assert float(exact.adjoint[1, 3]) == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-6)
    assert exact.gradient[64:].reshape(2, 8)[1, 3] == exact.adjoint[1, 3]


def test_the_exact_gradient_is_reached(damped: Result, bounded: Result, sublinear: Result) -> None:
    for result in (damped, bounded, sublinear):
        for method in ("cg", "gmres", "dense"):
            assert result["backward"][method]["error"][-1] < 1e-8
            assert result["backward"][method]["cosine"][-1] == pytest.approx(1)
        assert result["forward"]["implicit-newton"]["error"][-1] < 1e-8
        assert sum(result["failures"].values()) == 0
    assert damped["backward"]["chebyshev"]["error"][-1] < 1e-8
    assert "chebyshev" not in bounded["backward"]
    for method in ("unrolled", "implicit-mm", "implicit-anderson"):
        assert damped["forward"][method]["error"][-1] < 1e-8


@pytest.mark.parametrize("name", ["damped", "bounded"])
def test_mm_and_its_gradients_converge_at_the_rate_of_the_jacobian(name: str, request: pytest.FixtureRequest) -> None:
    result = request.getfixturevalue(name)
    wanted = math.log(slowest(result))
    for method in ("forward", "implicit-mm", "unrolled"):
        found = rate(result["forward"][method], times_k=method == "unrolled")
        assert found is not None
        assert math.log(found) == pytest.approx(wanted, rel=0.12)


def test_the_unrolled_error_falls_behind_the_implicit_one_as_k_grows(damped: Result, bounded: Result) -> None:
    for result in (damped, bounded):
        found = lag(result)
        assert found is not None
        early, late = found
        assert early[0] < late[0]
        assert 1.2 < early[1] < late[1]


def test_plateaus_are_the_closed_form_and_within_the_bound(damped: Result, bounded: Result, sublinear: Result) -> None:
    for result in (damped, bounded, sublinear):
        theory = result["theory"]
        one = result["backward"]["one-step"]["error"][0]
        assert one == pytest.approx(theory["plateaus"]["one-step"], rel=1e-6)
        assert one <= theory["norm_factor"] * theory["q"]
        for last in TRUNCATED:
            plateau = result["forward"][f"truncated-{last}"]["error"][-1]
            # (arctan's iterates are still 1/k off)
            assert plateau == pytest.approx(theory["plateaus"][f"truncated-{last}"], rel=1e-2)
            assert plateau <= theory["norm_factor"] * theory["q"] ** last
        for name, closed in theory["phantoms"].items():
            damping = float(name.split("-")[1])
            curve = result["backward"][name]
            for k, error, exact in zip(curve["k"], curve["error"], closed, strict=True):
                assert error == pytest.approx(exact, rel=1e-5, abs=1e-10)
                assert exact <= theory["norm_factor"] * (1 - damping + damping * theory["q"]) ** k


def test_arctan_at_bounds_converges_like_the_computed_constant_over_k(sublinear: Result) -> None:
    constants = sublinear["theory"]["sublinear"]
    for name, method in (("forward", "forward"), ("implicit", "implicit-mm"), ("unrolled", "unrolled")):
        curve = sublinear["forward"][method]
        assert curve["k"][-1] * curve["error"][-1] == pytest.approx(constants[name], rel=0.06)
    assert constants["implicit"] < constants["unrolled"]


def test_the_approach_to_a_bound_of_tanh_is_exponential_in_the_multiplier(bounded: Result) -> None:
    exact = Exact.of(make_problem("convex", "tanh", 65, 2, 5.0, 0.25, 0.0, seed=1), 0)
    multiplier = (exact.value @ exact.problem.weight.T + exact.problem.offset)[exact.active].abs().min()
    assert exact.bound_rate() == pytest.approx(math.exp(-2 * exact.problem.step * float(multiplier)), rel=1e-6)
    assert bounded["theory"]["sublinear"] is None


def test_cg_and_chebyshev_keep_their_bound(damped: Result, bounded: Result) -> None:
    for result, method in ((damped, "cg"), (damped, "chebyshev"), (bounded, "cg"), (damped, "gmres")):
        condition = result["theory"]["conditions"][method]
        curve = result["backward"][method]
        for k, error in zip(curve["k"], curve["error"], strict=True):
            # The bound is one for another norm.
            assert error <= math.sqrt(condition) * max(krylov_bound(condition, int(k)), 1e-11)
    assert krylov_bound(1.0, 3) == 0
    assert krylov_bound(9.0, 2) == pytest.approx(0.5)


def test_work_of_unrolled_steps_is_three_products_each(damped: Result) -> None:
    curve = damped["forward"]["unrolled"]
    first, *later = zip(curve["k"], curve["work"], strict=True)
    slopes = {round((work - first[1]) / (k - first[0]), 9) for k, work in later}
    assert slopes == {3.0}
    implicit = damped["forward"]["implicit-mm"]
    assert implicit["work"][-1] - implicit["work"][0] == implicit["k"][-1] - implicit["k"][0]


def test_where_an_error_is_reached() -> None:
    curve: Curve = {"k": [1, 3, 5, 9], "work": [10, 30, 50, 90], "error": [1, 1e-2, 1e-4, 1e-5], "cosine": [1] * 4}
    assert reached(curve, 1e-3) == Reached(pytest.approx(4), pytest.approx(40))
    assert reached(curve, 2) == Reached(1, 10)
    assert reached(curve, 1e-6) is None
    # What is not kept has not been reached.
    assert reached(curve | {"error": [1e-4, 1, 1e-4, math.nan]}, 1e-2) is None
    assert spread(300)[0] == 1
    assert spread(300)[-1] == 300


def test_a_rate_is_fitted_where_errors_are_small() -> None:
    places = [float(k) for k in range(1, 300)]
    linear: Curve = {"k": places, "error": [0.9**k + 1e-15 for k in places], "work": places, "cosine": places}
    assert rate(linear) == pytest.approx(0.9, rel=1e-3)
    assert rate(linear | {"error": [k * 0.9**k for k in places]}, times_k=True) == pytest.approx(0.9, rel=1e-6)
    assert rate(linear | {"error": [0.5] * len(places)}) is None


def test_the_command_writes_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(HypergradientSettings, "quick", classmethod(lambda cls, seed=0: replace(SMALL, seed=seed)))
    command = ["study", "hypergradient", "--quick", "--jobs", "1", "--seed", "3", "--out", str(tmp_path)]
    assert main(command) == 0
    out = capsys.readouterr().out
    pictures = {f"hypergradient-{name}.png" for name in ("forward", "backward", "work")}
    assert set(os.listdir(tmp_path)) == {"cells", "results.json", "results.csv", "report.md", *pictures}
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["command"] == "implicit-bregman study hypergradient --quick --seed 3"
    assert {row["method"] for row in document["rows"]} >= {"unrolled", "truncated-20", "cg", "chebyshev", "shine"}
    report = (tmp_path / "report.md").read_text()
    assert all(finding in report and finding in out for finding in document["findings"])
    assert all(f"]({name})" in report for name in pictures)


def test_an_interrupted_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def quickly(trial: Trial) -> Result:
        calls.append(trial.seed)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {"refused": "not asked"}

    quickly.__module__, quickly.__qualname__ = measure.__module__, measure.__qualname__
    monkeypatch.setattr(hypergradient, "measure", quickly)
    settings, told = replace(SMALL, seeds=3), list[str]()
    with pytest.raises(KeyboardInterrupt):
        study_hypergradient(settings, Grid(tmp_path, Backend(jobs=1), tell=told.append))
    assert "1 finished cells" in told[0]
    # What the oracle refuses is no result: without any there is no report.
    with pytest.raises(RuntimeError, match=r"no reference for any seed of 'γ = 0.1, condition 10'.*--seed"):
        study_hypergradient(settings, Grid(tmp_path, Backend(jobs=1)))
    assert calls == [0, 1, 1, 2]


def test_a_refusal_of_the_oracle_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(problem: object, seed: int) -> Exact:
        raise RuntimeError("bvls: too ill-conditioned")

    monkeypatch.setattr(Exact, "of", refuse)
    assert measure(Trial(CASES[0], 65, 2, 0)) == {"refused": "bvls: too ill-conditioned"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"seeds": 0}, "seeds must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be"),
        ({"dim": 64}, "dim must be a whole number of at least 65"),
        ({"longest": 10}, "longest must be a whole number of at least 50"),
        ({"batch": True}, "batch must be"),
        ({"cases": ()}, "cases is empty: name at least one"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(SMALL, **change)


@pytest.mark.parametrize(("options", "complaint"), [("--seeds 0", "seeds must be"), ("--jobs 0", "jobs must be")])
def test_bad_options_are_one_line(
    options: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", "hypergradient", *options.split()]) == 2
    assert complaint in capsys.readouterr().err
