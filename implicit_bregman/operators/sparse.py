"""A sparse matrix: one that all samples share, or one for each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.operators.base import ROUNDING_ERRORS, LinearOperator
from implicit_bregman.tensors import coalesced
from implicit_bregman.transforms import transformed


class Sparse(LinearOperator):
    """H, a sparse matrix.

    Args:
        matrix: (d, d), a sparse tensor of any layout; gradients flow to its values. With `samples` = B, the matrices of
            all samples in one, (B d, B d), as blocks on the diagonal.
        symmetric: whether it is symmetric; None: it is looked at.
        bounds: numbers between which all eigenvalues of (H + Hᵀ)/2 are known to lie; None: by Gershgorin's discs.
        samples: the number of samples, where each has a matrix of its own; None: all share one.

    Raises:
        TypeError: for a tensor that is not sparse.
        ValueError: for a matrix that is not square or not made of such blocks, or bounds in the wrong order.
    """

    def __init__(
        self,
        matrix: Tensor,
        symmetric: bool | None = None,
        bounds: tuple[float, float] | None = None,
        samples: int | None = None,
    ) -> None:
        if not isinstance(matrix, Tensor) or matrix.layout == torch.strided:
            raise TypeError("matrix must be a sparse tensor: use Dense(matrix), or matrix.to_sparse()")
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, got shape {tuple(matrix.shape)}")
        if bounds is not None and not bounds[0] <= bounds[1]:
            raise ValueError(f"bounds must be the lower and the upper one, got {bounds}")
        listed = coalesced("matrix", matrix)
        size = _block_size(listed.indices(), matrix.shape[0], samples)
        self._set(listed.indices(), listed.values(), size, bounds, samples)
        self.symmetric = self._is_symmetric() if symmetric is None else symmetric

    @classmethod
    def of(
        cls,
        indices: Int[Tensor, "2 entries"],
        values: Float[Tensor, " entries"],
        size: int,
        symmetric: bool,
        bounds: tuple[float, float] | None = None,
        samples: int | None = None,
    ) -> Sparse:
        """The same of the places and values of the entries, each place once, sorted by rows."""
        made = cls.__new__(cls)
        made._set(indices, values, size, bounds, samples)
        made.symmetric = symmetric
        return made

    def _set(
        self,
        indices: Tensor,
        values: Tensor,
        size: int,
        bounds: tuple[float, float] | None,
        samples: int | None,
    ) -> None:
        self.indices, self.values, self._size, self._bounds, self._samples = indices, values, size, bounds, samples

    @property
    def size(self) -> int:
        return self._size

    @property
    def batch(self) -> int | None:
        return self._samples

    @property
    def _height(self) -> int:
        """The number of rows of the whole matrix."""
        return self._size * (1 if self._samples is None else self._samples)

    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        return self.along(v[:, :, None], adjoint).squeeze(-1)

    def along(self, v: Float[Tensor, "batch d k"], adjoint: bool = False) -> Float[Tensor, "batch d k"]:
        """H, or Hᵀ, times each of the k columns that a sample has."""
        if self._samples is not None or len(v) == 1:
            return self._times(v.reshape(-1, v.shape[-1]), adjoint).reshape(v.shape)
        side_by_side = v.transpose(0, 1)
        return self._times(side_by_side.flatten(1), adjoint).reshape(side_by_side.shape).transpose(0, 1)

    def _times(self, v: Float[Tensor, "rows k"], adjoint: bool) -> Float[Tensor, "rows k"]:
        values = self.values.to(v.dtype)
        follows = torch.is_grad_enabled() and (values.requires_grad or v.requires_grad)
        if transformed() or (follows and values.requires_grad):
            # (transforms know nothing of sparse tensors, whose own derivative is a dense matrix on the way)
            rows, columns = self.indices.flip(0) if adjoint else self.indices
            return torch.zeros_like(v).index_add(0, rows, v.index_select(0, columns) * values[:, None])
        if follows:
            return torch.sparse.mm(self._matrix(values, adjoint), v)
        compressed = self._compressed_adjoint if adjoint and not self.symmetric else self._compressed
        return (compressed.to(v.dtype) if compressed.dtype != v.dtype else compressed) @ v.detach()

    @cached_property
    def _compressed(self) -> Tensor:
        """The matrix by rows, several times as fast as a list of entries."""
        return by_rows(self._matrix(self.values.detach()))

    @cached_property
    def _compressed_adjoint(self) -> Tensor:
        return by_rows(self._matrix(self.values.detach(), adjoint=True).coalesce())

    def _matrix(self, values: Tensor, adjoint: bool = False) -> Tensor:
        indices, shape = self.indices, (self._height, self._height)
        if adjoint:
            return torch.sparse_coo_tensor(indices.flip(0), values, shape, check_invariants=False)
        return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False, is_coalesced=True)

    def pack(self) -> tuple[tuple[Tensor, ...], Callable[..., Sparse]]:
        known = (self._size, self.symmetric, self._bounds, self._samples)
        return (self.values, self.indices), partial(_rebuild, known)

    def absolute(self) -> Sparse:
        """|H|, entry by entry, without gradient."""
        return Sparse.of(self.indices, self.values.detach().abs(), self._size, self.symmetric, None, self._samples)

    def diagonal(self) -> Float[Tensor, "#batch d"]:
        rows, columns = self.indices
        values = self.values.detach()
        entries = values.new_zeros(self._height).index_add(0, rows, torch.where(rows == columns, values, 0.0))
        return entries if self._samples is None else entries.reshape(self._samples, self._size)

    def bounds(self) -> tuple[float, float]:
        """Those given, or by Gershgorin's discs of (H + Hᵀ)/2."""
        if self._bounds is not None:
            return self._bounds
        rows, columns = self.indices
        values = self.values.detach()
        off = torch.where(rows == columns, 0.0, 0.5 * values.abs())
        radius = values.new_zeros(self._height).index_add(0, rows, off).index_add(0, columns, off)
        middle = self.diagonal().flatten()
        return float((middle - radius).min()), float((middle + radius).max())

    def dense(self) -> Float[Tensor, "*#batch d d"]:
        rows, columns = self.indices
        # (not by the sparse tensor itself: this can be differentiated again, and mapped)
        if self._samples is None:
            return self.values.new_zeros(self._size, self._size).index_put((rows, columns), self.values)
        places = (rows // self._size, rows % self._size, columns % self._size)
        return self.values.new_zeros(self._samples, self._size, self._size).index_put(places, self.values)

    def select(self, index: Int[Tensor, " kept"]) -> Sparse:
        if self._samples is None:
            return self
        rows, columns = self.indices
        place = torch.full((self._samples,), -1, dtype=rows.dtype, device=rows.device)
        place[index] = torch.arange(len(index), dtype=rows.dtype, device=rows.device)
        to = place[rows // self._size]
        kept = (to >= 0).nonzero().squeeze(-1)
        kept = kept[to[kept].argsort(stable=True)]
        moved = torch.stack([to * self._size + side % self._size for side in (rows, columns)])[:, kept]
        part = Sparse.of(moved, self.values[kept], self._size, self.symmetric, self._bounds, len(index))
        return part.with_costs(self.costs)

    def rounding(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        with torch.no_grad():
            return ROUNDING_ERRORS * torch.finfo(v.dtype).eps * self.absolute().product(v.abs())

    def _is_symmetric(self) -> bool:
        with torch.no_grad():
            matrix = self._matrix(self.values)
            difference = (matrix - matrix.mT).coalesce().values()
            size = self.values.abs().max() if len(self.values) else 0.0
            return bool((difference.abs() <= 4 * torch.finfo(self.values.dtype).eps * size).all())


def _block_size(indices: Int[Tensor, "2 entries"], height: int, samples: int | None) -> int:
    """d, after checking that the entries lie in blocks of this size on the diagonal."""
    if samples is None:
        return height
    if samples < 1 or height % samples:
        raise ValueError(f"matrix must have as many rows for each of samples = {samples}, got {height} rows")
    size = height // samples
    rows, columns = indices
    outside = (rows // size != columns // size).nonzero()
    if len(outside):
        place = int(outside[0])
        raise ValueError(
            f"matrix must have its entries in {samples} blocks of width {size} on the diagonal, got one at "
            f"({int(rows[place])}, {int(columns[place])})"
        )
    return size


def by_rows(matrix: Tensor) -> Tensor:
    """A sparse matrix in compressed rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        return matrix.to_sparse_csr()


def _rebuild(
    known: tuple[int, bool, tuple[float, float] | None, int | None], values: Tensor, indices: Tensor
) -> Sparse:
    return Sparse.of(indices, values, *known)
