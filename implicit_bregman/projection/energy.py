"""The low-rank energy f(z; x) = ½‖Vᵀz − β(x)‖² at a fixed input: what the Bregman projection layer minimises."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.energy.contract import BoundEnergy, Evaluation, Packed
from implicit_bregman.energy.snapshot import Again
from implicit_bregman.linalg.spectrum import Spectrum, spectrum
from implicit_bregman.operators import LowRank
from implicit_bregman.projection.basis import Basis
from implicit_bregman.projection.methods import ProjectionMethods


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


class BoundLowRank(BoundEnergy):
    """f(z) = ½‖Vᵀz‖² − βᵀVᵀz for a batch of targets β, (B, r), and one shared V.

    Its Hessian VVᵀ is singular where V has fewer than d independent columns; then the critical points are not
    isolated, and the start z⁰ chooses one of them. It is not `factored`: what asks for that (the exact solve) needs
    isolated critical points.

    Args:
        vectors: V, (d, r).
        target: β, (B, r).
        softening: see `QuadraticEnergy`.
        factor: what has been computed of V already.
    """

    symmetric = True
    affine = True

    def __init__(
        self,
        vectors: Float[Tensor, "d r"],
        target: Float[Tensor, "batch r"],
        softening: float,
        factor: RangeFactor | None = None,
    ) -> None:
        self.vectors = vectors
        self.target = target
        self.softening = softening
        self.dtype = target.dtype
        self._factor = RangeFactor(vectors) if factor is None else factor

    @property
    def own(self) -> ProjectionMethods:
        return ProjectionMethods(self)

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
    def softness(self) -> Tensor:
        """ε = softening · ‖V‖²/r (Frobenius norm), a 0-d tensor that depends on V differentiably."""
        return self.softening * self.vectors.square().sum() / self.vectors.shape[1]

    def evaluate(self, z: Float[Tensor, "batch d"]) -> Evaluation:
        with torch.no_grad():
            image = z @ self.vectors
            gradient = (image - self.target) @ self.vectors.mT
            value = (image * (0.5 * image - self.target)).sum(-1)
        return Evaluation(value, gradient)

    def terms(self, gradient: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """max(|VVᵀz|, |Vβ|)."""
        with torch.no_grad():
            offset = self.target @ self.vectors.mT
            return torch.maximum((gradient + offset).abs(), offset.abs())

    @property
    def stiffness(self) -> Tensor:
        vectors = self.vectors.detach().abs()
        return vectors @ vectors.sum(0)

    def gradient(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return (z @ self.vectors - self.target) @ self.vectors.mT

    def value(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        image = z @ self.vectors
        return (image * (0.5 * image - self.target)).sum(-1)

    def pack(self) -> Packed:
        return Packed((self.vectors, self.target), (False, True), partial(_rebuild, self.softening))

    def value_at(self, z: Float[Tensor, "batch d"]) -> Callable[[], Float[Tensor, " batch"]]:
        with torch.no_grad():
            image = z @ self.vectors
            excess = image - self.target
        return partial(_value, self.vectors, self.target, z, image, excess)

    def again(self) -> AbstractContextManager[object]:
        return Again((self.vectors, self.target))

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


def _value(vectors: Tensor, target: Tensor, z: Tensor, image: Tensor, excess: Tensor) -> Float[Tensor, " batch"]:
    """½‖Vᵀz‖² − βᵀVᵀz to first order in V and β up to a constant, from Vᵀz and Vᵀz − β as they were."""
    return (excess * (z @ vectors)).sum(-1) - (image * target).sum(-1)


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
