"""The low-rank energy f(z; x) = ½‖Vᵀz − β(x)‖² at a fixed input: what the Bregman projection layer minimises."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.energy.contract import BoundEnergy, Evaluation, Packed
from implicit_bregman.energy.snapshot import Again
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.linalg.spectrum import Spectrum, spectrum
from implicit_bregman.operators import LowRank
from implicit_bregman.operators.linear_map import DenseMap, LinearMap
from implicit_bregman.projection.basis import Basis, inconsistency
from implicit_bregman.projection.methods import LowRankMethods
from implicit_bregman.projection.problem import ProjectionProblem, dual_problem
from implicit_bregman.tensors import rows_where


class RangeFactor:
    """What is computed of V once, when it is first asked for.

    Args:
        vectors: V, (d, r).
    """

    def __init__(self, vectors: Float[Tensor, "d r"]) -> None:
        self._vectors = vectors.detach()

    @cached_property
    def spectrum(self) -> Spectrum:
        """The ends of the spectrum of VVᵀ."""
        return gram_spectrum(self._vectors)

    @cached_property
    def basis(self) -> Basis:
        """A basis of V's range."""
        return Basis.of(self._vectors)


class BoundEquations(BoundEnergy):
    """f(z) = ½‖Vᵀz‖² − βᵀVᵀz for a batch of targets β, (B, r), and one shared V.

    Its Hessian VVᵀ is singular where V has fewer than d independent columns; then the critical points are not
    isolated, and the start z⁰ chooses one of them. It is not `factored`: what asks for that (the exact solve) needs
    isolated critical points.

    Args:
        equations: V.
        target: β, (B, r).
        softening: see `QuadraticEnergy`.
    """

    symmetric = True
    affine = True

    def __init__(self, equations: LinearMap, target: Float[Tensor, "batch r"], softening: float) -> None:
        self.equations = equations
        self.target = target
        self.softening = softening
        self.dtype = target.dtype

    @cached_property
    def exact(self) -> LinearMap:
        """V in float64, without gradient."""
        tensors, rebuild = self.equations.pack()
        return rebuild(*(t.detach().double() if t.is_floating_point() else t for t in tensors))

    @property
    @abstractmethod
    def lengths(self) -> Float[Tensor, " r"]:
        """The lengths of V's columns, in float64; 1 for one of zeros."""

    @property
    def softness(self) -> Tensor:
        """ε = softening · ‖V‖²/r (Frobenius norm), a 0-d tensor that depends on V differentiably."""
        return self.softening * self.equations.squared_norm(self.target) / self.equations.shape[1]

    @abstractmethod
    def problem(
        self, geometry: MirrorMap, start: Float[Tensor, "batch d"], softness: float, tol: float
    ) -> ProjectionProblem:
        """The dual problem of projecting ρ(y⁰) onto {Vᵀz + ελ = β}.

        Args:
            geometry: φ.
            start: y⁰, in float64.
            softness: ε ≥ 0.
            tol: by how much each equation may be missed, relative to its size.
        """

    @abstractmethod
    def is_inconsistent(self, tol: float) -> Bool[Tensor, " batch"]:
        """Whether equations that follow from others ask for different things, (B,), judged by their own size."""

    def is_impossible(self, geometry: MirrorMap) -> Bool[Tensor, " batch"]:
        """Whether something else than that is known to leave the equations without a solution in C, (B,)."""
        return torch.zeros_like(self.target[:, 0], dtype=torch.bool)

    @abstractmethod
    def is_thin(self, geometry: MirrorMap, z: Float[Tensor, "batch d"], tol: float) -> Bool[Tensor, " batch"]:
        """Whether so many coordinates are on their bounds that β cannot move freely, (B,).

        That is, whether the rows of V that belong to the others have a smaller rank than V.
        """

    @abstractmethod
    def select(self, index: Int[Tensor, " kept"]) -> BoundEquations: ...

    def evaluate(self, z: Float[Tensor, "batch d"]) -> Evaluation:
        with torch.no_grad():
            image = self.equations.product(z, adjoint=True)
            gradient = self.equations.product(image - self.target)
            value = (image * (0.5 * image - self.target)).sum(-1)
        return Evaluation(value, gradient)

    def terms(self, gradient: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """max(|VVᵀz|, |Vβ|)."""
        with torch.no_grad():
            offset = self.equations.product(self.target)
            return torch.maximum((gradient + offset).abs(), offset.abs())

    @property
    def stiffness(self) -> Tensor:
        magnitude, ones = self.equations.magnitude(), self.target.new_ones(1, self.equations.shape[0])
        return magnitude.product(magnitude.product(ones, adjoint=True)).squeeze(0)

    def gradient(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return self.equations.product(self.equations.product(z, adjoint=True) - self.target)

    def value(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        image = self.equations.product(z, adjoint=True)
        return (image * (0.5 * image - self.target)).sum(-1)

    def value_at(self, z: Float[Tensor, "batch d"]) -> Callable[[], Float[Tensor, " batch"]]:
        with torch.no_grad():
            image = self.equations.product(z, adjoint=True)
            excess = image - self.target
        return partial(_value, self.equations, self.target, z, image, excess)

    def again(self) -> AbstractContextManager[object]:
        return Again((*self.equations.pack()[0], self.target))


class BoundLowRank(BoundEquations):
    """The same for a V that is a matrix: all is done in coordinates of its range.

    Args:
        vectors: V, (d, r).
        target: β, (B, r).
        softening: see `QuadraticEnergy`.
        factor: what has been computed of V already.
    """

    def __init__(
        self,
        vectors: Float[Tensor, "d r"],
        target: Float[Tensor, "batch r"],
        softening: float,
        factor: RangeFactor | None = None,
    ) -> None:
        super().__init__(DenseMap(vectors), target, softening)
        self.vectors = vectors
        self._factor = RangeFactor(vectors) if factor is None else factor

    @property
    def own(self) -> LowRankMethods:
        return LowRankMethods(self)

    @property
    def spectrum(self) -> Spectrum:
        """The ends of the spectrum of VVᵀ."""
        return self._factor.spectrum

    @property
    def curvature(self) -> Tensor:
        return self.spectrum.curvature

    @property
    def lowest(self) -> Tensor:
        return self.spectrum.lowest

    @property
    def basis(self) -> Basis:
        """A basis of V's range."""
        return self._factor.basis

    @property
    def lengths(self) -> Float[Tensor, " r"]:
        return self.basis.lengths

    def problem(
        self, geometry: MirrorMap, start: Float[Tensor, "batch d"], softness: float, tol: float
    ) -> ProjectionProblem:
        return dual_problem(self.basis, self.target, geometry, start, softness, tol)

    def is_inconsistent(self, tol: float) -> Bool[Tensor, " batch"]:
        if not self.basis.null.shape[1]:
            return torch.zeros_like(self.target[:, 0], dtype=torch.bool)
        return ~(inconsistency(self.vectors, self.target) <= tol)

    def is_thin(self, geometry: MirrorMap, z: Float[Tensor, "batch d"], tol: float) -> Bool[Tensor, " batch"]:
        result = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        if self.basis.range.shape[1] == 0:
            return result
        inside = is_inside(geometry, z, tol)
        rows = rows_where(~inside.all(-1))
        if len(rows) == 0:
            return result
        least = torch.linalg.eigvalsh(self.basis.gram(inside[rows].double()))[:, 0]
        return result.index_copy(0, rows, least <= 1e-12)

    def pack(self) -> Packed:
        return Packed((self.vectors, self.target), (False, True), partial(_rebuild, self.softening))

    def hessian(self, z: Float[Tensor, "batch d"]) -> LowRank:
        return LowRank(self.vectors.detach())

    def is_strictly_convex(self, curvature: float, strictly: bool) -> bool:
        if not curvature and self.vectors.shape[1] < self.vectors.shape[0]:
            return strictly  # (VVᵀ is singular, whatever V is)
        return self.spectrum.is_definite(curvature, strictly)

    def double(self) -> BoundLowRank:
        vectors, target = self.vectors.detach().double(), self.target.detach().double()
        return BoundLowRank(vectors, target, self.softening, self._factor)

    def select(self, index: Int[Tensor, " kept"]) -> BoundLowRank:
        return BoundLowRank(self.vectors, self.target[index], self.softening, self._factor)


def _rebuild(softening: float, vectors: Tensor, target: Tensor) -> BoundLowRank:
    return BoundLowRank(vectors, target, softening)


def _value(equations: LinearMap, target: Tensor, z: Tensor, image: Tensor, excess: Tensor) -> Float[Tensor, " batch"]:
    """½‖Vᵀz‖² − βᵀVᵀz to first order in V and β up to a constant, from Vᵀz and Vᵀz − β as they were."""
    return (excess * equations.product(z, adjoint=True)).sum(-1) - (image * target).sum(-1)


def is_inside(geometry: MirrorMap, z: Float[Tensor, "batch d"], tol: float) -> Bool[Tensor, "batch d"]:
    """Which coordinates are not on their bounds within the tolerance."""
    lo, hi = geometry.domain
    return torch.minimum(z - lo, hi - z) > 10 * tol


def gram_spectrum(vectors: Float[Tensor, "d r"]) -> Spectrum:
    """The ends of the spectrum of VVᵀ, from the r × r Gram matrix VᵀV.

    Raises:
        ValueError: if V has entries that are not finite.
    """
    vectors = vectors.detach()
    vectors = vectors.float() if vectors.dtype.itemsize == 2 else vectors
    ends = spectrum(vectors.mT @ vectors, True)
    deficient = vectors.shape[1] < vectors.shape[0]
    lowest = torch.zeros_like(ends.lowest) if deficient else ends.lowest.clamp_min(0)
    return Spectrum(lowest, ends.highest, ends.curvature)
