"""Energies that a user writes as `value` alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import implicit_bregman as ib
from tests.adjoints.helpers import Learned, directional_errors, mm_by_hand, relative_errors

FEATURES, INPUTS, BATCH = 4, 3, 3


class Convex(ib.Energy):
    """½‖z − Ux‖² + Σ softplus(Az + b): strongly convex, its Hessian depends on z."""

    def __init__(self, bounded: bool) -> None:
        super().__init__(FEATURES, convex=True)
        self.mix = nn.Linear(FEATURES, FEATURES, dtype=torch.float64)
        self.inject = nn.Linear(INPUTS, FEATURES, bias=False, dtype=torch.float64)
        self.bounded = bounded

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return nn.functional.softplus(self.mix(z)).sum(-1) + 0.5 * (z - self.inject(x)).square().sum(-1)

    def curvature_bound(self) -> Tensor | None:
        # softplus'' ≤ 1/4
        return 1 + 0.25 * torch.linalg.matrix_norm(self.mix.weight, 2).square() if self.bounded else None


class Wavy(ib.Energy):
    """½‖z‖² − ⟨Ux, z⟩ + 2 Σ cos(Az): not convex, several critical points."""

    def __init__(self) -> None:
        super().__init__(FEATURES)
        self.mix = nn.Linear(FEATURES, FEATURES, bias=False, dtype=torch.float64)
        self.inject = nn.Linear(INPUTS, FEATURES, dtype=torch.float64)

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.5 * z.square().sum(-1) - (self.inject(x) * z).sum(-1) + 2 * self.mix(z).cos().sum(-1)


def learned_energy(name: str, geometry: str, regularization: float, scale: float = 1.0) -> Learned:
    torch.manual_seed(4)
    energy = Wavy() if name == "wavy" else Convex(bounded=name == "bounded")
    phi = ib.geometry(geometry)
    x = scale * torch.randn(BATCH, INPUTS, dtype=torch.float64)
    initial = phi.activation(0.3 * torch.randn(BATCH, FEATURES, dtype=torch.float64))
    direction = torch.randn(BATCH, FEATURES, dtype=torch.float64)
    leaves = (x.requires_grad_(), initial.requires_grad_())
    return Learned(energy, phi, regularization, *leaves, direction)


#: (energy, geometry, γ, size of x): interior, at a bound, and with γ > 0; with and without a known curvature.
SETTINGS = [
    ("plain", "tanh", 0.0, 0.3),
    ("plain", "sigmoid", 0.0, 2.0),
    ("plain", "tanh", 0.3, 2.0),
    ("plain", "exp", 0.2, 1.0),
    ("bounded", "tanh", 0.0, 2.0),
    ("bounded", "identity", 0.0, 1.0),
    ("bounded", "softplus", 0.3, 1.0),
    ("wavy", "tanh", 0.0, 0.5),
    ("wavy", "sin", 0.2, 0.5),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_implicit_is_unrolling_and_the_finite_difference(setting: tuple[str, str, float, float]) -> None:
    learned = learned_energy(*setting)
    solution = learned.solve()
    assert bool(solution.converged.all())
    found = learned.differentiate(solution.value)
    assert not bool(found["initial"].any())
    assert all(bool(gradient.any()) for name, gradient in found.items() if name != "initial")

    names = ("x", "mix.weight") if setting[0] == "wavy" else None  # MM past saddles is slow: spare its time
    errors = directional_errors(learned, found, names=names, step=1e-4)  # our own solve is exact to 1e-11 only
    assert {name for name, error in errors.items() if not error <= 1e-6} == set()

    unrolled = learned.solve(ib.adjoints.Unrolled(steps=200))
    torch.testing.assert_close(unrolled.value, solution.value, rtol=1e-7, atol=1e-8)
    assert max(relative_errors(found, learned.differentiate(unrolled.value)).values()) <= 1e-6


def test_the_active_bound_is_really_active() -> None:
    """The second setting above has coordinates at a bound and inside."""
    value = learned_energy(*SETTINGS[1]).solve().value
    inside = (value > 1e-6) & (value < 1 - 1e-6)
    assert 0 < int(inside.sum()) < inside.numel()


@pytest.mark.parametrize("method", ["auto", "cg", "gmres"])
def test_methods_agree(method: str) -> None:
    learned = learned_energy("bounded", "tanh", 0.0, 2.0)
    expected = learned.gradients()
    found = learned.gradients(ib.adjoints.Implicit(method=method))
    assert max(relative_errors(found, expected).values()) <= 1e-9


def test_a_dense_adjoint_is_refused() -> None:
    learned = learned_energy("bounded", "tanh", 0.0, 2.0)
    with pytest.raises(ValueError, match='method "dense" needs a quadratic energy: use method="cg"'):
        learned.gradients(ib.adjoints.Implicit(method="dense"))


@pytest.mark.parametrize("checkpoint", [False, True])
def test_unrolling_is_mm_written_out(checkpoint: bool) -> None:
    learned = learned_energy("bounded", "tanh", 0.1, 2.0)
    solution = learned.solve(ib.adjoints.Unrolled(steps=6, checkpoint=checkpoint))
    value = mm_by_hand(learned, 6, float(solution.step[0]))
    torch.testing.assert_close(solution.value, value, rtol=1e-12, atol=1e-14)
    found, exact = learned.differentiate(solution.value), learned.differentiate(value)
    assert max(relative_errors(found, exact).values()) <= 1e-12
    torch.testing.assert_close(found["initial"], exact["initial"], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("adjoint", ["phantom", "one_step"])
def test_approximate_adjoints_keep_the_value(adjoint: str) -> None:
    learned = learned_energy("plain", "tanh", 0.0, 0.3)
    solution, expected = learned.solve(adjoint), learned.solve()
    assert torch.equal(solution.value, expected.value)
    found, exact = learned.differentiate(solution.value), learned.differentiate(expected.value)
    cosine = torch.cosine_similarity(found["x"].flatten(), exact["x"].flatten(), dim=0)
    assert float(cosine) > 0.5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_value_is_the_same(mode: type[torch.no_grad]) -> None:
    learned = learned_energy("plain", "tanh", 0.0, 0.3)
    expected = learned.solve().value
    with mode():
        value = learned.solve().value
    assert not value.requires_grad
    torch.testing.assert_close(value, expected.detach())


def test_the_quadratic_energy_written_by_a_user_is_the_quadratic_energy() -> None:
    class Quadratic(ib.Energy):
        def __init__(self, weight: Tensor) -> None:
            super().__init__(FEATURES, convex=True)
            self.weight = nn.Parameter(weight)

        def value(self, z: Tensor, x: Tensor) -> Tensor:
            return -(z * (0.5 * (z @ self.weight) + x)).sum(-1)

    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(FEATURES, FEATURES, generator=generator, dtype=torch.float64)
    weight = -weight @ weight.T - 0.5 * torch.eye(FEATURES, dtype=torch.float64)
    x = 2 * torch.randn(BATCH, FEATURES, generator=generator, dtype=torch.float64)
    known = weight.clone().requires_grad_()
    gradients = []
    for energy, matrix in (
        (ib.QuadraticEnergy.from_matrices(known), known),
        (own := Quadratic(weight), own.weight),
    ):
        leaf = x.clone().requires_grad_()
        value = ib.find_critical_point(energy, "tanh", leaf).value
        gradients.append((value, *torch.autograd.grad(value.square().sum(), (leaf, matrix))))
    for ours, theirs in zip(*gradients, strict=True):
        symmetric = ours.shape == (FEATURES, FEATURES)
        # With a value, zᵀWz sees the symmetric part of W only.
        expected = 0.5 * (ours + ours.T) if symmetric else ours
        torch.testing.assert_close(theirs, expected, rtol=1e-7, atol=1e-8)


def test_an_energy_that_does_not_depend_on_every_parameter() -> None:
    class Partial(Convex):
        def __init__(self) -> None:
            super().__init__(bounded=True)
            self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
            self.frozen = nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=False)
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))

        def value(self, z: Tensor, x: Tensor) -> Tensor:
            return self.frozen * super().value(z, x)

    torch.manual_seed(0)
    energy = Partial()
    x = torch.randn(BATCH, INPUTS, dtype=torch.float64)
    ib.find_critical_point(energy, "tanh", x).value.square().sum().backward()
    assert energy.unused.grad is None
    assert energy.frozen.grad is None
    assert energy.mix.weight.grad is not None
    assert bool(energy.mix.weight.grad.any())
