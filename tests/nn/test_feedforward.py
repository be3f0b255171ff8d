"""The feed-forward layers of Sec. 6.1: their formulas, their domain, their gradients."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

import implicit_bregman as ib
from implicit_bregman.legendre import separable_geometries

BOX = ib.geometry("tanh").to_box(-2.0, 3.0)
GEOMETRIES = [*separable_geometries(), BOX]
KINDS = {"standard": ib.StandardLinear, "euclidean": ib.EuclideanLinear, "bregman": ib.BregmanLinear}
WIDTHS = [(4, 4), (4, 6), (6, 4), (5, 2), (2, 5), (1, 3), (3, 1), (1, 1)]


def make(kind: str, n: int, d: int, geometry: object = "tanh", **settings: object) -> ib.StandardLinear:
    """A float64 layer with a bias that is not 0."""
    layer = KINDS[kind](n, d, geometry, dtype=torch.float64, **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.copy_(torch.linspace(-0.3, 0.4, d))
    return layer


def inside(geometry: object, *shape: int, scale: float = 1.0) -> Tensor:
    phi = ib.geometry(geometry)  # type: ignore[arg-type]
    return phi.activation(scale * torch.randn(*shape, dtype=torch.float64))


# Formulas -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_formulas_at_equal_widths(geometry: object) -> None:
    z = inside(geometry, 3, 4)
    for kind in KINDS:
        layer = make(kind, 4, 4, geometry)
        phi = layer.geometry
        affine = z @ layer.weight.T + layer.bias
        extra = {"standard": 0.0, "euclidean": z, "bregman": phi.inverse_activation(z)}[kind]
        torch.testing.assert_close(layer(z), phi.activation(phi.project_dual(extra + affine)))


@pytest.mark.parametrize(("n", "d"), WIDTHS)
@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "softplus", BOX], ids=str)
def test_different_widths_go_through_averages(n: int, d: int, geometry: object) -> None:
    z = inside(geometry, 5, n)
    for kind in ("euclidean", "bregman"):
        layer = make(kind, n, d, geometry)
        offset = layer.offset(z)
        assert offset.shape == (5, d)
        if n == d:
            assert torch.equal(offset, z)
        else:
            rows = layer.averages
            assert rows is not None
            assert rows.shape == (d, n)
            assert bool((rows >= 0).all())
            torch.testing.assert_close(rows.sum(-1), torch.ones(d, dtype=torch.float64), rtol=0, atol=1e-15)
            # Each input counts equally overall.
            torch.testing.assert_close(rows.sum(0), torch.full((n,), d / n, dtype=torch.float64))
            torch.testing.assert_close(offset, z @ rows.T)
        # A row-stochastic map keeps a point of C in C, even from the corners of C.
        lo, hi = layer.geometry.bounds(torch.float64)
        corners = torch.where(torch.rand(50, n) < 0.5, max(lo, -9.0), min(hi, 9.0)).double()
        moved = layer.offset(corners)
        torch.testing.assert_close(moved, moved.clamp(lo, hi), rtol=4e-16, atol=0)
        assert bool(layer(corners).isfinite().all())
        phi = layer.geometry
        extra = offset if kind == "euclidean" else phi.inverse_activation(offset)
        torch.testing.assert_close(layer(z), phi.activation(extra + z @ layer.weight.T + layer.bias))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_at_zero_weights_a_bregman_layer_is_the_identity(geometry: object) -> None:
    """The paper's eq. (21). The others are not: they are ρ(0) and ρ(z)."""
    z = inside(geometry, 3, 4, scale=2.0)
    layers = {kind: make(kind, 4, 4, geometry) for kind in KINDS}
    with torch.no_grad():
        for layer in layers.values():
            layer.weight.zero_()
            layer.bias.zero_()
    torch.testing.assert_close(layers["bregman"](z), z, rtol=1e-12, atol=1e-12)
    phi = layers["standard"].geometry
    torch.testing.assert_close(layers["standard"](z), phi.activation(torch.zeros_like(z)))
    torch.testing.assert_close(layers["euclidean"](z), phi.activation(phi.project_dual(z)))
    network = ib.FeedForward([4, 4, 4, 4], geometry, dtype=torch.float64)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    torch.testing.assert_close(network(z), z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "softplus", "sin"])
def test_bregman_layers_with_tied_weights_are_mm(geometry: str) -> None:
    energy = ib.QuadraticEnergy(4, dtype=torch.float64)
    z = inside(geometry, 3, 4, scale=0.3)
    layer = make("bregman", 4, 4, geometry)
    with torch.no_grad():
        layer.weight.copy_(energy.weight)
    network = ib.FeedForward([4, 4, 4, 4], geometry, dtype=torch.float64)
    for number in range(3):
        network[number].load_state_dict(layer.state_dict())
    x = layer.bias.detach().expand(3, 4)
    given = ib.QuadraticEnergy.from_matrices(energy.weight.detach())
    steps = ib.find_critical_point(given, geometry, x, z, adjoint=ib.adjoints.Unrolled(steps=3))
    assert float(steps.step[0]) == 1.0
    torch.testing.assert_close(network(z), steps.value)


# Domain -------------------------------------------------------------------------------------------------------------


BOUNDS = [(name, end) for name in ("isru", "sigmoid", "tanh", "arctan", "sin", BOX) for end in (0, 1)]
BOUNDS += [(name, 0) for name in ("softplus", "exp", "bent")]


@pytest.mark.parametrize(("geometry", "end"), BOUNDS, ids=str)
@pytest.mark.parametrize(("n", "d"), [(3, 3), (3, 2)])
def test_saturated_inputs_stay_in_the_domain_with_finite_gradients(
    geometry: object, end: int, n: int, d: int, dtype: torch.dtype
) -> None:
    layer = make("bregman", n, d, geometry).to(dtype)
    lo, hi = layer.geometry.bounds(dtype)
    bound = (lo, hi)[end]
    z = torch.full((2, n), bound, dtype=dtype)
    z[1] = layer.geometry.activation(torch.zeros((), dtype=dtype))
    z.requires_grad_()
    value = layer(z)
    assert bool(((value >= lo) & (value <= hi)).all())
    gradients = torch.autograd.grad(value.sum(), (z, *layer.parameters()))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    if not layer.geometry.is_legendre:
        return
    # The dual at the bound is large and finite: the layer leaves such a point where it is.
    torch.testing.assert_close(value[0], torch.full((d,), bound, dtype=dtype), rtol=0, atol=1e-3)


@pytest.mark.parametrize("geometry", ["sigmoid", "tanh", "softplus", BOX], ids=str)
def test_points_outside_the_domain_are_refused(geometry: object) -> None:
    layer = make("bregman", 3, 3, geometry)
    lo = layer.geometry.domain[0]
    z = inside(geometry, 2, 3)
    z[1, 2] = lo - 0.5
    message = f"z must lie in the domain .* of {layer.geometry.name}, got entries from {lo - 0.5:g} to .*: map it there"
    with pytest.raises(ValueError, match=message):
        layer(z)
    with pytest.raises(ValueError, match="z must lie in the domain"):
        ib.FeedForward([3, 3], geometry, dtype=torch.float64)(z)  # type: ignore[arg-type]
    for kind in ("standard", "euclidean"):
        assert bool(make(kind, 3, 3, geometry)(z).isfinite().all())


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_nan_stays_in_its_row(kind: str) -> None:
    layer = make(kind, 3, 3)
    z = inside("tanh", 3, 3)
    expected = layer(z)
    z[1, 0] = math.nan
    value = layer(z)
    assert bool(value[1].isnan().any())
    torch.testing.assert_close(value[[0, 2]], expected[[0, 2]])


# Gradients ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(("n", "d"), [(3, 3), (3, 2), (2, 4)])
@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "softplus", "arctan", "sin", "exp"])
def test_gradients_of_a_layer(kind: str, n: int, d: int, geometry: str) -> None:
    layer = make(kind, n, d, geometry)
    names = [name for name, _ in layer.named_parameters()]

    def value(z: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (z,))

    z = inside(geometry, 2, n, scale=0.3).requires_grad_()
    assert torch.autograd.gradcheck(value, (z, *layer.parameters()))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("widths", [[3, 3, 3], [3, 3, 2, 2], [2, 4, 4]], ids=str)
def test_a_network_is_its_layers_composed(kind: str, widths: list[int]) -> None:
    network = ib.FeedForward(widths, "sigmoid", kind, dtype=torch.float64)
    z = inside("sigmoid", 4, widths[0]).requires_grad_()
    composed, outputs = z, network.layer_outputs(z)
    for layer, output in zip(network, outputs, strict=True):
        composed = layer(composed)
        torch.testing.assert_close(output, composed)
    torch.testing.assert_close(network(z), composed)
    leaves = (z, *network.parameters())
    found = torch.autograd.grad(network(z).square().sum(), leaves)
    expected = torch.autograd.grad(composed.square().sum(), leaves)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_dual_is_carried_between_equal_widths(dtype: torch.dtype) -> None:
    """ρ⁻¹ of a saturated z has lost its digits; the network never takes it there and stays exact."""
    network = ib.FeedForward([2, 2, 2], "tanh", dtype=dtype)
    with torch.no_grad():
        for layer, push in zip(network, (30.0, -30.0), strict=True):
            layer.weight.zero_()
            layer.bias.fill_(push)
    z = torch.tensor([[0.3, -0.5]], dtype=dtype, requires_grad=True)
    value = network(z)
    torch.testing.assert_close(value, z, rtol=0, atol=60 * torch.finfo(dtype).eps)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    torch.testing.assert_close(gradient, torch.ones_like(z), rtol=1e-4, atol=0)
    layered = network[1](network[0](z))
    assert bool(((layered - z).detach().abs() > 0.1).any())


@pytest.mark.parametrize("kind", list(KINDS))
def test_training_reduces_the_loss(kind: str, generator: torch.Generator) -> None:
    x = torch.randn(64, 2, generator=generator)
    target = (x[:, :1] * x[:, 1:]).tanh()
    lift, head = nn.Linear(2, 8), nn.Linear(8, 1)
    network = ib.FeedForward([8, 8, 8], "tanh", kind)
    parameters = [*lift.parameters(), *network.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = (head(network(torch.tanh(lift(x)))) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


# As torch modules ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("shape", [(), (1,), (6,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("d", [4, 3])
def test_leading_shapes_as_in_linear(kind: str, shape: tuple[int, ...], d: int) -> None:
    layer = make(kind, 4, d)
    z = inside("tanh", *shape, 4).requires_grad_()
    value = layer(z)
    assert value.shape == (*shape, d)
    value.sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(layer(z.reshape(-1, 4)).reshape(*shape, d), value)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("d", [4, 3])
def test_copies_state_and_dtypes(kind: str, d: int) -> None:
    layer = make(kind, 4, d, BOX)
    z = inside(BOX, 5, 4)
    expected = layer(z)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(z), expected)
        assert other.geometry == layer.geometry
    assert set(layer.state_dict()) == {"weight", "bias"}
    fresh = make(kind, 4, d, BOX)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(z), expected)
    single = copy.deepcopy(layer).float()
    torch.testing.assert_close(single(z.float()).double(), expected, rtol=1e-4, atol=1e-5)
    assert single(z.float()).dtype == torch.float32


def test_networks_can_be_stored() -> None:
    network = ib.FeedForward([4, 4, 3], "sigmoid", "bregman", dtype=torch.float64)
    z = inside("sigmoid", 5, 4)
    stream = io.BytesIO()
    torch.save(network, stream)
    stream.seek(0)
    for other in (copy.deepcopy(network), torch.load(stream, weights_only=False)):
        assert torch.equal(other(z), network(z))
    other = ib.FeedForward([4, 4, 3], "sigmoid", "bregman", dtype=torch.float64)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(z), network(z))


@pytest.mark.parametrize("kind", list(KINDS))
def test_without_bias(kind: str) -> None:
    layer = make(kind, 4, 3, bias=False)
    assert layer.bias is None
    assert layer(inside("tanh", 2, 4)).shape == (2, 3)
    assert "bias=False" in repr(layer)


def test_repr() -> None:
    text = repr(ib.FeedForward([4, 5, 5], "sigmoid", "euclidean"))
    assert "EuclideanLinear(in_features=4, out_features=5, bias=True, geometry=Sigmoid())" in text


def test_device_is_followed(device: torch.device) -> None:
    for kind in KINDS:
        network = ib.FeedForward([4, 4, 3], "sigmoid", kind, device=device)
        z = torch.rand(5, 4).to(device)
        assert network(z).device.type == device.type
        assert ib.FeedForward([4, 4, 3], "sigmoid", kind).to(device)(z).device.type == device.type


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ib.BregmanLinear(0, 3), ValueError, "in_features must be at least 1, got 0"),
        (lambda: ib.StandardLinear(3, -1), ValueError, "out_features must be at least 1, got -1"),
        (lambda: ib.EuclideanLinear(3, 3, "relu"), ValueError, "unknown geometry 'relu'; known: isru"),
        (lambda: ib.FeedForward([3]), ValueError, r"widths must name the input and at least one layer, got \[3\]"),
        (lambda: ib.FeedForward([3, 3], kind="mirror"), ValueError, "kind must be one of standard, euclidean, bregman"),
        (lambda: ib.FeedForward([3, 0]), ValueError, "out_features must be at least 1, got 0"),
        (lambda: ib.BregmanLinear(3, 3)(torch.zeros(2, 4)), ValueError, r"must have 3 features .* shape \(2, 4\)"),
        (lambda: ib.StandardLinear(3, 3)(torch.zeros(2, 4)), ValueError, r"must have 3 features .* shape \(2, 4\)"),
        (lambda: ib.FeedForward([3, 3])(torch.zeros(2, 4)), ValueError, r"must have 3 features .* shape \(2, 4\)"),
        (lambda: ib.EuclideanLinear(3, 3)(torch.zeros(2, 3).long()), TypeError, r"floating-point .* torch.int64: call"),
        (lambda: ib.BregmanLinear(3, 3)(torch.zeros(())), ValueError, "0-d"),
    ],
)
def test_bad_input_is_refused(call: object, error: type[Exception], message: str) -> None:
    assert callable(call)
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
