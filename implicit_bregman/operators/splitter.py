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

#: α² m L = 1; where m is smaller than this share of L, the share stands for it, and steps have half the length.
_LEAST = 1e-4
#: The least that one round of iterations is to leave of the residual, and the share of the tolerance it aims at.
_ROUND, _MARGIN = 1e-4, 0.3
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


@dataclass(frozen=True)
class Splitter:
    """The reflected resolvent u ↦ (2(I + αH)⁻¹ − I)u, and how fast a splitting with it converges.

    Attributes:
        operator: H, in the precision of the iterations.
        ends: about the least and the largest singular value of H.
        condition: by what an error may exceed a residual.
        step: α; None: (m L)^(−1/2) of the ends m and L, which makes the iterations few.
        adjoint: whether it is Hᵀ that is split.
    """

    operator: LinearOperator
    ends: tuple[float, float]
    condition: float = math.inf
    step: float | None = None
    adjoint: bool = False

    @cached_property
    def alpha(self) -> float:
        """α."""
        least, largest = max(self.ends[0], _LEAST * self.ends[1]), self.ends[1]
        # (whose product may overflow, or vanish)
        known = least**-0.5 * largest**-0.5 if 0 < least < math.inf else 1.0
        return known if self.step is None else self.step

    @property
    def halves(self) -> bool:
        """Whether steps are Douglas and Rachford's, half of Peaceman and Rachford's: where H is hardly definite."""
        return self.ends[0] <= _LEAST * self.ends[1]

    @classmethod
    def of(cls, operator: LinearOperator, strong: float = 0.0, step: float | None = None) -> Splitter:
        """The splitting of an operator H where H + strong·I is strongly monotone."""
        least, largest = operator.bounds_guess()
        low, high = (least, largest) if operator.symmetric else operator.sizes_guess()
        known = math.isfinite(low + high + least + largest) and least + strong > 0
        condition = max(1.0, (max(largest, high) + strong) / (least + strong)) if known else math.inf
        return cls(operator, (low + strong, high + strong), condition, step)

    def iterations(self, reduction: float) -> int:
        """About how many iterations leave this share of an error."""
        root = min(self.ends[1] / self.ends[0] if self.ends[0] > 0 else math.inf, 1 / _LEAST) ** 0.5
        rate = (root - 1) / (root + 1)
        few = math.ceil(math.log(reduction) / math.log(0.5 + 0.5 * rate if self.halves else rate)) if rate > 0 else 1
        return max(2, few if self.operator.symmetric else few + few // 2)

    @cached_property
    def _dilation(self) -> Dilation | None:
        return self.operator.dilation()

    def embed(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch e"]:
        """States where the iteration works: (B, d), or on the larger space of a dilation of H."""
        return z if self._dilation is None else self._dilation.embed(z)

    def restrict(self, v: Float[Tensor, "batch e"]) -> Float[Tensor, "batch d"]:
        """The way back."""
        return v if self._dilation is None else self._dilation.restrict(v)

    @cached_property
    def reflect(self) -> Callable[[Tensor, Tensor], Tensor]:
        """(u, b) ↦ (2(I + αH)⁻¹ − I)u + b, for u and b of shape (B, e)."""
        operator = self.operator if self._dilation is None else self._dilation.operator
        return operator.reflected(self.alpha, self.adjoint)

    def base(self, right: Float[Tensor, "batch d"]) -> Float[Tensor, "batch e"]:
        """2(I + αH)⁻¹αb: the point 2x − u of u = 0."""
        right = self.embed(right)
        return self.reflect(right, right) * self.alpha

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
        size = inside.abs().amax(-1, keepdim=True)
        size = torch.where(size > 0, size, 1.0)
        count = self.iterations(max(_ROUND, _MARGIN * tol))
        start = size * self._approximate(free, inside / size, count)
        found = self._refine(free, inside.double(), start.double(), tol, lambda _: size)
        return found._replace(iterations=found.iterations + count)

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
            before, count = worst, self.iterations(max(_ROUND, _MARGIN * tol / worst))
            # Scaled to its own size, a residual can neither vanish nor overflow in float32.
            unit = error.abs().amax(-1, keepdim=True)
            unit = torch.where(unit > 0, unit, 1.0)
            z = torch.addcmul(z, unit, self._approximate(free, error / unit, count).double(), value=-1)
            spent += count
        return FreeSetSolution(z, excess, left, products, spent)

    def _approximate(self, free: Tensor, right: Tensor, count: int) -> Float[Tensor, "batch d"]:
        """About the z with (H z)_F = b_F and 0 elsewhere, after so many iterations."""
        dtype = self.operator.dtype
        mask, base = free.to(dtype), self.base(right.to(dtype))
        v, u = base, torch.zeros_like(base)
        for _ in range(count - 1):
            u = self.moved(u, v, mask * self.restrict(v))
            v = self.reflect(u, base)
        return mask * self.restrict(v)
