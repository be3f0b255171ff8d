"""How far a method's gradient is from the truth: an independent float64 oracle at the same parameters."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from implicit_bregman.experiments.learning.model import Classifier
from implicit_bregman.experiments.reference.oracle import reference_gradient, reference_solution
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.nn import BregmanDEQ


@dataclass(frozen=True)
class ReferenceGradient:
    """The exact gradient of the loss in the parameters of the implicit layer.

    Attributes:
        flat: The gradient, all parameters of the layer concatenated, float64, on the CPU.
        kept: Samples whose critical point the oracle knows; the loss is the mean over these.
    """

    flat: Float[Tensor, " parameters"]
    kept: Bool[Tensor, " batch"]


@dataclass(frozen=True)
class GradientCheck:
    """A gradient compared with the exact one.

    Attributes:
        error: ‖g − g*‖₂ / ‖g*‖₂.
        cosine: Cosine of the angle between g and g*.
    """

    error: float
    cosine: float


def reference_gradients(
    model: Classifier, x: Float[Tensor, "batch features"], y: Int[Tensor, " batch"]
) -> ReferenceGradient | None:
    """Exact gradient of the mean cross entropy in the layer's parameters, in float64.

    Of a dense layer the critical point and its adjoint come from an oracle that shares no solver with the library, by
    the active set; the read-out and the parametrization of the energy are differentiated by autograd. For other layers,
    whose matrices would be too large, it is the library's own implicit gradient, at the tolerances it has in float64.
    The model's solver and adjoint play no part.

    Args:
        model: The model; it is not changed.
        x: Inputs.
        y: Labels.

    Returns:
        The gradient, or None where the oracle has none: for W neither symmetric nor monotone, at a singular
        adjoint system, or if it knows the critical point of no sample.
    """
    exact = deepcopy(model).to("cpu", torch.float64)
    inputs, labels = x.detach().to("cpu", torch.float64), y.detach().cpu()
    if not isinstance(exact.layer, BregmanDEQ):
        return _by_the_library(exact, inputs, labels)
    energy, geometry, gamma = exact.layer.energy, exact.layer.geometry, exact.layer.regularization
    weight, offset = energy.weight.detach(), energy.linear(inputs).detach()
    if energy.symmetric:
        weight = 0.5 * (weight + weight.T)  # P Pᵀ is symmetric only up to rounding
    if not energy.symmetric and not _monotone(weight):
        return None
    kept, value, active = _solutions(weight, offset, geometry, gamma)
    if not bool(kept.any()):
        return None
    value.requires_grad_()
    loss = nn.functional.cross_entropy(exact.head(value), labels[kept])
    (cotangent,) = torch.autograd.grad(loss, value)
    value = value.detach()
    try:
        adjoint = reference_gradient(weight, offset[kept], value, active, geometry, gamma, cotangent)
    except RuntimeError:  # a singular system: there is no gradient
        return None
    # dL/dc = v and dL/dW = v zᵀ are the derivatives of vᵀ(Wz + c) with v and z held fixed.
    carrier = (adjoint * (value @ energy.weight.mT + energy.linear(inputs[kept]))).sum()
    return ReferenceGradient(_flat(carrier, exact.layer.parameters()), kept)


def _by_the_library(exact: Classifier, x: Tensor, y: Tensor) -> ReferenceGradient | None:
    exact.layer.solver, exact.layer.adjoint = "auto", "implicit"
    kept = exact.layer.solve(exact.shaped(x)).converged
    if not bool(kept.any()):
        return None
    loss = nn.functional.cross_entropy(exact(x[kept]), y[kept])
    return ReferenceGradient(_flat(loss, exact.layer.parameters()), kept)


def compare_gradient(
    model: Classifier,
    x: Float[Tensor, "batch features"],
    y: Int[Tensor, " batch"],
    truth: ReferenceGradient | None,
) -> GradientCheck | None:
    """Error and cosine of the gradient that the model's own solver and adjoint give.

    Args:
        model: The model, at the parameters for which `truth` was computed.
        x: The inputs given to `reference_gradients`.
        y: The labels given to `reference_gradients`.
        truth: Its result.

    Returns:
        The comparison, or None where there is no reference.
    """
    if truth is None:
        return None
    kept = truth.kept.to(x.device)
    loss = nn.functional.cross_entropy(model(x[kept]), y[kept])
    return gradient_check(_flat(loss, model.layer.parameters()), truth.flat)


def gradient_check(found: Float[Tensor, " n"], exact: Float[Tensor, " n"]) -> GradientCheck:
    """Relative error and cosine of one vector against another, in float64."""
    found, exact = found.double(), exact.double()
    tiny = torch.finfo(torch.float64).tiny
    size = exact.norm().clamp_min(tiny)
    return GradientCheck(
        error=float((found - exact).norm() / size),
        cosine=float(found @ exact / (found.norm().clamp_min(tiny) * size)),
    )


def _monotone(weight: Tensor) -> bool:
    return float(torch.linalg.eigvalsh(0.5 * (weight + weight.T)).max()) < 0


def _solutions(weight: Tensor, offset: Tensor, geometry: MirrorMap, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which samples the oracle can solve, and their solutions and active sets.

    It vouches for a batch or refuses it; where it refuses, each sample is tried by itself, so that one with a
    multiplier too close to 0 does not cost the others.
    """
    try:
        found = [reference_solution(weight, offset, geometry, gamma)]
        kept = found[0].reached
    except RuntimeError:
        found, reached = [], []
        for sample in offset.split(1):
            try:
                found.append(reference_solution(weight, sample, geometry, gamma))
                reached.append(found[-1].reached)
            except RuntimeError:
                reached.append(torch.zeros(1, dtype=torch.bool))
        kept = torch.cat(reached)
    value = torch.cat([part.value[part.reached] for part in found] or [offset[:0]])
    active = torch.cat([part.active[part.reached] for part in found] or [offset[:0] > 0])
    return kept, value, active


def _flat(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    wanted = list(parameters)
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, gradients, strict=True)]
    return torch.cat([gradient.detach().reshape(-1) for gradient in filled]).double().cpu()
