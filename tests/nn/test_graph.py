"""The layer on graphs."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import torch
from torch import Tensor

import implicit_bregman as ib
from tests.versions import INSTALLED, needs_torch

in_transforms = needs_torch("2.11", "a sparse tensor inside torch.func transforms")
D = torch.float64
N, IN, F = 7, 3, 4


def edges_of(pairs: list[tuple[int, int]], count: int, weights: list[float] | None = None) -> Tensor:
    """A graph of undirected edges."""
    ends = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    values = torch.ones(len(ends), dtype=D) if weights is None else torch.tensor(weights, dtype=D)
    loops = ends[:, 0] == ends[:, 1]
    places = torch.cat([ends, ends[~loops].flip(1)]).mT
    return torch.sparse_coo_tensor(
        places, torch.cat([values, values[~loops]]), (count, count), check_invariants=True
    ).coalesce()


@pytest.fixture
def graph() -> Tensor:
    """Weighted, with a loop at node 0; node 6 is alone."""
    return edges_of([(0, 1), (1, 2), (2, 3), (3, 0), (3, 4), (4, 5), (0, 0)], N, [1.0, 0.5, 2.0, 1.0, 1.5, 1.0, 0.7])


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return 1.5 * torch.randn(N, IN, generator=generator, dtype=D)


def layer_of(
    geometry: str = "tanh", gamma: float = 0.0, dtype: torch.dtype = D, seed: int = 0, **settings: Any
) -> ib.BregmanGraphDEQ:
    torch.manual_seed(seed)
    layer = ib.BregmanGraphDEQ(IN, F, geometry, gamma, dtype=D, **settings)
    with torch.no_grad():  # (F far from a multiple of I, and singular)
        layer.energy.factor.copy_(torch.randn(F, F, dtype=D).tril(-1) + torch.tensor([1.0, 0.3, 0.0, 2.0]).diag())
        layer.energy.factor[:, 2] = 0.0
    return layer.to(dtype)


def laplacian_by_scipy(graph: Tensor) -> np.ndarray:
    rows, columns = graph.indices().numpy()
    sparse = scipy.sparse.coo_array((graph.values().detach().double().numpy(), (rows, columns)), graph.shape).tocsr()
    degree = np.asarray(sparse.sum(1)).ravel()
    scale = np.where(degree > 0, np.where(degree > 0, degree, 1.0) ** -0.5, 0.0)
    scaled = scipy.sparse.diags_array(scale) @ sparse @ scipy.sparse.diags_array(scale)
    return (scipy.sparse.diags_array((degree > 0).astype(float)) - scaled).tocsr()


def twin_of(layer: ib.BregmanGraphDEQ, graph: Tensor) -> ib.QuadraticEnergy:
    """The same energy of a dense matrix, with its gradient."""
    dense = torch.from_numpy(laplacian_by_scipy(graph).toarray())
    hessian = layer.energy.margin * torch.eye(len(graph) * F, dtype=D) + torch.kron(dense, layer.energy.coupling)
    return ib.QuadraticEnergy.from_operator(ib.operators.Dense(hessian, symmetric=True))


@pytest.mark.parametrize("gamma", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("geometry", ["tanh", "softplus", "sigmoid", "exp"])
def test_value_gradient_and_status_are_those_of_the_dense_twin(
    geometry: str, gamma: float, graph: Tensor, x: Tensor, generator: torch.Generator
) -> None:
    layer, cotangent = layer_of(geometry, gamma), torch.randn(N, F, generator=generator, dtype=D)
    x.requires_grad_()
    inputs = [x, *layer.parameters()]
    s = layer.solve(x, graph)
    twin = ib.find_critical_point(twin_of(layer, graph), geometry, layer.energy.linear(x).reshape(1, -1), None, gamma)
    assert s.value.shape == s.dual.shape == s.multiplier.shape == (N, F)
    assert s.status.shape == ()
    assert s.converged
    assert s.status == twin.status[0]
    torch.testing.assert_close(s.value.flatten(), twin.value[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(s.objective, twin.objective[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(s.multiplier.flatten(), twin.multiplier[0], rtol=1e-9, atol=1e-9)
    found = torch.autograd.grad(s.value, inputs, cotangent)
    expected = torch.autograd.grad(twin.value, inputs, cotangent.reshape(1, -1))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_scipy_finds_the_same(gamma: float, graph: Tensor, x: Tensor) -> None:
    """γ = 0: as a bounded least squares problem; γ > 0: the optimality condition, with a sparse Kronecker product."""
    layer = layer_of("tanh", gamma)
    with torch.no_grad():
        z, y = layer(x, graph), layer.last_solution.dual
        coupling, c = layer.energy.coupling.numpy(), layer.energy.linear(x).numpy().ravel()
    hessian = scipy.sparse.kron(laplacian_by_scipy(graph), coupling) + layer.energy.margin * scipy.sparse.eye_array(
        N * F
    )
    if gamma:
        error = hessian @ z.numpy().ravel() - c + gamma * y.numpy().ravel()
        assert np.abs(error).max() <= 1e-9
        return
    root = np.linalg.cholesky(hessian.toarray())
    best = scipy.optimize.lsq_linear(root.T, np.linalg.solve(root, c), (-1.0, 1.0), method="bvls", tol=1e-14)
    np.testing.assert_allclose(z.numpy().ravel(), best.x, atol=1e-8)
    assert 3 <= int((z.abs() == 1).sum()) < N * F


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_gradients_are_those_of_finite_differences(
    gamma: float, graph: Tensor, x: Tensor, generator: torch.Generator
) -> None:
    """Along a direction of the inputs, P, U, and the weights of the edges."""
    layer = layer_of("tanh", gamma)

    def value(x: Tensor, factor: Tensor, u: Tensor, half: Tensor) -> Tensor:
        whole = torch.sparse_coo_tensor(graph.indices(), half, graph.shape, check_invariants=False)
        symmetric = (whole + whole.transpose(0, 1)).coalesce()
        parameters = {"energy.factor": factor, "energy.input_weight": u}
        return torch.func.functional_call(layer, parameters, (x, symmetric))

    at = (x, layer.energy.factor, layer.energy.input_weight, 0.5 * graph.values())
    at = [tensor.detach().clone().requires_grad_() for tensor in at]
    cotangent = torch.randn(N, F, generator=generator, dtype=D)
    gradients = torch.autograd.grad(value(*at), at, cotangent)
    for number, gradient in enumerate(gradients):
        direction, step = torch.randn(gradient.shape, generator=generator, dtype=D), 1e-6
        ends = []
        for sign in (1, -1):
            moved = [tensor.detach() for tensor in at]
            moved[number] = moved[number] + sign * step * direction
            ends.append((cotangent * value(*moved)).sum())
        torch.testing.assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-6)


def test_second_derivatives(graph: Tensor, x: Tensor, generator: torch.Generator) -> None:
    layer, step = layer_of("tanh", 0.3), 1e-5
    direction = torch.randn(N, IN, generator=generator, dtype=D)

    def slope(t: Tensor) -> Tensor:
        return torch.autograd.grad(layer(x + t * direction, graph).square().sum(), t, create_graph=True)[0]

    t = torch.zeros((), dtype=D, requires_grad=True)
    (second,) = torch.autograd.grad(slope(t), t)
    ends = [slope(torch.tensor(sign * step, dtype=D, requires_grad=True)).detach() for sign in (1, -1)]
    torch.testing.assert_close(second, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-6)


@in_transforms
def test_forward_mode(graph: Tensor, x: Tensor, generator: torch.Generator) -> None:
    layer, step = layer_of("tanh", 0.3), 1e-5
    direction = torch.randn(N, IN, generator=generator, dtype=D)
    _, moved = torch.func.jvp(lambda x: layer(x, graph), (x,), (direction,))
    with torch.no_grad():
        difference = (layer(x + step * direction, graph) - layer(x - step * direction, graph)) / (2 * step)
    torch.testing.assert_close(moved.detach(), difference, rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(INSTALLED >= (2, 7), reason="newer versions of PyTorch follow sparse tensors")
def test_a_graph_inside_a_transform_is_refused(graph: Tensor, x: Tensor) -> None:
    layer = layer_of("tanh", 0.3)
    with pytest.raises(RuntimeError, match=r"graph is sparse, and PyTorch .* takes sparse tensors for dense ones"):
        torch.func.grad(lambda x: layer(x, graph).sum())(x)


@in_transforms
def test_transforms_over_signals_and_parameters(generator: torch.Generator) -> None:
    parts, _, whole = graphs()
    layer, sizes = layer_of("tanh", 0.3), [len(part) for part in parts]
    x = torch.randn(2, 12, IN, generator=generator, dtype=D)
    mapped = torch.func.vmap(lambda x: layer(x, whole, sizes))(x)
    torch.testing.assert_close(mapped, torch.stack([layer(one, whole, sizes) for one in x]))
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x, whole, sizes)).square().sum()

    of_each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for number, one in enumerate(x):
        expected = torch.autograd.grad(loss(parameters, one), list(parameters.values()))
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(of_each[name][number], gradient, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("solver", ["auto", "splitting", "anderson"])
def test_single_precision(solver: str, gamma: float, graph: Tensor, x: Tensor) -> None:
    single, double = (layer_of("sigmoid", gamma, dtype, solver=solver) for dtype in (torch.float32, D))
    found, expected = single(x.float(), graph.float()), double(x, graph)
    assert found.dtype == torch.float32
    assert single.last_solution.converged
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 if solver == "anderson" else 1e-5)
    found.sum().backward()
    expected.sum().backward()
    for one, other in zip(single.parameters(), double.parameters(), strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("geometry", ["tanh", "exp"])
def test_an_isolated_node_is_on_its_own(geometry: str, graph: Tensor, x: Tensor) -> None:
    layer = layer_of(geometry)
    whole, alone = layer(x, graph), layer(x[6:], edges_of([], 1))
    torch.testing.assert_close(whole[6:], alone, rtol=1e-9, atol=1e-9)
    c = layer.energy.linear(x[6:])
    torch.testing.assert_close(alone, (c / layer.energy.margin).clamp(*layer.geometry.domain))


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_without_edges_the_nodes_are_samples_of_a_diagonal_energy(gamma: float, x: Tensor) -> None:
    layer = layer_of("tanh", gamma)
    diagonal = ib.operators.Diagonal(torch.full((F,), layer.energy.margin, dtype=D))
    energy = ib.QuadraticEnergy.from_operator(diagonal)
    expected = ib.find_critical_point(energy, "tanh", layer.energy.linear(x), None, gamma).value
    torch.testing.assert_close(layer(x, edges_of([], N)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support is in beta:UserWarning")
def test_it_does_not_matter_how_nodes_are_numbered_or_the_graph_is_stored(graph: Tensor, x: Tensor) -> None:
    layer, order = layer_of("softplus", 0.1), torch.tensor([3, 6, 0, 2, 5, 1, 4])
    expected = layer(x, graph)
    turned = graph.to_dense()[order][:, order]
    for stored in (turned.to_sparse(), turned.to_sparse_csc(), turned.to_sparse_csr()):
        torch.testing.assert_close(layer(x[order], stored), expected[order], rtol=1e-9, atol=1e-9)
    plain = edges_of([(0, 1), (1, 2)], N)
    as_integers = torch.sparse_coo_tensor(plain.indices(), plain.values().bool(), plain.shape, check_invariants=True)
    assert torch.equal(layer(x, as_integers), layer(x, plain))


def graphs() -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Four graphs of different sizes, one a single node, their inputs, and all of them as one."""
    generator = torch.Generator().manual_seed(5)
    parts = [
        edges_of([(0, 1), (1, 2), (2, 0)], 3, [1.0, 2.0, 0.5]),
        edges_of([], 1),
        edges_of([(0, 1), (1, 2), (2, 3), (3, 4), (0, 3)], 5),
        edges_of([(0, 1)], 3),
    ]
    inputs = [1.5 * torch.randn(len(part), IN, generator=generator, dtype=D) for part in parts]
    return parts, inputs, torch.block_diag(*(part.to_dense() for part in parts)).to_sparse()


@pytest.mark.parametrize(
    ("geometry", "gamma", "solver"),
    [
        *((geometry, gamma, "auto") for geometry in ("tanh", "softplus", "exp") for gamma in (0.0, 0.3)),
        ("tanh", 0.0, ib.solvers.MM(tol=1e-11)),
    ],
    ids=str,
)
def test_graphs_in_a_batch_are_solved_as_alone(geometry: str, gamma: float, solver: str | ib.solvers.Solver) -> None:
    parts, inputs, whole = graphs()
    layer, sizes = layer_of(geometry, gamma, solver=solver), [len(part) for part in parts]
    x = torch.cat(inputs).requires_grad_()
    s = layer.solve(x, whole, torch.tensor(sizes))
    assert s.value.shape == s.multiplier.shape == (12, F)
    assert s.status.shape == s.residual.shape == s.objective.shape == (4,)
    gradients = torch.autograd.grad(s.value.square().sum(), [x, *layer.parameters()])
    alone = [layer.solve(part_x, part) for part_x, part in zip(inputs, parts, strict=True)]
    for number, one in enumerate(alone):
        assert s.status[number] == one.status
        torch.testing.assert_close(s.objective[number], one.objective, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(s.value, torch.cat([one.value for one in alone]), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(s.multiplier, torch.cat([one.multiplier for one in alone]), rtol=1e-7, atol=1e-7)
    total = sum(one.value.square().sum() for one in alone)
    for one, other in zip(gradients[1:], torch.autograd.grad(total, list(layer.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:find_critical_point. some samples failed:implicit_bregman.ConvergenceWarning")
def test_each_graph_has_its_own_stop() -> None:
    """NaN in one of them spoils no other; a start that is the solution needs no step."""
    parts, inputs, whole = graphs()
    layer, sizes = layer_of("tanh", 0.3), [len(part) for part in parts]
    x = torch.cat(inputs)
    clean = layer.solve(x, whole, sizes)
    x[4] = torch.nan
    spoiled = layer.solve(x, whole, sizes)
    expected = [ib.Status.CONVERGED, ib.Status.CONVERGED, ib.Status.INVALID_INPUT, ib.Status.CONVERGED]
    assert spoiled.status.tolist() == [int(status) for status in expected]
    kept = [0, 1, 2, 3, 9, 10, 11]
    torch.testing.assert_close(spoiled.value[kept], clean.value[kept], rtol=1e-9, atol=1e-9)
    assert torch.isnan(spoiled.value[4:9]).all()
    x = torch.cat(inputs)
    assert layer.solve(x, whole, sizes, clean).iterations.tolist() == [0] * 4
    assert layer.solve(x, whole, sizes, initial_dual=clean.dual).iterations.tolist() == [0] * 4
    hard = layer_of("tanh", 0.0, solver=ib.solvers.MM(max_iter=3, exact=False, on_failure="ignore"))
    start = hard.solve(x, whole, sizes)
    exact = layer_of("tanh", 0.0).solve(x, whole, sizes)
    mixed = torch.where(torch.arange(12)[:, None] < 3, exact.dual, start.dual)
    found = hard.solve(x, whole, sizes, initial_dual=mixed)
    assert found.converged[0]
    assert not found.converged[2]


def test_the_steps_of_an_unrolled_layer_are_those_of_a_plain_loop(graph: Tensor, x: Tensor) -> None:
    layer = layer_of("sigmoid", 0.2, adjoint=ib.adjoints.Unrolled(steps=4))
    s = layer.solve(x, graph, initial=torch.full((N, F), 0.3, dtype=D))
    step = float(s.step)
    dense = torch.from_numpy(laplacian_by_scipy(graph).toarray())
    y = torch.full((N, F), 0.3, dtype=D).logit()
    for _ in range(4):
        z = torch.sigmoid(y)
        gradient = layer.energy.margin * z + dense @ z @ layer.energy.coupling - layer.energy.linear(x)
        y = (y - step * gradient) / (1 + step * 0.2)
    torch.testing.assert_close(s.value, torch.sigmoid(y), rtol=1e-9, atol=1e-9)
    assert s.status == ib.Status.TRUNCATED


def test_a_trace_has_the_shape_of_the_nodes() -> None:
    parts, inputs, whole = graphs()
    layer = layer_of("tanh", 0.3, solver=ib.solvers.MM(tol=1e-4, trace=True, exact=False))
    s = layer.solve(torch.cat(inputs), whole, [len(part) for part in parts])
    steps = len(s.trace.residual)
    assert s.trace.dual.shape == (steps, 12, F)
    assert s.trace.objective.shape == (steps, 4)
    last = int(s.iterations[2])
    torch.testing.assert_close(s.trace.objective[min(last, steps - 1), 2], s.objective[2], rtol=1e-5, atol=1e-5)


def test_several_signals_on_one_graph(graph: Tensor, generator: torch.Generator) -> None:
    layer, x = layer_of("tanh", 0.1), torch.randn(2, 3, N, IN, generator=generator, dtype=D)
    s = layer.solve(x, graph)
    assert s.value.shape == (2, 3, N, F)
    assert s.status.shape == (2, 3)
    torch.testing.assert_close(s.value[1, 2], layer(x[1, 2], graph), rtol=1e-8, atol=1e-8)


def test_a_module_like_any_other(graph: Tensor, x: Tensor) -> None:
    layer = layer_of("tanh", 0.2)
    value = layer(x, graph)
    assert [name for name, _ in layer.named_parameters()] == ["energy.factor", "energy.input_weight", "energy.bias"]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.last_solution is None
        assert torch.equal(other(x, graph), value)
    other = layer_of("tanh", 0.2, seed=1)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x, graph), value)
    assert isinstance(layer, ib.CriticalPoint)
    assert "in_features=3, features=4, geometry=" in repr(layer)
    assert "GraphEnergy(features=4, in_features=3, bias=True, margin=0.1)" in repr(layer)
    torch.manual_seed(3)
    fresh = ib.BregmanGraphDEQ(IN, F)
    torch.manual_seed(3)
    fresh.reset_parameters()
    before = copy.deepcopy(fresh.state_dict())
    torch.manual_seed(3)
    fresh.reset_parameters()
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())
    assert ib.BregmanGraphDEQ(IN, F, bias=False).energy.bias is None
    seen = []
    handle = layer.energy.register_forward_hook(lambda module, given, out: seen.append(out))
    layer(x, graph)
    handle.remove()
    torch.testing.assert_close(seen, [layer.energy.linear(x)])


def test_the_certificate_holds_for_every_graph(graph: Tensor) -> None:
    layer = layer_of("tanh")
    least, largest = (float(end) for end in layer.energy.curvature_range())
    hessian = twin_of(layer, graph).operator.dense().detach()
    ends = torch.linalg.eigvalsh(hessian)
    assert least - 1e-12 <= float(ends[0])
    assert float(ends[-1]) <= largest
    assert layer.certificate().unique
    assert ib.BregmanGraphDEQ(IN, F).certificate().majorizes


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_it_learns(gamma: float, graph: Tensor, x: Tensor) -> None:
    torch.manual_seed(0)
    layer, target = ib.BregmanGraphDEQ(IN, F, "tanh", gamma, dtype=D), layer_of("tanh", gamma)(x, graph).detach()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (layer(x, graph) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_autocast_and_half_precision(graph: Tensor, x: Tensor) -> None:
    layer = layer_of("tanh", 0.2, torch.float32)
    expected = layer(x.float(), graph)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x.float(), graph), expected, rtol=1e-6, atol=1e-6)
        assert layer(x.bfloat16(), graph).dtype == torch.float32
    with pytest.raises(ValueError, match=r"parameters of the layer are torch.float16, which it does not take"):
        layer.half()(x.half(), graph)


def dense(graph: Tensor) -> Tensor:
    return graph.to_dense()


def spoiled(value: float) -> Any:
    def spoil(graph: Tensor) -> Tensor:
        matrix = graph.to_dense()
        matrix[0, 1] = matrix[1, 0] = value
        return matrix.to_sparse()

    return spoil


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            dense,
            TypeError,
            r"graph must be a sparse tensor, the adjacency matrix, got a dense tensor: give",
        ),
        (lambda graph: [(0, 1)], TypeError, r"got list: give torch.sparse_coo_tensor\(edges"),
        (lambda graph: graph.to_dense()[:, :5].to_sparse(), ValueError, r"square matrix, \(N, N\), got shape \(7, 5\)"),
        (lambda graph: edges_of([(0, 1)], 5), ValueError, r"graph has 5 nodes, but x of shape \(7, 3\) has 7"),
        (lambda graph: graph.to_dense().triu().to_sparse(), ValueError, r"symmetric.*give \(graph \+ graph.transpose"),
        (spoiled(-1.0), ValueError, r"finite weights >= 0, got -1 at \(0, 1\)"),
        (spoiled(torch.nan), ValueError, r"finite weights >= 0, got nan at \(0, 1\)"),
        (spoiled(torch.inf), ValueError, r"finite weights >= 0, got inf at \(0, 1\)"),
        (lambda graph: graph.to("meta"), ValueError, "graph is on meta, but x is on cpu"),
    ],
    ids=range(9),
)
def test_graphs_that_are_refused(change: Any, error: type[Exception], message: str, graph: Tensor, x: Tensor) -> None:
    with pytest.raises(error, match=message):
        layer_of()(x, change(graph))


def test_a_weight_that_differs_by_direction_is_refused(graph: Tensor, x: Tensor) -> None:
    matrix = graph.to_dense()
    matrix[0, 1] *= 1 + 1e-9
    with pytest.raises(ValueError, match="each edge in both directions with one weight"):
        layer_of()(x, matrix.to_sparse())
    matrix[0, 1] = matrix[1, 0] * (1 + 2.5e-16)
    layer_of()(x, matrix.to_sparse())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([3, 3], ValueError, r"sizes must add up to the 7 nodes of x, got \[3, 3\], 6 in all"),
        ([7, 0], ValueError, "each of at least one node"),
        ([], ValueError, "at least one graph"),
        ([3.0, 4.0], TypeError, "sequence of whole numbers"),
        (7, TypeError, "sequence of whole numbers, one for each graph, got 7"),
        (torch.tensor([3.0, 4.0]), ValueError, r"whole numbers, \(graphs,\), got torch.float32"),
        ([3, 4], ValueError, r"edge from node 0 to node 3, which sizes puts into the graphs 0 and 1"),
    ],
    ids=range(7),
)
def test_sizes_that_are_refused(given: Any, error: type[Exception], message: str, graph: Tensor, x: Tensor) -> None:
    with pytest.raises(error, match=message):
        layer_of()(x, graph, given)


def test_other_inputs_that_are_refused(graph: Tensor, x: Tensor) -> None:
    layer = layer_of()
    for given, error, message in (
        (x.int(), TypeError, "x must be a floating-point tensor"),
        (x.numpy(), TypeError, "x must be a tensor"),
        (x[:, :2], ValueError, r"x must have shape \(..., N, 3\), got \(7, 2\)"),
        (x[0], ValueError, r"x must have shape \(..., N, 3\), got \(3,\)"),
        (x.float(), ValueError, "x is torch.float32, but the parameters of the layer are torch.float64"),
    ):
        with pytest.raises(error, match=message):
            layer(given, graph)
    with pytest.raises(ValueError, match="graph must have at least one node"):
        layer(x[:0], edges_of([], 0))
    with pytest.raises(ValueError, match=r"with sizes, x must have two dimensions, \(N, n\), got 3"):
        layer(x[None], graph, [7])
    with pytest.raises(ValueError, match=r"initial must have shape \(7, 4\), got \(7, 3\)"):
        layer(x, graph, None, x)
    with pytest.raises(ValueError, match="initial and initial_dual both give the start"):
        layer.solve(x, graph, initial=torch.zeros(N, F, dtype=D), initial_dual=torch.zeros(N, F, dtype=D))
    with pytest.raises(TypeError, match="has a value on a graph only"):
        ib.find_critical_point(layer.energy, "tanh", x)
    with pytest.raises(TypeError, match="has a value on a graph only"):
        layer.energy.value(x, x)
    for settings, message in (({"features": 0}, "features"), ({"margin": 0.0}, "margin"), ({"margin": -1.0}, "margin")):
        with pytest.raises(ValueError, match=message):
            ib.BregmanGraphDEQ(**{"in_features": 3, "features": 4, **settings})


MEMORY = """
import resource, torch
import implicit_bregman as ib
N, d = 100_000, 16
torch.manual_seed(0)
ends = torch.randint(N, (2, 5 * N))
graph = torch.sparse_coo_tensor(torch.cat([ends, ends.flip(0)], 1), torch.ones(10 * N), (N, N)).coalesce()
layer = ib.BregmanGraphDEQ(8, d, "tanh", GAMMA)
x = torch.randn(N, 8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
z = layer(x, graph)
z.square().mean().backward()
assert bool(layer.last_solution.converged)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_a_graph_of_100_000_nodes_needs_no_matrix(gamma: float) -> None:
    """Forward and backward within 1.5 GB; the matrix would have 40 GB, and that of all features 10 TB."""
    code = MEMORY.replace("GAMMA", str(gamma))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1500
