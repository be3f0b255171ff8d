"""A square grid of blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.operators.base import ROUNDING_ERRORS, LinearOperator, Rebuild
from implicit_bregman.operators.dense import Dense
from implicit_bregman.operators.packing import packed
from implicit_bregman.tensors import check_dense
from implicit_bregman.transforms import numbers

#: The relative residual of `solve` in rounding errors, and its products besides ten for each coordinate.
_SOLVED, _PRODUCTS = 16, 50


class Blocks(LinearOperator):
    """H made of m × m blocks: of a state in m parts z = (z₁, …, z_m), part i of Hz is Σ_j H_ij z_j.

    `solve` iterates, with the inverses of the diagonal blocks as preconditioner where they have cheap ones.

    Args:
        blocks: m rows of m blocks H_ij each: an operator, a matrix (d_i, d_j), or None for 0. Off the diagonal a
            matrix need not be square.
        symmetric: whether H is; None: it is looked at. Of two blocks off the diagonal it can be seen where they are
            matrices (the one is the transpose of the other), one symmetric operator, or None. State it of others.

    Raises:
        TypeError: for a block of another kind.
        ValueError: for a grid that is not square, sizes that do not fit, a row and column of None alone, or blocks that
            are for different numbers of samples.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[LinearOperator | Float[Tensor, "d_i d_j"] | None]],
        symmetric: bool | None = None,
    ) -> None:
        _check_grid(blocks)
        parts = [[_part(i, j, block, symmetric) for j, block in enumerate(row)] for i, row in enumerate(blocks)]
        _check_samples(parts)
        self._set(parts, _widths(parts), symmetric)

    def _set(self, parts: Grid, widths: list[int], symmetric: bool | None) -> Blocks:
        self.parts = parts
        self.widths = widths
        self.symmetric = _is_symmetric(parts) if symmetric is None else symmetric
        return self

    @property
    def size(self) -> int:
        return sum(self.widths)

    @property
    def batch(self) -> int | None:
        return next((part.batch for part in _flat(self.parts) if part.batch is not None), None)

    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        return self._sums(v, lambda part, piece: part.product(piece, adjoint), adjoint)

    def _sums(self, v: Tensor, term: Callable[[Part, Tensor], Tensor], adjoint: bool = False) -> Tensor:
        """The terms of each row (of each column, if `adjoint`) with the parts of v, added."""
        pieces = v.split(self.widths, dim=-1)
        sums = []
        for row, own in zip(_transposed(self.parts) if adjoint else self.parts, pieces, strict=True):
            terms = [term(part, piece) for part, piece in zip(row, pieces, strict=True) if part is not None]
            sums.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(own))
        return torch.cat(sums, -1)

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        tensors, rebuild = packed(self.parts)
        return tensors, partial(_rebuild, rebuild, self.widths, self.symmetric)

    def diagonal(self) -> Float[Tensor, "#batch d"] | None:
        like, found = self.pack()[0][0].detach(), []
        for part, width in zip(self._diagonal_parts, self.widths, strict=True):
            entries = like.new_zeros(width) if part is None else part.diagonal()
            if entries is None:
                return None
            found.append(entries if self.batch is None else entries.expand(self.batch, width))
        return torch.cat(found, -1)

    @property
    def _diagonal_parts(self) -> list[LinearOperator | None]:
        return [row[i] for i, row in enumerate(self.parts)]  # type: ignore[misc]

    def bounds(self) -> tuple[float, float] | None:
        """By the spectra of the diagonal blocks and the norms of the others, as an m × m matrix of them bounds H's."""
        return self._bounds

    @cached_property
    def _bounds(self) -> tuple[float, float] | None:
        # zᵀHz lies between ⟨n, (diag(l) − N)n⟩ and ⟨n, (diag(u) + N)n⟩, with n_i = ‖z_i‖, l_i and u_i the ends of the
        # i-th diagonal block, and N_ij the norm of (H_ij + H_jiᵀ)/2.
        ends = [(0.0, 0.0) if part is None else part.bounds() for part in self._diagonal_parts]
        count = len(ends)
        norms = [
            [_coupling(self.parts[i][j], self.parts[j][i]) if j < i else 0.0 for j in range(count)]
            for i in range(count)
        ]
        if any(end is None for end in ends) or any(norm is None for row in norms for norm in row):
            return None
        off = torch.tensor(norms, dtype=torch.float64)
        least, largest = torch.tensor(ends, dtype=torch.float64).unbind(-1)
        below = torch.linalg.eigvalsh(least.diag() - off - off.mT)
        above = torch.linalg.eigvalsh(largest.diag() + off + off.mT)
        return float(below[0]), float(above[-1])

    def _preconditioner(self, shift: float, like: Float[Tensor, "batch d"]) -> Callable[[Tensor], Tensor]:
        """(shift·I + H_ii)⁻¹ of each part i, by division by the diagonal where it is not to be had cheaply."""
        with torch.no_grad():
            # (without symmetry, a diagonal block alone may be singular)
            exact = self.symmetric or shift > 0
            return self._by_parts([_inverse_of(part, shift, len(like), exact) for part in self._diagonal_parts])

    def _by_parts(self, maps: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
        def apply(r: Tensor) -> Tensor:
            return torch.cat([of(piece) for of, piece in zip(maps, r.split(self.widths, dim=-1), strict=True)], -1)

        return apply

    def has_resolvent(self, batch: int) -> bool:
        return self.symmetric and all(part is None or part.has_resolvent(batch) for part in self._diagonal_parts)

    def resolvent(self, shift: float) -> Callable[[Tensor], Tensor] | None:
        """Those of the diagonal blocks."""
        maps = [(lambda v: v / shift) if part is None else part.resolvent(shift) for part in self._diagonal_parts]
        known = [of for of in maps if of is not None]
        return self._by_parts(known) if len(known) == len(maps) else None

    def rounding(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return self._sums(v, lambda part, piece: part.rounding(piece))

    def dense(self) -> Float[Tensor, "*#batch d d"]:
        like, lead = self.pack()[0][0], () if self.batch is None else (self.batch,)
        rows = []
        for row, height in zip(self.parts, self.widths, strict=True):
            matrices = [
                (like.new_zeros(height, width) if part is None else part.dense()).expand(*lead, height, width)
                for part, width in zip(row, self.widths, strict=True)
            ]
            rows.append(torch.cat(matrices, -1))
        return torch.cat(rows, -2)

    def select(self, index: Int[Tensor, " kept"]) -> LinearOperator:
        parts: Grid = [[None if part is None else part.select(index) for part in row] for row in self.parts]
        return Blocks.__new__(Blocks)._set(parts, self.widths, self.symmetric).with_costs(self.costs)


class _Matrix:
    """A matrix off the diagonal, with what `Blocks` asks of a part."""

    batch = None

    def __init__(self, source: Float[Tensor, "d_i d_j"]) -> None:
        self.source = source
        self.matrix = source.detach()

    @property
    def shared(self) -> _Matrix:
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    def product(self, v: Float[Tensor, "batch d_j"], adjoint: bool = False) -> Float[Tensor, "batch d_i"]:
        matrix = self.source.to(v.dtype)
        return v @ (matrix if adjoint else matrix.mT)

    def pack(self) -> tuple[tuple[Tensor, ...], Callable[..., _Matrix]]:
        return (self.source,), _Matrix

    def rounding(self, v: Float[Tensor, "batch d_j"]) -> Float[Tensor, "batch d_i"]:
        return ROUNDING_ERRORS * torch.finfo(v.dtype).eps * (v.abs() @ self.matrix.to(v.dtype).abs().mT)

    def norm(self) -> float:
        return _norm(self.matrix.double())

    def dense(self) -> Float[Tensor, "d_i d_j"]:
        return self.source

    def select(self, index: Tensor) -> _Matrix:
        return self


Part = LinearOperator | _Matrix
Grid = list[list[Part | None]]


def _flat(parts: Grid) -> list[Part]:
    return [part for row in parts for part in row if part is not None]


def _transposed(parts: Grid) -> Grid:
    return [list(column) for column in zip(*parts, strict=True)]


# What is refused ------------------------------------------------------------------------------------------------------


def _check_grid(blocks: object) -> None:
    if not isinstance(blocks, (list, tuple)) or not all(isinstance(row, (list, tuple)) for row in blocks):
        raise TypeError("blocks must be a list of rows, each a list of blocks: [[H11, H12], [H21, H22]]")
    if not blocks:
        raise ValueError("blocks must have at least one row")
    for number, row in enumerate(blocks):
        if len(row) != len(blocks):
            raise ValueError(
                f"blocks must be a square grid, but there are {len(blocks)} rows and row {number} has {len(row)} "
                "blocks: use None for a block of zeros"
            )


def _part(i: int, j: int, block: object, symmetric: bool | None) -> Part | None:
    if block is None or isinstance(block, LinearOperator):
        return block
    name = f"blocks[{i}][{j}]"
    if not isinstance(block, Tensor):
        raise TypeError(f"{name} must be an operator, a matrix or None, got {type(block).__name__}")
    check_dense(name, block)
    if block.dim() != 2 or not block.is_floating_point():
        raise ValueError(f"{name} must be a floating-point matrix, got {block.dtype} of shape {tuple(block.shape)}")
    if i != j:
        return _Matrix(block)
    if block.shape[0] != block.shape[1]:
        raise ValueError(f"{name} is on the diagonal and must be square, got shape {tuple(block.shape)}")
    return Dense(block, symmetric or None)


def _check_samples(parts: Grid) -> None:
    counted = [
        (i, j, part.batch)
        for i, row in enumerate(parts)
        for j, part in enumerate(row)
        if part is not None and part.batch is not None
    ]
    for i, j, batch in counted[1:]:
        if batch != counted[0][2]:
            raise ValueError(
                f"blocks[{i}][{j}] is for {batch} samples, but blocks[{counted[0][0]}][{counted[0][1]}] for "
                f"{counted[0][2]}: give as many of both"
            )


def _widths(parts: Grid) -> list[int]:
    """d_i, the width of each part of the state.

    Raises:
        ValueError: where it is not known, or a block does not fit.
    """
    shapes = {(i, j): part.shape for i, row in enumerate(parts) for j, part in enumerate(row) if part is not None}
    count, found = len(parts), []
    for k in range(count):
        places = [(k, k, 0), *((k, j, 0) for j in range(count)), *((i, k, 1) for i in range(count))]
        known = next(((shapes[i, j][axis], f"blocks[{i}][{j}]") for i, j, axis in places if (i, j) in shapes), None)
        if known is None:
            raise ValueError(
                f"row {k} and column {k} of blocks are None throughout, so that their width is not known: use a "
                "matrix of zeros for one of them"
            )
        found.append(known)
    for (i, j), shape in shapes.items():
        if shape != (found[i][0], found[j][0]):
            raise ValueError(
                f"blocks[{i}][{j}] has shape {shape}, but row {i} is {found[i][0]} high ({found[i][1]}) and column {j} "
                f"is {found[j][0]} wide ({found[j][1]})"
            )
    return [width for width, _ in found]


# What is known of them ------------------------------------------------------------------------------------------------


def _is_symmetric(parts: Grid) -> bool:
    count = range(len(parts))
    return all(parts[i][i] is None or parts[i][i].symmetric for i in count) and all(  # type: ignore[union-attr]
        _are_adjoint(parts[i][j], parts[j][i]) for i in count for j in range(i)
    )


def _are_adjoint(one: Part | None, other: Part | None) -> bool:
    """Whether each is seen to be the transpose of the other."""
    if one is None or other is None:
        return one is other
    if one.shared is not None and other.shared is not None:
        a, b = one.shared.matrix, other.shared.matrix.mT
        a, b = numbers(a), numbers(b)
        return torch.equal(a, b) or bool((a - b).abs().max() <= 4 * torch.finfo(a.dtype).eps * a.abs().max())
    return one is other and not isinstance(one, _Matrix) and one.symmetric


def _coupling(one: Part | None, other: Part | None) -> float | None:
    """A bound of the norm of (H_ij + H_jiᵀ)/2, or None."""
    if (one is None or one.shared is not None) and (other is None or other.shared is not None):
        a, b = (0.0 if part is None else part.shared.matrix.double() for part in (one, other))  # type: ignore[union-attr]
        total = a + (b.mT if isinstance(b, Tensor) else b)
        return 0.5 * _norm(total) if isinstance(total, Tensor) else 0.0
    if isinstance(one, LinearOperator) and isinstance(other, LinearOperator):
        return one.coupling(other)
    norms = [0.0 if part is None else part.norm() for part in (one, other)]
    return None if None in norms else 0.5 * sum(norm for norm in norms if norm)


def _norm(matrix: Tensor) -> float:
    """The spectral norm."""
    gram = matrix @ matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix.mT @ matrix
    return float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt())


def _inverse_of(part: LinearOperator | None, shift: float, batch: int, exact: bool) -> Callable[[Tensor], Tensor]:
    """(shift·I + H_ii)⁻¹ where it is cheap and `exact`, else by division by the diagonal; identity for what is 0."""
    if part is None:
        return lambda r: r / shift if shift > 0 else r
    inverse = part.resolvent(shift) if exact and part.has_resolvent(batch) else None
    if inverse is not None:

        def apply(r: Tensor) -> Tensor:
            found = inverse(r)
            return torch.where(torch.isfinite(found), found, r)

        return apply
    diagonal = part.diagonal()
    scale = torch.ones(()) if diagonal is None else shift + diagonal
    scale = torch.where(scale > 0, scale, 1.0).reciprocal()
    return lambda r: r * scale.to(r)


def _rebuild(rebuild: Callable[..., Any], widths: list[int], symmetric: bool, *tensors: Tensor) -> Blocks:
    return Blocks.__new__(Blocks)._set(rebuild(*tensors), widths, symmetric)
