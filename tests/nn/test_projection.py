"""`BregmanProjection`, against SciPy, finite differences, Sinkhorn and the layer whose alias it is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from torch import Tensor, nn

import implicit_bregman as ib
from implicit_bregman import Status

D, R, B = 5, 2, 3
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "sigmoid": scipy.special.expit,
    "exp": np.exp,
    "softplus": lambda y: np.logaddexp(0, y),
}
#: φ itself, where SciPy minimises D.
POTENTIALS: dict[str, Callable[[np.ndarray], float]] = {
    "exp": lambda z: float((scipy.special.xlogy(z, z) - z).sum()),
    "sigmoid": lambda z: float((scipy.special.xlogy(z, z) + scipy.special.xlogy(1 - z, 1 - z)).sum()),
}


def problem(geometry: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """V (D, R), β (B, R) of systems with a solution inside C, and the duals of starts (B, D)."""
    draw = torch.Generator().manual_seed(1)
    v, y, y0 = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((D, R), (B, D), (B, D)))
    return v.to(dtype), (ib.geometry(geometry).activation(y) @ v).to(dtype), y0.to(dtype)


def by_root(v: Tensor, beta: Tensor, y0: Tensor, activation: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """ρ(y⁰ + Vλ) with Vᵀρ(y⁰ + Vλ) = β, sample by sample."""
    v_, rows = v.double().numpy(), zip(beta.double().numpy(), y0.double().numpy(), strict=True)
    found = []
    for b, y in rows:
        root = scipy.optimize.root(lambda lam, y=y, b=b: activation(y + v_ @ lam) @ v_ - b, np.zeros(v_.shape[1]))
        assert root.success
        found.append(activation(y + v_ @ root.x))
    return np.stack(found)


@pytest.mark.parametrize("geometry", ACTIVATIONS)
def test_against_the_dual_equations(geometry: str, dtype: torch.dtype) -> None:
    v, beta, y0 = problem(geometry, dtype)
    expected = by_root(v, beta, y0, ACTIVATIONS[geometry])
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    layer = ib.BregmanProjection.from_matrix(v, beta, geometry)
    found = layer.solve(initial_dual=y0)
    assert found.status.tolist() == [Status.CONVERGED] * B
    np.testing.assert_allclose(found.value, expected, rtol=tolerance, atol=tolerance)
    z0 = ib.geometry(geometry).activation(y0)
    np.testing.assert_allclose(layer(z0), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(layer.solve(z0).value @ v, beta, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings(
    "ignore:Values in x were outside bounds:RuntimeWarning"
)  # (an older SciPy, of its own steps)
@pytest.mark.parametrize("geometry", POTENTIALS)
def test_against_slsqp(geometry: str) -> None:
    """The minimiser of D(z, z⁰) subject to Vᵀz = β, as it is defined."""
    v, beta, y0 = problem(geometry)
    phi = POTENTIALS[geometry]
    found = ib.BregmanProjection.from_matrix(v, beta, geometry).solve(initial_dual=y0).value
    bounds = [(1e-12, 1 - 1e-12 if geometry == "sigmoid" else None)] * D
    for b, y, z in zip(beta.numpy(), y0.numpy(), found.numpy(), strict=True):
        equations = {"type": "eq", "fun": lambda at, b=b: at @ v.numpy() - b}
        start = np.full(D, 0.5)
        best = scipy.optimize.minimize(
            lambda at, y=y: phi(at) - at @ y, start, bounds=bounds, constraints=equations, method="SLSQP", tol=1e-14
        )
        assert best.success
        np.testing.assert_allclose(z, best.x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("given", ["initial", "initial_dual"])
@pytest.mark.parametrize("geometry", ["tanh", "exp", "softplus"])
def test_gradients_by_finite_differences(geometry: str, given: str, per_sample: bool) -> None:
    """To V, β and the start."""
    v, beta, y0 = problem(geometry)
    beta = beta if per_sample else beta[0]
    start = y0 if given == "initial_dual" else ib.geometry(geometry).activation(y0)
    leaves = tuple(leaf.clone().requires_grad_() for leaf in (v, beta, start))

    def projected(v: Tensor, beta: Tensor, start: Tensor) -> Tensor:
        return ib.BregmanProjection.from_matrix(v, beta, geometry).solve(**{given: start}).value

    torch.autograd.gradcheck(projected, leaves, atol=1e-6, rtol=1e-5, check_undefined_grad=False)


def test_without_a_start_it_is_the_middle_of_c() -> None:
    v, beta, _ = problem("exp")
    one = ib.BregmanProjection.from_matrix(v, beta[0], "exp").solve()
    all_of = ib.BregmanProjection.from_matrix(v, beta, "exp").solve()
    assert one.value.shape == (D,)
    assert one.converged.shape == ()
    assert all_of.value.shape == (B, D)
    np.testing.assert_allclose(all_of.value, by_root(v, beta, torch.zeros(B, D), np.exp), rtol=1e-7)
    torch.testing.assert_close(one.value, all_of.value[0])


def test_one_beta_for_all_starts_and_one_start_for_all_betas() -> None:
    v, beta, y0 = problem("tanh")
    many = ib.BregmanProjection.from_matrix(v, beta[0]).solve(initial_dual=y0.reshape(1, B, D))
    assert many.value.shape == (1, B, D)
    for row, start in zip(many.value[0], y0, strict=True):
        alone = ib.BregmanProjection.from_matrix(v, beta[0]).solve(initial_dual=start)
        torch.testing.assert_close(row, alone.value)
    start = y0[0].clone().requires_grad_()
    found = ib.BregmanProjection.from_matrix(v, beta).solve(initial_dual=start)
    assert found.value.shape == (B, D)
    found.value.sum().backward()
    assert start.grad.shape == (D,)
    again = ib.BregmanProjection.from_matrix(v, beta).solve(found)  # a point of the set is its own projection
    torch.testing.assert_close(again.value, found.value.detach())


def test_it_is_the_low_rank_layer() -> None:
    """One problem, one code: the same numbers, bit for bit."""
    old = ib.BregmanDEQ(D, D, "sigmoid", weight="low_rank", rank=R, injection="initial", softening=0.01)
    new = ib.BregmanProjection(D, R, "sigmoid", softening=0.01)
    with torch.no_grad():
        new.V.copy_(old.energy.weight_map.vectors)
        new.beta.copy_(old.energy.bias)
    results = []
    for layer, parameters in ((old, (old.energy.weight_map.vectors, old.energy.bias)), (new, (new.V, new.beta))):
        z0 = torch.rand(B, D, generator=torch.Generator().manual_seed(0)).requires_grad_()
        z = layer(z0)
        gradients = torch.autograd.grad(z.square().sum(), (z0, *parameters))
        results.append((z.detach(), *gradients, layer.last_solution.dual))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_it_learns_v_and_beta_and_trains_what_is_upstream() -> None:
    layer = ib.BregmanProjection(8, 3, "sigmoid")
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "beta": (3,),
        "energy.weight_map.vectors": (8, 3),
    }
    middle = torch.full((8,), 0.5)
    torch.testing.assert_close(middle @ layer.V, layer.beta)  # the middle of C solves the first system
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), layer)
    x, goal = torch.randn(16, 4), torch.rand(16, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    assert all(bool(p.grad.any()) for p in model.parameters())
    layer.reset_parameters()
    torch.testing.assert_close(middle @ layer.V, layer.beta)


def test_printed_copied_and_stored() -> None:
    layer = ib.BregmanProjection(D, R, "exp", solver=ib.solvers.Newton(tol=1e-5), softening=0.5)
    for part in ("features=5", "constraints=2", "geometry=Exp()", "Newton(tol=1e-05", "adjoint='implicit'"):
        assert part in repr(layer)
    z0 = torch.rand(B, D) + 0.1
    z = layer(z0)
    assert layer.last_solution is not None
    assert not layer.last_solution.value.requires_grad
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.last_solution is None
        assert torch.equal(other(z0), z)
    other = ib.BregmanProjection(D, R, "exp", softening=0.5)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(z0), z, rtol=0, atol=1e-4)


def test_given_tensors_stay_what_they_are() -> None:
    v, beta, _ = problem("tanh")
    layer = ib.BregmanProjection.from_matrix(nn.Parameter(v), beta)
    assert [name for name, _ in layer.named_parameters()] == ["energy.weight_map.vectors"]
    assert layer.beta is beta
    layer.reset_parameters()
    assert torch.equal(layer.V, v)


@pytest.mark.parametrize("softening", [1e-2, 1.0])
def test_without_a_solution_it_is_softened_and_says_so(softening: float) -> None:
    v = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    beta, y0 = torch.tensor([[3.0], [0.5]], dtype=torch.float64), torch.tensor([0.3, -0.2], dtype=torch.float64)
    layer = ib.BregmanProjection.from_matrix(v, beta, "tanh", softening=softening)
    with pytest.warns(ib.ConvergenceWarning, match="INFEASIBLE"):
        found = layer.solve(initial_dual=y0)
    assert found.status.tolist() == [Status.INFEASIBLE, Status.CONVERGED]
    epsilon = softening * 2.0  # ‖V‖²/r = 2
    lam = scipy.optimize.brentq(lambda t: np.tanh(y0.numpy() + t).sum() + epsilon * t - 3.0, 0, 1e4, xtol=1e-14)
    np.testing.assert_allclose(found.value[0], np.tanh(y0.numpy() + lam), rtol=1e-9)


def test_unrolled_and_other_adjoints_and_solvers() -> None:
    v, beta, y0 = problem("tanh")
    v = v / torch.linalg.matrix_norm(v, 2)
    beta = torch.tanh(y0.flip(0)) @ v
    exact = ib.BregmanProjection.from_matrix(v, beta).solve(initial_dual=y0)
    for solver in ("mm", "anderson", "broyden", "newton"):
        found = ib.BregmanProjection.from_matrix(v, beta, solver=solver).solve(initial_dual=y0)
        torch.testing.assert_close(found.value, exact.value, rtol=0, atol=1e-8)
    gradients = []
    for adjoint in ("implicit", ib.adjoints.Unrolled(steps=2000)):
        start = y0.clone().requires_grad_()
        layer = ib.BregmanProjection.from_matrix(v, beta, adjoint=adjoint)
        layer.solve(initial_dual=start).value[:, 0].sum().backward()
        gradients.append(start.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-8)
    layer = ib.BregmanProjection.from_matrix(v, beta, "sin", adjoint=ib.adjoints.Unrolled(steps=2))
    assert layer.solve().status.tolist() == [Status.TRUNCATED] * B


def test_a_sample_with_nan_spoils_no_other() -> None:
    v, beta, y0 = problem("tanh")
    clean = ib.BregmanProjection.from_matrix(v, beta).solve(initial_dual=y0)
    beta = beta.clone()
    beta[1, 0] = torch.nan
    with pytest.warns(ib.ConvergenceWarning, match="INVALID_INPUT"):
        found = ib.BregmanProjection.from_matrix(v, beta).solve(initial_dual=y0)
    assert found.status.tolist() == [Status.CONVERGED, Status.INVALID_INPUT, Status.CONVERGED]
    assert torch.equal(found.value[[0, 2]], clean.value[[0, 2]])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(half: torch.dtype) -> None:
    layer = ib.BregmanProjection(D, R, "sigmoid")
    z0 = torch.rand(B, D) * 0.8 + 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(z0.bfloat16()).dtype == torch.float32
    low = copy.deepcopy(layer).to(half)
    z = low(z0.to(half))
    assert z.dtype == half
    torch.testing.assert_close(z.float(), layer(z0), rtol=0, atol=0.05)


def test_optimal_transport_against_sinkhorn() -> None:
    """Three by three, with a dense V: exp(−C/ε) is projected onto the plans with two marginals."""
    draw = np.random.default_rng(0)
    cost, epsilon = draw.random((3, 3)), 0.1
    a, b = np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.25, 0.5])
    one, eye = torch.ones(3, 1, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    v = torch.cat([torch.kron(eye, one), torch.kron(one, eye)], 1)
    layer = ib.BregmanProjection.from_matrix(v, torch.from_numpy(np.concatenate([a, b])), "exp")
    found = layer.solve(initial_dual=torch.from_numpy(-cost / epsilon).reshape(9))
    kernel, u = np.exp(-cost / epsilon), np.ones(3)
    for _ in range(5000):
        w = b / (kernel.T @ u)
        u = a / (kernel @ w)
    np.testing.assert_allclose(found.value.reshape(3, 3), u[:, None] * kernel * w, rtol=0, atol=1e-12)


V = torch.eye(D)[:, :R]
BETA = torch.zeros(R)


@pytest.mark.parametrize(
    ("v", "beta", "error", "message"),
    [
        (
            ib.operators.Diagonal(torch.ones(D)),
            BETA,
            TypeError,
            r"V must be a tensor .* or a linear map .*, got Diagonal: a Hessian .* is square",
        ),
        ([[1.0]], BETA, TypeError, "V must be a tensor .*, got list"),
        (V[0], BETA, ValueError, r"V must have shape \(d, r\) with .*, got \(2,\)"),
        (
            V.T,
            torch.zeros(D),
            ValueError,
            r"V has 5 columns, equations in 2 unknowns: drop the equations",
        ),
        (V[:, :0], torch.zeros(0), ValueError, r"V must have shape \(d, r\) with .*, got \(5, 0\)"),
        (V.long(), BETA, TypeError, "V must be a floating-point tensor, got torch.int64"),
        (V, torch.zeros(3), ValueError, r"beta must have shape \(2,\) or \(\*batch, 2\) .*, got \(3,\)"),
        (V, torch.tensor(1.0), ValueError, r"beta must have shape \(2,\) or .*, got \(\)"),
        (V, BETA.double(), ValueError, "beta is torch.float64 on cpu, but V is torch.float32 on cpu"),
        (V, 0.0, TypeError, "beta must be a tensor, got float"),
    ],
)
def test_what_from_matrix_refuses(v: object, beta: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ib.BregmanProjection.from_matrix(v, beta)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"features": 0}, ValueError, "features must be a whole number of at least 1, got 0"),
        ({"constraints": 0}, ValueError, "constraints must be a whole number from 1 to features = 5, got 0"),
        ({"constraints": 6}, ValueError, "constraints must be a whole number from 1 to features = 5, got 6"),
        ({"geometry": "relu"}, ValueError, "unknown geometry 'relu'"),
        ({"geometry": "sin"}, ValueError, "sin is not Legendre"),
        ({"softening": 0.0}, ValueError, "softening must be positive and finite, got 0.0"),
        ({"solver": "cg"}, ValueError, "solver must be one of"),
        ({"adjoint": "exact"}, ValueError, "adjoint must be one of"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ib.BregmanProjection(**{"features": D, "constraints": R, **settings})


def test_starts_that_do_not_fit_are_refused() -> None:
    layer = ib.BregmanProjection.from_matrix(V, torch.zeros(B, R))
    for start, error, message in (
        (torch.zeros(4, D), ValueError, r"initial has the batch \(4,\), but beta has \(3,\)"),
        (torch.zeros(B, D + 1), ValueError, r"initial must have shape \(3, 5\), got \(3, 6\)"),
        (torch.zeros(B, D).double(), ValueError, "initial is torch.float64, but V is torch.float32"),
        (torch.tensor(0.0), ValueError, r"initial must have shape \(3, 5\), got \(\)"),
        ([0.0] * D, TypeError, "initial must be a floating-point tensor or a Solution, got list"),
        (torch.full((B, D), 2.0), ValueError, "initial must lie in the interior of the domain"),
    ):
        with pytest.raises(error, match=message):
            layer.solve(start)
    with pytest.raises(ValueError, match=r"initial_dual is torch.float64, but V is torch.float32"):
        layer.solve(initial_dual=torch.zeros(B, D).double())
    with pytest.raises(ValueError, match="initial and initial_dual both give the start"):
        layer.solve(torch.zeros(B, D), torch.zeros(B, D))


def test_shine_does_not_project() -> None:
    with pytest.raises(ValueError, match=r'adjoint Shine has no form for weight="low_rank"'):
        ib.BregmanProjection(D, R, adjoint="shine").solve()
