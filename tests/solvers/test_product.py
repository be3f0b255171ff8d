"""Parts with geometries of their own: against the parts alone, SciPy and finite differences."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import implicit_bregman as ib

PARTS = [("exp", 2), ("tanh", 3, 0.5), ("softplus", 2, 2.0), ("identity", 2), ("sigmoid", 1)]
SIZES = [part[1] for part in PARTS]
D, B = sum(SIZES), 4
DTYPES = (torch.float32, torch.float64)
SOLVERS = ["auto", "newton", "mm", "anderson", "broyden", "splitting"]
TIGHT = {"auto": ib.solvers.Auto, "newton": ib.solvers.Newton, "mm": ib.solvers.MM, "anderson": ib.solvers.Anderson}


def hessian(generator: torch.Generator, dtype: torch.dtype = torch.float64, skew: float = 0.0) -> Tensor:
    a, b = torch.randn(2, D, D, generator=generator, dtype=torch.float64)
    return (a @ a.T / D + 0.2 * torch.eye(D) + skew * (b - b.T)).to(dtype)


def offsets(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, D, generator=generator, dtype=torch.float64).to(dtype)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("solver", SOLVERS)
def test_parts_that_do_not_meet_are_solved_as_if_alone(
    solver: str, gamma: float, dtype: torch.dtype, generator: torch.Generator
) -> None:
    blocks = [part for part in torch.split(torch.arange(D), SIZES)]
    whole = hessian(generator, dtype)
    h, c = torch.block_diag(*(whole[rows][:, rows] for rows in blocks)), offsets(generator, dtype)
    found = ib.find_critical_point(
        ib.QuadraticEnergy.from_matrices(-h), ib.Product(PARTS), c, regularization=gamma, solver=solver
    )
    assert found.converged.all()
    for rows, (name, _, *weight) in zip(blocks, PARTS, strict=True):
        alone = ib.find_critical_point(
            ib.QuadraticEnergy.from_matrices(-h[rows][:, rows]),
            name,
            c[:, rows],
            regularization=gamma * (weight[0] if weight else 1.0),
        )
        torch.testing.assert_close(found.value[:, rows], alone.value, rtol=0, atol=2e-3 if solver == "mm" else 2e-4)


def violation(phi: ib.Product, h: Tensor, c: Tensor, z: Tensor, gamma: float) -> float:
    """By how much z misses the conditions of a critical point."""
    force = c - z @ h.mT - (gamma * phi.inverse_activation(z) if gamma else 0.0)
    lo, hi = phi.bounds(z.dtype)
    return float((z - (z + force).clamp(lo, hi)).abs().max())


@pytest.mark.parametrize("skew", [0.0, 0.3])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("solver", ["auto", "newton", "mm", "anderson"])
def test_parts_that_meet(solver: str, gamma: float, skew: float, generator: torch.Generator) -> None:
    phi, h, c = ib.Product(PARTS), hessian(generator, skew=skew), offsets(generator)
    found = ib.find_critical_point(
        ib.QuadraticEnergy.from_matrices(-h),
        phi,
        c,
        regularization=gamma,
        solver=TIGHT[solver](tol=1e-9, max_iter=5000),
    )
    assert found.converged.all()
    assert violation(phi, h, c, found.value, gamma) < 1e-7
    assert phi.is_interior(found.value).all() or not gamma


def test_several_critical_points(generator: torch.Generator) -> None:
    phi, c = ib.Product([("tanh", 4), ("sigmoid", 3, 0.3), ("isru", 3, 2.0)]), offsets(generator)
    h = hessian(generator) - 2.0 * torch.eye(D).double()
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(-h), phi, c, regularization=0.2)
    assert found.converged.all()
    # (in the dual, since some z are next to their bounds)
    force = c - found.value @ h - 0.2 * found.dual
    assert float((force.abs() / (1 + c.abs())).max()) < 1e-5


def test_a_gamma_for_each_coordinate(generator: torch.Generator) -> None:
    """γ_j atanh(z_j) + (Hz − c)_j = 0, by SciPy."""
    gammas = torch.logspace(-2, 1, D, dtype=torch.float64)
    h, c = hessian(generator), offsets(generator)
    found = ib.find_critical_point(
        ib.QuadraticEnergy.from_matrices(-h), ib.Product([("tanh", D, gammas)]), c, regularization=1.0
    )
    assert found.converged.all()
    for j in range(B):
        root = scipy.optimize.root(
            lambda y, j=j: gammas.numpy() * y + h.numpy() @ np.tanh(y) - c[j].numpy(), np.zeros(D), tol=1e-12
        )
        assert root.success
        np.testing.assert_allclose(found.value[j], np.tanh(root.x), rtol=0, atol=1e-8)


class Own(ib.Energy):
    """½zᵀHz − xᵀz + ¼Σz⁴."""

    def __init__(self, h: Tensor) -> None:
        super().__init__(D, convex=True)
        self.h = torch.nn.Parameter(h)

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.5 * (z @ self.h * z).sum(-1) - (x * z).sum(-1) + 0.25 * (z**4).sum(-1)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("adjoint", ["implicit", "unrolled"])
@pytest.mark.parametrize("own", [False, True])
def test_gradients_by_finite_differences(own: bool, adjoint: str, gamma: float, generator: torch.Generator) -> None:
    phi, h, c = ib.Product(PARTS), hessian(generator).requires_grad_(), offsets(generator).requires_grad_()
    weight = torch.randn(B, D, generator=generator, dtype=torch.float64)
    how = ib.adjoints.Unrolled(steps=3000) if adjoint == "unrolled" else "implicit"

    def solved(h: Tensor, c: Tensor, adjoint: str | ib.adjoints.Adjoint = "implicit") -> Tensor:
        energy = Own(h) if own else ib.QuadraticEnergy.from_matrices(-h)
        solver = ib.solvers.MM() if adjoint != "implicit" else ib.solvers.Auto(tol=1e-11)
        found = ib.find_critical_point(energy, phi, c, regularization=gamma, solver=solver, adjoint=adjoint)
        loss = (weight * found.value).sum()
        if loss.requires_grad:
            grads.extend(torch.autograd.grad(loss, [energy.h if own else h, c]))
        return loss.detach()

    grads: list[Tensor] = []
    solved(h, c, how)
    by_h, by_c = grads
    step, change = 1e-5, torch.zeros(D, D, dtype=torch.float64)
    change[1, 3] = change[3, 1] = 0.7
    move = torch.randn(B, D, generator=generator, dtype=torch.float64)
    for (dh, dc), got in (((change, 0 * move), (by_h * change).sum()), ((0 * change, move), (by_c * move).sum())):
        with torch.no_grad():
            ends = [solved(h.detach() + s * dh, c.detach() + s * dc) for s in (step, -step)]
        torch.testing.assert_close(got, (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["phantom", "one_step", "shine"])
def test_approximate_adjoints_run(name: str, generator: torch.Generator) -> None:
    c = offsets(generator).requires_grad_()
    found = ib.find_critical_point(
        ib.QuadraticEnergy.from_matrices(-hessian(generator)),
        ib.Product(PARTS),
        c,
        regularization=0.3,
        solver="broyden" if name == "shine" else "auto",
        adjoint=name,
    )
    found.value.sum().backward()
    assert c.grad is not None
    assert torch.isfinite(c.grad).all()
    assert (c.grad != 0).any()


def test_layers() -> None:
    phi = ib.Product([("tanh", 4), ("exp", 2, 0.5)])
    layer = ib.BregmanDEQ(3, 6, phi, regularization=0.1).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    z = layer(x)
    z.sum().backward()
    assert layer.last_solution is not None
    assert layer.last_solution.converged.all()
    assert (z[:, 4:] > 0).all()
    jacobian = torch.func.jacrev(lambda x: layer(x).sum())(x.detach())
    torch.testing.assert_close(jacobian, x.grad)

    energy = ib.QuadraticEnergy(6, 3)
    apart = ib.CriticalPoint(energy, ib.Product([("tanh", 2), ("softplus", 4)]), 0.1)
    assert apart(torch.randn(2, 3)).shape == (2, 6)


@pytest.mark.parametrize("adjoint", ["implicit", "unrolled"])
def test_the_projection(adjoint: str, generator: torch.Generator) -> None:
    phi = ib.Product([("exp", 3), ("tanh", 4, 0.5), ("identity", 3, 2.0)])
    v = torch.randn(D, 3, generator=generator, dtype=torch.float64).requires_grad_()
    y = 0.3 * torch.randn(B, D, generator=generator, dtype=torch.float64)
    inside = phi.activation(0.5 * torch.randn(B, D, generator=generator, dtype=torch.float64))
    beta = inside @ v.detach()
    how = "implicit" if adjoint == "implicit" else ib.adjoints.Unrolled(steps=4000)
    layer = ib.BregmanProjection.from_matrix(v, beta, phi, adjoint=how)
    found = layer.solve(initial_dual=y)
    torch.testing.assert_close(found.value.detach() @ v.detach(), beta, rtol=0, atol=1e-6)
    (grad,) = torch.autograd.grad(found.value.square().sum(), v)

    def value(v: Tensor) -> Tensor:
        return ib.BregmanProjection.from_matrix(v, beta, phi).solve(initial_dual=y).value.square().sum()

    step, change = 1e-6, torch.randn(D, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        slope = (value(v + step * change) - value(v - step * change)) / (2 * step)
    torch.testing.assert_close((grad * change).sum(), slope, rtol=1e-4, atol=1e-6)


@given(
    st.lists(
        st.tuples(st.sampled_from(["exp", "tanh", "softplus", "identity", "arctan", "isru"]), st.floats(0.1, 10.0)),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.05, 1.0]),
)
def test_random_products(parts: list[tuple[str, float]], seed: int, gamma: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    phi = ib.Product([(name, 2, weight) for name, weight in parts])
    d = phi.size
    a = torch.randn(d, d, generator=generator, dtype=torch.float64)
    h, c = a @ a.T / d + 0.1 * torch.eye(d).double(), 3 * torch.randn(2, d, generator=generator, dtype=torch.float64)
    found = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(-h), phi, c, regularization=gamma)
    assert found.converged.all()
    if gamma:
        force = c - found.value @ h - gamma * found.dual
        assert float((force.abs() / (1 + c.abs())).max()) < 1e-5
    else:
        assert violation(phi, h, c, found.value, gamma) < 1e-5
