"""Convolutional layers and networks as cells: their truths, their rivals, and that they are cells like the others."""

import csv
import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy
import pytest
import torch
from scipy.optimize import nnls
from torch.nn import functional

from implicit_bregman.experiments.benchmark import cells as cells_module
from implicit_bregman.experiments.benchmark import convolution, fields
from implicit_bregman.experiments.benchmark.cells import FACTS, QUICK, catalogue, chosen
from implicit_bregman.experiments.benchmark.convolution import convolution_splitting, prepare_convolution
from implicit_bregman.experiments.benchmark.families import prepare
from implicit_bregman.experiments.benchmark.fields import NETWORKS, NetworkMap, field_equations, prepare_field
from implicit_bregman.experiments.benchmark.layer_cells import ConvolutionCell, FieldCell
from implicit_bregman.experiments.benchmark.peers.contenders import (
    BOTH,
    FORWARD,
    OURS,
    TUNED,
    Found,
    differentiated,
    errors,
    library,
    reaches,
)
from implicit_bregman.experiments.benchmark.peers.convolution import (
    OWN,
    convolution_equations,
    own_contenders,
    own_value,
)
from implicit_bregman.experiments.benchmark.peers.splitting import NAME as SPLITTING
from implicit_bregman.experiments.benchmark.peers.splitting import Setup, splitting_contenders, splitting_run
from implicit_bregman.experiments.benchmark.peers.torchdeq_sweep import torchdeq_contenders
from implicit_bregman.experiments.benchmark.report import benchmark_report, sections
from implicit_bregman.experiments.benchmark.results import Benchmark
from implicit_bregman.experiments.benchmark.run import run_benchmark
from implicit_bregman.experiments.benchmark.settings import BenchmarkSettings

CONV = ConvolutionCell("conv-tiny", channels=2, size=5, batch=3)
WIDE = replace(CONV, dtype="float64")
EVENTS = {"mlp": (8,), "transformer": (3, 8), "resnet": (8, 4, 4)}
FIELD = FieldCell("field-tiny", "mlp", EVENTS["mlp"], 3)
NO_PEERS = {name: "left out by the test" for name in ("torchdeq", "proxsuite", "osqp", "bregmanet")}


@pytest.fixture(autouse=True)
def warnings_of_peers() -> Iterator[None]:
    """torchdeq uses what torch deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torchdeq")
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


def check_reached(prepared: convolution.PreparedLayer, found: Found) -> None:
    contenders, failures = found
    assert not failures
    assert contenders
    for contender in contenders:
        assert reaches(contender.accuracies[0], *errors(prepared, *contender.run()), contender.task), contender.settings


# the catalogue


def test_patterns_select_them() -> None:
    layers = [cell.name for cell in chosen(("conv-*",), quick=False)]
    assert len(layers) == 9
    assert {"conv-16x14-convex-gamma0", "conv-32x16-monotone-gamma1"} < set(layers)
    nets = [cell.name for cell in chosen(("field-*",), quick=False)]
    assert nets == ["field-mlp", "field-transformer", "field-resnet"]
    assert {cell.family for cell in catalogue() if cell.name in QUICK} == {"quadratic", "convolution", "field"}
    assert {cell.name for cell in chosen(None, quick=False)} > {*layers, *nets}


def test_all_cells_have_the_same_facts() -> None:
    for cell in catalogue():
        assert set(cell.facts) == {*FACTS, "name"}
    (cell,) = chosen(("conv-16x14-convex-gamma0-cond122",), quick=False)
    assert "16 × 14 × 14, B = 32, condition about 122, γ = 0" in cell.text
    (cell,) = chosen(("field-transformer",), quick=False)
    assert cell.text == "z = N(z, x), transformer, 16 × 64, B = 16, float32"


@pytest.mark.parametrize(("scale", "condition"), [(1.0, 14.0), (3.0, 122.0)])
def test_the_condition_is_what_it_says(scale: float, condition: float) -> None:
    cells = [c for c in catalogue() if isinstance(c, ConvolutionCell) and (c.scale, c.channels) == (scale, 16)]
    assert cells
    for cell in cells:
        assert cell.condition == condition
        layer, _ = convolution.draw_layer(replace(cell, batch=1))
        low, high = layer.energy.operator((cell.size, cell.size)).bounds()
        assert high / low == pytest.approx(condition, rel=0.1)


# truths


@pytest.mark.parametrize("weight", ["convex", "monotone"])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_truth_of_a_convolutional_layer_is_the_librarys(weight: str, gamma: float, dtype: str) -> None:
    prepared = prepare(replace(CONV, weight=weight, regularization=gamma, dtype=dtype))
    assert prepared.value.dtype == torch.float64
    assert len(prepared.gradients) == len(prepared.parameters) == (5 if weight == "monotone" else 4)
    assert [g.shape for g in prepared.gradients] == [p.shape for p in prepared.parameters]
    bound = 1e-9 if dtype == "float64" else 1e-5
    value_error, gradient_error = errors(prepared, *library(prepared)())
    assert value_error <= bound
    assert gradient_error is not None
    assert gradient_error <= 10 * bound
    if gamma == 0:
        assert 0.2 < (prepared.value == 0).double().mean() < 0.8


def test_the_truth_is_that_of_nonnegative_least_squares() -> None:
    prepared = prepare_convolution(WIDE)
    kernel = prepared.energy.weight_map().detach()
    shape = prepared.value.shape[1:]
    size = math.prod(shape)
    columns = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    hessian = functional.conv2d(columns, kernel, padding=kernel.shape[-1] // 2).reshape(size, size).T
    root = torch.linalg.cholesky(hessian)
    offsets = prepared.energy.injection(prepared.x).detach().flatten(1)
    for c, z in zip(offsets, prepared.value, strict=True):
        right = torch.linalg.solve_triangular(root, c[:, None], upper=False)[:, 0]
        found, _ = nnls(root.T.numpy(), right.numpy())
        numpy.testing.assert_allclose(z.flatten().numpy(), found, rtol=0, atol=1e-10)


def test_a_truth_that_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_LONGEST", 2)
    with pytest.raises(RuntimeError, match="the reference's point has the relative residual"):
        prepare_convolution(CONV)
    monkeypatch.setattr(fields, "_LONGEST", 2)
    with pytest.raises(RuntimeError, match=r"iteration still moves by .* after 2 steps"):
        prepare_field(FIELD)


def test_errors_are_those_of_the_worst_parameter() -> None:
    prepared = prepare_convolution(WIDE)
    assert prepared.gradient_error(*prepared.gradients) == 0
    first, *rest = prepared.gradients
    assert prepared.gradient_error(first * 1.01, *rest) == pytest.approx(0.01)
    assert prepared.gradient_error(torch.full_like(first, torch.nan), *rest) == math.inf
    with pytest.raises(ValueError, match="longer"):
        prepared.gradient_error(first)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_truth_of_a_field_is_the_librarys(network: str, dtype: str) -> None:
    prepared = prepare(FieldCell("field-tiny", network, EVENTS[network], 2, dtype))
    assert [g.shape for g in prepared.gradients] == [p.shape for p in prepared.parameters]
    value_error, gradient_error = errors(prepared, *library(prepared)())
    assert value_error <= (1e-9 if dtype == "float64" else 1e-5)
    assert gradient_error is not None
    assert gradient_error <= (1e-8 if dtype == "float64" else 1e-4)


def test_the_truth_of_a_field_has_the_slope_of_finite_differences() -> None:
    prepared = prepare_field(replace(FIELD, dtype="float64"))
    network = prepared.energy.network
    direction = torch.randn(prepared.x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    @torch.no_grad()
    def loss(x: torch.Tensor) -> float:
        z = torch.zeros_like(prepared.cotangent)
        for _ in range(200):
            z = network(z, x)
        return float((z * prepared.cotangent).sum())

    slope = (loss(prepared.x + 1e-5 * direction) - loss(prepared.x - 1e-5 * direction)) / 2e-5
    assert float((prepared.gradients[0] * direction).sum()) == pytest.approx(slope, rel=1e-7)


def test_drawing_a_network_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first = prepare_field(FIELD)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(prepare_field(FIELD).x, first.x)
    assert not torch.equal(prepare_field(FIELD, seed=1).x, first.x)


# rivals


@pytest.mark.parametrize("weight", ["convex", "monotone"])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_plain_loop_finds_point_and_gradients(weight: str, gamma: float) -> None:
    prepared = prepare_convolution(replace(WIDE, weight=weight, regularization=gamma))
    splitting = convolution_splitting(prepared)
    for newton in (1, None) if gamma else (1,):
        run = splitting_run(splitting, Setup(splitting.middle, newton), 200, 200)
        value_error, gradient_error = errors(prepared, *run())
        assert value_error <= 1e-10
        assert gradient_error is not None
        assert gradient_error <= 1e-9
    assert splitting_run(splitting, Setup(splitting.middle), 200)()[1] is None


def test_the_plain_loop_is_swept() -> None:
    prepared = prepare_convolution(replace(CONV, weight="monotone"))
    check_reached(prepared, splitting_contenders(convolution_splitting(prepared), (1e-2, 1e-4), 5.0))


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_users_own_energy_is_the_same(gamma: float) -> None:
    prepared = prepare_convolution(replace(WIDE, regularization=gamma))
    value_error, gradient_error = errors(prepared, *differentiated(prepared, own_value(prepared, 1e-9))())
    assert value_error <= 1e-8
    assert gradient_error is not None
    assert gradient_error <= 1e-7


def test_the_users_own_energy_is_searched_for_its_loosest_tolerance() -> None:
    prepared = prepare_convolution(CONV)
    contenders, failures = own_contenders(prepared, (1e-3, 1e-12), 10.0)
    check_reached(prepared, (contenders, []))
    assert {(c.name, c.task) for c in contenders} == {(OWN, BOTH)}
    (failure,) = failures
    assert failure.accuracy == 1e-12
    assert failure.gradient_error is not None
    _, failures = own_contenders(prepared, (1e-3,), -1.0)
    assert [failure.settings for failure in failures] == ["cap reached before its first run"]


@pytest.mark.parametrize("weight", ["convex", "monotone"])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_truth_is_a_fixed_point_of_torchdeqs_equations(weight: str, gamma: float) -> None:
    prepared = prepare_convolution(replace(WIDE, weight=weight, regularization=gamma))
    equations = convolution_equations(prepared)
    assert len(equations) == (2 if gamma else 1)
    for equation in equations:
        step = equation.opened()
        at = prepared.geometry.inverse_activation(prepared.value) if "MM" in equation.text else prepared.value
        assert torch.allclose(step(at), at, atol=1e-9)
        assert torch.allclose(step.value(at), prepared.value, atol=1e-12)
        assert step.start().shape == prepared.value.shape


def test_the_truth_is_a_fixed_point_of_the_network() -> None:
    prepared = prepare_field(replace(FIELD, dtype="float64"))
    step = NetworkMap(prepared)
    assert torch.allclose(step(prepared.value), prepared.value, rtol=0, atol=1e-12)
    assert torch.equal(step.start(), torch.zeros_like(prepared.value))


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_torchdeq_is_swept_on_a_convolutional_layer(gamma: float) -> None:
    pytest.importorskip("torchdeq")
    prepared = prepare_convolution(replace(CONV, regularization=gamma))
    contenders, _ = torchdeq_contenders(prepared, convolution_equations(prepared), (1e-2, 1e-3), 4.0, quick=True)
    check_reached(prepared, (contenders, []))


def test_torchdeq_is_swept_on_a_field() -> None:
    pytest.importorskip("torchdeq")
    prepared = prepare_field(FIELD)
    contenders, _ = torchdeq_contenders(prepared, field_equations(prepared), (1e-2, 1e-4), 4.0, quick=True)
    check_reached(prepared, (contenders, []))


# the whole


@pytest.fixture(scope="module")
def result() -> Benchmark:
    """Without peers, on tiny cells."""
    cells = (CONV, replace(CONV, name="conv-skew", weight="monotone", regularization=1.0), FIELD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells_module, "catalogue", lambda: cells)
        settings = BenchmarkSettings(
            cells=("conv-*", "field-*"), cap=12.0, threads=1, repeats=2, accuracies=(1e-3,), scaling=False, others=False
        )
        return run_benchmark(settings, missing=NO_PEERS)


def test_they_are_measured_as_the_others_are(result: Benchmark) -> None:
    assert not result.skipped
    names = [{entry.contender for entry in cell.entries} - {TUNED} for cell in result.cells]
    assert names == [{OURS, SPLITTING, OWN}, {OURS, SPLITTING}, {OURS}]
    for cell in result.cells:
        ours = cell.entry(OURS, 1e-3)
        assert ours is not None
        assert ours.seconds
        assert ours.operator_calls is not None
        assert cell.held_bytes is not None
        assert cell.held_bytes > 0
        assert cell.allowed_bytes is None
        assert cell.value_error <= 1e-5
    assert result.cells[0].entry(SPLITTING, 1e-3, FORWARD) is not None
    assert result.cells[0].ratio(OWN, 1e-3) is not None


def test_they_are_in_every_output(result: Benchmark) -> None:
    assert Benchmark.from_json(benchmark_report(result).json()) == result
    lines = list(csv.DictReader(io.StringIO(benchmark_report(result).csv())))
    assert {(line["cell"], line["family"], line["condition"]) for line in lines} == {
        ("conv-tiny", "convolution", "14.0"),
        ("conv-skew", "convolution", "14.0"),
        ("field-tiny", "field", ""),
    }
    tables = {title: rows for title, _, rows in sections(result)}
    assert [row[0] for row in tables["Time to 1e-03, forward+backward [ms]"]] == [
        "conv-tiny",
        "conv-skew",
        "field-tiny",
    ]
    report = benchmark_report(result).markdown()
    assert "**field-tiny**: z = N(z, x), mlp, 8, B = 3, float32; truth from the plain iteration" in report
    assert "convolutional layers, forward+backward to 1e-03 against the user's own energy" in report
