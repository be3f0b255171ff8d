"""`Solution.objective` is differentiable once: by the envelope theorem, and along the path where z is not critical."""

from __future__ import annotations

import gc
import math
import pickle
import weakref

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from torch import Tensor, nn

import implicit_bregman as ib

E = ib.QuadraticEnergy.from_matrices


def tolerance(dtype: torch.dtype) -> float:
    return 2e-4 if dtype == torch.float32 else 1e-8


@pytest.mark.parametrize("adjoint", ["implicit", "phantom", "one_step", "shine"])
@pytest.mark.parametrize(("c", "z"), [(0.5, 0.25), (5.0, 1.0), (-5.0, -1.0)])
def test_one_unknown(c: float, z: float, adjoint: str, dtype: torch.dtype) -> None:
    """½·2z² − cz on [−1, 1]: dF*/dc = −z, dF*/dW = −½z², inside and at a bound."""
    W = torch.tensor([[-2.0]], dtype=dtype, requires_grad=True)
    x = torch.tensor([[c]], dtype=dtype, requires_grad=True)
    objective = ib.find_critical_point(E(W), "tanh", x, adjoint=adjoint).objective
    dc, dW = torch.autograd.grad(objective.sum(), (x, W))
    assert objective.item() == pytest.approx(z * z - c * z, rel=tolerance(dtype))
    assert float(dc) == pytest.approx(-z, rel=tolerance(dtype))
    assert float(dW) == pytest.approx(-0.5 * z * z, rel=tolerance(dtype))


def test_with_regularization(dtype: torch.dtype) -> None:
    """γ atanh(z) = c − 2z by a scalar root; dF*/dc = −z."""
    gamma, c = 0.3, 0.7
    z = brentq(lambda t: gamma * math.atanh(t) + 2 * t - c, -0.999, 0.999, xtol=1e-15)
    x = torch.tensor([[c]], dtype=dtype, requires_grad=True)
    W = torch.tensor([[-2.0]], dtype=dtype, requires_grad=True)
    objective = ib.find_critical_point(E(W), "tanh", x, regularization=gamma).objective
    potential = 0.5 * ((1 + z) * math.log1p(z) + (1 - z) * math.log1p(-z))
    assert objective.item() == pytest.approx(z * z - c * z + gamma * potential, rel=10 * tolerance(dtype))
    dc, dW = torch.autograd.grad(objective.sum(), (x, W))
    assert float(dc) == pytest.approx(-z, rel=tolerance(dtype))
    assert float(dW) == pytest.approx(-0.5 * z * z, rel=tolerance(dtype))


def test_a_box_constrained_program_against_scipy(generator: torch.Generator) -> None:
    """Central differences of SciPy's minimum, for every entry of W and c."""
    factor = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    W = -(factor @ factor.T + 0.5 * torch.eye(3, dtype=torch.float64))
    c = 3 * torch.randn(1, 3, generator=generator, dtype=torch.float64)

    def minimum(matrix: np.ndarray, offset: np.ndarray) -> float:
        sym = -0.5 * (matrix + matrix.T)
        found = minimize(
            lambda z: 0.5 * z @ sym @ z - offset @ z,
            np.zeros(3),
            jac=lambda z: sym @ z - offset,
            bounds=[(-1, 1)] * 3,
            method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-12},
        )
        return float(found.fun)

    leaves = W.clone().requires_grad_(), c.clone().requires_grad_()
    objective = ib.find_critical_point(E(leaves[0]), "tanh", leaves[1]).objective
    assert objective.item() == pytest.approx(minimum(W.numpy(), c.numpy()[0]), rel=1e-9)
    gradients = torch.autograd.grad(objective.sum(), leaves)
    step = 1e-5
    for place in range(12):
        shift = np.zeros(12)
        shift[place] = step
        dW, dc = shift[:9].reshape(3, 3), shift[9:]
        change = minimum(W.numpy() + dW, c.numpy()[0] + dc) - minimum(W.numpy() - dW, c.numpy()[0] - dc)
        found = torch.cat([gradients[0].flatten(), gradients[1].flatten()])[place]
        assert float(found) == pytest.approx(change / (2 * step), abs=1e-5)


class Quartic(ib.Energy):
    """¼az⁴ − xz: z = (x/a)^⅓, F* = −¾ x z, dF*/da = ¼z⁴, dF*/dx = −z."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(features=1, convex=True)
        self.a = nn.Parameter(torch.full((1,), 2.0, dtype=dtype))

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return (0.25 * self.a * z**4 - x * z).sum(-1)


def test_an_own_energy(dtype: torch.dtype) -> None:
    energy = Quartic(dtype)
    x = torch.tensor([[0.25], [0.5]], dtype=dtype, requires_grad=True)
    found = ib.find_critical_point(energy, "tanh", x)
    z = (x.detach() / 2) ** (1 / 3)
    a, energy.a = energy.a, nn.Parameter(torch.full((1,), 9.0, dtype=dtype))  # (what it was solved with counts)
    dx, da = torch.autograd.grad(found.objective.sum(), (x, a))
    assert torch.allclose(found.objective, (-0.75 * x * z).sum(-1), rtol=1e-4)
    assert torch.allclose(dx, -z, rtol=tolerance(dtype))
    assert torch.allclose(da, 0.25 * (z**4).sum(), rtol=tolerance(dtype))


def test_a_sum_of_both(dtype: torch.dtype) -> None:
    """A loss with the solution and the objective in it has both gradients."""
    x = torch.tensor([[0.5, -0.3]], dtype=dtype, requires_grad=True)
    found = ib.find_critical_point(E(-2 * torch.eye(2, dtype=dtype)), "tanh", x)
    (gradient,) = torch.autograd.grad((found.value.sum() + 3 * found.objective.sum()), x)
    assert torch.allclose(gradient, 0.5 - 3 * x / 2, rtol=tolerance(dtype))


@pytest.mark.parametrize("gamma", [0.0, 0.2])
def test_unrolled_steps_are_followed(gamma: float) -> None:
    """F(z_L) by hand: z_L is not critical, so that its own derivative counts."""
    W = torch.tensor([[-0.5, 0.1], [0.1, -0.4]], dtype=torch.float64, requires_grad=True)
    c = torch.tensor([[0.6, -0.2], [2.0, 0.1]], dtype=torch.float64, requires_grad=True)
    found = ib.find_critical_point(E(W), "tanh", c, regularization=gamma, adjoint=ib.adjoints.Unrolled(steps=3))
    y = torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(3):
        y = (y + torch.tanh(y) @ W.T + c) / (1 + gamma)
    z = torch.tanh(y)
    potential = 0.5 * ((1 + z) * torch.log1p(z) + (1 - z) * torch.log1p(-z))
    by_hand = -0.5 * ((z @ W) * z).sum(-1) - (c * z).sum(-1) + gamma * potential.sum(-1)
    assert torch.allclose(found.objective, by_hand, rtol=1e-12)
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    expected = torch.autograd.grad((by_hand * weights).sum(), (W, c))
    gradients = torch.autograd.grad((found.objective * weights).sum(), (W, c))
    for one, other in zip(gradients, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reach", [0.3, 4.0], ids=["feasible", "infeasible"])
@pytest.mark.parametrize("gamma", [0.0, 0.2])
def test_low_rank(reach: float, gamma: float) -> None:
    """Central differences in V and b; an infeasible sample's z minimises another function than F."""
    energy = ib.QuadraticEnergy(3, 3, weight="low_rank", rank=2, dtype=torch.float64)
    with torch.no_grad():
        energy.bias.copy_(torch.tensor([reach, 0.1]))
    x = 0.1 * torch.randn(2, 3, dtype=torch.float64)
    solver = ib.solvers.Newton(on_failure="ignore")

    def objective() -> Tensor:
        return ib.find_critical_point(energy, "tanh", x, regularization=gamma, solver=solver).objective.sum()

    parameters = list(energy.parameters())
    gradients = torch.autograd.grad(objective(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for place in range(parameter.numel()):
            ends = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter.view(-1)[place] += step
                    ends.append(objective().item())
                    parameter.view(-1)[place] -= step
            assert float(gradient.view(-1)[place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (0,)])
def test_leading_shapes(shape: tuple[int, ...]) -> None:
    layer = ib.BregmanDEQ(3, 4)
    x = torch.randn(*shape, 3, requires_grad=True)
    objective = layer.solve(x).objective
    assert objective.shape == shape
    objective.sum().backward()
    assert x.grad.shape == x.shape
    assert layer.energy.weight_map.factor.grad is not None


def test_without_gradient() -> None:
    x = torch.tensor([[0.5]], requires_grad=True)
    energy = E(-torch.eye(1))
    found = ib.find_critical_point(energy, "tanh", x)
    assert found.objective.requires_grad
    assert not found.detach().objective.requires_grad
    with torch.no_grad():
        assert not found.objective.requires_grad
        inside = ib.find_critical_point(energy, "tanh", x)
    assert not inside.objective.requires_grad
    assert found.objective.requires_grad, "reading it without gradient before makes no difference"
    assert not pickle.loads(pickle.dumps(found.detach())).objective.requires_grad
    with torch.inference_mode():
        assert not ib.find_critical_point(energy, "tanh", x).objective.requires_grad
    assert ib.find_critical_point(E(torch.tensor([[-1.0, 0.5], [0.0, -1.0]])), "tanh", x.expand(1, 2)).objective is None


def test_the_last_solution_holds_no_graph() -> None:
    layer = ib.BregmanDEQ(3, 4)
    x = torch.randn(2, 3, requires_grad=True)
    middle = 2 * x
    seen = weakref.ref(middle)
    layer(middle)
    del middle
    gc.collect()
    assert seen() is None
    assert not layer.last_solution.objective.requires_grad


def test_a_change_in_place_does_not_matter_to_a_quadratic_energy() -> None:
    """Its derivatives −z and −½zzᵀ hold neither W nor c."""
    W = nn.Parameter(torch.tensor([[-2.0]]))
    x = torch.tensor([[0.5]], requires_grad=True)
    found = ib.find_critical_point(E(W), "tanh", x)
    with torch.no_grad():
        W.fill_(-8.0)
    assert found.objective.item() == pytest.approx(-0.0625)
    dx, dW = torch.autograd.grad(found.objective.sum(), (x, W))
    assert float(dx) == pytest.approx(-0.25)
    assert float(dW) == pytest.approx(-0.03125)


@pytest.mark.parametrize("solver", ["auto", "anderson", "broyden"])
@pytest.mark.parametrize("size", [1.0, 1e6])
def test_a_start_far_out_leaves_nothing_in_it(size: float, solver: str) -> None:
    """F of the start, 1e17 in float32, is no part of the answer, also where several minimisers cannot be excluded."""
    energy, phi, x = E(-torch.diag(torch.tensor([size, 0.3]))), ib.geometry("identity"), torch.tensor([[5.0, -3.0]])
    start = torch.full((1, 2), 3e5)
    found = ib.find_critical_point(energy, phi, x, regularization=0.04, solver=solver, initial_dual=start)
    assert found.converged.all()
    expected = energy.value(found.value, x) + 0.04 * phi.potential(found.value).sum(-1)
    torch.testing.assert_close(found.objective, expected, rtol=1e-4, atol=1e-5)
