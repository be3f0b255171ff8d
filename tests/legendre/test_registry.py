"""Lookup, parameters, identity as values, and what is refused."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch

from implicit_bregman.legendre import Box, LegendreFunction, ScaledTanh, geometries, geometry

PAPER = ("isru", "sigmoid", "softplus", "arctan", "tanh", "sin", "arcsinh")
NAMES = (*PAPER, "identity", "scaled_tanh", "exp", "bent", "simplex")
PARAMETERS = [
    ("isru", "scale"),
    ("softplus", "sharpness"),
    ("scaled_tanh", "scale"),
    ("scaled_tanh", "slope"),
    ("bent", "smoothness"),
]


def test_names() -> None:
    assert geometries() == NAMES
    for name in NAMES:
        phi = geometry(name)
        assert isinstance(phi, LegendreFunction) == (name != "simplex")
        assert phi.name == name


def test_instances_pass_through() -> None:
    phi = geometry("isru", scale=2.0)
    assert geometry(phi) is phi
    with pytest.raises(ValueError, match="no effect on the instance"):
        geometry(phi, scale=3.0)


def test_defaults() -> None:
    assert geometry("isru") == geometry("isru", scale=1.0)
    assert geometry("softplus") == geometry("softplus", sharpness=1.0)
    assert geometry("bent") == geometry("bent", smoothness=1.0)
    assert geometry("scaled_tanh") == geometry("scaled_tanh", scale=1.7159, slope=2 / 3)
    assert geometry("scaled_tanh").strong_convexity == pytest.approx(0.8742, abs=1e-4)


def test_strong_convexity() -> None:
    values = {name: geometry(name).strong_convexity for name in NAMES}
    expected = dict.fromkeys(NAMES, 1.0) | {"sigmoid": 4.0, "exp": 0.0, "scaled_tanh": 1.5 / 1.7159}
    assert values == pytest.approx(expected)
    assert geometry("isru", scale=4.0).strong_convexity == 0.25
    assert [name for name in NAMES if not geometry(name).is_legendre] == ["sin"]
    assert [name for name in NAMES if geometry(name).max_curvature < math.inf] == ["identity"]


@pytest.mark.parametrize("name", ["relu", "", "Tanh"])
def test_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"known: isru, sigmoid, .*bent"):
        geometry(name)


@pytest.mark.parametrize("value", [None, 3, torch.tanh, torch.nn.Tanh()])
def test_neither_name_nor_instance(value: Any) -> None:
    with pytest.raises(TypeError, match="LegendreFunction"):
        geometry(value)


def test_unknown_parameter_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'isru' has no parameter 'lam'; known: scale$"):
        geometry("isru", lam=2.0)
    with pytest.raises(ValueError, match=r"'scaled_tanh' has no parameter 'gain'; known: scale, slope$"):
        geometry("scaled_tanh", gain=2.0)
    with pytest.raises(ValueError, match="known: none"):
        geometry("tanh", scale=2.0)


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bad_parameter_value(name: str, parameter: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: {parameter} must be"):
        geometry(name, **{parameter: value})


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
@pytest.mark.parametrize("value", ["2", None, True, 1j])
def test_bad_parameter_type(name: str, parameter: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name}: {parameter} must be a number"):
        geometry(name, **{parameter: value})


def test_behaves_as_a_value(case: Any) -> None:
    phi: LegendreFunction = case.geometry
    for twin in (copy.copy(phi), copy.deepcopy(phi), pickle.loads(pickle.dumps(phi))):
        assert twin == phi
        assert hash(twin) == hash(phi)
        assert repr(twin) == repr(phi)
        assert twin.bounds(torch.float32) == phi.bounds(torch.float32)
    with pytest.raises(AttributeError):
        phi.name = "another"
    assert phi != geometry("isru", scale=77.0)


def test_repr_names_the_parameters() -> None:
    assert repr(geometry("tanh")) == "Tanh()"
    assert repr(geometry("softplus", sharpness=2)) == "Softplus(sharpness=2.0)"
    assert repr(ScaledTanh(2.0, slope=0.5)) == "ScaledTanh(scale=2.0, slope=0.5)"
    assert repr(geometry("sin").to_box(0, 1)) == "Box(base=Sin(), lower=0.0, upper=1.0)"


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.complex64]
)
def test_other_dtypes_are_refused(case: Any, dtype: torch.dtype) -> None:
    phi: LegendreFunction = case.geometry
    x = torch.ones(3).to(dtype)
    methods = (
        "activation",
        "inverse_activation",
        "potential",
        "conjugate",
        "curvature",
        "log_curvature",
        "slope",
    )
    for method in (*methods, "dual_potential", "project_dual", "is_interior"):
        with pytest.raises(TypeError, match=r"float32 or (torch\.)?float64"):
            getattr(phi, method)(x)
    for method in ("divergence", "dual_divergence"):
        with pytest.raises(TypeError, match=r"float32 or (torch\.)?float64"):
            getattr(phi, method)(x, x)
    for method in ("bounds", "saturated_dual"):
        with pytest.raises(TypeError, match="float64"):
            getattr(phi, method)(dtype)


def test_arguments_that_are_no_pair_of_tensors() -> None:
    phi: Any = geometry("tanh")
    with pytest.raises(TypeError, match="float"):
        phi.activation(0.5)
    with pytest.raises(TypeError, match="differ in dtype"):
        phi.divergence(torch.zeros(2), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_shapes(case: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    phi: LegendreFunction = case.geometry
    y = torch.zeros(shape, dtype=dtype)
    for method in ("activation", "conjugate", "curvature", "log_curvature", "slope", "dual_potential"):
        value = getattr(phi, method)(y)
        assert value.shape == y.shape
        assert value.dtype == dtype
    if shape:
        assert phi.dual_divergence(y, y + 1).shape == shape[:-1]


@pytest.mark.parametrize("name", ["isru", "sigmoid", "arctan", "tanh", "sin", "scaled_tanh"])
def test_boxes(name: str, dtype: torch.dtype) -> None:
    base = geometry(name)
    box = base.to_box(-1, 4)
    assert isinstance(box, Box)
    assert box.domain == (-1.0, 4.0)
    assert box.is_legendre == base.is_legendre
    low, high = base.domain
    s = 5.0 / (high - low)
    assert box.strong_convexity == pytest.approx(base.strong_convexity / s)
    y = torch.linspace(-1.5, 1.5, 9, dtype=dtype)
    torch.testing.assert_close(box.activation(y), -1 + s * (base.activation(y) - low))
    torch.testing.assert_close(box.slope(y), s * base.slope(y))
    torch.testing.assert_close(box.dual_potential(y), s * base.dual_potential(y))


def test_box_of_a_box_starts_again_from_its_base() -> None:
    base = geometry("tanh")
    assert base.to_box(0, 3).to_box(-2, 1) == base.to_box(-2, 1)
    assert base.to_box(0, 3).to_box(-1, 1) == base
    assert base.to_box(-1.0, 1.0) is base


def test_cube_of_the_sigmoid_is_the_scaled_tanh(dtype: torch.dtype) -> None:
    """σ(2y) = (1 + tanh y)/2: the same geometry with another dual scale."""
    y = torch.linspace(-20, 20, 41, dtype=dtype)
    first, second = geometry("tanh").to_box(0, 1), geometry("sigmoid")
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(first.activation(y), second.activation(2 * y), rtol=4 * eps, atol=0.0)
    torch.testing.assert_close(
        first.log_curvature(y), second.log_curvature(2 * y) - math.log(2), rtol=4 * eps, atol=4 * eps
    )


@pytest.mark.parametrize("name", ["softplus", "arcsinh", "identity", "exp", "bent"])
def test_unbounded_functions_have_no_box(name: str) -> None:
    with pytest.raises(ValueError, match="unbounded"):
        geometry(name).to_box(0.0, 1.0)


@pytest.mark.parametrize(("lo", "hi"), [(1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (-math.inf, 0.0), (math.nan, 1.0)])
def test_bad_boxes(lo: float, hi: float) -> None:
    with pytest.raises(ValueError, match="to_box: "):
        geometry("tanh").to_box(lo, hi)
