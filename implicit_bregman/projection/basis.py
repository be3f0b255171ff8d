"""The range of V: an orthonormal basis of it, and what V's columns are in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.linalg.gram import weighted_gram

_BROKEN = "the weight of the energy has NaN or infinite entries: check the last parameter update"


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
        """The basis of V's range.

        Raises:
            ValueError: if V has entries that are not finite.
        """
        q, values, p, lengths = _decomposed(vectors)
        kept = len(values)
        lift = p[:, :kept] / values / lengths[:, None]
        if kept == len(lengths):
            return cls(q, lift, lift.new_zeros(kept, 0), lift, vectors.detach().double())
        null = torch.linalg.qr(p[:, kept:] / lengths[:, None]).Q
        return cls(q, lift - null @ (null.mT @ lift), null, lift, vectors.detach().double())

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All but V, in the order of the arguments."""
        return self.range, self.lift, self.null, self.equations

    @cached_property
    def across(self) -> Float[Tensor, "k d"]:
        """Qᵀ."""
        return self.range.mT

    @cached_property
    def sizes(self) -> Float[Tensor, "d k"]:
        """|Q|."""
        return self.range.abs()

    @cached_property
    def lengths(self) -> Float[Tensor, " r"]:
        """The lengths of V's columns; 1 for one of zeros."""
        return column_lengths(self.vectors)

    def gram(self, weight: Float[Tensor, "batch d"]) -> Float[Tensor, "batch k k"]:
        """QᵀDQ for one diagonal D per sample."""
        return weighted_gram(self.range, weight)

    @cached_property
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

    Raises:
        ValueError: if V has entries that are not finite.
    """
    v, lengths = vectors.detach().double(), column_lengths(vectors)
    try:
        q, values, p = torch.linalg.svd(v / lengths, full_matrices=False)
    except torch.linalg.LinAlgError:
        raise ValueError(_BROKEN) from None
    kept = int((values > max(v.shape) * torch.finfo(vectors.dtype).eps * values[0]).sum())
    if kept < len(values) and not bool(torch.isfinite(lengths).all()):
        raise ValueError(_BROKEN)
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
