"""The simplex as a mirror map: against torch.softmax, entmax and SciPy, identities, extremes, what is refused."""

import math
from itertools import product

import entmax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

import implicit_bregman as ib

KINDS: dict[str, dict[str, float]] = {
    "simplex": {},
    "total 2.5": {"total": 2.5},
    "capped": {"hi": 0.4},
    "box section": {"lo": -1.0, "hi": 2.0, "total": 0.5},
    "entmax": {"order": 1.5},
    "entmax 1.2": {"order": 1.2, "total": 2.0},
    "sparsemax": {"order": 2.0},
}
DTYPES = (torch.float32, torch.float64)


@pytest.fixture(params=KINDS)
def phi(request: pytest.FixtureRequest) -> ib.MirrorMap:
    return ib.geometry("simplex", **KINDS[request.param])


def ends(phi: ib.MirrorMap) -> tuple[float, float, float]:
    lo, hi = phi.domain
    assert phi.coupling is not None
    return lo, hi, phi.coupling.total


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax(dtype: torch.dtype) -> None:
    y = 3 * torch.randn(4, 7, dtype=dtype, generator=torch.Generator().manual_seed(0))
    phi = ib.geometry("simplex")
    torch.testing.assert_close(phi.activation(y), torch.softmax(y, -1), rtol=0, atol=0)
    torch.testing.assert_close(phi.conjugate(y), torch.logsumexp(y, -1))
    z = phi.activation(y)
    torch.testing.assert_close(phi.potential(z), (z * z.log()).sum(-1))
    torch.testing.assert_close(phi.divergence(z, z.flip(0)), (z * (z / z.flip(0)).log()).sum(-1), rtol=1e-5, atol=1e-6)
    assert phi.strong_convexity == 1.0
    assert phi.is_legendre


def test_an_infinite_logit_is_a_zero() -> None:
    y = torch.tensor([0.0, -math.inf, 1.0])
    torch.testing.assert_close(ib.geometry("simplex").activation(y), torch.softmax(y, -1), rtol=0, atol=0)


def test_levels_by_bisection(phi: ib.MirrorMap) -> None:
    """ρ(y) = ρ₀(y − ν) with the ν that SciPy finds."""
    _, _, total = ends(phi)
    base = phi.elementwise
    for seed in range(5):
        y = 4 * torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        level = brentq(lambda nu, y=y: float(base.activation(y - nu).sum()) - total, -60, 60, xtol=1e-15)
        torch.testing.assert_close(phi.activation(y), base.activation(y - level), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_identities(phi: ib.MirrorMap, dtype: torch.dtype) -> None:
    lo, hi, total = ends(phi)
    y = 2 * torch.randn(5, 6, dtype=dtype, generator=torch.Generator().manual_seed(1))
    z, tol = phi.activation(y), 40 * torch.finfo(dtype).eps
    torch.testing.assert_close(z.sum(-1), torch.full((5,), total, dtype=dtype), rtol=tol, atol=tol)
    assert bool(((z >= lo) & (z <= hi)).all())
    # Adding a number to a block changes nothing.
    torch.testing.assert_close(phi.activation(y + 3.0), z, rtol=tol, atol=tol)
    torch.testing.assert_close(phi.activation(phi.project_dual(y)), z, rtol=tol, atol=tol)
    # Round trip, and Fenchel and Young with equality at the dual pair and inequality elsewhere.
    torch.testing.assert_close(phi.activation(phi.inverse_activation(z)), z, rtol=10 * tol, atol=tol)
    gap = phi.potential(z) + phi.conjugate(y) - (z * y).sum(-1)
    assert float(gap.abs().max()) <= 20 * tol
    other = phi.activation(y.flip(0))
    gap = phi.potential(other) + phi.conjugate(y) - (other * y).sum(-1)
    # (where φ is not Legendre, y may lie beyond ∇φ(z), which makes it more)
    assert bool((gap >= phi.divergence(other, z) - 100 * tol).all())
    if phi.is_legendre:
        torch.testing.assert_close(gap, phi.divergence(other, z), rtol=50 * tol, atol=20 * tol)
    by_duals = phi.dual_divergence(y.flip(0), y)
    torch.testing.assert_close(by_duals, phi.divergence(other, z), rtol=50 * tol, atol=20 * tol)


def test_the_metric_is_the_derivative(phi: ib.MirrorMap) -> None:
    y = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    v = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    step = 1e-6
    change = (phi.activation(y + step * v) - phi.activation(y - step * v)) / (2 * step)
    torch.testing.assert_close(phi.derivative(phi.slope(y), v), change, rtol=1e-7, atol=1e-9)
    # It is symmetric, positive semidefinite, and nothing on constants.
    metric = torch.stack([phi.derivative(phi.slope(y[0]), row) for row in torch.eye(5, dtype=torch.float64)])
    torch.testing.assert_close(metric, metric.mT)
    assert float(torch.linalg.eigvalsh(metric)[0]) >= -1e-15
    torch.testing.assert_close(metric.sum(-1), torch.zeros(5, dtype=torch.float64))
    # σ bounds φ'' along C.
    basis = torch.linalg.qr(torch.cat([torch.ones(5, 1), torch.eye(5)[:, :4]], 1).double())[0][:, 1:]
    curvature = torch.linalg.eigvalsh(basis.mT @ torch.diag(phi.curvature(y[0]).clamp_max(1e9)) @ basis)
    assert float(curvature[0]) >= phi.strong_convexity * (1 - 1e-6)


def test_derivatives_of_every_kind(phi: ib.MirrorMap) -> None:
    y = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    for function in (phi.activation, phi.conjugate, phi.project_dual):
        assert torch.autograd.gradcheck(function, (y,))
        assert torch.autograd.gradgradcheck(function, (y,))
    weight = torch.linspace(1.0, 2.0, 4, dtype=torch.float64)

    def gradient(y: torch.Tensor) -> torch.Tensor:
        (grad,) = torch.autograd.grad((phi.activation(y) * weight).square().sum(), y, create_graph=True)
        return grad

    assert torch.autograd.gradgradcheck(gradient, (y,))
    vectorized = torch.autograd.functional.jacobian(phi.activation, y.detach(), vectorize=True)
    torch.testing.assert_close(vectorized, torch.autograd.functional.jacobian(phi.activation, y.detach()))
    jacobian = torch.func.vmap(torch.func.jacrev(phi.activation))(y.detach())
    forward = torch.func.vmap(torch.func.jacfwd(phi.activation))(y.detach())
    torch.testing.assert_close(jacobian, forward)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e3, 1e10, 1e30])
def test_large_duals(phi: ib.MirrorMap, dtype: torch.dtype, size: float) -> None:
    lo, hi, total = ends(phi)
    y = size * torch.tensor([[1.0, -1.0, 0.5, 0.0], [0.0, 0.0, 0.0, -1.0], [1.0, 1.0, 1.0, 1.0]], dtype=dtype)
    z, chosen = phi.activation(y), phi.project_dual(y)
    for found in (z, chosen, phi.slope(y), phi.log_curvature(y), phi.dual_potential(y)):
        assert bool(torch.isfinite(found).all())
    assert bool(((z >= lo) & (z <= hi)).all())
    if size <= 1e3 or phi == ib.geometry("simplex", total=total):  # (a softmax)
        torch.testing.assert_close(z.sum(-1), torch.full((3,), total, dtype=dtype), rtol=1e-5, atol=1e-5)


def projected(z: np.ndarray, lo: float, hi: float, total: float) -> np.ndarray:
    level = brentq(lambda theta: np.clip(z - theta, lo, hi).sum() - total, z.min() - 99, z.max() + 99, xtol=1e-13)
    return np.clip(z - level, lo, hi)


@given(st.lists(st.floats(-50, 50), min_size=4, max_size=9), st.sampled_from(list(KINDS)))
@settings(max_examples=150, deadline=None)
def test_projection_against_scipy(point: list[float], kind: str) -> None:
    phi = ib.geometry("simplex", **KINDS[kind])
    lo, hi, total = ends(phi)
    z = torch.tensor(point, dtype=torch.float64)
    found = phi.project(z)
    bound = math.inf if KINDS[kind].get("hi") is None else hi
    np.testing.assert_allclose(found, projected(z.numpy(), lo, bound, total), atol=1e-12)
    assert abs(float(found.sum()) - total) <= 1e-12
    # The nearest point of C: moving towards any other does not come nearer.
    other = phi.activation(z / 10)
    assert float((z - found) @ (other - found)) <= 1e-10 * (1 + float(z.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e4, 1e8, 1e16, 1e30])
def test_large_numbers(phi: ib.MirrorMap, dtype: torch.dtype, size: float) -> None:
    """Of numbers far apart the largest come first; sums and bounds hold whatever their size."""
    lo, hi, total = ends(phi)
    y = size * torch.randn(20, 7, dtype=dtype, generator=torch.Generator().manual_seed(10))
    for z in (phi.project(y), phi.activation(y)):
        torch.testing.assert_close(z.sum(-1), torch.full((20,), total, dtype=dtype), rtol=1e-5, atol=1e-5)
        assert bool(((z >= lo) & (z <= hi)).all())
    whole = total - 7 * lo
    order = y.argsort(-1, descending=True)
    room = hi - lo
    expected = lo + (whole - room * torch.arange(7, dtype=dtype)).clamp(0, room).expand_as(y)
    torch.testing.assert_close(phi.project(y).gather(-1, order), expected, rtol=1e-5, atol=1e-5)


def test_steps_keep_their_digits(phi: ib.MirrorMap) -> None:
    """z − Π(z − step) of a step far below the rounding of z."""
    z = 1e6 * ib.geometry("simplex").activation(torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).double())
    large = ib.geometry("simplex", total=1e6)
    step = 1e-12 * torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = large.feasible_step(z, step.clone(), large.bounds(torch.float64))
    torch.testing.assert_close(found, step - step.mean(-1, keepdim=True), rtol=1e-9, atol=0)
    y = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    z, step = phi.activation(y), torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    kept = phi.feasible_step(z, step.clone(), phi.bounds(torch.float64))
    torch.testing.assert_close(kept, z - phi.project(z - step), rtol=0, atol=1e-14)


def test_sparsemax_against_entmax() -> None:
    entmax = pytest.importorskip("entmax")
    z = 2 * torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    weight = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    found, expected = ib.geometry("simplex").project(ours), entmax.sparsemax(theirs, dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-14)


def test_blocks_of_rows() -> None:
    """Rows of a state (m, n) are m blocks of n."""
    phi = ib.geometry("simplex", total=2.0).for_states((3, 4))
    y = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    free, blocks = ib.geometry("simplex", total=2.0), y.view(5, 3, 4)
    for name in ("activation", "project_dual", "slope", "curvature", "project"):
        torch.testing.assert_close(getattr(phi, name)(y), getattr(free, name)(blocks).flatten(1))
    torch.testing.assert_close(phi.conjugate(y), free.conjugate(blocks).sum(-1))
    assert ib.geometry("simplex", total=2.0, size=4).for_states((12,)) == phi
    with pytest.raises(ValueError, match="size = 4 do not divide the last dimension 10"):
        ib.geometry("simplex", size=4).for_states((10,))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"total": 0.0}, ValueError, "total must be positive"),
        ({"total": "1"}, TypeError, "total must be a number"),
        ({"lo": 0.1}, ValueError, "without an upper bound"),
        ({"lo": 0.5, "hi": 0.5}, ValueError, "lo must be below hi"),
        ({"hi": math.inf}, ValueError, "hi must be finite"),
        ({"order": 0.5}, ValueError, r"order must be in \[1, 2\]"),
        ({"order": 1.5, "hi": 0.5}, ValueError, "leave out one of them"),
        ({"size": 0}, ValueError, "size must be"),
        ({"blocks": 3}, ValueError, "no parameter 'blocks'"),
    ],
)
def test_what_is_refused(settings: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ib.geometry("simplex", **settings)


@pytest.mark.parametrize(("settings", "n"), [({"hi": 0.2}, 5), ({"hi": 0.1}, 5), ({"lo": 0.5, "hi": 2.0}, 3)])
def test_sums_that_no_point_has(settings: dict[str, float], n: int) -> None:
    with pytest.raises(ValueError, match="total = 1 with room to spare"):
        ib.geometry("simplex", **settings).for_states((n,))


def test_as_a_value() -> None:
    for one, two in product(KINDS, KINDS):
        assert (ib.geometry("simplex", **KINDS[one]) == ib.geometry("simplex", **KINDS[two])) == (one == two)
    assert ib.geometry("simplex").to_box(0.0, 0.4) == ib.geometry("simplex", hi=0.4)
    assert repr(ib.geometry("simplex")) == "Simplex(total=1.0, lo=0.0, hi=None, order=1.0, size=None)"


@pytest.mark.parametrize("order", [1.1, 1.5, 1.8, 2.0])
def test_entmax(order: float) -> None:
    entmax = pytest.importorskip("entmax")
    y = 3 * torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    weight = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    ours, theirs = y.clone().requires_grad_(), y.clone().requires_grad_()
    found = ib.geometry("simplex", order=order).activation(ours)
    expected = entmax.entmax_bisect(theirs, alpha=order, dim=-1, n_iter=100)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert bool((found == 0).any())
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-8)


@pytest.mark.parametrize("order", [1.05, 1.5, 1.9, 2.0])
def test_the_derivative_in_the_order(order: float) -> None:
    """Against that of the entmax package, and of ρ⁻¹ by finite differences."""
    g = torch.Generator().manual_seed(3)
    x, weight = torch.randn(2, 4, 6, generator=g, dtype=torch.float64)
    ours, theirs = (torch.tensor(order, dtype=torch.float64, requires_grad=True) for _ in range(2))
    phi = ib.geometry("simplex", order=ours)
    z = phi.activation(x)
    expected = entmax.entmax_bisect(x, alpha=theirs, n_iter=100)
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-13)
    grads = [torch.autograd.grad((weight * p).sum(), alpha)[0] for p, alpha in ((z, ours), (expected, theirs))]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)
    inside = (z.detach() + 0.1) / (1 + 0.6)
    (grad,) = torch.autograd.grad((weight * phi.inverse_activation(inside)).sum(), ours)
    ends = [(weight * ib.geometry("simplex", order=order + h).inverse_activation(inside)).sum() for h in (-1e-6, 0.0)]
    torch.testing.assert_close(grad, (ends[1] - ends[0]) / 1e-6, rtol=1e-4, atol=1e-5)


def test_an_order_that_changes_before_the_backward_pass() -> None:
    order = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    y = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight = torch.linspace(0, 1, 6, dtype=torch.float64)
    outputs = [(ib.geometry("simplex", order=o).activation(y) * weight).sum() for o in (order, 1.5)]
    with torch.no_grad():
        order.add_(0.3)
    torch.testing.assert_close(*(torch.autograd.grad(output, y)[0] for output in outputs))


def test_an_order_that_is_learned() -> None:
    """An optimizer may change it between solves; copies, and what is refused."""
    order = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    phi, y = ib.geometry("simplex", order=order), torch.randn(2, 5, dtype=torch.float64)
    with torch.no_grad():
        order.add_(0.3)
    torch.testing.assert_close(phi.activation(y), ib.geometry("simplex", order=1.8).activation(y), rtol=0, atol=0)
    assert phi.strong_convexity == ib.geometry("simplex", order=1.8).strong_convexity
    assert not phi.detach().requires_grad
    with torch.no_grad():
        order.fill_(2.5)
    with pytest.raises(ValueError, match=r"order must be in \(1, 2\], got 2\.5"):
        phi.activation(y)
    with pytest.raises(ValueError, match="order must be in"):
        ib.geometry("simplex", order=torch.tensor(1.0))
    with pytest.raises(ValueError, match="without dimensions"):
        ib.geometry("simplex", order=torch.ones(2))
    with pytest.raises(ValueError, match="leave out one of them"):
        ib.geometry("simplex", order=torch.tensor(1.5), hi=0.5)
    with pytest.raises(RuntimeError, match="order is a constant for torch"):
        torch.func.grad(lambda a: ib.geometry("simplex", order=a).activation(y).sum())(torch.tensor(1.5).double())
