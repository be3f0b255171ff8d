"""Derivatives of every order and in every mode: by finite differences, in closed form, and against each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import implicit_bregman as ib

F64 = torch.float64
E = ib.QuadraticEnergy.from_matrices
OUT = {"check_batched_grad": True, "check_forward_ad": True, "check_batched_forward_grad": True}


class Quartic(ib.Energy):
    """Σ (z⁴/4 + z²/2 − s x z): z³ + z = s x, coordinate by coordinate."""

    def __init__(self, features: int = 3) -> None:
        super().__init__(features, convex=True)
        self.scale = nn.Parameter(torch.ones(features, dtype=F64))

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return (z**4 / 4 + z**2 / 2 - self.scale * x * z).sum(-1)


def definite(generator: torch.Generator, *shape: int) -> Tensor:
    root = torch.randn(*shape, shape[-1], generator=generator, dtype=F64)
    return root @ root.mT / shape[-1] + torch.eye(shape[-1], dtype=F64)


@pytest.fixture
def c(generator: torch.Generator) -> Tensor:
    """Offsets that put several coordinates of tanh's box on a bound, and none near one."""
    return torch.tensor([[0.4, -4.0, 0.3, 0.2], [3.0, 0.1, -0.2, 5.0]], dtype=F64)


def dense(weight: Tensor) -> ib.Energy:
    return E(-weight)


def _turned(matrix: Tensor) -> Tensor:
    return matrix.triu(1) - matrix.triu(1).mT


OPERATORS: dict[str, Callable[[Tensor], ib.Energy]] = {
    "dense": dense,
    "general": lambda w: E(-(w + 0.5 * (w.triu(1) - w.triu(1).mT))),
    "diagonal": lambda w: ib.QuadraticEnergy.from_operator(ib.operators.Diagonal(w.diagonal())),
    "low rank": lambda w: ib.QuadraticEnergy.from_operator(ib.operators.LowRank(w[:, :2], w.diagonal())),
    "kronecker": lambda w: ib.QuadraticEnergy.from_operator(ib.operators.Kronecker(w[:2, :2], w[2:, 2:])),
    "sum": lambda w: ib.QuadraticEnergy.from_operator(
        ib.operators.Sum(ib.operators.Diagonal(w.diagonal()), ib.operators.LowRank(w[:, :1]))
    ),
    "sparse": lambda w: ib.QuadraticEnergy.from_operator(
        ib.operators.Sparse.of(torch.arange(4).expand(2, 4), w.diagonal(), 4, symmetric=True)
    ),
    "blocks": lambda w: ib.QuadraticEnergy.from_operator(
        ib.operators.Blocks([[ib.operators.Dense(w[:2, :2]), 0.1 * w[:2, 2:]], [0.1 * w[2:, :2], w[2:, 2:]]])
    ),
    "kronecker, general": lambda w: ib.QuadraticEnergy.from_operator(
        ib.operators.Kronecker(w[:2, :2] + 0.3 * _turned(w[:2, 2:]), w[2:, 2:])
    ),
    "stacked, general": lambda w: ib.QuadraticEnergy.from_operator(
        ib.operators.Stacked(torch.stack([w + 0.3 * _turned(w), 2 * w]))
    ),
    "stacked": lambda w: ib.QuadraticEnergy.from_operator(ib.operators.Stacked(torch.stack([w, 2 * w]))),
}
REGULARIZED = pytest.mark.parametrize("gamma", [0.0, 0.3])


def solution_of(make: Callable[[Tensor], ib.Energy], gamma: float, geometry: str = "tanh") -> Callable[..., Tensor]:
    def solve(weight: Tensor, offset: Tensor) -> Tensor:
        weight = 0.5 * (weight + weight.mT)
        return ib.find_critical_point(make(weight), geometry, offset, regularization=gamma).value

    return solve


@pytest.mark.parametrize("x", [2.0, -0.5])
def test_a_closed_form(x: float) -> None:
    """z³ + z = x: with p = 1/(1 + 3z²), z' = p, z'' = pp', z''' = (p'' p + p'²) p; at x = 2 these are ¼, −0.09375, …"""
    at = torch.tensor([x], dtype=F64, requires_grad=True)
    z = ib.find_critical_point(Quartic(1), "identity", at).value
    found = []
    derivative = z
    for _ in range(3):
        (derivative,) = torch.autograd.grad(derivative.sum(), at, create_graph=True)
        found.append(float(derivative.detach()))
    z = float(z.detach())
    p, q = 1 / (1 + 3 * z * z), -6 * z / (1 + 3 * z * z) ** 2
    r = -6 / (1 + 3 * z * z) ** 2 + 72 * z * z / (1 + 3 * z * z) ** 3
    assert found == pytest.approx([p, q * p, (r * p + q * q) * p], rel=1e-9)
    if x == 2:
        assert found[:2] == pytest.approx([0.25, -0.09375], rel=1e-9)


@pytest.mark.parametrize("name", OPERATORS)
@REGULARIZED
def test_every_operator_by_finite_differences(name: str, gamma: float, c: Tensor, generator: torch.Generator) -> None:
    solve = solution_of(OPERATORS[name], gamma)
    leaves = definite(generator, 4).requires_grad_(), c.requires_grad_()
    assert gradcheck(solve, leaves, **OUT)
    assert gradgradcheck(solve, leaves, check_batched_grad=True, check_fwd_over_rev=True)


@REGULARIZED
def test_a_field_by_its_products(gamma: float, c: Tensor, generator: torch.Generator) -> None:
    """Without a matrix, as operators are solved that are wide."""
    wide = ib.operators.Costs(matrix_entries=0)

    def energy(w: Tensor) -> ib.Energy:
        operator = ib.operators.Kronecker(w[:2, :2] + 0.3 * _turned(w[:2, 2:]), w[2:, 2:])
        return ib.QuadraticEnergy.from_operator(operator.with_costs(wide))

    solve = solution_of(energy, gamma)
    leaves = definite(generator, 4).requires_grad_(), c.requires_grad_()
    assert gradcheck(solve, leaves, **OUT)
    assert gradgradcheck(solve, leaves, check_batched_grad=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("geometry", ["sigmoid", "exp", "softplus", "isru", "sin", "identity"])
@REGULARIZED
def test_every_kind_of_geometry(geometry: str, gamma: float, c: Tensor, generator: torch.Generator) -> None:
    solve = solution_of(dense, gamma, geometry)
    leaves = definite(generator, 4).requires_grad_(), (0.4 * c).requires_grad_()
    assert gradgradcheck(solve, leaves, check_fwd_over_rev=True)


@REGULARIZED
def test_an_own_energy(gamma: float, c: Tensor) -> None:
    energy = Quartic(4)

    def solve(scale: Tensor, x: Tensor) -> Tensor:
        return functional_call(ib.CriticalPoint(energy, "tanh", gamma), {"energy.scale": scale}, (x,))

    leaves = (1 + 0.1 * torch.arange(4, dtype=F64)).requires_grad_(), c.requires_grad_()
    assert gradcheck(solve, leaves, **OUT)
    assert gradgradcheck(solve, leaves, check_fwd_over_rev=True)


class Image(ib.Energy):
    """Pixels that are drawn to their mean over the channels, from an input of two tensors."""

    def __init__(self) -> None:
        super().__init__((2, 1, 2), convex=True)

    def value(self, z: Tensor, x: dict[str, Tensor]) -> Tensor:
        image, weight = x["image"], x["weight"]
        pulled = (z - z.mean(1, keepdim=True)).square().sum((1, 2, 3))
        return 0.5 * (z - image).square().sum((1, 2, 3)) + weight * pulled + 0.05 * (z**4).sum((1, 2, 3))


@REGULARIZED
def test_states_with_a_shape_and_inputs_of_several_tensors(gamma: float, generator: torch.Generator) -> None:
    layer = ib.CriticalPoint(Image(), "tanh", gamma)

    def solve(image: Tensor, weight: Tensor) -> Tensor:
        return layer({"image": image, "weight": weight})

    leaves = torch.randn(2, 2, 1, 2, generator=generator, dtype=F64), torch.tensor([0.2, 0.7], dtype=F64)
    leaves = leaves[0].requires_grad_(), leaves[1].requires_grad_()
    assert gradcheck(solve, leaves, **OUT)
    assert gradgradcheck(solve, leaves, check_fwd_over_rev=True)
    image, weight = (leaf.detach() for leaf in leaves)
    many = vmap(solve, (0, None))(torch.stack([image, -image]), weight)
    torch.testing.assert_close(many, torch.stack([solve(image, weight), solve(-image, weight)]))


@pytest.mark.parametrize("reach", [1.0, 30.0], ids=["feasible", "infeasible"])
@pytest.mark.parametrize("start", ["initial", "initial_dual"])
@pytest.mark.parametrize("geometry", ["sigmoid", "exp"])
def test_projections(geometry: str, start: str, reach: float, generator: torch.Generator) -> None:
    """Of V, β and the start, where the system has a solution and where it is softened."""
    solver = ib.solvers.Newton(on_failure="ignore")

    def solve(V: Tensor, beta: Tensor, at: Tensor) -> Tensor:
        layer = ib.BregmanProjection.from_matrix(V, beta, geometry=geometry, solver=solver)
        return layer.solve(**{start: at}).value

    V = torch.randn(4, 2, generator=generator, dtype=F64).requires_grad_()
    beta = (reach * torch.tensor([[0.3, -0.2]], dtype=F64)).requires_grad_()
    at = (0.1 + 0.8 * torch.rand(1, 4, generator=generator, dtype=F64)).requires_grad_()
    assert gradcheck(solve, (V, beta, at), **OUT)
    assert gradgradcheck(solve, (V, beta, at), check_fwd_over_rev=True)
    V, beta, at = (leaf.detach() for leaf in (V, beta, at))
    many = vmap(solve, (None, None, 0))(V, beta, torch.stack([at, 1 - at]))
    torch.testing.assert_close(many, torch.stack([solve(V, beta, at), solve(V, beta, 1 - at)]))


def test_a_projection_with_dependent_equations(generator: torch.Generator) -> None:
    V = torch.randn(4, 2, generator=generator, dtype=F64)
    V = torch.cat([V, V[:, :1]], 1)
    beta = torch.tensor([[0.3, 0.6, 0.2, 0.5]], dtype=F64) @ V

    def solve(at: Tensor) -> Tensor:
        return ib.BregmanProjection.from_matrix(V, beta, geometry="exp").solve(initial=at).value

    at = 0.1 + torch.rand(1, 4, generator=generator, dtype=F64)
    assert gradgradcheck(solve, (at.requires_grad_(),), check_fwd_over_rev=True)


@REGULARIZED
def test_a_layer_of_low_rank(gamma: float) -> None:
    layer = ib.BregmanDEQ(3, 4, weight="low_rank", rank=2, regularization=gamma, dtype=F64)
    x = torch.linspace(-1, 1, 6, dtype=F64).reshape(2, 3)
    assert gradgradcheck(layer, (x.requires_grad_(),), check_fwd_over_rev=True)
    x = x.detach()
    torch.testing.assert_close(jacfwd(layer)(x), jacrev(layer)(x), rtol=1e-9, atol=1e-11)


MODES: dict[str, Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]] = {
    "reverse, reverse": lambda f: jacrev(jacrev(f)),
    "reverse, forward": lambda f: jacrev(jacfwd(f)),
    "forward, reverse": lambda f: jacfwd(jacrev(f)),
    "forward, forward": lambda f: jacfwd(jacfwd(f)),
    "autograd": lambda f: lambda x: torch.autograd.functional.hessian(f, x),
    "autograd, vectorized": lambda f: lambda x: torch.autograd.functional.hessian(f, x, vectorize=True),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("adjoint", ["implicit", ib.adjoints.Unrolled(steps=4), ib.adjoints.Unrolled(4, last=2)])
@REGULARIZED
def test_every_mode_has_the_same_hessian(mode: str, adjoint: str | ib.adjoints.Adjoint, gamma: float) -> None:
    layer = ib.BregmanDEQ(3, 4, regularization=gamma, adjoint=adjoint, dtype=F64)
    x = torch.linspace(-1, 1, 6, dtype=F64).reshape(2, 3)

    def loss(x: Tensor) -> Tensor:
        return layer(x).sin().sum()

    torch.testing.assert_close(MODES[mode](loss)(x), hessian(loss)(x), rtol=1e-9, atol=1e-11)
    (first,) = torch.autograd.grad(loss(leaf := x.clone().requires_grad_()), leaf)
    torch.testing.assert_close(grad(loss)(x), first, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", ["fff", "ffr", "frf", "rff", "frr", "rfr", "rrf", "rrr"])
@REGULARIZED
def test_three_orders_in_every_mode(mode: str, gamma: float) -> None:
    W = -torch.tensor([[1.5, 0.3], [0.3, 1.0]], dtype=F64)

    def loss(x: Tensor) -> Tensor:
        return ib.find_critical_point(E(W), "tanh", x[None], regularization=gamma).value.sin().sum()

    x, step = torch.tensor([0.4, -0.2], dtype=F64), 1e-4
    derivative: Callable[[Tensor], Tensor] = loss
    for one in mode[::-1]:
        derivative = jacfwd(derivative) if one == "f" else jacrev(derivative)
    shift = step * torch.eye(2, dtype=F64)
    expected = torch.stack([(hessian(loss)(x + e) - hessian(loss)(x - e)) / (2 * step) for e in shift], -1)
    torch.testing.assert_close(derivative(x), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", OPERATORS)
@REGULARIZED
def test_vmap_is_a_loop(name: str, gamma: float, c: Tensor, generator: torch.Generator) -> None:
    """Over the offset, over the operator, over both, nested, and in every place; also of derivatives."""
    solve = solution_of(OPERATORS[name], gamma)
    weights, many = definite(generator, 3, 4), torch.stack([c, 2 * c, -c])

    def same(found: Tensor, expected: list[Tensor]) -> None:
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-10)

    same(vmap(solve, (None, 0))(weights[0], many), [solve(weights[0], one) for one in many])
    same(vmap(solve, (None, 1))(weights[0], many.movedim(0, 1)), [solve(weights[0], one) for one in many])
    same(vmap(solve, (0, None))(weights, c), [solve(one, c) for one in weights])
    same(vmap(solve)(weights, many), [solve(*pair) for pair in zip(weights, many, strict=True)])
    nested = vmap(vmap(solve, (None, 0)), (0, None))(weights, many)
    same(nested, [torch.stack([solve(w, one) for one in many]) for w in weights])
    jacobians = vmap(jacrev(solve, (0, 1)), (None, 0))(weights[0], many)
    same(jacobians[0], [jacrev(solve, 0)(weights[0], one) for one in many])
    same(jacobians[1], [jacfwd(solve, 1)(weights[0], one) for one in many])


def test_vmap_over_samples_and_ensembles() -> None:
    """A layer without a batch under vmap is the layer with one; an ensemble of layers is a loop over them."""
    layers = [ib.BregmanDEQ(3, 4, weight=weight, dtype=F64) for weight in ("convex", "convex")]
    x = torch.linspace(-1, 1, 15, dtype=F64).reshape(5, 3)
    torch.testing.assert_close(vmap(layers[0])(x), layers[0](x), rtol=1e-9, atol=1e-11)
    parameters, buffers = torch.func.stack_module_state(layers)

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layers[0], (parameters, buffers), (x,))

    found = vmap(call, (0, 0, None))(parameters, buffers, x)
    torch.testing.assert_close(found, torch.stack([layer(x) for layer in layers]), rtol=1e-9, atol=1e-11)
    per_sample = vmap(grad(lambda p, x: call(p, buffers, x).sin().sum()), (None, 0))
    by_sample = per_sample({name: p[0] for name, p in parameters.items()}, x)
    for name, parameter in layers[0].named_parameters():
        for number in range(5):
            (alone,) = torch.autograd.grad(layers[0](x[number]).sin().sum(), parameter)
            torch.testing.assert_close(by_sample[name][number], alone, rtol=1e-8, atol=1e-10)


@REGULARIZED
def test_jvp_and_vjp_are_adjoint(gamma: float, generator: torch.Generator) -> None:
    layer = ib.BregmanDEQ(3, 4, weight="general", regularization=gamma, dtype=F64)
    x, tangent = torch.randn(2, 2, 3, generator=generator, dtype=F64)
    value, moved = jvp(layer, (x,), (tangent,))
    again, pull = vjp(layer, x)
    torch.testing.assert_close(value, again)
    cotangent = torch.randn(2, 4, generator=generator, dtype=F64)
    by_tangent, by_cotangent = (moved * cotangent).sum(), (pull(cotangent)[0] * tangent).sum()
    torch.testing.assert_close(by_tangent, by_cotangent, rtol=1e-9, atol=0.0)
    with forward_ad.dual_level():
        dual = layer(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, moved)


def test_starts_have_tangents_where_they_matter() -> None:
    W = torch.tensor([[-0.5, 0.1], [0.1, -0.4]], dtype=F64)
    x, start = torch.tensor([[0.3, 0.2]], dtype=F64), torch.tensor([[0.1, -0.4]], dtype=F64)
    for name, at in (("initial", start), ("initial_dual", 3 * start)):
        for adjoint in (ib.adjoints.Unrolled(steps=3), ib.adjoints.Implicit()):

            def solve(at: Tensor, name: str = name, adjoint: ib.adjoints.Adjoint = adjoint) -> Tensor:
                return ib.find_critical_point(E(W), "tanh", x, adjoint=adjoint, **{name: at}).value

            expected = torch.autograd.functional.jacobian(solve, at)
            torch.testing.assert_close(jacfwd(solve)(at), expected, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(jacrev(solve)(at), expected, rtol=1e-9, atol=1e-12)
            assert bool(expected.any()) == isinstance(adjoint, ib.adjoints.Unrolled)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_degenerate_bound_is_one_sided(dtype: torch.dtype) -> None:
    """z = min(c, 1) at c = 1: the same one-sided derivative in every mode, and the status that says so."""
    c = torch.ones(1, 1, dtype=dtype)

    def solve(c: Tensor) -> ib.Solution:
        return ib.find_critical_point(E(-torch.eye(1, dtype=dtype)), "tanh", c)

    expected = torch.autograd.functional.jacobian(lambda c: solve(c).value, c)
    assert int(solve(c).status) == ib.Status.DEGENERATE
    assert float(expected) in (0.0, 1.0)
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(transform(lambda c: solve(c).value)(c), expected)
    status = vmap(lambda c: solve(c).status)(torch.stack([c, 0.5 * c]))
    assert status.flatten().tolist() == [ib.Status.DEGENERATE, ib.Status.CONVERGED]


@REGULARIZED
def test_the_objective_to_second_order(gamma: float, c: Tensor, generator: torch.Generator) -> None:
    """∂F*/∂c = −z* and ∂F*/∂W = −½z*z*ᵀ, so that ∂²F*/∂c² = −dz*/dc."""
    weight = definite(generator, 4)

    def objective(weight: Tensor, c: Tensor) -> Tensor:
        found = ib.find_critical_point(dense(0.5 * (weight + weight.mT)), "tanh", c, regularization=gamma).objective
        assert found is not None
        return found

    assert gradcheck(objective, (weight.requires_grad_(), c.requires_grad_()))
    assert gradgradcheck(objective, (weight, c))
    weight, c = weight.detach(), c.detach()
    z = solution_of(dense, gamma)(weight, c)
    torch.testing.assert_close(grad(lambda c: objective(weight, c).sum())(c), -z, rtol=1e-9, atol=1e-11)
    second = jacfwd(jacrev(lambda c: objective(weight, c).sum()))(c)
    torch.testing.assert_close(second, -jacrev(solution_of(dense, gamma), 1)(weight, c), rtol=1e-8, atol=1e-10)


def test_the_objective_of_unrolled_steps_to_second_order(c: Tensor, generator: torch.Generator) -> None:
    def objective(weight: Tensor, c: Tensor) -> Tensor:
        # (a weight for which τ = 1: it is held fixed)
        energy, steps = dense(0.1 * (weight + weight.mT)), ib.adjoints.Unrolled(steps=3)
        found = ib.find_critical_point(energy, "tanh", 0.1 * c, regularization=0.2, adjoint=steps).objective
        assert found is not None
        return found

    leaves = definite(generator, 4).requires_grad_(), c.requires_grad_()
    assert gradcheck(objective, leaves)
    assert gradgradcheck(objective, leaves)


@REGULARIZED
@pytest.mark.parametrize("geometry", ["tanh", "sin", "softplus"])
def test_multipliers(geometry: str, gamma: float, c: Tensor, generator: torch.Generator) -> None:
    """μ = c − Hz − γy where a bound is active, 0 elsewhere; its derivatives by finite differences."""
    weight = definite(generator, 4)

    def multiplier(weight: Tensor, c: Tensor) -> Tensor:
        energy = dense(0.5 * (weight + weight.mT))
        return ib.find_critical_point(energy, geometry, c, regularization=gamma).multiplier

    assert gradcheck(multiplier, (weight.requires_grad_(), c.requires_grad_()), check_batched_grad=True)
    assert gradgradcheck(multiplier, (weight, c))
    weight, c = weight.detach(), c.detach()
    found = ib.find_critical_point(dense(weight), geometry, c, regularization=gamma)
    phi = ib.geometry(geometry)
    force = c - found.value @ weight - gamma * phi.project_dual(found.dual)
    lo, hi = phi.domain
    at_bound = (found.value - lo < 1e-9) | (hi - found.value < 1e-9)
    expected = torch.where(at_bound, force, 0.0) if gamma == 0 or not phi.is_legendre else torch.zeros_like(force)
    assert bool(expected.any()) == (gamma == 0 or geometry == "sin")
    torch.testing.assert_close(found.multiplier, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(jacfwd(multiplier, 1)(weight, c), jacrev(multiplier, 1)(weight, c))


def test_the_multiplier_of_one_bound() -> None:
    """½z² − cz on [−1, 1] at c = 3: μ = 2, ∂μ/∂c = 1."""
    c = torch.tensor([[3.0, -4.0, 0.5]], requires_grad=True)
    found = ib.find_critical_point(E(-torch.eye(3)), "tanh", c)
    assert found.multiplier.tolist() == [[2.0, -3.0, 0.0]]
    assert torch.autograd.grad(found.multiplier.sum(), c)[0].tolist() == [[1.0, 1.0, 0.0]]
    assert not found.detach().multiplier.requires_grad


@pytest.mark.parametrize("second", [lambda f: hessian(f), *list(MODES.values())[:4]])
@pytest.mark.parametrize("adjoint", ["phantom", "one_step"])
def test_approximate_gradients_are_refused_twice(adjoint: str, second: Callable[..., Callable[..., Tensor]]) -> None:
    """Right once in every mode; differentiated twice they would be the derivative of another function."""
    layer, x = ib.BregmanDEQ(3, 4, adjoint=adjoint, dtype=F64), torch.ones(2, 3, dtype=F64)
    expected = torch.autograd.functional.jacobian(layer, x)
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(transform(layer)(x), expected)
    torch.testing.assert_close(vmap(layer)(x), layer(x))
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        second(lambda x: layer(x).sin().sum())(x)


@pytest.mark.parametrize("transform", [vmap, grad, jacrev, jacfwd])
def test_shine_is_refused(transform: Callable[..., Callable[..., Tensor]]) -> None:
    layer, x = ib.BregmanDEQ(3, 4, adjoint="shine", dtype=F64), torch.ones(2, 3, dtype=F64)
    with pytest.raises(RuntimeError, match=r'Shine does not run inside torch\.func .* use adjoint="implicit"'):
        transform(lambda x: layer(x).sum())(x)
    layer(x).sum().backward()  # Nothing is left behind.


class Hidden(ib.Energy):
    """Depends on a tensor that the module does not hold."""

    def __init__(self, target: Tensor) -> None:
        super().__init__(3, convex=True)
        self.get = lambda: target

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        return (z**4 + (z - x * self.get()) ** 2).sum(-1)


def test_a_tensor_out_of_sight() -> None:
    """Once it has its gradient; twice would miss a part of it."""
    target, x = torch.ones(3, dtype=F64, requires_grad=True), torch.full((2, 3), 0.3, dtype=F64, requires_grad=True)
    value = ib.find_critical_point(Hidden(target), "tanh", x).value.sum()
    assert torch.autograd.grad(value, target, retain_graph=True)[0].any()
    with pytest.raises(RuntimeError, match="no parameter, buffer or attribute of it"):
        torch.autograd.grad(value, x, create_graph=True)
    objective = ib.find_critical_point(Hidden(target), "tanh", x).objective
    assert torch.autograd.grad(objective.sum(), target, retain_graph=True)[0].any()
    with pytest.raises(RuntimeError, match="no parameter, buffer or attribute of it"):
        torch.autograd.grad(objective.sum(), x, create_graph=True)


@pytest.mark.parametrize("transform", [jacrev, jacfwd])
def test_a_sample_that_cannot_be_solved_spoils_no_other(transform: Callable[..., Callable[..., Tensor]]) -> None:
    x = torch.tensor([[0.3, 0.1, 0.2], [torch.nan, 0.0, 0.0]], dtype=F64)
    layer = ib.BregmanDEQ(3, 4, solver=ib.solvers.Newton(on_failure="ignore"), dtype=F64)
    found = transform(layer)(x)
    torch.testing.assert_close(found[0, :, 0], transform(layer)(x[:1])[0, :, 0], rtol=1e-9, atol=1e-11)
    assert vmap(lambda x: layer.solve(x).status)(x).tolist() == [ib.Status.CONVERGED, ib.Status.INVALID_INPUT]


def test_the_backward_report_with_a_graph() -> None:
    layer, x = ib.BregmanDEQ(3, 4, dtype=F64), torch.ones(2, 3, dtype=F64, requires_grad=True)
    solution = layer.solve(x)
    torch.autograd.grad(solution.value.sum(), x, create_graph=True)
    assert solution.adjoint.status is not None
    assert solution.adjoint.status.tolist() == [0, 0]
    assert float(solution.gradient_error.max()) < 1e-9


def test_a_gradient_penalty_trains_the_weight() -> None:
    """What double backward is for: ‖dz/dx‖² as part of a loss, against finite differences in the parameters."""
    layer, x = ib.BregmanDEQ(3, 4, regularization=0.1, dtype=F64), torch.linspace(-1, 1, 6, dtype=F64).reshape(2, 3)

    def penalty() -> Tensor:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(layer(leaf).square().sum(), leaf, create_graph=True)
        return gradient.square().sum()

    parameters = list(layer.parameters())
    found = torch.autograd.grad(penalty(), parameters)
    for parameter, gradient in zip(parameters, found, strict=True):
        direction = torch.ones_like(parameter)
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(direction, alpha=step)
            ends.append(float(penalty().detach()))
            with torch.no_grad():
                parameter.sub_(direction, alpha=step)
        assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_operators_are_solved_differentiably(generator: torch.Generator) -> None:
    v = torch.randn(2, 4, generator=generator, dtype=F64).requires_grad_()
    weight = definite(generator, 4).requires_grad_()
    for make in (
        ib.operators.Dense,
        lambda w: ib.operators.Dense(w + w.triu(1)),
        lambda w: ib.operators.LowRank(w[:, :2], w.diagonal()),
        lambda w: ib.operators.Kronecker(w[:2, :2], w[2:, 2:]),
        lambda w: ib.operators.Sum(ib.operators.Diagonal(w.diagonal()), ib.operators.LowRank(w[:, :1])),
        lambda w: ib.operators.Stacked(torch.stack([w, 2 * w])),
    ):

        def solve(weight: Tensor, v: Tensor, make: Callable[[Tensor], ib.operators.LinearOperator] = make) -> Tensor:
            return make(0.5 * (weight + weight.mT)).solve(v, 0.5)

        assert gradcheck(solve, (weight, v), **OUT)
        assert gradgradcheck(solve, (weight, v), check_fwd_over_rev=True)
