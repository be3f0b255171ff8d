"""The bounds of `Boxes` as rows: what follows from their numbers, once for each solve."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.legendre.base import LegendreFunction
from implicit_bregman.legendre.box import BoundedLegendreFunction
from implicit_bregman.legendre.columns import Columns, IntervalColumns, PinnedColumns, interval_scale
from implicit_bregman.legendre.columnwise import Layout, plain_property
from implicit_bregman.legendre.halfline import Softplus
from implicit_bregman.legendre.line import Identity
from implicit_bregman.legendre.mirror import Ends
from implicit_bregman.transforms import has_tangent, is_wrapped, on_plain_tensors, transformed

_HALF_LINE, _LINE = Softplus(), Identity()
#: ∂ρ/∂lo and ∂ρ/∂hi of the kinds of coordinates for which they are constant.
_SHARES = {"pinned": (0.5, 0.5), "lower": (1.0, 0.0), "upper": (0.0, 1.0), "line": (0.0, 0.0)}


@dataclass(frozen=True, eq=False)
class Rows(Layout):
    """The bounds of d coordinates, and of what kind each coordinate is.

    Attributes:
        base: φ₀ of the coordinates with two bounds.
        event: the shape of a state, of d entries.
        lo, hi: the numbers, in float64: those of when this was made, whatever an optimizer makes of the bounds later.
        lower, upper: the bounds with their graph, in their own precision.
    """

    base: BoundedLegendreFunction
    event: tuple[int, ...]
    lo: Float[Tensor, " d"]
    hi: Float[Tensor, " d"]
    lower: Float[Tensor, " d"]
    upper: Float[Tensor, " d"]

    @classmethod
    def of(
        cls,
        base: BoundedLegendreFunction,
        lower: Tensor,
        upper: Tensor,
        event: tuple[int, ...],
        device: torch.device,
    ) -> Rows:
        """Of bounds that broadcast to the shape of a state.

        Raises:
            ValueError: if they do not, or where not lo ≤ hi.
            RuntimeError: for bounds that torch.func or forward mode follows.
        """
        check_bounds(lower, upper)
        for name, bound in (("lo", lower), ("hi", upper)):
            # (sizes from behind)
            goes = zip(reversed(bound.shape), reversed(event), strict=False)
            if bound.dim() > len(event) or any(size not in (1, wanted) for size, wanted in goes):
                raise ValueError(
                    f"to_box: {name} of shape {tuple(bound.shape)} does not broadcast to the shape {event} of a state"
                )
        with on_plain_tensors():
            # (a copy: what an optimizer does to the bounds later is not meant)
            lo, hi = (bound.detach().expand(event).to(device).flatten().double().clone() for bound in (lower, upper))
        if not (lower.requires_grad or upper.requires_grad):
            return cls(base, event, lo, hi, lo, hi)
        low, high = (bound.expand(event).to(device).flatten() for bound in (lower, upper))
        return cls(base, event, lo, hi, low, high)

    def select(self, columns: Int[Tensor, " k"]) -> Rows:
        """The bounds of some of the coordinates."""
        lo, hi, lower, upper = (bound[columns] for bound in (self.lo, self.hi, self.lower, self.upper))
        return Rows(self.base, (len(lo),), lo, hi, lower, upper)

    def detach(self) -> Rows:
        """The same without the graph of the bounds."""
        return replace(self, lower=self.lo, upper=self.hi)

    # What the coordinates are -----------------------------------------------------------------------------------------

    @plain_property
    def _kinds(self) -> dict[str, Int[Tensor, " k"]]:
        """The coordinates of each kind that there is."""
        below, above, same = torch.isfinite(self.lo), torch.isfinite(self.hi), self.lo == self.hi
        masks = {
            "pinned": same,
            "interval": below & above & ~same,
            "lower": below & ~above,
            "upper": above & ~below,
            "line": ~below & ~above,
        }
        found = {name: mask.nonzero().squeeze(-1) for name, mask in masks.items()}
        return {name: columns for name, columns in found.items() if len(columns)}

    @plain_property
    def back(self) -> Int[Tensor, " d"]:
        """Where each coordinate is when those of one kind come after the other."""
        return torch.cat(list(self._kinds.values())).argsort()

    @property
    def has_intervals(self) -> bool:
        return "interval" in self._kinds

    @property
    def has_lines(self) -> bool:
        return "line" in self._kinds

    @plain_property
    def pinned(self) -> Bool[Tensor, " d"] | None:
        return self.lo == self.hi if "pinned" in self._kinds else None

    @plain_property
    def strong_convexity(self) -> float:
        least = [1.0] if self.is_open else []
        if self.has_intervals:
            columns = self._kinds["interval"]
            widest = float(interval_scale(self.base, self.lo[columns], self.hi[columns]).max())
            least.append(self.base.strong_convexity / widest)
        return min(least, default=1.0)

    # Derivatives in the bounds ----------------------------------------------------------------------------------------

    def sources(self, dtype: torch.dtype) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """lo and hi with their graph, 0 where they are infinite."""
        ends = ((self.lower, self.lo), (self.upper, self.hi))
        lo, hi = (torch.where(torch.isfinite(known), bound, 0.0).to(dtype) for bound, known in ends)
        return lo, hi

    def shares(self, y: Float[Tensor, "*batch d"]) -> tuple[Tensor, Tensor]:
        """∂ρ(y)/∂lo and ∂ρ(y)/∂hi, differentiable in y. A coordinate with lo = hi has half of each."""
        unit, pieces = self.base.to_box(0.0, 1.0), []
        for kind, columns in self._kinds.items():
            part = y.index_select(-1, columns)
            if kind == "interval":
                pieces.append((unit.activation(-part), unit.activation(part)))
            else:
                low, high = _SHARES[kind]
                pieces.append((torch.full_like(part, low), torch.full_like(part, high)))
        if len(pieces) == 1:
            return pieces[0]
        by_lo, by_hi = (torch.cat(side, -1).index_select(-1, self.back) for side in zip(*pieces, strict=True))
        return by_lo, by_hi

    def potential_share(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The derivative of φ(ρ(y)) in hi − lo at a fixed y."""
        share, (lo, hi) = torch.zeros_like(y), self.base.domain
        for kind, columns in self._kinds.items():
            if kind == "interval":
                share = share.index_copy(-1, columns, self.base.dual_potential(y.index_select(-1, columns)) / (hi - lo))
        return share

    def _at(self, dtype: torch.dtype) -> RowsAt:
        return RowsAt(self, dtype)


class RowsAt:
    """The bounds in a precision.

    Args:
        rows: the bounds.
        dtype: the precision.

    Attributes:
        parts: the elementary maps, each of which knows its coordinates.
        bounds: the smallest and the largest numbers within the bounds; the nearest one where there is none.
        inner_bounds: the numbers next to them, strictly inside.
        saturated_dual: finite duals that stand for them.
    """

    def __init__(self, rows: Rows, dtype: torch.dtype) -> None:
        self._rows, self._dtype = rows, dtype
        lo, hi = _rounded_up(rows.lo, dtype), -_rounded_up(-rows.hi, dtype)
        none = (lo > hi) | (rows.lo == rows.hi)
        middle = torch.where(none, 0.5 * rows.lo + 0.5 * rows.hi, 0.0).to(dtype)
        self.bounds: Ends = torch.where(none, middle, lo), torch.where(none, middle, hi)
        self.parts = [self._part(kind, columns) for kind, columns in rows._kinds.items()]

    def _part(self, kind: str, columns: Tensor) -> Columns | IntervalColumns | PinnedColumns:
        rows, dtype = self._rows, self._dtype
        lo, hi = rows.lo[columns], rows.hi[columns]
        if kind == "interval":
            return IntervalColumns(columns, rows.base, lo, hi, dtype)
        if kind == "pinned":
            return PinnedColumns(columns, self.bounds[0][columns])
        if kind == "line":
            return Columns(columns, _LINE, torch.zeros_like(lo), 1.0, dtype)
        return Columns(columns, _HALF_LINE, *((lo, 1.0) if kind == "lower" else (hi, -1.0)), dtype)

    @plain_property
    def saturated_dual(self) -> Ends:
        low, high = self._reached
        return -low, high

    @plain_property
    def _gaps(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """Distances from the ends that round to none: see `LegendreFunction`."""
        rows, eighth = self._rows, 0.125 * torch.finfo(self._dtype).eps
        width = rows.hi - rows.lo
        low, high = (eighth * torch.minimum(end.double().abs().clamp_min(1.0), width) for end in self.bounds)
        return low, high

    @plain_property
    def _reached(self) -> tuple[Tensor, Tensor]:
        """|y| from which on ρ(y) is within the gap of each end; the largest number where that is infinite."""
        rows, found = self._rows, []
        largest = torch.finfo(self._dtype).max
        for end, gap in zip((rows.lo, rows.hi), self._gaps, strict=True):
            size = torch.full_like(end, largest)
            for kind, columns in rows._kinds.items():
                if kind == "pinned":
                    size[columns] = 0.0
                elif kind == "interval":
                    scale = interval_scale(rows.base, rows.lo[columns], rows.hi[columns])
                    size[columns] = _dual_at_gaps(rows.base, gap[columns] / scale)
                elif kind != "line" and bool(torch.isfinite(end[columns[:1]])):
                    size[columns] = _dual_at_gaps(_HALF_LINE, gap[columns])
            found.append(size.clamp_max(largest).to(self._dtype))
        return found[0], found[1]

    @plain_property
    def inner_bounds(self) -> Ends:
        (lo, hi), (low_gap, high_gap), dtype = self.bounds, self._gaps, self._dtype
        most, pinned = torch.finfo(dtype).max, self._rows.pinned
        up = torch.maximum(torch.nextafter(lo, torch.full_like(lo, torch.inf)), (lo.double() + low_gap).to(dtype))
        down = torch.minimum(torch.nextafter(hi, torch.full_like(hi, -torch.inf)), (hi.double() - high_gap).to(dtype))
        up, down = torch.where(torch.isinf(lo), -most, up), torch.where(torch.isinf(hi), most, down)
        return (up, down) if pinned is None else (torch.where(pinned, lo, up), torch.where(pinned, hi, down))


def _rounded_up(bound: Float[Tensor, " d"], dtype: torch.dtype) -> Float[Tensor, " d"]:
    """The smallest numbers of `dtype` not below; infinities kept."""
    most = torch.finfo(dtype).max
    near = torch.where(torch.isinf(bound), bound, bound.clamp(-most, most)).to(dtype)
    return torch.where(near.double() < bound, torch.nextafter(near, torch.full_like(near, torch.inf)), near)


def _dual_at_gaps(phi: LegendreFunction, gap: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """`phi._dual_at_gap`, which takes one number, of each gap, rounded down to a power of 2."""
    power, place = torch.frexp(gap).exponent.unique(return_inverse=True)
    duals = [phi._dual_at_gap(2.0 ** (exponent - 1)) for exponent in power.tolist()]
    return gap.new_tensor(duals)[place]


def check_bounds(lower: Tensor, upper: Tensor) -> None:
    """Refuse bounds that are not lo ≤ hi, finite on one side at least.

    Raises:
        ValueError: naming the first entry that is wrong.
        RuntimeError: for bounds that torch.func or forward mode follows.
    """
    if any(is_wrapped(bound) or has_tangent(bound) for bound in (lower, upper)):
        raise RuntimeError(
            "to_box: the bounds lo and hi are constants for torch.func transforms and forward mode: detach them there, "
            "or differentiate with loss.backward()"
        )
    if transformed() and torch.is_grad_enabled() and (lower.requires_grad or upper.requires_grad):
        raise RuntimeError(
            "to_box: inside torch.func transforms and forward mode there is no gradient to lo and hi: give them as "
            "lo.detach() and hi.detach()"
        )
    with on_plain_tensors():
        lo, hi = torch.broadcast_tensors(lower.detach(), upper.detach())
        wrong = ~((lo <= hi) & (lo < torch.inf) & (hi > -torch.inf))
    if bool(wrong.any()):
        first = int(wrong.flatten().nonzero()[0])
        raise ValueError(
            f"to_box: lo must be at most hi, and one number between them finite; got [{float(lo.flatten()[first]):g}, "
            f"{float(hi.flatten()[first]):g}] at entry {first}"
        )
