"""Projections whose V is an operator: transport plans and sparse V, against the dense V, POT and differences."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman import Status
from implicit_bregman.operators.marginals import Marginals
from tests.versions import needs_torch

ot = pytest.importorskip("ot", reason="POT is not installed: pip install pot")

KINDS = ["marginals", "sparse"]
SHAPES = [(4, 5), (6, 3)]
SPARSE_IN_TRANSFORMS = needs_torch("2.11", "a sparse tensor inside torch.func transforms")


def sums(n: int, m: int) -> Tensor:
    """The row sums and the column sums of an n × m matrix as a dense V."""
    return torch.cat(
        [torch.kron(torch.eye(n), torch.ones(m, 1)), torch.kron(torch.ones(n, 1), torch.eye(m))], 1
    ).double()


def kind_of(kind: str, n: int, m: int) -> Tensor | Marginals:
    return ib.operators.Marginals(n, m) if kind == "marginals" else sums(n, m).to_sparse()


def problem(n: int, m: int, samples: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Costs (B, n, m) up to 1, and marginals (B, n + m) of some plan inside (0, 1)."""
    draw = torch.Generator().manual_seed(seed)
    cost, plan = (torch.rand(samples, n, m, generator=draw, dtype=torch.float64) for _ in range(2))
    plan = 0.1 + 0.5 * plan
    return cost, torch.cat([plan.sum(2), plan.sum(1)], 1)


def squares(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared distances of random points of the plane, at most 1, and two vectors of masses."""
    random = np.random.default_rng(seed)
    x, y = random.random((n, 2)), random.random((n, 2))
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    a, b = random.random(n) + 0.1, random.random(n) + 0.1
    return cost / cost.max(), a / a.sum(), b / b.sum()


def planned(a: np.ndarray, b: np.ndarray, cost: np.ndarray, epsilon: float) -> np.ndarray:
    """The plan by POT in logarithms."""
    plan, log = ot.bregman.sinkhorn_log(a, b, cost, epsilon, numItermax=100_000, stopThr=1e-14, log=True, warn=False)
    assert log["err"][-1] < 1e-12
    return plan


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("geometry", "epsilon"), [("exp", 1.0), ("exp", 0.1), ("exp", 0.01), ("softplus", 1.0), ("sigmoid", 1.0)]
)
def test_like_the_dense_v(geometry: str, epsilon: float, shape: tuple[int, int], kind: str) -> None:
    """Value, dual, and the gradients to β and y⁰."""
    cost, beta = problem(*shape)
    weights = torch.randn(cost.flatten(1).shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for v in (sums(*shape), kind_of(kind, *shape)):
        target, start = beta.clone().requires_grad_(), (-cost / epsilon).flatten(1).requires_grad_()
        found = ib.BregmanProjection.from_matrix(v, target, geometry).solve(initial_dual=start)
        assert set(found.status.tolist()) == {Status.CONVERGED}
        (found.value * weights).sum().backward()
        assert float(found.gradient_error.max()) < 1e-9
        results.append((found.value.detach(), found.dual, target.grad, start.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (1, 1)], ids=str)
def test_one_line_is_its_marginal(shape: tuple[int, int], kind: str) -> None:
    """More equations than unknowns, which a dense V may not have."""
    cost, beta = problem(*shape)
    start = (-cost).flatten(1).requires_grad_()
    found = ib.BregmanProjection.from_matrix(kind_of(kind, *shape), beta, "exp").solve(initial_dual=start)
    assert bool(found.converged.all())
    expected = beta[:, 1:] if shape[0] == 1 else beta[:, :-1]
    torch.testing.assert_close(found.value.detach(), expected, rtol=0, atol=1e-11)
    found.value.square().sum().backward()
    assert float(start.grad.abs().max()) < 1e-11


@pytest.mark.parametrize(("n", "epsilon"), [(10, 1.0), (10, 0.1), (10, 0.01), (50, 0.1), (50, 0.01), (100, 0.03)])
def test_like_pot(n: int, epsilon: float) -> None:
    cost, a, b = squares(n)
    beta, dual = torch.from_numpy(np.concatenate([a, b])), torch.from_numpy(-cost / epsilon).flatten()
    found = ib.BregmanProjection.from_matrix(ib.operators.Marginals(n, n), beta, "exp").solve(initial_dual=dual)
    assert bool(found.converged)
    np.testing.assert_allclose(found.value.reshape(n, n), planned(a, b, cost, epsilon), rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [10, 60])
def test_a_small_epsilon(n: int) -> None:
    """ε = 1e-3: the marginals, POT's plan where that converges, and its costs near the optimum."""
    cost, a, b = squares(n)
    beta, dual = torch.from_numpy(np.concatenate([a, b])), torch.from_numpy(-cost / 1e-3).flatten()
    found = ib.BregmanProjection.from_matrix(ib.operators.Marginals(n, n), beta, "exp").solve(initial_dual=dual)
    assert bool(found.converged)
    plan = found.value.reshape(n, n).numpy()
    np.testing.assert_allclose(plan.sum(1), a, rtol=0, atol=1e-12)
    np.testing.assert_allclose(plan.sum(0), b, rtol=0, atol=1e-12)
    if n == 10:
        np.testing.assert_allclose(plan, planned(a, b, cost, 1e-3), rtol=0, atol=1e-9)
    best = ot.emd2(a, b, cost)
    assert best - 1e-12 <= (plan * cost).sum() <= best + 1e-3 * np.log(n * n)


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.02])
def test_gradients_of_the_plan_by_differences(epsilon: float) -> None:
    """To the costs and the masses, and to all orders where it is differentiated again."""
    cost, beta = problem(3, 4, samples=2)
    weights = torch.randn(2, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = (cost.requires_grad_(), beta.requires_grad_())

    def projected(cost: Tensor, beta: Tensor) -> Tensor:
        balanced = torch.cat([beta[:, :3], beta[:, 3:] * (beta[:, :3].sum(1) / beta[:, 3:].sum(1))[:, None]], 1)
        plans = ib.BregmanProjection.from_matrix(ib.operators.Marginals(3, 4), balanced, "exp")
        return (plans.solve(initial_dual=(-cost / epsilon).flatten(1)).value * weights).sum(1)

    assert torch.autograd.gradcheck(projected, leaves, rtol=1e-5, atol=1e-7)
    if epsilon == 1.0:
        assert torch.autograd.gradgradcheck(projected, leaves, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_the_cost_is_the_plan() -> None:
    """min ⟨C, P⟩ + ε Σ P (log P − 1) has the derivative P in C, and ε λ in the masses."""
    cost, beta = problem(4, 4, samples=1)
    epsilon, cost, beta = 0.05, cost[0].requires_grad_(), beta[0].requires_grad_()
    plans = ib.BregmanProjection.from_matrix(ib.operators.Marginals(4, 4), beta, "exp")
    found = plans.solve(initial_dual=(-cost / epsilon).flatten())
    plan = found.value
    (cost.flatten() @ plan + epsilon * (torch.xlogy(plan, plan) - plan).sum()).backward()
    torch.testing.assert_close(cost.grad, plan.detach().reshape(4, 4), rtol=1e-9, atol=1e-12)
    multiplier = (found.dual + cost.detach().flatten() / epsilon).reshape(4, 4)
    torch.testing.assert_close(beta.grad[:4, None] + beta.grad[None, 4:], epsilon * multiplier, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lines_without_mass(dtype: torch.dtype) -> None:
    """A row and a column of zeros: 0 exactly, the plan of the others, and derivatives for masses that grow."""
    n, m, epsilon = 4, 5, 0.1
    cost, beta = problem(n, m, samples=1)
    cost, beta = cost[0], beta[0]
    beta[1], beta[n + 2] = 0, 0
    beta[n:] *= beta[:n].sum() / beta[n:].sum()
    draw = torch.Generator().manual_seed(3)
    weights, move = (torch.randn(n * m, generator=draw, dtype=torch.float64) for _ in range(2))
    target, costs = (part.to(dtype, copy=True).requires_grad_() for part in (beta, cost))
    found = ib.BregmanProjection.from_matrix(ib.operators.Marginals(n, m), target, "exp").solve(
        initial_dual=(-costs / epsilon).flatten()
    )
    assert found.status == Status.DEGENERATE
    plan = found.value.reshape(n, m)
    assert not bool(plan[1].any())
    assert not bool(plan[:, 2].any())
    assert bool(torch.isfinite(found.dual).all())
    (found.value.double() * weights).sum().backward()
    tolerance = 1e-6 if dtype == torch.float64 else 3e-3

    def value(cost: Tensor, beta: Tensor) -> float:
        layer = ib.BregmanProjection.from_matrix(ib.operators.Marginals(n, m), beta, "exp")
        return float(layer.solve(initial_dual=(-cost / epsilon).flatten()).value @ weights)

    step = 1e-6
    slope = (value(cost + step * move.reshape(n, m), beta) - value(cost - step * move.reshape(n, m), beta)) / (2 * step)
    assert float(costs.grad.flatten().double() @ move) == pytest.approx(slope, rel=tolerance, abs=tolerance)
    assert not bool(costs.grad[1].any())
    # Mass that is added to the empty lines, and taken from a full one.
    for place, other in ((1, n), (n + 2, 0), (1, n + 2)):
        more = beta.clone()
        more[place] += 1e-7
        more[other] += 1e-7
        slope = (value(cost, more) - value(cost, beta)) / 1e-7
        own = float(target.grad[place] + target.grad[other])
        assert own == pytest.approx(slope, rel=max(tolerance, 1e-4), abs=max(tolerance, 1e-4))


def test_nothing_to_transport() -> None:
    found = ib.BregmanProjection.from_matrix(ib.operators.Marginals(2, 3), torch.zeros(5).double(), "exp").solve()
    assert found.status == Status.DEGENERATE
    assert not bool(found.value.any())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("geometry", ["exp", "sigmoid"])
def test_what_has_no_plan_is_softened(geometry: str, kind: str) -> None:
    """Sums that differ, and masses that are negative: the status, value and gradients of the dense V."""
    cost, beta = problem(3, 4)
    beta[0, 0] += 0.5
    if geometry == "exp":
        beta[1, 0], beta[1, 1] = -0.2, beta[1, 1] + beta[1, 0] + 0.2
    results = []
    for v in (sums(3, 4), kind_of(kind, 3, 4)):
        target, start = beta.clone().requires_grad_(), (-cost).flatten(1).requires_grad_()
        layer = ib.BregmanProjection.from_matrix(v, target, geometry, softening=0.1)
        with pytest.warns(ib.ConvergenceWarning, match="INFEASIBLE"):
            found = layer.solve(initial_dual=start)
        expected = [Status.INFEASIBLE, Status.INFEASIBLE if geometry == "exp" else 0, 0]
        assert found.status.tolist() == expected
        found.value.square().sum().backward()
        results.append((found.value.detach(), target.grad, start.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_marginals_that_agree_to_rounding_are_balanced() -> None:
    cost, beta = problem(5, 5)
    beta = beta.float()
    beta[:, :5] *= 1 + 1e-7
    found = ib.BregmanProjection.from_matrix(ib.operators.Marginals(5, 5), beta, "exp").solve(
        initial_dual=-10 * cost.flatten(1).float()
    )
    assert set(found.status.tolist()) == {Status.CONVERGED}
    assert found.value.dtype == torch.float32


def test_float32_like_float64() -> None:
    cost, beta = problem(6, 7)
    cost = cost.float().double()
    results = []
    for dtype in (torch.float64, torch.float32):
        target, start = (part.to(dtype, copy=True).requires_grad_() for part in (beta, -20 * cost.flatten(1)))
        found = ib.BregmanProjection.from_matrix(ib.operators.Marginals(6, 7), target, "exp").solve(initial_dual=start)
        assert bool(found.converged.all())
        found.value.square().sum().backward()
        results.append([part.double() for part in (found.value.detach(), target.grad, start.grad)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_samples_do_not_see_each_other() -> None:
    """Costs of several scales in one batch, as alone; one cost for all masses, and one mass for all costs."""
    cost, beta = problem(5, 4)
    dual = -cost.flatten(1) * torch.tensor([[1.0], [30.0], [800.0]], dtype=torch.float64)
    v = ib.operators.Marginals(5, 4)
    together = ib.BregmanProjection.from_matrix(v, beta, "exp").solve(initial_dual=dual)
    for row, start, target in zip(together.value, dual, beta, strict=True):
        alone = ib.BregmanProjection.from_matrix(v, target, "exp").solve(initial_dual=start)
        torch.testing.assert_close(row, alone.value, rtol=1e-9, atol=1e-12)
    one = ib.BregmanProjection.from_matrix(v, beta, "exp").solve(initial_dual=dual[0])
    torch.testing.assert_close(one.value[0], together.value[0], rtol=1e-10, atol=1e-13)
    many = ib.BregmanProjection.from_matrix(v, beta[0], "exp").solve(initial_dual=dual.reshape(3, 1, 20))
    assert many.value.shape == (3, 1, 20)
    torch.testing.assert_close(many.value[0, 0], together.value[0], rtol=1e-10, atol=1e-13)


def test_a_solution_is_a_start() -> None:
    cost, beta = problem(6, 6)
    plans = ib.BregmanProjection.from_matrix(ib.operators.Marginals(6, 6), beta, "exp")
    found = plans.solve(initial_dual=-300 * cost.flatten(1))
    again = plans.solve(found)
    torch.testing.assert_close(again.value, found.value, rtol=1e-9, atol=1e-12)
    assert int(again.iterations.max()) == 0


def test_memory_does_not_grow_with_the_iterations() -> None:
    """What autograd keeps for the backward pass."""
    cost, beta = problem(8, 8)
    kept = []
    for epsilon in (1.0, 1e-3):
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        start = (-cost / epsilon).flatten(1).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            ib.BregmanProjection.from_matrix(ib.operators.Marginals(8, 8), beta, "exp").solve(initial_dual=start)
        kept.append(sum(sizes))
    assert kept[0] == kept[1] < 5 * cost.numel()


@pytest.mark.parametrize("epsilon", [1e-2, 1e-5])
@pytest.mark.parametrize("kind", ["points", "assignment", "ties", "no costs", "tiny masses"])
def test_hard_plans(kind: str, epsilon: float) -> None:
    """The marginals, each to its own size, and a backward pass that is solved."""
    n = 20
    cost, a, b = map(torch.from_numpy, squares(n))
    if kind == "assignment":
        cost = torch.rand(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        a = b = torch.full((n,), 1 / n, dtype=torch.float64)
    elif kind == "ties":
        place = torch.arange(n).double() / n
        cost = (place[:, None] - place[None]).abs()
    elif kind == "no costs":
        cost = torch.zeros_like(cost)
    elif kind == "tiny masses":
        a = torch.cat([torch.tensor([1e-12, 1e-30, 1e-200]).double(), a[3:]])
        b = b * (a.sum() / b.sum())
    beta, start = torch.cat([a, b]), (-cost / epsilon).flatten().requires_grad_()
    found = ib.BregmanProjection.from_matrix(ib.operators.Marginals(n, n), beta, "exp").solve(initial_dual=start)
    assert found.status in (Status.CONVERGED, Status.DEGENERATE)
    plan = found.value.reshape(n, n)
    torch.testing.assert_close(plan.detach().sum(1), a, rtol=1e-9, atol=0)
    torch.testing.assert_close(plan.detach().sum(0), b, rtol=1e-9, atol=0)
    best = ot.emd2(a.numpy(), b.numpy(), cost.numpy())
    assert float((plan.detach() * cost).sum()) <= best + epsilon * np.log(n * n)
    (plan * cost).sum().backward()
    assert found.adjoint.status == Status.CONVERGED
    assert bool(torch.isfinite(start.grad).all())


def test_potentials_of_any_size_change_nothing() -> None:
    """y⁰ + f ⊕ g has the same projection, with f of the size of 1e3."""
    cost, beta = problem(5, 6)
    v, draw = ib.operators.Marginals(5, 6), torch.Generator().manual_seed(5)
    plans = ib.BregmanProjection.from_matrix(v, beta, "exp")
    start = -50 * cost.flatten(1)
    moved = start + v.product(1000 * torch.randn(3, 11, generator=draw, dtype=torch.float64))
    one, other = (plans.solve(initial_dual=y) for y in (start, moved))
    assert bool(other.converged.all())
    torch.testing.assert_close(one.value, other.value, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("kind", ["marginals", pytest.param("sparse", marks=SPARSE_IN_TRANSFORMS)])
def test_transforms(kind: str) -> None:
    """jvp, vmap and double backward against the dense V."""
    cost, beta = problem(3, 3, samples=2)
    start = -2 * cost.flatten(1)

    def value(v: object, start: Tensor, beta: Tensor) -> Tensor:
        return ib.BregmanProjection.from_matrix(v, beta, "exp").solve(initial_dual=start).value

    def all_of(v: object) -> list[Tensor]:
        moves = (torch.ones_like(start).cumsum(1), torch.zeros_like(beta))
        _, along = torch.func.jvp(lambda *t: value(v, *t), (start, beta), moves)
        mapped = torch.func.vmap(lambda y: value(v, y, beta))(torch.stack([start, 2 * start]))
        leaf = start.clone().requires_grad_()
        (first,) = torch.autograd.grad(value(v, leaf, beta).square().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        return [along, mapped, first.detach(), second]

    for one, other in zip(all_of(sums(3, 3)), all_of(kind_of(kind, 3, 3)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_the_gradient_of_a_sparse_v() -> None:
    draw = torch.Generator().manual_seed(0)
    dense = torch.randn(6, 2, generator=draw, dtype=torch.float64)
    dense[[0, 3], [1, 0]] = 0
    y0 = torch.randn(3, 6, generator=draw, dtype=torch.float64)
    beta = ib.geometry("tanh").activation(torch.randn(3, 6, generator=draw, dtype=torch.float64)) @ dense
    results = []
    for sparse in (False, True):
        v = dense.clone().requires_grad_()
        layer = ib.BregmanProjection.from_matrix(v.to_sparse() if sparse else v, beta, "tanh")
        found = layer.solve(initial_dual=y0)
        assert bool(found.converged.all())
        found.value.square().sum().backward()
        results.append((found.value.detach(), v.grad * (dense != 0)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_wide_sparse_v(layout: torch.layout) -> None:
    """20,000 unknowns, 2,000 equations: sums over ten neighbours each."""
    d, r = 20_000, 2_000
    places = torch.stack([torch.arange(d), torch.arange(d) // 10])
    v = torch.sparse_coo_tensor(places, torch.ones(d).double(), (d, r))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        v = v.coalesce() if layout == torch.sparse_coo else v.to_sparse_csr()
    y0 = torch.randn(d, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    found = ib.BregmanProjection.from_matrix(v, torch.ones(r).double(), "exp").solve(initial_dual=y0)
    assert bool(found.converged)
    expected = y0.detach().reshape(r, 10).softmax(-1)
    torch.testing.assert_close(found.value.detach().reshape(r, 10), expected, rtol=1e-10, atol=1e-12)
    found.value[:10].square().sum().backward()
    z = expected[0]
    torch.testing.assert_close(y0.grad[:10], 2 * z * (z - z @ z), rtol=1e-9, atol=1e-12)
    assert float(y0.grad[10:].abs().max()) < 1e-12


@pytest.mark.parametrize("solver", ["newton", "mm", "anderson"])
def test_other_solvers(solver: str) -> None:
    cost, beta = problem(3, 4)
    expected = ib.BregmanProjection.from_matrix(sums(3, 4), beta, "sigmoid").solve(initial_dual=-cost.flatten(1))
    layer = ib.BregmanProjection.from_matrix(ib.operators.Marginals(3, 4), beta, "sigmoid", solver=solver)
    found = layer.solve(initial_dual=-cost.flatten(1))
    assert bool(found.converged.all())
    torch.testing.assert_close(found.value, expected.value, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("adjoint", [ib.adjoints.Unrolled(steps=30), "one_step", "phantom"])
def test_other_adjoints(adjoint: object) -> None:
    cost, beta = problem(3, 4)
    results = []
    for v in (sums(3, 4), ib.operators.Marginals(3, 4)):
        start = (-cost.flatten(1)).requires_grad_()
        target = beta.clone().requires_grad_()
        layer = ib.BregmanProjection.from_matrix(v, target, "sigmoid", adjoint=adjoint)
        found = layer.solve(initial_dual=start)
        found.value.square().sum().backward()
        results.append((found.value.detach(), target.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    exponent=st.floats(-1, 4),
    empty=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_any_plan(rows: int, columns: int, exponent: float, empty: int, seed: int) -> None:
    """y = y⁰ + f ⊕ g and the marginals are all there is to a plan."""
    random = np.random.default_rng(seed)
    plan = random.random((rows, columns)) ** 4
    plan[: min(empty, rows - 1)] = 0
    beta = torch.from_numpy(np.concatenate([plan.sum(1), plan.sum(0)]))
    start = torch.from_numpy(-(10**exponent) * random.random(rows * columns)).requires_grad_()
    v = ib.operators.Marginals(rows, columns)
    found = ib.BregmanProjection.from_matrix(v, beta, "exp").solve(initial_dual=start)
    assert not Status(int(found.status)).failed
    error = (v.product(found.value.detach()[None], adjoint=True)[0] - beta).abs()
    assert bool((error <= 1e-10 * (1e-3 + beta)).all())
    moved = (found.dual - start.detach()).reshape(rows, columns)
    cross = moved - moved[:1] - moved[:, :1] + moved[:1, :1]
    assert float(cross.abs().max()) <= 1e-11 * (1 + 10**exponent) * 100
    found.value.square().sum().backward()
    assert bool(torch.isfinite(start.grad).all())
    # (what moves y⁰ by f ⊕ g changes nothing)
    size = float(start.grad.abs().max())
    assert float(v.product(start.grad[None], adjoint=True).abs().max()) <= 1e-9 * (1e-3 + size)


def test_the_layer() -> None:
    """Its parameters, its V, its copies, and moves to another precision."""
    v = sums(3, 4).to_sparse()
    layer = ib.BregmanProjection.from_matrix(v, torch.ones(7).double(), "exp")
    assert layer.V.shape == (12, 7)
    assert "features=12, constraints=7" in repr(layer)
    layer.reset_parameters()
    single = layer.float()
    assert single.V.dtype == torch.float32
    again = pickle.loads(
        pickle.dumps(ib.BregmanProjection.from_matrix(ib.operators.Marginals(3, 4), layer.beta, "exp"))
    )
    assert again.V.shape == (12, 7)
    beta = torch.nn.Parameter(torch.ones(7))
    layer = ib.BregmanProjection.from_matrix(ib.operators.Marginals(3, 4), beta, "exp")
    assert [name for name, _ in layer.named_parameters()] == ["beta"]


@pytest.mark.parametrize(
    ("v", "beta", "error", "message"),
    [
        (ib.operators.Marginals(3, 4), torch.ones(6), ValueError, r"beta must have shape \(7,\).*V of shape \(12, 7\)"),
        (ib.operators.Marginals(3, 4), torch.ones(7).long(), TypeError, "beta must be a floating-point tensor"),
        (torch.eye(3).to_sparse(), torch.ones(3).double(), ValueError, "beta is torch.float64 .* V is torch.float32"),
        (torch.eye(3).long().to_sparse(), torch.ones(3), TypeError, "V must be a floating-point tensor"),
        (torch.ones(2, 3, 4).to_sparse(), torch.ones(3), ValueError, r"V must have shape \(d, r\)"),
        (ib.operators.Dense(torch.eye(3)), torch.ones(3), TypeError, r"operators.Marginals\(n, m\), got Dense"),
        ("V", torch.ones(3), TypeError, "V must be a tensor"),
    ],
)
def test_refusals(v: object, beta: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ib.BregmanProjection.from_matrix(v, beta, "exp")


def test_refusals_of_sizes_starts_and_methods() -> None:
    with pytest.raises(ValueError, match="rows"):
        ib.operators.Marginals(0, 3)
    layer = ib.BregmanProjection.from_matrix(ib.operators.Marginals(3, 4), torch.ones(7).double(), "exp")
    with pytest.raises(ValueError, match=r"initial_dual has the shape .*\(3, 4\).*flatten\(-2\)"):
        layer.solve(initial_dual=torch.zeros(3, 4).double())
    layer.adjoint = ib.adjoints.Implicit(method="cg")
    with pytest.raises(ValueError, match='use method="auto"'):
        layer.solve()
    with pytest.raises(ValueError, match="softening"):
        ib.BregmanProjection.from_matrix(ib.operators.Marginals(3, 4), torch.ones(7), "exp", softening=0.0)
    with pytest.raises(ValueError, match="not Legendre"):
        ib.BregmanProjection.from_matrix(ib.operators.Marginals(3, 4), torch.ones(7), "sin")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("geometry", ["exp", "sigmoid", "softplus"])
def test_with_regularization_it_is_a_critical_point(geometry: str, kind: str) -> None:
    """The energy by itself, γ > 0: value, objective, multiplier and gradient of the dense V."""
    _, beta = problem(3, 4)
    results = []
    for v in (sums(3, 4), kind_of(kind, 3, 4)):
        target = beta.clone().requires_grad_()
        layer = ib.BregmanProjection.from_matrix(v, target, geometry)
        found = ib.find_critical_point(layer.energy, geometry, target, regularization=0.3)
        assert bool(found.converged.all())
        (found.value.square().sum() + found.objective.sum()).backward()
        results.append((found.value.detach(), found.objective.detach(), found.multiplier.detach(), target.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
