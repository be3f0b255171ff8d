"""The main paths through the library: a layer, forward and backward, with all of its settings at their defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import implicit_bregman as ib

Run = Callable[[], object]


@dataclass(frozen=True)
class Path:
    """One of them.

    Attributes:
        name: what it is called in tables.
        text: what is solved, with its sizes.
        make: takes a device, and returns a run of forward and backward in float32 on it.
    """

    name: str
    text: str
    make: Callable[[torch.device], Run]


def main_paths() -> list[Path]:
    """The layers as they come, small enough for a CPU."""
    return [
        Path("box", "BregmanDEQ(64, 128), tanh, γ = 0, 64 samples", _dense(128, 64)),
        Path("monotone", "the same, not symmetric, softplus", _dense(128, 64, geometry="softplus", weight="monotone")),
        Path("smooth", "the same as box with sigmoid, γ = 1", _dense(128, 64, geometry="sigmoid", regularization=1.0)),
        Path("simplex", "the same as box with simplex, γ = 1", _dense(128, 64, geometry="simplex", regularization=1.0)),
        Path("inference", "box under `no_grad` and `frozen()`, the factorization kept", _inference(128, 64)),
        Path("images", "BregmanDEQ2d(3, 8), softplus, γ = 1, 8 images of 16 × 16", _images(8, 8, 16)),
        Path("graph", "BregmanGraphDEQ(16, 8), tanh, γ = 0.1, a grid of 20 × 20 nodes", _graph(16, 8, 20)),
        Path("projection", "BregmanProjection(64, 8), tanh, 64 samples", _projection(64, 8, 64)),
        Path("transport", "entropic plans of 16 × 16 costs, ε = 0.1, 8 samples", _transport(16, 8)),
    ]


def large_paths() -> list[Path]:
    """Layers of a size for which one would take a GPU."""
    return [
        Path("box, large", "BregmanDEQ(64, 1024), tanh, γ = 0, 512 samples", _dense(1024, 512)),
        Path(
            "smooth, large",
            "the same with sigmoid, γ = 1",
            _dense(1024, 512, geometry="sigmoid", regularization=1.0),
        ),
        Path("images, large", "BregmanDEQ2d(3, 32), softplus, γ = 1, 16 images of 32 × 32", _images(32, 16, 32)),
        Path("graph, large", "BregmanGraphDEQ(16, 16), tanh, γ = 0.1, a grid of 50 × 50 nodes", _graph(16, 16, 50)),
        Path("transport, large", "entropic plans of 128 × 128 costs, ε = 0.1, 16 samples", _transport(128, 16)),
    ]


def _dense(width: int, samples: int, **settings: Any) -> Callable[[torch.device], Run]:
    def make(device: torch.device) -> Run:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer, x = ib.BregmanDEQ(64, width, **settings), 2 * torch.randn(samples, 64)
        return _both(layer.to(device), x.to(device))

    return make


def _inference(width: int, samples: int) -> Callable[[torch.device], Run]:
    def make(device: torch.device) -> Run:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer, x = ib.BregmanDEQ(64, width).to(device), (2 * torch.randn(samples, 64)).to(device)

        def run() -> object:
            with torch.no_grad():
                return layer(x)

        kept = layer.frozen()
        kept.__enter__()
        run()
        return run

    return make


def _images(channels: int, samples: int, size: int) -> Callable[[torch.device], Run]:
    def make(device: torch.device) -> Run:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = ib.BregmanDEQ2d(3, channels, geometry="softplus", regularization=1.0)
            x = torch.randn(samples, 3, size, size)
        return _both(layer.to(device), x.to(device))

    return make


def _graph(inputs: int, width: int, side: int) -> Callable[[torch.device], Run]:
    def make(device: torch.device) -> Run:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer, x = ib.BregmanGraphDEQ(inputs, width, regularization=0.1), torch.randn(side * side, inputs)
        return _both(layer.to(device), x.to(device), _grid(side).to(device))

    return make


def _projection(width: int, equations: int, samples: int) -> Callable[[torch.device], Run]:
    def make(device: torch.device) -> Run:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer, x = ib.BregmanProjection(width, equations), 2 * torch.rand(samples, width) - 1
        return _both(layer.to(device), x.to(device))

    return make


def _transport(points: int, samples: int) -> Callable[[torch.device], Run]:
    def make(device: torch.device) -> Run:
        drawn = torch.Generator().manual_seed(0)
        places = torch.rand(samples, 2, points, generator=drawn)
        costs = (places[:, 0, :, None] - places[:, 1, None, :]).square().flatten(1).to(device).requires_grad_()
        masses = torch.full((2 * points,), 1 / points, device=device)
        layer = ib.BregmanProjection.from_matrix(ib.operators.Marginals(points, points), masses, "exp")

        def run() -> object:
            plan = layer.solve(initial_dual=-costs / 0.1).value
            return torch.autograd.grad((plan * costs).sum(), costs)

        return run

    return make


def _both(layer: nn.Module, *inputs: Tensor) -> Run:
    x = inputs[0].requires_grad_()

    def run() -> object:
        return torch.autograd.grad(layer(x, *inputs[1:]).square().sum(), (x, *layer.parameters()))

    return run


def _grid(side: int) -> Tensor:
    """The adjacency matrix of side × side nodes, each connected with its neighbours; sparse."""
    number = torch.arange(side * side).reshape(side, side)
    right = torch.stack([number[:, :-1].flatten(), number[:, 1:].flatten()])
    down = torch.stack([number[:-1].flatten(), number[1:].flatten()])
    edges = torch.cat([right, down, right.flip(0), down.flip(0)], 1)
    return torch.sparse_coo_tensor(
        edges, torch.ones(edges.shape[1]), (side * side,) * 2, check_invariants=True
    ).coalesce()
