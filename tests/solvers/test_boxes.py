"""Bounds of its own for each coordinate: against SciPy and OSQP, every solver, gradients by finite differences."""

import math
import pickle

import numpy as np
import osqp
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from torch import Tensor

import implicit_bregman as ib
from tests.problems import hessian_and_offset
from tests.solvers.grids import grid_problem
from tests.solvers.helpers import FIRST_ORDER, solver_of

INF = math.inf
#: Of every kind: two bounds, one, none, and lo = hi.
LO = torch.tensor([-1.0, 0.0, -0.2, -INF, -INF, 0.3, -0.5, -2.0], dtype=torch.float64)
HI = torch.tensor([1.0, 0.5, INF, 0.4, INF, 0.3, 0.1, 2.0], dtype=torch.float64)
#: The same without an infinite end, so that any f has a minimum.
BOUNDED = LO.clamp_min(-1.5), HI.clamp_max(1.5)
D, B = len(LO), 4
DTYPES = (torch.float32, torch.float64)
TOLERANCE = {torch.float32: 2e-5, torch.float64: 2e-9}


def drawn(kind: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """H and c in float64."""
    return hessian_and_offset(kind, D, B, 0.3, 1.2, seed)


def boxes(name: str, ends: tuple[Tensor, Tensor], dtype: torch.dtype = torch.float64) -> ib.MirrorMap:
    return ib.geometry(name).to_box(*(end.to(dtype) for end in ends))


def solve(hessian: Tensor, c: Tensor, phi: ib.MirrorMap, gamma: float = 0.0, **settings: object) -> ib.Solution:
    return ib.find_critical_point(ib.QuadraticEnergy.from_matrices(-hessian), phi, c, regularization=gamma, **settings)


def by_osqp(hessian: Tensor, c: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """The minimisers of ½zᵀHz − cᵀz within the bounds, polished."""
    problem, found = osqp.OSQP(), []
    matrix = scipy.sparse.csc_matrix(np.triu(hessian.numpy()))
    ends = [end.clamp(-1e30, 1e30).numpy() for end in (lo, hi)]
    accuracy = {"eps_abs": 1e-10, "eps_rel": 1e-10, "max_iter": 100_000, "polishing": True, "verbose": False}
    problem.setup(matrix, -c[0].numpy(), scipy.sparse.eye(len(lo), format="csc"), *ends, **accuracy)
    for row in c.numpy():
        problem.update(q=-row)
        found.append(problem.solve(raise_error=True).x)
    return torch.tensor(np.array(found))


def left(hessian: Tensor, c: Tensor, z: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """By how much z misses the variational inequality of z ∈ [lo, hi]."""
    return ((z - (z @ hessian.mT - c)).clamp(lo, hi) - z).abs().amax()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tanh", "sin", "arctan"])
@pytest.mark.parametrize("solver", ["auto", "newton", "mm", "anderson", "broyden", "splitting"])
def test_quadratic_programs(solver: str, name: str, dtype: torch.dtype) -> None:
    hessian, c = drawn("symmetric")
    expected = by_osqp(hessian, c, LO, HI)
    solution = solve(hessian.to(dtype), c.to(dtype), boxes(name, (LO, HI)), solver=solver)
    assert solution.converged.all()
    assert solution.value.dtype == dtype
    torch.testing.assert_close(solution.value.double(), expected, rtol=0.0, atol=TOLERANCE[dtype])
    low, high = boxes(name, (LO, HI)).bounds(dtype)
    assert ((solution.value >= low) & (solution.value <= high)).all()
    assert torch.isfinite(solution.dual).all()
    # the multipliers are those of the bounds, and 0 where none holds
    inside = (expected > LO + 1e-6) & (expected < HI - 1e-6)
    multiplier = torch.where(inside, 0.0, -(expected @ hessian - c))
    torch.testing.assert_close(solution.multiplier.double(), multiplier, rtol=0.0, atol=100 * TOLERANCE[dtype])


@pytest.mark.parametrize("solver", ["auto", "newton", "mm", "splitting"])
def test_without_symmetry(solver: str) -> None:
    hessian, c = drawn("monotone")
    solution = solve(hessian, c, boxes("tanh", (LO, HI)), solver=solver)
    assert solution.converged.all()
    assert left(hessian, c, solution.value, LO, HI) < 1e-8


@pytest.mark.parametrize("solver", ["auto", "newton", *FIRST_ORDER])
def test_several_critical_points(solver: str) -> None:
    """Every solver ends where MM does."""
    hessian, c = drawn("indefinite")
    phi = boxes("tanh", BOUNDED)
    limit = solve(hessian, c, phi, solver=ib.solvers.MM(max_iter=200_000))
    solution = solve(hessian, c, phi, solver=solver_of(solver) if solver != "auto" else solver)
    assert solution.converged.all()
    assert left(hessian, c, solution.value, *BOUNDED) < 1e-8
    torch.testing.assert_close(solution.value, limit.value, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "arctan"])
@pytest.mark.parametrize("solver", ["auto", "newton", "mm", "anderson", "broyden", "splitting"])
def test_smooth_problems(solver: str, name: str) -> None:
    """γ > 0: against SciPy's minimiser of f + γφ, in the dual y of the coordinates that move."""
    (hessian, c), gamma = drawn("symmetric"), 0.3
    phi = boxes(name, (LO, HI))
    solution = solve(hessian, c, phi, gamma, solver=solver)
    assert solution.converged.all()

    def value(y: np.ndarray, row: int) -> tuple[float, np.ndarray]:
        dual = torch.tensor(y)[None]
        z = phi.activation(dual)
        gradient = z @ hessian - c[row]
        f = 0.5 * ((z @ hessian) * z).sum() - (c[row] * z).sum() + gamma * phi.dual_potential(dual).sum()
        return float(f), ((gradient + gamma * dual) * phi.slope(dual)).numpy()[0]

    for row in range(B):
        found = minimize(value, np.zeros(D), (row,), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 10_000})
        expected = phi.activation(torch.tensor(found.x)[None])[0]
        torch.testing.assert_close(solution.value[row], expected, rtol=0.0, atol=1e-6)
        assert float(solution.objective[row]) <= found.fun + 1e-9
    assert torch.equal(solution.value[:, 5], torch.full((B,), 0.3, dtype=torch.float64))


def test_all_bounds_equal_to_one_interval() -> None:
    """Then it is the geometry of that interval, its path and its steps."""
    hessian, c = drawn("indefinite")
    for gamma in (0.0, 0.2):
        one = solve(hessian, c, ib.geometry("tanh").to_box(-1.0, 2.0), gamma, solver="mm")
        ends = torch.full((D,), -1.0, dtype=torch.float64), torch.full((D,), 2.0, dtype=torch.float64)
        many = solve(hessian, c, boxes("tanh", ends), gamma, solver="mm")
        assert torch.equal(one.iterations, many.iterations)
        torch.testing.assert_close(one.value, many.value, rtol=0.0, atol=1e-12)
        torch.testing.assert_close(ib.geometry("tanh").to_box(-1.0, 2.0).activation(many.dual), one.value)


def test_a_coordinate_without_room() -> None:
    """It is no unknown: not degenerate where its multiplier is 0, and the others solve what is left."""
    hessian = torch.eye(3, dtype=torch.float64) + 0.5
    lo = torch.tensor([0.0, 0.5, -1.0], dtype=torch.float64)
    hi = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    z = torch.tensor([[0.0, 0.5, 0.2]], dtype=torch.float64)
    for solver in ("auto", "newton", "mm", "splitting"):
        solution = solve(hessian, z @ hessian, boxes("tanh", (lo, hi)), solver=solver)
        assert solution.status.tolist() == [ib.Status.CONVERGED]
        torch.testing.assert_close(solution.value, z)
    everything = solve(hessian, z, boxes("tanh", (hi, hi)))
    assert everything.converged.all()
    assert torch.equal(everything.value, hi[None])


@pytest.mark.parametrize("solver", ["auto", "mm"])
def test_operators(solver: str) -> None:
    """A sparse H, and one for each sample."""
    hessian, c = drawn("symmetric")
    hessian = torch.where((torch.arange(D)[:, None] - torch.arange(D)).abs() <= 2, hessian, 0.0) + torch.eye(D)
    expected, phi = by_osqp(hessian, c, LO, HI), boxes("tanh", (LO, HI))
    for operator in (ib.operators.Sparse(hessian.to_sparse_coo()), ib.operators.Stacked(hessian.expand(B, D, D))):
        solution = ib.find_critical_point(ib.QuadraticEnergy.from_operator(operator), phi, c, solver=solver)
        assert solution.converged.all()
        torch.testing.assert_close(solution.value, expected, rtol=0.0, atol=1e-8)


def test_images() -> None:
    """States with a shape, and bounds that broadcast to it."""
    lo = torch.tensor([-0.1, 0.0], dtype=torch.float64)[:, None, None]
    hi = torch.linspace(0.05, 0.2, 5, dtype=torch.float64).requires_grad_()
    phi = ib.geometry("tanh").to_box(lo, hi)
    layer = ib.BregmanDEQ2d(3, 2, geometry=phi).double()
    x = torch.randn(B, 3, 4, 5, dtype=torch.float64)
    solution = layer.solve(x)
    assert solution.converged.all()
    assert solution.value.shape == (B, 2, 4, 5)
    assert ((solution.value >= lo) & (solution.value <= hi)).all()
    z = solution.value.detach()
    assert ((z - layer.energy.gradient(z, x).detach()).clamp(lo, hi.detach()) - z).abs().max() < 1e-8
    by_hi = torch.autograd.grad(solution.value.sum(), hi)[0]
    moved = ib.geometry("tanh").to_box(lo, hi.detach() + 1e-6)
    change = ib.find_critical_point(layer.energy, moved, x).value.detach().sum() - z.sum()
    assert float(by_hi.sum()) == pytest.approx(float(change) / 1e-6, rel=1e-4)


def test_singular() -> None:
    """Convex, with minimisers of which MM goes to one: so does the exact solver."""
    random = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(D, 4, generator=random, dtype=torch.float64)).Q
    hessian, c = basis @ basis.mT, 0.5 * torch.randn(B, 4, generator=random, dtype=torch.float64) @ basis.mT
    phi = boxes("tanh", BOUNDED)
    solution = solve(hessian, c, phi)
    limit = solve(hessian, c, phi, solver=ib.solvers.MM(exact=False))
    assert (solution.status == ib.Status.NONUNIQUE).all()
    assert left(hessian, c, solution.value, *BOUNDED) < 1e-8
    torch.testing.assert_close(solution.value, limit.value, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_singular_mixtures(seed: int) -> None:
    """Semidefinite, bounds of every kind: a minimiser, with OSQP's value."""
    random = torch.Generator().manual_seed(seed)
    factor = torch.randn(5, D, generator=random, dtype=torch.float64)
    hessian, c = factor.mT @ factor, torch.randn(B, 5, generator=random, dtype=torch.float64) @ factor
    energy = ib.QuadraticEnergy.from_matrices(-hessian, convex=True)
    solution = ib.find_critical_point(energy, boxes("tanh", (LO, HI)), c)
    assert set(solution.status.tolist()) <= {ib.Status.CONVERGED, ib.Status.NONUNIQUE}
    assert left(hessian, c, solution.value, LO, HI) < 1e-8
    other = by_osqp(hessian, c, LO, HI)
    value = 0.5 * ((other @ hessian) * other).sum(-1) - (c * other).sum(-1)
    torch.testing.assert_close(solution.objective, value, rtol=0.0, atol=1e-7)


def by_active_sets(hessian: scipy.sparse.csr_matrix, c: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """The primal-dual active-set method on SciPy's sparse solver."""
    z, force = np.clip(np.zeros_like(c), lo, hi), np.zeros_like(c)
    for _ in range(200):
        below, above = z + force < lo, z + force > hi
        held = np.where(below, lo, np.where(above, hi, 0.0))
        free = ~(below | above)
        z = held.copy()
        z[free] = scipy.sparse.linalg.spsolve(hessian[free][:, free], (c - hessian @ held)[free])
        before, force = force, np.where(free, 0.0, c - hessian @ z)
        if np.array_equal(free, ~((z + force < lo) | (z + force > hi))) and np.allclose(before, force):
            return z
    raise AssertionError("the active set has not settled")


def solve_grid(hessian: Tensor, c: Tensor, lo: Tensor, hi: Tensor) -> ib.Solution:
    energy = ib.QuadraticEnergy.from_operator(ib.operators.Sparse(hessian), convex=True)
    return ib.find_critical_point(energy, boxes("tanh", (lo.flatten(), hi.flatten())), c.reshape(1, -1))


@pytest.mark.parametrize("name", ["obstacle", "torsion", "bearing"])
def test_grids(name: str) -> None:
    """Sparse problems of 3,600 unknowns, bounds of its own for each."""
    hessian, *rest = grid_problem(name)
    solution = solve_grid(hessian, *rest)
    c, lo, hi = (tensor.flatten().numpy() for tensor in rest)
    rows, columns = hessian.coalesce().indices().numpy()
    sparse = scipy.sparse.csr_matrix((hessian.coalesce().values().numpy(), (rows, columns)))
    assert solution.converged.all()
    np.testing.assert_allclose(solution.value[0].numpy(), by_active_sets(sparse, c, lo, hi), rtol=0.0, atol=1e-8)
    problem, ends = osqp.OSQP(), [np.clip(end, -1e30, 1e30) for end in (lo, hi)]
    accuracy = {"eps_abs": 1e-10, "eps_rel": 1e-10, "max_iter": 100_000, "polishing": True, "verbose": False}
    upper = scipy.sparse.triu(sparse, format="csc")
    problem.setup(upper, -c, scipy.sparse.eye(len(c), format="csc"), *ends, **accuracy)
    np.testing.assert_allclose(solution.value[0].numpy(), problem.solve(raise_error=True).x, rtol=0.0, atol=1e-8)


def test_the_derivatives_of_a_grid_in_its_obstacle() -> None:
    """That of the least energy is the force, and that of the mean a finite difference."""
    hessian, c, bump, free = grid_problem("obstacle", 20)
    bump.requires_grad_()
    solution = solve_grid(hessian, c, bump, free)
    (force,) = torch.autograd.grad(solution.objective.sum(), bump, retain_graph=True)
    torch.testing.assert_close(force.flatten(), -solution.multiplier.detach()[0], rtol=0.0, atol=1e-9)
    (moved,) = torch.autograd.grad(solution.value.mean(), bump)
    up, down = (solve_grid(hessian, c, bump.detach() + shift, free).value.mean() for shift in (1e-5, -1e-5))
    torch.testing.assert_close(moved.sum(), (up - down) / 2e-5, rtol=1e-5, atol=0.0)


def test_user_energy() -> None:
    """An energy of one's own, without a matrix."""

    class Quartic(ib.Energy):
        def __init__(self) -> None:
            super().__init__(features=D, convex=True)

        def value(self, z: Tensor, x: Tensor) -> Tensor:
            return (0.25 * z**4 + 0.5 * z**2 - x * z).sum(-1)

    _, c = drawn("symmetric")
    solution = ib.find_critical_point(Quartic(), boxes("tanh", (LO, HI)), c)
    real = torch.tensor(
        [[next(r.real for r in np.roots([1.0, 0.0, 1.0, -float(x)]) if abs(r.imag) < 1e-9) for x in row] for row in c]
    )
    torch.testing.assert_close(solution.value, real.clamp(LO, HI), rtol=0.0, atol=1e-7)


# Gradients ------------------------------------------------------------------------------------------------------------


def of_bounds(low: Tensor, high: Tensor, pinned: Tensor) -> tuple[Tensor, Tensor]:
    """LO and HI, with the finite entries from tensors, and lo = hi from one number."""
    five = torch.arange(D) == 5
    lo, hi = (torch.where(torch.isfinite(end), moved, end) for end, moved in zip((LO, HI), (low, high), strict=True))
    return torch.where(five, pinned, lo), torch.where(five, pinned, hi)


ARGUMENTS = ("H", "c", "lo", "hi", "lo = hi")


def arguments(kind: str) -> list[Tensor]:
    hessian, c = drawn(kind)
    return [hessian, c, LO.nan_to_num(0, 0, 0), HI.nan_to_num(0, 0, 0), torch.tensor(0.3, dtype=torch.float64)]


def differences(function: object, at: list[Tensor], symmetric: bool) -> tuple[list[Tensor], list[float]]:
    """A direction for each argument, and the central difference along it."""
    random, found, along = torch.Generator().manual_seed(7), [], []
    for place in range(len(at)):
        direction = torch.randn(at[place].shape, generator=random, dtype=torch.float64)
        direction = direction + direction.mT if symmetric and place == 0 else direction
        ends = []
        for sign in (1.0, -1.0):
            moved = list(at)
            moved[place] = at[place] + sign * 1e-6 * direction
            with torch.no_grad():
                ends.append(float(function(*moved)))
        along.append(direction)
        found.append((ends[0] - ends[1]) / 2e-6)
    return along, found


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize(
    ("name", "kind", "of"),
    [
        *(("tanh", "symmetric", of) for of in ("value", "objective", "multiplier")),
        *(("sin", "symmetric", of) for of in ("value", "objective", "multiplier")),
        *(("tanh", "monotone", of) for of in ("value", "multiplier")),
    ],
)
def test_gradients(name: str, kind: str, gamma: float, of: str) -> None:
    weights = torch.randn(B, D, dtype=torch.float64)

    def loss(hessian: Tensor, c: Tensor, *bounds: Tensor) -> Tensor:
        phi = ib.geometry(name).to_box(*of_bounds(*bounds))
        found = getattr(solve(hessian, c, phi, gamma, solver=ib.solvers.Newton(tol=1e-12)), of)
        return (weights * found + found**3).sum() if found.dim() == 2 else (weights[:, 0] * found).sum()

    at = [tensor.requires_grad_() for tensor in arguments(kind)]
    found = torch.autograd.grad(loss(*at), at, materialize_grads=True)
    along, expected = differences(loss, [tensor.detach() for tensor in at], kind == "symmetric")
    for argument, gradient, direction, difference in zip(ARGUMENTS, found, along, expected, strict=True):
        assert float((gradient * direction).sum()) == pytest.approx(difference, rel=1e-6, abs=1e-6), argument


@pytest.mark.parametrize("solver", ["auto", "mm", "anderson", "broyden", "splitting"])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_gradients_do_not_depend_on_the_solver(gamma: float, solver: str) -> None:
    weights, found = torch.randn(B, D, dtype=torch.float64), []
    for method in ("newton", solver):
        at = [tensor.requires_grad_() for tensor in arguments("symmetric")]
        phi = ib.geometry("tanh").to_box(*of_bounds(*at[2:]))
        found.append(torch.autograd.grad((weights * solve(at[0], at[1], phi, gamma, solver=method).value).sum(), at))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7)


def test_one_coordinate_by_hand() -> None:
    """½z² − cz on [lo, hi]: at c = 3 z = hi, and at c = 0.2 z = c."""
    lo, hi = (torch.tensor([end], dtype=torch.float64, requires_grad=True) for end in (-1.0, 1.0))
    c = torch.tensor([[3.0], [0.2], [-5.0]], dtype=torch.float64, requires_grad=True)
    phi = ib.geometry("tanh").to_box(lo, hi)
    solution = solve(torch.ones(1, 1, dtype=torch.float64), c, phi)
    assert solution.value.flatten().tolist() == [1.0, pytest.approx(0.2), -1.0]
    by_lo, by_hi, by_c = torch.autograd.grad(
        solution.value[:, 0] @ torch.tensor([2.0, 3.0, 5.0]).double(), (lo, hi, c), retain_graph=True
    )
    torch.testing.assert_close(by_lo, torch.tensor([5.0]).double())
    torch.testing.assert_close(by_hi, torch.tensor([2.0]).double())
    torch.testing.assert_close(by_c, torch.tensor([[0.0], [3.0], [0.0]]).double())
    # F* = ½hi² − 3hi: its derivative is that of the bound, −μ = −2
    (by_hi,) = torch.autograd.grad(solution.objective[0], hi)
    torch.testing.assert_close(by_hi, torch.tensor([-2.0]).double())


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_unrolled(gamma: float) -> None:
    """z_L as a function of the bounds, which is differentiated like any other."""
    hessian, c = drawn("symmetric")
    hessian, weights = hessian / 16, torch.randn(B, D, dtype=torch.float64)
    start = 0.5 * LO.clamp_min(-3.0) + 0.5 * HI.clamp_max(3.0)

    def loss(*bounds: Tensor) -> Tensor:
        phi, adjoint = ib.geometry("tanh").to_box(*of_bounds(*bounds)), ib.adjoints.Unrolled(steps=7)
        z0 = torch.where(torch.arange(D) == 5, bounds[2].detach(), start).expand(B, D)
        assert (phi.strong_convexity / torch.linalg.eigvalsh(hessian)[-1]) > 1  # so that τ is 1
        return (weights * solve(hessian, c, phi, gamma, adjoint=adjoint, initial=z0).value).sum()

    at = [tensor.requires_grad_() for tensor in arguments("symmetric")[2:]]
    found = torch.autograd.grad(loss(*at), at)
    along, expected = differences(loss, [tensor.detach() for tensor in at], symmetric=False)
    for gradient, direction, difference in zip(found, along, expected, strict=True):
        assert float((gradient * direction).sum()) == pytest.approx(difference, rel=1e-6)


def test_long_unroll_agrees_with_implicit() -> None:
    weights, found = torch.randn(B, D, dtype=torch.float64), []
    for adjoint in ("implicit", ib.adjoints.Unrolled(steps=600)):
        at = [tensor.requires_grad_() for tensor in arguments("symmetric")]
        phi = ib.geometry("tanh").to_box(*of_bounds(*at[2:]))
        value = solve(at[0], at[1], phi, 0.3, adjoint=adjoint).value
        found.append(torch.autograd.grad((weights * value).sum(), at))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("adjoint", ["phantom", "one_step"])
def test_approximate_adjoints(adjoint: str) -> None:
    """One step at the solution sees how the bound moves z, and not what that does to the others."""
    hi = torch.ones(2, dtype=torch.float64, requires_grad=True)
    hessian, c = torch.eye(2, dtype=torch.float64), torch.tensor([[3.0, 0.2]], dtype=torch.float64)
    value = solve(hessian, c, ib.geometry("tanh").to_box(-1.0, hi), adjoint=adjoint).value
    (gradient,) = torch.autograd.grad(value.sum(), hi)
    assert float(gradient[0]) == pytest.approx(1.0, abs=1e-6)


def test_second_derivatives() -> None:
    """In x and θ as ever; in the bounds for γ = 0, and refused for γ > 0."""
    hessian, _ = drawn("symmetric")

    def gradient(gamma: float, c: Tensor, *bounds: Tensor) -> tuple[Tensor, ...]:
        value = solve(hessian, c, ib.geometry("tanh").to_box(*of_bounds(*bounds)), gamma).value
        return torch.autograd.grad((value**3).sum(), (c, *bounds), create_graph=True)

    def loss(gamma: float, *at: Tensor) -> Tensor:
        with torch.enable_grad():
            of = [tensor.clone().requires_grad_() for tensor in at]
            return sum((part.sin()).sum() for part in gradient(gamma, *of)).detach()

    at = [tensor.requires_grad_() for tensor in arguments("symmetric")[1:]]
    found = torch.autograd.grad(sum(part.sin().sum() for part in gradient(0.0, *at)), at)
    along, expected = differences(lambda *of: loss(0.0, *of), [tensor.detach() for tensor in at], symmetric=False)
    for part, direction, difference in zip(found, along, expected, strict=True):
        assert float((part * direction).sum()) == pytest.approx(difference, rel=1e-5, abs=1e-5)

    by_c = gradient(0.3, *at)[0]
    (second,) = torch.autograd.grad(by_c.sin().sum(), at[0], retain_graph=True)
    (direction, *_), (difference, *_) = differences(
        lambda c: _sine_of_gradient(hessian, c), [at[0].detach()], symmetric=False
    )
    assert float((second * direction).sum()) == pytest.approx(difference, rel=1e-5)
    with pytest.raises(RuntimeError, match="cannot be differentiated a second time in the bounds lo and hi"):
        torch.autograd.grad(by_c.sin().sum(), at[1])


def _sine_of_gradient(hessian: Tensor, c: Tensor) -> Tensor:
    with torch.enable_grad():
        c = c.clone().requires_grad_()
        value = solve(hessian, c, boxes("tanh", (LO, HI)), 0.3).value
        return torch.autograd.grad((value**3).sum(), c)[0].sin().sum().detach()


def test_transforms() -> None:
    """In x as ever; bounds are constants there, and refused if they want a gradient."""
    hessian, c = drawn("symmetric")
    phi = boxes("tanh", (LO, HI))
    for gamma in (0.0, 0.3):
        plain = solve(hessian, c, phi, gamma).value
        torch.testing.assert_close(
            torch.func.vmap(lambda x, g=gamma: solve(hessian, x, phi, g).value)(c[:, None])[:, 0], plain
        )
        jacobian = torch.func.jacrev(lambda x, g=gamma: solve(hessian, x, phi, g).value)(c[:1])
        torch.testing.assert_close(
            torch.func.jacfwd(lambda x, g=gamma: solve(hessian, x, phi, g).value)(c[:1]), jacobian
        )
    hi = HI.clone().requires_grad_()
    moving = ib.geometry("tanh").to_box(LO, hi)
    for call in (
        lambda: torch.func.vmap(lambda x: solve(hessian, x, moving).value)(c[:, None]),
        lambda: torch.func.grad(lambda end: solve(hessian, c, ib.geometry("tanh").to_box(LO, end)).value.sum())(HI),
        lambda: torch.func.jvp(lambda end: solve(hessian, c, ib.geometry("tanh").to_box(LO, end)).value, (HI,), (HI,)),
    ):
        with pytest.raises(RuntimeError, match="to_box: "):
            call()


def test_refused() -> None:
    hi = torch.ones(3, requires_grad=True)
    phi = ib.geometry("tanh").to_box(-1.0, hi)
    energy, x = ib.QuadraticEnergy(3), torch.randn(2, 3)
    with pytest.raises(ValueError, match="Shine has no gradient to the bounds"):
        ib.find_critical_point(energy, phi, x, adjoint="shine")
    low_rank = ib.QuadraticEnergy(3, weight="low_rank", rank=1)
    with pytest.raises(ValueError, match="there is no gradient to the bounds"):
        ib.find_critical_point(low_rank, phi, x)
    with torch.no_grad():
        assert ib.find_critical_point(low_rank, phi, x).value.shape == (2, 3)
    with pytest.raises(ValueError, match="bounds of its own for each coordinate: compute in float32"):
        ib.find_critical_point(energy.bfloat16(), phi, x.bfloat16())
    unbounded = ib.geometry("tanh").to_box(torch.tensor([-1.0, -INF]), torch.tensor([1.0, 1.0]))
    with pytest.raises(ValueError, match="unbounded below"):
        solve(torch.diag(torch.tensor([1.0, -1.0])), x[:, :2], unbounded)
    fine = solve(torch.diag(torch.tensor([-1.0, 1.0])), x[:, :2], unbounded)
    assert fine.converged.all()
    outside = torch.tensor([[0.0, 0.0, 1.5]])
    with pytest.raises(ValueError, match="initial must lie in the interior"):
        ib.find_critical_point(ib.QuadraticEnergy(3), phi, x[:1], initial=outside)


def test_a_detached_solution_holds_no_graph() -> None:
    hi = HI.clone().requires_grad_()
    hessian, c = drawn("symmetric")
    solution = solve(hessian, c, ib.geometry("tanh").to_box(LO, 2 * hi), 0.3)
    detached = solution.detach()
    assert not detached.objective.requires_grad
    torch.testing.assert_close(detached.objective, solution.objective)
    again = pickle.loads(pickle.dumps(solution.detach()))
    torch.testing.assert_close(again.multiplier, solution.multiplier)


def test_a_batch_of_cotangents() -> None:
    hessian, c = drawn("symmetric")
    lo, hi = (end.clone().requires_grad_() for end in (LO, HI))
    for gamma in (0.0, 0.3):
        z = solve(hessian, c, ib.geometry("tanh").to_box(lo, hi), gamma).value
        cotangents = torch.randn(3, B, D, dtype=torch.float64)
        together = torch.autograd.grad(z, (lo, hi), cotangents, is_grads_batched=True, retain_graph=True)
        alone = [torch.autograd.grad(z, (lo, hi), g, retain_graph=True) for g in cotangents]
        for parts, part in zip(zip(*alone, strict=True), together, strict=True):
            torch.testing.assert_close(part, torch.stack(parts))


def test_layer() -> None:
    """Trained bounds: they are no parameters of the layer, but of the optimizer."""
    lo, hi = torch.zeros(4, requires_grad=True), torch.ones(4, requires_grad=True)
    layer = ib.BregmanDEQ(3, 4, geometry=ib.geometry("tanh").to_box(lo, hi))
    optimizer = torch.optim.SGD([*layer.parameters(), lo, hi], 0.1)
    x = torch.randn(8, 3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(x) - 1.5).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert (hi > 1.0).any()
    assert layer(x).max() <= hi.max()
    # what records a model has no place for the bounds
    torch.testing.assert_close(torch.compile(layer, backend="eager")(x), layer(x))


END = st.sampled_from([-INF, -2.0, -0.5, 0.0, 0.25, 1.0, 3.0, INF])


@settings(max_examples=25)
@given(st.lists(st.tuples(END, END), min_size=2, max_size=7), st.integers(0, 10_000), st.sampled_from([0.0, 0.2]))
def test_random_mixtures(ends: list[tuple[float, float]], seed: int, gamma: float) -> None:
    """The point meets its conditions, and the gradients in the bounds add up to those of moving all of C."""
    ends = [(min(pair), max(pair)) for pair in ends]
    ends = [(lo, hi) for lo, hi in ends if lo < INF and hi > -INF] or [(0.0, 1.0)]
    lo, hi = (end.clone().requires_grad_() for end in torch.tensor(ends, dtype=torch.float64).T)
    d, random = len(ends), torch.Generator().manual_seed(seed)
    factor = torch.randn(d, d, generator=random, dtype=torch.float64)
    hessian = factor @ factor.mT / d + 0.1 * torch.eye(d)
    c, g = 3 * torch.randn(2, 3, d, generator=random, dtype=torch.float64)
    phi = ib.geometry("tanh").to_box(lo, hi)
    solution = solve(hessian, c, phi, gamma)
    assert solution.converged.all()
    z, y = solution.value.detach(), solution.dual
    if gamma:
        torch.testing.assert_close(z, phi.activation(y).detach())
        error = z @ hessian - c + gamma * y
        error = error[:, (lo < hi)]  # elsewhere y says nothing
        assert not error.numel() or float(error.abs().amax()) < 1e-8 * (1 + float((gamma * y).abs().amax()) + 10)
    else:
        assert left(hessian, c, z, lo.detach(), hi.detach()) < 1e-8
    if ib.Status.DEGENERATE in solution.status.tolist():
        return
    by_lo, by_hi = torch.autograd.grad((g * solution.value).sum(), (lo, hi))
    assert torch.isfinite(by_lo).all()
    assert torch.isfinite(by_hi).all()
    # no gradient to an end that is not there, and none to one that nobody is at (γ = 0)
    assert (by_lo[torch.isinf(lo)] == 0).all()
    assert (by_hi[torch.isinf(hi)] == 0).all()
    if not gamma:
        nobody = ((z - lo).abs() > 1e-6).all(0)
        torch.testing.assert_close(by_lo[nobody], torch.zeros_like(by_lo[nobody]), rtol=0.0, atol=1e-6)


def test_a_start_next_to_a_linear_program() -> None:
    """An H that is nearly 0: the vertex that SciPy's linear program ends at."""
    _, c = drawn("symmetric")
    lo, hi = BOUNDED
    solution = solve(1e-6 * torch.eye(D, dtype=torch.float64), c, boxes("tanh", BOUNDED))
    for row in range(B):
        vertex = linprog(-c[row].numpy(), bounds=list(zip(lo.tolist(), hi.tolist(), strict=True))).x
        torch.testing.assert_close(solution.value[row], torch.tensor(vertex), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_projection_with_a_fixed_coordinate(sparse: bool) -> None:
    """dL/dV: the dual of a coordinate with lo = hi tells nothing of the multipliers."""
    random = torch.Generator().manual_seed(0)
    lo, hi = torch.tensor([0.0, -1.0, -2.0, 0.3]).double(), torch.tensor([0.2, 1.0, 0.1, 0.3]).double()
    vectors = torch.randn(4, 2, generator=random, dtype=torch.float64)
    beta = vectors.T @ torch.tensor([0.1, 0.2, -0.3, 0.3], dtype=torch.float64)
    phi = ib.geometry("tanh").to_box(lo, hi)

    def project(flat: torch.Tensor) -> torch.Tensor:
        V = flat.reshape(4, 2)
        layer = ib.BregmanProjection.from_matrix(V.to_sparse() if sparse else V, beta, phi)
        return layer.solve(initial_dual=torch.zeros(4, dtype=torch.float64)).value

    flat, step = vectors.flatten(), 1e-6
    units = torch.eye(8, dtype=torch.float64)
    expected = torch.stack([(project(flat + step * e) - project(flat - step * e)) / (2 * step) for e in units], 1)
    found = torch.autograd.functional.jacobian(project, flat)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)
    if not sparse:
        torch.testing.assert_close(torch.func.jacrev(project)(flat), expected, rtol=1e-7, atol=1e-8)
