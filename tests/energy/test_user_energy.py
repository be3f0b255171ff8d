"""An energy that a user writes: `value` alone, everything else by autograd, in every grad mode."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import implicit_bregman as ib
from implicit_bregman import Energy


class Quartic(Energy):
    """Σ (z − Ax)⁴/4 + ½ zᵀSz with a learned A and S: not quadratic, and not separable."""

    def __init__(self, d: int = 3, n: int = 2) -> None:
        super().__init__(features=d)
        draw = torch.Generator().manual_seed(7)
        self.inputs = nn.Parameter(torch.randn(d, n, generator=draw, dtype=torch.float64))
        self.mix = nn.Parameter(torch.randn(d, d, generator=draw, dtype=torch.float64))

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.25 * (z - x @ self.inputs.mT).pow(4).sum(-1) + 0.5 * (z @ self.mix).square().sum(-1)


class Linear(Energy):
    """⟨x, z⟩: no curvature at all."""

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return (x * z).sum(-1)


class Constant(Energy):
    """Does not depend on z."""

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return x.sum(-1)


def points(generator: torch.Generator, batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    z, v = (torch.randn(batch, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return z, torch.randn(batch, 2, generator=generator, dtype=torch.float64), v


def exact_gradient(energy: Quartic, z: Tensor, x: Tensor) -> Tensor:
    return (z - x @ energy.inputs.mT).pow(3) + z @ energy.mix @ energy.mix.mT


def exact_product(energy: Quartic, z: Tensor, x: Tensor, v: Tensor) -> Tensor:
    return 3 * (z - x @ energy.inputs.mT).square() * v + v @ energy.mix @ energy.mix.mT


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_gradient_and_hessian_product_in_every_grad_mode(mode: type, generator: torch.Generator) -> None:
    energy = Quartic()
    z, x, v = points(generator)
    with mode():
        gradient, product = energy.gradient(z, x), energy.hessian_product(z, x, v)
    assert torch.allclose(gradient, exact_gradient(energy, z, x), rtol=1e-12)
    assert torch.allclose(product, exact_product(energy, z, x, v), rtol=1e-12)
    assert gradient.requires_grad == (mode is torch.enable_grad)
    assert not product.requires_grad


def test_inputs_that_were_made_in_inference_mode(generator: torch.Generator) -> None:
    energy = Quartic()
    with torch.inference_mode():
        z, x, v = points(generator)
        inside = energy.gradient(z, x)
    outside, product = energy.gradient(z, x), energy.hessian_product(z, x, v)
    assert torch.equal(inside, outside)
    assert torch.allclose(product, exact_product(energy, z.clone(), x.clone(), v.clone()), rtol=1e-12)


def test_central_differences(generator: torch.Generator) -> None:
    energy = Quartic()
    z, x, v = points(generator)
    h = 1e-5
    along = (energy.value(z + h * v, x) - energy.value(z - h * v, x)) / (2 * h)
    assert torch.allclose((energy.gradient(z, x) * v).sum(-1), along, rtol=1e-7)
    change = (energy.gradient(z + h * v, x) - energy.gradient(z - h * v, x)) / (2 * h)
    assert torch.allclose(energy.hessian_product(z, x, v), change, rtol=1e-7)


def test_gradient_is_differentiable_again_in_z_x_and_the_parameters(generator: torch.Generator) -> None:
    energy = Quartic()
    z, x, v = points(generator, batch=2)
    z.requires_grad_()
    x.requires_grad_()
    assert torch.autograd.gradcheck(energy.gradient, (z, x))
    assert torch.autograd.gradgradcheck(energy.gradient, (z, x))
    wanted = torch.autograd.grad((exact_gradient(energy, z, x) * v).sum(), (z, x, energy.inputs, energy.mix))
    got = torch.autograd.grad((energy.gradient(z, x) * v).sum(), (z, x, energy.inputs, energy.mix))
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-10)


def test_gradient_at_a_detached_point_still_carries_the_parameters(generator: torch.Generator) -> None:
    energy = Quartic()
    z, x, _ = points(generator)
    (got,) = torch.autograd.grad(energy.gradient(z, x).sum(), energy.mix)
    (wanted,) = torch.autograd.grad(exact_gradient(energy, z, x).sum(), energy.mix)
    assert torch.allclose(got, wanted, rtol=1e-12)


def test_reading_the_gradient_leaves_no_trace_on_the_arguments(generator: torch.Generator) -> None:
    energy = Quartic()
    z, x, v = points(generator)
    energy.gradient(z, x)
    energy.hessian_product(z, x, v)
    assert not z.requires_grad
    assert z.grad is None
    assert all(parameter.grad is None for parameter in energy.parameters())


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("energy", [Linear(), Constant()], ids=["linear", "constant"])
def test_values_without_curvature(energy: Energy, mode: type) -> None:
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    z = torch.ones(2, 2)
    with mode():
        gradient, product = energy.gradient(z, x), energy.hessian_product(z, x, z)
    assert torch.equal(gradient, x if isinstance(energy, Linear) else torch.zeros(2, 2))
    assert torch.equal(product, torch.zeros(2, 2))


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=["single", "batch", "leading"])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    energy = Linear()
    z = torch.ones(*shape, 3)
    assert energy.gradient(z, z).shape == (*shape, 3)
    assert energy.hessian_product(z, z, z).shape == (*shape, 3)


@pytest.mark.parametrize(
    ("reduce", "shape"),
    [(lambda t: t, r"\(4, 3\)"), (lambda t: t.sum(), r"\(\)"), (lambda t: t.sum(-1, keepdim=True), r"\(4, 1\)")],
    ids=["elementwise", "batch-sum", "keepdim"],
)
def test_a_value_that_is_not_one_number_per_sample_is_refused(reduce: object, shape: str) -> None:
    class Wrong(Energy):
        def value(self, z: Tensor, x: Tensor) -> Tensor:
            return reduce(z * x)

    z = torch.ones(4, 3)
    message = rf"Wrong.value must return one number per sample, shape \(4,\), got {shape}: sum over the features only"
    with pytest.raises(ValueError, match=message):
        Wrong().gradient(z, z)
    with pytest.raises(ValueError, match=message):
        ib.find_critical_point(Wrong(), "tanh", z)


def test_an_energy_without_value_says_what_is_missing() -> None:
    class Empty(Energy):
        pass

    with pytest.raises(TypeError, match=r"Empty must define value\(z, x\)"):
        Empty().gradient(torch.ones(1, 2), torch.ones(1, 2))


def test_features_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
        Energy(features=0)


def test_state_dict_deepcopy_and_pickle(generator: torch.Generator) -> None:
    energy = Quartic()
    with torch.no_grad():
        energy.mix.mul_(3)
    z, x, _ = points(generator)
    wanted = energy.gradient(z, x)
    fresh = Quartic()
    fresh.load_state_dict(energy.state_dict())
    for other in (fresh, copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))):
        assert torch.equal(other.gradient(z, x), wanted)
        with torch.no_grad():
            other.mix.zero_()
    assert torch.equal(energy.gradient(z, x), wanted)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_critical_point_is_the_same_in_every_grad_mode(mode: type, generator: torch.Generator) -> None:
    energy = Quartic()
    x = points(generator)[1]
    with mode():
        found = ib.find_critical_point(energy, "tanh", x)
    assert bool(found.converged.all())
    z = found.value.detach().clone()
    gradient = exact_gradient(energy, z, x.clone()).detach()
    projected = (z - gradient).clamp(-1, 1) - z
    assert float(projected.abs().max()) <= 1e-9
    assert found.value.requires_grad == (mode is torch.enable_grad)
    reference = ib.find_critical_point(energy, "tanh", x)
    assert torch.equal(found.value, reference.value)


def test_a_module_call_is_the_value_and_runs_hooks(generator: torch.Generator) -> None:
    energy, seen = Quartic(), []
    energy.register_forward_hook(lambda *_: seen.append(1))
    z, x, _ = points(generator)
    assert torch.equal(energy(z, x), energy.value(z, x))
    assert seen == [1]


def test_products_at_one_point_evaluate_the_energy_once(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [0], Quartic.value

    def counted(self: Quartic, z: Tensor, x: Tensor) -> Tensor:
        calls[0] += 1
        return real(self, z, x)

    energy = Quartic()
    z, x, v = points(generator)
    operator = energy.bind(x).hessian(z)
    monkeypatch.setattr(Quartic, "value", counted)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            for along in (v, 2 * v):
                torch.testing.assert_close(operator.product(along), exact_product(energy, z, x, along).detach())
    assert calls[0] == 1


def test_an_own_product_with_the_hessian_is_used(generator: torch.Generator) -> None:
    class Own(Quartic):
        def hessian_product(self, z: Tensor, x: Tensor, v: Tensor) -> Tensor:
            return exact_product(self, z, x, v).detach() + 1

    energy = Own()
    z, x, v = points(generator)
    torch.testing.assert_close(energy.bind(x).hessian(z).product(v), exact_product(energy, z, x, v).detach() + 1)
