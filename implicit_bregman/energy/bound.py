"""The quadratic energy at a fixed input, as the solvers see it: one matrix H for all samples."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.energy.contract import BoundEnergy, Evaluation, Packed
from implicit_bregman.energy.snapshot import Again
from implicit_bregman.operators import Dense


class BoundAffine(BoundEnergy):
    """f(z) = ½⟨z, Hz⟩ − ⟨c, z⟩ for a batch of offsets c, (B, d), whatever H is.

    Attributes:
        offset: c, (B, d).
    """

    affine = True
    offset: Tensor

    def evaluate(self, z: Float[Tensor, "batch d"]) -> Evaluation:
        with torch.no_grad():
            gradient = self.gradient(z)
            value = 0.5 * torch.linalg.vecdot(z, gradient - self.offset) if self.symmetric else None
        return Evaluation(value, gradient)

    def value(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        return 0.5 * torch.linalg.vecdot(z, self.gradient(z) - self.offset)

    def terms(self, gradient: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """max(|Hz|, |c|): ∇f = Hz − c."""
        with torch.no_grad():
            return torch.maximum((gradient + self.offset).abs_(), self.offset.abs())


class BoundQuadratic(BoundAffine):
    """f(z) = ½ zᵀHz − cᵀz for a batch of offsets c, (B, d), and one shared matrix H = −W.

    Args:
        shared: H, with its gradient, and what has been computed of it.
        offset: c, (B, d).
        ends: the matrix whose spectrum counts, where it is not `shared`: a float64 twin does not compute its own.
    """

    shared: Dense

    def __init__(self, shared: Dense, offset: Tensor, ends: Dense | None = None) -> None:
        self.shared = shared
        self.offset = offset
        self.dtype = offset.dtype
        self.symmetric = shared.symmetric
        self._ends = shared if ends is None else ends

    @property
    def matrix_form(self) -> BoundQuadratic:
        return self

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

    @property
    def stiffness(self) -> Tensor:
        return self.shared.row_sizes

    def force(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """−∇f(z) = c − Hz."""
        return torch.addmm(self.offset, z, self.shared.source.mT, alpha=-1)

    def descent(self, length: float) -> Callable[[Float[Tensor, "batch d"]], Float[Tensor, "batch d"]]:
        """The gradient step z ↦ z − length·∇f(z) = (I − length·H)z + length·c."""
        matrix, offset = -length * self.shared.matrix, length * self.offset
        matrix.diagonal().add_(1.0)
        return lambda z: torch.addmm(offset, z, matrix.mT)

    def gradient(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return torch.addmm(self.offset, z, self.shared.source.mT, beta=-1)

    def leaves(self, z: Float[Tensor, "batch d"]) -> tuple[Tensor, ...]:
        return self.shared.source, self.offset

    @staticmethod
    def pull_back(
        v: Float[Tensor, "batch d"], z: Float[Tensor, "batch d"], needed: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        return v.neg().mT @ z if needed[0] else None, v if needed[1] else None

    def pack(self) -> Packed:
        shared = self.shared
        rebuild = partial(_rebuild, shared.symmetric, shared.least, shared.convex, shared.given)
        return Packed((shared.source, self.offset), (False, True), rebuild)

    def value_at(self, z: Float[Tensor, "batch d"]) -> Callable[[], Float[Tensor, " batch"]]:
        return partial(_value, self.shared.source, self.offset, z)

    def again(self) -> AbstractContextManager[object]:
        return Again((self.shared.source, self.offset))

    def hessian(self, z: Float[Tensor, "batch d"]) -> Dense:
        return self.shared

    def is_strictly_convex(self, curvature: float, strictly: bool) -> bool:
        return self._ends.is_definite(curvature, strictly)

    def double(self) -> BoundQuadratic:
        wide = self.shared.known_semidefinite or self.shared.wide
        return BoundQuadratic(wide, self.offset.detach().double(), self._ends)

    def select(self, index: Int[Tensor, " kept"]) -> BoundQuadratic:
        return BoundQuadratic(self.shared, self.offset[index], self._ends)


def _rebuild(
    symmetric: bool, least: float | None, convex: bool, given: torch.dtype | None, matrix: Tensor, offset: Tensor
) -> BoundQuadratic:
    return BoundQuadratic(Dense(matrix, symmetric, least, convex=convex, given=given), offset)


def _value(matrix: Tensor, offset: Tensor, z: Tensor) -> Float[Tensor, " batch"]:
    """½ zᵀHz − cᵀz. Its derivatives in H and c hold neither, so that it does not matter when it is computed."""
    return torch.linalg.vecdot(z, torch.sub(z @ matrix.mT, offset, alpha=2)) * 0.5
