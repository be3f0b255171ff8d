"""The gradient that a method gives, against an oracle that shares no code with it."""

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.experiments.learning.gradients import (
    GradientCheck,
    compare_gradient,
    gradient_check,
    reference_gradients,
)
from implicit_bregman.experiments.learning.model import Architecture, Classifier

BATCH, FEATURES, WIDTH, CLASSES = 6, 5, 8, 3


def make_model(
    geometry: str = "tanh", regularization: float = 0.0, weight: str = "convex", push: float = 3.0
) -> tuple[Classifier, Tensor, Tensor]:
    """A float64 model, inputs large enough to make some coordinates active, and labels."""
    layer = Architecture("dense", WIDTH, geometry, regularization, weight)
    model = layer.classifier((FEATURES,), CLASSES, seed=1).double()
    generator = torch.Generator().manual_seed(2)
    x = push * torch.randn(BATCH, FEATURES, generator=generator, dtype=torch.float64)
    return model, x, torch.arange(BATCH) % CLASSES


def check(model: Classifier, x: Tensor, y: Tensor, adjoint: object, solver: object = "auto") -> GradientCheck:
    model.layer.adjoint, model.layer.solver = adjoint, solver
    found = compare_gradient(model, x, y, reference_gradients(model, x, y))
    assert found is not None
    return found


@pytest.mark.parametrize("regularization", [0.0, 0.3])
@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "sin", "arctan", "softplus", "bent"])
def test_implicit_is_exact_in_float64(geometry: str, regularization: float) -> None:
    found = check(*make_model(geometry, regularization), ib.adjoints.Implicit())
    assert found.error < 1e-6
    assert found.cosine == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("weight", ["symmetric", "general"])
def test_implicit_is_exact_for_other_weights(weight: str) -> None:
    assert check(*make_model(weight=weight), ib.adjoints.Implicit()).error < 1e-6


def test_every_solver_gives_the_same_gradient() -> None:
    model, x, y = make_model()
    for solver in (ib.solvers.MM(), ib.solvers.Anderson(), ib.solvers.Broyden(), ib.solvers.Newton()):
        assert check(model, x, y, ib.adjoints.Implicit(), solver).error < 1e-6


def test_unrolled_is_wrong_when_short_and_right_when_long() -> None:
    model, x, y = make_model()
    errors = [check(model, x, y, ib.adjoints.Unrolled(steps=steps)).error for steps in (1, 5, 1000)]
    assert errors[0] > 0.3
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6


def test_one_step_is_wrong_but_points_the_same_way() -> None:
    found = check(*make_model(), ib.adjoints.OneStep())
    assert found.error > 1e-2
    assert found.cosine > 0


def test_the_reference_does_not_depend_on_solver_and_adjoint() -> None:
    model, x, y = make_model()
    first = reference_gradients(model, x, y)
    model.layer.adjoint = ib.adjoints.Unrolled(steps=1)
    second = reference_gradients(model, x, y)
    assert first is not None
    assert second is not None
    assert torch.equal(first.flat, second.flat)
    assert first.flat.dtype == torch.float64


def test_the_reference_is_the_derivative_of_the_exact_loss() -> None:
    model, x, y = make_model()
    truth = reference_gradients(model, x, y)
    assert truth is not None
    bias = model.layer.energy.bias
    start = sum(p.numel() for p in _before(model, bias))
    step = 1e-6

    def loss(shift: float) -> float:
        with torch.no_grad():
            bias[3] += shift
            value = float(torch.nn.functional.cross_entropy(model(x), y))
            bias[3] -= shift
        return value

    slope = (loss(step) - loss(-step)) / (2 * step)
    assert float(truth.flat[start + 3]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def _before(model: Classifier, wanted: Tensor) -> list[Tensor]:
    parameters = list(model.layer.parameters())
    return parameters[: next(i for i, p in enumerate(parameters) if p is wanted)]


def test_the_model_is_left_as_it_was() -> None:
    model, x, y = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check(model, x, y, ib.adjoints.Implicit())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_without_a_reference_there_is_no_comparison() -> None:
    model, x, y = make_model(weight="general")
    with torch.no_grad():  # neither symmetric nor monotone
        model.layer.energy.weight_map.entries.copy_(torch.randn(WIDTH, WIDTH, dtype=torch.float64))
    assert reference_gradients(model, x, y) is None
    assert compare_gradient(model, x, y, None) is None


def test_error_and_cosine() -> None:
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert gradient_check(one, one) == GradientCheck(0.0, 1.0)
    assert gradient_check(-2 * one, one) == GradientCheck(3.0, -1.0)
    assert gradient_check(other, one).error == pytest.approx(2**0.5)
    assert gradient_check(0 * one, one) == GradientCheck(1.0, 0.0)
