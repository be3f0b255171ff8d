"""One matrix per sample."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.operators.base import ROUNDING_ERRORS, LinearOperator, Rebuild
from implicit_bregman.operators.dense import is_symmetric
from implicit_bregman.tensors import check_dense


class Stacked(LinearOperator):
    """H, one matrix for each sample of the batch.

    Args:
        matrices: (B, d, d).
        symmetric: whether all are symmetric; None: they are looked at.

    Raises:
        ValueError: for another shape.
    """

    def __init__(self, matrices: Float[Tensor, "batch d d"], symmetric: bool | None = None) -> None:
        check_dense("matrices", matrices)
        if matrices.dim() != 3 or matrices.shape[1] != matrices.shape[2]:
            raise ValueError(f"matrices must have shape (B, d, d), got {tuple(matrices.shape)}")
        self.matrices = matrices
        self.symmetric = all(is_symmetric(m) for m in matrices) if symmetric is None else symmetric

    @property
    def batch(self) -> int:
        return len(self.matrices)

    @property
    def size(self) -> int:
        return self.matrices.shape[-1]

    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        matrices = self.matrices.to(v.dtype)
        return ((matrices.mT if adjoint else matrices) @ v[:, :, None]).squeeze(-1)

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        return (self.matrices,), partial(_rebuild, self.symmetric)

    def diagonal(self) -> Float[Tensor, "batch d"]:
        return self.matrices.detach().diagonal(dim1=1, dim2=2)

    def bounds(self) -> tuple[float, float] | None:
        if len(self.matrices) == 0:
            return None
        matrices = self.matrices.detach().double()
        ends = torch.linalg.eigvalsh(0.5 * (matrices + matrices.mT))
        return float(ends.min()), float(ends.max())

    @property
    def fits_a_matrix(self) -> bool:
        return True  # it is made of them

    def dense(self) -> Float[Tensor, "batch d d"]:
        return self.matrices

    def inverted(self, shift: float, adjoint: bool = False) -> Callable[[Tensor], Tensor]:
        matrices = self.matrices.detach().mT if adjoint else self.matrices.detach()
        matrices = matrices + shift * torch.eye(self.size, dtype=matrices.dtype, device=matrices.device)
        factor, pivots, info = torch.linalg.lu_factor_ex(matrices)

        def solve(v: Tensor) -> Tensor:
            found = torch.linalg.lu_solve(factor.to(v.dtype), pivots, v.detach()[:, :, None])
            return torch.where((info == 0)[:, None], found.squeeze(-1), torch.nan)

        return solve

    def rounding(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        with torch.no_grad():
            terms = (self.matrices.to(v.dtype).abs() @ v.abs()[:, :, None]).squeeze(-1)
            return ROUNDING_ERRORS * torch.finfo(v.dtype).eps * terms

    def select(self, index: Int[Tensor, " kept"]) -> LinearOperator:
        return Stacked(self.matrices[index], self.symmetric).with_costs(self.costs)


def _rebuild(symmetric: bool, matrices: Tensor) -> Stacked:
    return Stacked(matrices, symmetric)
