"""Mirror maps in which every coordinate has an elementary map of its own: what those of all kinds share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, wraps
from typing import Any, NoReturn, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.legendre.arguments import SUPPORTED_DTYPES
from implicit_bregman.legendre.base import LegendreFunction
from implicit_bregman.legendre.mirror import Ends
from implicit_bregman.transforms import on_plain_tensors


def plain_property(function: Callable[[Any], Any]) -> Any:
    """A `cached_property` of plain tensors, whatever transform is at work when it is first asked for."""

    @wraps(function)
    def wrapped(self: Any) -> Any:
        with on_plain_tensors():
            return function(self)

    return cached_property(wrapped)


class Part(Protocol):
    """The elementary map of some coordinates: the methods of `LegendreFunction`, of their numbers (…, k)."""

    columns: Int[Tensor, " k"]


class LayoutAt(Protocol):
    """What depends on the precision.

    Attributes:
        parts: the elementary maps, each of which knows its coordinates.
        bounds: the smallest and the largest numbers in C; the nearest one where there is none.
        inner_bounds: the numbers next to them, strictly inside.
        saturated_dual: finite duals that stand for them.
    """

    @property
    def parts(self) -> Sequence[Part]: ...

    @property
    def bounds(self) -> Ends: ...

    @property
    def inner_bounds(self) -> Ends: ...

    @property
    def saturated_dual(self) -> Ends: ...


class Layout(ABC):
    """Which elementary map each of d coordinates has, once for each solve.

    Attributes:
        event: the shape of a state, of d entries.
        lo, hi: the ends of C, in float64.
    """

    event: tuple[int, ...]
    lo: Float[Tensor, " d"]
    hi: Float[Tensor, " d"]

    @property
    @abstractmethod
    def back(self) -> Int[Tensor, " d"]:
        """Where each coordinate is when those of one part come after the other."""

    @property
    @abstractmethod
    def pinned(self) -> Bool[Tensor, " d"] | None:
        """Which coordinates have lo = hi; None: none."""

    @abstractmethod
    def select(self, columns: Int[Tensor, " k"]) -> Layout:
        """That of some of the coordinates."""

    @abstractmethod
    def _at(self, dtype: torch.dtype) -> LayoutAt:
        """What depends on the precision."""

    @cached_property
    def _made(self) -> dict[torch.dtype, LayoutAt]:
        return {}

    def at(self, dtype: torch.dtype) -> LayoutAt:
        """What depends on the precision, once.

        Raises:
            TypeError: for another than float32 and float64.
        """
        if dtype not in self._made:
            if dtype not in SUPPORTED_DTYPES:
                raise TypeError(f"dtype: got {dtype}; give torch.float32 or torch.float64")
            with on_plain_tensors():
                self._made[dtype] = self._at(dtype)
        return self._made[dtype]

    @plain_property
    def open_ends(self) -> Ends:
        """Which ends are infinite."""
        return torch.isinf(self.lo), torch.isinf(self.hi)

    @plain_property
    def is_open(self) -> bool:
        """Whether an end is infinite."""
        lo, hi = self.open_ends
        return bool((lo | hi).any())

    @plain_property
    def is_everything(self) -> bool:
        """Whether all ends are infinite."""
        lo, hi = self.open_ends
        return bool((lo & hi).all())

    @plain_property
    def unit(self) -> float | Float[Tensor, " d"]:
        """See `MirrorMap.unit`."""
        width = self.hi - self.lo
        width = torch.where(width > 0, width, 1.0)
        return width.clamp_max(1.0) if bool((width < 1).any()) else 1.0

    def flat(self, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*batch d"]:
        """A tensor of states as rows, if it is not one of rows."""
        if len(self.event) == 1 or (
            tensor.shape[-1] == len(self.lo) and tensor.shape[-len(self.event) :] != self.event
        ):
            return tensor
        return tensor.flatten(-len(self.event)) if self.event else tensor.reshape(*tensor.shape, 1)


class Columnwise(LegendreFunction):
    """A Legendre function of each coordinate's own; `domain`, `bounds` and the like are pairs of tensors (d,)."""

    @property
    @abstractmethod
    def _known(self) -> Layout:
        """That of the states, or, where their shape is not known, of states in the form in which it was given."""

    @abstractmethod
    def _rows_of(self, tensor: Float[Tensor, "*shape"]) -> tuple[Layout, Float[Tensor, "*batch d"]]:
        """The layout, and a tensor of states as rows."""

    # What C is ------------------------------------------------------------------------------------------------------

    @property
    def domain(self) -> Ends:
        layout = self._known
        return layout.lo, layout.hi

    def rounded_domain(self, dtype: torch.dtype) -> NoReturn:
        raise ValueError(
            f"x is {dtype}, and the result cannot be rounded into bounds of its own for each coordinate: compute in "
            "float32, x.float()"
        )

    @property
    def is_bounded(self) -> bool:
        return not self._known.is_open

    @property
    def is_everything(self) -> bool:
        everything: bool = self._known.is_everything
        return everything

    @property
    def is_cone(self) -> bool:
        return all(bool(((end == 0) | torch.isinf(end)).all()) for end in self.domain)

    @property
    def open_ends(self) -> Ends:
        ends: Ends = self._known.open_ends
        return ends

    @property
    def pinned(self) -> Bool[Tensor, " d"] | None:
        return self._known.pinned

    @property
    def unit(self) -> float | Float[Tensor, " d"]:
        unit: float | Tensor = self._known.unit
        return unit

    @property
    def flattest(self) -> Float[Tensor, " d"]:
        lo, hi = self.domain
        middle, (low, high) = 0.5 * lo + 0.5 * hi, self.open_ends
        return torch.where(low & high, 0.0, middle)

    @property
    def largest_end(self) -> Float[Tensor, " d"]:
        lo, hi = self.domain
        most = torch.maximum(lo.abs(), hi.abs())
        return torch.where(torch.isinf(most), 0.0, most)

    def bounds(self, dtype: torch.dtype) -> Ends:
        return self._known.at(dtype).bounds

    def inner_bounds(self, dtype: torch.dtype) -> Ends:
        return self._known.at(dtype).inner_bounds

    def saturated_dual(self, dtype: torch.dtype) -> Ends:
        return self._known.at(dtype).saturated_dual

    def project(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        layout, flat = self._rows_of(z)
        return flat.clamp(*layout.at(z.dtype).bounds).reshape(z.shape)

    def feasible_step(self, z: Float[Tensor, "batch d"], step: Float[Tensor, "batch d"], bounds: Ends) -> Tensor:
        lo, hi = bounds
        return step.clamp_(z - hi, z - lo)

    def is_interior(self, z: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Whether each coordinate lies strictly inside its interval and is finite, or where it has to stay."""
        layout, flat = self._rows_of(z)
        inside = (flat > layout.lo) & (flat < layout.hi)
        pinned = layout.pinned
        inside = inside if pinned is None else inside | (pinned & (flat == layout.lo.to(z.dtype)))
        return inside.reshape(z.shape)

    def finite_dual(self, z: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
        largest, (layout, flat) = torch.finfo(dtype).max, self._rows_of(z)
        at = layout.at(dtype)
        with torch.no_grad():
            y = layout.flat(self.inverse_activation(z)).clamp(-largest, largest)
            for end, bound, saturated, reaches in zip(
                (layout.lo, layout.hi), at.bounds, at.saturated_dual, (torch.le, torch.ge), strict=True
            ):
                y = torch.where(torch.isfinite(end) & reaches(flat, bound), saturated.to(y.dtype), y)
        return y.reshape(z.shape)

    # The elementary maps ----------------------------------------------------------------------------------------------

    def _each(self, method: str, *tensors: Tensor) -> Tensor:
        """A method of the elementary maps, each on its coordinates."""
        layout, first = self._rows_of(tensors[0])
        parts, flat = layout.at(first.dtype).parts, [first, *(layout.flat(tensor) for tensor in tensors[1:])]
        if len(parts) == 1:
            found: Tensor = getattr(parts[0], method)(*flat)
        else:
            pieces = [getattr(part, method)(*(t.index_select(-1, part.columns) for t in flat)) for part in parts]
            found = torch.cat(pieces, -1).index_select(-1, layout.back)
        return found.reshape(tensors[0].shape)

    def _project_dual(self, y: Tensor) -> Tensor:
        if not self.is_legendre:
            return self._each("project_dual", y)
        layout, flat = self._rows_of(y)
        return y if layout.pinned is None else flat.masked_fill(layout.pinned, 0.0).reshape(y.shape)

    def _activation(self, y: Tensor) -> Tensor:
        return self.project(self._each("activation", y))

    def _inverse_activation(self, z: Tensor) -> Tensor:
        return self._each("inverse_activation", z)

    def _potential(self, z: Tensor) -> Tensor:
        return self._each("potential", z)

    def _conjugate(self, y: Tensor) -> Tensor:
        return self._each("conjugate", y)

    def _curvature(self, y: Tensor) -> Tensor:
        return self._each("curvature", y)

    def _log_curvature(self, y: Tensor) -> Tensor:
        return self._each("log_curvature", y)

    def _slope(self, y: Tensor) -> Tensor:
        return self._each("slope", y)

    def _log_curvature_slope(self, y: Tensor) -> Tensor:
        return self._each("log_curvature_slope", y)

    def _dual_potential(self, y: Tensor) -> Tensor:
        return self._each("dual_potential", y)

    def _divergence(self, u: Tensor, v: Tensor, d: Tensor) -> Tensor:
        return self._each("divergence", u, v, d)

    def _dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        return self._each("dual_divergence", p, q, d)
