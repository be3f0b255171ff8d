"""A sparse matrix that all samples share."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.operators.base import ROUNDING_ERRORS, LinearOperator, Rebuild
from implicit_bregman.transforms import transformed


class Sparse(LinearOperator):
    """H, a sparse matrix.

    Args:
        matrix: (d, d), a sparse tensor of any layout; gradients flow to its values.
        symmetric: whether it is symmetric; None: it is looked at.

    Raises:
        TypeError: for a tensor that is not sparse.
        ValueError: for a matrix that is not square.
    """

    def __init__(self, matrix: Tensor, symmetric: bool | None = None) -> None:
        if not isinstance(matrix, Tensor) or matrix.layout == torch.strided:
            raise TypeError("matrix must be a sparse tensor: use Dense(matrix), or matrix.to_sparse()")
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, got shape {tuple(matrix.shape)}")
        listed = (matrix if matrix.layout == torch.sparse_coo else matrix.to_sparse_coo()).coalesce()
        self._set(listed.indices(), listed.values(), matrix.shape[0])
        self.symmetric = self._is_symmetric() if symmetric is None else symmetric

    @classmethod
    def of(
        cls, indices: Int[Tensor, "2 entries"], values: Float[Tensor, " entries"], size: int, symmetric: bool
    ) -> Sparse:
        """The same of the places and values of the entries, each place once, sorted by rows."""
        made = cls.__new__(cls)
        made._set(indices, values, size)
        made.symmetric = symmetric
        return made

    def _set(self, indices: Tensor, values: Tensor, size: int) -> None:
        self.indices, self.values, self._size = indices, values, size

    @property
    def size(self) -> int:
        return self._size

    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        if transformed():
            # (transforms know nothing of sparse tensors)
            rows, columns = self.indices.flip(0) if adjoint else self.indices
            terms = v.index_select(1, columns) * self.values.to(v.dtype)
            return torch.zeros_like(v).index_add(1, rows, terms)
        return torch.sparse.mm(self._matrix(self.values.to(v.dtype), adjoint), v.mT).mT

    def _matrix(self, values: Tensor, adjoint: bool = False) -> Tensor:
        indices, shape = self.indices, (self._size, self._size)
        if adjoint:
            return torch.sparse_coo_tensor(indices.flip(0), values, shape, check_invariants=False)
        return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False, is_coalesced=True)

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        size, symmetric = self._size, self.symmetric
        return (self.values, self.indices), lambda values, indices: Sparse.of(indices, values, size, symmetric)

    def diagonal(self) -> Float[Tensor, " d"]:
        rows, columns = self.indices
        values = self.values.detach()
        return values.new_zeros(self._size).index_add(0, rows, torch.where(rows == columns, values, 0.0))

    def bounds(self) -> tuple[float, float]:
        """By Gershgorin's discs of (H + Hᵀ)/2."""
        rows, columns = self.indices
        values = self.values.detach()
        off = torch.where(rows == columns, 0.0, 0.5 * values.abs())
        radius = values.new_zeros(self._size).index_add(0, rows, off).index_add(0, columns, off)
        middle = self.diagonal()
        return float((middle - radius).min()), float((middle + radius).max())

    def dense(self) -> Float[Tensor, "d d"]:
        rows, columns = self.indices
        # (not by the sparse tensor itself: this can be differentiated again, and mapped)
        return self.values.new_zeros(self._size, self._size).index_put((rows, columns), self.values)

    def rounding(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        with torch.no_grad():
            terms = torch.sparse.mm(self._matrix(self.values.to(v.dtype).abs()), v.mT.abs()).mT
            return ROUNDING_ERRORS * torch.finfo(v.dtype).eps * terms

    def _is_symmetric(self) -> bool:
        with torch.no_grad():
            matrix = self._matrix(self.values)
            difference = (matrix - matrix.mT).coalesce().values()
            size = self.values.abs().max() if len(self.values) else 0.0
            return bool((difference.abs() <= 4 * torch.finfo(self.values.dtype).eps * size).all())
