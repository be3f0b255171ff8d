"""Energies add: the sum is what its formula says, whatever its parts are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import implicit_bregman as ib
from implicit_bregman.energy import base
from tests.problems import D, Network, inputs


class Quartic(ib.Energy):
    """Σ a z⁴/4, convex."""

    def __init__(self, features: object = None, convex: bool = True) -> None:
        super().__init__(features, convex=convex)
        self.a = nn.Parameter(torch.tensor(0.7, dtype=D))

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        event = len(self.features) if isinstance(self.features, tuple) else 1
        return 0.25 * self.a * z.pow(4).flatten(z.dim() - event).sum(-1)


def quadratic(d: int = 6, n: int = 4, weight: str = "convex") -> ib.QuadraticEnergy:
    return ib.QuadraticEnergy(d, n, weight, dtype=D)


class Whole(ib.Energy):
    """The same sum, written out."""

    def __init__(self, *parts: ib.Energy) -> None:
        super().__init__(parts[0].features, convex=True)
        self.parts = nn.ModuleList(parts)

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return sum(part.value(z, x) for part in self.parts)


def test_value_gradient_and_product() -> None:
    one, other = quadratic(), Quartic()
    total, x = one + other, inputs()
    z, v = torch.randn(2, 5, 6, dtype=D)
    torch.testing.assert_close(total(z, x), one.value(z, x) + other.value(z, x))
    torch.testing.assert_close(total.gradient(z, x), one.gradient(z, x) + other.gradient(z, x))
    torch.testing.assert_close(
        total.hessian_product(z, x, v), one.hessian_product(z, x, v) + other.hessian_product(z, x, v)
    )
    assert total.features == 6
    assert total.input_width == 4
    assert total.convex
    assert total.symmetric
    assert set(dict(total.named_parameters())) == {
        *(f"parts.0.{name}" for name, _ in one.named_parameters()),
        "parts.1.a",
    }


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("geometry", ["tanh", "softplus", "identity"])
def test_the_critical_point_and_its_gradients_are_those_of_the_formula(geometry: str, gamma: float) -> None:
    parts, x = (quadratic(), Quartic()), 3 * inputs()
    found, grads = [], []
    for energy in (parts[0] + parts[1], Whole(*parts)):
        at = x.clone().requires_grad_()
        solution = ib.find_critical_point(energy, geometry, at, regularization=gamma)
        assert bool(solution.converged.all())
        loss = solution.value.square().sum() + solution.objective.sum()
        found.append(solution)
        grads.append(torch.autograd.grad(loss, (at, *parts[0].parameters(), *parts[1].parameters())))
    torch.testing.assert_close(found[0].value, found[1].value, rtol=0, atol=1e-9)
    torch.testing.assert_close(found[0].objective, found[1].objective)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_second_derivatives_and_transforms() -> None:
    total, x = quadratic() + Quartic(), inputs(2).requires_grad_()

    def solve(x: Tensor) -> Tensor:
        return ib.find_critical_point(total, "tanh", x, regularization=0.5).value

    assert torch.autograd.gradgradcheck(solve, (x,))
    torch.testing.assert_close(torch.func.vmap(solve)(x.detach()), solve(x.detach()), rtol=0, atol=1e-9)


def test_every_adjoint_goes_with_a_sum() -> None:
    total, x = quadratic() + Quartic(), inputs().requires_grad_()
    wanted = torch.autograd.grad(ib.find_critical_point(total, "tanh", x, regularization=0.5).value.sum(), x)[0]
    for adjoint in (ib.adjoints.Unrolled(steps=60, checkpoint=True), ib.adjoints.Phantom(60), ib.adjoints.Shine(40)):
        value = ib.find_critical_point(total, "tanh", x, regularization=0.5, adjoint=adjoint).value
        torch.testing.assert_close(torch.autograd.grad(value.sum(), x)[0], wanted, rtol=1e-6, atol=1e-8)


def test_quadratic_energies_are_one() -> None:
    one, other, x = quadratic(), quadratic(weight="symmetric"), inputs()
    bound = (one + other).bind(x)
    torch.testing.assert_close(bound.factored.operator.matrix, -(one.weight + other.weight))
    twice = ib.find_critical_point(one + one, "tanh", x)
    same = ib.QuadraticEnergy.from_matrices(2 * one.weight, 2 * one.input_weight, 2 * one.bias)
    torch.testing.assert_close(twice.value, ib.find_critical_point(same, "tanh", x).value, rtol=0, atol=1e-10)
    assert bool(twice.exact.all())


def test_operators_add_without_a_matrix() -> None:
    a, b = torch.eye(3, dtype=D) + 0.1, 2 * torch.eye(4, dtype=D)
    kronecker = ib.QuadraticEnergy.from_operator(ib.operators.Kronecker(a, b))
    diagonal = ib.QuadraticEnergy.from_operator(ib.operators.Diagonal(torch.linspace(1, 2, 12, dtype=D)))
    x = torch.randn(4, 12, dtype=D)
    found = ib.find_critical_point(kronecker + diagonal + Quartic(), "tanh", x)
    assert bool(found.converged.all())
    matrix = torch.kron(a, b) + torch.diag(torch.linspace(1, 2, 12, dtype=D))
    z = found.value.detach()
    gradient = z @ matrix - 2 * x + 0.7 * z.pow(3)
    assert float(((z - gradient).clamp(-1, 1) - z).abs().max()) <= 1e-9


def test_shapes_of_states() -> None:
    quadratic = ib.QuadraticEnergy.from_operator(ib.operators.Diagonal(torch.ones(6, dtype=D)), nn.Flatten())
    total, x = quadratic + Quartic((2, 3)), torch.randn(4, 2, 3, dtype=D)
    found = ib.find_critical_point(total, "identity", x)
    assert found.value.shape == (4, 2, 3)
    z = found.value.detach()
    torch.testing.assert_close(z + 0.7 * z.pow(3), x, rtol=0, atol=1e-9)
    assert total.value(z, x).shape == (4,)
    torch.testing.assert_close(total.gradient(z, x), torch.zeros_like(z), rtol=0, atol=1e-9)


def test_a_field_may_be_a_part() -> None:
    field, x = Network(), inputs()
    total = quadratic() + field
    found = ib.find_critical_point(total, "tanh", x, regularization=1.0)
    assert bool(found.converged.all())
    assert found.objective is None
    force = -total.gradient(found.value, x)
    torch.testing.assert_close(found.value, torch.tanh(force), rtol=0, atol=1e-9)


def test_the_resolvent_of_the_quadratic_part_saves_products() -> None:
    d = 40
    spread = torch.logspace(0, 3, d, dtype=D)
    turn = torch.linalg.qr(torch.randn(d, d, dtype=D))[0]
    stiff = ib.QuadraticEnergy.from_matrices(-(turn * spread) @ turn.mT, convex=True)
    x = torch.randn(4, d, dtype=D).requires_grad_()
    products = []
    for energy in (stiff + Quartic(), Whole(stiff, Quartic())):
        found = ib.find_critical_point(energy, "identity", x)
        assert bool(found.converged.all())
        found.value.sum().backward()
        products.append(int(found.adjoint.iterations.max()))
    assert products[0] < 0.3 * products[1]


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_sum_takes_no_more_products_than_one_value(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where many coordinates are close to a bound, and the inverse of all is no good preconditioner."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(100, 100, dtype=D))[0]
    matrix = (basis * torch.logspace(4, 0, 100, dtype=D)) @ basis.mT
    part, x = ib.QuadraticEnergy.from_matrices(-matrix, torch.eye(100, dtype=D)), scale * torch.randn(4, 100, dtype=D)
    calls, real = [0], base._Hessian.__call__

    def counted(self: base._Hessian, v: Tensor, adjoint: bool = False) -> Tensor:
        calls[0] += 1
        return real(self, v, adjoint)

    monkeypatch.setattr(base._Hessian, "__call__", counted)
    taken = []
    for energy in (part + Quartic(), Whole(part, Quartic())):
        calls[0] = 0
        found = ib.find_critical_point(energy, "tanh", x, regularization=1e-3)
        assert found.converged.all()
        taken.append((calls[0], found.value))
    torch.testing.assert_close(taken[0][1], taken[1][1], rtol=0, atol=1e-9)
    assert 0 < taken[0][0] <= (0.2 if scale == 1 else 1.1) * taken[1][0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="must have the same features and take the same x, got features 6, 5"):
        quadratic() + quadratic(5)
    with pytest.raises(ValueError, match="widths of x 4, 3"):
        quadratic() + quadratic(n=3)
    with pytest.raises(ValueError, match='an energy with weight="low_rank" stands for a projection'):
        quadratic() + ib.QuadraticEnergy(6, 4, "low_rank", rank=2)
    with pytest.raises(TypeError):
        quadratic() + 1
