"""The Kronecker product of two matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.operators.base import ROUNDING_ERRORS, LinearOperator, Rebuild
from implicit_bregman.operators.dense import is_symmetric
from implicit_bregman.tensors import check_dense


class Kronecker(LinearOperator):
    """H = A ⊗ B: of a state that is read as an m × n matrix Z row by row, H z is A Z Bᵀ.

    Where both are symmetric, two eigendecompositions serve every `solve`, whatever the shift.

    Args:
        left: A, (m, m).
        right: B, (n, n).
        symmetric: whether both are symmetric; None: they are looked at.

    Raises:
        ValueError: for matrices that are not square.
    """

    def __init__(self, left: Float[Tensor, "m m"], right: Float[Tensor, "n n"], symmetric: bool | None = None) -> None:
        for name, matrix in (("left", left), ("right", right)):
            check_dense(name, matrix)
            if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
                raise ValueError(f"{name} must be a square matrix, got shape {tuple(matrix.shape)}")
        self.left = left
        self.right = right
        self.symmetric = is_symmetric(left) and is_symmetric(right) if symmetric is None else symmetric

    @property
    def size(self) -> int:
        return len(self.left) * len(self.right)

    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        left, right = self.left.to(v.dtype), self.right.to(v.dtype)
        return _both(left.mT, right.mT, v) if adjoint else _both(left, right, v)

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        symmetric = self.symmetric
        return (self.left, self.right), lambda left, right: Kronecker(left, right, symmetric)

    def diagonal(self) -> Float[Tensor, " d"]:
        with torch.no_grad():
            return torch.outer(self.left.diagonal(), self.right.diagonal()).flatten()

    def bounds(self) -> tuple[float, float] | None:
        if not self.symmetric:
            return None
        (a, _), (b, _) = self._decomposed
        ends = torch.outer(a[[0, -1]], b[[0, -1]])
        return float(ends.min()), float(ends.max())

    @cached_property
    def _decomposed(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Eigenvalues and eigenvectors of A and of B, in float64."""
        a, b = (torch.linalg.eigh(matrix.detach().double()) for matrix in (self.left, self.right))
        return (a.eigenvalues, a.eigenvectors), (b.eigenvalues, b.eigenvectors)

    def inverted(self, shift: float, adjoint: bool = False) -> Callable[[Tensor], Tensor]:
        if not self.symmetric:
            return super().inverted(shift, adjoint)
        (a, p), (b, q) = self._decomposed
        values = (torch.outer(a, b) + shift).flatten()
        values = torch.where(values.abs() > torch.finfo(values.dtype).eps * values.abs().max(), values, torch.nan)

        def apply(v: Tensor) -> Tensor:
            return _both(p, q, _both(p.mT, q.mT, v.double()) / values).to(v.dtype)

        return apply

    def has_resolvent(self, batch: int) -> bool:
        return self.symmetric

    def rounding(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        with torch.no_grad():
            left, right = self.left.to(v.dtype).abs(), self.right.to(v.dtype).abs()
            return ROUNDING_ERRORS * torch.finfo(v.dtype).eps * _both(left, right, v.abs())


def _both(left: Tensor, right: Tensor, v: Tensor) -> Float[Tensor, "batch d"]:
    """A Z Bᵀ of each sample, flattened again."""
    return (left @ v.reshape(len(v), left.shape[1], right.shape[1]) @ right.mT).reshape(len(v), -1)
