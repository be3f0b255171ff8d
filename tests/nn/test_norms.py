"""`CriticalPoint(..., norm=...)`: weights normalized by PyTorch's parametrizations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import implicit_bregman as ib


class Network(ib.Field):
    """F = −(Az + Ux), with some convolutions beside, whose parametrizations are counted."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(6)
        self.mix, self.inject = nn.Linear(6, 6, dtype=dtype), nn.Linear(4, 6, dtype=dtype)
        self.smooth = nn.Conv1d(1, 1, 3, padding=1, dtype=dtype)

    def field(self, z: Tensor, x: Tensor) -> Tensor:
        return -0.8 * self.smooth(self.mix(z)[:, None])[:, 0] - self.inject(x)


def layer(norm: str | None, dtype: torch.dtype = torch.float64, **settings: object) -> ib.CriticalPoint:
    torch.manual_seed(0)
    return ib.CriticalPoint(Network(dtype), "tanh", regularization=1.0, norm=norm, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weight_norm_starts_from_the_same_layer(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, dtype=dtype)
    plain, normed = layer(None, dtype), layer("weight", dtype)
    torch.testing.assert_close(normed(x), plain(x))
    names = {name for name, _ in normed.named_parameters()}
    assert "energy.mix.parametrizations.weight.original0" in names
    assert "energy.smooth.parametrizations.weight.original1" in names
    assert normed.norm == "weight"
    assert "norm='weight'" in repr(normed)
    assert "norm" not in repr(plain)


@pytest.mark.parametrize("norm", ["weight", "spectral"])
def test_gradients_agree_with_finite_differences(norm: str) -> None:
    normed, x = layer(norm), torch.randn(2, 4, dtype=torch.float64)
    for _ in range(40):  # (the power method of spectral_norm goes on in training)
        normed(x)
    normed(x).square().sum().backward()
    normed.eval()
    for parameter in normed.parameters():
        assert parameter.grad is not None
        entry = (0,) * parameter.dim()
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter[entry] += step
                values.append(float(normed(x).square().sum()))
                parameter[entry] -= step
        difference = (values[0] - values[1]) / 2e-5
        assert float(parameter.grad[entry]) == pytest.approx(difference, rel=1e-3, abs=1e-6)


def test_spectral_norm_bounds_the_layers() -> None:
    normed, x = layer("spectral"), torch.randn(2, 4, dtype=torch.float64)
    for _ in range(40):
        normed(x)
    network = normed.eval().energy
    assert float(torch.linalg.matrix_norm(network.mix.weight, 2).detach()) == pytest.approx(1, rel=1e-3)


def test_weights_are_computed_once_per_call() -> None:
    normed, calls = layer("weight"), []

    class Count(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            calls.append(1)
            return weight

    parametrize.register_parametrization(normed.energy.mix, "weight", Count())
    calls.clear()
    solution = normed.solve(torch.randn(3, 4, dtype=torch.float64))
    assert int(solution.evaluations.max()) > 3
    assert len(calls) == 1


class NoLayers(ib.Field):
    def field(self, z: Tensor, x: Tensor) -> Tensor:
        return z - x


def test_refusals() -> None:
    with pytest.raises(ValueError, match="norm must be one of 'weight', 'spectral', or None, got 'batch'"):
        layer("batch")
    with pytest.raises(ValueError, match="NoLayers has none: use norm=None"):
        ib.CriticalPoint(NoLayers(), "tanh", norm="weight")
    twice = layer("weight").energy
    with pytest.raises(ValueError, match=r"mix\.weight is parametrized already: use norm=None"):
        ib.CriticalPoint(twice, "tanh", norm="spectral")
