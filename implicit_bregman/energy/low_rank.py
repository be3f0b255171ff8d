"""The low-rank energy f(z; x) = ½‖Vᵀz − β(x)‖² at a fixed input: what the Bregman projection layer minimises."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.energy.base import BoundEnergy, Evaluation, Packed
from implicit_bregman.energy.snapshot import Again
from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.linalg.spectrum import Spectrum, spectrum
from implicit_bregman.operators import LowRank


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of V's range, found from its columns at unit length, in float64.

    Columns that depend on others up to rounding add nothing to it, and so that this is judged for each equation in its
    own units, a small column counts as much as a large one.

    Attributes:
        range: Q, orthonormal, (d, k) with k ≤ r.
        lift: T, (r, k): the shortest columns with VT = Q.
        null: N, orthonormal, (r, r − k): VN = 0.
        equations: columns with VE = Q as well, (r, k), which weigh each equation in its own units.
        vectors: V itself.
    """

    range: Tensor
    lift: Tensor
    null: Tensor
    equations: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, vectors: Float[Tensor, "d r"]) -> Basis:
        """The basis of V's range."""
        q, values, p, lengths = _decomposed(vectors)
        kept = len(values)
        lift = p[:, :kept] / values / lengths[:, None]
        if kept == len(lengths):
            return cls(q, lift, lift.new_zeros(kept, 0), lift, vectors.detach().double())
        null = torch.linalg.qr(p[:, kept:] / lengths[:, None]).Q
        return cls(q, lift - null @ (null.mT @ lift), null, lift, vectors.detach().double())

    @property
    def metric(self) -> Float[Tensor, "k k"]:
        """TᵀT: μᵀTᵀTμ = ‖λ‖² for the shortest λ with Vλ = Qμ."""
        return self.lift.mT @ self.lift

    def multiplier(self, coordinates: Float[Tensor, "batch k"]) -> Float[Tensor, "batch r"]:
        """The shortest λ with Vλ = Qμ, for the coordinates μ: λ = Tμ."""
        return coordinates @ self.lift.mT


def _decomposed(vectors: Float[Tensor, "d r"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """V = Q Σ Pᵀ diag(lengths) in float64, without singular values that are 0 up to rounding.

    Returns:
        Q (d, k), the diagonal of Σ (k,), all of P (r, r), the columns' lengths (r,), 1 for one of zeros.
    """
    v, lengths = vectors.detach().double(), column_lengths(vectors)
    q, values, p = torch.linalg.svd(v / lengths, full_matrices=False)
    kept = int((values > max(v.shape) * torch.finfo(vectors.dtype).eps * values[0]).sum())
    # (a coordinate that no equation contains is not to be moved by rounding)
    used = (v != 0).any(-1, keepdim=True)
    return torch.where(used, q[:, :kept], 0.0), values[:kept], p.mT, lengths


def column_lengths(vectors: Float[Tensor, "d r"]) -> Float[Tensor, " r"]:
    """The lengths of V's columns, in float64; 1 for one of zeros."""
    lengths = torch.linalg.vector_norm(vectors.detach().double(), dim=0)
    return torch.where(lengths > 0, lengths, 1.0)


def inconsistency(vectors: Float[Tensor, "d r"], target: Float[Tensor, "batch r"]) -> Float[Tensor, " batch"]:
    """How much dependent columns of V ask for different things, (B,): relative to each equation's size, at most."""
    _, values, p, lengths = _decomposed(vectors)
    unit = target.detach().double() / lengths
    dependent = p[:, len(values) :]
    return ((unit @ dependent @ dependent.mT).abs() / (1 + unit.abs())).amax(-1)


class BoundLowRank(BoundEnergy):
    """f(z) = ½‖Vᵀz‖² − βᵀVᵀz for a batch of targets β, (B, r), and one shared V.

    Its Hessian VVᵀ is singular where V has fewer than d independent columns; then the critical points are not
    isolated, and the start z⁰ chooses one of them. It is not a `shared` matrix: what asks for one (the exact finish)
    needs isolated critical points.

    Args:
        vectors: V, (d, r).
        target: β, (B, r).
        softening: see `QuadraticEnergy`.
        known: the ends of the spectrum of VVᵀ, where they are known already.
        basis: the basis of V's range, where it is known already.
    """

    symmetric = True
    affine = True

    def __init__(
        self,
        vectors: Float[Tensor, "d r"],
        target: Float[Tensor, "batch r"],
        softening: float,
        known: Spectrum | None = None,
        basis: Basis | None = None,
    ) -> None:
        self.vectors = vectors
        self.target = target
        self.softening = softening
        self.dtype = target.dtype
        self.spectrum = gram_spectrum(vectors) if known is None else known
        if basis is not None:
            self.basis = basis

    @property
    def curvature(self) -> Tensor:
        return self.spectrum.curvature

    @property
    def lowest(self) -> Tensor:
        return self.spectrum.lowest

    @cached_property
    def basis(self) -> Basis:
        """A basis of V's range, computed at the first use."""
        return Basis.of(self.vectors)

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
        return self.spectrum.is_definite(curvature, strictly)

    def double(self) -> BoundLowRank:
        vectors, target = self.vectors.detach().double(), self.target.detach().double()
        return BoundLowRank(vectors, target, self.softening, self.spectrum, self.basis)

    def select(self, index: Int[Tensor, " kept"]) -> BoundEnergy:
        return BoundLowRank(self.vectors, self.target[index], self.softening, self.spectrum, self.__dict__.get("basis"))


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


def check_projection(geometry: LegendreFunction, regularization: float) -> None:
    """Refuse a geometry for which MM's limit is no Bregman projection.

    Raises:
        ValueError: naming the remedies.
    """
    if regularization == 0 and not geometry.is_legendre:
        raise ValueError(
            f'{geometry.name} is not Legendre: its dual iterates are clamped, so that with weight="low_rank" and '
            "regularization=0 the limit of MM is not the Bregman projection and has no gradient here: use another "
            "geometry (isru and tanh have the same domain), regularization > 0, or adjoint=adjoints.Unrolled(steps=...)"
        )
