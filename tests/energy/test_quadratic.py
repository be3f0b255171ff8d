"""The quadratic energy: what W is, and that value, gradient and Hessian belong together."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from implicit_bregman import QuadraticEnergy

KINDS = ("convex", "symmetric", "monotone", "general")
WITH_VALUE = ("convex", "symmetric")


def random_energy(kind: str, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> QuadraticEnergy:
    """An energy of width 5 on 3 inputs with parameters far from their initial ones."""
    energy = QuadraticEnergy(5, in_features=3, weight=kind, dtype=dtype)
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return energy


def random_matrices(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """A symmetric W, (4, 4), U, (4, 3), and b, (4,)."""
    W = torch.randn(4, 4, generator=generator, dtype=dtype)
    U, b = torch.randn(4, 3, generator=generator, dtype=dtype), torch.randn(4, generator=generator, dtype=dtype)
    return W + W.mT, U, b


# What W is ----------------------------------------------------------------------------------------------------------


@given(
    d=st.integers(1, 12),
    seed=st.integers(0, 2**16),
    log_size=st.floats(-6, 3),
    margin=st.floats(1e-3, 10.0),
)
def test_convex_weight_is_negative_definite_whatever_its_parameters(
    d: int, seed: int, log_size: float, margin: float
) -> None:
    energy = QuadraticEnergy(d, weight="convex", margin=margin, dtype=torch.float64)
    draw = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        energy.weight_map.factor.copy_(10**log_size * draw)
    weight = energy.weight.detach()
    eigenvalues = torch.linalg.eigvalsh(-weight)
    rounding = 1e-14 * d * float(eigenvalues[-1])
    assert float(eigenvalues[0]) >= margin - rounding
    assert float((weight - weight.mT).abs().max()) <= rounding


def test_convex_weight_stays_negative_definite_in_training(generator: torch.Generator) -> None:
    energy = QuadraticEnergy(6, weight="convex", margin=0.05)
    optimizer = torch.optim.SGD(energy.parameters(), lr=1.0)
    for _ in range(20):
        optimizer.zero_grad()
        (-energy.weight.trace()).backward()  # pushes -W towards 0
        optimizer.step()
    assert float(torch.linalg.eigvalsh(-energy.weight.detach())[0]) >= 0.05 * (1 - 1e-5)


@pytest.mark.parametrize("d", [1, 7, 64])
@pytest.mark.parametrize("kind", ["convex", "symmetric", "general"])
def test_fresh_weight_is_monotone_and_within_reach_of_the_unit_step(kind: str, d: int) -> None:
    weight = QuadraticEnergy(d, weight=kind).weight.detach()
    eigenvalues = torch.linalg.eigvalsh(-0.5 * (weight + weight.mT))
    assert float(eigenvalues[0]) > 0
    assert float(eigenvalues[-1]) < 1


def test_symmetric_weight_is_symmetric_and_may_be_indefinite(generator: torch.Generator) -> None:
    energy = random_energy("symmetric", generator)
    weight = energy.weight.detach()
    eigenvalues = torch.linalg.eigvalsh(weight)
    assert torch.equal(weight, weight.mT)
    assert eigenvalues[0] < 0 < eigenvalues[-1]
    assert energy.symmetric


def test_general_weight_is_the_parameter_and_has_no_value(generator: torch.Generator) -> None:
    energy = random_energy("general", generator)
    assert torch.equal(energy.weight, energy.weight_map.entries)
    assert not energy.symmetric
    z, x = torch.ones(2, 5, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"non-symmetric weight has no value.*weight=\"symmetric\".*gradient"):
        energy.value(z, x)
    with pytest.raises(TypeError, match="no value"):
        energy(z, x)


# Value, gradient, Hessian -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_VALUE)
def test_value_is_the_formula(kind: str, generator: torch.Generator) -> None:
    energy = random_energy(kind, generator)
    z, x = (torch.randn(4, n, generator=generator, dtype=torch.float64) for n in (5, 3))
    c = x @ energy.input_weight.T + energy.bias
    assert torch.allclose(energy.linear(x), c)
    expected = [-0.5 * z[i] @ energy.weight @ z[i] - c[i] @ z[i] for i in range(4)]
    assert torch.allclose(energy.value(z, x), torch.stack(expected), rtol=1e-13)
    assert torch.equal(energy(z, x), energy.value(z, x))


@pytest.mark.parametrize("kind", WITH_VALUE)
def test_gradient_is_the_derivative_of_the_value(kind: str, generator: torch.Generator) -> None:
    energy = random_energy(kind, generator)
    z, x = (torch.randn(4, n, generator=generator, dtype=torch.float64) for n in (5, 3))
    z.requires_grad_()
    (by_autograd,) = torch.autograd.grad(energy.value(z, x).sum(), z)
    assert torch.allclose(energy.gradient(z, x), by_autograd, rtol=1e-13)
    assert torch.autograd.gradcheck(lambda t: energy.value(t, x), z)


def test_general_gradient_is_the_field_with_w_and_not_its_transpose(generator: torch.Generator) -> None:
    energy = random_energy("general", generator)
    z, x = (torch.randn(4, n, generator=generator, dtype=torch.float64) for n in (5, 3))
    expected = torch.stack([-(energy.weight @ z[i] + energy.linear(x)[i]) for i in range(4)])
    assert torch.allclose(energy.gradient(z, x), expected, rtol=1e-13)
    v = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    assert torch.allclose(energy.hessian_product(z, x, v), -torch.stack([energy.weight @ v[i] for i in range(4)]))


@pytest.mark.parametrize("kind", KINDS)
def test_hessian_product_is_the_derivative_of_the_gradient(kind: str, generator: torch.Generator) -> None:
    energy = random_energy(kind, generator)
    z, v = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    _, product = torch.autograd.functional.jvp(lambda t: energy.gradient(t, x), z, v)
    assert torch.allclose(energy.hessian_product(z, x, v), product, rtol=1e-12)
    differences = (energy.gradient(z + 1e-4 * v, x) - energy.gradient(z - 1e-4 * v, x)) / 2e-4
    assert torch.allclose(energy.hessian_product(z, x, v), differences, rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_carries_derivatives_to_every_parameter_and_input(kind: str, generator: torch.Generator) -> None:
    energy = random_energy(kind, generator)
    z, x = (torch.randn(2, n, generator=generator, dtype=torch.float64, requires_grad=True) for n in (5, 3))
    names = dict(energy.named_parameters())

    def field(z: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
        replaced = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(_Gradient(energy), {f"energy.{k}": v for k, v in replaced.items()}, (z, x))

    assert torch.autograd.gradcheck(field, (z, x, *names.values()))


class _Gradient(nn.Module):
    def __init__(self, energy: QuadraticEnergy) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.energy.gradient(z, x)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=["single", "batch", "leading"])
def test_any_leading_shape(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> None:
    energy = random_energy("convex", generator, dtype)
    z = torch.randn(*shape, 5, generator=generator, dtype=dtype)
    x = torch.randn(*shape, 3, generator=generator, dtype=dtype)
    assert energy.value(z, x).shape == shape
    assert energy.gradient(z, x).shape == (*shape, 5)
    assert energy.hessian_product(z, x, z).shape == (*shape, 5)
    assert energy.value(z, x).dtype == dtype


def test_without_bias_and_with_equal_widths() -> None:
    energy = QuadraticEnergy(4, bias=False)
    x = torch.ones(1, 4)
    assert energy.in_features == 4
    assert energy.bias is None
    assert torch.equal(energy.linear(x), x @ energy.input_weight.T)
    assert "bias=False" in repr(energy)


# Curvature ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_VALUE)
def test_curvature_range_holds_the_eigenvalues_of_minus_w(kind: str, generator: torch.Generator) -> None:
    energy = random_energy(kind, generator)
    eigenvalues = torch.linalg.eigvalsh(-energy.weight.detach())
    least, largest = energy.curvature_range()
    assert torch.allclose(least, eigenvalues[0])
    assert torch.allclose(largest, eigenvalues[-1].clamp_min(0))
    assert torch.equal(energy.curvature_bound(), largest)
    assert not largest.requires_grad


def test_curvature_of_a_monotone_general_weight_is_the_inverse_of_its_cocoercivity(generator: torch.Generator) -> None:
    skew = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    energy = QuadraticEnergy.from_matrices(-2 * torch.eye(5, dtype=torch.float64) + skew - skew.mT)
    bound = float(energy.curvature_bound())
    v = torch.randn(1000, 5, generator=generator, dtype=torch.float64)
    image = -(v @ energy.weight.mT)
    cocoercivity = (image * v).sum(-1) / (image * image).sum(-1)
    assert bound >= float((1 / cocoercivity).max()) * (1 - 1e-12)
    assert bound == pytest.approx(1 / float(torch.linalg.eigvalsh(_sym(torch.linalg.inv(-energy.weight)))[0]))


def _sym(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_training_has_broken_is_named(bad: float) -> None:
    energy = QuadraticEnergy(3, weight="symmetric")
    with torch.no_grad():
        energy.weight_map.entries[0, 0] = bad
    with pytest.raises(ValueError, match=r"weight of the energy .*(finite|infinite)"):
        energy.curvature_bound()


# Given matrices -----------------------------------------------------------------------------------------------------


def test_gradients_flow_to_the_matrices_given(generator: torch.Generator) -> None:
    W, U, b = (t.requires_grad_() for t in random_matrices(generator))
    energy = QuadraticEnergy.from_matrices(W, U, b)
    z, x = (torch.randn(2, n, generator=generator, dtype=torch.float64) for n in (4, 3))
    got = torch.autograd.grad(energy.value(z, x).sum(), (W, U, b))
    outer = torch.einsum("bi,bj->ij", z, z)
    assert torch.allclose(got[0], -0.5 * outer)
    assert torch.allclose(got[1], -torch.einsum("bi,bj->ij", z, x))
    assert torch.allclose(got[2], -z.sum(0))


def test_gradients_flow_through_matrices_that_were_computed(generator: torch.Generator) -> None:
    factor = torch.randn(4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    energy = QuadraticEnergy.from_matrices(-(factor @ factor.mT))
    z = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    (got,) = torch.autograd.grad(energy.value(z, z).sum(), factor)
    assert torch.allclose(got, torch.einsum("bi,bj->ij", z, z) @ factor)


def test_given_parameters_are_parameters_and_tensors_are_not(generator: torch.Generator) -> None:
    W, U, b = random_matrices(generator)
    energy = QuadraticEnergy.from_matrices(nn.Parameter(W), U, nn.Parameter(b))
    assert {name for name, _ in energy.named_parameters()} == {"weight_map.matrix", "bias"}
    assert energy.weight is energy.weight_map.matrix
    assert energy.input_weight is U


def test_without_input_matrix_x_is_added_as_it_is(generator: torch.Generator) -> None:
    W, _, b = random_matrices(generator)
    x = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    assert torch.equal(QuadraticEnergy.from_matrices(W).linear(x), x)
    assert torch.equal(QuadraticEnergy.from_matrices(W, b=b).linear(x), x + b)
    assert QuadraticEnergy.from_matrices(W).in_features == 4


def test_a_matrix_that_is_not_symmetric_makes_the_energy_free(generator: torch.Generator, dtype: torch.dtype) -> None:
    W = random_matrices(generator, dtype)[0]
    assert QuadraticEnergy.from_matrices(W).symmetric
    rounded = W.clone()
    rounded[0, 1] *= 1 + torch.finfo(dtype).eps
    assert QuadraticEnergy.from_matrices(rounded).symmetric, "an asymmetry of rounding size is none"
    rounded[0, 1] += 1e-3
    energy = QuadraticEnergy.from_matrices(rounded)
    assert not energy.symmetric
    with pytest.raises(TypeError, match="no value"):
        energy.value(W, W)


@pytest.mark.parametrize(
    ("matrices", "error", "message"),
    [
        ((torch.ones(2, 3),), ValueError, r"W must be a square matrix.*\(2, 3\)"),
        ((torch.ones(0, 0),), ValueError, "W must be a square matrix"),
        ((torch.ones(2),), ValueError, "W must be a square matrix"),
        ((torch.eye(2, dtype=torch.int64),), TypeError, r"W must be a floating-point tensor.*int64.*\.float\(\)"),
        ((torch.eye(2), torch.ones(3, 2)), ValueError, r"U must have shape \(2, n\).*\(3, 2\)"),
        ((torch.eye(2), torch.ones(2)), ValueError, r"U must have shape \(2, n\)"),
        ((torch.eye(2), None, torch.ones(3)), ValueError, r"b must have shape \(2,\).*\(3,\)"),
        ((torch.eye(2), torch.eye(2).double()), ValueError, "U is torch.float64.*W is torch.float32"),
        ((torch.eye(2), None, torch.ones(2).double()), ValueError, "b is torch.float64"),
        ((torch.eye(2), None, torch.ones(2, dtype=torch.int32)), TypeError, "b must be a floating-point"),
        ((torch.full((2, 2), float("nan")),), ValueError, "W has NaN or infinite"),
        ((torch.eye(2), None, torch.full((2,), float("inf"))), ValueError, "b has NaN or infinite"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(
    matrices: tuple[Tensor, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        QuadraticEnergy.from_matrices(*matrices)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 0}, "features must be at least 1, got 0"),
        ({"features": 3, "in_features": 0}, "in_features must be at least 1, got 0"),
        ({"features": 3, "weight": "concave"}, "weight must be one of convex, symmetric, monotone, general.*'concave'"),
        ({"features": 3, "margin": 0.0}, "margin must be positive, got 0.0"),
        ({"features": 3, "margin": float("nan")}, "margin must be positive"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuadraticEnergy(**arguments)


# As a module --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip(kind: str, generator: torch.Generator) -> None:
    energy, other = random_energy(kind, generator), random_energy(kind, generator)
    assert not torch.equal(energy.weight, other.weight)
    missing, unexpected = other.load_state_dict(energy.state_dict())
    assert (missing, unexpected) == ([], [])
    x = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    assert torch.equal(other.weight, energy.weight)
    assert torch.equal(other.linear(x), energy.linear(x))


def test_state_dict_of_given_matrices(generator: torch.Generator) -> None:
    energy = QuadraticEnergy.from_matrices(*random_matrices(generator))
    other = QuadraticEnergy.from_matrices(*random_matrices(generator))
    other.load_state_dict(energy.state_dict())
    assert torch.equal(other.weight, energy.weight)
    assert torch.equal(other.input_weight, energy.input_weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_deep_copy_is_independent(kind: str, generator: torch.Generator) -> None:
    energy = random_energy(kind, generator)
    before = energy.weight.detach().clone()
    other = copy.deepcopy(energy)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    assert torch.equal(energy.weight, before)
    assert not torch.equal(other.weight, before)


def test_a_deep_copy_of_given_matrices_is_independent(generator: torch.Generator) -> None:
    W, U, b = random_matrices(generator)
    energy = QuadraticEnergy.from_matrices(nn.Parameter(W.clone()), U, b)
    other = copy.deepcopy(energy)
    with torch.no_grad():
        other.weight_map.matrix.mul_(2)
        other.bias.zero_()
    assert torch.equal(energy.weight, W)
    assert torch.equal(energy.bias, b)
    assert other.symmetric


@pytest.mark.parametrize("kind", KINDS)
def test_moving_to_another_precision(kind: str) -> None:
    energy = QuadraticEnergy(3, weight=kind).double()
    z = torch.ones(1, 3, dtype=torch.float64)
    assert energy.weight.dtype == torch.float64
    assert energy.gradient(z, z).dtype == torch.float64


def test_given_matrices_move_to_another_precision_with_their_gradient() -> None:
    W = (-torch.eye(3)).requires_grad_()
    energy = QuadraticEnergy.from_matrices(W).double()
    z = torch.ones(1, 3, dtype=torch.float64)
    (got,) = torch.autograd.grad(energy.value(z, z).sum(), W)
    assert torch.equal(got, torch.full((3, 3), -0.5))
