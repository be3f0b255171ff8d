"""What deep-equilibrium users ask of the fixed-point map at the equilibrium: its spectral radius, and a penalty on it.

The map is z ↦ ρ(−∇f(z)/γ), for a network z ↦ ρ(N(z, x)), and for γ = 0 z ↦ Π_C(z − ∇f(z)), such as z ↦ relu(N(z, x)).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.energy import Energy
from implicit_bregman.energy.field import differentiable_twice
from implicit_bregman.energy.inputs import Inputs
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.settings import check_count

Map = Callable[[Tensor], Tensor]


def fixed_point_map(energy: Energy, geometry: MirrorMap, regularization: float, x: Inputs) -> Map:
    """The map above, differentiable in z and in what the energy is made of."""

    def step(z: Tensor) -> Tensor:
        gradient = energy.gradient(z, x)
        if regularization:
            return geometry.activation(geometry.project_dual(-gradient / regularization))
        return geometry.project(z - gradient)

    return step


def spectral_radius(
    step: Map, z: Float[Tensor, "*batch *features"], event: int, iterations: int
) -> Float[Tensor, "*batch"]:
    """|λ|_max of the map's Jacobian at z, by the power method: the mean growth over the second half of its steps.

    A pair of complex eigenvalues turns the vector for ever, but its length grows by |λ| in the mean.

    Args:
        step: the map.
        z: where, with `event` dimensions of its own.
        event: the number of dimensions of a state.
        iterations: products with the Jacobian's transpose.

    Raises:
        ValueError: for less than one iteration.
    """
    check_count("iterations", iterations)
    dims = tuple(range(-event, 0))
    with torch.enable_grad():
        leaf = z.detach().clone().requires_grad_()
        image = step(leaf)
    v, growth = torch.randn_like(z), z.new_zeros(z.shape[: z.dim() - event])
    v = v / _norm(v, dims)
    first = iterations // 2
    for count in range(iterations):
        (v,) = torch.autograd.grad(image, leaf, v, retain_graph=True)
        size = _norm(v, dims)
        v = torch.where(size > 0, v / size, v)
        if count >= first:
            growth = growth + size.reshape(growth.shape).log()
    return (growth / (iterations - first)).exp()


def jacobian_penalty(step: Map, z: Float[Tensor, "*batch *features"], event: int, samples: int) -> Float[Tensor, ""]:
    """‖J‖²_F / d, the mean over the batch, by Hutchinson's estimate E‖Jᵀv‖² with Gaussian v; z is taken as constant.

    Args:
        step: the map.
        z: where.
        event: the number of dimensions of a state.
        samples: vectors v.

    Raises:
        ValueError: for less than one sample.
    """
    check_count("samples", samples)
    with torch.enable_grad(), differentiable_twice():
        leaf = z.detach().clone().requires_grad_()
        image = step(leaf)
        total = z.new_zeros(())
        for _ in range(samples):
            (product,) = torch.autograd.grad(image, leaf, torch.randn_like(z), create_graph=True)
            total = total + product.square().mean()
    return total / samples


def _norm(v: Tensor, dims: tuple[int, ...]) -> Tensor:
    return torch.linalg.vector_norm(v, dim=dims, keepdim=True)
