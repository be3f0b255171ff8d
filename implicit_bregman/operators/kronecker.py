"""The Kronecker product of two matrices, of which the first may be sparse."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.linalg.cg import conjugate_gradient
from implicit_bregman.operators.base import ROUNDING_ERRORS, LinearOperator, Rebuild
from implicit_bregman.operators.dense import is_symmetric
from implicit_bregman.operators.sparse import Sparse
from implicit_bregman.tensors import check_dense

#: The relative residual of `solve` without symmetry in rounding errors, and the solves that it may take.
_SOLVED, _REFINEMENTS = 64, 3
#: The same with a sparse factor, whose systems are solved by conjugate gradients, and the products with it that these
#: may take besides ten for each coordinate.
_REACHED, _PRODUCTS = 16, 50


class Kronecker(LinearOperator):
    """H = shift·I + A ⊗ B: of a state that is read as an m × n matrix Z row by row, H z is shift·Z + A Z Bᵀ.

    Two eigendecompositions serve every `solve`, whatever its own shift. Without symmetry their eigenvectors may be
    nearly dependent: GMRES then solves. Of a sparse A nothing is decomposed: in the eigenvectors of B each of the n
    columns of Z has a system of its own, with A times an eigenvalue, and conjugate gradients solve it.

    Args:
        left: A, (m, m): a matrix or a `Sparse` operator, which may have one for each sample.
        right: B, (n, n).
        symmetric: whether both are symmetric; None: they are looked at.
        shift: what is added to the diagonal.

    Raises:
        ValueError: for matrices that are not square.
    """

    def __init__(
        self,
        left: Float[Tensor, "m m"] | Sparse,
        right: Float[Tensor, "n n"],
        symmetric: bool | None = None,
        shift: float = 0.0,
    ) -> None:
        for name, matrix in (("left", left), ("right", right)):
            if isinstance(matrix, Sparse):
                continue
            check_dense(name, matrix)
            if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
                raise ValueError(f"{name} must be a square matrix, got shape {tuple(matrix.shape)}")
        self.sparse = left if isinstance(left, Sparse) else None
        self.left = left
        self.right = right
        self.shift = shift
        if symmetric is None:
            symmetric = (left.symmetric if isinstance(left, Sparse) else is_symmetric(left)) and is_symmetric(right)
        self.symmetric = symmetric

    @property
    def _matrix(self) -> Float[Tensor, "m m"]:
        """A, where it is not sparse."""
        assert isinstance(self.left, Tensor)
        return self.left

    @property
    def size(self) -> int:
        height = len(self._matrix) if self.sparse is None else self.sparse.size
        return height * len(self.right)

    @property
    def batch(self) -> int | None:
        return None if self.sparse is None else self.sparse.batch

    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        right = self.right.to(v.dtype)
        if self.sparse is None:
            left = self._matrix.to(v.dtype)
            image = _both(left.mT, right.mT, v) if adjoint else _both(left, right, v)
        else:
            image = _across(self.sparse, right.mT if adjoint else right, v, adjoint)
        return torch.add(image, v, alpha=self.shift) if self.shift else image

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        known = self.symmetric, self.shift
        if self.sparse is None:
            return (self._matrix, self.right), partial(_rebuild, None, *known)
        tensors, rebuild = self.sparse.pack()
        return (*tensors, self.right), partial(_rebuild, rebuild, *known)

    def diagonal(self) -> Float[Tensor, "#batch d"]:
        with torch.no_grad():
            left = self._matrix if self.sparse is None else self.sparse
            return (left.diagonal()[..., None] * self.right.diagonal()).flatten(-2) + self.shift

    def bounds(self) -> tuple[float, float] | None:
        """The ends themselves if one factor is symmetric, else with a bound of how far the skew parts may move them.

        Of a sparse factor its own bounds stand for the ends, and without symmetry there are none.
        """
        if self.sparse is not None:
            if not self.symmetric:
                return None
            b, _ = self._decomposed_right
            a, skew = b.new_tensor(self.sparse.bounds()), 0.0
        elif self.symmetric:
            (a, _), (b, _) = self._decomposed
            skew = 0.0
        else:
            # (H + Hᵀ)/2 is the product of the symmetric parts and that of the skew parts, added.
            a, b = (torch.linalg.eigvalsh(0.5 * (matrix + matrix.mT)) for matrix in self._wide)
            skew = math.prod(float(torch.linalg.matrix_norm(0.5 * (m - m.mT), 2)) for m in self._wide)
        ends = torch.outer(a[[0, -1]], b[[0, -1]])
        return float(ends.min()) - skew + self.shift, float(ends.max()) + skew + self.shift

    @property
    def _wide(self) -> tuple[Tensor, Tensor]:
        return self._matrix.detach().double(), self.right.detach().double()

    @cached_property
    def _decomposed(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Eigenvalues and eigenvectors of A and of B, in float64."""
        values, vectors = torch.linalg.eigh(self._matrix.detach().double())
        return (values, vectors), self._decomposed_right

    @cached_property
    def _decomposed_right(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.right.detach().double())
        return values, vectors

    @cached_property
    def _complex(self) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """Eigenvalues and eigenvectors of A and of B without symmetry, and the inverses of these, NaN if singular."""
        a, b = (self._with_inverse(torch.linalg.eig(matrix)) for matrix in self._wide)
        return a, b

    @staticmethod
    def _with_inverse(decomposition: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        values, vectors = decomposition
        inverse, info = torch.linalg.inv_ex(vectors)
        return values, vectors, inverse if int(info) == 0 else torch.full_like(inverse, torch.nan)

    def inverted(self, shift: float, adjoint: bool = False) -> Callable[[Tensor], Tensor]:
        if self.sparse is not None:
            return self._by_columns(self.sparse, shift) if self.symmetric else super().inverted(shift, adjoint)
        if not self.symmetric:
            return self._by_complex(shift, adjoint)
        (a, p), (b, q) = self._decomposed
        values = _apart_from_zero((torch.outer(a, b) + self.shift + shift).flatten())

        def apply(v: Tensor) -> Tensor:
            return _both(p, q, _both(p.mT, q.mT, v.double()) / values).to(v.dtype)

        return apply

    def _by_columns(self, left: Sparse, shift: float) -> Callable[[Tensor], Tensor]:
        """In the eigenvectors of B: one system ((shift + …)·I + λ_k A) for each column."""
        values, vectors = self._decomposed_right
        total, width = self.shift + shift, len(values)

        def solve(v: Tensor) -> Tensor:
            with torch.no_grad():
                q, eps = vectors.to(v.dtype), torch.finfo(v.dtype).eps
                column_of = values.to(v.dtype).repeat(len(v))[:, None]
                entries = left.diagonal().to(v.dtype).expand(len(v), -1).repeat_interleave(width, 0)
                diagonal = total + column_of * entries

                def product(rows: Tensor) -> Tensor:
                    along = left.along(rows.reshape(len(v), width, -1).mT).mT
                    return torch.addcmul(total * rows, column_of, along.reshape(rows.shape))

                columns = (v.reshape(len(v), -1, width) @ q).mT.reshape(-1, left.size)
                precondition = torch.where(diagonal > 0, diagonal, 1.0).reciprocal().mul
                most = _PRODUCTS + 10 * left.size
                found = conjugate_gradient(product, columns, precondition, _REACHED * eps, most)
                # (what rounding leaves of an ill-conditioned system is a solution too)
                good = found.converged | ((found.residual <= eps**0.5) & torch.isfinite(columns.sum(-1)))
                rows = torch.where(good[:, None], found.value, torch.nan)
                return (rows.reshape(len(v), width, -1).mT @ q.mT).reshape(v.shape)

        return solve

    def _by_complex(self, shift: float, adjoint: bool) -> Callable[[Tensor], Tensor]:
        (a, p, p_inverse), (b, q, q_inverse) = self._complex
        values = _apart_from_zero((torch.outer(a, b) + self.shift + shift).flatten())
        left, right, left_inverse, right_inverse = p, q, p_inverse, q_inverse
        if adjoint:
            left, right, left_inverse, right_inverse = p_inverse.mT, q_inverse.mT, p.mT, q.mT
        norm = abs(self.shift) + math.prod(float(torch.linalg.matrix_norm(matrix)) for matrix in self._wide)
        tol, iterate = _SOLVED * torch.finfo(torch.float64).eps, super().inverted(shift, adjoint)

        def apply(v: Tensor) -> Tensor:
            return _both(left, right, _both(left_inverse, right_inverse, v.to(values.dtype)) / values).real

        def solve(v: Tensor) -> Tensor:
            with torch.no_grad():
                wide = v.double()
                found, left_over = torch.zeros_like(wide), wide
                for _ in range(_REFINEMENTS):
                    found = found + apply(left_over)
                    left_over = wide - self.product(found, adjoint) - shift * found
                size = torch.linalg.vector_norm(wide, dim=-1) + (shift + norm) * torch.linalg.vector_norm(found, dim=-1)
                good = torch.linalg.vector_norm(left_over, dim=-1) <= tol * size
                # (what is not finite has no solution by other means either)
                rows = (~good & torch.isfinite(wide.sum(-1))).nonzero().squeeze(-1)
                found = torch.where(good[:, None], found, torch.nan)
                return (found.index_copy(0, rows, iterate(wide[rows])) if len(rows) else found).to(v.dtype)

        return solve

    def has_resolvent(self, batch: int) -> bool:
        return self.symmetric and self.sparse is None

    def splits(self, batch: int) -> bool:
        return self.has_resolvent(batch)

    def select(self, index: Int[Tensor, " kept"]) -> Kronecker:
        if self.batch is None or self.sparse is None:
            return self
        part = copy(self)  # with what is known of B
        part.left = part.sparse = self.sparse.select(index)
        return part

    def rounding(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        with torch.no_grad():
            right = self.right.to(v.dtype).abs()
            if self.sparse is None:
                terms = _both(self._matrix.to(v.dtype).abs(), right, v.abs())
            else:
                terms = _across(self.sparse.absolute(), right, v.abs())
            terms = torch.add(terms, v.abs(), alpha=abs(self.shift)) if self.shift else terms
            return ROUNDING_ERRORS * torch.finfo(v.dtype).eps * terms


def _apart_from_zero(values: Tensor) -> Tensor:
    """Eigenvalues, NaN where they are 0 to rounding."""
    size = values.abs()
    return torch.where(size > torch.finfo(size.dtype).eps * size.max(), values, torch.nan)


def _both(left: Tensor, right: Tensor, v: Tensor) -> Float[Tensor, "batch d"]:
    """A Z Bᵀ of each sample, flattened again."""
    return (left @ v.reshape(len(v), left.shape[1], right.shape[1]) @ right.mT).reshape(len(v), -1)


def _across(left: Sparse, right: Tensor, v: Tensor, adjoint: bool = False) -> Float[Tensor, "batch d"]:
    """The same with a sparse A, or Aᵀ."""
    return left.along(v.reshape(len(v), left.size, -1) @ right.mT, adjoint).reshape(v.shape)


def _rebuild(rebuild: Callable[..., Sparse] | None, symmetric: bool, shift: float, *tensors: Tensor) -> Kronecker:
    *left, right = tensors
    return Kronecker(left[0] if rebuild is None else rebuild(*left), right, symmetric, shift)
