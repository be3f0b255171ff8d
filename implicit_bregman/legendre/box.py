"""Bounded Legendre functions and their affine images on a box."""

from __future__ import annotations

import math
import numbers
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from implicit_bregman.legendre.arguments import SUPPORTED_DTYPES, real_float
from implicit_bregman.legendre.base import LegendreFunction
from implicit_bregman.legendre.rounding import round_nearest


class Place(NamedTuple):
    """Where z lies in [lo, hi]: relative to the centre, and the distances to both bounds.

    Near a bound the distance to it is exact while z itself has lost it; near the centre it is the other way round.
    """

    offset: Tensor
    below: Tensor
    above: Tensor


@dataclass(frozen=True)
class BoundedLegendreFunction(LegendreFunction):
    """A Legendre function on [lo, hi], symmetric about the centre: ρ(−y) − m = m − ρ(y)."""

    # What the float64 `hi` lacks to the upper end, should that be no float64; the lower one is its mirror image.
    _end_rest: ClassVar[float] = 0.0
    # (lo, hi) rounded to the dtype, and what each then lacks.
    _ends: dict[torch.dtype, tuple[float, float]] = field(init=False, repr=False, compare=False)
    _rests: dict[torch.dtype, tuple[float, float]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        lo, hi = self.domain
        ends = {dtype: (round_nearest(lo, dtype), round_nearest(hi, dtype)) for dtype in SUPPORTED_DTYPES}
        rests = {t: (lo - low - self._end_rest, hi - high + self._end_rest) for t, (low, high) in ends.items()}
        object.__setattr__(self, "_ends", ends)
        object.__setattr__(self, "_rests", rests)

    def to_box(self, lo: float | Tensor, hi: float | Tensor) -> LegendreFunction:
        for name, bound in (("lo", lo), ("hi", hi)):
            if not isinstance(bound, numbers.Real | Tensor):
                raise TypeError(f"to_box: {name} must be a number or a tensor, got {type(bound).__name__}")
        if isinstance(lo, Tensor) or isinstance(hi, Tensor):
            # (imported late: it is made of these functions)
            from implicit_bregman.legendre.boxes import Boxes

            return Boxes.of(self, lo, hi)
        return self if (lo, hi) == self.domain else Box(self, lo, hi)

    def _place(self, z: Tensor) -> Place:
        (lo, hi), (lo_rest, hi_rest) = self._ends[z.dtype], self._rests[z.dtype]
        below, above = z - lo, hi - z
        # In two steps, since near the bound the first difference is exact.
        below = below - lo_rest if lo_rest else below
        above = above + hi_rest if hi_rest else above
        centre = 0.5 * (lo + hi)
        return Place(z - centre if centre else z, below, above)

    def _inverse_activation(self, z: Tensor) -> Tensor:
        return self._inverse_at(self._place(z))

    def _potential(self, z: Tensor) -> Tensor:
        return self._potential_at(self._place(z))

    @abstractmethod
    def _inverse_at(self, z: Place) -> Tensor:
        """ρ⁻¹(z)."""

    @abstractmethod
    def _potential_at(self, z: Place) -> Tensor:
        """φ(z)."""

    def _divergence(self, u: Tensor, v: Tensor, d: Tensor) -> Tensor:
        return self._divergence_at(self._place(u), self._place(v), d)

    @abstractmethod
    def _divergence_at(self, u: Place, v: Place, d: Tensor) -> Tensor:
        """Elementwise D(u, v), given d = u − v."""

    def _offset(self, y: Tensor) -> Tensor:
        """ρ(y) minus the centre, accurate relative to itself."""
        return self._activation(y)

    @abstractmethod
    def _lower_gap(self, y: Tensor) -> Tensor:
        """ρ(y) − lo, accurate relative to itself."""

    @abstractmethod
    def _conjugate_excess(self, y: Tensor) -> Tensor:
        """φ*(y) − max(lo·y, hi·y), without cancellation for large |y|."""


@dataclass(frozen=True)
class AffineImage(BoundedLegendreFunction):
    """ρ(y) = m + s (ρ₀(b y) − m₀): a bounded ρ₀ with centre m₀ moved to a box with centre m, the dual scaled by b.

    φ(z) = (s/b) φ₀(m₀ + (z − m)/s), φ'' = φ₀''/(s b), σ = σ₀/(s b), D = (s/b) D₀.
    """

    @property
    @abstractmethod
    def _source(self) -> BoundedLegendreFunction: ...

    @property
    @abstractmethod
    def _dual_scale(self) -> float: ...

    @property
    def _scale(self) -> float:
        lo, hi = self.domain
        source_lo, source_hi = self._source.domain
        return (hi - lo) / (source_hi - source_lo)

    @property
    def is_legendre(self) -> bool:
        return self._source.is_legendre

    @property
    def strong_convexity(self) -> float:
        return self._source.strong_convexity / (self._scale * self._dual_scale)

    @property
    def _centre(self) -> float:
        lo, hi = self.domain
        return 0.5 * (lo + hi)

    def _dual_at_gap(self, gap: float) -> float:
        return self._source._dual_at_gap(gap / self._scale) / self._dual_scale

    def _project_dual(self, y: Tensor) -> Tensor:
        return y if self.is_legendre else self._source._project_dual(self._scaled(y)) / self._dual_scale

    def _scaled(self, y: Tensor) -> Tensor:
        return y if self._dual_scale == 1.0 else y * self._dual_scale

    def _source_place(self, z: Place) -> Place:
        s = self._scale
        return z if s == 1.0 else Place(z.offset / s, z.below / s, z.above / s)

    def _activation(self, y: Tensor) -> Tensor:
        # Starting from the end nearest to 0 keeps the digits of a small ρ(y).
        lo, hi = self.domain
        if lo == -hi:
            z = self._offset(y)
        elif abs(lo) <= abs(hi):
            z = self._lower_gap(y) + lo
        else:
            z = hi - self._lower_gap(-y)
        return z.clamp(*self._bounds[y.dtype])

    def _offset(self, y: Tensor) -> Tensor:
        return self._source._offset(self._scaled(y)) * self._scale

    def _lower_gap(self, y: Tensor) -> Tensor:
        return self._source._lower_gap(self._scaled(y)) * self._scale

    def _inverse_at(self, z: Place) -> Tensor:
        return self._source._inverse_at(self._source_place(z)) / self._dual_scale

    def _potential_at(self, z: Place) -> Tensor:
        return self._source._potential_at(self._source_place(z)) * (self._scale / self._dual_scale)

    def _conjugate(self, y: Tensor) -> Tensor:
        lo, hi = self.domain
        source_lo, source_hi = self._source.domain
        factor = self._scale / self._dual_scale
        x = self._scaled(y)
        # φ₀* has the linear part m₀y of its own. Near 0 the two are added; beyond, their sum would cancel.
        shift = self._centre - factor * self._dual_scale * 0.5 * (source_lo + source_hi)
        near = shift * y + factor * self._source._conjugate(x)
        far = torch.maximum(lo * y, hi * y) + factor * self._source._conjugate_excess(x)
        return near if shift == 0.0 else torch.where(x.abs() <= 1.0, near, far)

    def _conjugate_excess(self, y: Tensor) -> Tensor:
        return self._source._conjugate_excess(self._scaled(y)) * (self._scale / self._dual_scale)

    def _dual_potential(self, y: Tensor) -> Tensor:
        return self._source._dual_potential(self._scaled(y)) * (self._scale / self._dual_scale)

    def _curvature(self, y: Tensor) -> Tensor:
        return self._source._curvature(self._scaled(y)) / (self._scale * self._dual_scale)

    def _log_curvature(self, y: Tensor) -> Tensor:
        shift = math.log(self._scale * self._dual_scale)
        return self._source._log_curvature(self._scaled(y)) - shift

    def _slope(self, y: Tensor) -> Tensor:
        return self._source._slope(self._scaled(y)) * (self._scale * self._dual_scale)

    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        return self._source._log_curvature_slope(self._scaled(y)) * self._dual_scale

    def _divergence_at(self, u: Place, v: Place, d: Tensor) -> Tensor:
        s = self._scale
        source = self._source._divergence_at(self._source_place(u), self._source_place(v), d / s)
        return source * (s / self._dual_scale)

    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        source = self._source._dual_divergence(self._scaled(p), self._scaled(q), self._scaled(d))
        return source * (self._scale / self._dual_scale)


@dataclass(frozen=True)
class Box(AffineImage):
    """`base` moved affinely to [lower, upper]; made by `LegendreFunction.to_box`."""

    base: BoundedLegendreFunction
    lower: float
    upper: float

    name: ClassVar[str] = "box"

    def _check_parameters(self) -> None:
        lo, hi = real_float(self.lower, "to_box: lo"), real_float(self.upper, "to_box: hi")
        if not lo < hi:
            raise ValueError(f"to_box: lo must be below hi, got [{lo}, {hi}]")
        object.__setattr__(self, "lower", lo)
        object.__setattr__(self, "upper", hi)

    def to_box(self, lo: float | Tensor, hi: float | Tensor) -> LegendreFunction:
        return self.base.to_box(lo, hi)

    @property
    def domain(self) -> tuple[float, float]:
        return self.lower, self.upper

    @property
    def _source(self) -> BoundedLegendreFunction:
        return self.base

    @property
    def _dual_scale(self) -> float:
        return 1.0
