"""The rivals written here, plain Peaceman–Rachford and monDEQ's layer, and OSQP: same solution, same gradient."""

import pytest
import torch

from implicit_bregman.experiments.benchmark.cells import QuadraticCell
from implicit_bregman.experiments.benchmark.peers import mondeq
from implicit_bregman.experiments.benchmark.peers import osqp as osqp_peer
from implicit_bregman.experiments.benchmark.peers.contenders import (
    BOTH,
    FORWARD,
    differentiated,
    errors,
    library,
    reaches,
)
from implicit_bregman.experiments.benchmark.peers.mondeq import (
    FORWARD_BACKWARD,
    METHODS,
    PEACEMAN_RACHFORD,
    MonDEQ,
    mondeq_contenders,
    tuned_step,
)
from implicit_bregman.experiments.benchmark.peers.osqp import osqp, osqp_contenders
from implicit_bregman.experiments.benchmark.peers.splitting import (
    NAME,
    Setup,
    dense_splitting,
    splitting_contenders,
    splitting_run,
    unique,
)
from implicit_bregman.experiments.benchmark.prepared import Gradients
from implicit_bregman.experiments.benchmark.truth import PreparedQuadratic, prepare


def layer(kind: str, margin: float = 1.0, dtype: str = "float64") -> PreparedQuadratic:
    return prepare(QuadraticCell("layer", kind, "softplus", 12, 6, active=0.5, margin=margin, dtype=dtype))


def plain(geometry: str, **facts: object) -> PreparedQuadratic:
    usual = {"dim": 10, "batch": 3, "condition": 10.0, "active": 0.2, "dtype": "float64"}
    return prepare(QuadraticCell("plain", geometry=geometry, **(usual | facts)))


def check_same(prepared: PreparedQuadratic, z: torch.Tensor, gradients: Gradients | None, tol: float) -> None:
    """As the library's solution and gradient."""
    ours, our_gradients = library(prepared)()
    assert (z - ours).norm() <= tol * ours.norm()
    assert gradients is not None
    assert our_gradients is not None
    for gradient, our_gradient in zip(gradients, our_gradients, strict=True):
        assert (gradient - our_gradient).norm() <= tol * our_gradient.norm()


@pytest.mark.parametrize("kind", ["convex", "general"])
@pytest.mark.parametrize("margin", [1.0, 0.1])
def test_the_plain_loop_finds_the_librarys_point_and_gradient(kind: str, margin: float) -> None:
    prepared = layer(kind, margin)
    check_same(prepared, *splitting_run(dense_splitting(prepared), Setup(0.6), 200, 200)(), 1e-9)


@pytest.mark.parametrize("geometry", ["tanh", "arctan", "sin", "softplus", "arcsinh"])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_the_plain_loop_in_other_geometries(geometry: str, gamma: float) -> None:
    active = 0.2 if geometry != "arcsinh" and (gamma == 0 or geometry == "sin") else 0.0
    prepared = plain(geometry, regularization=gamma, active=active)
    for newton in (1, 3, None) if gamma else (1,):
        run = splitting_run(dense_splitting(prepared), Setup(2.0, newton), 300, 300)
        check_same(prepared, *run(), 1e-8)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_the_sweep_finds_the_least_iterations(gamma: float) -> None:
    prepared = plain("tanh", regularization=gamma, active=0.0 if gamma else 0.2, dtype="float32")
    levels = (1e-3, 1e-5)
    found, failures = splitting_contenders(dense_splitting(prepared), levels, 10.0)
    assert not failures
    assert {(c.name, c.task, c.accuracies) for c in found} == {
        (NAME, task, (level,)) for task in (FORWARD, BOTH) for level in levels
    }
    for contender in found:
        assert reaches(contender.accuracies[0], *errors(prepared, *contender.run()), contender.task)
    # Two iterations less do not get there. (The text rounds α.)
    best = next(c for c in found if (c.task, c.accuracies) == (FORWARD, (1e-5,)))
    words, count = best.settings.removesuffix(" iterations").split("; ")
    setup = Setup(float(words.split(",")[0].removeprefix("α = ")), 3 if words.endswith(": 3") else 1)
    z, gradients = splitting_run(dense_splitting(prepared), setup, int(count) - 2)()
    assert gradients is None
    assert prepared.value_error(z) > 1e-5


def test_what_reaches_a_level_reaches_the_looser_ones() -> None:
    prepared = layer("general", 0.1, "float32")
    found, _ = splitting_contenders(dense_splitting(prepared), (1e-3, 1e-5), 10.0)
    counts = {
        (contender.task, contender.accuracies[0]): sum(
            map(int, contender.settings.split("; ")[1].removesuffix(" iterations").split(" + "))
        )
        for contender in found
    }
    for task in (FORWARD, BOTH):
        assert counts[task, 1e-3] <= counts[task, 1e-5]


def test_a_level_that_rounding_forbids_is_listed() -> None:
    found, failures = splitting_contenders(dense_splitting(layer("general", dtype="float32")), (1e-12,), 2.0)
    assert found == []
    assert {failure.task for failure in failures} == {FORWARD, BOTH}
    assert all(failure.value_error is not None and 1e-12 < failure.value_error < 1e-5 for failure in failures)
    _, failures = splitting_contenders(dense_splitting(layer("general")), (1e-3,), 0.0)
    assert {failure.settings for failure in failures} == {"cap reached before its first run"}


def test_splitting_is_for_problems_with_one_critical_point() -> None:
    assert unique(layer("general"))
    assert not unique(plain("tanh", kind="indefinite"))


@pytest.mark.parametrize("kind", ["convex", "general"])
@pytest.mark.parametrize("method", METHODS)
def test_mondeqs_layer_has_the_librarys_point_and_gradient(kind: str, method: str) -> None:
    prepared = layer(kind)
    step = {PEACEMAN_RACHFORD: 0.5, FORWARD_BACKWARD: 0.1}[method]
    setup = mondeq.Setup(method, step, 1e-10)
    run = differentiated(prepared, lambda: MonDEQ(prepared.weight, prepared.offset, setup)())
    check_same(prepared, *run(), 1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_mondeqs_step_is_halved_while_that_helps(method: str) -> None:
    prepared = layer("general")

    def iterations(step: float) -> int:
        made = MonDEQ(prepared.weight.detach(), prepared.offset, mondeq.Setup(method, step))
        made()
        return made.iterations

    step = tuned_step(prepared, method)
    assert iterations(step) <= iterations(2 * step)
    assert iterations(step) < iterations(step / 2)


def test_mondeq_is_searched_for_its_loosest_tolerance() -> None:
    prepared = layer("general", dtype="float32")
    found, failures = mondeq_contenders(prepared, (1e-3, 1e-5), 10.0)
    assert not failures
    assert len(found) == 8  # splittings, tasks, levels
    for contender in found:
        assert reaches(contender.accuracies[0], *errors(prepared, *contender.run()), contender.task)
    _, failures = mondeq_contenders(prepared, (1e-12,), 0.3)
    assert {(failure.name, failure.task) for failure in failures} == {
        (f"monDEQ {method}", task) for method in METHODS for task in (FORWARD, BOTH)
    }


def test_mondeqs_layer_is_for_nonnegative_z_without_regularization() -> None:
    assert mondeq.applies(layer("general"))
    assert mondeq.applies(plain("softplus"))
    assert not mondeq.applies(plain("tanh"))
    assert not mondeq.applies(plain("softplus", regularization=0.1, active=0.0))


@pytest.mark.parametrize("polishing", [True, False])
@pytest.mark.parametrize("geometry", ["tanh", "softplus"])
def test_osqp_solves_the_one_problem(geometry: str, polishing: bool) -> None:
    pytest.importorskip("osqp")
    prepared = plain(geometry, batch=1)
    assert osqp_peer.applies(prepared)
    z, gradient = osqp(prepared, 1e-10, polishing)()
    assert gradient is None
    assert (z - library(prepared)()[0]).norm() <= 1e-6 * z.norm()


def test_osqp_is_searched_for_its_loosest_tolerance() -> None:
    pytest.importorskip("osqp")
    assert not osqp_peer.applies(plain("tanh"))
    assert not osqp_peer.applies(plain("tanh", batch=1, regularization=0.1, active=0.0))
    prepared = plain("tanh", batch=1)
    found, failures = osqp_contenders(prepared, (1e-3, 1e-6), 10.0)
    assert not failures
    for contender in found:
        assert not contender.in_torch
        assert reaches(contender.accuracies[0], *errors(prepared, *contender.run()), FORWARD)
