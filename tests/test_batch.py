"""States with a shape, inputs of several tensors, and the frame that brings them to rows and back."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import implicit_bregman as ib
from implicit_bregman.batch import Batch
from implicit_bregman.solvers import MM, Anderson, Broyden, Newton
from tests.test_refusals import refuse

DOUBLE = torch.float64
BATCH, SHAPE = 4, (2, 3, 4)
SIZE = 24


class Smooth(ib.Energy):
    """½‖z − x‖² + Σ softplus(k * z + b) for images z: strongly convex, its Hessian depends on z."""

    def __init__(self, features: int | tuple[int, ...] = SHAPE, dtype: torch.dtype = DOUBLE) -> None:
        super().__init__(features, convex=True)
        draw = torch.Generator().manual_seed(3)
        self.mix = nn.Conv2d(SHAPE[0], 3, 3, padding=1, dtype=dtype)
        with torch.no_grad():
            for parameter in self.mix.parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=draw, dtype=DOUBLE))

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        assert z.shape[1:] == SHAPE, "z comes in the shape of a state"
        rough = nn.functional.softplus(self.mix(z)).sum((1, 2, 3))
        return rough + 0.5 * (z - x).square().sum((1, 2, 3))


class Flattened(Smooth):
    """The same, flattened by hand."""

    def __init__(self, dtype: torch.dtype = DOUBLE) -> None:
        super().__init__(SIZE, dtype)

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return super().value(z.reshape(-1, *SHAPE), x.reshape(-1, *SHAPE))


class Conditional(ib.Energy):
    """½⟨s, z²⟩ − ⟨image, z⟩ − ⟨E[label], z⟩ + ¼ Σ mask z⁴: x is a dict of tensors of several kinds."""

    def __init__(self) -> None:
        super().__init__(SHAPE, convex=True)
        self.classes = nn.Embedding(3, SIZE, dtype=DOUBLE)
        self.stiffness = nn.Parameter(torch.linspace(0.5, 2.0, SIZE, dtype=DOUBLE).reshape(SHAPE))

    def value(self, z: Tensor, x: dict[str, Any]) -> Tensor:
        force = x["image"] + self.classes(x["label"]).reshape(z.shape) + x["more"][0][:, None, None, None]
        quartic = 0.25 * torch.where(x["more"][1], z.pow(4), 0.0)
        return (0.5 * self.stiffness * z.square() - force * z + quartic).sum((1, 2, 3))


def images(dtype: torch.dtype = DOUBLE, scale: float = 1.5) -> Tensor:
    draw = torch.Generator().manual_seed(11)
    return (scale * torch.randn(BATCH, *SHAPE, generator=draw, dtype=DOUBLE)).to(dtype)


def conditions() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(5)
    return {
        "image": images(),
        "label": torch.tensor([0, 2, 1, 1]),
        "more": (torch.randn(BATCH, generator=draw, dtype=DOUBLE), torch.rand(BATCH, *SHAPE, generator=draw) < 0.5),
    }


def finite_difference(loss: Callable[[], Tensor], tensor: Tensor, direction: Tensor, step: float = 1e-5) -> float:
    with torch.no_grad():
        ends = []
        for shift in (step, -2 * step, step):  # the last one goes back to the start
            tensor.add_(direction, alpha=shift)
            ends.append(float(loss()))
    return (ends[0] - ends[1]) / (2 * step)


# Images ---------------------------------------------------------------------------------------------------------------

PROBLEMS = [("tanh", 0.0), ("sigmoid", 0.0), ("tanh", 0.3), ("softplus", 0.2), ("sin", 0.0)]


@pytest.mark.parametrize(
    ("geometry", "gamma", "adjoint"),
    [(*problem, "implicit") for problem in PROBLEMS]
    + [(*PROBLEMS[i], how) for i in (0, 2) for how in ("phantom", "one_step", ib.adjoints.Unrolled(steps=5))],
    ids=str,
)
def test_an_image_is_its_flattened_twin(geometry: str, gamma: float, adjoint: Any, dtype: torch.dtype) -> None:
    shaped, flat = Smooth(dtype=dtype), Flattened(dtype=dtype)
    x = images(dtype).requires_grad_()
    rows = x.detach().flatten(1).requires_grad_()
    tol = {torch.float32: 1e-3, torch.float64: 1e-7}[dtype]
    solver = "auto" if isinstance(adjoint, ib.adjoints.Unrolled) else ib.solvers.Newton(tol=tol)
    found = ib.find_critical_point(shaped, geometry, x, None, gamma, solver, adjoint)
    twin = ib.find_critical_point(flat, geometry, rows, None, gamma, solver, adjoint)
    for name in ("value", "dual"):
        assert getattr(found, name).shape == x.shape
        assert torch.equal(getattr(found, name).flatten(1), getattr(twin, name))
    for name in ("residual", "objective", "status", "iterations", "evaluations", "exact", "step", "converged"):
        torch.testing.assert_close(getattr(found, name), getattr(twin, name), rtol=0, atol=0, equal_nan=True)
    weights = torch.linspace(-1, 1, SIZE, dtype=dtype)
    found.value.backward(weights.reshape(SHAPE).expand_as(x))
    twin.value.backward(weights.expand_as(rows))
    assert x.grad is not None
    assert torch.equal(x.grad.flatten(1), rows.grad)
    assert torch.equal(shaped.mix.weight.grad, flat.mix.weight.grad)
    assert bool(shaped.mix.weight.grad.any())


@pytest.mark.parametrize(("geometry", "gamma"), PROBLEMS[:3])
def test_gradients_of_an_image_energy_are_finite_differences(geometry: str, gamma: float) -> None:
    energy, x = Smooth(), images().requires_grad_()
    weights = torch.linspace(-1, 1, SIZE, dtype=DOUBLE).reshape(SHAPE)

    def loss() -> Tensor:
        found = ib.find_critical_point(energy, geometry, x, regularization=gamma)
        assert bool(found.converged.all())
        return (found.value * weights).sum()

    loss().backward()
    for tensor in (x, energy.mix.weight, energy.mix.bias):
        direction = torch.randn(tensor.shape, dtype=DOUBLE)
        expected = finite_difference(loss, tensor, direction)
        assert float((tensor.grad * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_an_image_has_coordinates_at_its_bounds() -> None:
    """The problems above are not all interior."""
    value = ib.find_critical_point(Smooth(), "tanh", images()).value
    assert 0 < int((value.abs() > 1 - 1e-9).sum()) < value.numel() // 2


@pytest.mark.parametrize("solver", ["mm", "anderson", "broyden", "newton"])
def test_starts_and_traces_have_the_shape_of_the_states(solver: str) -> None:
    energy, x = Smooth(), images(scale=0.2)
    cls = {"mm": MM, "anderson": Anderson, "broyden": Broyden, "newton": Newton}[solver]
    start = 0.5 * torch.tanh(images())
    found = ib.find_critical_point(energy, "tanh", x, start, 0.5, cls(trace=True))
    assert bool(found.converged.all())
    assert found.trace is not None
    steps = int(found.iterations.max()) + 1
    assert found.trace.residual.shape == found.trace.objective.shape == (steps, BATCH)
    assert found.trace.dual.shape == (steps, BATCH, *SHAPE)
    torch.testing.assert_close(found.trace.dual[0], torch.atanh(start))
    other = ib.find_critical_point(energy, "tanh", x, None, 0.5, cls(trace=True), initial_dual=torch.atanh(start))
    torch.testing.assert_close(other.trace.dual, found.trace.dual, equal_nan=True)
    again = ib.find_critical_point(energy, "tanh", x, found, 0.5, solver)
    # Newton's method takes a step before it looks at how far it has come.
    assert again.iterations.tolist() == [int(solver == "newton")] * BATCH
    torch.testing.assert_close(ib.attach_gradient(energy, "tanh", x, found.dual, 0.5), found.value)


def test_a_gradient_flows_to_the_start_of_an_unrolled_image() -> None:
    start = (0.5 * torch.tanh(images())).requires_grad_()
    adjoint = ib.adjoints.Unrolled(steps=2)
    ib.find_critical_point(Smooth(), "tanh", images(), start, adjoint=adjoint).value.sum().backward()
    assert start.grad is not None
    assert start.grad.shape == start.shape
    assert bool(start.grad.any())


def test_inputs_of_another_shape_than_the_states() -> None:
    class Colour(ib.Energy):
        """Images from vectors."""

        def __init__(self, features: Any) -> None:
            super().__init__(features, convex=True)
            self.map = nn.Linear(5, SIZE, dtype=DOUBLE)

        def value(self, z: Tensor, x: Tensor) -> Tensor:
            return (0.5 * z.flatten(1).square() - self.map(x) * z.flatten(1)).sum(-1)

    energy = Colour(torch.Size(SHAPE))
    assert energy.features == SHAPE
    assert Colour(list(SHAPE)).features == SHAPE
    x = torch.randn(BATCH, 5, dtype=DOUBLE)
    found = ib.find_critical_point(energy, "tanh", x, regularization=0.1)
    assert found.value.shape == (BATCH, *SHAPE)
    energy.features = SIZE
    torch.testing.assert_close(
        ib.find_critical_point(energy, "tanh", x, regularization=0.1).value, found.value.flatten(1)
    )


def test_vectors_that_go_with_images() -> None:
    """features=(d,): the batch is the first dimension, whatever the shape of x; features=d: all but the last."""

    class Pooled(ib.Energy):
        def value(self, z: Tensor, x: Tensor) -> Tensor:
            pooled = x.mean((-1, -2)) if x.dim() > 2 else x
            return (0.5 * z.square() - pooled * z).sum(-1)

    found = ib.find_critical_point(Pooled((2,)), "identity", images())
    torch.testing.assert_close(found.value, images().mean((-1, -2)))
    rows = ib.find_critical_point(Pooled(4), "identity", images())
    torch.testing.assert_close(rows.value, images())


def test_the_energy_alone_takes_shaped_states() -> None:
    energy, x = Smooth(), images()
    z, v = torch.randn_like(x), torch.randn_like(x)
    step = 1e-6
    along = (energy(z + step * v, x) - energy(z - step * v, x)) / (2 * step)
    torch.testing.assert_close((energy.gradient(z, x) * v).sum((1, 2, 3)), along, rtol=1e-6, atol=1e-7)
    change = (energy.gradient(z + step * v, x) - energy.gradient(z - step * v, x)) / (2 * step)
    torch.testing.assert_close(energy.hessian_product(z, x, v), change, rtol=1e-6, atol=1e-7)


def test_an_empty_batch_of_images() -> None:
    x = images()[:0].requires_grad_()
    found = ib.find_critical_point(Smooth(), "tanh", x)
    assert found.value.shape == found.dual.shape == (0, *SHAPE)
    assert found.status.shape == (0,)
    found.value.sum().backward()
    assert x.grad is not None


# Pytrees --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("geometry", "gamma", "adjoint"),
    [
        ("tanh", 0.0, "implicit"),
        ("sigmoid", 0.4, "implicit"),
        ("sigmoid", 0.4, ib.adjoints.Phantom(steps=100, damping=1.0)),
    ],
    ids=str,
)
def test_gradients_flow_to_every_tensor_of_x(geometry: str, gamma: float, adjoint: Any) -> None:
    energy, x = Conditional(), conditions()
    leaves = {"image": x["image"], "bias": x["more"][0], "classes": energy.classes.weight, "s": energy.stiffness}
    for leaf in leaves.values():
        leaf.requires_grad_()
    weights = torch.linspace(-1, 1, SIZE, dtype=DOUBLE).reshape(SHAPE)

    def loss() -> Tensor:
        found = ib.find_critical_point(energy, geometry, x, regularization=gamma, adjoint=adjoint)
        assert bool(found.converged.all())
        return (found.value * weights).sum()

    loss().backward()
    for name, leaf in leaves.items():
        direction = torch.randn(leaf.shape, dtype=DOUBLE)
        expected = finite_difference(loss, leaf, direction)
        assert abs(expected) > 1e-3, name
        assert float((leaf.grad * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("solver", ["auto", "mm", "anderson", "newton"])
def test_each_sample_of_a_pytree_is_solved_as_if_alone(solver: str) -> None:
    """Samples that stop at different iterations are taken out of every tensor of x."""
    energy, x = Conditional(), conditions()
    x["image"] = x["image"] * torch.tensor([1e-6, 1.0, 3.0, 0.1], dtype=DOUBLE)[:, None, None, None]
    found = ib.find_critical_point(energy, "tanh", x, regularization=0.5, solver=solver)
    assert len(set(found.iterations.tolist())) > 1
    for i in range(BATCH):
        part = {"image": x["image"][i : i + 1], "label": x["label"][i : i + 1]}
        part["more"] = tuple(tensor[i : i + 1] for tensor in x["more"])
        alone = ib.find_critical_point(energy, "tanh", part, regularization=0.5, solver=solver)
        torch.testing.assert_close(found.value[i], alone.value[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("where", ["image", "bias", "start"])
def test_a_sample_that_is_not_finite_in_one_tensor_spoils_no_other(where: str) -> None:
    energy, x = Conditional(), conditions()
    clean = ib.find_critical_point(energy, "tanh", x)
    start = torch.zeros(BATCH, *SHAPE, dtype=DOUBLE)
    bad = {"image": x["image"], "bias": x["more"][0], "start": start}[where]
    bad.view(BATCH, -1)[2, -1] = torch.nan
    x["image"].requires_grad_()
    with pytest.warns(ib.ConvergenceWarning, match="INVALID_INPUT"):
        found = ib.find_critical_point(energy, "tanh", x, start)
    assert found.status.tolist() == [0, 0, ib.Status.INVALID_INPUT, 0]
    assert bool(found.value[2].isnan().all())
    assert bool(found.residual[2].isnan())
    assert bool(found.dual.isfinite().all())
    others = torch.tensor([0, 1, 3])
    torch.testing.assert_close(found.value[others], clean.value[others], rtol=1e-9, atol=1e-10)
    found.value[others].sum().backward()
    assert bool(x["image"].grad.isfinite().all())
    assert bool(energy.stiffness.grad.isfinite().all())


def test_huge_entries_are_no_invalid_input() -> None:
    """The sum of all entries overflows, none of them does."""
    x = (torch.full((2, 3), 1e308, dtype=DOUBLE), torch.full((2,), 1e308, dtype=DOUBLE))

    class Own(ib.Energy):
        def value(self, z: Tensor, x: tuple[Tensor, Tensor]) -> Tensor:
            return (0.5 * z.square() - torch.sign(x[0]) * z).sum(-1)

    assert bool(ib.find_critical_point(Own(3), "identity", x).converged.all())


def test_complex_tensors_are_passed_through() -> None:
    class Phase(ib.Energy):
        def value(self, z: Tensor, x: tuple[Tensor]) -> Tensor:
            return (0.5 * z.square() - torch.fft.ifft(x[0]).real * z).sum(-1)

    image = torch.randn(BATCH, 6, dtype=DOUBLE)
    spectrum = torch.fft.fft(image).requires_grad_()
    found = ib.find_critical_point(Phase(6), "identity", (spectrum, image))
    torch.testing.assert_close(found.value, image)
    (gradient,) = torch.autograd.grad(found.value.sum(), spectrum)
    (expected,) = torch.autograd.grad(torch.fft.ifft(spectrum).real.sum(), spectrum)
    torch.testing.assert_close(gradient, expected)
    dirty = spectrum.detach().clone()
    dirty[1, 1] = complex(0, float("inf"))
    with pytest.warns(ib.ConvergenceWarning, match="INVALID_INPUT"):
        found = ib.find_critical_point(Phase(6), "identity", (dirty, image))
    assert found.status.tolist() == [0, ib.Status.INVALID_INPUT, 0, 0]


def test_labels_alone_are_solved_in_the_precision_of_the_parameters(dtype: torch.dtype) -> None:
    class Prototype(ib.Energy):
        def __init__(self) -> None:
            super().__init__((2, 2), convex=True)
            self.classes = nn.Parameter(torch.linspace(-2, 2, 12, dtype=dtype).reshape(3, 2, 2))

        def value(self, z: Tensor, x: list[Tensor]) -> Tensor:
            return 0.5 * (z - self.classes[x[0]]).square().sum((1, 2))

    energy, label = Prototype(), torch.tensor([2, 0])
    found = ib.find_critical_point(energy, "tanh", [label])
    assert found.value.dtype == dtype
    torch.testing.assert_close(found.value, energy.classes[label].clamp(-1, 1))


def test_the_hessian_is_rebuilt_with_every_tensor_of_x() -> None:
    energy, x = Conditional(), conditions()
    z, v = (torch.randn(BATCH, SIZE, dtype=DOUBLE) for _ in range(2))
    operator = energy.bind(x).hessian(z)
    tensors, rebuild = operator.pack()
    assert {tensor.dtype for tensor in tensors} == {DOUBLE, torch.int64, torch.bool}
    again = rebuild(*tensors)
    expected = energy.hessian_product(z.reshape(-1, *SHAPE), x, v.reshape(-1, *SHAPE)).flatten(1)
    torch.testing.assert_close(operator.product(v), expected)
    torch.testing.assert_close(again.product(v), expected)
    some = torch.tensor([2, 0])
    torch.testing.assert_close(again.select(some).product(v[some]), expected[some])


@pytest.mark.parametrize("key", ["image", "label"])
def test_a_tensor_of_x_that_is_changed_in_place_is_noticed(key: str) -> None:
    energy, x = Conditional(), conditions()
    found = ib.find_critical_point(energy, "tanh", x)
    x[key].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.value.sum().backward()


def test_the_backward_pass_uses_the_tensors_of_the_forward_pass() -> None:
    energy, x = Conditional(), conditions()
    image = x["image"].requires_grad_()
    (expected,) = torch.autograd.grad(ib.find_critical_point(energy, "tanh", x).value.sum(), image)
    found = ib.find_critical_point(energy, "tanh", x)
    energy.stiffness = nn.Parameter(torch.ones(SHAPE, dtype=DOUBLE))
    x["image"] = x["label"] = None  # the dict is the caller's
    (gradient,) = torch.autograd.grad(found.value.sum(), image)
    assert torch.equal(gradient, expected)


def test_inference_mode_and_unrolled_checkpoints() -> None:
    energy, x = Conditional(), conditions()
    expected = ib.find_critical_point(energy, "tanh", x).value
    with torch.inference_mode():
        inside = ib.find_critical_point(energy, "tanh", conditions())
    torch.testing.assert_close(inside.value.clone(), expected.detach())
    x["image"].requires_grad_()
    gradients = []
    for checkpoint in (False, True):
        adjoint = ib.adjoints.Unrolled(steps=4, checkpoint=checkpoint)
        value = ib.find_critical_point(energy, "tanh", x, adjoint=adjoint).value
        gradients.append(torch.autograd.grad(value.sum(), x["image"])[0])
    torch.testing.assert_close(*gradients)


# Precision ------------------------------------------------------------------------------------------------------------


class Plain(ib.Energy):
    """½‖z‖² − ⟨a, z⟩ − ⟨b, z⟩ without parameters."""

    def value(self, z: Tensor, x: tuple[Tensor, Tensor]) -> Tensor:
        assert x[0].dtype == z.dtype
        return (0.5 * z.square() - (x[0] + x[1]) * z).flatten(1).sum(-1)


def test_half_precision_inputs_are_lifted_and_the_value_comes_back_in_half() -> None:
    x = (images(torch.float16, 0.3).requires_grad_(), images(torch.float16, 0.1))
    found = ib.find_critical_point(Plain(SHAPE), "tanh", x)
    assert (found.value.dtype, found.dual.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(found.value, (x[0] + x[1]).detach().clamp(-1, 1), rtol=2e-3, atol=2e-3)
    found.value.sum().backward()
    assert x[0].grad is not None
    assert x[0].grad.dtype == torch.float16


def test_autocast_lifts_what_is_half_to_the_precision_of_the_rest() -> None:
    x = (images(torch.bfloat16, 0.3), images(DOUBLE, 0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ib.find_critical_point(Plain(SHAPE), "tanh", x)
    assert found.value.dtype == DOUBLE
    torch.testing.assert_close(found.value, (x[0].double() + x[1]).clamp(-1, 1))
    refuse(
        ValueError,
        re.escape("x[0] is torch.bfloat16, but x[1] is torch.float64: convert one of them"),
        lambda: ib.find_critical_point(Plain(SHAPE), "tanh", x),
    )


# Rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3), (2, 0)], ids=str)
def test_rows_of_vectors_keep_any_leading_shape(shape: tuple[int, ...]) -> None:
    class Own(ib.Energy):
        def value(self, z: Tensor, x: Tensor) -> Tensor:
            assert z.dim() == x.dim() == 2
            return (0.25 * z.pow(4) + 0.5 * z.square() - x * z).sum(-1)

    x = torch.randn(*shape, 5, dtype=DOUBLE)
    flat = ib.find_critical_point(Own(), "tanh", x.reshape(-1, 5), solver=ib.solvers.Anderson(trace=True))
    for energy in (Own(), Own(5)):
        found = ib.find_critical_point(energy, "tanh", x, solver=ib.solvers.Anderson(trace=True))
        assert torch.equal(found.value, flat.value.reshape(x.shape))
        assert torch.equal(found.status, flat.status.reshape(shape))
        assert found.trace.dual.shape == (len(flat.trace.dual), *x.shape)
        assert found.trace.residual.shape == (len(flat.trace.residual), *shape)


def test_a_tensor_of_vectors_costs_one_synchronisation_and_no_copy() -> None:
    calls: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(str(function))
            return function(*args, **(kwargs or {}))

    energy, x = ib.QuadraticEnergy(8, 5), torch.randn(6, 5)
    with Recorder():
        batch = Batch.of(energy, ib.geometry("tanh"), x)
    assert batch.x.data_ptr() == x.data_ptr()
    assert calls.count("aten._local_scalar_dense.default") == 1
    assert len(calls) <= 6


# Errors ---------------------------------------------------------------------------------------------------------------


def solve(energy: ib.Energy, x: Any, **settings: Any) -> Callable[[], object]:
    return lambda: ib.find_critical_point(energy, "tanh", x, **settings)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (0, ValueError, "features must be at least 1, got 0"),
        ((3, 0), ValueError, r"features must be at least 1, got \(3, 0\)"),
        ((), TypeError, r"features must be a whole number, a tuple of such as \(C, H, W\), or None, got \(\)"),
        (2.0, TypeError, "features must be a whole number, .* got 2.0"),
        (True, TypeError, "features must be a whole number, .* got True"),
        (("3",), TypeError, "features must be a whole number, .* got"),
    ],
    ids=str,
)
def test_features_that_are_none(features: Any, error: type[Exception], message: str) -> None:
    refuse(error, message, lambda: ib.Energy(features))


def test_an_image_without_a_batch_is_refused() -> None:
    message = (
        r"x must have the batch as its first dimension, got shape \(2, 3, 4\), that of one state: give one sample as "
        r"x\[None\]; and 2 samples of shape \(3, 4\) as x\[:, None\]"
    )
    refuse(ValueError, message, solve(Smooth(), images()[0]))


def test_a_value_for_another_batch_says_what_z_was() -> None:
    class Summed(ib.Energy):
        def value(self, z: Tensor, x: Tensor) -> Tensor:
            return (z - x).square().sum()

    message = (
        r"Summed.value must return one number per sample, shape \({}\), got \(\): sum over the features{} only \(here "
        r"z has the shape \({}\); states that are not vectors, such as images, are declared by features=\(C, H, W\)\)"
    )
    refuse(ValueError, message.format("24,", "", "24, 4"), solve(Summed(), images()))
    refuse(ValueError, message.format("4,", r" \(2, 3, 4\)", "4, 2, 3, 4"), solve(Summed(SHAPE), images()))


def test_tensors_of_x_that_do_not_go_together() -> None:
    energy, x = Conditional(), conditions()
    message = (
        r"x\['label'\] must have the batch as its first dimension, as x\['image'\] of shape \(4, 2, 3, 4\) has; got "
        r"shape \(3,\)"
    )
    refuse(ValueError, message, solve(energy, {**x, "label": torch.tensor([0, 1, 2])}))
    message = r"x\['label'\] must have the batch as its first dimension, got a 0-d tensor"
    refuse(ValueError, message, solve(energy, {**x, "label": torch.tensor(0)}))
    message = r"x\['image'\] is torch.float64, but x\['more'\]\[0\] is torch.float32: convert one of them"
    refuse(ValueError, message, solve(energy, {**x, "more": (torch.zeros(4), x["more"][1])}))
    message = r"x\['image'\] is on cpu, but x\['label'\] is on meta: move one of them"
    refuse(ValueError, message, solve(energy, {**x, "label": x["label"].to("meta")}))
    message = r"x\[1\] is on cpu, but x\[0\] is on meta: move one of them"
    refuse(ValueError, message, solve(energy, [x["label"].to("meta"), x["image"]]))
    message = r"x\['label'\] must be a tensor, got NoneType"
    refuse(TypeError, message, solve(energy, {**x, "label": None}))
    message = r"x\['image'\] has the layout torch.sparse_coo: give a dense tensor"
    refuse(ValueError, message, solve(energy, {**x, "image": x["image"].to_sparse()}))
    refuse(TypeError, r"x must be a tensor, or contain one, got \{\}", solve(energy, {}))
    message = r"x\['image'\] is torch.float32, but stiffness of the energy is torch.float64: convert one of them"
    refuse(ValueError, message, solve(energy, {**x, "image": x["image"].float(), "more": (x["label"], x["more"][1])}))


def test_a_pytree_needs_features_and_an_energy_that_takes_it() -> None:
    message = r"x is a tuple, which does not say how wide z is: give the energy its features, such as super\(\)"
    refuse(ValueError, message, solve(Plain(), (images(), images())))
    refuse(TypeError, "x must be a tensor, got dict", solve(ib.QuadraticEnergy(3), {"x": torch.ones(2, 3)}))
    refuse(TypeError, r"features of a QuadraticEnergy must be a whole number", lambda: ib.QuadraticEnergy((3, 3)))


def test_starts_of_another_shape_say_which_was_expected() -> None:
    energy, x = Smooth(), images()
    message = r"{} must have shape \(4, 2, 3, 4\), got \(4, 24\)"
    rows = torch.zeros(BATCH, SIZE, dtype=DOUBLE)
    refuse(ValueError, message.format("initial"), solve(energy, x, initial=rows))
    refuse(ValueError, message.format("initial_dual"), solve(energy, x, initial_dual=rows))
    refuse(ValueError, message.format("dual"), lambda: ib.attach_gradient(energy, "tanh", x, rows))
    flat = ib.find_critical_point(Flattened(), "tanh", x.flatten(1))
    refuse(ValueError, message.format("initial"), solve(energy, x, initial=flat))


def test_attach_gradient_cleans_and_shapes() -> None:
    energy, x = Conditional(), conditions()
    found = ib.find_critical_point(energy, "tanh", x)
    x["image"][1] = torch.nan
    attached = ib.attach_gradient(energy, "tanh", x, found.dual)
    assert attached.shape == (BATCH, *SHAPE)
    assert attached.flatten(1).isnan().all(-1).tolist() == [False, True, False, False]
    attached[0].sum().backward()
    assert bool(energy.stiffness.grad.isfinite().all())


# Offsets of an operator -----------------------------------------------------------------------------------------------


def test_an_offset_may_take_a_pytree() -> None:
    class Offset(nn.Module):
        def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
            return x[0] + x[1][:, None]

    operator = ib.operators.Diagonal(torch.tensor([1.0, 2.0, 4.0], dtype=DOUBLE))
    energy = ib.QuadraticEnergy.from_operator(operator, Offset())
    x = (torch.randn(5, 3, dtype=DOUBLE), torch.randn(5, dtype=DOUBLE))
    found = ib.find_critical_point(energy, "tanh", x)
    expected = ((x[0] + x[1][:, None]) / torch.tensor([1.0, 2.0, 4.0], dtype=DOUBLE)).clamp(-1, 1)
    torch.testing.assert_close(found.value, expected)
    wrong = ib.QuadraticEnergy.from_operator(operator, nn.Linear(3, 2, dtype=DOUBLE))
    refuse(ValueError, r"the offset c\(x\) must have shape \(B, 3\), as wide as H, got \(5, 2\)", solve(wrong, x[0]))
