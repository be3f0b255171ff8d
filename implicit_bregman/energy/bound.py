"""The quadratic energy at a fixed input, as the solvers see it: one W, and what is computed of it, for all samples."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.energy.base import BoundEnergy, Evaluation, Hessian
from implicit_bregman.energy.snapshot import Again
from implicit_bregman.linalg.shared import SharedMatrix


class BoundQuadratic(BoundEnergy):
    """f(z) = −½ zᵀWz − cᵀz for a batch of offsets c, (B, d), and one shared W.

    Args:
        weight: W, with its gradient.
        offset: c, (B, d).
        shared: −W without gradient, and what has been computed of it.
        ends: the matrix whose spectrum counts, where it is not `shared`: a float64 twin does not compute its own.
    """

    affine = True
    shared: SharedMatrix

    def __init__(self, weight: Tensor, offset: Tensor, shared: SharedMatrix, ends: SharedMatrix | None = None) -> None:
        self.weight = weight
        self.offset = offset
        self.dtype = offset.dtype
        self.shared = shared
        self.symmetric = shared.symmetric
        self._ends = shared if ends is None else ends

    @property
    def curvature(self) -> Tensor:
        return self._ends.spectrum.curvature

    @property
    def lowest(self) -> Tensor:
        return self._ends.spectrum.lowest

    @property
    def is_convex(self) -> bool:
        return self.shared.semidefinite is not None

    @property
    def gradient_step(self) -> float:
        """A length at which a gradient step neither overshoots nor creeps, about 1/λ_max: for guesses."""
        return self._ends.gradient_step

    def evaluate(self, z: Float[Tensor, "batch d"]) -> Evaluation:
        with torch.no_grad():
            gradient = self.gradient(z)
            value = 0.5 * torch.linalg.vecdot(z, gradient - self.offset) if self.symmetric else None
        return Evaluation(value, gradient)

    def terms(self, gradient: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """max(|Hz|, |c|): ∇f = Hz − c."""
        with torch.no_grad():
            return torch.maximum((gradient + self.offset).abs_(), self.offset.abs())

    @property
    def stiffness(self) -> Tensor:
        return self.shared.row_sizes

    def force(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """−∇f(z) = Wz + c."""
        return torch.addmm(self.offset, z, self.weight.mT)

    def descent(self, length: float) -> Callable[[Float[Tensor, "batch d"]], Float[Tensor, "batch d"]]:
        """The gradient step z ↦ z − length·∇f(z) = (I + length·W)z + length·c."""
        matrix, offset = length * self.weight, length * self.offset
        matrix.diagonal().add_(1.0)
        return lambda z: torch.addmm(offset, z, matrix.mT)

    def gradient(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return torch.addmm(self.offset, z, self.weight.mT, beta=-1, alpha=-1)

    def leaves(self, z: Float[Tensor, "batch d"]) -> tuple[Tensor, ...]:
        return self.weight, self.offset

    @staticmethod
    def pull_back(
        v: Float[Tensor, "batch d"], z: Float[Tensor, "batch d"], needed: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        return v.mT @ z if needed[0] else None, v if needed[1] else None

    def value_at(self, z: Float[Tensor, "batch d"]) -> Callable[[], Float[Tensor, " batch"]]:
        return partial(_value, self.weight, self.offset, z)

    def again(self) -> AbstractContextManager[object]:
        return Again((self.weight, self.offset))

    def hessian(self, z: Float[Tensor, "batch d"]) -> Hessian:
        return SharedHessian(self.shared)

    def is_strictly_convex(self, curvature: float, strictly: bool) -> bool:
        return self._ends.is_definite(curvature, strictly)

    def double(self) -> BoundQuadratic:
        wide = self.shared.known_semidefinite or self.shared.wide
        return BoundQuadratic(wide.weight, self.offset.detach().double(), wide, self._ends)

    def select(self, index: Int[Tensor, " kept"]) -> BoundQuadratic:
        return BoundQuadratic(self.weight, self.offset[index], self.shared, self._ends)


class SharedHessian(Hessian):
    """−W, the same for all samples."""

    shared: SharedMatrix

    def __init__(self, shared: SharedMatrix) -> None:
        self.shared = shared
        self.symmetric = shared.symmetric

    def product(self, v: Tensor, transpose: bool = False) -> Tensor:
        return self.shared.product(v, transpose)

    def rounding(self, v: Tensor) -> Tensor:
        return self.shared.rounding(v)

    def pack(self) -> tuple[tuple[Tensor, ...], Callable[..., Hessian]]:
        shared = self.shared
        inverse, damped, step = shared.known_inverse, shared.damped, shared.known_step
        tensors = [shared.weight, *([] if inverse is None else [inverse]), *([] if damped is None else [damped[1]])]
        shift = None if damped is None else damped[0]
        convex = shared.known_semidefinite is not None
        return tuple(tensors), partial(
            _rebuild, shared.symmetric, shared.least, inverse is not None, shift, step, convex
        )

    def select(self, index: Tensor) -> Hessian:
        return self


def _value(weight: Tensor, offset: Tensor, z: Tensor) -> Float[Tensor, " batch"]:
    """−½ zᵀWz − cᵀz. Its derivatives in W and c hold neither, so that it does not matter when it is computed."""
    return -torch.linalg.vecdot(z, torch.add(offset, z @ weight.mT, alpha=0.5))


def _rebuild(
    symmetric: bool,
    least: float | None,
    has_inverse: bool,
    shift: float | None,
    step: float | None,
    convex: bool,
    weight: Tensor,
    *known: Tensor,
) -> SharedHessian:
    inverse = known[0] if has_inverse else None
    damped = None if shift is None else (shift, known[-1])
    return SharedHessian(SharedMatrix(weight, symmetric, least, inverse, damped, step, convex))
