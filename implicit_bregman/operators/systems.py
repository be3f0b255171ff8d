"""One linear system for each sample, made of a matrix that all share, and factorized in parts of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.linalg.chunks import chunks
from implicit_bregman.linalg.dense import solve_general


class Systems:
    """K = diag(shift) + diag(left) H diag(right) of each sample, in float64.

    Args:
        matrix: H, (d, d), in float64.
        shift: (B, d).
        left: (B, d) or (B, 1); None: 1.
        right: (B, d); None: 1.
    """

    def __init__(
        self,
        matrix: Float[Tensor, "d d"],
        shift: Float[Tensor, "batch d"],
        left: Float[Tensor, "batch #d"] | None = None,
        right: Float[Tensor, "batch d"] | None = None,
    ) -> None:
        self._matrix = matrix
        self._shift = shift
        self._left = left
        self._right = right

    def _parts(self) -> Iterator[tuple[slice, Float[Tensor, "rows d d"]]]:
        for rows in chunks(self._shift):
            shift, system = self._shift[rows].double(), self._matrix
            if self._left is not None:
                system = self._left[rows].double()[:, :, None] * system
            if self._right is not None:
                system = system * self._right[rows].double()[:, None, :]
            if system is self._matrix:
                system = system.expand(len(shift), -1, -1).clone()
            system.diagonal(dim1=1, dim2=2).add_(shift)
            yield rows, system

    def solve(self, b: Float[Tensor, "batch d"]) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
        """K⁻¹ b, and whether K could be factorized, (B,)."""
        b = b.double()
        found = [solve_general(system, b[rows, :, None]) for rows, system in self._parts()]
        return torch.cat([x for x, _ in found]).squeeze(-1), torch.cat([good for _, good in found])

    def solve_symmetric(self, b: Float[Tensor, "batch d"], jitter: float | None = None) -> Float[Tensor, "batch d"]:
        """K⁻¹ b of symmetric K.

        Args:
            b: (B, d).
            jitter: where a K is not definite, this is added to the diagonals; None: it is solved as it is, and is NaN
                where it is singular.
        """
        b, found = b.double(), []
        for rows, system in self._parts():
            right = b[rows, :, None]
            factor, info = torch.linalg.cholesky_ex(system)
            x = torch.cholesky_solve(right, factor)
            if bool((info != 0).any()):
                if jitter is None:
                    general, good = solve_general(system, right)
                    general = torch.where(good[:, None, None], general, torch.nan)
                    x = torch.where((info == 0)[:, None, None], x, general)
                else:
                    system.diagonal(dim1=1, dim2=2).add_(jitter)
                    x = torch.cholesky_solve(right, torch.linalg.cholesky_ex(system)[0])
            found.append(x.squeeze(-1))
        return torch.cat(found)

    def solve_bordered(
        self, column: Float[Tensor, "batch d"], row: Float[Tensor, "batch d+1"], b: Float[Tensor, "batch d+1"]
    ) -> Float[Tensor, "batch d+1"]:
        """The solution with one column and one row more."""
        found = []
        for rows, system in self._parts():
            system = torch.cat([torch.cat([system, column[rows, :, None]], -1), row[rows, None, :]], 1)
            found.append(solve_general(system, b[rows, :, None])[0].squeeze(-1))
        return torch.cat(found)

    def factorized(self) -> Callable[[Float[Tensor, "batch d"]], Float[Tensor, "batch d"]]:
        """b ↦ K⁻¹ b of definite K, for several b."""
        factors = [torch.linalg.cholesky_ex(system).L for _, system in self._parts()]
        factor = factors[0] if len(factors) == 1 else torch.cat(factors)
        return lambda b: torch.cholesky_solve(b[:, :, None], factor).squeeze(-1)

    def are_definite(self) -> Bool[Tensor, " batch"]:
        """Whether each symmetric K is positive definite, (B,)."""
        return torch.cat([torch.linalg.cholesky_ex(system).info for _, system in self._parts()]) == 0
