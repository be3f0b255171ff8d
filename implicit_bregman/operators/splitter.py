"""H's part in an operator splitting, which all samples share: its reflected resolvent, and linear systems by it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.operators.base import Dilation, LinearOperator

#: Where m is smaller than this share of L, the share stands for it, and steps have half the length.
_LEAST = 1e-4
#: The most that αμ can be: beyond 1 nothing is left of what is not H's.
_OF_STRONG = 0.9
#: The least that one round of iterations is to leave of the residual, and the share of the tolerance it aims at.
_ROUND, _MARGIN = 1e-4, 0.3
#: Residuals are computed in float64 for tolerances below so many rounding errors; no round is asked for less than so
#: many.
FAR_ABOVE, _LEAST_ROUNDING = 100.0, 4.0
#: Most iterations, relative to what is expected.
_LONGER = 2
#: Most rounds of refinement.
_REFINEMENTS = 8
#: A round that does not halve the residual is the last.
_CONTRACTION = 0.5


class FreeSetSolution(NamedTuple):
    """What a splitting found on free sets.

    Attributes:
        value: z, (B, d), in the precision of the residuals.
        excess: H z − b, (B, d).
        left: the largest entry of (H z − b)_F relative to its scale, (B,).
        products: products with H.
        iterations: those of the splitting.
    """

    value: Tensor
    excess: Tensor
    left: Tensor
    products: int
    iterations: int


class ScaledSolution(NamedTuple):
    """What a splitting found of (γ + HD) u = b.

    Attributes:
        value: u, (B, d), in the precision of the residuals.
        left: ‖w(b − (γ + HD)u)‖₂ relative to ‖wb‖₂, (B,).
        iterations: those of the splitting.
    """

    value: Tensor
    left: Tensor
    iterations: int


@dataclass(frozen=True)
class Ends:
    """What the speed of a splitting depends on, of H + μI: about, not for proofs.

    Attributes:
        least, largest: m and L, the ends of the spectrum of its symmetric part; where `skew` is not known, the least
            and the largest singular value.
        skew: ω, the norm of the skew part; None: not known, as it is for a matrix.
        strong: μ, the strong convexity of what is split from H: it may as well be H's.
    """

    least: float
    largest: float
    skew: float | None = 0.0
    strong: float = 0.0

    @property
    def is_weak(self) -> bool:
        """Whether H + μI is hardly definite."""
        return self.least <= _LEAST * self.largest

    @property
    def step(self) -> float:
        """α = (m L + ω²/2)^(−1/2), which makes the iterations few."""
        least = max(self.least, _LEAST * self.largest)
        # (whose product may overflow, or vanish)
        known = least**-0.5 * self.largest**-0.5 if 0 < least < math.inf else 1.0
        if self.skew:
            known = 1 / math.hypot(1 / known, math.sqrt(0.5) * self.skew)
        return min(known, _OF_STRONG / self.strong) if self.strong else known

    def iterations(self, reduction: float) -> int:
        """About how many iterations leave this share of an error."""
        largest = self.largest + (self.skew or 0.0)
        root = min(largest / self.least if self.least > 0 else math.inf, 1 / _LEAST) ** 0.5
        rate = (root - 1) / (root + 1)
        few = math.ceil(math.log(reduction) / math.log(0.5 + 0.5 * rate if self.is_weak else rate)) if rate > 0 else 1
        # (singular values say less)
        return max(2, few + few // 2 if self.skew is None else few + few // 4 if self.skew else few)


@dataclass(frozen=True)
class Splitter:
    """The reflected resolvent u ↦ (2(I + α(H + μI))⁻¹ − I)u, and how fast a splitting with it converges.

    Attributes:
        operator: H, in the precision of the iterations.
        ends: of its spectrum, and μ.
        condition: by what an error may exceed a residual.
        step: α; None: that of the ends.
        adjoint: whether it is Hᵀ that is split.
    """

    operator: LinearOperator
    ends: Ends
    condition: float = math.inf
    step: float | None = None
    adjoint: bool = False

    @property
    def alpha(self) -> float:
        """α."""
        return self.ends.step if self.step is None else self.step

    @property
    def halves(self) -> bool:
        """Whether steps are Douglas and Rachford's, half of Peaceman and Rachford's: where H is hardly definite."""
        return self.ends.is_weak

    @classmethod
    def of(cls, operator: LinearOperator, strong: float = 0.0, step: float | None = None) -> Splitter:
        """The splitting of an operator H where H + strong·I is strongly monotone.

        Args:
            operator: H.
            strong: how strongly convex the rest is. That is made H's share, whose contraction is known: the
                iterations are fewer. (Not where the step is given.)
            step: α; None: that of the ends.
        """
        least, largest = operator.bounds_guess()
        skew = operator.skew_guess()
        low, high = (least, largest) if skew is not None else operator.sizes_guess()
        known = math.isfinite(low + high + least + largest) and least + strong > 0
        most = math.hypot(max(largest, high), skew or 0.0)
        condition = max(1.0, (most + strong) / (least + strong)) if known else math.inf
        ends = Ends(low + strong, high + strong, skew, strong if step is None else 0.0)
        return cls(operator, ends, condition, step)

    def iterations(self, reduction: float) -> int:
        """About how many iterations leave this share of an error."""
        return self.ends.iterations(reduction)

    @cached_property
    def _dilation(self) -> Dilation | None:
        return self.operator.dilation()

    def embed(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch e"]:
        """States where the iteration works: (B, d), or on the larger space of a dilation of H."""
        return z if self._dilation is None else self._dilation.embed(z)

    def restrict(self, v: Float[Tensor, "batch e"]) -> Float[Tensor, "batch d"]:
        """The way back."""
        return v if self._dilation is None else self._dilation.restrict(v)

    @property
    def prox_weight(self) -> float:
        """1 − αμ: the weight of z in the equation z·(1 − αμ) + αγy = t of the proximal map; μ of φ is H's share."""
        return 1 - self.alpha * self.ends.strong

    @cached_property
    def reflect(self) -> Callable[[Tensor, Tensor], Tensor]:
        """(u, b) ↦ (2(I + α(H + μI))⁻¹ − I)u + b, for u and b of shape (B, e)."""
        operator = self.operator if self._dilation is None else self._dilation.operator
        return operator.reflected(self.alpha, self.adjoint, self.ends.strong)

    def base(self, right: Float[Tensor, "batch d"]) -> Float[Tensor, "batch e"]:
        """2(I + α(H + μI))⁻¹αb: the point 2x − u of u = 0."""
        right = self.embed(right)
        return self.reflect(right, right) * self.alpha

    def forward(self, z: Float[Tensor, "batch d"], right: Float[Tensor, "batch d"]) -> Float[Tensor, "batch e"]:
        """z − α((H + μI)z − b): the point 2x − u of the u whose x is z."""
        operator = self.operator if self._dilation is None else self._dilation.operator
        z = self.embed(z)
        force = self.embed(right) - operator.product(z, self.adjoint)
        return torch.add(z * self.prox_weight, force, alpha=self.alpha)

    def moved(
        self, u: Float[Tensor, "batch e"], v: Float[Tensor, "batch e"], z: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch e"]:
        """The next u, given v = 2x − u and z: u + 2(z − x), or half the step; of a dilation z is 0 elsewhere."""
        z = self.embed(z)
        return torch.add(z, u - v, alpha=0.5) if self.halves else torch.lerp(v, z, 2.0)

    def select(self, index: Int[Tensor, " kept"]) -> Splitter:
        """The splitting for some of the samples: the same, where all share it."""
        return self if self.operator.batch is None else replace(self, operator=self.operator.select(index))

    def solve_on(self, free: Bool[Tensor, "batch d"], right: Float[Tensor, "batch d"], tol: float) -> FreeSetSolution:
        """z with (H z)_F = b_F and 0 elsewhere.

        Args:
            free: F, (B, d).
            right: b, (B, d).
            tol: bound on the entries of (H z − b)_F relative to the largest of b_F.
        """
        inside = torch.where(free, right, 0.0)
        unit = _units(inside)
        mask = free.to(self.operator.dtype)
        target, count, _ = self._approximate(mask, None, inside / unit, max(_ROUND, _MARGIN * tol))
        found = self._refine(free, inside.double(), (unit * mask * target).double(), tol, lambda _: unit)
        return found._replace(iterations=found.iterations + count)

    def solve_scaled(
        self,
        slope: Float[Tensor, "batch d"],
        damping: float,
        right: Float[Tensor, "batch d"],
        weight: Float[Tensor, "batch d"],
        tol: float,
    ) -> ScaledSolution:
        """u with (γ + H D) u = b, where D may vanish: v = Du solves (γ/D + H) v = b.

        Args:
            slope: D, (B, d), nowhere above γ/μ.
            damping: γ.
            right: b, (B, d).
            weight: w, of the equations, (B, d), at most 1.
            tol: bound on ‖w(b − (γ + HD)u)‖₂ relative to ‖wb‖₂.
        """
        # (rounding in a residual matters where it comes near to what is asked for)
        narrow = self.operator.dtype
        dtype = torch.float64 if tol < FAR_ABOVE * torch.finfo(narrow).eps else narrow
        operator = self.operator if dtype == narrow else self.operator.to(dtype)
        # (at the size 1, where no square overflows)
        whole = _units(right)
        b, wide = (right / whole).to(dtype), slope.to(dtype)
        slope, weight = slope.to(narrow), weight.to(narrow)
        inverse = (slope * self.prox_weight).add_(self.alpha * damping).reciprocal_()
        share = slope * inverse
        size = torch.linalg.vector_norm(weight * b, dim=-1)
        u, left, spent, before, aim = torch.zeros_like(b), b, 0, math.inf, _MARGIN * tol
        for _ in range(_REFINEMENTS):
            unit = _units(weight * left)
            level = max(aim, _LEAST_ROUNDING * torch.finfo(narrow).eps)
            target, count, bound = self._approximate(share, weight, (left / unit).to(narrow), level)
            u, spent = torch.addcmul(u, unit, (inverse * target).to(dtype)), spent + count
            if dtype == narrow and bound is not None and spent == count and bool((bound <= tol).all()):
                # (far above rounding the residual need not be computed)
                return ScaledSolution(whole * u, bound, spent)
            left = torch.sub(b, operator.product(wide * u, self.adjoint)).sub_(u, alpha=damping)
            error = torch.linalg.vector_norm(weight * left, dim=-1) / torch.where(size > 0, size, 1.0)
            worst = float(error.max()) if len(error) else 0.0
            if worst <= tol or not worst < _CONTRACTION * before:
                break
            before, aim = worst, _MARGIN * tol / worst
        return ScaledSolution(whole * u, error, spent)

    def refine_on(
        self,
        free: Bool[Tensor, "batch d"],
        right: Float[Tensor, "batch d"],
        start: Float[Tensor, "batch d"],
        tol: float,
        floor: Tensor | float,
    ) -> FreeSetSolution:
        """z with (H z)_F = b_F and z as in `start` elsewhere.

        Args:
            free: F, (B, d).
            right: b, (B, d).
            start: an estimate of z, (B, d).
            tol: bound on the entries of (H z − b)_F relative to max(|Hz|, |b|) + floor.
            floor: the least scale.
        """
        b = right.double()
        return self._refine(
            free, b, start.double(), tol, lambda excess: torch.maximum((excess + b).abs_(), b.abs()).add_(floor)
        )

    def _refine(
        self, free: Tensor, b: Tensor, z: Tensor, tol: float, scale_of: Callable[[Tensor], Tensor]
    ) -> FreeSetSolution:
        """Rounds of refinement with residuals in float64."""
        wide, spent, before = self.operator.to(torch.float64), 0, math.inf
        scale: Tensor | None = None
        for products in range(1, _REFINEMENTS + 2):
            excess = wide.product(z, self.adjoint) - b
            scale = scale_of(excess) if scale is None else scale
            error = torch.where(free, excess, 0.0)
            left = (error / scale).abs_().amax(-1)
            worst = float(left.max()) if len(left) else 0.0
            if products > _REFINEMENTS or worst <= tol or not worst < _CONTRACTION * before:
                break
            before, level = worst, max(_ROUND, _MARGIN * tol / worst)
            # Scaled to its own size, a residual can neither vanish nor overflow in float32.
            unit, mask = _units(error), free.to(self.operator.dtype)
            target, count, _ = self._approximate(mask, None, (error / unit).to(mask.dtype), level)
            z = torch.addcmul(z, unit, (mask * target).double(), value=-1)
            spent += count
        return FreeSetSolution(z, excess, left, products, spent)

    def _approximate(
        self,
        share: Float[Tensor, "batch d"],
        weight: Float[Tensor, "batch d"] | None,
        right: Float[Tensor, "batch d"],
        tol: float,
    ) -> tuple[Float[Tensor, "batch d"], int, Float[Tensor, " batch"] | None]:
        """The iteration whose prox is a factor for each coordinate.

        Args:
            share: the factors, between 0 and 1, (B, d).
            weight: of the equations' errors, (B, d); None: they are not looked at, but the iterations are as many as
                are expected to be enough.
            right: b, (B, d), weighted of the size 1.
            tol: the largest weighted error that may be left. It follows from the last step.

        Returns:
            The point 2x − u near its limit, the count, and the errors that are left, (B,), where they are known.
        """
        base = self.base(right)
        v, target, u = base, self.restrict(base), torch.zeros_like(base)
        few = self.iterations(tol)
        scale, left = None if weight is None else weight * self.per_step, None
        # (half a step says nothing of the error)
        adaptive = weight is not None and not self.halves and len(right) > 0
        for count in range(1, _LONGER * few if adaptive else few):
            u = self.moved(u, v, share * target)
            v = self.reflect(u, base)
            before, target = target, self.restrict(v)
            if scale is not None and adaptive:
                left = ((target - before) * scale).abs_().amax(-1)
                if bool((left <= tol).all()):
                    return target, count + 1, left
        return target, few, left

    @property
    def per_step(self) -> float:
        """By what the error at z may exceed the step Δ of 2x − u that follows it: it is (I + αH)Δ/2α."""
        return 0.5 * (1 / self.alpha + self.ends.largest + (self.ends.skew or 0.0))


def _units(rows: Float[Tensor, "batch d"]) -> Float[Tensor, "batch 1"]:
    """The largest entries; 1 where these are 0."""
    size = rows.abs().amax(-1, keepdim=True)
    return torch.where(size > 0, size, 1.0)
