"""A Hessian of low rank, with or without a diagonal."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.operators.base import ROUNDING_ERRORS, LinearOperator, Rebuild
from implicit_bregman.tensors import check_dense


class LowRank(LinearOperator):
    """H = VVᵀ + diag(h), with V of r columns.

    `solve` takes O(d r) operations per sample after one r × r factorization (Sherman, Morrison and Woodbury).

    Args:
        vectors: V, (d, r).
        diagonal: h, (d,); None: 0.

    Raises:
        ValueError: for shapes that do not fit.
    """

    symmetric = True

    def __init__(self, vectors: Float[Tensor, "d r"], diagonal: Float[Tensor, " d"] | None = None) -> None:
        check_dense("vectors", vectors)
        if vectors.dim() != 2:
            raise ValueError(f"vectors must have shape (d, r), got {tuple(vectors.shape)}")
        if diagonal is not None:
            check_dense("diagonal", diagonal)
            if diagonal.shape != vectors.shape[:1]:
                raise ValueError(
                    f"diagonal must have shape ({vectors.shape[0]},) to go with vectors, got {tuple(diagonal.shape)}"
                )
        self.vectors = vectors
        self.entries = diagonal

    @property
    def size(self) -> int:
        return self.vectors.shape[0]

    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        vectors = self.vectors.to(v.dtype)
        image = (v @ vectors) @ vectors.mT
        return image if self.entries is None else image + v * self.entries.to(v.dtype)

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        return (self.vectors,) if self.entries is None else (self.vectors, self.entries), LowRank

    def diagonal(self) -> Float[Tensor, " d"]:
        with torch.no_grad():
            entries = self.vectors.square().sum(-1)
            return entries if self.entries is None else entries + self.entries

    def bounds(self) -> tuple[float, float]:
        """By Weyl's inequality: the ends of the parts, added."""
        squares = torch.linalg.eigvalsh(self._gram)
        narrow = self.vectors.shape[1] < self.size
        least, largest = min(float(squares[0]), 0.0) if narrow else float(squares[0]), float(squares[-1])
        if self.entries is not None:
            low, high = self.entries.detach().aminmax()
            least, largest = least + float(low), largest + float(high)
        return least, largest

    @cached_property
    def _gram(self) -> Float[Tensor, "r r"]:
        vectors = self.vectors.detach().double()
        return vectors.mT @ vectors

    def inverted(self, shift: float, adjoint: bool = False) -> Callable[[Tensor], Tensor]:
        with torch.no_grad():
            vectors = self.vectors.detach().double()
            rest = torch.full_like(vectors[:, 0], shift)
            if self.entries is not None:
                rest = rest + self.entries
            if not bool((rest != 0).all()):
                return super().inverted(shift)
            small = (vectors / rest[:, None]).mT @ vectors
            small.diagonal().add_(1.0)
            inverse, info = torch.linalg.inv_ex(small)
            left = (vectors @ inverse.mT if int(info) == 0 else torch.full_like(vectors, torch.nan)) / rest[:, None]

        def apply(v: Tensor) -> Tensor:
            right = v.double() / rest
            return (right - (right @ vectors) @ left.mT).to(v.dtype)

        return apply

    def has_resolvent(self, batch: int) -> bool:
        return True

    def splits(self, batch: int) -> bool:
        return True

    def rounding(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        with torch.no_grad():
            vectors = self.vectors.to(v.dtype).abs()
            terms = (v.abs() @ vectors) @ vectors.mT
            if self.entries is not None:
                terms = terms + (v * self.entries.to(v.dtype)).abs()
            return ROUNDING_ERRORS * torch.finfo(v.dtype).eps * terms
