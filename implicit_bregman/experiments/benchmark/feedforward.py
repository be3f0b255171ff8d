"""The feed-forward Bregman layers against bregmanet's, with the same parameters, where both give the same result."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from implicit_bregman.experiments.benchmark.results import FeedForwardRow
from implicit_bregman.experiments.benchmark.timing import interleaved
from implicit_bregman.legendre import geometry as find_geometry
from implicit_bregman.nn import FeedForward

#: This library's name of each geometry that bregmanet has, and bregmanet's name of it.
ACTIVATIONS = {
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "isru": "isru",
    "scaled_tanh": "scaled_tanh",
    "arctan": "atan",
    "sin": "sin",
    "arcsinh": "asinh",
    "softplus": "softplus1",
    "bent": "relu",
}
LAYERS = 4
CLASSES = 10
_SPREAD = 0.3  # standard deviation of the input in dual coordinates: well inside C
_SAME = 5e-4  # largest relative difference of the outputs; bregmanet rounds the constants of scaled_tanh
_INVERSE = 1e-3  # largest error of ρ(ρ⁻¹(z)) − z that counts as an inverse


@dataclass(frozen=True)
class Size:
    """Width and batch of a network."""

    width: int = 128
    batch: int = 64

    @property
    def text(self) -> str:
        """The same in words."""
        return f"{LAYERS} layers of width {self.width}, B = {self.batch}, float32"


def compare_layers(geometry: str, size: Size, repeats: int, budget: float, seed: int = 0) -> FeedForwardRow:
    """Time forward and backward of both networks, if bregmanet's is right.

    Args:
        geometry: A key of `ACTIVATIONS`.
        size: Of the networks.
        repeats: Timed repeats.
        budget: Seconds for all of them.
        seed: Of parameters and input.

    Raises:
        ModuleNotFoundError: Without bregmanet.
    """
    name = ACTIVATIONS[geometry]
    phi = find_geometry(geometry)
    generator = torch.Generator().manual_seed(seed)
    x = phi.activation(_SPREAD * torch.randn(size.batch, size.width, generator=generator))
    with _numpy_1(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        from bregmanet import MLP

        off = _inverse_error(name, x)
        if not off <= _INVERSE:
            reason = (
                f"its inverse is wrong: ρ(ρ⁻¹(z)) is off by {off:.2g}"
                if math.isfinite(off)
                else ("its inverse is wrong: it gives NaN or infinity inside C")
            )
            return FeedForwardRow(geometry, name, size.text, reason=reason)
        theirs = MLP(
            name, version="bregman", hidden_dim=[size.width] * LAYERS, input_dim=size.width, output_dim=CLASSES
        )
        hidden, output = FeedForward([size.width] * (LAYERS + 1), phi), nn.Linear(size.width, CLASSES)
        ours = nn.Sequential(hidden, output)
        with torch.no_grad():
            for mine, other in zip([*hidden, output], [*theirs.lin, theirs.output], strict=True):
                mine.weight.copy_(other.weight)
                mine.bias.copy_(other.bias)
            expected = ours(x)
            difference = float((theirs(x) - expected).norm() / expected.norm())
        if not difference <= _SAME:
            reason = f"its output differs by {difference:.2g}"
            return FeedForwardRow(geometry, name, size.text, difference=difference, reason=reason)
        cotangent = torch.randn(expected.shape, generator=generator)
        runs = [_step(model, x, cotangent) for model in (ours, theirs)]
        for run in runs:
            for _ in range(3):
                run()
        mine_seconds, other_seconds = interleaved(runs, [1e-3, 1e-3], repeats, budget)
    return FeedForwardRow(geometry, name, size.text, mine_seconds, other_seconds, difference)


def _step(model: nn.Module, x: Tensor, cotangent: Tensor) -> Callable[[], object]:
    parameters = [*model.parameters()]

    def run() -> object:
        return torch.autograd.grad((model(x) * cotangent).sum(), parameters)

    return run


def _inverse_error(name: str, z: Tensor) -> float:
    """Largest error of bregmanet's ρ(ρ⁻¹(z)) for points inside C."""
    from bregmanet.utils import activation as theirs

    with contextlib.redirect_stdout(io.StringIO()):
        rho, inverse, _ = theirs.get(name, version="bregman")
    error = float((rho(inverse(z)) - z).abs().max())
    return error if math.isfinite(error) else math.inf


@contextmanager
def _numpy_1() -> Iterator[None]:
    """bregmanet 1.0 says `np.Inf`, which NumPy 2 no longer has: lend it one, so that it is not judged by that."""
    import numpy

    module: Any = numpy
    missing = not hasattr(numpy, "Inf")
    if missing:
        module.Inf = math.inf
    try:
        yield
    finally:
        if missing:
            del module.Inf
