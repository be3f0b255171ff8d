"""The quadratic energy at a fixed input, as the solvers see it; with one matrix H for all samples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.energy.contract import BoundEnergy, Evaluation, Packed
from implicit_bregman.energy.snapshot import Again
from implicit_bregman.operators import Dense, LinearOperator, Rebuild
from implicit_bregman.operators.factor import Factor


class BoundAffine(BoundEnergy):
    """f(z) = ½⟨z, Hz⟩ − ⟨c, z⟩ for a batch of offsets c, (B, d), whatever H is.

    Attributes:
        operator: H, with its gradient.
        offset: c, (B, d).
    """

    affine = True

    def __init__(self, operator: LinearOperator, offset: Tensor) -> None:
        self.operator = operator
        self.offset = offset
        self.dtype = offset.dtype
        self.symmetric = operator.symmetric
        self.costs = operator.costs

    def evaluate(self, z: Float[Tensor, "batch d"]) -> Evaluation:
        with torch.no_grad():
            gradient = self.gradient(z)
            value = 0.5 * torch.linalg.vecdot(z, gradient - self.offset) if self.symmetric else None
        return Evaluation(value, gradient)

    def gradient(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return self.operator.add_product(self.offset, z, beta=-1.0)

    def value(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        return 0.5 * torch.linalg.vecdot(z, self.gradient(z) - self.offset)

    def terms(self, gradient: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """max(|Hz|, |c|): ∇f = Hz − c."""
        with torch.no_grad():
            return torch.maximum((gradient + self.offset).abs_(), self.offset.abs())

    def value_with(self, z: Float[Tensor, "batch d"], gradient: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        return 0.5 * torch.linalg.vecdot(z, gradient - self.offset)

    @property
    def stiffness(self) -> Tensor | None:
        return self.operator.row_sizes()

    def hessian(self, z: Float[Tensor, "batch d"]) -> LinearOperator:
        return self.operator

    def pack(self) -> Packed:
        tensors, rebuild = self.operator.pack()
        rows = None if self.operator.batch is not None else (*(False for _ in tensors), True)
        return Packed((*tensors, self.offset), rows, partial(_rebuild, self.remake(), rebuild))

    @abstractmethod
    def double(self) -> BoundAffine:
        """The same energy in float64."""

    @abstractmethod
    def select(self, index: Int[Tensor, " kept"]) -> BoundAffine:
        """The same energy for some of the samples."""

    @abstractmethod
    def remake(self) -> Callable[[LinearOperator, Tensor], BoundEnergy]:
        """What makes the same energy of H and c, and holds no tensors that have a graph."""

    def again(self) -> AbstractContextManager[object]:
        return Again((*self.operator.pack()[0], self.offset))


class BoundQuadratic(BoundAffine):
    """f(z) = ½ zᵀHz − cᵀz for a batch of offsets c, (B, d), and one shared matrix H = −W.

    Args:
        operator: H, with its gradient, and what has been computed of it.
        offset: c, (B, d).
        ends: what is known of the matrix whose spectrum counts, where it is not this one: a float64 twin does not
            compute its own.
    """

    operator: Dense

    def __init__(self, operator: Dense, offset: Tensor, ends: Factor | None = None) -> None:
        super().__init__(operator, offset)
        self._ends = operator.factor if ends is None else ends

    @property
    def factored(self) -> BoundQuadratic:
        return self

    @property
    def curvature(self) -> Tensor:
        return self._ends.spectrum.curvature

    @property
    def lowest(self) -> Tensor:
        return self._ends.spectrum.lowest

    @property
    def is_convex(self) -> bool:
        return self.operator.factor.semidefinite is not None

    @property
    def gradient_step(self) -> float:
        """A length at which a gradient step neither overshoots nor creeps, about 1/λ_max: for guesses."""
        return self._ends.gradient_step

    def force(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """−∇f(z) = c − Hz."""
        return torch.addmm(self.offset, z, self.operator.source.mT, alpha=-1)

    def gradient(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        # (as `BoundAffine` has it, on the shortest way)
        return torch.addmm(self.offset, z, self.operator.source.mT, beta=-1)

    def descent(self, length: float) -> Callable[[Float[Tensor, "batch d"]], Float[Tensor, "batch d"]]:
        """The gradient step z ↦ z − length·∇f(z) = (I − length·H)z + length·c."""
        matrix, offset = -length * self.operator.matrix, length * self.offset
        matrix.diagonal().add_(1.0)
        return lambda z: torch.addmm(offset, z, matrix.mT)

    def leaves(self, z: Float[Tensor, "batch d"]) -> tuple[Tensor, ...]:
        return self.operator.source, self.offset

    @staticmethod
    def pull_back(
        v: Float[Tensor, "batch d"], z: Float[Tensor, "batch d"], needed: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        return v.neg().mT @ z if needed[0] else None, v if needed[1] else None

    def remake(self) -> Callable[..., BoundQuadratic]:
        return BoundQuadratic

    def value_at(self, z: Float[Tensor, "batch d"]) -> Callable[[], Float[Tensor, " batch"]]:
        return partial(_value, self.operator.source, self.offset, z)

    def is_strictly_convex(self, curvature: float, strictly: bool) -> bool:
        return self._ends.is_definite(curvature, strictly)

    def double(self) -> BoundQuadratic:
        known = self.operator.factor.known_semidefinite
        wide = self.operator.wide if known is None else Dense(known.matrix, factor=known)
        return BoundQuadratic(wide, self.offset.detach().double(), self._ends)

    def select(self, index: Int[Tensor, " kept"]) -> BoundQuadratic:
        return BoundQuadratic(self.operator, self.offset[index], self._ends)


def _rebuild(
    remake: Callable[[LinearOperator, Tensor], BoundEnergy], rebuild: Rebuild, *tensors: Tensor
) -> BoundEnergy:
    return remake(rebuild(*tensors[:-1]), tensors[-1])


def _value(matrix: Tensor, offset: Tensor, z: Tensor) -> Float[Tensor, " batch"]:
    """½ zᵀHz − cᵀz. Its derivatives in H and c hold neither, so that it does not matter when it is computed."""
    return torch.linalg.vecdot(z, torch.sub(z @ matrix.mT, offset, alpha=2)) * 0.5
