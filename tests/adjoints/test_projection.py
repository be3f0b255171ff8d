"""The gradient of the Bregman projection: for V, β and z⁰, against a long unroll and central differences."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman import ConvergenceWarning, Status
from implicit_bregman.legendre import separable_geometries
from implicit_bregman.projection.basis import Basis
from implicit_bregman.projection.system import solve_projection_system
from tests.adjoints.helpers import saved_bytes
from tests.problems import dual_of

LEGENDRE = [name for name in separable_geometries() if ib.geometry(name).is_legendre]
EVERY_DUAL = [name for name in LEGENDRE if ib.geometry(name).has_every_dual]
D, N, R, B = 7, 4, 3, 4

Leaves = dict[str, Tensor]


class Learned:
    """A layer's energy, x and z⁰, all leaves, and one loss."""

    def __init__(
        self,
        geometry: str,
        gamma: float = 0.0,
        scale: float = 1.0,
        rank: int = R,
        dtype: torch.dtype = torch.float64,
        softening: float | None = None,
    ) -> None:
        self.geometry, self.gamma = ib.geometry(geometry), gamma
        self.energy = ib.QuadraticEnergy(D, N, "low_rank", rank=rank, dtype=torch.float64, softening=softening)
        vectors = self.energy.weight_map.vectors
        with torch.no_grad():
            vectors.add_(0.1 * torch.randn_like(vectors))
            middle = torch.full((D,), self.geometry.middle, dtype=torch.float64)
            self.energy.bias.copy_(self.geometry.activation(middle) @ vectors)
        self.x = scale * torch.randn(B, N, dtype=torch.float64)
        start = dual_of(self.geometry, 0.4 * torch.randn(B, D, dtype=torch.float64))
        self.initial = self.geometry.activation(start).detach()
        self.direction = torch.randn(B, D, dtype=torch.float64)
        self.to(dtype)

    def to(self, dtype: torch.dtype) -> Learned:
        self.energy.to(dtype)
        self.x = self.x.detach().to(dtype).requires_grad_()
        self.initial = self.initial.detach().to(dtype).requires_grad_()
        self.direction = self.direction.to(dtype)
        return self

    def leaves(self) -> Leaves:
        return {"x": self.x, "initial": self.initial, **dict(self.energy.named_parameters())}

    def solve(self, adjoint: object = "implicit", solver: object = "auto") -> ib.Solution:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*INFEASIBLE", category=ConvergenceWarning)
            return ib.find_critical_point(
                self.energy,
                self.geometry,
                self.x,
                self.initial,
                self.gamma,
                solver,
                adjoint,  # type: ignore[arg-type]
            )

    def loss(self, value: Tensor) -> Tensor:
        return (value * (0.5 * value + self.direction)).sum()

    def gradients(self, adjoint: object = "implicit", solver: object = "auto") -> Leaves:
        found = torch.autograd.grad(self.loss(self.solve(adjoint, solver).value), list(self.leaves().values()))
        return dict(zip(self.leaves(), found, strict=True))

    def difference_errors(self, gradients: Leaves, step: float = 1e-5) -> dict[str, float]:
        """Central differences along random directions, relative to the gradient's size."""
        errors = {}
        for name, leaf in self.leaves().items():
            direction = torch.randn_like(leaf)
            change = self._loss_at(leaf, step * direction) - self._loss_at(leaf, -step * direction)
            error = abs(change / (2 * step) - float((gradients[name] * direction).sum()))
            errors[name] = error / (float(gradients[name].norm() * direction.norm()) or 1.0)
        return errors

    def _loss_at(self, leaf: Tensor, shift: Tensor) -> float:
        with torch.no_grad():
            before = leaf.clone()
            leaf.add_(shift)
            try:
                return float(self.loss(self.solve().value))
            finally:
                leaf.copy_(before)


def errors(found: Leaves, exact: Leaves) -> dict[str, float]:
    return {
        name: float((found[name].double() - exact[name].double()).norm() / exact[name].double().norm())
        for name in exact
    }


# Exactness ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", LEGENDRE)
def test_a_long_unroll(geometry: str) -> None:
    learned = Learned(geometry, scale=0.5)
    assert learned.solve().status.tolist() == [Status.CONVERGED] * B
    unrolled = learned.gradients(ib.adjoints.Unrolled(steps=1500))
    assert max(errors(learned.gradients(), unrolled).values()) <= 1e-11


@pytest.mark.parametrize("geometry", ["tanh", "softplus"])
@pytest.mark.parametrize("rank", [1, R, D])
def test_central_differences(geometry: str, rank: int) -> None:
    learned = Learned(geometry, rank=rank, scale=0.4)
    gradients = learned.gradients()
    assert learned.solve().status.tolist() == [Status.CONVERGED] * B
    if rank == D:  # then z solves Vᵀz = β, whatever z⁰
        assert float(gradients["initial"].abs().max()) <= 1e-12
        gradients["initial"].zero_()
    assert max(learned.difference_errors(gradients).values()) <= 1e-8


@pytest.mark.parametrize("geometry", [*EVERY_DUAL, "sin"])
def test_with_regularization(geometry: str) -> None:
    learned = Learned(geometry, gamma=0.3, scale=2.0)
    gradients = learned.gradients()
    assert not bool(gradients["initial"].any())
    differences = learned.difference_errors(gradients)
    assert differences.pop("initial") <= 1e-8
    assert max(differences.values()) <= 1e-7
    mm = learned.gradients(solver="mm")
    mm.pop("initial")
    assert max(errors(gradients, mm).values()) <= 1e-8


@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "arctan", "isru", "scaled_tanh"])
def test_softened(geometry: str) -> None:
    """ε depends on V, and its derivative counts."""
    learned = Learned(geometry, scale=8.0, softening=0.1)
    status = learned.solve().status
    assert bool((status == Status.INFEASIBLE).any())
    assert max(learned.difference_errors(learned.gradients()).values()) <= 1e-6


def test_a_mixed_batch() -> None:
    learned = Learned("tanh", scale=0.5)
    alone = learned.gradients()
    with torch.no_grad():
        learned.x[1] *= 100
    assert learned.solve().status.tolist() == [0, Status.INFEASIBLE, 0, 0]
    mixed = learned.gradients()
    for row in (0, 2, 3):
        torch.testing.assert_close(mixed["x"][row], alone["x"][row], rtol=0, atol=1e-12)
        torch.testing.assert_close(mixed["initial"][row], alone["initial"][row], rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", ["mm", "anderson", "broyden", "newton"])
def test_the_other_solvers_have_the_same_gradient(solver: str) -> None:
    learned = Learned("tanh", scale=0.5)
    assert max(errors(learned.gradients(solver=solver), learned.gradients()).values()) <= 1e-8


@pytest.mark.parametrize(
    ("geometry", "gamma"), [*((name, 0.0) for name in LEGENDRE), *((name, 0.05) for name in EVERY_DUAL)]
)
def test_single_precision(geometry: str, gamma: float) -> None:
    learned = Learned(geometry, gamma, scale=0.5)
    learned.to(torch.float32)
    found = learned.gradients()
    exact = learned.to(torch.float64).gradients()
    if gamma:
        found.pop("initial"), exact.pop("initial")
    assert max(errors(found, exact).values()) <= 5e-6


def test_dependent_columns_keep_a_finite_gradient() -> None:
    learned = Learned("tanh", scale=0.3)
    with torch.no_grad():
        learned.energy.weight_map.vectors[:, 2] = learned.energy.weight_map.vectors[:, 1]
        learned.energy.input_weight[2] = learned.energy.input_weight[1]
        learned.energy.bias[2] = learned.energy.bias[1]
    solution = learned.solve()
    assert solution.status.tolist() == [Status.CONVERGED] * B
    gradients = learned.gradients()
    assert all(bool(torch.isfinite(g).all()) for g in gradients.values())
    # z⁰ moves along the two equations that are left, whatever their number.
    (expected,) = torch.autograd.grad(
        learned.loss(learned.solve(ib.adjoints.Unrolled(steps=1500)).value), learned.initial
    )
    torch.testing.assert_close(gradients["initial"], expected, rtol=0, atol=1e-11)


def test_saturated_coordinates() -> None:
    """Next to the bounds the curvatures overflow; the gradient must not."""
    for dtype in (torch.float32, torch.float64):
        for name in LEGENDRE:
            learned = Learned(name, scale=0.5, dtype=dtype)
            phi = learned.geometry
            lo, hi = (y if abs(y) < 1e6 else 20.0 * (1 if y > 0 else -1) for y in phi.saturated_dual(dtype))
            z = phi.activation(torch.linspace(lo, hi, D, dtype=dtype).expand(B, D)).clamp(*phi.bounds(dtype))
            inside = phi.is_interior(z)
            learned.initial = torch.where(inside, z, phi.activation(torch.zeros_like(z))).requires_grad_()
            with torch.no_grad():
                learned.energy.input_weight.zero_()
                learned.energy.bias.copy_(
                    phi.activation(torch.randn(D, dtype=dtype)) @ learned.energy.weight_map.vectors
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                gradients = learned.gradients()
            assert all(bool(torch.isfinite(g).all()) for g in gradients.values()), (name, dtype)


def test_a_start_whose_inverse_overflows() -> None:
    learned = Learned("exp", scale=0.2, dtype=torch.float32)
    with torch.no_grad():
        learned.initial[0, 0] = 1e-42
    assert all(bool(torch.isfinite(g).all()) for g in learned.gradients().values())


# Failures and refusals ------------------------------------------------------------------------------------------------


def test_a_singular_system_is_reported() -> None:
    basis = Basis.of(torch.eye(3, 2).double())
    slope = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1e-200, 1e-210, 1.0]]).double()
    slope[3] = torch.tensor([1e-200, 1e-210, 1.0], dtype=torch.float64)
    w, p, singular, _ = solve_projection_system(basis, slope, torch.zeros(4).double(), torch.ones(4, 3).double())
    assert singular.tolist() == [False, True, True, False]
    assert bool(torch.isfinite(w).all())
    assert bool(torch.isfinite(p).all())
    torch.testing.assert_close(w[[0, 3]], torch.ones(2, 2).double())
    torch.testing.assert_close(w[1], torch.tensor([1.0, 0.0]).double())
    soft, _, singular, _ = solve_projection_system(basis, slope, torch.ones(4).double(), torch.ones(4, 3).double())
    assert not bool(singular.any())
    torch.testing.assert_close(soft[1], torch.tensor([0.5, 0.0]).double())


def test_the_report() -> None:
    learned = Learned("tanh")
    solution = learned.solve()
    assert solution.adjoint.status is None
    gradient = torch.ones_like(solution.value)
    gradient[1, 0] = torch.nan
    solution.value.backward(gradient)
    assert solution.adjoint.status.tolist() == [0, Status.INVALID_INPUT, 0, 0]
    assert float(solution.adjoint.residual.max()) <= 1e-12
    assert solution.adjoint.iterations.tolist() == [0] * B
    assert bool(learned.energy.weight_map.vectors.grad.isnan().all())
    assert learned.x.grad.isnan().any(-1).tolist() == [False, True, False, False]


def test_methods() -> None:
    learned = Learned("tanh")
    dense = learned.gradients(ib.adjoints.Implicit(method="dense"))
    assert max(errors(dense, learned.gradients()).values()) == 0.0
    for method in ("cg", "gmres"):
        with pytest.raises(ValueError, match=f'method "{method}" has no meaning for a low-rank weight.*auto.*dense'):
            learned.gradients(ib.adjoints.Implicit(method=method))


def test_an_iterate_without_its_start_has_no_gradient() -> None:
    learned = Learned("tanh")
    dual = learned.solve().dual
    with pytest.raises(ValueError, match=r"the implicit gradient depends on the start.*find_critical_point"):
        ib.attach_gradient(learned.energy, "tanh", learned.x, dual)
    found = ib.attach_gradient(learned.energy, "tanh", learned.x, learned.solve().dual, 0.3)
    assert found.requires_grad
    assert ib.attach_gradient(learned.energy, "tanh", learned.x, dual, adjoint="one_step").requires_grad


@pytest.mark.parametrize("adjoint", ["phantom", "one_step", "unrolled"])
def test_the_other_adjoints_run(adjoint: str) -> None:
    gradients = Learned("tanh").gradients(adjoint)
    assert bool(gradients["initial"].any()) == (adjoint == "unrolled")
    assert all(bool(torch.isfinite(g).all()) for g in gradients.values())


def test_without_gradients() -> None:
    learned = Learned("tanh")
    expected = learned.solve().value
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            value = learned.solve().value
        assert not value.requires_grad
        assert torch.equal(value, expected)
    learned.energy.requires_grad_(False)
    learned.x.requires_grad_(False)
    (gradient,) = torch.autograd.grad(learned.loss(learned.solve().value), learned.initial)
    assert bool(gradient.any())
    learned.initial.requires_grad_(False)
    assert not learned.solve().value.requires_grad


def test_what_is_kept_for_the_backward_pass() -> None:
    """z, ρ'(y), λ, and V's decomposition: nothing of size B·d·r or d²."""
    d, batch, rank = 200, 50, 20
    energy = ib.QuadraticEnergy(d, N, "low_rank", rank=rank, dtype=torch.float64)
    x = torch.randn(batch, N, dtype=torch.float64)
    with saved_bytes(list(energy.parameters())) as kept:
        solution = ib.find_critical_point(energy, "tanh", x)
    assert solution.value.requires_grad
    assert kept[0] <= 8 * (6 * batch * d + 4 * batch * rank + 6 * d * rank)
