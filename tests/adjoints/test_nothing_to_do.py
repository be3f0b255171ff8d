"""Where there is nothing to differentiate: no sample, or nothing that requires a gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import implicit_bregman as ib

ADJOINTS = [
    "implicit",
    *(ib.adjoints.Implicit(method) for method in ("cg", "gmres", "dense")),
    "phantom",
    "one_step",
    "shine",
    ib.adjoints.Shine(refine=3),
    "unrolled",
    ib.adjoints.Unrolled(steps=3, checkpoint=True),
    ib.adjoints.Unrolled(steps=3, last=2),
]
D = 3


class Plain(ib.Energy):
    """¼z⁴ + ½z² − xz, without a parameter."""

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return (0.25 * z**4 + 0.5 * z**2 - x * z).sum(-1)


class Learned(Plain):
    """The same with a parameter."""

    def __init__(self) -> None:
        super().__init__(features=D, convex=True)
        self.a = nn.Parameter(torch.ones(D, dtype=torch.float64))

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return super().value(z, self.a * x)


def quadratic(weight: str) -> Callable[[], ib.Energy]:
    settings = {"rank": 2} if weight == "low_rank" else {}
    return lambda: ib.QuadraticEnergy(D, D, weight, dtype=torch.float64, **settings)


ENERGIES: dict[str, Callable[[], ib.Energy]] = {
    **{weight: quadratic(weight) for weight in ("convex", "symmetric", "general", "low_rank")},
    "plain": Plain,
    "declared convex": lambda: Plain(convex=True),
    "learned": Learned,
}


def fits(energy: ib.Energy, adjoint: str | ib.adjoints.Adjoint) -> bool:
    """Whether the adjoint has a meaning for the energy."""
    quadratic_energy = isinstance(energy, ib.QuadraticEnergy)
    low_rank = quadratic_energy and energy.low_rank
    method = getattr(adjoint, "method", None)
    if low_rank:
        return method not in ("cg", "gmres") and adjoint != "shine" and not isinstance(adjoint, ib.adjoints.Shine)
    return not (method == "cg" and not energy.symmetric) and not (method == "dense" and not quadratic_energy)


def cases() -> list[object]:
    return [
        pytest.param(name, adjoint, id=f"{name}-{adjoint}")
        for name, make in ENERGIES.items()
        for adjoint in ADJOINTS
        if fits(make(), adjoint)
    ]


@pytest.mark.parametrize("gamma", [0.0, 0.2])
@pytest.mark.parametrize(("name", "adjoint"), cases())
def test_an_empty_batch_has_an_empty_gradient(name: str, adjoint: str | ib.adjoints.Adjoint, gamma: float) -> None:
    energy = ENERGIES[name]()
    for shape in ((0,), (2, 0)):
        x = torch.zeros(*shape, D, dtype=torch.float64, requires_grad=True)
        found = ib.find_critical_point(energy, "tanh", x, regularization=gamma, adjoint=adjoint)
        assert found.value.shape == (*shape, D)
        found.value.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape
        assert all(p.grad is None or not bool(p.grad.any()) for p in energy.parameters())
        assert found.gradient_error is None or found.gradient_error.shape == shape


@pytest.mark.parametrize("gamma", [0.0, 0.2])
@pytest.mark.parametrize(("name", "adjoint"), cases())
def test_nothing_requires_a_gradient(name: str, adjoint: str | ib.adjoints.Adjoint, gamma: float) -> None:
    energy = ENERGIES[name]().requires_grad_(False)
    x = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64)

    def solve(x: Tensor) -> ib.Solution:
        return ib.find_critical_point(energy, "tanh", x, regularization=gamma, adjoint=adjoint)

    found = solve(x)
    assert not found.value.requires_grad
    assert found.objective is None or not found.objective.requires_grad
    x.requires_grad_()
    assert solve(x).value.requires_grad
    with torch.no_grad():
        assert not solve(x).value.requires_grad


def test_a_tensor_that_the_module_does_not_know_counts() -> None:
    """A closure, a list: seen by evaluating, not by asking the module."""
    hidden = torch.full((D,), 2.0, dtype=torch.float64, requires_grad=True)

    class Closure(ib.Energy):
        def value(self, z: Tensor, x: Tensor) -> Tensor:
            return (0.5 * hidden * z**2 - x * z).sum(-1)

    x = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64)
    value = ib.find_critical_point(Closure(convex=True), "tanh", x).value
    assert value.requires_grad
    (gradient,) = torch.autograd.grad(value.sum(), hidden)
    assert torch.allclose(gradient, -x[0] / 4)
    hidden = hidden.detach()
    assert not ib.find_critical_point(Closure(convex=True), "tanh", x).value.requires_grad


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_the_gradient_of_an_energy_requires_what_its_arguments_require(mode: type) -> None:
    x, z = (torch.randn(2, D, dtype=torch.float64) for _ in range(2))
    with mode():
        assert not Plain().gradient(z, x).requires_grad
        assert Plain().gradient(z.requires_grad_(), x).requires_grad == (mode is torch.enable_grad)
