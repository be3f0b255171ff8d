"""The curves of a solver on one problem."""

import csv
import io
import json
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from implicit_bregman.experiments.convergence.figures import convergence_figures
from implicit_bregman.experiments.convergence.report import convergence_report
from implicit_bregman.experiments.convergence.run import Convergence, run_convergence
from implicit_bregman.experiments.convergence.settings import DEFAULT_PROBLEM, ConvergenceSettings, find_problem
from implicit_bregman.experiments.reference.problems import collection, make_problem


@pytest.fixture(scope="module")
def result() -> Convergence:
    problem = make_problem("convex", "tanh", dim=8, batch=3, condition=10.0, active=0.25, seed=1)
    return run_convergence(ConvergenceSettings(problem.name, max_iter=3000), problem)


def test_every_solver_reaches_the_solution(result: Convergence) -> None:
    names = [curves.name for curves in result.solvers]
    assert names[:4] == ["mm", "anderson", "broyden", "newton"]
    for curves in result.solvers[:4]:
        assert curves.converged == 1.0
        assert curves.residual[-1][1] <= 1e-11
        assert curves.gradient_error[-1][1] < 1e-6
        assert [k for k, _ in curves.residual] == list(range(len(curves.residual)))
        assert curves.iterations <= len(curves.residual) - 1
        assert curves.evaluations >= curves.iterations


def test_mm_never_raises_the_objective(result: Convergence) -> None:
    mm = next(curves for curves in result.solvers if curves.name == "mm")
    values = [value for _, value in mm.objective]
    assert all(later <= earlier + 1e-14 for earlier, later in pairwise(values))
    assert values[0] > 1e-3
    assert 0 <= values[-1] < 1e-10


def test_the_unrolled_gradient_comes_last_and_is_first_wrong_then_right(result: Convergence) -> None:
    curves = result.solvers[-1]
    assert curves.name == "unrolled"
    assert curves.residual == ()
    assert curves.gradient_error[0][0] == 1
    assert curves.gradient_error[0][1] > 0.1
    assert curves.gradient_error[-1][1] < 1e-6


def test_json_and_csv_agree(result: Convergence) -> None:
    document = json.loads(convergence_report(result).json())
    lines = list(csv.DictReader(io.StringIO(convergence_report(result).csv())))
    for entry in document["solvers"]:
        for key, column in (
            ("residual", "residual"),
            ("objective", "objective_gap"),
            ("gradient_error", "gradient_error"),
        ):
            from_csv = [
                [int(line["iteration"]), float(line[column])]
                for line in lines
                if line["solver"] == entry["name"] and line[column]
            ]
            assert from_csv == entry[key]


def test_the_figure_shows_something(result: Convergence) -> None:
    pixels = imread(io.BytesIO(convergence_figures(result)["convergence.png"][0]))
    assert pixels.shape[1] == 2100
    assert 0.01 < np.mean(pixels[..., :3].min(-1) < 0.9) < 0.5


def test_without_an_objective_its_curve_is_empty() -> None:
    problem = make_problem("general", "tanh", dim=6, batch=2, condition=3.0, active=0.2)
    result = run_convergence(ConvergenceSettings(problem.name, ("mm",), max_iter=200), problem)
    assert result.solvers[0].objective == ()
    assert result.solvers[0].gradient_error[-1][1] < 1e-6
    assert convergence_figures(result)["convergence.png"][0]


def test_a_solver_that_runs_out_of_iterations_says_so() -> None:
    problem = make_problem("convex", "arctan", dim=8, batch=2, condition=100.0, active=0.25)
    result = run_convergence(ConvergenceSettings(problem.name, ("mm",), max_iter=5), problem)
    assert result.solvers[0].converged == 0.0
    assert len(result.solvers[0].residual) == 6


def test_the_default_problem_exists() -> None:
    assert find_problem(DEFAULT_PROBLEM).kind == "convex"


def test_the_former_name_of_a_problem_is_understood() -> None:
    name = next(problem.name for problem in collection() if problem.kind == "general")
    assert name.startswith("general-")
    assert find_problem(name.replace("general", "free")).name == name
    assert make_problem("free", dim=3, batch=1).kind == "general"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"tol": 0.0}, "tol must be positive"),
        ({"tol": float("nan")}, "tol must be positive"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
        ({"solvers": ("newtonne",)}, "unknown solver 'newtonne'; .*anderson"),
        ({"solvers": ()}, "no solvers"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ConvergenceSettings(**settings)


def test_an_unknown_problem_says_how_to_list_them() -> None:
    with pytest.raises(ValueError, match=r"'nope'.*--list"):
        run_convergence(ConvergenceSettings("nope"))


def test_the_table_shows_the_ends_of_the_curves(result: Convergence) -> None:
    console = Console(width=100, file=io.StringIO())
    console.print(*convergence_report(result).tables())
    text = console.file.getvalue()
    for curves in result.solvers[:-1]:
        assert curves.name in text
        assert f"{curves.residual[-1][1]:.1e}" in text
    assert "unrolled" not in text
