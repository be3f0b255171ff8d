"""Networks as fields: z = N(z, x) of a perceptron, a transformer block and the residual block of a DEQ-ResNet."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import implicit_bregman as ib
from implicit_bregman.experiments.benchmark.layer_cells import DTYPES, FieldCell
from implicit_bregman.experiments.benchmark.layers import PreparedLayer
from implicit_bregman.experiments.benchmark.peers.contenders import BOTH, Found, our_contenders
from implicit_bregman.experiments.benchmark.peers.torchdeq import Equation, FixedPoint
from implicit_bregman.experiments.benchmark.peers.torchdeq_sweep import torchdeq_contenders
from implicit_bregman.experiments.benchmark.prepared import Gradients
from implicit_bregman.experiments.benchmark.settings import BenchmarkSettings
from implicit_bregman.experiments.learning.training import cpu_threads

TRUTH = "plain iteration in float64"
_SETTLED, _EXACT, _LONGEST = 1e-14, 1e-12, 3000  # change that ends an iteration; that is allowed; iterations
# Shares of a cell's cap. What the searches leave goes to the timing.
_TUNING_SHARE, _TORCHDEQ_SHARE = 0.1, 0.6


class Perceptron(nn.Module):
    """N(z, x) of a multilayer perceptron.

    Args:
        width: Features of z; x has a quarter of them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer, self.inject = (nn.Linear(n, width) for n in (width, width, width // 4))
        with torch.no_grad():
            self.inner.weight.mul_(1.4)
            self.outer.weight.mul_(1.4)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(z))) + self.inject(x)


class Transformer(nn.Module):
    """N(z, x) of a transformer block, with its normalization at the end.

    Args:
        channels: Of each token.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, 4, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
        self.first, self.second, self.last = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        z = self.first(z + x)
        z = z + self.attention(z, z, z, need_weights=False)[0]
        return 0.7 * self.last(z + self.feed(self.second(z)))


class Residual(nn.Module):
    """N(z, x) of the residual block of a DEQ-ResNet, with group normalization.

    Args:
        channels: Of the images.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(4, channels) for _ in range(3))
        nn.init.normal_(self.one.weight, std=0.02)
        nn.init.normal_(self.two.weight, std=0.02)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        y = self.norms[0](torch.relu(self.one(z)))
        return 0.7 * self.norms[2](torch.relu(z + self.norms[1](x + self.two(y))))


#: How a network is made for an event shape, and the shape of a sample of x.
NETWORKS: dict[str, Callable[[tuple[int, ...]], tuple[nn.Module, tuple[int, ...]]]] = {
    "mlp": lambda event: (Perceptron(event[0]), (event[0] // 4,)),
    "transformer": lambda event: (Transformer(event[-1]), event),
    "resnet": lambda event: (Residual(event[0]), event),
}


class NetworkField(ib.Field):
    """The field of any network: what vanishes at z = N(z, x) with the geometry "identity" and γ = 1.

    Args:
        network: N.
        event: Shape of z.
    """

    def __init__(self, network: nn.Module, event: tuple[int, ...]) -> None:
        super().__init__(event if len(event) > 1 else event[0])
        self.network = network

    def field(self, z: Tensor, x: Tensor) -> Tensor:
        return -self.network(z, x)


def prepare_field(cell: FieldCell, seed: int = 0) -> PreparedLayer[NetworkField]:
    """Draw a network and its x, round them and find their truth.

    Raises:
        RuntimeError: If the plain iteration does not end.
    """
    dtype = DTYPES[cell.dtype]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, shape = NETWORKS[cell.network](cell.event)
        x = torch.randn(cell.batch, *shape).to(dtype).requires_grad_()
        cotangent = torch.randn(cell.batch, *cell.event).to(dtype)
    network.to(dtype)
    wide, wide_x = copy.deepcopy(network).double(), x.detach().double().requires_grad_()
    with cpu_threads(1):  # not timed, and on a busy machine several threads wait for one another
        value, gradients = _truth(wide, wide_x, cotangent.double())
    field, phi = NetworkField(network, cell.event), ib.geometry("identity")
    parameters = (x, *network.parameters())
    return PreparedLayer(cell, parameters, cotangent, value, gradients, TRUTH, 0.0, field, phi, 1.0)


def field_contenders(
    prepared: PreparedLayer[NetworkField], settings: BenchmarkSettings, missing: Mapping[str, str]
) -> list[Found]:
    """This library and torchdeq."""
    cap, levels = settings.seconds_per_cell, settings.accuracies
    found = [our_contenders(prepared, levels, BOTH, _TUNING_SHARE * cap)]
    if "torchdeq" not in missing:
        equations = field_equations(prepared)
        found.append(torchdeq_contenders(prepared, equations, levels, _TORCHDEQ_SHARE * cap, settings.quick))
    return found


class NetworkMap(FixedPoint):
    """z ↦ N(z, x).

    Args:
        prepared: The cell.
    """

    def __init__(self, prepared: PreparedLayer[NetworkField]) -> None:
        self.prepared = prepared

    def start(self) -> Tensor:
        return torch.zeros_like(self.prepared.cotangent)

    def __call__(self, x: Tensor, tau: float = 1.0) -> Tensor:
        return self.prepared.energy.network(x, self.prepared.x)


def field_equations(prepared: PreparedLayer[NetworkField]) -> list[Equation]:
    """What torchdeq solves."""
    return [Equation("z = N(z, x)", lambda: NetworkMap(prepared))]


def _truth(network: nn.Module, x: Tensor, cotangent: Tensor) -> tuple[Tensor, Gradients]:
    """z and dL/dθ by plain iteration, forward and on the adjoint equation v = Jᵀv + G."""
    with torch.no_grad():
        z = _limit(lambda z: network(z, x), torch.zeros_like(cotangent))
    at = z.clone().requires_grad_()
    after = network(at, x)

    def adjoint(v: Tensor) -> Tensor:
        return torch.autograd.grad(after, at, v, retain_graph=True)[0] + cotangent

    v = _limit(adjoint, cotangent)
    return z, torch.autograd.grad(network(z, x), (x, *network.parameters()), v)


def _limit(step: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The fixed point that the steps come to."""
    at, change = start, torch.inf
    for _ in range(_LONGEST):
        before, at = at, step(at)
        change = float(torch.linalg.vector_norm(at - before) / torch.linalg.vector_norm(at))
        if change <= _SETTLED:
            break
    if not change <= _EXACT:
        raise RuntimeError(f"the reference's iteration still moves by {change:.2g} after {_LONGEST} steps")
    return at
