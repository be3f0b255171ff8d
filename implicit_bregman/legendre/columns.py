"""The elementary maps of `Boxes`, each for the coordinates of one kind: two bounds, one, none, or no room at all.

All are plain torch operations on numbers (…, k); the derivatives are those of `LegendreFunction`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.legendre.base import LegendreFunction
from implicit_bregman.legendre.box import BoundedLegendreFunction, Place


class Columns:
    """φ(z) = φ₁(t(z − e)) for a φ₁ on the half line or the line, an end e, and t = 1, or −1 where e is an upper bound.

    Args:
        columns: which coordinates these are.
        phi: φ₁.
        end: e, in float64.
        sign: t.
        dtype: the precision of the numbers to come.
    """

    def __init__(
        self,
        columns: Int[Tensor, " k"],
        phi: LegendreFunction,
        end: Float[Tensor, " k"],
        sign: float,
        dtype: torch.dtype,
    ) -> None:
        self.columns, self.phi, self.sign = columns, phi, sign
        self.end = end.to(dtype)
        self.rest = (end - self.end.double()).to(dtype)

    def _turned(self, y: Tensor) -> Tensor:
        return y if self.sign > 0 else -y

    def _place(self, z: Tensor) -> Tensor:
        """t(z − e); in two steps, since next to e the first difference is exact."""
        return self._turned((z - self.end) - self.rest)

    def project_dual(self, y: Tensor) -> Tensor:
        return y

    def activation(self, y: Tensor) -> Tensor:
        return self.end + self._turned(self.phi._activation(self._turned(y)))

    def inverse_activation(self, z: Tensor) -> Tensor:
        return self._turned(self.phi._inverse_activation(self._place(z)))

    def potential(self, z: Tensor) -> Tensor:
        return self.phi._potential(self._place(z))

    def conjugate(self, y: Tensor) -> Tensor:
        return self.end * y + self.phi._conjugate(self._turned(y))

    def curvature(self, y: Tensor) -> Tensor:
        return self.phi._curvature(self._turned(y))

    def log_curvature(self, y: Tensor) -> Tensor:
        return self.phi._log_curvature(self._turned(y))

    def slope(self, y: Tensor) -> Tensor:
        return self.phi._slope(self._turned(y))

    def log_curvature_slope(self, y: Tensor) -> Tensor:
        return self._turned(self.phi._log_curvature_slope(self._turned(y)))

    def dual_potential(self, y: Tensor) -> Tensor:
        return self.phi._dual_potential(self._turned(y))

    def divergence(self, u: Tensor, v: Tensor, d: Tensor) -> Tensor:
        return self.phi._divergence(self._place(u), self._place(v), self._turned(d))

    def dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        return self.phi._dual_divergence(self._turned(p), self._turned(q), self._turned(d))


class IntervalColumns:
    """`Box` for many intervals: ρ(y) = m + s (ρ₀(y) − m₀) with m and s of each coordinate.

    Args:
        columns: which coordinates these are.
        base: φ₀.
        lo: the lower ends, in float64.
        hi: the upper ends, above them.
        dtype: the precision of the numbers to come.
    """

    def __init__(
        self,
        columns: Int[Tensor, " k"],
        base: BoundedLegendreFunction,
        lo: Float[Tensor, " k"],
        hi: Float[Tensor, " k"],
        dtype: torch.dtype,
    ) -> None:
        self.columns, self.base = columns, base
        scale = interval_scale(base, lo, hi)
        self.scale, self.log_scale = scale.to(dtype).clamp_min(torch.finfo(dtype).tiny), scale.log().to(dtype)
        self.lo, self.hi = lo.to(dtype), hi.to(dtype)
        self.lo_rest, self.hi_rest = (lo - self.lo.double()).to(dtype), (hi - self.hi.double()).to(dtype)
        self.centre = (0.5 * lo + 0.5 * hi).to(dtype)
        self.from_lo, self.even = lo.abs() <= hi.abs(), lo == -hi
        self.all_even, self.some_even = bool(self.even.all()), bool(self.even.any())
        source_lo, source_hi = base.domain
        self.shift = self.centre - self.scale * (0.5 * (source_lo + source_hi))

    def project_dual(self, y: Tensor) -> Tensor:
        return self.base._project_dual(y)

    def activation(self, y: Tensor) -> Tensor:
        # Starting from the end nearest to 0, or from the centre if that is 0, keeps the digits of a small ρ(y).
        offset = self.base._offset(y) * self.scale if self.some_even else y
        if self.all_even:
            return offset
        gap = self.base._lower_gap(torch.where(self.from_lo, y, -y)) * self.scale
        z = torch.where(self.from_lo, self.lo + gap, self.hi - gap)
        return torch.where(self.even, offset, z) if self.some_even else z

    def _place(self, z: Tensor) -> Place:
        below, above = (z - self.lo) - self.lo_rest, (self.hi - z) + self.hi_rest
        return Place((z - self.centre) / self.scale, below / self.scale, above / self.scale)

    def inverse_activation(self, z: Tensor) -> Tensor:
        return self.base._inverse_at(self._place(z))

    def potential(self, z: Tensor) -> Tensor:
        return self.base._potential_at(self._place(z)) * self.scale

    def conjugate(self, y: Tensor) -> Tensor:
        # (see `AffineImage`)
        near = self.shift * y + self.scale * self.base._conjugate(y)
        far = torch.maximum(self.lo * y, self.hi * y) + self.scale * self.base._conjugate_excess(y)
        return torch.where(y.abs() <= 1.0, near, far)

    def curvature(self, y: Tensor) -> Tensor:
        return self.base._curvature(y) / self.scale

    def log_curvature(self, y: Tensor) -> Tensor:
        return self.base._log_curvature(y) - self.log_scale

    def slope(self, y: Tensor) -> Tensor:
        return self.base._slope(y) * self.scale

    def log_curvature_slope(self, y: Tensor) -> Tensor:
        return self.base._log_curvature_slope(y)

    def dual_potential(self, y: Tensor) -> Tensor:
        return self.base._dual_potential(y) * self.scale

    def divergence(self, u: Tensor, v: Tensor, d: Tensor) -> Tensor:
        return self.base._divergence_at(self._place(u), self._place(v), d / self.scale) * self.scale

    def dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        return self.base._dual_divergence(p, q, d) * self.scale


class PinnedColumns:
    """Coordinates with lo = hi: z is there whatever y is, φ is 0 there and φ'' infinite.

    Args:
        columns: which coordinates these are.
        place: lo = hi.
    """

    def __init__(self, columns: Int[Tensor, " k"], place: Float[Tensor, " k"]) -> None:
        self.columns, self.place = columns, place

    def _here(self, z: Tensor) -> Tensor:
        return torch.where(z == self.place, 0.0, torch.nan).to(z.dtype)

    def project_dual(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y)

    def activation(self, y: Tensor) -> Tensor:
        return self.place.expand_as(y).clone()

    def inverse_activation(self, z: Tensor) -> Tensor:
        return self._here(z)

    def potential(self, z: Tensor) -> Tensor:
        return self._here(z)

    def conjugate(self, y: Tensor) -> Tensor:
        return self.place * y

    def curvature(self, y: Tensor) -> Tensor:
        return torch.full_like(y, torch.inf)

    def log_curvature(self, y: Tensor) -> Tensor:
        # (a number, since it is the change of it that counts)
        return torch.zeros_like(y)

    def slope(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y)

    def log_curvature_slope(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y)

    def dual_potential(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y)

    def divergence(self, u: Tensor, v: Tensor, d: Tensor) -> Tensor:
        return self._here(u) + self._here(v)

    def dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        return torch.zeros_like(p)


def interval_scale(base: BoundedLegendreFunction, lo: Tensor, hi: Tensor) -> Tensor:
    """s, the widths relative to that of φ₀."""
    source_lo, source_hi = base.domain
    width = source_hi - source_lo
    return hi / width - lo / width
