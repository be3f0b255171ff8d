"""Bounds of its own for each coordinate: against the map of one interval, shifted maps, identities, what is refused."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import implicit_bregman as ib
from tests.legendre.conftest import ELEMENTWISE

NAMES = ("isru", "sigmoid", "arctan", "tanh", "sin", "scaled_tanh")
INTERVALS = [(-2.0, 2.0), (0.0, 1.0), (1.5, 4.0), (-3.0, -2.5), (-1e-7, 1e-7), (5.0, 1e6), (-1.0, 4.0)]
INF = math.inf
#: Of every kind: two bounds, one, none, and lo = hi.
MIXED = [(-1.0, 2.0), (0.5, INF), (-INF, -0.5), (-INF, INF), (0.7, 0.7), (0.0, INF), (-3.0, 3.0), (0.0, 0.0)]


def boxes(name: str, ends: list[tuple[float, float]], dtype: torch.dtype = torch.float64) -> ib.MirrorMap:
    lo, hi = torch.tensor(ends, dtype=dtype).T
    return ib.geometry(name).to_box(lo, hi)


@pytest.mark.parametrize("name", NAMES)
def test_each_interval_has_the_map_of_a_box(name: str, dtype: torch.dtype) -> None:
    phi, parts = boxes(name, INTERVALS), [ib.geometry(name).to_box(*ends) for ends in INTERVALS]
    y = 3 * torch.randn(5, len(parts), dtype=dtype)
    tolerance = {"rtol": 32 * torch.finfo(dtype).eps, "atol": 0.0}

    def of_parts(method: str, *tensors: Tensor) -> Tensor:
        columns = [[tensor[:, j : j + 1] for tensor in tensors] for j in range(len(parts))]
        return torch.cat(
            [getattr(part, method)(*of).reshape(-1, 1) for part, of in zip(parts, columns, strict=True)], 1
        )

    for method in ELEMENTWISE:
        torch.testing.assert_close(getattr(phi, method)(y), of_parts(method, y), **tolerance, msg=method)
    z, u = phi.activation(y), phi.activation(y + 0.1)
    for method in ("inverse_activation", "potential"):
        torch.testing.assert_close(getattr(phi, method)(z), of_parts(method, z), **tolerance, msg=method)
    torch.testing.assert_close(phi.divergence(u, z), of_parts("divergence", u, z).sum(-1), **tolerance)
    torch.testing.assert_close(phi.dual_divergence(y, -y), of_parts("dual_divergence", y, -y).sum(-1), **tolerance)
    assert phi.is_legendre == parts[0].is_legendre
    assert phi.strong_convexity == pytest.approx(min(part.strong_convexity for part in parts), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_bounds_are_those_of_a_box(name: str, dtype: torch.dtype) -> None:
    phi, parts = boxes(name, INTERVALS), [ib.geometry(name).to_box(*ends) for ends in INTERVALS]
    for method in ("bounds", "inner_bounds"):
        expected = torch.tensor([getattr(part, method)(dtype) for part in parts], dtype=dtype).T
        for end, of_part in zip(getattr(phi, method)(dtype), expected, strict=True):
            assert torch.equal(end, of_part)
    for dual, end, place in zip(phi.saturated_dual(dtype), phi.bounds(dtype), phi.domain, strict=True):
        assert torch.isfinite(dual).all()
        width = phi.domain[1] - phi.domain[0]
        # (or next to it)
        room = torch.maximum(torch.minimum(place.abs().clamp_min(1.0), width), place.abs())
        near = torch.finfo(dtype).eps * room.to(dtype)
        assert ((phi.activation(dual) - end).abs() <= near).all()


def test_other_coordinates(dtype: torch.dtype) -> None:
    """With one bound softplus, shifted or mirrored, without the identity, and with lo = hi nothing moves."""
    phi, y = boxes("tanh", MIXED, dtype), 5 * torch.randn(4, len(MIXED), dtype=dtype)
    softplus = ib.geometry("softplus")
    expected = torch.stack(
        [
            ib.geometry("tanh").to_box(-1.0, 2.0).activation(y[:, 0]),
            0.5 + softplus.activation(y[:, 1]),
            -0.5 - softplus.activation(-y[:, 2]),
            y[:, 3],
            torch.full_like(y[:, 4], 0.7),
            softplus.activation(y[:, 5]),
            3 * torch.tanh(y[:, 6]),
            torch.zeros_like(y[:, 7]),
        ],
        -1,
    )
    torch.testing.assert_close(phi.activation(y), expected)
    slope = phi.slope(y)
    assert (slope[:, 4] == 0).all()
    assert (slope[:, 3] == 1).all()
    assert torch.equal(phi.curvature(y)[:, 4], torch.full_like(y[:, 4], INF))
    assert torch.equal(phi.pinned, torch.tensor([lo == hi for lo, hi in MIXED]))
    assert not phi.is_bounded
    assert phi.open_ends[0].tolist() == [lo == -INF for lo, _ in MIXED]


def test_identities_of_a_mixture(dtype: torch.dtype) -> None:
    """Fenchel-Young, round trips, the derivative of ρ, and a finite dual at every bound."""
    phi, y = boxes("sigmoid", MIXED, dtype), 2 * torch.randn(6, len(MIXED), dtype=dtype)
    moves = ~phi.pinned
    z = phi.activation(y)
    tolerance = {"rtol": 1e3 * torch.finfo(dtype).eps, "atol": 1e3 * torch.finfo(dtype).eps}
    torch.testing.assert_close(phi.potential(z) + phi.conjugate(y), z * y, **tolerance)
    torch.testing.assert_close(phi.dual_potential(y), phi.potential(z), **tolerance)
    torch.testing.assert_close(phi.inverse_activation(z)[:, moves], y[:, moves], **tolerance)
    assert (phi.inverse_activation(z)[:, ~moves] == 0).all()
    other = torch.randn_like(y)
    torch.testing.assert_close(
        phi.divergence(phi.activation(other), z), phi.dual_divergence(other, y), rtol=1e-3, atol=1e-5
    )
    assert phi.is_interior(z).all()
    for place, dual in zip(phi.bounds(dtype), phi.saturated_dual(dtype), strict=True):
        finite = torch.isfinite(place)
        at = phi.finite_dual(torch.where(finite, place, 0.5), dtype)
        assert torch.isfinite(at).all()
        assert torch.equal(at[finite], dual[finite])
        assert not phi.is_interior(place)[moves].any()


@pytest.mark.parametrize("name", ["tanh", "arctan"])
def test_derivatives_in_the_dual_and_in_the_bounds(name: str) -> None:
    lo, hi = torch.tensor(MIXED, dtype=torch.float64).T
    two, below, above = (lo < hi) & (hi - lo < INF), torch.isfinite(lo) & (hi == INF), torch.isfinite(hi) & (lo == -INF)
    y = torch.randn(3, len(lo), dtype=torch.float64, requires_grad=True)
    low, high = (torch.zeros_like(lo).requires_grad_() for _ in range(2))

    def rho(y: Tensor, low: Tensor, high: Tensor) -> Tensor:
        a, b = lo + torch.where(two | below, low, 0.0), hi + torch.where(two | above, high, 0.0)
        return ib.geometry(name).to_box(a, b).activation(y)

    assert torch.autograd.gradcheck(rho, (y, low, high))
    assert torch.autograd.gradgradcheck(rho, (y, low, high))
    z = rho(y, low, high).detach()

    def inverse(z: Tensor, low: Tensor, high: Tensor) -> Tensor:
        a, b = lo + torch.where(two | below, low, 0.0), hi + torch.where(two | above, high, 0.0)
        return ib.geometry(name).to_box(a, b).inverse_activation(z)[:, lo < hi]

    assert torch.autograd.gradcheck(inverse, (z.requires_grad_(), low, high))
    (first,) = torch.autograd.grad(inverse(z, low, high).sum(), low, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated a second time in the bounds"):
        torch.autograd.grad(first.sum(), low)
    # where lo = hi only the two together
    place = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    ib.geometry(name).to_box(place, place).activation(y).sum().backward()
    assert place.grad == y.numel()


def test_large_duals(dtype: torch.dtype) -> None:
    phi = boxes("tanh", MIXED, dtype)
    for size in (1e3, 1e30):
        y = torch.tensor([size, -size], dtype=dtype)[:, None].expand(2, len(MIXED))
        z, (lo, hi) = phi.activation(y), phi.bounds(dtype)
        assert ((z >= lo) & (z <= hi)).all()
        for method in ("activation", "slope", "log_curvature", "dual_potential", "conjugate"):
            values = getattr(phi, method)(y.clone().requires_grad_())
            assert not torch.isnan(values).any(), method
        assert torch.isfinite(phi.slope(y)).all()


def test_rounding_stays_inside() -> None:
    """Float64 bounds in a float32 solve: never outside C, except where it holds no float32."""
    lo = torch.tensor([0.1, -0.3, 1 + 1e-9, 0.1], dtype=torch.float64)
    hi = torch.tensor([0.7, -0.1, 1 + 2e-9, 0.1], dtype=torch.float64)
    low, high = ib.geometry("tanh").to_box(lo, hi).bounds(torch.float32)
    assert (low <= high).all()
    assert (low[:2].double() >= lo[:2]).all()
    assert (high[:2].double() <= hi[:2]).all()
    assert torch.equal(low[2:], torch.tensor([1.0, 0.1]))
    assert torch.equal(low[2:], high[2:])


def test_shapes() -> None:
    """Bounds of an event shape, or what broadcasts to it, for states of that shape and for rows."""
    lo = torch.arange(3.0)[:, None, None]
    phi = ib.geometry("tanh").to_box(lo, 5.0)
    y = torch.randn(2, 3, 4, 5)
    z = phi.activation(y)
    assert z.shape == y.shape
    assert (z > lo).all()
    rows = phi.for_states((3, 4, 5))
    torch.testing.assert_close(rows.activation(y.flatten(1)), z.flatten(1))
    assert torch.equal(rows.domain[0], lo.expand(3, 4, 5).flatten().double())
    one = ib.geometry("tanh").to_box(torch.tensor(0.0), 2.0)
    torch.testing.assert_close(one.activation(y), ib.geometry("tanh").to_box(0.0, 2.0).activation(y))
    torch.testing.assert_close(one.for_states((3,)).project(y[..., :3]), y[..., :3].clamp(0.0, 2.0))


def test_a_box_is_itself_alone() -> None:
    phi, again = boxes("tanh", MIXED), boxes("tanh", MIXED)
    assert phi == phi
    assert phi != again
    assert len({phi, again}) == 2
    y = torch.randn(2, len(MIXED), dtype=torch.float64)
    for other in (copy.copy(phi), copy.deepcopy(phi), pickle.loads(pickle.dumps(phi))):
        assert torch.equal(other.activation(y), phi.activation(y))
    assert torch.equal(phi.to_box(0.0, 1.0).activation(y), ib.geometry("tanh").to_box(0.0, 1.0).activation(y))


def test_bounds_that_change_later() -> None:
    """A geometry follows its tensors; what a solve has made of it does not."""
    hi = torch.ones(2, requires_grad=True)
    phi = ib.geometry("tanh").to_box(0.0, hi)
    rows = phi.for_states((2,))
    with torch.no_grad():
        hi.mul_(3.0)
    assert torch.equal(phi.domain[1], torch.full((2,), 3.0, dtype=torch.float64))
    assert torch.equal(rows.domain[1], torch.ones(2, dtype=torch.float64))
    with torch.no_grad():
        hi.sub_(9.0)
    with pytest.raises(ValueError, match="lo must be at most hi"):
        phi.for_states((2,))


ENDS = st.sampled_from([-INF, -1e3, -2.0, -0.5, 0.0, 1e-3, 0.5, 2.0, 1e3, INF])


@given(st.lists(st.tuples(ENDS, ENDS), min_size=1, max_size=6), st.lists(st.floats(-50, 50), min_size=6, max_size=6))
def test_random_mixtures(ends: list[tuple[float, float]], duals: list[float]) -> None:
    """ρ is monotone and ends in C, its slope is its derivative, and the prox of φ meets its equation."""
    ends = [(min(pair), max(pair)) for pair in ends]
    ends = [(lo, hi) for lo, hi in ends if lo < INF and hi > -INF] or [(0.0, 1.0)]
    phi, y = boxes("tanh", ends), torch.tensor(duals[: len(ends)], dtype=torch.float64, requires_grad=True)
    z, (lo, hi) = phi.activation(y), phi.domain
    assert ((z >= lo) & (z <= hi)).all()
    (slope,) = torch.autograd.grad(z.sum(), y)
    torch.testing.assert_close(slope, phi.slope(y.detach()))
    assert (phi.activation(y.detach() + 1.0) >= z).all()
    assert torch.equal(phi.project(y.detach()), y.detach().clamp(lo, hi))
