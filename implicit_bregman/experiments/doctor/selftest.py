"""Small layers, forward and backward, against loops that share nothing with the library.

A loop of the textbook's finds each point in float64 on the CPU, and its derivative along a direction is a central
difference of two more of its points.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import implicit_bregman as ib

SAMPLES, WIDTH = 4, 6
STEPS = 2000
DIRECTIONS = 4
# Of the central differences. Their error is about 1e-9.
DISTANCE = 1e-5
PRECISIONS = (torch.float64, torch.float32)
# How far values and derivatives may be off, relative to 1 + their size: the solvers' tolerance, 1e-5 in float32.
LIMITS = {torch.float64: 1e-6, torch.float32: 1e-3}

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Check:
    """One layer on one device in one precision.

    Attributes:
        layer: what it is.
        device: where it ran.
        precision: "float64" or "float32".
        value: the largest error of z, relative to 1 + its size; NaN if it raised.
        gradient: the same of the derivatives along the directions.
        limit: what is allowed of both.
        seconds: forward and backward, the first call's overhead included.
        complaint: the error or the warnings that it raised, in one line; "" if there were none.
    """

    layer: str
    device: str
    precision: str
    value: float
    gradient: float
    limit: float
    seconds: float
    complaint: str = ""

    @property
    def passed(self) -> bool:
        """Whether both errors are within the limit, and nothing was raised."""
        return self.value <= self.limit and self.gradient <= self.limit and not self.complaint


@dataclass(frozen=True)
class Layer:
    """A layer as a function of tensors, and the loop that it is compared with.

    Attributes:
        name: what it is.
        library: z of the tensors, by the library.
        loop: the same, by the loop.
        tensors: what both are given, float64.
        directions: what is added to the tensors, for each direction.
    """

    name: str
    library: Function
    loop: Function
    tensors: Tensors
    directions: tuple[Tensors, ...]


def run_checks(devices: list[str]) -> Iterator[Check]:
    """Check every layer on every device in every precision.

    Args:
        devices: PyTorch's names of them.
    """
    for layer in make_layers():
        truth = layer.loop(*layer.tensors)
        slopes = torch.stack([_difference(layer, direction) for direction in layer.directions])
        for device in devices:
            for precision in PRECISIONS:
                yield _check(layer, device, precision, truth, slopes)


def make_layers() -> list[Layer]:
    """A bound problem, a smooth equilibrium, one on the simplex, and a transport plan."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    factor = normal(WIDTH, WIDTH)
    hessian, offset = (
        0.5 * torch.eye(WIDTH, dtype=torch.float64) + factor @ factor.mT / WIDTH,
        2 * normal(SAMPLES, WIDTH),
    )

    def quadratic(name: str, geometry: str, gamma: float, loop: Function) -> Layer:
        def library(hessian: Tensor, offset: Tensor) -> Tensor:
            energy = ib.QuadraticEnergy.from_matrices(-hessian)
            return ib.find_critical_point(energy, geometry, offset, regularization=gamma).value

        # (W is symmetric, and its derivative is asked for along symmetric directions)
        ways = tuple((_symmetric(normal(WIDTH, WIDTH)), normal(SAMPLES, WIDTH)) for _ in range(DIRECTIONS))
        return Layer(name, library, loop, (hessian, offset), ways)

    costs, masses = normal(1, 9).abs(), torch.softmax(normal(2, 3), -1)
    transport = tuple((normal(1, 9), _without_sum(normal(2, 3))) for _ in range(DIRECTIONS))
    return [
        quadratic("quadratic program on a box", "tanh", 0.0, projected_gradient),
        quadratic("smooth equilibrium (sigmoid)", "sigmoid", 1.0, mirror_descent(torch.sigmoid)),
        quadratic("equilibrium on the simplex", "simplex", 1.0, mirror_descent(lambda y: torch.softmax(y, -1))),
        Layer("optimal transport", plan, sinkhorn, (costs, masses), transport),
    ]


# The loops ------------------------------------------------------------------------------------------------------------


def projected_gradient(hessian: Tensor, offset: Tensor) -> Tensor:
    """The minimiser of ½zᵀHz − cᵀz on [−1, 1]^d, by projected gradients."""
    step = 1 / torch.linalg.matrix_norm(hessian, 2)
    z = torch.zeros_like(offset)
    for _ in range(STEPS):
        z = (z - step * (z @ hessian - offset)).clamp(-1, 1)
    return z


def mirror_descent(activation: Callable[[Tensor], Tensor]) -> Function:
    """The solution of z = ρ(c − Hz), by mirror descent."""

    def loop(hessian: Tensor, offset: Tensor) -> Tensor:
        step = 1 / torch.linalg.matrix_norm(hessian, 2)
        y = torch.zeros_like(offset)
        for _ in range(STEPS):
            y = (y - step * (activation(y) @ hessian - offset)) / (1 + step)
        return activation(y)

    return loop


def sinkhorn(costs: Tensor, masses: Tensor) -> Tensor:
    """The entropic transport plan of 3 × 3 costs, by Sinkhorn's iterations."""
    kernel = torch.exp(-costs.reshape(3, 3))
    left, right = masses
    v = torch.ones_like(right)
    for _ in range(STEPS):
        u = left / (kernel @ v)
        v = right / (kernel.mT @ u)
    return (u[:, None] * kernel * v).reshape(1, 9)


# The library ----------------------------------------------------------------------------------------------------------


def plan(costs: Tensor, masses: Tensor) -> Tensor:
    """The same plan, by the projection layer."""
    project = ib.BregmanProjection.from_matrix(ib.operators.Marginals(3, 3), masses.reshape(1, 6), "exp")
    return project.solve(initial_dual=-costs).value


def _check(layer: Layer, device: str, precision: torch.dtype, truth: Tensor, slopes: Tensor) -> Check:
    start = time.perf_counter()
    value = gradient = float("nan")
    complaint = ""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            z, derivatives = _forward_and_backward(layer, device, precision)
        value, gradient = _error(z, truth), _error(derivatives, slopes)
        complaint = "; ".join(sorted({_in_a_line(warning.message) for warning in caught}))
    # (whatever goes wrong on a machine is what this is to tell, and the other checks go on)
    except Exception as error:
        complaint = f"{type(error).__name__}: {_in_a_line(error)}"
    name = str(precision).removeprefix("torch.")
    seconds = time.perf_counter() - start
    return Check(layer.name, device, name, value, gradient, LIMITS[precision], seconds, complaint)


def _forward_and_backward(layer: Layer, device: str, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """z, and the derivatives of `_loss` along the directions, float64 on the CPU."""
    tensors = [tensor.to(device, precision, copy=True).requires_grad_() for tensor in layer.tensors]
    z = layer.library(*tensors)
    found = [part.double().cpu() for part in torch.autograd.grad(_loss(z), tensors)]
    along = [sum((f * d).sum() for f, d in zip(found, way, strict=True)) for way in layer.directions]
    return z.detach().double().cpu(), torch.stack([torch.as_tensor(each) for each in along])


def _difference(layer: Layer, direction: Tensors) -> Tensor:
    """The derivative of `_loss` of the loop along a direction."""
    ends = [
        _loss(layer.loop(*(t + sign * DISTANCE * d for t, d in zip(layer.tensors, direction, strict=True))))
        for sign in (1, -1)
    ]
    return (ends[0] - ends[1]) / (2 * DISTANCE)


def _loss(z: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, z.numel(), dtype=z.dtype, device=z.device).reshape(z.shape)
    return (weights * z + z.square() / 2).sum()


def _error(found: Tensor, truth: Tensor) -> float:
    return float(((found - truth).abs() / (1 + truth.abs())).max())


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def _without_sum(masses: Tensor) -> Tensor:
    """Changes of masses after which both sides still have the same total, small against the masses themselves."""
    return 0.1 * (masses - masses.mean(-1, keepdim=True))


def _in_a_line(text: object) -> str:
    return " ".join(str(text).split())
