"""A field: what a user writes, what is refused, and its Jacobian."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.energy.field import Field
from tests.problems import Attention, D, Network, inputs, tokens


def test_the_jacobian_is_that_of_finite_differences_and_its_transpose() -> None:
    field, x = Network(), inputs(3)
    z, v, w = (torch.randn(3, 6, dtype=D) for _ in range(3))
    product = field.jacobian_product(z, x, v)
    h = 1e-5
    torch.testing.assert_close(product, (field(z + h * v, x) - field(z - h * v, x)) / (2 * h), rtol=1e-7, atol=1e-9)
    pulled = field.jacobian_product(z, x, w, adjoint=True)
    torch.testing.assert_close((product * w).sum(), (pulled * v).sum())
    assert not product.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(field.jacobian_product(z, x, v), product)


def test_the_jacobian_of_attention_has_both_products() -> None:
    field, x = Attention(), tokens(2)
    z, v, w = (torch.randn(2, 3, 4, dtype=D) for _ in range(3))
    product, pulled = field.jacobian_product(z, x, v), field.jacobian_product(z, x, w, adjoint=True)
    torch.testing.assert_close((product * w).sum(), (pulled * v).sum())


def test_the_operator_of_many_products_evaluates_the_field_once() -> None:
    field, x, calls = Network(), inputs(3), []
    field.register_forward_hook(lambda *_: calls.append(1))
    operator = field.bind(x).hessian(torch.zeros(3, 6, dtype=D))
    assert not operator.symmetric
    dense = torch.stack([operator.product(e.expand(3, -1)) for e in torch.eye(6, dtype=D)], -1)
    assert len(calls) == 1
    transposed = torch.stack([operator.product(e.expand(3, -1), adjoint=True) for e in torch.eye(6, dtype=D)], -1)
    assert len(calls) == 2
    torch.testing.assert_close(dense.mT, transposed)


def test_a_field_that_does_not_depend_on_z_has_the_jacobian_zero() -> None:
    class Given(Field):
        def field(self, z: Tensor, x: Tensor) -> Tensor:
            return -x

    z = torch.ones(2, 3)
    for adjoint in (False, True):
        assert torch.equal(Given().jacobian_product(z, z, z, adjoint), torch.zeros(2, 3))
    found = ib.find_critical_point(Given(), "tanh", z, regularization=1.0)
    torch.testing.assert_close(found.value, z.tanh())


@pytest.mark.parametrize(
    ("returned", "shown"),
    [
        (lambda z: z.sum(-1), r"\(4,\) and torch.float32"),
        (lambda z: z[:, :2], r"\(4, 2\) and torch.float32"),
        (lambda z: z.double(), r"\(4, 3\) and torch.float64"),
        (lambda z: [z], "list"),
    ],
    ids=["sum", "narrow", "dtype", "list"],
)
def test_what_is_not_like_z_is_refused(returned: object, shown: str) -> None:
    class Wrong(Field):
        def field(self, z: Tensor, x: Tensor) -> Tensor:
            return returned(z)

    message = rf"Wrong.field must return a tensor of z's shape \(4, 3\) and dtype torch.float32, got {shown}"
    with pytest.raises(ValueError, match=message):
        ib.find_critical_point(Wrong(), "tanh", torch.ones(4, 3), regularization=1.0)


def test_a_field_without_field_and_the_value_of_one_say_what_is_missing() -> None:
    class Empty(Field):
        pass

    with pytest.raises(TypeError, match=r"Empty must define field\(z, x\)"):
        ib.find_critical_point(Empty(), "tanh", torch.ones(1, 2))
    with pytest.raises(TypeError, match=r"Network is a field and has no value: use field\(z, x\)"):
        Network().value(torch.zeros(1, 6, dtype=D), inputs(1))
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
        Field(0)


def test_state_dict_deepcopy_and_pickle() -> None:
    field = Network()
    with torch.no_grad():
        field.b.mul_(0.5)
    fresh, z, x = Network(), torch.ones(5, 6, dtype=D), inputs()
    fresh.load_state_dict(field.state_dict())
    for other in (fresh, copy.deepcopy(field), pickle.loads(pickle.dumps(field))):
        assert torch.equal(other(z, x), field(z, x))


def test_nothing_is_certified_unless_it_is_promised() -> None:
    plain, promised = ib.certify(Network(), "tanh", 1.0), ib.certify(Network(monotone=True), "tanh", 1.0)
    assert (plain.step, plain.has_objective, plain.unique, plain.converges) == (1.0, False, False, False)
    assert promised.unique
    assert not promised.descends
    assert not ib.certify(Network(monotone=True), "tanh", 0.0).unique
