"""The feed-forward layers that the paper compares (Sec. 6.1): standard, Euclidean, Bregman."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman.compilation import without_autocast
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre import geometry as lookup
from implicit_bregman.settings import check_choice
from implicit_bregman.tensors import check_dense

KINDS = ("standard", "euclidean", "bregman")


class StandardLinear(nn.Linear):
    """z⁺ = ρ(Wz + b).

    Args:
        in_features: n, the width of z.
        out_features: d, the width of z⁺.
        geometry: φ, whose ρ = ∇φ* is the activation, by name or instance.
        bias: whether to learn b.
        device: where the parameters are made.
        dtype: in which precision the parameters are made.

    Shape:
        `(…, n)` → `(…, d)`.

    Raises:
        ValueError: for a width below 1, and a geometry that has no ρ(y) for some y (burg).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        geometry: str | MirrorMap = "tanh",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, width in (("in_features", in_features), ("out_features", out_features)):
            if width < 1:
                raise ValueError(f"{name} must be at least 1, got {width}")
        self.geometry = lookup(geometry)
        if not self.geometry.has_every_dual:
            raise ValueError(
                f"geometry: {self.geometry.name} has a ρ(y) for y in {self.geometry.dual_domain} only, and a layer may "
                "give any y: use another geometry (exp, softplus and bent are positive, too)"
            )
        super().__init__(in_features, out_features, bias, device, dtype)

    def forward(self, z: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """z⁺."""
        lifted = _lifted(z, self)
        with without_autocast(z.device.type):
            result = self.geometry.activation(self.enter(lifted))
        return result.to(_result_dtype(z))

    def enter(self, z: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """ρ⁻¹(z⁺) for a z, at least float32, that may come from anywhere."""
        return self.geometry.project_dual(self.dual(z))

    def dual(self, z: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """Wz + b, and what else the layer adds to it, at least in float32."""
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if weight.dtype != z.dtype:
            weight, bias = weight.to(z.dtype), None if bias is None else bias.to(z.dtype)
        return nn.functional.linear(z, weight, bias)

    def extra_repr(self) -> str:
        """Widths, bias and geometry."""
        return f"{super().extra_repr()}, geometry={self.geometry!r}"


class _WithOffset(StandardLinear):
    """A layer that adds something of z: where the widths differ, z goes through a row-stochastic map first.

    Row i of the map averages the inputs in the i-th of d equal parts of [0, n), so that a point of C stays in C; it
    is the identity where n = d. It is not learned.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        geometry: str | MirrorMap = "tanh",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, geometry, bias, device, dtype)
        averages = None if in_features == out_features else _averages(in_features, out_features).to(self.weight)
        self.averages: Tensor | None
        self.register_buffer("averages", averages, persistent=False)

    def reset_parameters(self) -> None:
        """Draw the parameters anew, and fill in the averages, which `to_empty()` empties as well."""
        super().reset_parameters()
        averages: Tensor | None = self._buffers.get("averages")
        if averages is not None:
            averages.copy_(_averages(self.in_features, self.out_features))

    def offset(self, z: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """z itself, or its averages where the widths differ."""
        return z if self.averages is None else nn.functional.linear(z, self.averages.to(z.dtype))


class EuclideanLinear(_WithOffset):
    """z⁺ = ρ(z + Wz + b): the same as `StandardLinear`, parametrized around the identity.

    Args:
        in_features: n, the width of z.
        out_features: d, the width of z⁺. Where it differs from n, the z that is added is averaged.
        geometry: φ, by name or instance.
        bias: whether to learn b.
        device: where the parameters are made.
        dtype: in which precision the parameters are made.

    Shape:
        `(…, n)` → `(…, d)`.
    """

    def dual(self, z: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """ρ⁻¹(z⁺)."""
        return super().dual(z).add_(self.offset(z))


class BregmanLinear(_WithOffset):
    """z⁺ = ρ(ρ⁻¹(z) + Wz + b), the Bregman feed-forward layer (Definition 4.3).

    Args:
        in_features: n, the width of z.
        out_features: d, the width of z⁺. Where it differs from n, the z inside ρ⁻¹ is averaged.
        geometry: φ, by name or instance.
        bias: whether to learn b.
        device: where the parameters are made.
        dtype: in which precision the parameters are made.

    Shape:
        z `(…, n)`, in C, → z⁺ `(…, d)`, in C. An entry on the boundary counts as the nearest float inside: its ρ⁻¹ is
        large, not infinite.

    Raises:
        ValueError: if an entry of z lies outside C (in `forward`).
    """

    def enter(self, z: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """ρ⁻¹(z⁺) for a z, at least float32, that may come from anywhere: it is checked to lie in C."""
        if _leaves(z.detach(), self.geometry):
            raise ValueError(
                f"z must lie in the domain {self.geometry.domain} of {self.geometry.name}, got entries from "
                f"{float(z.min()):g} to {float(z.max()):g}: map it there first, for example with geometry.activation"
            )
        return super().enter(z)

    def dual(self, z: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """ρ⁻¹(z) + Wz + b."""
        return super().dual(z).add_(self._inverse(self.offset(z)))

    def carry(self, y: Float[Tensor, "*batch n"], z: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """ρ⁻¹(z) + Wz + b for z = ρ(y): where the widths agree, y itself stands for ρ⁻¹(z), without rounding."""
        return super().dual(z).add_(y) if self.averages is None else self.dual(z)

    def _inverse(self, z: Tensor) -> Tensor:
        """ρ⁻¹ of z, with duals beyond saturation cut off (and no gradient there)."""
        phi = self.geometry
        y = phi.inverse_activation(z.clamp(*phi.inner_bounds(z.dtype)))
        if phi.is_legendre:
            return y
        # ρ⁻¹ has a value at the bounds.
        (lo, hi), (y_lo, y_hi) = phi.bounds(z.dtype), phi.saturated_dual(z.dtype)
        return torch.where(z >= hi, y_hi, torch.where(z <= lo, y_lo, y))


class FeedForward(nn.Sequential):
    """A network of the layers of Sec. 6.1; with `kind="bregman"` it carries y = ρ⁻¹(z) between equal widths.

    Args:
        widths: n₀, n₁, …, n_L.
        geometry: φ, by name or instance.
        kind: "standard", "euclidean" or "bregman".
        bias: whether to learn biases.
        device: where the parameters are made.
        dtype: in which precision the parameters are made.

    Shape:
        `(…, n₀)` → `(…, n_L)`.

    Raises:
        ValueError: for fewer than two widths or an unknown kind.
    """

    def __init__(
        self,
        widths: Sequence[int],
        geometry: str | MirrorMap = "tanh",
        kind: str = "bregman",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_choice("kind", kind, KINDS)
        if len(widths) < 2:
            raise ValueError(f"widths must name the input and at least one layer, got {list(widths)}")
        layer = {"standard": StandardLinear, "euclidean": EuclideanLinear, "bregman": BregmanLinear}[kind]
        phi = lookup(geometry)
        super().__init__(*(layer(n, d, phi, bias, device, dtype) for n, d in pairwise(widths)))
        self.kind = kind
        self.geometry = phi

    def forward(self, z: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """The output of the last layer."""
        return self.layer_outputs(z)[-1]

    def layer_outputs(self, z: Float[Tensor, "*batch n"]) -> list[Float[Tensor, "*batch width"]]:
        """The output of every layer, in order."""
        first = self[0]
        assert isinstance(first, StandardLinear)
        result_dtype, z = _result_dtype(z), _lifted(z, first)
        outputs = []
        y: Tensor | None = None
        with without_autocast(z.device.type):
            for layer in self:
                assert isinstance(layer, StandardLinear)
                if y is not None and isinstance(layer, BregmanLinear):
                    y = self.geometry.project_dual(layer.carry(y, z))
                else:
                    y = layer.enter(z)
                z = self.geometry.activation(y)
                outputs.append(z.to(result_dtype))
        return outputs


def _averages(n: int, d: int) -> Tensor:
    """Row-stochastic (d, n): row i averages [i n/d, (i + 1) n/d) of the inputs, in float64."""
    edges = torch.linspace(0, n, d + 1, dtype=torch.float64)
    cells = torch.arange(n, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    weights = overlap.clamp_min(0)
    return weights / weights.sum(-1, keepdim=True)


def _leaves(z: Tensor, geometry: MirrorMap) -> bool:
    """Whether an entry of z lies outside C."""
    if z.numel() == 0 or geometry.is_everything:
        return False
    lo, hi = geometry.bounds(z.dtype)
    if not isinstance(lo, float):
        return bool(((geometry.project(z) - z).abs() > 0).any())
    least, most = torch.aminmax(z)
    if float(least) >= lo and float(most) <= hi:
        return False
    # (one NaN makes both ends NaN)
    return bool(((z < lo) | (z > hi)).any())


def _lifted(z: Tensor, layer: StandardLinear) -> Tensor:
    """An input that fits the layer, in the precision of its parameters but never less than float32.

    Raises:
        TypeError: unless z is a floating-point tensor.
        ValueError: if its width, layout, or dtype (outside autocast), does not fit.
    """
    check_dense("z", z)
    if not z.is_floating_point():
        raise TypeError(f"z must be a floating-point tensor, got {z.dtype}: call .float()")
    if z.dim() == 0:
        raise ValueError(f"z must have {layer.in_features} features in its last dimension, got a 0-d tensor")
    if z.shape[-1] != layer.in_features:
        raise ValueError(f"z must have {layer.in_features} features in its last dimension, got shape {tuple(z.shape)}")
    own = layer.weight.dtype
    if z.dtype != own and not torch.is_autocast_enabled(z.device.type):
        raise ValueError(f"z is {z.dtype}, but the weight of the layer is {own}: convert one of them")
    return z.to(torch.float32 if own.itemsize == 2 else own)


def _result_dtype(z: Tensor) -> torch.dtype:
    """The dtype of an output: z's, but float32 under autocast, where a half-precision z is another layer's matter."""
    half = z.dtype.itemsize == 2
    return torch.float32 if half and torch.is_autocast_enabled(z.device.type) else z.dtype
