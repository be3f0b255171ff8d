"""The convolutional layer: any image size, its settings, its certificate, and the equilibrium of monDEQ."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import implicit_bregman as ib

D = torch.float64


def images(*shape: int, seed: int = 0, dtype: torch.dtype = D) -> Tensor:
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)).to(dtype)


def layer(*arguments: object, dtype: torch.dtype = D, scale: float = 1.0, **settings: object) -> ib.BregmanDEQ2d:
    torch.manual_seed(0)
    made = ib.BregmanDEQ2d(*arguments, dtype=dtype, **settings)
    with torch.no_grad():
        for parameter in made.energy.weight_map.parameters():
            parameter.add_(scale * torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
    return made


@pytest.mark.parametrize("weight", ["convex", "symmetric", "monotone"])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (1, 1), (5, 3)])
def test_images_of_any_size(weight: str, padding: str, kernel_size: int, stride: int, dtype: torch.dtype) -> None:
    made = layer(
        2, 4, kernel_size, weight=weight, padding=padding, stride=stride, regularization=0.2, scale=0.1, dtype=dtype
    )
    for size in ((6, 9), (11, 5), (8, 8)):
        x = images(3, 2, *size, dtype=dtype)
        solution = made.solve(x)
        assert solution.value.shape == (3, 4, -(-size[0] // stride), -(-size[1] // stride))
        assert solution.converged.all()
        z = solution.value.detach()
        with torch.no_grad():
            left = made.energy.gradient(z, x) + 0.2 * solution.dual
        assert float(left.abs().max()) <= (1e-9 if dtype == D else 1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("weight", ["convex", "monotone"])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (2, 2), ((2, 3), 1)])
def test_values_gradients_and_statuses_are_those_of_the_matrix(
    weight: str, kernel_size: int, stride: int, gamma: float
) -> None:
    made = layer(2, 3, kernel_size, weight=weight, stride=stride, regularization=gamma)
    x, results = images(4, 2, 5, 8), []
    cotangent = images(*made(x).shape, seed=1)
    for dense in (False, True):
        leaf = x.clone().requires_grad_()
        if dense:
            c = made.energy.linear(leaf)
            matrix = made.energy.operator(c.shape[2:]).dense()
            energy = ib.QuadraticEnergy.from_operator(ib.operators.Dense(matrix, symmetric=weight == "convex"))
            found = ib.find_critical_point(energy, "softplus", c.flatten(1), None, gamma)
        else:
            found = made.solve(leaf)
        value = found.value.reshape(cotangent.shape)
        gradients = torch.autograd.grad(value, [leaf, *made.parameters()], cotangent)
        results.append((found.status, value.detach(), *gradients))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_it_is_the_equilibrium_of_mondeq(dtype: torch.dtype) -> None:
    """z = relu(z − Hz + c), H made of convolutions on images with a border of zeros, by Peaceman–Rachford."""
    made = layer(2, 3, 3, weight="monotone", margin=0.5, dtype=dtype)
    x = images(4, 2, 6, 7, dtype=dtype)
    a, b = made.energy.weight_map.factor.double(), made.energy.weight_map.skew.double()

    def field(z: Tensor) -> Tensor:
        image = functional.conv2d(z, a, padding=2)
        skew = functional.conv_transpose2d(z, b, padding=1) - functional.conv2d(z, b, padding=1)
        return 0.5 * z + functional.conv_transpose2d(image, a, padding=2) + skew

    with torch.no_grad():
        c = made.energy.injection(x).double()
        d = c[0].numel()
        matrix = field(torch.eye(d, dtype=D).reshape(d, *c.shape[1:])).reshape(d, d).mT
        alpha = 0.3
        inverse = torch.linalg.inv(torch.eye(d, dtype=D) + alpha * matrix).mT
        u = z = torch.zeros(4, d, dtype=D)
        for _ in range(2000):
            half = (2 * z - u + alpha * c.flatten(1)) @ inverse
            u = 2 * half - (2 * z - u)
            z = u.clamp_min(0)
    assert 0.2 < float((z == 0).double().mean()) < 0.8
    found = made.solve(x)
    assert found.converged.all()
    assert found.objective is None
    close = {"rtol": 0, "atol": 1e-10 if dtype == D else 2e-5}
    torch.testing.assert_close(found.value.double().flatten(1), z, **close)


@pytest.mark.parametrize("weight", ["convex", "symmetric", "monotone"])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_the_certificate_holds_for_every_size(weight: str, padding: str) -> None:
    made = layer(1, 2, 3, weight=weight, padding=padding)
    certificate = made.certificate()
    assert certificate.has_objective == (weight != "monotone")
    assert certificate.unique == (weight != "symmetric" or certificate.curvature_least > 0)
    for size in ((3, 3), (4, 7), (9, 3)):
        matrix = made.energy.operator(size).dense().detach()
        ends = torch.linalg.eigvalsh(0.5 * (matrix + matrix.mT))
        assert certificate.curvature_least <= float(ends[0]) + 1e-12
        if weight != "monotone":
            assert certificate.curvature_bound >= float(ends[-1]) - 1e-12
    if weight == "symmetric":  # they are sharp up to the grid of frequencies
        assert certificate.curvature_bound <= 1.1 * float(ends[-1]) + 0.3


@pytest.mark.parametrize("weight", ["convex", "monotone"])
def test_gradients_are_those_of_finite_differences(weight: str) -> None:
    made = layer(1, 2, 2, "tanh", weight, 0.3)
    x = images(1, 1, 2, 3).requires_grad_()
    names, tensors = zip(*made.named_parameters(), strict=True)

    def of(x: Tensor, *tensors: Tensor) -> Tensor:
        return torch.func.functional_call(made, dict(zip(names, tensors, strict=True)), (x,))

    assert torch.autograd.gradcheck(of, (x, *tensors), atol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(of, (x, *tensors), atol=1e-5, fast_mode=True)


def test_a_loose_tolerance_keeps_the_gradient(dtype: torch.dtype) -> None:
    """Bounds that an iterate leaves by a dual's rounding are bounds."""
    made = layer(2, 4, 3, dtype=dtype)
    x, gradients = images(6, 2, 8, 8, dtype=dtype), []
    for solver in ("auto", ib.solvers.Splitting(tol=1e-4), ib.solvers.Newton(tol=1e-4)):
        made.solver = solver
        gradients.append(torch.autograd.grad(made(x).sum(), list(made.parameters())))
    for other in gradients[1:]:
        for one, exact in zip(other, gradients[0], strict=True):
            assert float((one - exact).norm() / exact.norm()) <= 1e-3


def test_it_is_a_module_like_any_other() -> None:
    made, x = layer(2, 3, (3, 5), "tanh", "monotone", 0.1, stride=2, padding="circular"), images(2, 2, 7, 8)
    z = made(x)
    other = ib.BregmanDEQ2d(2, 3, (3, 5), "tanh", "monotone", 0.1, stride=2, padding="circular", dtype=D)
    assert not torch.equal(other(x), z)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x), z)
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert twin.last_solution is None
        assert torch.equal(twin(x), z)
    assert {name for name, _ in made.named_parameters()} == {
        "energy.weight_map.factor",
        "energy.weight_map.skew",
        "energy.injection.weight",
        "energy.injection.bias",
    }
    assert "2, 3, kernel_size=(3, 5), stride=2, padding='circular', geometry=Tanh" in repr(made)
    assert "margin=0.1" in repr(made)
    before = copy.deepcopy(made.state_dict())
    made.reset_parameters()
    assert all(not torch.equal(now, before[name]) or "bias" in name for name, now in made.state_dict().items())
    assert float(made.energy.injection.bias.detach().abs().max()) == 0.0
    with torch.no_grad():
        calls = []
        made.energy.register_forward_hook(lambda module, of, c: calls.append(c.shape))
        made(x)
    assert calls == [(2, 3, 4, 4)]


def test_half_precision_parameters_are_lifted() -> None:
    made, x = layer(1, 2, 3, regularization=0.1, dtype=torch.float32), images(2, 1, 5, 5, dtype=torch.float32)
    z = made(x)
    half = copy.deepcopy(made).half()
    assert half(x.half()).dtype == torch.float16
    torch.testing.assert_close(half(x.half()).float(), z, rtol=2e-2, atol=2e-2)


def test_it_trains_within_a_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(ib.BregmanDEQ2d(1, 4, stride=2), nn.Flatten(), nn.Linear(4 * 4 * 4, 2))
    x, target = images(16, 1, 8, 8, dtype=torch.float32), torch.arange(16) % 2
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.02), []
    for _ in range(25):
        loss = functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_samples_are_solved_each_for_itself() -> None:
    made, x = layer(1, 2, 3, "tanh"), images(3, 1, 4, 4)
    x[1, 0, 2, 2] = torch.nan
    with pytest.warns(ib.ConvergenceWarning, match="INVALID_INPUT"):
        solution = made.solve(x)
    assert solution.status.tolist() == [0, int(ib.Status.INVALID_INPUT), 0]
    torch.testing.assert_close(solution.value[2], made(x[2:])[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"weight": "general"}, ValueError, "weight must be one of convex, symmetric, monotone, got 'general'"),
        ({"padding": "reflect"}, ValueError, "padding must be one of zeros, circular, got 'reflect'"),
        ({"weight": "symmetric", "kernel_size": 2}, ValueError, r"kernel_size = \(2, 2\) has no middle"),
        ({"stride": 0}, ValueError, "stride must be at least 1"),
        ({"stride": 1.5}, TypeError, "stride must be a whole number"),
        ({"in_channels": 0}, ValueError, "in_channels must be at least 1"),
        ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size must be at least 1 in each of 2 dimensions"),
        ({"margin": 0.0}, ValueError, "margin must be positive"),
        ({"regularization": -1.0}, ValueError, "regularization"),
        ({"geometry": "nothing"}, ValueError, "nothing"),
    ],
)
def test_what_is_refused(settings: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        ib.BregmanDEQ2d(**{"in_channels": 1, "channels": 2, **settings})


def test_inputs_that_are_no_images_are_refused() -> None:
    made = layer(2, 3)
    for x in (images(2, 5, 5), images(4, 1, 5, 5), images(4, 2, 0, 5)):
        with pytest.raises(ValueError, match=r"x must have shape \(B, 2, H, W\), got"):
            made(x)
    with pytest.raises(ValueError, match=r'smaller than kernel_size = \(3, 3\), which padding="circular"'):
        layer(2, 3, padding="circular")(images(1, 2, 2, 5))
    with pytest.raises(ValueError, match=r"initial must have shape \(1, 3, 5, 5\)"):
        made(images(1, 2, 5, 5), images(1, 3, 4, 5))
    with pytest.warns(UserWarning, match=r"linear map H\^-1 c\(x\)"):
        layer(1, 1, geometry="identity")
    with pytest.raises(TypeError, match='weight="monotone" has no objective'):
        layer(1, 1, weight="monotone").energy.value(images(1, 1, 3, 3), images(1, 1, 3, 3))
