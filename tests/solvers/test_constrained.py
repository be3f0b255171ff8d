"""Affine constraints besides C: against OSQP, SciPy, scikit-learn, the projection and finite differences."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import osqp
import pytest
import scipy.optimize
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import SVC
from torch import Tensor

import implicit_bregman as ib

INF = math.inf
D, R, B = 12, 4, 3
#: An equation, an interval, and one bound on either side.
KINDS = ("equation", "interval", "upper", "lower")


def problem(seed: int, d: int = D, r: int = R, batch: int = B) -> dict[str, Tensor]:
    """A QP whose constraints a point inside [0, 1]^d meets."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    a, v, inside = randn(d, d), randn(d, r), torch.rand(d, generator=g, dtype=torch.float64)
    middle = inside @ v
    lower, upper = middle.clone(), middle.clone()
    for j in range(r):
        kind = KINDS[j % len(KINDS)]
        if kind != "equation":
            lower[j] -= INF if kind == "upper" else 0.3
            upper[j] += INF if kind == "lower" else 0.3
    return {"h": a @ a.T / d + 0.1 * torch.eye(d), "c": 2 * randn(batch, d), "v": v, "lower": lower, "upper": upper}


def solve(
    h: Tensor, c: Tensor, v: Tensor, lower: Tensor, upper: Tensor, phi: Any = None, gamma: float = 0.0, **settings: Any
) -> ib.ConstrainedSolution:
    phi = ib.geometry("tanh").to_box(0.0, 1.0) if phi is None else phi
    energy = ib.QuadraticEnergy.from_matrices(-h)
    return ib.find_constrained_point(energy, phi, c, ib.Constraints(v, lower, upper), regularization=gamma, **settings)


def by_osqp(h: Tensor, c: Tensor, rows: Tensor, lower: Tensor, upper: Tensor) -> np.ndarray:
    """min ½zᵀHz − cᵀz with l ≤ rows z ≤ u, one c."""
    solver = osqp.OSQP()
    matrix = scipy.sparse.csc_matrix(rows.numpy())
    solver.setup(
        scipy.sparse.csc_matrix(np.triu(h.numpy())),
        -c.numpy(),
        matrix,
        lower.numpy(),
        upper.numpy(),
        verbose=False,
        eps_abs=1e-10,
        eps_rel=1e-10,
        max_iter=200_000,
    )
    return solver.solve(raise_error=False).x


def kkt_violation(q: dict[str, Tensor], found: ib.ConstrainedSolution, lo: float = 0.0, hi: float = 1.0) -> float:
    """By how much the KKT conditions are missed, those of the signs of λ included."""
    z, multiplier, s = found.value, found.constraint_multiplier, found.value @ q["v"]
    force = q["c"] - z @ q["h"] - multiplier @ q["v"].T
    stationary = (z - (z + force).clamp(lo, hi)).abs().max()
    complementary = (s - torch.minimum(torch.maximum(s + multiplier, q["lower"]), q["upper"])).abs().max()
    return float(torch.maximum(stationary, complementary))


@pytest.mark.parametrize("seed", range(4))
def test_quadratic_programs(seed: int) -> None:
    q = problem(seed)
    found = solve(**q)
    assert found.converged.all()
    assert kkt_violation(q, found) < 1e-9
    rows = torch.cat([q["v"].T, torch.eye(D).double()])
    ends = [torch.cat([q[end], torch.full((D,), bound).double()]) for end, bound in (("lower", 0.0), ("upper", 1.0))]
    for i in range(B):
        expected = by_osqp(q["h"], q["c"][i], rows, *ends)
        np.testing.assert_allclose(found.value[i], expected, rtol=0, atol=1e-6)
    assert (found.violation <= 1).all()
    assert (found.value @ q["v"] >= q["lower"] - 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["auto", "newton", "anderson", "splitting"])
def test_solvers_and_precisions(solver: str, dtype: torch.dtype) -> None:
    q = problem(5)
    exact = solve(**q)
    found = solve(**{name: tensor.to(dtype) for name, tensor in q.items()}, solver=solver)
    assert found.value.dtype == dtype
    assert found.converged.all()
    atol = 1e-4 if dtype == torch.float32 else 1e-7
    torch.testing.assert_close(found.value.double(), exact.value, rtol=0, atol=atol)
    torch.testing.assert_close(
        found.constraint_multiplier.double(), exact.constraint_multiplier, rtol=0, atol=1e2 * atol
    )


@pytest.mark.filterwarnings("ignore:Values in x were outside bounds:RuntimeWarning")
def test_with_an_entropy() -> None:
    """γ > 0, by SciPy's SLSQP."""
    q, gamma = problem(6), 0.4
    found = solve(**q, phi="sigmoid", gamma=gamma)
    assert found.converged.all()
    h, v = q["h"].numpy(), q["v"].numpy()
    for i in range(B):
        c = q["c"][i].numpy()

        def value(z: np.ndarray, c: np.ndarray = c) -> float:
            return 0.5 * z @ h @ z - c @ z + gamma * (z * np.log(z) + (1 - z) * np.log(1 - z)).sum()

        def slope(z: np.ndarray, c: np.ndarray = c) -> np.ndarray:
            return h @ z - c + gamma * np.log(z / (1 - z))

        equal = q["lower"] == q["upper"]
        conditions = []
        for j in range(R):
            if equal[j]:
                conditions.append({"type": "eq", "fun": lambda z, j=j: z @ v[:, j] - float(q["lower"][j])})
                continue
            for end, sign in (("lower", 1.0), ("upper", -1.0)):
                bound = float(q[end][j])
                if math.isfinite(bound):
                    conditions.append({"type": "ineq", "fun": lambda z, j=j, b=bound, s=sign: s * (z @ v[:, j] - b)})
        best = scipy.optimize.minimize(
            value,
            np.full(D, 0.5),
            jac=slope,
            bounds=[(1e-9, 1 - 1e-9)] * D,
            constraints=conditions,
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        np.testing.assert_allclose(found.value[i], best.x, rtol=0, atol=1e-5)
        assert float(found.objective[i]) <= best.fun + 1e-9


def test_equations_alone_are_the_bregman_projection() -> None:
    """f = −⟨y⁰, z⟩ and γ = 1: D_φ(z, z⁰) up to a constant, on Vᵀz = β; values and gradients."""
    q, g = problem(7), torch.Generator().manual_seed(1)
    v, beta = q["v"].clone().requires_grad_(), (torch.rand(D, generator=g).double() @ q["v"]).requires_grad_()
    y, weight = (torch.randn(B, D, generator=g, dtype=torch.float64) for _ in range(2))
    y.requires_grad_()
    energy = ib.QuadraticEnergy.from_matrices(torch.zeros(D, D).double())
    found = ib.find_constrained_point(energy, "exp", y, ib.Constraints.equal(v, beta), regularization=1.0)
    expected = ib.BregmanProjection.from_matrix(v, beta, "exp").solve(initial_dual=y)
    assert found.converged.all()
    torch.testing.assert_close(found.value, expected.value)
    grads = [torch.autograd.grad((weight * s.value).sum(), [v, beta, y]) for s in (found, expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def by_differences(q: dict[str, Tensor], name: str, **how: Any) -> None:
    """The derivatives of the point, λ and F in one of the tensors, in a random direction."""
    g = torch.Generator().manual_seed(11)
    weight, weights = torch.randn(B, D, generator=g).double(), torch.randn(B, R, generator=g).double()
    move = torch.randn(q[name].shape, generator=g, dtype=torch.float64)
    move = move + move.T if name == "h" else torch.where(torch.isfinite(q[name]), move, 0.0)

    def losses(q: dict[str, Tensor]) -> list[Tensor]:
        found = solve(**q, **how)
        losses = [(weight * found.value).sum(), (weights * found.constraint_multiplier).sum()]
        return losses if found.objective is None else [*losses, found.objective.sum()]

    def moved(t: float) -> dict[str, Tensor]:
        new = q | {name: q[name] + t * move}
        if name == "lower":  # the equation stays one
            equal = q["lower"] == q["upper"]
            new["upper"] = torch.where(equal, new["lower"], q["upper"])
        return new

    leaf = q[name].clone().requires_grad_()
    given = q | {name: leaf}
    if name == "lower":
        given["upper"] = torch.where(q["lower"] == q["upper"], leaf, q["upper"])
    if name == "upper":
        move = torch.where(q["lower"] == q["upper"], 0.0, move)
    step = 1e-6
    with torch.no_grad():
        ahead, behind = losses(moved(step)), losses(moved(-step))
    for loss, one, other in zip(losses(given), ahead, behind, strict=True):
        (grad,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        torch.testing.assert_close((grad * move).sum(), (one - other) / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["h", "c", "v", "lower", "upper"])
@pytest.mark.parametrize("gamma", [0.0, 0.4])
def test_gradients(gamma: float, name: str) -> None:
    by_differences(problem(8), name, phi="sigmoid" if gamma else None, gamma=gamma)


@pytest.mark.parametrize("name", ["h", "c", "v"])
def test_gradients_without_symmetry(name: str) -> None:
    q = problem(9)
    skew = torch.randn(D, D, generator=torch.Generator().manual_seed(2)).double()
    q["h"] = q["h"] + 0.3 * (skew - skew.T)
    if name == "h":
        return by_differences_of_skew(q)
    return by_differences(q, name)


def by_differences_of_skew(q: dict[str, Tensor]) -> None:
    leaf, weight = q["h"].clone().requires_grad_(), torch.arange(D).double().cos()
    (grad,) = torch.autograd.grad((weight * solve(**q | {"h": leaf}).value).sum(), leaf)
    move, step = torch.randn(D, D, generator=torch.Generator().manual_seed(3)).double(), 1e-6
    with torch.no_grad():
        ends = [(weight * solve(**q | {"h": q["h"] + t * move}).value).sum() for t in (step, -step)]
    torch.testing.assert_close((grad * move).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-6)


def test_gradients_to_the_bounds_of_c() -> None:
    q = problem(10)
    lo, hi = torch.zeros(D).double().requires_grad_(), torch.ones(D).double().requires_grad_()

    def loss(lo: Tensor, hi: Tensor) -> Tensor:
        found = solve(**q, phi=ib.geometry("tanh").to_box(lo, hi))
        return (found.value * torch.arange(D).double().sin()).sum()

    grads = torch.autograd.grad(loss(lo, hi), [lo, hi])
    step, move = 1e-6, torch.linspace(-1, 1, D).double()
    with torch.no_grad():
        for number, grad in enumerate(grads):
            ends = [loss(lo + t * move, hi) if number == 0 else loss(lo, hi + t * move) for t in (step, -step)]
            torch.testing.assert_close((grad * move).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-6)


class Quartic(ib.Energy):
    """¼Σ(z − a)⁴ + ½‖z‖² − ⟨x, z⟩ of states of a shape."""

    def __init__(self, features: int | tuple[int, ...]) -> None:
        super().__init__(features, convex=True)
        self.a = torch.nn.Parameter(torch.tensor(0.3).double())

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        terms = 0.25 * (z - self.a) ** 4 + 0.5 * z.square() - x * z
        return terms.flatten(x.dim() - z.dim() + 1 if isinstance(self.features, tuple) else -1).sum(-1)


@pytest.mark.parametrize("gamma", [0.0, 0.2])
@pytest.mark.parametrize("features", [D, (3, 4)])
def test_energies_of_ones_own(features: int | tuple[int, ...], gamma: float) -> None:
    q, energy = problem(12), Quartic(features)
    event = (features,) if isinstance(features, int) else features
    x = q["c"].reshape(B, *event)
    constraints = ib.Constraints(q["v"], q["lower"], q["upper"])
    phi = ib.geometry("tanh").to_box(0.0, 1.0)
    found = ib.find_constrained_point(energy, phi, x, constraints, regularization=gamma)
    assert found.converged.all()
    assert found.value.shape == (B, *event)
    s = found.value.flatten(1) @ q["v"]
    assert ((s >= q["lower"] - 1e-7) & (s <= q["upper"] + 1e-7)).all()
    (grad,) = torch.autograd.grad(found.value.sum(), energy.a)
    ends, step = [], 1e-5
    for sign in (1, -1):
        with torch.no_grad():
            energy.a.add_(sign * step)
            ends.append(ib.find_constrained_point(energy, phi, x, constraints, regularization=gamma).value.sum())
            energy.a.sub_(sign * step)
    torch.testing.assert_close(grad, (ends[0] - ends[1]) / (2 * step), rtol=1e-3, atol=1e-5)


def test_a_portfolio() -> None:
    """Shares on the simplex with a least return, by OSQP."""
    g = torch.Generator().manual_seed(4)
    returns, noise = torch.rand(8, generator=g).double(), torch.randn(40, 8, generator=g).double()
    risk = noise.T @ noise / 40
    wanted = 0.8 * returns.max()[None]
    found = ib.find_constrained_point(
        ib.QuadraticEnergy.from_matrices(-risk),
        "simplex",
        torch.zeros(1, 8).double(),
        ib.Constraints(returns[:, None], wanted, torch.full_like(wanted, INF)),
    )
    assert found.converged.all()
    rows = torch.cat([returns[None], torch.ones(1, 8).double(), torch.eye(8).double()])
    lower = torch.cat([wanted, torch.ones(1).double(), torch.zeros(8).double()])
    upper = torch.cat([torch.full((1,), INF).double(), torch.ones(9).double()])
    expected = by_osqp(risk, torch.zeros(8).double(), rows, lower, upper)
    np.testing.assert_allclose(found.value[0], expected, rtol=0, atol=1e-6)
    assert float(found.constraint_multiplier[0, 0]) < 0  # the lower bound is active


def kernel(points: Tensor, width: Tensor) -> Tensor:
    return torch.exp(-torch.cdist(points, points).square() / (2 * width**2))


def test_a_support_vector_machine_with_a_bias() -> None:
    """min ½αᵀQα − Σα, 0 ≤ α ≤ C, yᵀα = 0: α and the bias of scikit-learn, and the derivative in the kernel's width."""
    g = torch.Generator().manual_seed(5)
    points = torch.randn(40, 2, generator=g).double()
    labels = torch.where(
        points[:, 0] + 0.5 * points[:, 1] ** 2 + 0.4 * torch.randn(40, generator=g).double() > 0.3, 1.0, -1.0
    )
    labels = labels.double()
    cost, width = 2.0, torch.tensor(0.9).double().requires_grad_()

    def fit(width: Tensor) -> ib.ConstrainedSolution:
        q = labels[:, None] * kernel(points, width) * labels
        return ib.find_constrained_point(
            ib.QuadraticEnergy.from_matrices(-q),
            ib.geometry("tanh").to_box(0.0, cost),
            torch.ones(1, 40).double(),
            ib.Constraints.equal(labels[:, None], torch.zeros(1).double()),
        )

    found = fit(width)
    assert found.converged.all()
    theirs = SVC(C=cost, gamma=float(1 / (2 * width.detach() ** 2)), tol=1e-10).fit(points.numpy(), labels.numpy())
    alpha = np.zeros(40)
    alpha[theirs.support_] = np.abs(theirs.dual_coef_[0])
    np.testing.assert_allclose(found.value[0].detach(), alpha, rtol=0, atol=1e-6)
    # ∇F + λy = 0 for a free α says y(Kαy) − 1 + λy = 0, so λ is the bias
    np.testing.assert_allclose(found.constraint_multiplier[0, 0].item(), theirs.intercept_[0], rtol=0, atol=1e-6)

    def loss(found: ib.ConstrainedSolution) -> Tensor:
        return found.value.square().sum() + found.constraint_multiplier.sum()

    (grad,) = torch.autograd.grad(loss(found), width)
    with torch.no_grad():
        slope = (loss(fit(width + 1e-6)) - loss(fit(width - 1e-6))) / 2e-6
    torch.testing.assert_close(grad, slope, rtol=1e-5, atol=1e-6)


def test_constraints_that_do_not_bind_change_nothing() -> None:
    q = problem(13)
    wide = q | {"lower": torch.full((R,), -1e3).double(), "upper": torch.full((R,), INF).double()}
    c = q["c"].clone().requires_grad_()
    found = solve(**wide | {"c": c})
    alone = ib.find_critical_point(ib.QuadraticEnergy.from_matrices(-q["h"]), ib.geometry("tanh").to_box(0.0, 1.0), c)
    torch.testing.assert_close(found.value, alone.value, rtol=0, atol=1e-12)
    assert (found.constraint_multiplier == 0).all()
    assert (found.iterations == 0).all()
    grads = [torch.autograd.grad(s.value.square().sum(), c)[0] for s in (found, alone)]
    torch.testing.assert_close(*grads)


def test_what_cannot_be_met() -> None:
    q = problem(14)
    far = q["v"].clamp_min(0).sum(0) + 1.0  # more than any point of [0, 1]^d reaches
    with pytest.warns(ib.ConvergenceWarning, match="INFEASIBLE: no point inside the domain.*loosen lower and upper"):
        found = solve(**q | {"lower": far, "upper": torch.full((R,), INF).double()})
    assert (found.status == ib.Status.INFEASIBLE).all()
    # (one sample alone)
    lower = q["lower"].expand(B, R).clone()
    lower[1], upper = far, torch.full((B, R), INF).double()
    with pytest.warns(ib.ConvergenceWarning, match="INFEASIBLE"):
        found = solve(**q | {"lower": lower, "upper": upper})
    assert found.status.tolist() == [0, int(ib.Status.INFEASIBLE), 0]
    # Two equations that contradict each other.
    v, beta = q["v"][:, [0, 0]], torch.tensor([0.1, 0.2]).double()
    with pytest.warns(ib.ConvergenceWarning, match="INFEASIBLE"):
        found = solve(**q | {"v": v, "lower": beta, "upper": beta})
    assert (found.status == ib.Status.INFEASIBLE).all()
    with pytest.raises(RuntimeError, match="find_constrained_point: 3 of 3 samples failed"):
        solve(**q | {"v": v, "lower": beta, "upper": beta}, solver=ib.solvers.Auto(on_failure="raise"))


def test_equations_that_follow_from_others() -> None:
    """Each has half of the multiplier; z and its gradient are those of one of them."""
    q = problem(15, r=1)
    v, beta = q["v"].clone().requires_grad_(), q["lower"]
    one = solve(**q | {"v": v, "upper": beta})
    twice = solve(**q | {"v": v.expand(D, 2), "lower": beta.expand(2), "upper": beta.expand(2)})
    assert (twice.status == ib.Status.DEGENERATE).all()
    torch.testing.assert_close(twice.value, one.value, rtol=0, atol=1e-8)
    torch.testing.assert_close(twice.constraint_multiplier.sum(-1), one.constraint_multiplier[:, 0], rtol=0, atol=1e-7)
    grads = [torch.autograd.grad(s.value.square().sum(), v)[0] for s in (one, twice)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-8)


def test_a_constraint_that_just_binds() -> None:
    q = problem(16, r=1)
    alone = ib.find_critical_point(
        ib.QuadraticEnergy.from_matrices(-q["h"]), ib.geometry("tanh").to_box(0.0, 1.0), q["c"]
    )
    reached = alone.value @ q["v"]
    found = solve(**q | {"lower": torch.full_like(reached, -INF), "upper": reached})
    assert (found.status == ib.Status.DEGENERATE).all()


def test_shapes_and_starts() -> None:
    q = problem(17, batch=6)
    flat = solve(**q)
    lower, upper = q["lower"].expand(6, R), q["upper"].expand(6, R)
    nested = solve(
        **q | {"c": q["c"].reshape(2, 3, D), "lower": lower.reshape(2, 3, R), "upper": upper.reshape(2, 3, R)},
        initial=torch.full((2, 3, D), 0.3).double(),
    )
    for name in ("value", "constraint_multiplier", "status", "violation", "objective", "multiplier"):
        ours = getattr(flat, name)
        torch.testing.assert_close(
            getattr(nested, name).reshape(ours.shape), ours, rtol=0, atol=1e-3 if name == "violation" else 1e-9
        )
    again = solve(**q, initial=flat)
    torch.testing.assert_close(again.value, flat.value, rtol=0, atol=1e-10)
    assert "ConstrainedSolution" not in repr(flat) or "status" in repr(flat)
    assert not flat.detach().value.requires_grad
    x = q["c"].clone()
    x[2, 0] = math.nan
    with pytest.warns(ib.ConvergenceWarning, match="INVALID_INPUT"):
        found = solve(**q | {"c": x})
    assert found.status[2] == ib.Status.INVALID_INPUT
    assert found.value[2].isnan().all()
    torch.testing.assert_close(found.value[3:], flat.value[3:], rtol=0, atol=1e-9)


def test_one_derivative_is_all_there_is() -> None:
    q = problem(18)
    c = q["c"].clone().requires_grad_()
    (grad,) = torch.autograd.grad(solve(**q | {"c": c}).value.square().sum(), c, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated a second time where constraints are active"):
        grad.sum().backward()


def test_the_objective_has_one_derivative_too() -> None:
    q = problem(18)
    c = q["c"].clone().requires_grad_()
    (grad,) = torch.autograd.grad(solve(**q | {"c": c}).objective.sum(), c, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated a second time where constraints are active"):
        grad.square().sum().backward()


@pytest.mark.parametrize(("ratio", "dtype"), [(1e6, torch.float32), (1e13, torch.float64)])
def test_independent_constraints_of_different_stiffness(ratio: float, dtype: torch.dtype) -> None:
    """z is pinned, whatever H: dz/db = I and dλ/db = −H."""
    h, beta = torch.diag(torch.tensor([1.0, ratio], dtype=dtype)), torch.tensor([0.5, 0.25], dtype=dtype)
    beta.requires_grad_()
    found = ib.find_constrained_point(
        ib.QuadraticEnergy.from_matrices(-h),
        "identity",
        torch.zeros(1, 2, dtype=dtype),
        ib.Constraints.equal(torch.eye(2, dtype=dtype), beta),
    )
    assert found.status.tolist() == [int(ib.Status.CONVERGED)]
    for j in range(2):
        (grad,) = torch.autograd.grad(found.value[0, j], beta, retain_graph=True)
        torch.testing.assert_close(grad, torch.eye(2, dtype=dtype)[j], rtol=1e-4, atol=1e-5)
        (grad,) = torch.autograd.grad(found.constraint_multiplier[0, j], beta, retain_graph=True)
        torch.testing.assert_close(grad, -h[j], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("d", [2, 4])
@pytest.mark.parametrize(("margin", "skew"), [(0.1, 10.0), (0.01, 3.0), (1.0, 30.0)])
def test_a_strong_rotation(margin: float, skew: float, d: int) -> None:
    """A field that is nearly skew: the multipliers of one equation are found in a few steps."""
    g = torch.Generator().manual_seed(d)
    turn = torch.randn(d, d, generator=g, dtype=torch.float64)
    h = margin * torch.eye(d, dtype=torch.float64) + skew * (turn - turn.T)
    v, beta = torch.eye(d, dtype=torch.float64)[:, :1], torch.tensor([3.0]).double()
    c = torch.full((1, d), 10.0, dtype=torch.float64)
    energy = ib.QuadraticEnergy.from_matrices(-h)
    found = ib.find_constrained_point(energy, "identity", c, ib.Constraints.equal(v, beta))
    assert found.converged.all()
    assert int(found.iterations) <= 3
    kkt = torch.cat([torch.cat([h, v], 1), torch.cat([v.T, torch.zeros(1, 1).double()], 1)], 0)
    expected = torch.linalg.solve(kkt, torch.cat([c[0], beta]))
    torch.testing.assert_close(found.value[0], expected[:d], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("gap", "size", "dtype"), [(2.0**-20, 1e6, torch.float32), (2.0**-50, 1e15, torch.float64)])
def test_a_far_point_that_meets_them_is_no_contradiction(gap: float, size: float, dtype: torch.dtype) -> None:
    v = torch.tensor([[1.0, 1.0], [1.0, 1.0 + gap]], dtype=dtype)
    found = ib.find_constrained_point(
        ib.QuadraticEnergy.from_matrices(-torch.eye(2, dtype=dtype)),
        ib.geometry("tanh").to_box(-size, size),
        torch.zeros(1, 2, dtype=dtype),
        ib.Constraints.equal(v, torch.tensor([0.0, 0.5], dtype=dtype)),
        solver=ib.solvers.Auto(on_failure="ignore"),
    )
    assert found.status.item() != ib.Status.INFEASIBLE


def test_a_narrow_box_is_its_own_unit() -> None:
    found = ib.find_constrained_point(
        ib.QuadraticEnergy.from_matrices(-torch.eye(3)),
        ib.geometry("tanh").to_box(0.0, 1e-6),
        torch.full((1, 3), 1e-6),
        ib.Constraints.equal(torch.ones(3, 1), torch.tensor([1.5e-6])),
    )
    assert found.converged.all()
    torch.testing.assert_close(found.value, torch.full((1, 3), 0.5e-6), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("d", "r", "force"), [(20, 1, 1000.0), (20, 3, 100.0), (20, 1, 30.0), (10, 3, 1e3)])
def test_large_forces_in_single_precision(d: int, r: int, force: float) -> None:
    """Nearly all coordinates are on bounds, where λ has to move far before any of them does."""
    g = torch.Generator().manual_seed(int(force))
    a, v, inside = torch.randn(d, d, generator=g), torch.randn(d, r, generator=g), torch.rand(d, generator=g)
    q = {"h": a @ a.T / d + 0.1 * torch.eye(d), "c": force * torch.randn(16, d, generator=g), "v": v}
    q |= {"lower": inside @ v, "upper": inside @ v}
    found = solve(**q)
    assert found.converged.all()
    exact = solve(**{name: tensor.double() for name, tensor in q.items()})
    assert exact.converged.all()
    torch.testing.assert_close(found.value.double(), exact.value, rtol=0, atol=1e-5 * max(force, 100.0))


@pytest.mark.parametrize("phi", ["simplex", ib.geometry("simplex", hi=0.4), ib.geometry("simplex", order=1.5)])
def test_what_no_share_reaches(phi: Any) -> None:
    q = problem(20, r=1)
    most = 1.1 * q["v"].max()[None]
    with pytest.warns(ib.ConvergenceWarning, match="INFEASIBLE"):
        found = solve(**q | {"lower": most, "upper": torch.full_like(most, INF)}, phi=phi)
    assert (found.status == ib.Status.INFEASIBLE).all()
    assert int(found.iterations.max()) < 20


def test_copies_inference_and_warm_starts() -> None:
    q = problem(17)
    c = q["c"].clone().requires_grad_()
    flat = solve(**q | {"c": c})
    copied = copy.deepcopy(flat.detach())
    torch.testing.assert_close(copied.objective, flat.objective.detach())
    read = pickle.loads(pickle.dumps(flat.detach()))
    torch.testing.assert_close(read.multiplier, flat.multiplier.detach())
    with torch.inference_mode():
        found = solve(**q)
    torch.testing.assert_close(found.value, flat.value.detach(), rtol=0, atol=1e-10)
    again = solve(**q, initial=flat)
    assert int(again.iterations.max()) <= 1
    x = q["c"].clone()
    x[1, 0] = math.inf
    with pytest.warns(ib.ConvergenceWarning, match="INVALID_INPUT"):
        found = solve(**q | {"c": x})
    assert found.constraint_multiplier[1].isnan().all()
    assert found.multiplier[1].isnan().all()
    assert torch.isfinite(found.constraint_multiplier[0]).all()
    with pytest.raises(TypeError, match="constraints must be Constraints"):
        ib.find_constrained_point(ib.QuadraticEnergy.from_matrices(-q["h"]), "tanh", q["c"], (q["v"],))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([0.0, 0.05, 1.0]), st.floats(0.01, 100.0))
def test_random_problems(seed: int, r: int, gamma: float, scale: float) -> None:
    """What a point inside meets is met, whatever the units of the constraints."""
    q = problem(seed, r=r)
    units = scale ** torch.linspace(-1, 1, r, dtype=torch.float64)
    q["v"], q["lower"], q["upper"] = q["v"] * units, q["lower"] * units, q["upper"] * units
    found = solve(**q, phi="sigmoid" if gamma else None, gamma=gamma)
    assert found.converged.all()
    s = found.value @ q["v"]
    room = 1e-9 * (1 + torch.where(torch.isfinite(q["lower"]), q["lower"].abs(), q["upper"].abs())) * units.clamp_min(1)
    assert ((s >= q["lower"] - room) & (s <= q["upper"] + room)).all()
    force = q["c"] - found.value @ q["h"] - found.constraint_multiplier @ q["v"].T - gamma * found.dual
    stationary = force if gamma else found.value - (found.value + force).clamp(0, 1)
    assert float(stationary.abs().max()) < 1e-7
    assert (found.constraint_multiplier[s < q["upper"] - room] <= 0).all()
    assert (found.constraint_multiplier[s > q["lower"] + room] >= 0).all()


@pytest.mark.parametrize(
    ("v", "lower", "upper", "error", "message"),
    [
        (torch.ones(D), torch.zeros(1), torch.zeros(1), ValueError, r"V must have shape \(d, r\)"),
        (torch.ones(D, 1), torch.zeros(2), torch.zeros(1), ValueError, r"lower must have shape \(1,\)"),
        (torch.ones(D, 1), torch.ones(1), torch.zeros(1), ValueError, "lower must be at most upper"),
        (torch.ones(D, 1), torch.full((1,), math.nan), torch.zeros(1), ValueError, "lower must be at most upper"),
        (torch.ones(D, 1), torch.full((1,), INF), torch.full((1,), INF), ValueError, "below inf"),
        (torch.full((D, 1), math.nan), torch.zeros(1), torch.zeros(1), ValueError, "V has NaN"),
        (torch.ones(D, 1), torch.zeros(1).double(), torch.zeros(1), ValueError, "lower is torch.float64"),
        (torch.ones(D, 1).long(), torch.zeros(1), torch.zeros(1), TypeError, "V must be a floating-point tensor"),
        ([[1.0]], torch.zeros(1), torch.zeros(1), TypeError, "V must be a tensor"),
    ],
)
def test_refused(v: Any, lower: Any, upper: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ib.Constraints(v, lower, upper)


def test_refused_problems() -> None:
    q = problem(19)
    constraints = ib.Constraints(q["v"], q["lower"], q["upper"])
    phi = ib.geometry("tanh").to_box(0.0, 1.0)
    with pytest.raises(ValueError, match="one critical point on C"):
        ib.find_constrained_point(ib.QuadraticEnergy.from_matrices(q["h"]), phi, q["c"], constraints)
    with pytest.raises(ValueError, match=f"V must have {D + 1} rows"):
        solve(**q | {"h": torch.eye(D + 1).double(), "c": torch.zeros(B, D + 1).double()})
    with pytest.raises(ValueError, match=r"V is torch\.float64, but the solve is in torch\.float32"):
        solve(**q | {"h": q["h"].float(), "c": q["c"].float()})
    with pytest.raises(ValueError, match=r"lower must have shape \(4,\) or \(3, 4\)"):
        solve(**q | {"lower": q["lower"].expand(2, R)})
    energy = ib.QuadraticEnergy(D, weight="low_rank", rank=2).double()
    with pytest.raises(TypeError, match="low rank"):
        ib.find_constrained_point(energy, "tanh", torch.zeros(1, D).double(), constraints, regularization=1.0)
    with pytest.raises(RuntimeError, match=r"find_constrained_point does not run inside torch\.func"):
        torch.func.vmap(lambda c: solve(**q | {"c": c[None]}).value)(q["c"])
