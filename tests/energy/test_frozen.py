"""`frozen()`: the factorization is kept over calls, and nothing stale is ever used."""

import copy

import pytest
import torch

import implicit_bregman as ib


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    real = torch.linalg.cholesky_ex

    def cholesky_ex(matrix: torch.Tensor) -> object:
        if matrix.dim() == 2:  # not the small systems of each sample
            calls.append("factor")
        return real(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", cholesky_ex)
    return calls


@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize("weight", ["convex", "symmetric", "monotone", "general", "low_rank"])
def test_the_same_result(weight: str, gamma: float, dtype: torch.dtype) -> None:
    settings = {"rank": 3} if weight == "low_rank" else {}
    layer = ib.BregmanDEQ(5, 8, weight=weight, regularization=gamma, dtype=dtype, **settings)
    x = torch.randn(7, 5, dtype=dtype)
    with torch.no_grad():
        expected = layer(x)
        with layer.frozen():
            first, second = layer(x), layer(x)
    assert torch.equal(first, second)
    assert torch.allclose(first, expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_one_factorization_for_many_calls(gamma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = ib.BregmanDEQ(5, 8, regularization=gamma)
    x = torch.randn(6, 5)
    calls = counted(monkeypatch)
    with torch.no_grad():
        layer(x)
        once = len(calls)
        assert once >= 1
        layer(x)
        assert len(calls) == 2 * once
        with layer.frozen():
            layer(x)
            kept = len(calls)
            for _ in range(3):
                layer(x)
            with layer.frozen():  # nested: the same
                layer(x)
            layer(x.reshape(2, 3, 5))
        assert len(calls) == kept
        layer(x)
        assert len(calls) > kept


def test_a_weight_that_needs_a_gradient_is_refused() -> None:
    layer = ib.BregmanDEQ(5, 8)
    with layer.frozen(), pytest.raises(RuntimeError, match=r"torch.no_grad\(\)"):
        layer(torch.randn(2, 5))


def test_gradients_of_the_rest_flow() -> None:
    layer = ib.BregmanDEQ(5, 8, dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    wanted = [x, layer.energy.input_weight, layer.energy.bias]
    expected = torch.autograd.grad(layer(x).square().sum(), wanted)
    layer.energy.weight_map.requires_grad_(False)
    with layer.frozen():
        for _ in range(2):
            found = torch.autograd.grad(layer(x).square().sum(), wanted)
            for one, other in zip(found, expected, strict=True):
                assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_a_change_inside_is_noticed() -> None:
    layer = ib.BregmanDEQ(5, 8)
    x = torch.randn(2, 5)
    with torch.no_grad(), layer.frozen():
        layer(x)
        layer.energy.weight_map.factor.mul_(1.1)
        with pytest.raises(RuntimeError, match="changed inside frozen"):
            layer(x)
    with torch.no_grad():
        changed = layer(x)
    assert bool(torch.isfinite(changed).all())


def test_an_error_inside_ends_it() -> None:
    layer = ib.BregmanDEQ(5, 8)
    with pytest.raises(ZeroDivisionError), layer.frozen():
        raise ZeroDivisionError
    layer(torch.randn(2, 5)).sum().backward()
    assert layer.energy.weight_map.factor.grad is not None


def test_copies_are_not_frozen() -> None:
    layer = ib.BregmanDEQ(5, 8)
    with layer.frozen():
        other = copy.deepcopy(layer)
    other(torch.randn(2, 5)).sum().backward()
    assert other.energy.weight_map.factor.grad is not None


def test_given_matrices() -> None:
    energy = ib.QuadraticEnergy.from_matrices(-torch.eye(3))
    x = torch.tensor([[0.2, 3.0, -0.4]])
    with energy.frozen():
        for _ in range(2):
            found = ib.find_critical_point(energy, "tanh", x)
            assert torch.allclose(found.value, torch.tensor([[0.2, 1.0, -0.4]]))
