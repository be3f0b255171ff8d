"""Convolutional layers as cells: the plain splitting in the frequency domain, and the truth by it.

The iteration is that of monDEQ: one c × c inverse per frequency of an image with a border, which z leaves at 0.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

import implicit_bregman as ib
from implicit_bregman.energy.convolution import ConvolutionEnergy
from implicit_bregman.experiments.benchmark.layer_cells import DTYPES, ConvolutionCell
from implicit_bregman.experiments.benchmark.layers import PreparedLayer
from implicit_bregman.experiments.benchmark.peers.splitting import Loop, Setup, Splitting, middle_step
from implicit_bregman.experiments.benchmark.prepared import Gradients
from implicit_bregman.experiments.learning.training import cpu_threads
from implicit_bregman.legendre import MirrorMap

Outcome = TypeVar("Outcome")

TRUTH = "plain Peaceman–Rachford loop in float64, its conditions checked"
_KERNEL = 3
_SETTLED, _LONGEST = 1e-14, 3000  # change of an iterate that is no change any more; iterations
_EXACT = 1e-11  # largest relative residual of a truth


@dataclass(frozen=True, eq=False)
class Layer:
    """The tensors of a pass, in any precision.

    Attributes:
        energy: f.
        geometry: φ.
        regularization: γ.
        x: The images.
    """

    energy: ConvolutionEnergy
    geometry: MirrorMap
    regularization: float
    x: Tensor

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """x, and those of the energy."""
        return (self.x, *self.energy.parameters())

    def double(self) -> Layer:
        """The same numbers in float64."""
        x = self.x.detach().double().requires_grad_()
        return Layer(copy.deepcopy(self.energy).double(), self.geometry, self.regularization, x)

    def splitting_step(self) -> float:
        """About the best α."""
        least, largest = self.energy.operator(self.x.shape[2:]).bounds()
        return middle_step(least, largest, self.regularization * self.geometry.strong_convexity)


class ConvolutionLoop(Loop):
    """The iteration by FFT.

    Args:
        layer: The tensors.
        setup: The settings.
    """

    def __init__(self, layer: Layer, setup: Setup) -> None:
        super().__init__(layer.geometry, layer.regularization, setup)
        self.layer = layer
        # They have a graph, for the gradients.
        self.kernel, self.injected = layer.energy.weight_map(), layer.energy.injection(layer.x)
        self.channels, self.size = self.kernel.shape[0], layer.x.shape[-1]
        self.margin = self.kernel.shape[-1] // 2
        self.around = self.size + self.margin
        with torch.no_grad():
            self.inverse = torch.linalg.inv(torch.eye(self.channels).to(self.kernel) + setup.step * self._symbol())

    @property
    def offset(self) -> Tensor:
        return self.injected.detach()

    def base(self, c: Tensor, adjoint: bool) -> Tensor:
        return self._filtered(self.setup.step * self._bordered(c), adjoint)

    def resolvent(self, base: Tensor, u: Tensor, adjoint: bool) -> Tensor:
        return base + self._filtered(u, adjoint)

    def within(self, z: Tensor) -> Tensor:
        return self._bordered(self.shown(z))

    def shown(self, z: Tensor) -> Tensor:
        return z[..., : self.size, : self.size]

    def product(self, z: Tensor) -> Tensor:
        """Hz."""
        return functional.conv2d(z, self.kernel, padding=self.margin)

    def gradients(self, z: Tensor, v: Tensor) -> Gradients:
        field = self.product(z) - self.injected
        return torch.autograd.grad(-(field * v).sum(), self.layer.parameters, retain_graph=True)

    def _symbol(self) -> Tensor:
        """H at the frequencies of half of the plane, `(frequencies, c, c)`."""
        spectrum = torch.fft.fft2(self.kernel, s=(self.around, self.around)).permute(2, 3, 0, 1)
        shift = torch.fft.fftfreq(self.around, dtype=self.kernel.dtype) * 2 * torch.pi * self.margin
        centred = spectrum * torch.exp(1j * (shift[:, None] + shift))[..., None, None]
        return centred.conj()[:, : self.around // 2 + 1].reshape(-1, self.channels, self.channels)

    def _filtered(self, v: Tensor, adjoint: bool) -> Tensor:
        matrix = self.inverse.conj() if adjoint else self.inverse.mT
        waves = torch.fft.rfft2(v).flatten(2).permute(2, 0, 1) @ matrix
        waves = waves.permute(1, 2, 0).reshape(len(v), self.channels, self.around, self.around // 2 + 1)
        return torch.fft.irfft2(waves, s=(self.around, self.around))

    def _bordered(self, v: Tensor) -> Tensor:
        return functional.pad(v, (0, self.margin, 0, self.margin))


def prepare_convolution(cell: ConvolutionCell, seed: int = 0) -> PreparedLayer[ConvolutionEnergy]:
    """Draw a layer and its images, round them and find their truth.

    Raises:
        RuntimeError: If the truth's conditions do not hold.
    """
    layer, cotangent = draw_layer(cell, seed)
    with cpu_threads(1):  # not timed, and on a busy machine several threads wait for one another
        value, gradients = _truth(layer.double(), cotangent.double())
    return PreparedLayer(
        cell,
        layer.parameters,
        cotangent,
        value,
        gradients,
        TRUTH,
        0.0,
        layer.energy,
        layer.geometry,
        layer.regularization,
    )


def convolution_splitting(prepared: PreparedLayer[ConvolutionEnergy]) -> Splitting:
    """The plain loop for a cell."""
    layer = Layer(prepared.energy, prepared.geometry, prepared.regularization, prepared.x)
    return Splitting(
        prepared, layer.regularization, layer.splitting_step(), lambda setup: ConvolutionLoop(layer, setup)
    )


def draw_layer(cell: ConvolutionCell, seed: int = 0) -> tuple[Layer, Tensor]:
    """A layer whose kernels are drawn as monDEQ draws them, times the scale, its images, and G."""
    dtype = DTYPES[cell.dtype]
    generator = torch.Generator().manual_seed(seed)
    made = ib.BregmanDEQ2d(
        cell.channels,
        cell.channels,
        _KERNEL,
        cell.geometry,
        cell.weight,
        cell.regularization,
        margin=cell.margin,
        dtype=torch.float64,
    )
    with torch.no_grad():
        for parameter in made.energy.weight_map.parameters():
            reach = cell.scale * parameter[0].numel() ** -0.5
            parameter.copy_(reach * (2 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 1))
        weight = made.energy.injection.weight
        weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * weight[0].numel() ** -0.5)
    generator.manual_seed(seed + 1)
    shape = 2, cell.batch, cell.channels, cell.size, cell.size
    x, cotangent = torch.randn(shape, generator=generator, dtype=torch.float64)
    images = (2 * x).to(dtype).requires_grad_()
    layer = Layer(made.energy.to(dtype), made.geometry, cell.regularization, images)
    return layer, cotangent.to(dtype)


def _truth(layer: Layer, cotangent: Tensor) -> tuple[Tensor, Gradients]:
    """z and dL/dθ by the plain loop; that they solve their equations is checked by convolutions."""
    loop = ConvolutionLoop(layer, Setup(layer.splitting_step(), newton=3))
    with torch.no_grad():
        z, dual = _limit((z, (z, dual)) for z, dual in loop.forward())
        v = _limit((v, v) for v in loop.backward(dual, cotangent))
        dual = loop.shown(dual)
        force = loop.offset - loop.product(z)
    gamma, slope = layer.regularization, loop.slope(dual)
    at = z.clone().requires_grad_()
    (adjoint,) = torch.autograd.grad(loop.product(at), at, v)
    # γ > 0: z = ρ(−∇f/γ), and the adjoint equation is scaled by ρ'. γ = 0: z = Π(z − ∇f), and v = 0 at a bound.
    own = loop.geometry.activation(force / gamma) if gamma else (z + force).clamp(*loop.geometry.domain)
    missed = slope * (adjoint - cotangent) + (gamma * v if gamma else (1 - slope) * v)
    for what, residual, size in (("point", own - z, z), ("adjoint", missed, cotangent)):
        worst = float(residual.abs().max() / (1 + size.abs().max()))
        if not worst <= _EXACT:
            raise RuntimeError(f"the reference's {what} has the relative residual {worst:.2g}, more than {_EXACT:g}")
    return z, loop.gradients(z, v)


def _limit(iterates: Iterator[tuple[Tensor, Outcome]]) -> Outcome:
    """The iterate that no longer changes, and what comes with it."""
    last, found = next(iterates)
    for _ in range(_LONGEST):
        before, (last, found) = last, next(iterates)
        if float(torch.linalg.vector_norm(last - before)) <= _SETTLED * float(torch.linalg.vector_norm(last)):
            break
    return found
