"""The peers of the benchmark are driven as they should be; a missing one skips its tests."""

import warnings
from collections.abc import Iterator

import pytest
import torch

from implicit_bregman.experiments.benchmark.cells import QuadraticCell
from implicit_bregman.experiments.benchmark.feedforward import ACTIVATIONS, Size, compare_layers
from implicit_bregman.experiments.benchmark.peers.contenders import BOTH, FORWARD, differentiated, errors, reaches
from implicit_bregman.experiments.benchmark.peers.proxqp import LAYOUTS, applies, proxqp, proxqp_contenders
from implicit_bregman.experiments.benchmark.peers.torchdeq import (
    CLAMPED,
    DUAL,
    Method,
    MirrorMap,
    Setup,
    mirror_equation,
    mirror_equations,
    setups,
    torchdeq_value,
)
from implicit_bregman.experiments.benchmark.peers.torchdeq_sweep import torchdeq_contenders
from implicit_bregman.experiments.benchmark.truth import PreparedQuadratic, prepare

TINY = QuadraticCell("tiny", dim=8, batch=2, condition=10.0, active=0.25)
SIMPLE = Method("simple")
ANDERSON = Method("anderson", {"m": 5, "lam": 1e-12, "tau": 1.0})
BROYDEN = Method("broyden", {"LBFGS_thres": None, "ls": False})


@pytest.fixture(autouse=True)
def warnings_of_peers() -> Iterator[None]:
    """torchdeq and bregmanet use what torch and NumPy deprecate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def prepared() -> PreparedQuadratic:
    return prepare(TINY)


@pytest.fixture(scope="module")
def regular() -> PreparedQuadratic:
    return prepare(
        QuadraticCell("regular", dim=8, batch=2, condition=10.0, active=0.0, regularization=0.3, dtype="float64")
    )


@pytest.mark.parametrize("variable", [DUAL, CLAMPED])
def test_the_truth_is_the_fixed_point(regular: PreparedQuadratic, variable: str) -> None:
    step = MirrorMap(regular, variable, 1e-9)
    at = regular.geometry.inverse_activation(regular.value) if variable == DUAL else regular.value
    assert torch.allclose(step(at), at, atol=1e-11)
    assert torch.equal(step.value(step.start()), torch.zeros_like(regular.value))


# Broyden's method may leave C, and NaN is then all that there is, on z.
@pytest.mark.parametrize(
    ("method", "variable"),
    [(SIMPLE, DUAL), (SIMPLE, CLAMPED), (ANDERSON, DUAL), (ANDERSON, CLAMPED), (BROYDEN, DUAL)],
)
def test_torchdeq_gets_there(regular: PreparedQuadratic, method: Method, variable: str) -> None:
    pytest.importorskip("torchdeq")
    setup = Setup(mirror_equation(regular, variable, 1e-9), method, method)
    steps = 300 if method is SIMPLE else 40
    run = differentiated(regular, torchdeq_value(setup, steps, steps))
    value_error, gradient_error = errors(regular, *run())
    assert value_error <= 1e-6
    assert gradient_error is not None
    assert gradient_error <= 1e-5


@pytest.mark.parametrize("method", [SIMPLE, ANDERSON, BROYDEN])
def test_torchdeq_makes_the_iterations_it_is_told(regular: PreparedQuadratic, method: Method) -> None:
    pytest.importorskip("torchdeq")
    calls = []

    def step(x: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
        calls.append(None)
        return 0.5 * x + 1

    method.solve(step, torch.zeros(2, 8), 12)
    assert len(calls) == (13 if method.name == "broyden" else 12)


def test_the_sweep_finds_settings_that_reach_the_levels(prepared: PreparedQuadratic) -> None:
    pytest.importorskip("torchdeq")
    found, failures = torchdeq_contenders(prepared, mirror_equations(prepared, True), (1e-2, 1e-3), 4.0, quick=True)
    assert any(1e-3 in contender.accuracies for contender in found)
    for contender in found:
        assert reaches(contender.accuracies[0], *errors(prepared, *contender.run()), BOTH), contender.settings
    reached = {(contender.name, contender.accuracies[0]) for contender in found}
    assert not reached & {(failure.name, failure.accuracy) for failure in failures}
    assert len({contender.name for contender in found} | {failure.name for failure in failures}) == 3


def test_the_sweep_lists_what_it_could_not_reach(prepared: PreparedQuadratic) -> None:
    pytest.importorskip("torchdeq")
    found, failures = torchdeq_contenders(prepared, mirror_equations(prepared, True), (1e-14,), 0.6, quick=True)
    assert found == []
    assert len(failures) == 3
    near = [failure for failure in failures if failure.value_error is not None]
    assert near
    assert all(failure.value_error > 1e-14 or failure.gradient_error > 1e-14 for failure in near)


def test_the_sweep_tries_both_maps() -> None:
    prepared = prepare(TINY)
    tried = setups(prepared, mirror_equations(prepared))
    names = {(setup.equation.text.split(",")[0], setup.forward.name) for setup in tried}
    assert names == {(v, m) for v in (DUAL, CLAMPED) for m in ("anderson", "broyden", "simple")}


@pytest.mark.parametrize("geometry", ["tanh", "softplus"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_proxqp_solves_the_same_problem(geometry: str, layout: str) -> None:
    pytest.importorskip("proxsuite")
    cell = prepare(QuadraticCell("tiny", geometry=geometry, dim=8, batch=3, condition=10.0, active=0.25))
    assert applies(cell)
    z, gradient = proxqp(cell, layout, 1e-11, 1)()
    assert gradient is None
    assert cell.value_error(z) <= 1e-7


def test_proxqp_is_searched_for_its_loosest_tolerance(prepared: PreparedQuadratic, regular: PreparedQuadratic) -> None:
    pytest.importorskip("proxsuite")
    assert not applies(regular)
    found, failures = proxqp_contenders(prepared, (1e-3, 1e-6), 10.0, 1)
    assert not failures
    for contender in found:
        assert contender.task == FORWARD
        assert reaches(contender.accuracies[0], *errors(prepared, *contender.run()), FORWARD)
    _, failures = proxqp_contenders(prepared, (1e-3,), 1e-9, 1)
    assert [failure.value_error for failure in failures] == [None]
    assert "cap" in failures[0].settings


@pytest.mark.parametrize("geometry", ["tanh", "arcsinh"])
def test_bregmanets_layers_are_the_same_where_its_inverse_is_right(geometry: str) -> None:
    pytest.importorskip("bregmanet")
    row = compare_layers(geometry, Size(8, 4), 2, 1.0)
    assert row.reason is None
    assert row.difference is not None
    assert row.difference <= 1e-4
    assert len(row.ours) == len(row.theirs) == 2


@pytest.mark.parametrize("geometry", ["sigmoid", "bent"])
def test_a_wrong_inverse_is_listed_apart(geometry: str) -> None:
    pytest.importorskip("bregmanet")
    row = compare_layers(geometry, Size(8, 4), 2, 1.0)
    assert row.reason is not None
    assert "inverse is wrong" in row.reason
    assert row.ours == row.theirs == ()


def test_numpy_is_left_as_it_was() -> None:
    numpy = pytest.importorskip("numpy")
    pytest.importorskip("bregmanet")
    before = hasattr(numpy, "Inf")
    compare_layers("tanh", Size(4, 2), 1, 0.1)
    assert hasattr(numpy, "Inf") == before
    assert set(ACTIVATIONS) >= {"tanh", "isru", "arctan"}
