"""Parts of a state that have geometries of their own: C = C₁ × C₂ × …, φ(z) = Σ wₖφₖ(zₖ)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.legendre.arguments import positive_float
from implicit_bregman.legendre.base import LegendreFunction
from implicit_bregman.legendre.columnwise import Columnwise, Layout, plain_property
from implicit_bregman.legendre.mirror import Ends
from implicit_bregman.legendre.registry import geometry
from implicit_bregman.settings import check_count
from implicit_bregman.transforms import on_plain_tensors

_FORM = "give pairs (geometry, size), or triples (geometry, size, weight)"

PartOfState = tuple[Any, ...]
"""(geometry, size) or (geometry, size, weight)."""


@dataclass(frozen=True, eq=False)
class Product(Columnwise):
    """C = C₁ × C₂ × … and φ(z) = Σ wₖφₖ(zₖ) for the parts zₖ of a state, consecutive coordinates each.

    A weight multiplies γ for its part, which gives each part its own γ. A tensor of weights gives each coordinate its
    own. The activation is ρ(y) = ρₖ(y/wₖ). The parts of a state that is not flat follow each other in its entries
    row by row. `domain`, `bounds`, `inner_bounds` and `saturated_dual` are pairs of tensors, of one entry for each
    coordinate. Two products are equal if they are the same object.

    Args:
        parts: for each part its geometry, by name or instance, its number of coordinates, and perhaps its weight w > 0,
            a number or a tensor with an entry for each coordinate; 1 if it is left out.

    Raises:
        TypeError: for parts of another form.
        ValueError: for a size or a weight out of range, a geometry that couples its coordinates (simplex) or that has
            no ρ(y) for some y (burg), and tensors of weights or bounds that want a gradient.
    """

    parts: Sequence[PartOfState]
    layout: ProductLayout | None = field(default=None, repr=False)
    """That of states that come as rows (B, d); None: the states are flat."""
    _flat_layouts: dict[torch.device, ProductLayout] = field(default_factory=dict, init=False, repr=False)

    name: ClassVar[str] = "product"

    def __post_init__(self) -> None:
        if not isinstance(self.parts, Sequence) or isinstance(self.parts, str) or not self.parts:
            raise TypeError(f"product: got {self.parts!r}; {_FORM}")
        object.__setattr__(self, "parts", tuple(_checked(part) for part in self.parts))

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    @property
    def size(self) -> int:
        """d, the number of coordinates."""
        return sum(size for _, size, _ in self.parts)

    def for_states(self, event: tuple[int, ...], like: Tensor | None = None) -> Product:
        count = torch.Size(event).numel()
        if count != self.size:
            raise ValueError(
                f"product: its parts have {self.size} coordinates together, but a state of shape {tuple(event)} has "
                f"{count}"
            )
        device = torch.device("cpu") if like is None else like.device
        return replace(self, layout=ProductLayout.of(self.parts, event, device))

    def on(self, columns: Int[Tensor, " k"]) -> Product:
        return replace(self, layout=self._known.select(columns))

    def to_box(self, lo: float | Tensor, hi: float | Tensor) -> NoReturn:
        """Refused: give the geometries of the parts their bounds."""
        raise ValueError("to_box: the parts of a product have bounds of their own: call to_box of their geometries")

    @property
    def _known(self) -> ProductLayout:
        return self._flat_layout(torch.device("cpu")) if self.layout is None else self.layout

    def _flat_layout(self, device: torch.device) -> ProductLayout:
        if device not in self._flat_layouts:
            self._flat_layouts[device] = ProductLayout.of(self.parts, (self.size,), device)
        return self._flat_layouts[device]

    def _rows_of(self, tensor: Tensor) -> tuple[ProductLayout, Tensor]:
        if self.layout is not None:
            return self.layout, self.layout.flat(tensor)
        if tensor.dim() == 0 or tensor.shape[-1] != self.size:
            raise ValueError(
                f"product: its parts have {self.size} coordinates, but the last dimension of the argument, of shape "
                f"{tuple(tensor.shape)}, is another"
            )
        return self._flat_layout(tensor.device), tensor

    # What φ is ------------------------------------------------------------------------------------------------------

    @property
    def is_legendre(self) -> bool:
        return all(phi.is_legendre for phi, _, _ in self.parts)

    @property
    def strong_convexity(self) -> float:
        return self._known.strong_convexity

    @property
    def max_curvature(self) -> float:  # type: ignore[override]
        return max(phi.max_curvature * float(weight.max()) for phi, weight, _ in self._known.groups)

    @property
    def curvature_at_infinity(self) -> float:  # type: ignore[override]
        return min(phi.curvature_at_infinity * float(weight.min()) for phi, weight, _ in self._known.groups)

    @property
    def is_steeper_somewhere(self) -> bool:
        least = self.strong_convexity
        return all(
            phi.is_steeper_somewhere or phi.strong_convexity * float(weight.min()) > least
            for phi, weight, _ in self._known.groups
        )

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles make their layouts anew."""
        return {**self.__dict__, "_flat_layouts": {}}


def _checked(part: object) -> tuple[LegendreFunction, int, float | Tensor]:
    if not isinstance(part, Sequence) or isinstance(part, str) or len(part) not in (2, 3):
        raise TypeError(f"product: got the part {part!r}; {_FORM}")
    phi, size = geometry(part[0]), part[1]
    check_count("product: size", size)
    weight = part[2] if len(part) == 3 else 1.0
    if phi.coupling is not None or not isinstance(phi, LegendreFunction):
        raise ValueError(
            f"product: {phi.name} couples its coordinates, and the parts of a product are geometries of single "
            "coordinates: make the whole state a simplex, of blocks of one size"
        )
    if not phi.has_every_dual:
        raise ValueError(
            f"product: {phi.name} has no ρ(y) for y outside {phi.dual_domain}, which a part needs: use another "
            "geometry (exp, softplus and bent have the same domain)"
        )
    if phi.requires_grad:
        raise ValueError("product: there is no gradient to the bounds of a part: detach them")
    return phi, size, _checked_weight(weight, size)


def _checked_weight(weight: object, size: int) -> float | Tensor:
    if not isinstance(weight, Tensor):
        return positive_float(weight, "product: weight")  # type: ignore[arg-type]
    if weight.requires_grad:
        raise ValueError("product: there is no gradient to weights: detach them")
    if not weight.is_floating_point() or weight.shape != (size,):
        raise ValueError(
            f"product: weight must be a number or a floating-point tensor of shape ({size},), one for each coordinate "
            f"of the part, got {weight.dtype} of shape {tuple(weight.shape)}"
        )
    with on_plain_tensors():
        good = bool((torch.isfinite(weight) & (weight > 0)).all())
    if not good:
        raise ValueError(f"product: weights must be positive and finite, got {weight.tolist()}")
    return weight.clone()


Group = tuple[LegendreFunction, Float[Tensor, " k"], Int[Tensor, " k"]]
"""φₖ, its weights in float64 and its coordinates."""


class ProductLayout(Layout):
    """Which coordinates belong to which part.

    Args:
        groups: the parts that have coordinates.
        event: the shape of a state.
    """

    def __init__(self, groups: Sequence[Group], event: tuple[int, ...]) -> None:
        self.groups, self.event = tuple(groups), event
        self.lo, self.hi = (self._whole([phi.domain[end] for phi, _, _ in groups]) for end in (0, 1))

    @classmethod
    def of(cls, parts: Sequence[PartOfState], event: tuple[int, ...], device: torch.device) -> ProductLayout:
        """Of checked parts."""
        groups: list[Group] = []
        first = 0
        with on_plain_tensors():
            for phi, size, weight in parts:
                columns = torch.arange(first, first + size, device=device)
                weights = torch.as_tensor(weight, dtype=torch.float64, device=device).expand(size)
                groups.append((phi.for_states((size,), columns), weights, columns))
                first += size
            return cls(groups, event)

    def select(self, columns: Int[Tensor, " k"]) -> ProductLayout:
        groups: list[Group] = []
        with on_plain_tensors():
            for phi, weights, own in self.groups:
                place = torch.full_like(self.lo, -1, dtype=torch.int64)
                place[own] = torch.arange(len(own), device=own.device)
                local = place[columns]
                chosen = (local >= 0).nonzero().squeeze(-1)
                if len(chosen):
                    kept = local[chosen]
                    groups.append((phi.on(kept), weights[kept], chosen))  # type: ignore[arg-type]
            return ProductLayout(groups, (len(columns),))

    def _whole(self, entries: Sequence[float | bool | Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
        """What each group has, a number or a tensor, for all coordinates."""
        columns = [columns for _, _, columns in self.groups]
        whole = torch.empty(sum(map(len, columns)), dtype=dtype, device=columns[0].device)
        for own, entry in zip(columns, entries, strict=True):
            whole[own] = torch.as_tensor(entry, dtype=dtype, device=own.device)
        return whole

    @plain_property
    def back(self) -> Int[Tensor, " d"]:
        return torch.cat([columns for _, _, columns in self.groups]).argsort()

    @plain_property
    def pinned(self) -> Bool[Tensor, " d"] | None:
        found = [phi.pinned for phi, _, _ in self.groups]
        if all(each is None for each in found):
            return None
        return self._whole([False if each is None else each for each in found], torch.bool)

    @plain_property
    def strong_convexity(self) -> float:
        """σ."""
        return min(phi.strong_convexity * float(weight.min()) for phi, weight, _ in self.groups)

    def _at(self, dtype: torch.dtype) -> ProductLayoutAt:
        return ProductLayoutAt(self, dtype)


class ProductLayoutAt:
    """A layout in a precision: see `LayoutAt`."""

    def __init__(self, layout: ProductLayout, dtype: torch.dtype) -> None:
        normal = torch.finfo(dtype)
        for phi, weight, _ in layout.groups:
            if not bool(((weight >= normal.tiny) & (weight <= normal.max)).all()):
                raise ValueError(
                    f"product: the weights of {phi.name} are beyond {dtype}, which holds {normal.tiny:.3g} to "
                    f"{normal.max:.3g}: change them, or compute in float64"
                )
        self.parts = [WeightedColumns(columns, phi, weight.to(dtype)) for phi, weight, columns in layout.groups]

        def whole(ends: Callable[[LegendreFunction], Ends]) -> Ends:
            low, high = zip(*(ends(phi) for phi, _, _ in layout.groups), strict=True)
            return layout._whole(low, dtype), layout._whole(high, dtype)

        self.bounds = whole(lambda phi: phi.bounds(dtype))
        self.inner_bounds = whole(lambda phi: phi.inner_bounds(dtype))
        most, weight = torch.finfo(dtype).max, layout._whole([weight for _, weight, _ in layout.groups])
        low, high = (
            (weight * end.double()).clamp(-most, most).to(dtype) for end in whole(lambda phi: phi.saturated_dual(dtype))
        )
        self.saturated_dual: Ends = low, high


class WeightedColumns:
    """wφ for some of the coordinates.

    Args:
        columns: which coordinates these are.
        phi: φ.
        weight: w, in the precision of the numbers to come.
    """

    def __init__(self, columns: Int[Tensor, " k"], phi: LegendreFunction, weight: Float[Tensor, " k"]) -> None:
        self.columns, self.phi, self.weight = columns, phi, weight

    def project_dual(self, y: Tensor) -> Tensor:
        return self.weight * self.phi._project_dual(y / self.weight)

    def activation(self, y: Tensor) -> Tensor:
        return self.phi._activation(y / self.weight)

    def inverse_activation(self, z: Tensor) -> Tensor:
        return self.weight * self.phi._inverse_activation(z)

    def potential(self, z: Tensor) -> Tensor:
        return self.weight * self.phi._potential(z)

    def conjugate(self, y: Tensor) -> Tensor:
        return self.weight * self.phi._conjugate(y / self.weight)

    def curvature(self, y: Tensor) -> Tensor:
        return self.weight * self.phi._curvature(y / self.weight)

    def log_curvature(self, y: Tensor) -> Tensor:
        return self.phi._log_curvature(y / self.weight) + self.weight.log()

    def slope(self, y: Tensor) -> Tensor:
        return self.phi._slope(y / self.weight) / self.weight

    def log_curvature_slope(self, y: Tensor) -> Tensor:
        return self.phi._log_curvature_slope(y / self.weight) / self.weight

    def dual_potential(self, y: Tensor) -> Tensor:
        return self.weight * self.phi._dual_potential(y / self.weight)

    def divergence(self, u: Tensor, v: Tensor, d: Tensor) -> Tensor:
        return self.weight * self.phi._divergence(u, v, d)

    def dual_divergence(self, p: Tensor, q: Tensor, d: Tensor) -> Tensor:
        p, q, d = (each / self.weight for each in (p, q, d))
        return self.weight * self.phi._dual_divergence(p, q, d)
