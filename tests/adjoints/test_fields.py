"""Gradients through the equilibria of networks: implicit = a long unroll = finite differences, and what comes after."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import implicit_bregman as ib
from tests.problems import Attention, D, Network, inputs, tokens

SETTINGS = [
    ("tanh", 1.0),
    ("sigmoid", 2.0),
    ("softplus", 0.8),
    ("identity", 1.0),
    ("sin", 1.0),
    ("identity", 0.0),
    ("softplus", 0.0),
    ("tanh", 0.0),
]
every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=str)


def loss_of(setting: tuple[str, float], **settings: object) -> tuple[Network, Tensor, Callable[..., Tensor]]:
    geometry, gamma = setting
    field, x = Network(plus_z=gamma == 0), inputs(3).requires_grad_()
    weight = torch.linspace(-1, 2, 18, dtype=D).reshape(3, 6)

    def loss(x: Tensor, **more: object) -> Tensor:
        found = ib.find_critical_point(field, geometry, x, regularization=gamma, **{**settings, **more})
        return (weight * found.value + found.value.square()).sum()

    return field, x, loss


def gradients(field: Network, x: Tensor, loss: Tensor) -> dict[str, Tensor]:
    named = {"x": x, **dict(field.named_parameters())}
    return dict(zip(named, torch.autograd.grad(loss, tuple(named.values())), strict=True))


def error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    return max(float((found[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted)


@every_setting
def test_implicit_is_the_finite_difference_and_a_long_unroll(setting: tuple[str, float]) -> None:
    field, x, loss = loss_of(setting)
    found = gradients(field, x, loss(x))
    for name, tensor in {"x": x, **dict(field.named_parameters())}.items():
        along = torch.randn_like(tensor)
        ends = []
        with torch.no_grad():
            for shift in (1e-5, -2e-5, 1e-5):
                tensor += shift * along
                ends.append(loss(x))
        assert float((found[name] * along).sum()) == pytest.approx(float((ends[0] - ends[1]) / 2e-5), rel=1e-5), name
    # (towards a bound MM is slow)
    if setting not in [("softplus", 0.0), ("tanh", 0.0)]:
        unrolled = gradients(field, x, loss(x, adjoint=ib.adjoints.Unrolled(steps=400)))
        assert error(found, unrolled) <= 1e-7


@every_setting
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_the_gradient_does_not_depend_on_the_mode_or_the_solver(setting: tuple[str, float], mode: bool) -> None:
    field, x, loss = loss_of(setting)
    wanted = gradients(field, x, loss(x))
    field.train(mode)
    for solver in ("anderson", ib.solvers.Broyden(memory=60)):
        assert error(gradients(field, x, loss(x, solver=solver)), wanted) <= 1e-6


def test_in_single_precision() -> None:
    field, x, loss = loss_of(("tanh", 1.0))
    wanted = gradients(field, x, loss(x))
    narrow = field.float()
    x = x.detach().float().requires_grad_()
    found = gradients(narrow, x, loss(x))
    assert error({name: g.double() for name, g in found.items()}, wanted) <= 1e-5


@pytest.mark.parametrize(
    ("adjoint", "size"),
    [
        (ib.adjoints.Phantom(steps=60, damping=1.0), 1e-5),
        ("phantom", 0.5),
        ("one_step", 0.8),
        ("shine", 0.3),
        (ib.adjoints.Shine(refine=30), 1e-8),
        (ib.adjoints.Unrolled(steps=300, checkpoint=True), 1e-8),
        (ib.adjoints.Implicit("gmres"), 1e-10),
    ],
    ids=str,
)
def test_every_adjoint(adjoint: str | ib.adjoints.Adjoint, size: float) -> None:
    field, x, loss = loss_of(("tanh", 1.0))
    wanted = gradients(field, x, loss(x))
    assert error(gradients(field, x, loss(x, adjoint=adjoint)), wanted) <= size


@pytest.mark.parametrize("method", ["cg", "dense"])
def test_methods_that_do_not_go_with_a_field_are_refused(method: str) -> None:
    _, x, loss = loss_of(("tanh", 1.0), adjoint=ib.adjoints.Implicit(method))
    with pytest.raises(ValueError, match=f'adjoint method "{method}" needs'):
        loss(x)


def test_the_report_and_the_estimate_of_the_error() -> None:
    field, x = Network(), inputs().requires_grad_()
    found = ib.find_critical_point(field, "tanh", x, regularization=1.0, solver=ib.solvers.Anderson(tol=1e-4))
    found.value.sum().backward()
    assert found.adjoint.status.tolist() == [0] * 5
    assert bool((found.adjoint.iterations <= 12).all())  # d = 6: GMRES ends where it is done
    exact = ib.find_critical_point(field, "tanh", x, regularization=1.0)
    (wanted,) = torch.autograd.grad(exact.value.sum(), x)
    wrong = (x.grad - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert bool((wrong <= 10 * found.gradient_error).all())
    assert bool((found.gradient_error <= 1e-2).all())


def test_a_singular_adjoint_system_has_a_status() -> None:
    class Flat(ib.Field):
        def field(self, z: Tensor, x: Tensor) -> Tensor:
            return (z - x).pow(3) + 0 * z

    x = torch.zeros(2, 3, dtype=D, requires_grad=True)
    found = ib.find_critical_point(Flat(), "identity", x)
    with pytest.warns(ib.ConvergenceWarning, match="implicit adjoint: some samples failed. SINGULAR"):
        found.value.sum().backward()
    assert bool((found.adjoint.status == ib.Status.SINGULAR).all())


def test_broydens_estimate_saves_products() -> None:
    torch.manual_seed(0)
    d = 80
    turn = torch.linalg.qr(torch.randn(d, d, dtype=D))[0]

    class Turned(ib.Field):
        def field(self, z: Tensor, x: Tensor) -> Tensor:
            return -1.5 * z @ turn.mT - x

    x = torch.randn(4, d, dtype=D, requires_grad=True)
    products, grads = [], []
    for solver in (ib.solvers.Broyden(memory=200), ib.solvers.Newton()):
        found = ib.find_critical_point(Turned(), "tanh", x, regularization=1.0, solver=solver)
        assert bool(found.converged.all())
        grads.append(torch.autograd.grad(found.value.square().sum(), x)[0])
        products.append(int(found.adjoint.iterations.max()))
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-9)
    assert products[0] < 0.9 * products[1]


@every_setting
def test_second_derivatives(setting: tuple[str, float]) -> None:
    _, x, loss = loss_of(setting)
    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    along = torch.randn_like(x)
    (found,) = torch.autograd.grad((gradient * along).sum(), x)
    by_transform = torch.func.jvp(torch.func.grad(loss), (x.detach(),), (along,))[1]
    h, ends = 1e-5, []
    for sign in (1, -1):
        at = (x.detach() + sign * h * along).requires_grad_()
        ends.append(torch.autograd.grad(loss(at), at)[0])
    wanted = (ends[0] - ends[1]) / (2 * h)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(by_transform, found, rtol=1e-8, atol=1e-10)


def test_transforms_of_attention() -> None:
    field, x = Attention(), tokens(2)

    def solve(image: Tensor) -> Tensor:
        return ib.find_critical_point(field, "tanh", {**x, "tokens": image}, regularization=1.0).value

    image = x["tokens"].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(solve(image).square().sum(), image)
    found = torch.func.grad(lambda image: solve(image).square().sum())(image.detach())
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    along = torch.randn_like(wanted)
    twice = torch.func.jvp(torch.func.grad(lambda t: solve(t).square().sum()), (image.detach(),), (along,))[1]
    (gradient,) = torch.autograd.grad(solve(image).square().sum(), image, create_graph=True)
    torch.testing.assert_close(twice, torch.autograd.grad((gradient * along).sum(), image)[0])


def test_samples_under_vmap() -> None:
    field, x = Network(), inputs()

    def solve(row: Tensor) -> Tensor:
        return ib.find_critical_point(field, "tanh", row, regularization=1.0).value

    torch.testing.assert_close(torch.func.vmap(solve)(x), solve(x), rtol=0, atol=1e-10)


def test_the_backward_pass_sees_the_parameters_of_the_forward_pass() -> None:
    field, x, loss = loss_of(("tanh", 1.0))
    wanted = gradients(field, x, loss(x))
    value = loss(x)
    other = {name: nn.Parameter(0.1 * p.detach()) for name, p in field.named_parameters()}
    before = dict(field.named_parameters())
    for name, parameter in other.items():
        setattr(field, name, parameter)
    found = torch.autograd.grad(value, tuple(before.values()))
    assert error(dict(zip(before, found, strict=True)), {name: wanted[name] for name in before}) <= 1e-10


class Normed(ib.Field):
    """F = −0.9 Az − Ux with a normalized A."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__(6)
        self.a = norm(nn.Linear(6, 6, dtype=D))
        self.u = nn.Linear(4, 6, dtype=D)

    def field(self, z: Tensor, x: Tensor) -> Tensor:
        return -0.9 * self.a(z) - self.u(x)


@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.spectral_norm], ids=["weight", "spectral"]
)
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "plain"])
def test_norms_of_torch(norm: Callable[[nn.Module], nn.Module], cached: bool) -> None:
    field, x = Normed(norm), inputs(3)
    for _ in range(30):
        field.a.weight  # noqa: B018  (the power iteration of spectral_norm goes on at every look)
    with parametrize.cached() if cached else torch.enable_grad():
        found = ib.find_critical_point(field, "tanh", x, regularization=1.0)
        assert bool(found.converged.all())
    found.value.sum().backward()
    trained = [parameter.grad.clone() for parameter in field.parameters()]
    assert all(bool(gradient.any()) for gradient in trained)
    field.eval()
    field.zero_grad()
    ib.find_critical_point(field, "tanh", x, regularization=1.0).value.sum().backward()
    for gradient, parameter in zip(trained, field.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-4)
