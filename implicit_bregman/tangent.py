"""The adjoint system where the coordinates of C are coupled: on the directions that stay in C."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.legendre.coupling import Coupling
from implicit_bregman.linalg.cg import LinearSolution, conjugate_gradient
from implicit_bregman.linalg.gmres import gmres
from implicit_bregman.linearization import Linearization

#: Products between two looks of GMRES at its residual.
_CYCLE = 40


class TangentSystem:
    """v along C with ⟨(shift/s + Hᵀ) v − g, t⟩ = 0 for every t along C.

    With D = BBᵀ the derivative of the mirror map and v = Bw this is (P diag(shift) P + BᵀHᵀB) w = Bᵀg, P the projection
    off ŝ in each block: nothing overflows where s is tiny, and where H is symmetric so is this.

    Args:
        system: H, s and the shift.
        adjoint: whether H or Hᵀ is meant.
    """

    def __init__(self, system: Linearization, coupling: Coupling, adjoint: bool = True) -> None:
        self.system, self.coupling, self.adjoint = system, coupling, adjoint
        dtype = torch.float64 if system.hessian.factorizes else system.slope.dtype
        self.slope, self.shift = system.slope.to(dtype), system.shift.to(dtype)
        self.root = self.slope.sqrt()
        self.unit = coupling.unit(self.root)

    def solve(self, g: Float[Tensor, "batch d"], tol: float | Float[Tensor, " batch"], max_iter: int) -> LinearSolution:
        """v, by conjugate gradients, or GMRES where H is not symmetric; the residual is that of w's equation.

        Args:
            g: the right-hand side.
            tol: relative residual, one for all samples or one for each.
            max_iter: bound on the number of products.
        """
        right, reciprocal = self._off(self.root * g.to(self.root.dtype)), 1 / self.system.diagonal().to(self.root.dtype)

        def preconditioned(r: Tensor) -> Tensor:
            return self._off(reciprocal * self._off(r))

        if self.system.hessian.symmetric:
            found = conjugate_gradient(self._apply, right, preconditioned, tol, max_iter)
        else:
            found = gmres(self._apply, right, preconditioned, tol, max_iter, min(_CYCLE, max_iter))
        left = right - self._apply(found.value)
        size = torch.linalg.vector_norm(right, dim=-1)
        residual = torch.linalg.vector_norm(left, dim=-1) / torch.where(size > 0, size, 1.0)
        return replace(found, value=self.root * self._off(found.value), residual=residual)

    def _apply(self, w: Tensor) -> Tensor:
        w = self._off(w)
        return self._off(self.shift * w + self.root * self.system.hessian.product(self.root * w, self.adjoint))

    def _off(self, w: Tensor) -> Tensor:
        return self.coupling.off(self.unit, w)
