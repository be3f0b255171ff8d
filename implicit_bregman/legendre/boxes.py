"""Bounds of their own for every coordinate: a mirror map that is elementwise, of one elementary map for each kind.

A coordinate with two bounds has the affine image of a bounded φ₀ on [lo, hi], one with a single bound softplus, shifted
to it and mirrored where it is the upper one, one without bounds z²/2, and one with lo = hi stays where it is. The dual
scale is that of φ₀ everywhere, so that γ is one number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.legendre.base import LegendreFunction
from implicit_bregman.legendre.box import BoundedLegendreFunction
from implicit_bregman.legendre.columnwise import Columnwise
from implicit_bregman.legendre.once import once
from implicit_bregman.legendre.rows import Rows, check_bounds


@dataclass(frozen=True, eq=False)
class Boxes(Columnwise):
    """C = {z : lo ≤ z ≤ hi} with bounds of its own for each coordinate; made by `LegendreFunction.to_box`.

    `domain`, `bounds`, `inner_bounds` and `saturated_dual` are pairs of tensors, of one entry for each coordinate of a
    state. `activation` and `inverse_activation` are differentiable in lo and hi, the other maps in their arguments.
    Two of them are equal if they are the same object.

    Attributes:
        base: φ₀, the function of the coordinates with two bounds.
        lower: lo, of the event shape of the states, or of a shape that broadcasts to it; −inf: there is none.
        upper: hi, in the same way.
    """

    base: BoundedLegendreFunction
    lower: Tensor
    upper: Tensor
    layout: Rows | None = field(default=None, repr=False)
    """The bounds of states that come as rows (B, d); None: the states have the shape of the bounds."""

    name: ClassVar[str] = "boxes"

    def __post_init__(self) -> None:
        if self.layout is None:
            check_bounds(self.lower, self.upper)

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    @classmethod
    def of(cls, base: BoundedLegendreFunction, lo: float | Tensor, hi: float | Tensor) -> Boxes:
        """From numbers and tensors.

        Raises:
            TypeError: for tensors that are not floating point.
            ValueError: for shapes or devices that do not go together, and where not lo ≤ hi.
        """
        given = {"lo": lo, "hi": hi}
        tensors = {name: bound for name, bound in given.items() if isinstance(bound, Tensor)}
        for name, bound in tensors.items():
            if not bound.is_floating_point():
                raise TypeError(f"to_box: {name} must be floating point, got {bound.dtype}: call {name}.float()")
        like = next(iter(tensors.values()))
        if any(bound.device != like.device for bound in tensors.values()):
            raise ValueError(f"to_box: lo is on {tensors['lo'].device}, but hi is on {tensors['hi'].device}: move one")
        lower, upper = (b if isinstance(b, Tensor) else like.new_tensor(b, dtype=torch.float64) for b in (lo, hi))
        try:
            torch.broadcast_shapes(lower.shape, upper.shape)
        except RuntimeError:
            raise ValueError(
                f"to_box: lo of shape {tuple(lower.shape)} and hi of shape {tuple(upper.shape)} do not broadcast: give "
                "both the shape of a state"
            ) from None
        return cls(base, lower, upper)

    def for_states(self, event: tuple[int, ...], like: Tensor | None = None) -> Boxes:
        device = self.lower.device if like is None else like.device
        return replace(self, layout=Rows.of(self.base, self.lower, self.upper, event, device))

    def on(self, columns: Tensor) -> Boxes:
        return replace(self, layout=self._known.select(columns))

    def to_box(self, lo: float | Tensor, hi: float | Tensor) -> LegendreFunction:
        return self.base.to_box(lo, hi)

    @property
    def _known(self) -> Rows:
        """The bounds as rows; those of states of their own shape where no other is known."""
        if self.layout is not None:
            return self.layout
        event = tuple(torch.broadcast_shapes(self.lower.shape, self.upper.shape))
        return Rows.of(self.base, self.lower, self.upper, event, self.lower.device)

    # What C is ------------------------------------------------------------------------------------------------------

    @property
    def is_legendre(self) -> bool:
        return self.base.is_legendre or not self._known.has_intervals

    @property
    def strong_convexity(self) -> float:
        return self._known.strong_convexity

    @property
    def curvature_at_infinity(self) -> float:  # type: ignore[override]
        return math.inf if self.is_bounded else 1.0

    @property
    def is_steeper_somewhere(self) -> bool:
        return not self._known.has_lines

    # Derivatives in the bounds ----------------------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        return self.lower.requires_grad or self.upper.requires_grad

    def detach(self) -> Boxes:
        if not self.requires_grad:
            return self
        rows = None if self.layout is None else self.layout.detach()
        return Boxes(self.base, self.lower.detach(), self.upper.detach(), rows)

    def followed(self, z: Float[Tensor, "batch d"], dual: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        if not self.requires_grad or not torch.is_grad_enabled():
            return z
        # ρ is affine in lo and hi.
        rows, y = self._rows_of(dual)
        (by_lo, by_hi), (lo, hi) = rows.shares(y), rows.sources(y.dtype)
        moved = by_lo * (lo - lo.detach()) + by_hi * (hi - hi.detach())
        return z + moved.reshape(z.shape)

    def followed_inverse(self, dual: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        slope = self.slope(dual)
        moved = self.followed(torch.zeros_like(dual), dual)
        # (once, since nothing here knows how the slope changes with the bounds)
        return once(torch.where(slope > 0, -moved / torch.where(slope > 0, slope, 1.0), 0.0))

    def followed_potential(self, dual: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        # (on an interval it is proportional to the width, and elsewhere it does not change)
        rows, y = self._rows_of(dual)
        lo, hi = rows.sources(y.dtype)
        width = hi - lo
        return (rows.potential_share(y) * (width - width.detach())).sum(-1)

    def activation(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ρ(y), differentiable in y, lo and hi."""
        return self.followed(super().activation(y), y)

    def inverse_activation(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ρ⁻¹(z), differentiable in z, and once in lo and hi."""
        rows, flat = self._rows_of(z)
        if rows.pinned is not None and z.requires_grad:
            # (not 0 · ∞)
            z = torch.where(rows.pinned, flat.detach(), flat).reshape(z.shape)
        y = super().inverse_activation(z)
        return y + self.followed_inverse(y.detach()) if self.requires_grad and torch.is_grad_enabled() else y

    def _rows_of(self, tensor: Tensor) -> tuple[Rows, Tensor]:
        rows = self.layout
        if rows is None:
            depth = max(1, self.lower.dim(), self.upper.dim())
            rows = Rows.of(self.base, self.lower, self.upper, tuple(tensor.shape[-depth:]), tensor.device)
        return rows, rows.flat(tensor)
