"""The contract of a mirror map: what the solvers and the adjoints ask of C and φ."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.legendre.coupling import Coupling
from implicit_bregman.legendre.rounding import round_down

Ends = tuple[Any, Any]
"""Something of the lower and of the upper end of every coordinate: two floats, or for `Boxes` two tensors (d,)."""


@dataclass(frozen=True)
class MirrorMap(ABC):
    """A convex φ on a closed convex set C, by its mirror map ρ = ∇φ* and the metric of it.

    Solvers carry the dual y, never z. It stays finite and exact where z = ρ(y) has long rounded to the boundary of C
    (Bauschke & Borwein, "Legendre functions and the method of random Bregman projections", 1997).

    φ is a sum over the coordinates. C is an interval for each of them (`LegendreFunction`: everything is elementwise),
    perhaps cut by the condition that the coordinates of a block have a given sum (`Simplex`). Then y means the same z
    when a number is added to a whole block, and `project_dual` picks the y with ρ₀(y) = z, where ρ₀ is elementwise.
    """

    name: ClassVar[str]
    """The name under which `geometry` finds it."""
    dual_domain: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    """The ends of the y for which there is a ρ(y): where they are finite, φ* is ∞ beyond."""
    middle: ClassVar[float] = 0.0
    """The dual, well inside `dual_domain`, at which a solve begins that is given no start."""
    max_curvature: ClassVar[float]
    curvature_at_infinity: ClassVar[float]
    is_exponential: ClassVar[bool] = False
    """Whether ρ(s + t) = ρ(s)ρ(t): adding to y multiplies z, as Sinkhorn's iterations do."""

    @property
    def coupling(self) -> Coupling | None:
        """How the coordinates of a block depend on each other; None: they do not, and everything is elementwise."""
        return None

    @property
    @abstractmethod
    def is_legendre(self) -> bool:
        """Whether φ is essentially smooth: ‖∇φ‖ → ∞ wherever C ends."""

    @property
    @abstractmethod
    def domain(self) -> Ends:
        """The ends (lo, hi) of the interval in which every coordinate of C lies, either of them possibly infinite."""

    def rounded_domain(self, dtype: torch.dtype) -> tuple[float, float]:
        """`domain` rounded into C in any precision, as the result of a solve in half precision is.

        Raises:
            ValueError: where the coordinates have bounds of their own.
        """
        lo, hi = self.domain
        return -round_down(-lo, dtype), round_down(hi, dtype)

    @property
    def is_bounded(self) -> bool:
        """Whether all ends are finite."""
        return all(map(math.isfinite, self.domain))

    @property
    def is_everything(self) -> bool:
        """Whether no end is finite."""
        return all(map(math.isinf, self.domain))

    @property
    def is_cone(self) -> bool:
        """Whether every end is 0 or infinite."""
        return all(end == 0.0 or math.isinf(end) for end in self.domain)

    @property
    def open_ends(self) -> Ends:
        """Which ends are infinite: bools."""
        lo, hi = self.domain
        return math.isinf(lo), math.isinf(hi)

    @property
    def pinned(self) -> Bool[Tensor, " d"] | None:
        """Which coordinates have lo = hi, so that they are on a bound whatever ∇F is there; None: none."""
        return None

    @property
    def flattest(self) -> float | Float[Tensor, " d"]:
        """The z with the least φ'': the centre of a bounded interval, the infinite end of a half line, or 0."""
        lo, hi = self.domain
        if math.isfinite(lo) and math.isfinite(hi):
            return 0.5 * (lo + hi)
        return hi if math.isfinite(lo) else (lo if math.isfinite(hi) else 0.0)

    @property
    def largest_end(self) -> float | Float[Tensor, " d"]:
        """The larger size of the ends of each coordinate, 0 where one is infinite."""
        most = max(abs(end) for end in self.domain)
        return most if math.isfinite(most) else 0.0

    @property
    def has_every_dual(self) -> bool:
        """Whether there is a ρ(y) for every y."""
        return self.dual_domain == (-math.inf, math.inf)

    @property
    @abstractmethod
    def strong_convexity(self) -> float:
        """σ: φ is at least σ/2 ‖·‖² curved along C."""

    @property
    def strong_convexity_in_sums(self) -> float:
        """σ₁: φ is at least σ₁/2 Σ‖·‖₁² curved along C, with a term for each block of `coupling`; 0: not known."""
        return 0.0

    @property
    def is_steeper_somewhere(self) -> bool:
        """Whether φ'' > σ almost everywhere, in every coordinate."""
        return self.max_curvature > self.strong_convexity

    @property
    @abstractmethod
    def elementwise(self) -> MirrorMap:
        """ρ₀, φ₀: the map of each coordinate on its own."""

    @property
    def unit(self) -> float | Float[Tensor, " d"]:
        """A length that counts as large for a coordinate of z: 1, or the width of a C that is narrower, but not 0."""
        lo, hi = self.domain
        return min(1.0, hi - lo)

    def for_states(self, event: tuple[int, ...], like: Tensor | None = None) -> MirrorMap:
        """The same for states of this shape that come as rows (B, d), on the device of `like` (None: where it is).

        Raises:
            ValueError: if states of this shape do not go with it.
        """
        return self

    def on(self, columns: Int[Tensor, " k"]) -> MirrorMap:
        """The same for some of the coordinates, where there is no coupling."""
        return self

    # Maps --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def activation(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ρ(y) = ∇φ*(y), a point of C also after rounding."""

    @abstractmethod
    def inverse_activation(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ρ⁻¹(z) = ∇φ(z)."""

    @abstractmethod
    def slope(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """s = 1/φ''(ρ(y)), elementwise, of which `derivative` makes that of ρ."""

    @abstractmethod
    def curvature(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """φ''(ρ(y)), elementwise."""

    @abstractmethod
    def log_curvature(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """log φ''(ρ(y))."""

    @abstractmethod
    def log_curvature_slope(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The derivative of log φ''(ρ₀(y)) in y, elementwise; not differentiable again."""

    @abstractmethod
    def dual_potential(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The terms of φ(ρ(y)), elementwise."""

    @abstractmethod
    def potential(self, z: Float[Tensor, "*shape"]) -> Tensor:
        """φ(z): elementwise, or summed over the last dimension where there is a coupling."""

    @abstractmethod
    def conjugate(self, y: Float[Tensor, "*shape"]) -> Tensor:
        """φ*(y) = max over z in C of ⟨z, y⟩ − φ(z): elementwise, or summed over the last dimension."""

    @abstractmethod
    def divergence(
        self, u: Float[Tensor, "*batch features"], v: Float[Tensor, "*batch features"]
    ) -> Float[Tensor, "*batch"]:
        """D_φ(u, v), summed over the last dimension."""

    @abstractmethod
    def dual_divergence(
        self, p: Float[Tensor, "*batch features"], q: Float[Tensor, "*batch features"]
    ) -> Float[Tensor, "*batch"]:
        """D_φ(ρ(p), ρ(q)), summed over the last dimension."""

    @abstractmethod
    def project_dual(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The dual that is chosen among all that stand for the same ρ(y)."""

    def gauged(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """y with the right sums of ρ₀(y), where coordinates are coupled; beyond a clamp it runs on."""
        return y

    @abstractmethod
    def is_interior(self, z: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Whether each coordinate lies strictly inside its interval and is finite."""

    @abstractmethod
    def bounds(self, dtype: torch.dtype) -> Ends:
        """`domain` in a precision, rounded into C."""

    def dual_bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        """The smallest and the largest number of `dtype` in `dual_domain` at which ρ and φ* are finite."""
        largest = float(torch.finfo(dtype).max)
        return -largest, largest

    def into_dual_domain(self, y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """y itself, or the last of `dual_bounds` where it lies beyond `dual_domain`."""
        return y if self.has_every_dual else y.clamp(*self.dual_bounds(y.dtype))

    def in_dual_domain(self, y: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Whether y lies between the ends of `dual_domain`, elementwise."""
        lo, hi = self.dual_domain
        return (y > lo) & (y < hi)

    @abstractmethod
    def inner_bounds(self, dtype: torch.dtype) -> Ends:
        """The numbers next to `bounds`, strictly inside."""

    @abstractmethod
    def saturated_dual(self, dtype: torch.dtype) -> Ends:
        """Finite duals that stand for the bounds."""

    @abstractmethod
    def to_box(self, lo: float | Tensor, hi: float | Tensor) -> MirrorMap:
        """The same with other bounds of the coordinates."""

    @abstractmethod
    def finite_dual(self, z: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
        """A finite y that stands for z, also where z is on the boundary of C. Not differentiable."""

    # Derivatives in φ's own tensors ---------------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """Whether it is made of tensors that want a gradient."""
        return False

    def detach(self) -> MirrorMap:
        """The same, of tensors without gradient."""
        return self

    def followed(self, z: Float[Tensor, "batch d"], dual: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The numbers z = ρ(y) as a function of the tensors that ρ is made of, at a fixed y = `dual`."""
        return z

    def followed_inverse(self, dual: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """0, as ρ⁻¹(z) less its number as a function of these tensors, at a fixed z = ρ(y)."""
        return torch.zeros_like(dual)

    def followed_potential(self, dual: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """0, as φ(ρ(y)) less its number as a function of these tensors, at a fixed y = `dual`."""
        return torch.zeros_like(dual[:, 0])

    # What C asks of a step ------------------------------------------------------------------------------------------

    @abstractmethod
    def project(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Π_C(z), the nearest point of C."""

    @abstractmethod
    def feasible_step(
        self, z: Float[Tensor, "batch d"], step: Float[Tensor, "batch d"], bounds: Ends
    ) -> Float[Tensor, "batch d"]:
        """z − Π_C(z − `step`), to the digits of the step. The step may be overwritten."""

    def tangential(self, total: Float[Tensor, "batch d"], dual: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """∇F = `total` without the part that no direction along C sees, at ρ(`dual`)."""
        return total

    def common_scale(self, scale: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The scales of coordinates that are measured together."""
        return scale

    def derivative(self, slope: Float[Tensor, "batch d"], v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """ρ'(y)v: by how much z = ρ(y) changes, to first order, when y changes by v. `slope` is s."""
        return slope * v
