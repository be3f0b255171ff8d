"""The row sums and the column sums of a matrix: the equations of a transport plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.operators.linear_map import LinearMap
from implicit_bregman.settings import check_count

#: What is added to the unit diagonal of a system that rounding has made indefinite, one after the other.
_JITTERS = (0.0, 1e-13, 1e-10, 1e-7)


class Marginals(LinearMap):
    """Vᵀz = (row sums, column sums) of an n × m matrix, flattened row by row: z of d = nm entries, r = n + m equations.

    Their rank is n + m − 1, since both sums add up to the same: β has to agree with that, or there is no z. It holds no
    entries, so that a projection takes O(nm) memory; a system VᵀDV takes O(nm·min(n, m)) operations (Schur complement).

    Args:
        rows: n.
        columns: m.

    Raises:
        ValueError: for numbers below 1.
    """

    def __init__(self, rows: int, columns: int) -> None:
        check_count("rows", rows)
        check_count("columns", columns)
        self.rows, self.columns = int(rows), int(columns)

    @property
    def plan(self) -> tuple[int, int]:  # type: ignore[override]
        return self.rows, self.columns

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows * self.columns, self.rows + self.columns

    def product(self, v: Tensor, adjoint: bool = False) -> Tensor:
        if adjoint:
            matrix = v.unflatten(-1, self.plan)
            return torch.cat([matrix.sum(-1), matrix.sum(-2)], -1)
        of_rows, of_columns = self.parts(v)
        return (of_rows[..., :, None] + of_columns[..., None, :]).flatten(-2)

    def parts(
        self, multiplier: Float[Tensor, "*batch r"]
    ) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch m"]]:
        """What belongs to the rows and what belongs to the columns."""
        return multiplier[..., : self.rows], multiplier[..., self.rows :]

    def pack(self) -> tuple[tuple[Tensor, ...], Callable[..., Marginals]]:
        return (), partial(Marginals, self.rows, self.columns)

    def magnitude(self) -> Marginals:
        return self

    def gram_diagonal(self, weights: Float[Tensor, "batch d"]) -> Float[Tensor, "batch r"]:
        return self.product(weights, adjoint=True)

    def lengths(self, like: Tensor) -> Float[Tensor, " r"]:
        ends = like.new_full((self.rows,), self.columns**0.5), like.new_full((self.columns,), self.rows**0.5)
        return torch.cat(ends)

    def squared_norm(self, like: Tensor) -> Tensor:
        return like.new_full((), 2.0 * self.rows * self.columns)

    def shortest(self, multiplier: Float[Tensor, "batch r"]) -> Float[Tensor, "batch r"]:
        # Adding a number to all rows and taking it from all columns changes nothing.
        of_rows, of_columns = self.parts(multiplier)
        excess = (of_rows.sum(-1, keepdim=True) - of_columns.sum(-1, keepdim=True)) / self.shape[1]
        return torch.cat([of_rows - excess, of_columns + excess], -1)

    def inconsistency(self, target: Float[Tensor, "batch r"]) -> Float[Tensor, " batch"]:
        of_rows, of_columns = self.parts(target.detach().double())
        size = torch.maximum(of_rows.abs().sum(-1), of_columns.abs().sum(-1))
        return (of_rows.sum(-1) - of_columns.sum(-1)).abs() / torch.where(size > 0, size, 1.0)

    def inverted_gram(
        self, weights: Float[Tensor, "batch d"], shift: Float[Tensor, "batch #r"]
    ) -> Callable[[Float[Tensor, "batch r"]], Float[Tensor, "batch r"]]:
        matrix = weights.unflatten(-1, self.plan)
        shifts = self.parts(shift.expand(-1, self.shape[1]))
        if self.rows >= self.columns:
            system = _eliminated(matrix, *shifts)
            return lambda b: torch.cat(_solved(system, *self.parts(b)), -1)
        turned = _eliminated(matrix.mT, *shifts[::-1])
        return lambda b: torch.cat(_solved(turned, *self.parts(b)[::-1])[::-1], -1)


class _Eliminated(NamedTuple):
    """[[diag(a), P], [Pᵀ, diag(b)]], without its first part.

    Attributes:
        matrix: P, (B, n, m).
        share: P with rows that are divided by a.
        first: a, or 1 where that is 0, (B, n).
        scale: what makes the diagonal of the Schur complement 1, (B, m).
        factor: its Cholesky factor then, (B, m, m).
        failed: where there is none, (B,).
    """

    matrix: Tensor
    share: Tensor
    first: Tensor
    scale: Tensor
    factor: Tensor
    failed: Tensor


def _eliminated(matrix: Tensor, shift_first: Tensor, shift_second: Tensor) -> _Eliminated:
    first = matrix.sum(-1) + shift_first
    first = torch.where(first > 0, first, 1.0)
    share = matrix / first[..., None]
    complement = (matrix.mT @ share).neg_()
    diagonal = complement.diagonal(dim1=-2, dim2=-1)
    diagonal.zero_()
    # diag(b) − Pᵀdiag(a)⁻¹P has the row sums 0 but for the shifts: its diagonal without cancellation.
    rest = shift_second + (share.mT @ shift_first[..., None]).squeeze(-1)
    diagonal.copy_(rest - complement.sum(-1))
    # Without shifts it is singular: a solution has the mean 0, weighted by b.
    second = matrix.sum(-2)
    total = second.sum(-1)
    free = (rest.amax(-1) == 0) & (total > 0)
    unit = torch.where(free[:, None], second / torch.where(free, total, 1.0).sqrt()[:, None], 0.0)
    complement += unit[:, :, None] * unit[:, None, :]
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    diagonal.copy_(torch.where(diagonal > 0, diagonal, 1.0))
    complement *= scale[:, :, None]
    complement *= scale[:, None, :]
    factor, failed = _factored(complement)
    return _Eliminated(matrix, share, first, scale, factor, failed)


def _factored(scaled: Tensor) -> tuple[Tensor, Tensor]:
    factor, info = torch.linalg.cholesky_ex(scaled)
    failed = info != 0
    for jitter in _JITTERS[1:]:
        if not bool(failed.any()):
            break
        # (a nearly disconnected plan, whose parts may move against each other: who needs digits refines)
        scaled = scaled.clone()
        scaled.diagonal(dim1=-2, dim2=-1).copy_(torch.full_like(scaled[..., 0], 1 + jitter))
        other, info = torch.linalg.cholesky_ex(scaled)
        factor = torch.where(failed[:, None, None], other, factor)
        failed = failed & (info != 0)
    return factor, failed


def _solved(system: _Eliminated, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    right = second - (system.share.mT @ first[..., None]).squeeze(-1)
    found = torch.cholesky_solve((system.scale * right)[..., None], system.factor).squeeze(-1) * system.scale
    found = torch.where(system.failed[:, None], torch.nan, found)
    return (first - (system.matrix @ found[..., None]).squeeze(-1)) / system.first, found
