"""A dense matrix that all samples share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.linalg.masked import solve_on_free_set
from implicit_bregman.linalg.semidefinite import solve_damped, solve_definite, solve_in_range, solve_minimum_norm
from implicit_bregman.operators.base import ROUNDING_ERRORS, LinearOperator, Rebuild
from implicit_bregman.operators.costs import DEFAULT_COSTS, Costs
from implicit_bregman.operators.factor import Damped, Factor
from implicit_bregman.operators.free import FreeBlocks, FreeSolution, free_blocks, solve_free_blocks
from implicit_bregman.operators.systems import Systems
from implicit_bregman.transforms import numbers


class Dense(LinearOperator):
    """H, one matrix that all samples share.

    Args:
        matrix: H, (d, d), with its gradient.
        symmetric: whether it is; None: it is looked at.
        least: a number that all eigenvalues of H are known to exceed, or None.
        convex: whether H is declared, or known, to be positive semidefinite.
        given: the precision that H was rounded to, where that is less than its own.
        costs: what decides between routes.
        factor: what has been computed of this matrix already; all else is then known of it.

    Attributes:
        source: H, with its gradient.
        matrix: H, without.
        factor: what is computed of it, once.
    """

    factorizes = True

    def __init__(
        self,
        matrix: Float[Tensor, "d d"],
        symmetric: bool | None = None,
        least: float | None = None,
        convex: bool = False,
        given: torch.dtype | None = None,
        costs: Costs = DEFAULT_COSTS,
        factor: Factor | None = None,
    ) -> None:
        if factor is None:
            symmetric = is_symmetric(matrix) if symmetric is None else symmetric
            factor = Factor(matrix.detach(), symmetric, least, convex, given, costs)
        self.source = matrix
        self.matrix = factor.matrix
        self.factor = factor
        self.symmetric, self.convex, self.costs = factor.symmetric, factor.convex, factor.costs

    @property
    def shared(self) -> Dense:
        return self

    @property
    def size(self) -> int:
        return self.matrix.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        """H v, or Hᵀ v, in v's precision."""
        matrix = self._in(v.dtype)
        return v @ (matrix if adjoint else matrix.mT)

    def add_product(self, b: Tensor, v: Tensor, beta: float = 1.0, alpha: float = 1.0) -> Float[Tensor, "batch d"]:
        return torch.addmm(b, v, self._in(v.dtype).mT, beta=beta, alpha=alpha)

    def _in(self, dtype: torch.dtype) -> Tensor:
        return self.source if dtype == self.source.dtype else self.wide.matrix.to(dtype)

    def dense(self) -> Float[Tensor, "d d"]:
        return self.source

    def diagonal(self) -> Float[Tensor, " d"]:
        return self.matrix.diagonal()

    def row_sizes(self) -> Float[Tensor, " d"]:
        return self.factor.row_sizes

    def column_sizes(self) -> Float[Tensor, " d"]:
        return torch.linalg.vector_norm(self.wide.matrix, dim=0)

    def norm(self) -> float:
        return float(torch.linalg.matrix_norm(self.matrix, 2))

    def bounds(self) -> tuple[float, float]:
        ends = self.factor.spectrum
        return float(ends.lowest), float(ends.highest)

    def bounds_guess(self) -> tuple[float, float]:
        return self.factor.ends_guess()

    @property
    def gradient_step(self) -> float:
        return self.factor.gradient_step

    def rounding(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return ROUNDING_ERRORS * torch.finfo(v.dtype).eps * (v.abs() @ self._in(v.dtype).detach().abs().mT)

    def sizes_guess(self) -> tuple[float, float]:
        return self.factor.sizes_guess()

    def inverted(self, shift: float, adjoint: bool = False) -> Callable[[Tensor], Tensor]:
        inverse = self.factor.inverse_shifted(shift)
        return _times(inverse if adjoint else inverse.mT)

    def reflected(self, step: float, adjoint: bool = False, more: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
        matrix = self.factor.reflection(step, more)
        matrix = matrix if adjoint else matrix.mT
        return lambda u, b: torch.addmm(b, u, matrix)

    def has_resolvent(self, batch: int) -> bool:
        return self.symmetric and self.factor.pays_to_invert(batch)

    def resolvent(self, shift: float) -> Damped | None:
        return self.damped_inverse(shift)

    # The same matrix otherwise ------------------------------------------------------------------------------------

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        of = self.factor
        return (self.source,), partial(_rebuild, (of.symmetric, of.least, of.convex, of.given, of.costs))

    def pack_known(self, splits: bool = False) -> tuple[tuple[Tensor, ...], Rebuild]:
        known, rebuild = self.factor.pack(splits)
        return (self.matrix, *known), partial(_rebuild_known, rebuild)

    def to(self, dtype: torch.dtype) -> Dense:
        if dtype == self.matrix.dtype:
            return self
        factor = self.factor.wide if dtype == torch.float64 else None
        return self._with(self.source.to(dtype), factor)

    def detach(self) -> Dense:
        return Dense(self.matrix, factor=self.factor)

    def with_costs(self, costs: Costs) -> Dense:
        of = self.factor
        return Dense(self.source, of.symmetric, of.least, of.convex, of.given, costs)

    def transposed(self) -> Dense:
        return self if self.symmetric else Dense(self.source.mT, factor=self.factor.transposed())

    def _with(self, source: Tensor, factor: Factor | None) -> Dense:
        of = self.factor
        return Dense(source, of.symmetric, of.least, of.convex, costs=of.costs, factor=factor)

    @cached_property
    def wide(self) -> Dense:
        """The same matrix in float64, without gradient."""
        of = self.factor.wide
        return self if of is self.factor else Dense(of.matrix, factor=of)

    # On free sets ---------------------------------------------------------------------------------------------------

    def solve_on(
        self,
        free: Bool[Tensor, "batch d"],
        rhs: Float[Tensor, "batch d"],
        definite: bool = False,
        adjoint: bool = False,
    ) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
        matrix = self._in(rhs.dtype).detach()
        matrix = matrix.mT if adjoint else matrix
        found = solve_on_free_set(matrix, free, rhs, definite, self.costs.free_width)
        return super().solve_on(free, rhs, definite, adjoint) if found is None else found

    def solve_damped_on(
        self,
        free: Bool[Tensor, "batch d"],
        rhs: Float[Tensor, "batch d"],
        damping: Float[Tensor, "batch d"],
        tol: Float[Tensor, " batch"],
        at_once: bool = False,
    ) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
        matrix = self._in(rhs.dtype).detach()
        if at_once or self.size <= self.costs.free_width:
            return solve_damped(matrix, free, rhs, damping)
        found = self._iterate_damped_on(free, rhs, damping, tol, self.size // self.costs.free_products)
        x, positive, rows = found.value, found.positive, (~found.converged).nonzero().squeeze(-1)
        if len(rows):
            part, good = solve_damped(matrix, free[rows], rhs[rows], damping[rows])
            x, positive = x.index_copy(0, rows, part), positive.index_copy(0, rows, good)
        return x, positive

    def has_inverse(self, batch: int) -> bool:
        return self.factor.pays_to_invert(batch) and self.factor.inverse is not None

    def free_blocks(self, free: Bool[Tensor, "batch d"]) -> FreeBlocks | None:
        return free_blocks(self.factor, free) if self.has_inverse(len(free)) else None

    def refine_on(
        self,
        free: Bool[Tensor, "batch d"],
        rhs: Float[Tensor, "batch d"],
        fixed: Float[Tensor, "batch d"] | None = None,
        tol: float = 1e-13,
        blocks: FreeBlocks | None = None,
        floor: Tensor | float | None = None,
    ) -> FreeSolution | None:
        if self.factor.known_inverse is None:
            return None
        return solve_free_blocks(self.factor, free, rhs, fixed, tol, blocks, floor)

    # Factorizations -----------------------------------------------------------------------------------------------

    @property
    def damped(self) -> Damped | None:
        return self.factor.damped

    def damped_inverse(self, shift: float) -> Damped | None:
        return self.factor.damped_inverse(shift)

    def inverted_scaled(self, shift: float, slope: Float[Tensor, " d"], batch: int) -> Dense | None:
        if not self.factor.pays_to_invert(batch):
            return None
        matrix = self.matrix * slope
        matrix.diagonal().add_(shift)
        return Dense(_inverse(matrix), symmetric=False)

    def systems(
        self,
        shift: Float[Tensor, "batch d"],
        left: Float[Tensor, "batch #d"] | None = None,
        right: Float[Tensor, "batch d"] | None = None,
        adjoint: bool = False,
    ) -> Systems:
        wide = self.wide.matrix
        return Systems(wide.mT if adjoint else wide, shift, left, right)

    def solve_definite_on(
        self, free: Bool[Tensor, "batch d"], rhs: Float[Tensor, "batch d"], eps: float
    ) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
        return solve_definite(self.wide.matrix, free, rhs, eps)

    def solve_shortest_on(
        self, free: Bool[Tensor, "batch d"], rhs: Float[Tensor, "batch d"], eps: float
    ) -> Float[Tensor, "batch d"]:
        return solve_minimum_norm(self.wide.matrix, free, rhs.double(), eps)[0]

    def solve_in_range(
        self, coordinates: Int[Tensor, " n"], rhs: Float[Tensor, "batch n"], eps: float
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "batch k"]]:
        return solve_in_range(self.wide.matrix[coordinates][:, coordinates], rhs, eps)


def is_symmetric(matrix: Float[Tensor, "d d"]) -> bool:
    """Whether a matrix equals its transpose up to rounding."""
    with torch.no_grad():
        matrix = numbers(matrix)
        if torch.equal(matrix, matrix.mT):
            return True
        rounding = 4 * torch.finfo(matrix.dtype).eps * matrix.abs().max()
        return bool((matrix - matrix.mT).abs().max() <= rounding)


def _inverse(matrix: Tensor) -> Tensor:
    inverse, info = torch.linalg.inv_ex(matrix)
    return inverse if int(info) == 0 else torch.full_like(inverse, torch.nan)


def _times(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: v.detach() @ matrix.to(v.dtype)


def _rebuild(about: tuple[bool, float | None, bool, torch.dtype | None, Costs], matrix: Tensor) -> Dense:
    return Dense(matrix, *about)


def _rebuild_known(rebuild: Callable[..., Factor], matrix: Tensor, *known: Tensor) -> Dense:
    return Dense(matrix, factor=rebuild(matrix.detach(), *known))
