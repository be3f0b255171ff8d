"""Linear equations whose V is a sparse matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.operators.linear_map import LinearMap
from implicit_bregman.operators.sparse import by_rows
from implicit_bregman.tensors import coalesced
from implicit_bregman.transforms import transformed


class SparseMap(LinearMap):
    """V, a sparse matrix.

    Args:
        matrix: (d, r), a sparse tensor of any layout; gradients flow to its values.

    Raises:
        TypeError: for a tensor that is not sparse, or not floating point.
        ValueError: for a tensor that is no matrix.
    """

    def __init__(self, matrix: Tensor) -> None:
        if not isinstance(matrix, Tensor) or matrix.layout == torch.strided:
            raise TypeError("V must be a sparse tensor here: give a dense one to BregmanProjection.from_matrix itself")
        if not matrix.is_floating_point():
            raise TypeError(f"V must be a floating-point tensor, got {matrix.dtype}: call .float() or .double()")
        if matrix.dim() != 2 or 0 in matrix.shape:
            raise ValueError(f"V must have shape (d, r) with d and r of at least 1, got {tuple(matrix.shape)}")
        listed = coalesced("V", matrix)
        self._set(listed.indices(), listed.values(), (matrix.shape[0], matrix.shape[1]))

    @classmethod
    def of(
        cls, indices: Int[Tensor, "2 entries"], values: Float[Tensor, " entries"], shape: tuple[int, int]
    ) -> SparseMap:
        """The same of the places and values of the entries, each place once, sorted by rows."""
        made = cls.__new__(cls)
        made._set(indices, values, shape)
        return made

    def _set(self, indices: Tensor, values: Tensor, shape: tuple[int, int]) -> None:
        self.indices, self.values, self._shape = indices, values, shape

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def product(self, v: Tensor, adjoint: bool = False) -> Tensor:
        follows = torch.is_grad_enabled() and (self.values.requires_grad or v.requires_grad)
        if not (transformed() or follows):
            compressed = self._compressed_adjoint if adjoint else self._compressed
            flat = v.detach().reshape(-1, v.shape[-1])
            return (compressed.to(v.dtype) @ flat.mT).mT.reshape(*v.shape[:-1], -1)
        to, of = self.indices.flip(0) if adjoint else self.indices
        terms = v[..., of] * self.values.to(v.dtype)
        return terms.new_zeros(*v.shape[:-1], self.shape[1 if adjoint else 0]).index_add(-1, to, terms)

    @cached_property
    def _compressed(self) -> Tensor:
        return by_rows(self._matrix(adjoint=False))

    @cached_property
    def _compressed_adjoint(self) -> Tensor:
        return by_rows(self._matrix(adjoint=True).coalesce())

    def _matrix(self, adjoint: bool) -> Tensor:
        indices, shape = (self.indices.flip(0), self.shape[::-1]) if adjoint else (self.indices, self.shape)
        return torch.sparse_coo_tensor(indices, self.values.detach(), shape, check_invariants=False)

    def pack(self) -> tuple[tuple[Tensor, ...], Callable[..., SparseMap]]:
        return (self.values, self.indices), partial(_rebuild, self.shape)

    def magnitude(self) -> SparseMap:
        return SparseMap.of(self.indices, self.values.detach().abs(), self.shape)

    def gram_diagonal(self, weights: Float[Tensor, "batch d"]) -> Float[Tensor, "batch r"]:
        return SparseMap.of(self.indices, self.values.detach().square(), self.shape).product(weights, adjoint=True)

    def squared_norm(self, like: Tensor) -> Tensor:
        return self.values.to(like.dtype).square().sum()


def _rebuild(shape: tuple[int, int], values: Tensor, indices: Tensor) -> SparseMap:
    return SparseMap.of(indices, values, shape)
