"""The Kronecker product of two matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.operators.base import ROUNDING_ERRORS, LinearOperator, Rebuild
from implicit_bregman.operators.dense import is_symmetric
from implicit_bregman.tensors import check_dense

#: The relative residual of `solve` without symmetry in rounding errors, and the solves that it may take.
_SOLVED, _REFINEMENTS = 64, 3


class Kronecker(LinearOperator):
    """H = A ⊗ B: of a state that is read as an m × n matrix Z row by row, H z is A Z Bᵀ.

    Two eigendecompositions serve every `solve`, whatever the shift. Without symmetry their eigenvectors may be nearly
    dependent: GMRES then solves.

    Args:
        left: A, (m, m).
        right: B, (n, n).
        symmetric: whether both are symmetric; None: they are looked at.

    Raises:
        ValueError: for matrices that are not square.
    """

    def __init__(self, left: Float[Tensor, "m m"], right: Float[Tensor, "n n"], symmetric: bool | None = None) -> None:
        for name, matrix in (("left", left), ("right", right)):
            check_dense(name, matrix)
            if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
                raise ValueError(f"{name} must be a square matrix, got shape {tuple(matrix.shape)}")
        self.left = left
        self.right = right
        self.symmetric = is_symmetric(left) and is_symmetric(right) if symmetric is None else symmetric

    @property
    def size(self) -> int:
        return len(self.left) * len(self.right)

    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        left, right = self.left.to(v.dtype), self.right.to(v.dtype)
        return _both(left.mT, right.mT, v) if adjoint else _both(left, right, v)

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        symmetric = self.symmetric
        return (self.left, self.right), lambda left, right: Kronecker(left, right, symmetric)

    def diagonal(self) -> Float[Tensor, " d"]:
        with torch.no_grad():
            return torch.outer(self.left.diagonal(), self.right.diagonal()).flatten()

    def bounds(self) -> tuple[float, float]:
        """The ends themselves if one factor is symmetric, else with a bound of how far the skew parts may move them."""
        if self.symmetric:
            (a, _), (b, _) = self._decomposed
            skew = 0.0
        else:
            # (H + Hᵀ)/2 is the product of the symmetric parts and that of the skew parts, added.
            a, b = (torch.linalg.eigvalsh(0.5 * (matrix + matrix.mT)) for matrix in self._wide)
            skew = math.prod(float(torch.linalg.matrix_norm(0.5 * (m - m.mT), 2)) for m in self._wide)
        ends = torch.outer(a[[0, -1]], b[[0, -1]])
        return float(ends.min()) - skew, float(ends.max()) + skew

    @property
    def _wide(self) -> tuple[Tensor, Tensor]:
        return self.left.detach().double(), self.right.detach().double()

    @cached_property
    def _decomposed(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Eigenvalues and eigenvectors of A and of B, in float64."""
        a, b = (torch.linalg.eigh(matrix) for matrix in self._wide)
        return (a.eigenvalues, a.eigenvectors), (b.eigenvalues, b.eigenvectors)

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
        if not self.symmetric:
            return self._by_complex(shift, adjoint)
        (a, p), (b, q) = self._decomposed
        values = _apart_from_zero((torch.outer(a, b) + shift).flatten())

        def apply(v: Tensor) -> Tensor:
            return _both(p, q, _both(p.mT, q.mT, v.double()) / values).to(v.dtype)

        return apply

    def _by_complex(self, shift: float, adjoint: bool) -> Callable[[Tensor], Tensor]:
        (a, p, p_inverse), (b, q, q_inverse) = self._complex
        values = _apart_from_zero((torch.outer(a, b) + shift).flatten())
        left, right, left_inverse, right_inverse = p, q, p_inverse, q_inverse
        if adjoint:
            left, right, left_inverse, right_inverse = p_inverse.mT, q_inverse.mT, p.mT, q.mT
        norm = math.prod(float(torch.linalg.matrix_norm(matrix)) for matrix in self._wide)
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
        return self.symmetric

    def rounding(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        with torch.no_grad():
            left, right = self.left.to(v.dtype).abs(), self.right.to(v.dtype).abs()
            return ROUNDING_ERRORS * torch.finfo(v.dtype).eps * _both(left, right, v.abs())


def _apart_from_zero(values: Tensor) -> Tensor:
    """Eigenvalues, NaN where they are 0 to rounding."""
    size = values.abs()
    return torch.where(size > torch.finfo(size.dtype).eps * size.max(), values, torch.nan)


def _both(left: Tensor, right: Tensor, v: Tensor) -> Float[Tensor, "batch d"]:
    """A Z Bᵀ of each sample, flattened again."""
    return (left @ v.reshape(len(v), left.shape[1], right.shape[1]) @ right.mT).reshape(len(v), -1)
