"""Parts with geometries of their own: against these geometries, with weights, identities, what is refused."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.legendre.product import PartOfState
from tests.legendre.conftest import ELEMENTWISE

NAMES = [name for name in ib.geometries() if name not in ("simplex", "burg")]
#: A weight for each coordinate, or one for all of a part, or none.
MIXED: list[PartOfState] = [
    ("exp", 3),
    ("tanh", 2, 0.5),
    ("identity", 2, torch.tensor([1.0, 4.0])),
    ("softplus", 1, 3.0),
    (ib.geometry("sigmoid").to_box(-1.0, 2.0), 2),
    (ib.geometry("tanh").to_box(torch.tensor([0.5, -1.0, 0.7]), torch.tensor([math.inf, 1.0, 0.7])), 3, 2.0),
]


def test_parts_have_the_maps_of_their_geometries(dtype: torch.dtype) -> None:
    phi = ib.Product([(name, 2) for name in NAMES])
    parts = [ib.geometry(name) for name in NAMES]
    y = 2 * torch.randn(5, phi.size, dtype=dtype)

    def of_parts(method: str, *tensors: Tensor) -> Tensor:
        pieces = zip(*(tensor.split(2, -1) for tensor in tensors), strict=True)
        return torch.cat([getattr(part, method)(*piece) for part, piece in zip(parts, pieces, strict=True)], -1)

    tolerance = {"rtol": 32 * torch.finfo(dtype).eps, "atol": 0.0}
    for method in ELEMENTWISE:
        torch.testing.assert_close(getattr(phi, method)(y), of_parts(method, y), **tolerance, msg=method)
    z, u = phi.activation(y), phi.activation(0.9 * y)
    for method in ("inverse_activation", "potential", "project", "is_interior"):
        torch.testing.assert_close(getattr(phi, method)(z), of_parts(method, z), **tolerance, msg=method)
    for method, pair in (("divergence", (u, z)), ("dual_divergence", (y, 0.9 * y))):
        pieces = zip(*(each.split(2, -1) for each in pair), strict=True)
        expected = sum(getattr(part, method)(*piece) for part, piece in zip(parts, pieces, strict=True))
        torch.testing.assert_close(getattr(phi, method)(*pair), expected)
    for method in ("bounds", "inner_bounds", "saturated_dual"):
        for end, each in enumerate(getattr(phi, method)(dtype)):
            expected = torch.tensor(
                [getattr(part, method)(dtype)[end] for part in parts for _ in range(2)], dtype=dtype
            )
            assert torch.equal(each, expected), method
    assert phi.strong_convexity == min(part.strong_convexity for part in parts)
    assert not phi.is_legendre  # sin is among them
    assert not phi.is_bounded
    assert not phi.is_everything


def test_a_weight_multiplies_phi(dtype: torch.dtype) -> None:
    """wφ has the mirror map ρ(y/w), by the derivatives of its potential and its conjugate."""
    weight = torch.tensor([0.25, 3.0, 1.0], dtype=dtype)
    for name in NAMES:
        phi, base = ib.Product([(name, 3, weight)]), ib.geometry(name)
        y = (0.7 * torch.randn(4, 3, dtype=dtype)).requires_grad_()
        z = phi.activation(y)
        torch.testing.assert_close(z, base.activation(y / weight))
        torch.testing.assert_close(phi.potential(z.detach()), weight * base.potential(z.detach()))
        (slope,) = torch.autograd.grad(z.sum(), y)
        torch.testing.assert_close(slope, phi.slope(y).detach())
        (rho,) = torch.autograd.grad(phi.conjugate(y).sum(), y)
        torch.testing.assert_close(rho, z.detach())
        assert phi.strong_convexity == pytest.approx(0.25 * base.strong_convexity)
        assert phi.max_curvature == pytest.approx(3.0 * base.max_curvature)


def test_identities_of_a_mixture(dtype: torch.dtype) -> None:
    phi = ib.Product(MIXED)
    y = torch.randn(6, phi.size, dtype=dtype)
    moves, eps = ~phi.pinned, torch.finfo(dtype).eps
    z = phi.activation(y)
    torch.testing.assert_close(phi.potential(z) + phi.conjugate(y), z * y, rtol=1e3 * eps, atol=1e3 * eps)
    torch.testing.assert_close(phi.dual_potential(y), phi.potential(z), rtol=1e3 * eps, atol=1e3 * eps)
    torch.testing.assert_close(phi.inverse_activation(z)[:, moves], y[:, moves], rtol=1e3 * eps, atol=1e3 * eps)
    torch.testing.assert_close(
        phi.log_curvature(y)[:, moves].exp() * phi.slope(y)[:, moves], torch.ones_like(y[:, moves])
    )
    assert phi.is_interior(z).all()
    assert phi.pinned.tolist() == [False] * 12 + [True]
    for place, dual in zip(phi.bounds(dtype), phi.saturated_dual(dtype), strict=True):
        finite = torch.isfinite(place)
        at = phi.finite_dual(torch.where(finite, place, 1.5), dtype)
        assert torch.isfinite(at).all()
        assert torch.equal(at[finite], dual[finite])


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 3), st.floats(1e-3, 1e3)), min_size=1, max_size=5),
    st.floats(-1e30, 1e30),
)
def test_no_dual_is_too_large(parts: list[PartOfState], size: float) -> None:
    phi = ib.Product(parts)
    for dtype in (torch.float32, torch.float64):
        y = torch.full((phi.size,), size, dtype=dtype)
        lo, hi = phi.bounds(dtype)
        z = phi.activation(y)
        assert ((lo <= z) & (z <= hi)).all()
        for method in ELEMENTWISE:
            assert not getattr(phi, method)(y).isnan().any(), method


def test_some_of_the_coordinates(dtype: torch.dtype) -> None:
    phi, columns = ib.Product(MIXED), torch.tensor([11, 0, 6, 5, 12, 2])
    part, y = phi.on(columns), torch.randn(3, phi.size, dtype=dtype)
    torch.testing.assert_close(part.activation(y[:, columns]), phi.activation(y)[:, columns])
    torch.testing.assert_close(part.slope(y[:, columns]), phi.slope(y)[:, columns])
    for some, all_of in zip(part.bounds(dtype), phi.bounds(dtype), strict=True):
        assert torch.equal(some, all_of[columns])
    torch.testing.assert_close(part.on(torch.tensor([1, 4])).activation(y[:, [0, 12]]), phi.activation(y)[:, [0, 12]])


def test_states_that_are_not_flat() -> None:
    phi = ib.Product([("exp", 2), ("tanh", 4)]).for_states((2, 3))
    y = torch.randn(5, 2, 3)
    z = phi.activation(y)
    assert z.shape == (5, 2, 3)
    assert torch.equal(z.flatten(1), phi.activation(y.flatten(1)))
    assert torch.equal(z[:, 0, :2], y[:, 0, :2].exp())


def test_copies() -> None:
    phi = ib.Product(MIXED)
    y = torch.randn(2, phi.size)
    for other in (copy.deepcopy(phi), pickle.loads(pickle.dumps(phi))):
        assert torch.equal(other.activation(y), phi.activation(y))
    assert phi in {phi}
    assert phi != ib.Product(MIXED)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ("exp", TypeError, r"product: got 'exp'; give pairs \(geometry, size\)"),
        ([], TypeError, "give pairs"),
        ([("exp",)], TypeError, "got the part"),
        ([("exp", 0)], ValueError, "product: size"),
        ([("exp", 2, -1.0)], ValueError, "product: weight must be positive"),
        (
            [("exp", 2, torch.ones(3))],
            ValueError,
            r"weight must be a number or a floating-point tensor of shape \(2,\)",
        ),
        ([("exp", 2, torch.tensor([1.0, 0.0]))], ValueError, "weights must be positive and finite"),
        ([("exp", 2, torch.ones(2, requires_grad=True))], ValueError, "no gradient to weights: detach"),
        ([("simplex", 3)], ValueError, "simplex couples its coordinates"),
        ([("burg", 3)], ValueError, "burg has no ρ"),
        ([("softmax", 3)], ValueError, "unknown geometry"),
    ],
)
def test_refused(parts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ib.Product(parts)


def test_refused_of_states() -> None:
    phi = ib.Product([("exp", 2), ("tanh", 3)])
    with pytest.raises(ValueError, match="parts have 5 coordinates"):
        phi.activation(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"parts have 5 coordinates together, but a state of shape \(6,\) has 6"):
        ib.BregmanDEQ(3, 6, phi)(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="call to_box of their geometries"):
        phi.to_box(0.0, 1.0)
    with pytest.raises(ValueError, match="compute in float32"):
        ib.BregmanDEQ(3, 5, phi, dtype=torch.bfloat16)(torch.zeros(1, 3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"beyond torch\.float32.*compute in float64"):
        ib.Product([("tanh", 2, 1e-46)]).activation(torch.zeros(2, dtype=torch.float32))
    bounds = torch.zeros(2, requires_grad=True)
    with pytest.raises(ValueError, match="no gradient to the bounds of a part"):
        ib.Product([(ib.geometry("tanh").to_box(bounds, 1.0), 2)])
