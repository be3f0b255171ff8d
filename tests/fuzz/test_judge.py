"""The judge is judged: its geometries by mpmath, its solutions by enumeration, its checks by wrong answers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import mpmath
import numpy as np
import pytest

from tests.fuzz import truth
from tests.fuzz.campaign import Table, matches
from tests.fuzz.cases import Case, draw, rounded
from tests.fuzz.checks import Report, judge
from tests.fuzz.geometries import NAMES, Wide, geometry
from tests.fuzz.issue import CASES
from tests.fuzz.library import Answer, Status, ask
from tests.fuzz.truth import Projection, Quadratic

RHO = {
    "isru": lambda y: y / mpmath.sqrt(1 + y * y),
    "sigmoid": lambda y: 1 / (1 + mpmath.exp(-y)),
    "softplus": lambda y: mpmath.log1p(mpmath.exp(y)),
    "arctan": mpmath.atan,
    "tanh": mpmath.tanh,
    "sin": lambda y: mpmath.sin(max(min(y, mpmath.pi / 2), -mpmath.pi / 2)),
    "arcsinh": mpmath.asinh,
    "identity": lambda y: y,
    "exp": mpmath.exp,
    "bent": lambda y: (y + mpmath.sqrt(y * y + 1)) / 2,
    "scaled_tanh": lambda y: mpmath.mpf(1.7159) * mpmath.tanh(mpmath.mpf(2.0 / 3.0) * y),
}
POTENTIAL = {
    "isru": lambda z: -mpmath.sqrt(1 - z * z),
    "sigmoid": lambda z: z * mpmath.log(z) + (1 - z) * mpmath.log(1 - z),
    "softplus": lambda z: z * z / 2 + mpmath.polylog(2, mpmath.exp(-z)) - mpmath.pi**2 / 6,
    "arctan": lambda z: -mpmath.log(mpmath.cos(z)),
    "tanh": lambda z: ((1 + z) * mpmath.log(1 + z) + (1 - z) * mpmath.log(1 - z)) / 2,
    "sin": lambda z: mpmath.sqrt(1 - z * z) + z * mpmath.asin(z),
    "arcsinh": mpmath.cosh,
    "identity": lambda z: z * z / 2,
    "exp": lambda z: z * mpmath.log(z) - z,
    "bent": lambda z: z * z / 2 - mpmath.log(z) / 4,
}
DUALS = (-40.0, -3.0, -0.5, -1e-9, 0.25, 1.25, 30.0)


@pytest.mark.parametrize("name", NAMES)
def test_its_mirror_maps_agree_with_many_digits(name: str) -> None:
    shape = geometry(name)
    with mpmath.workdps(60):
        for y in DUALS:
            exact = RHO[name](mpmath.mpf(y))
            slope = mpmath.diff(RHO[name], mpmath.mpf(y), h=mpmath.mpf(10) ** -20)
            assert abs(mpmath.mpf(str(shape.rho(Wide(y)))) - exact) <= 1e-16 * abs(exact)
            assert abs(mpmath.mpf(str(shape.slope(Wide(y)))) - slope) <= 1e-15 * abs(slope) + mpmath.mpf(10) ** -30


@pytest.mark.parametrize("name", sorted(POTENTIAL))
def test_its_potentials_agree_with_many_digits(name: str) -> None:
    shape = geometry(name)
    with mpmath.workdps(60):
        for y in (-3.0, -0.5, 0.25, 1.25, 5.0):
            exact = POTENTIAL[name](RHO[name](mpmath.mpf(y)))
            assert abs(mpmath.mpf(str(shape.potential(Wide(y)))) - exact) <= 1e-14 * (1 + abs(exact))


@pytest.mark.parametrize("name", NAMES)
def test_its_inverse_maps_come_back(name: str) -> None:
    shape = geometry(name)
    y = np.array([-1.5, -0.5, 0.25, 1.25], dtype=Wide)
    assert np.allclose(shape.inverse(shape.rho(y)).astype(float), y.astype(float), rtol=1e-14)


def test_a_box_moves_both_ends() -> None:
    for name in ("sigmoid", "tanh", "arctan"):
        shape = geometry(name, (-2.0, 5.0))
        ends = shape.rho(np.array([-1e30, 1e30], dtype=Wide)).astype(float)
        assert np.allclose(ends, [-2.0, 5.0])


# --- its solutions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
def test_its_box_solver_agrees_with_enumeration(symmetric: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a = rng.normal(size=(4, 4))
        m = a @ a.T + 0.1 * np.eye(4) + (0 if symmetric else 1) * (a - a.T)
        problem = Quadratic(m.astype(Wide), 3 * rng.normal(size=4).astype(Wide), geometry("tanh"), Wide(0))
        assert np.allclose(truth.solve_box(problem).astype(float), _by_enumeration(problem), atol=1e-12)


def _by_enumeration(problem: Quadratic) -> np.ndarray:
    """The one active set of 3^d whose point satisfies the optimality conditions."""
    m, c = problem.matrix.astype(float), problem.offset.astype(float)
    for side in itertools.product((-1, 0, 1), repeat=len(c)):
        side = np.array(side)
        z, free = side.astype(float), side == 0
        if free.any():
            z[free] = np.linalg.solve(m[np.ix_(free, free)], (c - m @ z)[free])
        force = c - m @ z
        if (np.abs(z) <= 1 + 1e-12).all() and (side[~free] * force[~free] >= 0).all():
            return z
    raise AssertionError("no active set fits")


def test_its_smooth_solver_solves_where_newton_overshoots() -> None:
    for geometry_name, offset, gamma in (("exp", 200.0, 1e-3), ("tanh", 1e6, 1e-8), ("bent", -1e5, 1e-6)):
        problem = Quadratic(np.eye(1, dtype=Wide), np.array([offset], dtype=Wide), geometry(geometry_name), Wide(gamma))
        y = truth.solve_smooth(problem, True, [np.zeros(1, dtype=Wide)])
        assert abs(problem.field(problem.geometry.rho(y), y)[0]) <= 1e-15 * abs(offset)


def test_its_projection_is_softmax_for_a_tiny_start() -> None:
    start = np.array([-40.0, -45.0, -50.0], dtype=Wide)
    problem = Projection(np.ones((3, 1), dtype=Wide), np.ones(1, dtype=Wide), start, geometry("exp"), Wide(0))
    z = np.exp(start + truth.solve_projection(problem))
    exact = np.exp(start - start.max())
    assert np.allclose(z.astype(float), (exact / exact.sum()).astype(float), rtol=1e-14)


def test_it_proves_infeasibility() -> None:
    v = np.array([[1.0, 0.0], [0.0, 0.0]], dtype=Wide)
    start = np.zeros(2, dtype=Wide)
    for beta, expected in (((0.5, 1.0), True), ((0.5, 0.0), False), ((2.0, 0.0), True)):
        problem = Projection(v, np.array(beta, dtype=Wide), start, geometry("tanh"), Wide(0))
        assert truth.is_infeasible(problem) == expected


# --- wrong answers ----------------------------------------------------------------------------------------------------


def _case(**changes) -> Case:
    w = -np.array([[1.0, 0.2, 0.1], [0.2, 0.8, 0.0], [0.1, 0.0, 1.5]])
    x = np.array([[0.3, -2.0, 0.4], [1.5, 0.2, -0.7]])
    fields = {"geometry": "tanh", "weight": "convex", "gamma": 0.0, "dtype": "float64"} | changes
    case = Case(
        "test", x=x, matrix=w, cotangent=np.array([[1.0, 2.0, -1.0], [0.5, -1.0, 3.0]]), d=3, user=True, **fields
    )
    return rounded(case)


def _projection() -> Case:
    v = np.array([[1.0, 0.0], [0.5, 1.0], [0.0, 0.7]])
    start = np.array([[0.2, 0.6, 0.3]])
    case = Case("test", "sigmoid", "low_rank", 0.0, "float64", np.array([[0.7, 0.6]]), v, np.array([[1.0, 2.0, -1.0]]),
                start="given", initial=start, rank=2, d=3, user=True)  # fmt: skip
    return rounded(case)


SOUND = {
    "box": _case(),
    "box, float32": _case(dtype="float32"),
    "smooth": _case(gamma=0.3),
    "exp": _case(geometry="exp", gamma=0.1),
    "mm": _case(solver="mm"),
    "projection": _projection(),
}


def _kinds(case: Case, answer: Answer) -> set[str]:
    return {kind for kind, _ in judge(case, answer).found}


@pytest.fixture(params=list(SOUND))
def sound(request) -> tuple[Case, Answer]:
    case = SOUND[request.param]
    return case, ask(case)


def _moved(array: np.ndarray, amount: float, column: int = 0) -> np.ndarray:
    moved = array.copy()
    moved[0, column] += amount
    return moved


def test_it_accepts_sound_answers(sound) -> None:
    case, answer = sound
    report = judge(case, answer)
    assert not report.found
    assert {"status", "value", "gradient", "gradient of θ", "dual", "in C"} <= report.kinds


def test_it_objects_to_a_false_value(sound) -> None:
    case, answer = sound
    off = 1e-3 if case.dtype == "float32" else 1e-6
    assert "value" in _kinds(case, replace(answer, value=_moved(answer.value, off)))


def test_it_objects_to_converged_where_nothing_has_been_done() -> None:
    for name in ("box", "smooth", "mm"):
        case = SOUND[name]
        answer = ask(case)
        lazy = replace(answer, value=np.zeros_like(answer.value), dual=np.zeros_like(answer.dual))
        assert {"converged", "value"} <= _kinds(case, lazy)


def test_it_objects_to_a_small_coordinate_beside_a_large_one() -> None:
    case = _case(gamma=0.1)
    case = replace(case, x=case.x * np.array([1e9, 1.0, 1.0]))
    answer = ask(case)
    lazy = replace(answer, value=_moved(answer.value, 1e-6, column=1))
    assert "converged" in _kinds(case, lazy)


def test_it_objects_to_false_gradients(sound) -> None:
    case, answer = sound
    for name in answer.gradients:
        if name == "initial" and case.weight != "low_rank":
            continue
        wrong = answer.gradients | {name: answer.gradients[name] * 1.05}
        kind = {"x": "gradient", "initial": "gradient of z⁰"}.get(name, "gradient of θ")
        assert kind in _kinds(case, replace(answer, gradients=wrong))


def test_it_objects_to_a_gradient_error_that_is_silent(sound) -> None:
    case, answer = sound
    wrong = replace(
        answer, gradients=answer.gradients | {"x": -answer.gradients["x"]}, error=np.full(len(case.x), 1e-12)
    )
    assert "gradient_error too low" in _kinds(case, wrong)


def test_it_objects_to_a_gradient_error_out_of_all_proportion(sound) -> None:
    case, answer = sound
    assert "gradient_error too high" in _kinds(case, replace(answer, error=np.full(len(case.x), 1e20)))


def test_it_objects_to_an_infinite_gradient_error_of_a_right_gradient(sound) -> None:
    case, answer = sound
    assert "gradient_error too high" in _kinds(case, replace(answer, error=np.full(len(case.x), np.inf)))


@pytest.mark.parametrize("status", [s for s in Status if s.failed])
def test_it_objects_to_failures_of_problems_that_have_a_solution(sound, status: Status) -> None:
    case, answer = sound
    assert "status" in _kinds(case, replace(answer, status=np.full(len(case.x), int(status))))


def test_it_objects_to_a_failed_adjoint(sound) -> None:
    case, answer = sound
    failed = replace(answer, adjoint_status=np.full(len(case.x), int(Status.SINGULAR)))
    assert "adjoint status" in _kinds(case, failed)


def test_it_objects_to_points_outside_and_to_duals_of_other_points(sound) -> None:
    case, answer = sound
    assert "in C" in _kinds(case, replace(answer, value=_moved(answer.value, -3.0, column=1)))
    assert "dual" in _kinds(case, replace(answer, dual=answer.dual * 0.5))


def test_it_objects_to_nan(sound) -> None:
    case, answer = sound
    assert "finite" in _kinds(case, replace(answer, value=_moved(answer.value, np.nan)))
    assert "finite" in _kinds(case, replace(answer, error=np.full(len(case.x), np.nan)))


def test_it_objects_to_nan_of_sound_inputs_that_are_called_invalid(sound) -> None:
    case, answer = sound
    refused = replace(answer, status=np.full(len(case.x), int(Status.INVALID_INPUT)), value=answer.value * np.nan)
    assert "status" in _kinds(case, refused)


@pytest.mark.parametrize("gamma", [0.0, 1e-30])
def test_the_largest_number_stands_for_a_dual_that_overflows(gamma: float) -> None:
    case = CASES["tiny γ, arcsinh"]
    case = replace(case, gamma=gamma, x=case.x if gamma else np.array([[2.0]]))
    answer = ask(case)
    assert abs(answer.value).min() > 89.5
    largest = float(np.finfo(case.dtype).max)

    assert not _kinds(case, replace(answer, dual=np.array([[largest]])))
    assert "dual" in _kinds(case, replace(answer, dual=np.array([[largest / 2]])))
    assert "dual" in _kinds(case, replace(answer, dual=np.array([[-largest]])))
    assert "converged" in _kinds(case, replace(answer, value=answer.value * 1.01, dual=np.array([[largest]])))


def test_it_objects_to_a_false_objective() -> None:
    case = SOUND["smooth"]
    answer = ask(case)
    assert "objective" in _kinds(case, replace(answer, objective=answer.objective * (1 + 1e-9)))


def test_it_objects_to_a_solution_of_an_infeasible_system() -> None:
    v = np.array([[1.0], [1.0]])
    case = rounded(Case("test", "tanh", "low_rank", 0.0, "float64", np.array([[5.0]]), v, np.ones((1, 2)), rank=1, d=2))
    answer = ask(case)
    assert "status" not in _kinds(case, answer)
    assert "status" in _kinds(case, replace(answer, status=np.array([int(Status.CONVERGED)])))


def test_it_objects_to_a_false_unrolling() -> None:
    case = _case(adjoint="unrolled")
    answer = ask(case)
    assert not _kinds(case, answer)
    assert "unrolled value" in _kinds(case, replace(answer, value=_moved(answer.value, 1e-6)))
    wrong = answer.gradients | {"x": answer.gradients["x"] * 1.01}
    assert "unrolled gradient" in _kinds(case, replace(answer, gradients=wrong))


def test_it_objects_to_biased_gradients_beyond_the_implicit_one() -> None:
    case = _case(gamma=0.3, adjoint="phantom")
    answer = ask(case)
    assert not _kinds(case, answer)
    wrong = answer.gradients | {"x": answer.gradients["x"] * 100}
    assert "biased (phantom)" in _kinds(case, replace(answer, gradients=wrong))


def test_it_objects_to_a_limit_above_its_start() -> None:
    case = replace(_case(gamma=0.5), matrix=np.array([[2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]]))
    answer = ask(case)
    assert not _kinds(case, answer)
    worse = -np.abs(answer.value) * np.sign(case.x)
    upside_down = replace(answer, value=worse, dual=np.arctanh(worse))
    assert {"descent", "converged"} & _kinds(case, upside_down)


# --- the campaign -----------------------------------------------------------------------------------------------------


def test_a_case_can_be_drawn_again() -> None:
    for number in range(20):
        one, two = draw(3, number), draw(3, number)
        assert str(one) == str(two)
        assert np.array_equal(one.x, two.x)
        assert one.name == f"3:{number}"


def test_the_table_counts_cases_and_shows_how_to_replay_them() -> None:
    table, report, case = Table(), Report(), SOUND["box"]
    report.demand("value", False, "first")
    report.demand("value", False, "second")
    report.demand("status", True, "")
    lines = table.add(case, report)
    assert len(lines) == 1
    assert lines[0].startswith("--replay test  # value: first")
    assert "1 cases, 2 samples, 1 violations" in str(table)


def test_filters_look_for_every_word() -> None:
    assert matches(SOUND["smooth"], "tanh float64")
    assert not matches(SOUND["smooth"], "tanh float32")
