"""The parametrization W = −VVᵀ of a quadratic energy, and the energy that has β for its input."""

from __future__ import annotations

import numbers
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.quadratic import QuadraticEnergy
from implicit_bregman.energy.weights import Weight, at_least_single, check_shared, hold
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.linalg.spectrum import Spectrum
from implicit_bregman.projection.energy import BoundLowRank, gram_spectrum
from implicit_bregman.settings import check_positive, is_number

#: ε of an infeasible system, relative to ‖V‖²/r.
DEFAULT_SOFTENING = 1e-3


class LowRankWeight(Weight, name="low_rank"):
    """W = −V Vᵀ, of rank r at most: the weight of f = ½‖Vᵀz − β‖².

    Args:
        features: d.
        rank: r, the number of columns of V.
        softening: what the energy's `softening` is; None: 1e-3.
    """

    symmetric = True
    low_rank = True

    def __init__(
        self,
        features: int,
        rank: int | None,
        softening: float | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if rank is None or not is_number(rank, numbers.Integral) or not 1 <= rank <= features:
            raise ValueError(
                f'weight="low_rank" needs rank, the number of columns of V: a whole number from 1 to features = '
                f"{features}, got {rank!r}"
            )
        self.rank = int(rank)
        self.softening = checked_softening(softening)
        self.vectors = nn.Parameter(torch.empty(features, self.rank, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthonormal columns: every system Vᵀz = β is then well conditioned, and the step τ = 1 within reach."""
        with torch.no_grad():
            wide = self.vectors.to(torch.promote_types(self.vectors.dtype, torch.float32))  # no QR in half precision
            self.vectors.copy_(torch.linalg.qr(torch.randn_like(wide)).Q)

    def forward(self) -> Float[Tensor, "d r"]:
        """V, (d, r)."""
        return self.vectors

    def dense(self) -> Float[Tensor, "d d"]:
        vectors: Tensor = self()
        return -(vectors @ vectors.mT)

    def offset(self, inner: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch d"]:
        """c = Vβ."""
        vectors: Tensor = self()
        return inner @ vectors.mT

    def affine(self, x: Float[Tensor, "*batch n"], u: Tensor | None, b: Tensor | None) -> Float[Tensor, "*batch r"]:
        """β = Ux + b, where None stands for 0."""
        if u is not None:
            return nn.functional.linear(x, u, b)
        return (x.new_zeros(self.rank) if b is None else b).expand(*x.shape[:-1], self.rank)

    def spectrum(self) -> Spectrum:
        return gram_spectrum(self())

    def bind(self, x: Float[Tensor, "batch n"], inner: Callable[[Tensor], Tensor]) -> BoundLowRank:
        vectors = at_least_single(check_shared("V", self()))
        return BoundLowRank(vectors, inner(x.to(vectors.dtype)), self.softening)

    def extra_repr(self) -> str:
        """Sizes and softening, for `print(module)`."""
        return f"features={self.vectors.shape[0]}, rank={self.rank}, softening={self.softening:g}"


class ConstraintWeight(LowRankWeight):
    """The same for an energy whose input is β itself; V may be given."""

    @classmethod
    def of(cls, vectors: Float[Tensor, "d r"], softening: float | None) -> ConstraintWeight:
        """That of a V that somebody else owns, (d, r); gradients flow to it."""
        weight = cls.__new__(cls)
        nn.Module.__init__(weight)
        weight.given, weight.rank, weight.softening = True, vectors.shape[1], checked_softening(softening)
        hold(weight, "vectors", vectors)
        return weight

    def affine(self, x: Float[Tensor, "*batch r"], u: Tensor | None, b: Tensor | None) -> Float[Tensor, "*batch r"]:
        """β = x."""
        return x


class ProjectionEnergy(QuadraticEnergy):
    """½‖Vᵀz − β‖² up to a constant, as a function of z and its input β, (B, r).

    Args:
        weight: V.
    """

    weight_map: ConstraintWeight

    def __init__(self, weight: ConstraintWeight) -> None:
        Energy.__init__(self, weight.vectors.shape[0], convex=True)
        self.weight_map = weight
        self.in_features = weight.rank
        self.input_weight, self.bias = None, None

    @property
    def equations(self) -> Float[Tensor, "d r"]:
        """V."""
        vectors: Tensor = self.weight_map()
        return vectors

    def redraw(self) -> bool:
        """Draw V anew, unless somebody else owns it; and whether that was done."""
        if not self.weight_map.given:
            self.weight_map.reset_parameters()
        return not self.weight_map.given

    def reset_parameters(self) -> None:
        """Nothing: all there is to draw is V, which `weight_map` draws."""


def checked_softening(softening: float | None) -> float:
    """ε of an infeasible system, relative to ‖V‖²/r.

    Raises:
        ValueError: for one that is not positive.
    """
    if softening is None:
        return DEFAULT_SOFTENING
    check_positive("softening", softening)
    return float(softening)


def middle(vectors: Float[Tensor, "d r"], geometry: MirrorMap) -> Float[Tensor, " r"]:
    """Vᵀρ(m), m the `middle` of the duals: the β whose system the middle of C solves."""
    vectors = at_least_single(vectors)
    return geometry.activation(torch.full_like(vectors[:, 0], geometry.middle)) @ vectors
