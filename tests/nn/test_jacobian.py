"""The spectral radius of the fixed-point map, and the penalty on its Jacobian, against the Jacobian as a matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from tests.problems import Attention, Network, inputs, tokens


def jacobians(layer: ib.CriticalPoint, z: Tensor, x: object) -> Tensor:
    """∂ρ(−F/γ)/∂z, or ∂Π(z − F)/∂z, (B, d, d)."""
    phi, gamma = layer.geometry, layer.regularization

    def step(z: Tensor) -> Tensor:
        value = layer.energy(z, x)
        return phi.activation(-value / gamma) if gamma else torch.clamp(z - value, *phi.domain)

    whole = torch.autograd.functional.jacobian(step, z.detach())
    d = z[0].numel()
    return torch.stack([whole[b].reshape(d, *z.shape)[:, b].reshape(d, d) for b in range(len(z))])


MAPS = [("tanh", 1.0), ("softplus", 2.0), ("identity", 0.0), ("softplus", 0.0)]


@pytest.mark.parametrize(("geometry", "gamma"), MAPS)
def test_the_spectral_radius(geometry: str, gamma: float) -> None:
    layer, x = ib.CriticalPoint(Network(plus_z=gamma == 0), geometry, gamma), inputs(3)
    z = layer(x)
    found = layer.spectral_radius(z, x, iterations=400)
    wanted = torch.linalg.eigvals(jacobians(layer, z, x)).abs().amax(-1)
    torch.testing.assert_close(found, wanted, rtol=0.03, atol=1e-3)
    assert not found.requires_grad
    with torch.no_grad():
        assert layer.spectral_radius(z, x).shape == (3,)


@pytest.mark.parametrize("event", [False, True], ids=["vector", "tokens"])
def test_the_penalty_is_the_mean_square_of_the_jacobian(event: bool) -> None:
    layer = ib.CriticalPoint(Attention() if event else Network(), "tanh", 1.0)
    x = tokens(2) if event else inputs(2)
    z = layer(x)
    matrix = jacobians(layer, z, x)
    wanted = matrix.square().sum((1, 2)).mean() / matrix.shape[-1]
    assert float(layer.jacobian_penalty(z, x, samples=1500).detach()) == pytest.approx(float(wanted), rel=0.1)


def test_the_penalty_trains() -> None:
    layer, x = ib.CriticalPoint(Network(), "tanh", 1.0), inputs()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    radii = []
    for _ in range(40):
        z = layer(x)
        radii.append(float(layer.spectral_radius(z, x).max()))
        optimizer.zero_grad()
        layer.jacobian_penalty(z, x, samples=4).backward()
        optimizer.step()
    assert radii[-1] < 0.5 * radii[0]


def test_energies_and_shapes() -> None:
    layer, x = ib.BregmanDEQ(4, 6, "tanh", regularization=1.0), torch.randn(2, 3, 4)
    z = layer(x)
    radius = layer.spectral_radius(z, x, iterations=300)
    assert radius.shape == (2, 3)
    wanted = torch.linalg.eigvals(torch.diag_embed(1 - z.square()) @ layer.energy.weight).abs().amax(-1)
    torch.testing.assert_close(radius, wanted.detach(), rtol=0.05, atol=1e-3)


@pytest.mark.parametrize(("name", "setting"), [("spectral_radius", "iterations"), ("jacobian_penalty", "samples")])
def test_impossible_settings(name: str, setting: str) -> None:
    layer, x = ib.CriticalPoint(Network(), "tanh", 1.0), inputs()
    with pytest.raises(ValueError, match=f"{setting} must be a whole number of at least 1, got 0"):
        getattr(layer, name)(layer(x), x, **{setting: 0})
