"""The sum of operators."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.operators.base import LinearOperator, Rebuild
from implicit_bregman.operators.packing import packed


class Sum(LinearOperator):
    """H = H₁ + H₂ + … .

    Args:
        parts: the operators, of one width.

    Raises:
        ValueError: for operators of different widths, or none at all.
    """

    def __init__(self, *parts: LinearOperator) -> None:
        if not parts:
            raise ValueError("Sum needs at least one operator")
        if any(one.size != other.size for one, other in pairwise(parts)):
            raise ValueError(f"the operators of a Sum must have one width, got {[part.size for part in parts]}")
        self.parts = parts
        self.symmetric = all(part.symmetric for part in parts)

    @property
    def size(self) -> int:
        return self.parts[0].size

    @property
    def batch(self) -> int | None:
        return next((part.batch for part in self.parts if part.batch is not None), None)

    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        total = self.parts[0].product(v, adjoint)
        for part in self.parts[1:]:
            total = total + part.product(v, adjoint)
        return total

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        tensors, rebuild = packed(self.parts)
        return tensors, partial(_rebuild, rebuild)

    def diagonal(self) -> Float[Tensor, "#batch d"] | None:
        diagonals = [part.diagonal() for part in self.parts]
        if any(diagonal is None for diagonal in diagonals):
            return None
        total = diagonals[0]
        for diagonal in diagonals[1:]:
            total = total + diagonal  # type: ignore[operator]
        return total

    def dense(self) -> Float[Tensor, "*#batch d d"]:
        total = self.parts[0].dense()
        for part in self.parts[1:]:
            total = total + part.dense()
        return total

    def bounds(self) -> tuple[float, float] | None:
        """By Weyl's inequality: the bounds of the parts, added."""
        ends = [part.bounds() for part in self.parts]
        if any(end is None for end in ends):
            return None
        return sum(end[0] for end in ends if end), sum(end[1] for end in ends if end)

    def rounding(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        total = self.parts[0].rounding(v)
        for part in self.parts[1:]:
            total = total + part.rounding(v)
        return total

    def select(self, index: Int[Tensor, " kept"]) -> LinearOperator:
        return Sum(*(part.select(index) for part in self.parts)).with_costs(self.costs)


def _rebuild(rebuild: Callable[..., tuple[LinearOperator, ...]], *tensors: Tensor) -> Sum:
    return Sum(*rebuild(*tensors))
