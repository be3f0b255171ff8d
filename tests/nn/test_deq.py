"""The deep-equilibrium layer as a torch module."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

import implicit_bregman as ib

BOX = ib.geometry("tanh").to_box(-2.0, 3.0)
ADJOINTS = [
    "implicit",
    "phantom",
    "one_step",
    "unrolled",
    ib.adjoints.Unrolled(steps=4, checkpoint=True, last=2),
    ib.adjoints.Phantom(steps=3, damping=0.25),
]


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(7, 4, generator=generator)


# What it computes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "sin", "softplus", BOX])
@pytest.mark.parametrize("regularization", [0.0, 0.4])
def test_the_output_is_a_critical_point(geometry: str, regularization: float, device: torch.device) -> None:
    layer = ib.BregmanDEQ(4, 5, geometry, regularization=regularization, device=device, dtype=torch.float64)
    x = torch.randn(7, 4, dtype=torch.float64).to(device)
    z = layer(x)
    solution = layer.last_solution
    assert solution is not None
    force = z @ layer.energy.weight.mT + layer.energy.linear(x) - regularization * solution.dual
    lo, hi = layer.geometry.bounds(torch.float64)
    torch.testing.assert_close((z + force).clamp(lo, hi), z, rtol=0, atol=1e-9)
    assert z.device.type == device.type


def test_with_regularization_it_is_the_usual_weight_tied_deq(x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 5, "sigmoid", regularization=0.5)
    z = layer(x)
    usual = layer.geometry.activation((z @ layer.energy.weight.mT + layer.energy.linear(x)) / 0.5)
    torch.testing.assert_close(z, usual, rtol=0, atol=1e-5)


def test_unrolled_is_a_feed_forward_network_with_tied_weights(x: Tensor) -> None:
    """τ = 1: each step is the Bregman layer z⁺ = ρ(ρ⁻¹(z) + Wz + Ux + b)."""
    layer = ib.BregmanDEQ(4, 5, "tanh", adjoint=ib.adjoints.Unrolled(steps=3))
    z = torch.zeros(7, 5)
    for _ in range(3):
        z = torch.tanh(torch.atanh(z) + z @ layer.energy.weight.mT + layer.energy.linear(x))
    torch.testing.assert_close(layer(x), z)


@pytest.mark.parametrize("weight", ["convex", "symmetric", "monotone", "general"])
def test_weights_start_where_the_critical_point_is_unique(weight: str, x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 5, weight=weight)
    matrix = layer.energy.weight.detach()
    assert float(torch.linalg.eigvalsh(0.5 * (matrix + matrix.T)).max()) < 0
    assert bool(layer.solve(x).converged.all())
    assert torch.equal(matrix, matrix.T) == (weight in ("convex", "symmetric"))


def test_without_bias(x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 5, bias=False)
    assert [name for name, _ in layer.named_parameters()] == ["energy.input_weight", "energy.weight_map.factor"]
    torch.testing.assert_close(layer(torch.zeros(2, 4)), torch.zeros(2, 5))
    layer(x).sum().backward()


def test_the_margin_bounds_the_weight() -> None:
    layer = ib.BregmanDEQ(4, 5, margin=0.7)
    with torch.no_grad():
        layer.energy.weight_map.factor.zero_()
    torch.testing.assert_close(layer.energy.weight, -0.7 * torch.eye(5))


# Shapes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (6,), (2, 3), (2, 1, 3), (0,), (2, 0), (0, 3)])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_leading_shapes_as_in_linear(shape: tuple[int, ...], adjoint: object) -> None:
    layer = ib.BregmanDEQ(4, 5, adjoint=adjoint)
    x = torch.randn(*shape, 4, requires_grad=True)
    solution = layer.solve(x)
    assert solution.value.shape == nn.Linear(4, 5)(x).shape
    assert solution.dual.shape == (*shape, 5)
    for per_sample in (solution.residual, solution.iterations, solution.evaluations, solution.status, solution.step):
        assert per_sample.shape == shape
    assert solution.converged.shape == shape
    assert solution.objective is not None
    assert solution.objective.shape == shape
    solution.value.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    report = solution.adjoint
    for entry in (report.status, report.residual, report.iterations):
        assert entry is None or entry.shape == shape
    assert (report.status is not None) == (adjoint == "implicit")
    if x.numel():
        flat = layer(x.reshape(-1, 4)).reshape(*shape, 5)
        torch.testing.assert_close(flat, solution.value)


def test_strided_input_is_the_same(x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 5)
    strided = torch.randn(4, 14).T[::2]
    assert not strided.is_contiguous()
    assert torch.equal(layer(strided), layer(strided.contiguous()))
    expanded = x[:1].expand(3, 4)
    torch.testing.assert_close(layer(expanded), layer(x[:1]).expand(3, 5))


# The solution, and starting from it -------------------------------------------------------------------------------


def test_last_solution_is_the_last_call_detached(x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 5)
    assert layer.last_solution is None
    z = layer(x)
    last = layer.last_solution
    assert last is not None
    assert z.requires_grad
    assert not last.value.requires_grad
    assert torch.equal(last.value, z)
    layer(x[:2])
    assert layer.last_solution is not last
    assert layer.last_solution is not None
    assert layer.last_solution.value.shape == (2, 5)


def test_solve_carries_the_gradient_and_last_solution_sees_the_backward_report(x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 5)
    solution = layer.solve(x)
    assert solution.value.requires_grad
    solution.value.sum().backward()
    assert layer.last_solution is not None
    assert layer.last_solution.adjoint.status is not None


@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "arctan", "softplus"])
@pytest.mark.parametrize("regularization", [0.0, 0.3])
def test_a_warm_start_costs_nothing_and_changes_nothing(geometry: str, regularization: float, x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 5, geometry, regularization=regularization)
    x = 3 * x
    cold = layer.solve(x)
    warm = layer.solve(x, initial=cold)
    assert int(cold.iterations.max()) > 0
    assert int(warm.iterations.max()) <= 1
    torch.testing.assert_close(warm.value, cold.value, rtol=0, atol=1e-5)
    parameters = tuple(layer.parameters())
    gradients = [torch.autograd.grad(s.value.square().sum(), parameters) for s in (cold, warm)]
    for found, expected in zip(*gradients, strict=True):
        assert float((found - expected).norm() / expected.norm()) <= 1e-3


def test_a_warm_start_from_a_nearby_input_is_shorter(x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 5, solver=ib.solvers.MM(exact=False))
    cold = layer.solve(x)
    warm = layer.solve(x + 1e-4, initial=layer.last_solution)
    assert int(warm.iterations.sum()) < int(cold.iterations.sum())


def test_a_start_from_inference_mode_can_be_trained_from(x: Tensor) -> None:
    for adjoint in ("implicit", "unrolled"):
        layer = ib.BregmanDEQ(4, 5, adjoint=adjoint)
        with torch.inference_mode():
            previous = layer.solve(x)
        layer.solve(x, initial=previous).value.sum().backward()
        assert layer.energy.bias.grad is not None


def test_the_start_does_not_matter_where_the_critical_point_is_unique(x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 5, dtype=torch.float64)
    start = 0.9 * (2 * torch.rand(7, 5, dtype=torch.float64) - 1)
    torch.testing.assert_close(layer.solve(x.double(), initial=start).value, layer(x.double()))


# Settings -----------------------------------------------------------------------------------------------------------


def test_solver_adjoint_and_regularization_may_be_assigned(x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 5, dtype=torch.float64)
    x = x.double()
    expected = layer(x)
    for solver in ("mm", "anderson", ib.solvers.Broyden(memory=5), "newton"):
        layer.solver = solver
        torch.testing.assert_close(layer(x), expected)
    layer.solver, layer.adjoint = "auto", ib.adjoints.Unrolled(steps=2)
    assert layer.solve(x).status.tolist() == [ib.Status.TRUNCATED] * 7
    layer.solver = "broyden"
    with pytest.raises(ValueError, match="Unrolled is MM itself"):
        layer(x)
    layer.solver, layer.adjoint, layer.regularization = "auto", "one_step", 0.7
    torch.testing.assert_close(
        layer(x), ib.find_critical_point(layer.energy, layer.geometry, x, regularization=0.7).value
    )
    with pytest.raises(ValueError, match=r"regularization must be a finite number >= 0, got -1\.0"):
        layer.regularization = -1.0
    with pytest.raises(ValueError, match=r"solver must be one of .*, got 'fast'"):
        layer.solver = "fast"
    with pytest.raises(
        ValueError, match="adjoint must be one of implicit, unrolled, phantom, one_step, shine, got 'exact'"
    ):
        layer.adjoint = "exact"
    assert (layer.regularization, layer.adjoint, layer.solver) == (0.7, "one_step", "auto")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"in_features": 0}, ValueError, "in_features must be at least 1, got 0"),
        ({"out_features": -2}, ValueError, "out_features must be at least 1, got -2"),
        ({"geometry": "relu"}, ValueError, "unknown geometry 'relu'; known: isru, sigmoid"),
        (
            {"weight": "negative"},
            ValueError,
            "weight must be one of convex, symmetric, monotone, .*, got 'negative'",
        ),
        ({"regularization": -0.1}, ValueError, "regularization must be a finite number >= 0, got -0.1"),
        ({"regularization": float("nan")}, ValueError, "regularization must be a finite number >= 0, got nan"),
        ({"regularization": "0.1"}, ValueError, "regularization must be a finite number >= 0, got '0.1'"),
        ({"regularization": None}, ValueError, "regularization must be a finite number >= 0, got None"),
        ({"solver": "newton-raphson"}, ValueError, "solver must be one of auto, mm, .*, got 'newton-raphson'"),
        ({"solver": None}, TypeError, "solver must be a name or an instance such as .*, got None"),
        ({"adjoint": "exact"}, ValueError, "adjoint must be one of implicit, .*, got 'exact'"),
        ({"adjoint": ib.adjoints.Implicit}, TypeError, "adjoint must be a name or an instance"),
        ({"injection": "both"}, ValueError, "injection must be one of linear, initial, got 'both'"),
        ({"margin": 0.0}, ValueError, "margin must be positive, got 0"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        ib.BregmanDEQ(**{"in_features": 4, "out_features": 5, **settings})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_linear_map_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="with regularization=0 and the unbounded domain of identity the layer is"):
        ib.BregmanDEQ(4, 5, "identity")
    for settings in ({"regularization": 0.1}, {"adjoint": "unrolled"}):
        ib.BregmanDEQ(4, 5, "identity", **settings)  # type: ignore[arg-type]
    ib.BregmanDEQ(4, 5, "softplus")


def test_certificate() -> None:
    layer = ib.BregmanDEQ(4, 5, "sigmoid", regularization=0.1)
    certificate = layer.certificate()
    assert certificate.unique
    assert certificate.converges
    assert certificate.step == 1.0
    assert certificate.rate == pytest.approx(1 / 1.1, rel=0.1)


# injection="initial" ------------------------------------------------------------------------------------------------


def test_initial_injection_is_the_unrolled_network_of_the_paper(x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 4, injection="initial", adjoint=ib.adjoints.Unrolled(steps=2), dtype=torch.float64)
    assert "energy.input_weight" not in dict(layer.named_parameters())
    with torch.no_grad():
        layer.energy.bias.copy_(torch.linspace(-0.3, 0.4, 4))
    x = torch.tanh(x.double()).requires_grad_()
    z = x
    for _ in range(2):
        z = torch.tanh(torch.atanh(z) + z @ layer.energy.weight.mT + layer.energy.bias)
    torch.testing.assert_close(layer(x), z)
    found, expected = (torch.autograd.grad(v.square().sum(), (x, layer.energy.bias)) for v in (layer(x), z))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_initial_injection_is_refused_where_it_makes_a_constant() -> None:
    with pytest.raises(ValueError, match='injection="initial" with weight="convex" makes h constant'):
        ib.BregmanDEQ(4, 4, injection="initial")
    with pytest.raises(ValueError, match="in_features = 4 must equal out_features = 5"):
        ib.BregmanDEQ(4, 5, injection="initial", adjoint="unrolled")


@pytest.mark.parametrize("weight", ["symmetric", "general"])
def test_initial_injection_warns_where_nothing_upstream_can_train(weight: str, x: Tensor) -> None:
    with pytest.warns(UserWarning, match="makes h piecewise constant in x: nothing upstream of this layer can train"):
        layer = ib.BregmanDEQ(4, 4, weight=weight, injection="initial")
    x = torch.tanh(x).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    assert not bool(gradient.any())


def test_initial_injection_with_a_constant_critical_point_is_refused_also_when_assigned_later(x: Tensor) -> None:
    """Unrolled at construction, implicit afterwards: h is constant now, and the layer must not hide it."""
    layer = ib.BregmanDEQ(4, 4, injection="initial", adjoint="unrolled")
    layer.adjoint = "implicit"
    with pytest.raises(ValueError, match="makes h constant"):
        layer(torch.tanh(x))


def test_initial_injection_of_an_input_in_the_dual() -> None:
    """sigmoid(0, 17) is (½, 1) in float32, which is a sample's fault alone; its dual says what was meant."""
    layer = ib.BregmanDEQ(2, 2, "sigmoid", weight="low_rank", rank=1, injection="initial")
    dual = torch.tensor([[0.0, 0.0], [0.0, 17.0]], requires_grad=True)
    with pytest.warns(ib.ConvergenceWarning, match=r"INVALID_INPUT: .*rounded.*initial_dual="):
        found = layer.solve(torch.sigmoid(dual.detach()))
    assert found.status.tolist() == [0, ib.Status.INVALID_INPUT]
    meant = layer.solve(None, initial_dual=dual)
    assert bool(meant.converged.all())
    torch.testing.assert_close(meant.value[0], found.value[0])
    double = copy.deepcopy(layer).double()
    exact = double(torch.sigmoid(dual.detach().double()))
    torch.testing.assert_close(meant.value.double(), exact, rtol=1e-5, atol=1e-6)
    meant.value[:, 0].sum().backward()
    assert float(dual.grad.abs().max()) > 0
    with pytest.raises(ValueError, match="x and initial_dual both give the start"):
        layer.solve(torch.full((2, 2), 0.5), initial_dual=dual)
    with pytest.raises(ValueError, match="x must be given"):
        layer.solve(None)


def test_a_dual_is_a_start_of_any_layer(x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 3, weight="symmetric", regularization=0.1)
    dual = 0.3 * torch.randn(7, 3)
    found = layer.solve(x, initial_dual=dual)
    same = layer.solve(x, initial=torch.tanh(dual))
    torch.testing.assert_close(found.value, same.value, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="initial and initial_dual both give the start"):
        layer.solve(x, torch.tanh(dual), dual)
    with pytest.raises(ValueError, match="x must be given"):
        layer.solve(None, initial_dual=dual)


def test_initial_injection_takes_no_other_start(x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 4, injection="initial", adjoint="unrolled")
    with pytest.raises(ValueError, match='initial cannot be given with injection="initial"'):
        layer.solve(torch.tanh(x), initial=torch.zeros(7, 4))
    with pytest.raises(ValueError, match="must lie in the interior of the domain"):
        layer(x + 5)
    with pytest.raises(ValueError, match=r"shape|features"):
        layer(torch.zeros(7, 3))


# The Bregman projection layer -----------------------------------------------------------------------------------------


def projection_layer(**settings: object) -> ib.BregmanDEQ:
    layer = ib.BregmanDEQ(6, 6, weight="low_rank", rank=2, injection="initial", dtype=torch.float64, **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.energy.bias.add_(torch.tensor([0.2, -0.1]))
    return layer


@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "exp"])
def test_the_projection_layer_projects_its_input(geometry: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = projection_layer(geometry=geometry)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "energy.bias": (2,),
        "energy.weight_map.vectors": (6, 2),
    }
    x = layer.geometry.activation(0.5 * torch.randn(7, 6, dtype=torch.float64)).requires_grad_()
    z, vectors = layer(x), layer.energy.weight_map.vectors
    assert layer.last_solution is not None
    assert bool(layer.last_solution.converged.all())
    torch.testing.assert_close(z @ vectors, layer.energy.bias.expand(7, 2), rtol=0, atol=1e-11)
    leaves = (x, *layer.parameters())
    gradients = torch.autograd.grad(z.square().sum(), leaves)
    assert all(bool(g.any()) for g in gradients)
    layer.adjoint = ib.adjoints.Unrolled(steps=1500)
    unrolled = torch.autograd.grad(layer(x).square().sum(), leaves)
    for found, expected in zip(gradients, unrolled, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_a_projection_is_idempotent() -> None:
    layer = projection_layer()
    x = torch.tanh(0.5 * torch.randn(7, 6, dtype=torch.float64))
    torch.testing.assert_close(layer(layer(x)), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("geometry", ["tanh", "sigmoid", "softplus", "exp", BOX])
def test_a_low_rank_layer_starts_feasible(geometry: str) -> None:
    layer = ib.BregmanDEQ(8, 16, geometry, "low_rank", rank=4)
    solution = layer.solve(torch.randn(64, 8))
    assert bool(solution.converged.all())
    middle = layer.solve(torch.zeros(1, 8))
    torch.testing.assert_close(middle.value, layer.geometry.activation(torch.zeros(1, 16)), rtol=0, atol=1e-6)


def test_linear_injection_asks_for_features(x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 6, "tanh", "low_rank", rank=2, dtype=torch.float64)
    x = 0.3 * x.double()
    z = layer(x)
    torch.testing.assert_close(z @ layer.energy.weight_map.vectors, layer.energy.target(x), rtol=0, atol=1e-11)
    start = torch.tanh(torch.randn(7, 6, dtype=torch.float64))
    other = layer.solve(x, start)
    torch.testing.assert_close(
        other.value @ layer.energy.weight_map.vectors, layer.energy.target(x), rtol=0, atol=1e-11
    )
    assert not torch.allclose(other.value, z)


def test_a_projection_layer_that_would_be_constant_is_refused() -> None:
    message = r'injection="initial" with weight="low_rank" and regularization = 0.1 makes h constant'
    with pytest.raises(ValueError, match=message):
        projection_layer(regularization=0.1)
    layer = projection_layer()
    layer.regularization = 0.1
    with pytest.raises(ValueError, match=message):
        layer(torch.zeros(1, 6, dtype=torch.float64))
    projection_layer(regularization=0.1, adjoint="unrolled")


def test_a_projection_layer_is_printed_copied_and_stored() -> None:
    layer = projection_layer(softening=0.01)
    assert "LowRankWeight(features=6, rank=2, softening=0.01)" in repr(layer)
    x = torch.tanh(torch.randn(3, 6, dtype=torch.float64))
    expected = layer(x)
    for other in (copy.deepcopy(layer), _through_pickle(layer), _through_a_file(layer)):
        assert torch.equal(other(x), expected)
    other = projection_layer()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), expected)


@pytest.mark.parametrize("injection", ["linear", "initial"])
def test_what_is_upstream_of_a_projection_layer_trains(injection: str, generator: torch.Generator) -> None:
    x = torch.randn(64, 4, generator=generator)
    target = (x[:, :2] * x[:, 2:]).sum(-1, keepdim=True).tanh()
    inputs = [nn.Linear(4, 8), *([nn.Tanh()] if injection == "initial" else [])]
    layer = ib.BregmanDEQ(8, 8, weight="low_rank", rank=3, injection=injection)
    model = nn.Sequential(*inputs, layer, nn.Linear(8, 1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*INFEASIBLE", category=ib.ConvergenceWarning)
        for _ in range(60):
            optimizer.zero_grad()
            loss = (model(x) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_half_precision_projection_layer(dtype: torch.dtype) -> None:
    layer = projection_layer().to(dtype)
    x = torch.tanh(0.5 * torch.randn(7, 6)).to(dtype).requires_grad_()
    z = layer(x)
    assert z.dtype == dtype
    z.sum().backward()
    lifted, leaf = copy.deepcopy(layer).float(), x.detach().float().requires_grad_()
    lifted.zero_grad()
    exact = lifted(leaf)
    exact.sum().backward()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(z.float(), exact, rtol=4 * eps, atol=4 * eps)
    for ours, theirs in zip((x, *layer.parameters()), (leaf, *lifted.parameters()), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.dtype == dtype
        torch.testing.assert_close(ours.grad.float(), theirs.grad, rtol=16 * eps, atol=16 * eps)


def test_autocast_does_not_reach_a_projection_layer(x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 6, weight="low_rank", rank=2)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
        found.sum().backward()
    assert torch.equal(found, expected)


# Copies -------------------------------------------------------------------------------------------------------------


def stored_layers() -> list[ib.BregmanDEQ]:
    return [
        ib.BregmanDEQ(4, 5),
        ib.BregmanDEQ(4, 5, BOX, "symmetric", 0.2, ib.solvers.Broyden(memory=7), ib.adjoints.Phantom(steps=3)),
        ib.BregmanDEQ(4, 5, ib.geometry("softplus", sharpness=2.0), "general", 0.3, bias=False),
        ib.BregmanDEQ(4, 4, "sin", injection="initial", adjoint=ib.adjoints.Unrolled(steps=3, last=1)),
    ]


def _through_pickle(layer: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(layer))


def _through_a_file(layer: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("duplicate", [copy.deepcopy, _through_pickle, _through_a_file], ids=lambda f: f.__name__)
def test_copies_are_equal_and_independent(number: int, duplicate: object) -> None:
    assert callable(duplicate)
    layer = stored_layers()[number]
    x = 0.5 * torch.rand(3, 4)
    expected = layer(x)  # leaves a last_solution behind
    other = duplicate(layer)
    assert repr(other) == repr(layer)
    assert (other.geometry, other.solver, other.adjoint) == (layer.geometry, layer.solver, layer.adjoint)
    assert other.last_solution is None
    assert torch.equal(other(x), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert not torch.equal(other(x), expected)
    assert torch.equal(layer(x), expected)
    assert layer.last_solution is not None


def test_state_dict_round_trip(x: Tensor) -> None:
    layer, other = ib.BregmanDEQ(4, 5), ib.BregmanDEQ(4, 5)
    assert not torch.equal(layer(x), other(x))
    state = layer.state_dict()
    assert set(state) == {"energy.input_weight", "energy.bias", "energy.weight_map.factor"}
    assert other.load_state_dict(state).missing_keys == []
    assert torch.equal(layer(x), other(x))
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream, weights_only=True))
    with pytest.raises(RuntimeError, match="size mismatch"):
        ib.BregmanDEQ(4, 6).load_state_dict(state)


def test_to_dtype_keeps_the_function(x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 5)
    expected = layer(x)
    double = copy.deepcopy(layer).double()
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    z = double(x.double())
    assert z.dtype == torch.float64
    torch.testing.assert_close(z.float(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(double.float()(x), expected)
    with pytest.raises(ValueError, match=r"x is torch\.float64, but .* of the energy is torch\.float32: convert"):
        layer(x.double())


def test_to_another_device_moves_everything() -> None:
    layer = ib.BregmanDEQ(4, 5).to("meta")
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    with pytest.raises(ValueError, match=r"x is on cpu, but .* of the energy is on meta: move one of them"):
        layer(torch.zeros(2, 4))


def test_repr_says_everything() -> None:
    text = repr(ib.BregmanDEQ(4, 5, "sigmoid", regularization=0.2, adjoint=ib.adjoints.Unrolled(steps=3)))
    for part in (
        "in_features=4, out_features=5",
        "geometry=Sigmoid()",
        "regularization=0.2",
        "solver='auto'",
        "adjoint=Unrolled(steps=3",
        "injection='linear'",
        "(energy): QuadraticEnergy(",
    ):
        assert part in text


# Training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "adjoint"),
    [(weight, "implicit") for weight in ("convex", "symmetric", "monotone", "general")]
    + [("convex", adjoint) for adjoint in ("phantom", "one_step", "unrolled")],
)
def test_training_reduces_the_loss(weight: str, adjoint: str, generator: torch.Generator) -> None:
    x = torch.randn(32, 4, generator=generator)
    target = (x[:, :2] * x[:, 2:]).sum(-1, keepdim=True).tanh()
    layer = ib.BregmanDEQ(6, 8, weight=weight, regularization=0.3, adjoint=adjoint)
    model = nn.Sequential(nn.Linear(4, 6), layer, nn.Linear(8, 1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_frozen_parameters_get_no_gradient(x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 5)
    layer.energy.weight_map.factor.requires_grad_(False)
    expected = torch.autograd.grad(layer(x).sum(), layer.energy.bias)
    layer(x).sum().backward()
    assert layer.energy.weight_map.factor.grad is None
    assert layer.energy.bias.grad is not None
    torch.testing.assert_close(layer.energy.bias.grad, expected[0])
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    assert layer(x.requires_grad_()).requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_without_gradients(mode: type[torch.no_grad], adjoint: object, x: Tensor) -> None:
    layer = ib.BregmanDEQ(4, 5, adjoint=adjoint)
    expected = layer(x)
    with mode():
        z = layer(x)
    assert not z.requires_grad
    assert torch.equal(z, expected)


def test_the_same_layer_twice_in_one_graph(x: Tensor) -> None:
    """Weights shared between two places of a network get the sum of both gradients."""
    layer = ib.BregmanDEQ(5, 5, dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64)
    parameters = tuple(layer.parameters())

    def loss() -> Tensor:
        return layer(layer(x)).square().sum()

    gradients = torch.autograd.grad(loss(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(1e-6 * direction)
            up = loss()
            parameter.sub_(2e-6 * direction)
            down = loss()
            parameter.add_(1e-6 * direction)
        assert float((up - down) / 2e-6) == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def test_an_optimizer_step_between_two_calls_is_seen(x: Tensor) -> None:
    """Nothing of a previous call is reused, however the parameters were changed."""
    layer = ib.BregmanDEQ(4, 5)
    layer(x)
    with torch.no_grad():
        layer.energy.weight_map.factor.data.mul_(2)
    fresh = ib.BregmanDEQ(4, 5)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), fresh(x))


def test_no_warning_in_ordinary_use(x: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for weight in ("convex", "symmetric", "monotone", "general"):
            ib.BregmanDEQ(4, 5, weight=weight)(x).sum().backward()
