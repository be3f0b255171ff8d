"""The low-rank energy: ½‖Vᵀz − β‖² up to a constant, its settings and its parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.projection.energy import BoundLowRank

D, N, R, B = 6, 4, 3, 5


@pytest.fixture
def energy(dtype: torch.dtype) -> ib.QuadraticEnergy:
    made = ib.QuadraticEnergy(D, N, "low_rank", rank=R, dtype=dtype)
    with torch.no_grad():
        made.bias.normal_()
        made.weight_map.vectors.mul_(1.5)
    return made


def vectors_of(energy: ib.QuadraticEnergy) -> Tensor:
    return energy.weight_map.vectors


def test_value_gradient_and_linear_part(energy: ib.QuadraticEnergy, dtype: torch.dtype) -> None:
    z, x, v = torch.randn(B, D, dtype=dtype), torch.randn(B, N, dtype=dtype), vectors_of(energy)
    beta = energy.target(x)
    assert beta.shape == (B, R)
    torch.testing.assert_close(beta, x @ energy.input_weight.T + energy.bias)
    torch.testing.assert_close(energy.weight, -v @ v.T)
    torch.testing.assert_close(energy.linear(x), beta @ v.T)
    torch.testing.assert_close(energy.value(z, x), 0.5 * (z @ v - beta).square().sum(-1) - 0.5 * beta.square().sum(-1))
    torch.testing.assert_close(energy.gradient(z, x), (z @ v - beta) @ v.T)
    torch.testing.assert_close(energy.hessian_product(z, x, z), (z @ v) @ v.T)
    assert energy.symmetric
    assert energy.convex


def test_the_bound_energy_agrees_and_never_forms_more_than_it_needs(
    energy: ib.QuadraticEnergy, dtype: torch.dtype
) -> None:
    z, x = torch.randn(B, D, dtype=dtype), torch.randn(B, N, dtype=dtype)
    bound = energy.bind(x)
    assert isinstance(bound, BoundLowRank)
    at = bound.evaluate(z)
    torch.testing.assert_close(at.value, energy.value(z, x))
    torch.testing.assert_close(at.gradient, energy.gradient(z, x))
    torch.testing.assert_close(bound.gradient(z), energy.gradient(z, x))
    product = z @ energy.weight
    torch.testing.assert_close(bound.terms(at.gradient), torch.maximum(product.abs(), energy.linear(x).abs()))
    assert bool((bound.stiffness >= energy.weight.abs().sum(-1) * (1 - 1e-6)).all())
    hessian = bound.hessian(z)
    torch.testing.assert_close(hessian.product(z.double()), -(z @ energy.weight).double(), rtol=1e-5, atol=1e-5)
    tensors, rebuild = hessian.pack()
    torch.testing.assert_close(rebuild(*tensors).product(z), hessian.product(z))
    assert bound.factored is None
    assert not hessian.factorizes
    assert bound.double().dtype == torch.float64
    part = bound.select(torch.tensor([3, 1]))
    torch.testing.assert_close(part.gradient(z[[3, 1]]), bound.gradient(z)[[3, 1]])


def test_the_step_comes_from_the_gram_matrix(energy: ib.QuadraticEnergy) -> None:
    largest = torch.linalg.matrix_norm(vectors_of(energy).detach(), 2).square()
    torch.testing.assert_close(energy.curvature_bound(), largest)
    low, high = energy.curvature_range()
    assert float(low) == 0.0
    torch.testing.assert_close(high, largest)
    certificate = ib.certify(energy, "tanh")
    assert certificate.step == pytest.approx(1 / float(largest))
    assert certificate.majorizes
    assert certificate.descends
    assert not certificate.unique
    assert ib.certify(energy, "tanh", 0.5).unique
    square = ib.QuadraticEnergy(D, N, "low_rank", rank=D)
    assert ib.certify(square, "tanh").unique


def test_the_columns_start_orthonormal() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        vectors = vectors_of(ib.QuadraticEnergy(D, N, "low_rank", rank=R, dtype=dtype)).detach().float()
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(R), rtol=0, atol=4 * eps + 1e-6)


def test_without_u_the_target_is_b_alone() -> None:
    energy = ib.QuadraticEnergy(D, D, "low_rank", rank=R)
    with torch.no_grad():
        energy.bias.normal_()
    energy.input_weight = None
    assert torch.equal(energy.target(torch.randn(2, 3, D)), energy.bias.expand(2, 3, R))
    energy.bias = None
    assert torch.equal(energy.target(torch.randn(2, 3, D)), torch.zeros(2, 3, R))


def test_state_dict_and_copies() -> None:
    energy = ib.QuadraticEnergy(D, N, "low_rank", rank=R)
    state = energy.state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == {
        "input_weight": (R, N),
        "bias": (R,),
        "weight_map.vectors": (D, R),
    }
    other = ib.QuadraticEnergy(D, N, "low_rank", rank=R)
    other.load_state_dict(state)
    assert torch.equal(other.weight, energy.weight)
    assert torch.equal(copy.deepcopy(energy).weight, energy.weight)
    assert "LowRankWeight(features=6, rank=3, softening=0.001)" in repr(energy)
    assert energy.to("meta").weight.shape == (D, D)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": "low_rank"}, r'weight="low_rank" needs rank, .*: a whole number from 1 to features = 6, got None'),
        ({"weight": "low_rank", "rank": 0}, "a whole number from 1 to features = 6, got 0"),
        ({"weight": "low_rank", "rank": 7}, "a whole number from 1 to features = 6, got 7"),
        ({"weight": "low_rank", "rank": 2.0}, "a whole number from 1 to features = 6, got 2.0"),
        ({"weight": "low_rank", "rank": True}, "a whole number from 1 to features = 6, got True"),
        ({"weight": "low_rank", "rank": 2, "softening": 0.0}, "softening must be positive and finite, got 0.0"),
        ({"weight": "convex", "rank": 2}, 'rank = 2 has a meaning for weight="low_rank" only, got weight="convex"'),
        ({"weight": "general", "softening": 0.1}, 'softening = 0.1 has a meaning for weight="low_rank" only'),
        (
            {"weight": "lowrank", "rank": 2},
            "weight must be one of convex, .*, low_rank, got 'lowrank'",
        ),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ib.QuadraticEnergy(D, N, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        ib.BregmanDEQ(N, D, **settings)  # type: ignore[arg-type]


def test_only_a_low_rank_weight_has_a_target() -> None:
    with pytest.raises(TypeError, match='only a QuadraticEnergy with weight="low_rank" has a target: use linear'):
        ib.QuadraticEnergy(D, N).target(torch.zeros(B, N))


def test_weights_that_are_not_finite_are_named() -> None:
    energy = ib.QuadraticEnergy(D, N, "low_rank", rank=R)
    with torch.no_grad():
        vectors_of(energy)[0, 0] = torch.nan
    with pytest.raises(ValueError, match="weight of the energy"):
        ib.find_critical_point(energy, "tanh", torch.zeros(B, N))
