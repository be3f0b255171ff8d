"""A diagonal Hessian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.operators.base import LinearOperator, Rebuild
from implicit_bregman.tensors import check_dense


class Diagonal(LinearOperator):
    """H = diag(h).

    Args:
        entries: h, (d,).

    Raises:
        ValueError: for another shape.
    """

    symmetric = True

    def __init__(self, entries: Float[Tensor, " d"]) -> None:
        check_dense("entries", entries)
        if entries.dim() != 1 or len(entries) == 0:
            raise ValueError(f"entries must have shape (d,), got {tuple(entries.shape)}")
        self.entries = entries

    @property
    def size(self) -> int:
        return len(self.entries)

    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        return v * self.entries.to(v.dtype)

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        return (self.entries,), Diagonal

    def diagonal(self) -> Float[Tensor, " d"]:
        return self.entries.detach()

    def bounds(self) -> tuple[float, float]:
        least, largest = self.entries.detach().aminmax()
        return float(least), float(largest)

    def inverted(self, shift: float, adjoint: bool = False) -> Callable[[Tensor], Tensor]:
        total = self.entries.detach() + shift
        total = torch.where(total == 0, torch.nan, total)
        return lambda v: v.detach() / total.to(v.dtype)

    def has_resolvent(self, batch: int) -> bool:
        return True

    def splits(self, batch: int) -> bool:
        return True

    def rounding(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return torch.finfo(v.dtype).eps * self.product(v).abs()
