"""The rivals of a convolutional layer: the same energy as a user writes it, and the equations that torchdeq solves."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

import implicit_bregman as ib
from implicit_bregman.energy.convolution import ConvolutionEnergy
from implicit_bregman.energy.kernels import ConvexKernel
from implicit_bregman.experiments.benchmark.convolution import convolution_splitting
from implicit_bregman.experiments.benchmark.layers import PreparedLayer, layer_value
from implicit_bregman.experiments.benchmark.peers.contenders import BOTH, FORWARD, Found, by_tolerance, our_contenders
from implicit_bregman.experiments.benchmark.peers.splitting import splitting_contenders
from implicit_bregman.experiments.benchmark.peers.torchdeq import Equation, FixedPoint
from implicit_bregman.experiments.benchmark.peers.torchdeq_sweep import torchdeq_contenders
from implicit_bregman.experiments.benchmark.prepared import Value
from implicit_bregman.experiments.benchmark.settings import BenchmarkSettings

OWN = "own energy"
_TOLERANCES = (1e-2, 1e-3, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 1e-7)
# Shares of a cell's cap. What the searches leave goes to the timing.
_TUNING_SHARE, _OWN_SHARE, _SPLITTING_SHARE, _TORCHDEQ_SHARE = 0.04, 0.12, 0.22, 0.38

Prepared = PreparedLayer[ConvolutionEnergy]


def convolution_contenders(prepared: Prepared, settings: BenchmarkSettings, missing: Mapping[str, str]) -> list[Found]:
    """This library, the user's own energy where H is symmetric, the plain loop, torchdeq."""
    cap, levels = settings.seconds_per_cell, settings.accuracies
    found = [our_contenders(prepared, levels, task, _TUNING_SHARE * cap) for task in (BOTH, FORWARD)]
    if prepared.energy.symmetric:
        found.append(own_contenders(prepared, levels, _OWN_SHARE * cap))
    found.append(splitting_contenders(convolution_splitting(prepared), levels, _SPLITTING_SHARE * cap))
    if "torchdeq" not in missing:
        equations = convolution_equations(prepared)
        share = _TORCHDEQ_SHARE * cap
        found.append(torchdeq_contenders(prepared, equations, levels, share, settings.quick))
    return found


class OwnEnergy(ib.Energy):
    """The energy of the same layer, of which `value` alone is known.

    Args:
        energy: f, with H = margin·I + A*A; the parameters are shared.
        event: Shape of z.
    """

    def __init__(self, energy: ConvolutionEnergy, event: tuple[int, ...]) -> None:
        super().__init__(event, convex=True)
        weight = energy.weight_map
        assert isinstance(weight, ConvexKernel)
        self.factor, self.margin = weight.factor, weight.least or 0.0
        self.injection = energy.injection

    def value(self, z: Tensor, x: Tensor) -> Tensor:
        image = functional.conv2d(z, self.factor, padding=self.factor.shape[-1] - 1)
        linear = z * self.injection(x)
        return (0.5 * self.margin * z.square() - linear).sum((1, 2, 3)) + 0.5 * image.square().sum((1, 2, 3))


def own_value(prepared: Prepared, tol: float) -> Value:
    """z by that energy."""
    energy = OwnEnergy(prepared.energy, tuple(prepared.cotangent.shape[1:]))
    return layer_value(prepared, energy, ib.solvers.Auto(tol=tol), ib.adjoints.Implicit(tol=tol))


def own_contenders(prepared: Prepared, accuracies: Sequence[float], cap: float) -> Found:
    """The user's own energy with the loosest tolerance that reaches each accuracy.

    Args:
        prepared: The cell, with a symmetric H.
        accuracies: The levels to be reached.
        cap: Seconds for the search.
    """
    tried = [(f"value alone, tol = {tol:g}", own_value(prepared, tol)) for tol in _TOLERANCES]
    return by_tolerance(prepared, OWN, BOTH, tried, accuracies, time.perf_counter() + cap)


class _Map(FixedPoint):
    """A map of a layer's z, or of its dual, with H as `conv2d`: kernel and c(x) are computed once in a run."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.geometry, self.gamma = prepared, prepared.geometry, prepared.regularization
        self.kernel, self.offset = prepared.energy.weight_map(), prepared.energy.injection(prepared.x)

    def start(self) -> Tensor:
        return torch.zeros_like(self.offset)

    def gradient(self, z: Tensor) -> Tensor:
        """∇f = Hz − c."""
        return functional.conv2d(z, self.kernel, padding=self.kernel.shape[-1] // 2) - self.offset


class ProjectedGradient(_Map):
    """z ↦ Π(z − τ∇f), for γ = 0.

    Args:
        prepared: The cell.
        step: τ.
    """

    def __init__(self, prepared: Prepared, step: float) -> None:
        super().__init__(prepared)
        self.step = step

    def __call__(self, x: Tensor, tau: float = 1.0) -> Tensor:
        return (x - self.step * self.gradient(x)).clamp(*self.geometry.domain)


class Equilibrium(_Map):
    """z ↦ ρ(−∇f/γ)."""

    def __call__(self, x: Tensor, tau: float = 1.0) -> Tensor:
        return self.geometry.activation(-self.gradient(x) / self.gamma)


class MirrorStep(_Map):
    """MM's step y ↦ (y − τ∇f)/(1 + τγ).

    Args:
        prepared: The cell.
        step: τ.
    """

    def __init__(self, prepared: Prepared, step: float) -> None:
        super().__init__(prepared)
        self.step = step

    def value(self, x: Tensor) -> Tensor:
        return self.geometry.activation(x)

    def __call__(self, x: Tensor, tau: float = 1.0) -> Tensor:
        return (x - self.step * self.gradient(self.value(x))) / (1 + self.step * self.gamma)


def convolution_equations(prepared: Prepared) -> list[Equation]:
    """What torchdeq may solve; the steps τ are given to it."""
    operator = prepared.energy.operator(prepared.x.shape[2:])
    with torch.no_grad():
        low, high = operator.bounds()
        step = 2 / (low + high) if operator.symmetric else 1 / operator.step_bound_guess()
    if not prepared.regularization:
        return [Equation("z = Π(z − τ(Hz − c))", lambda: ProjectedGradient(prepared, step))]
    return [
        Equation("z = ρ((c − Hz)/γ)", lambda: Equilibrium(prepared)),
        Equation("MM's step", lambda: MirrorStep(prepared, 1 / high)),
    ]
