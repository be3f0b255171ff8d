"""V, the equations of a Bregman projection, as a linear map: what solving and differentiating one asks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.linalg.cg import conjugate_gradient

#: The relative residual of a system VᵀDV in rounding errors, and its products for each unknown and besides.
_SOLVED, _PRODUCTS, _MORE_PRODUCTS = 16, 10, 50
#: A solution that is shorter by less is as short.
_SHORTER = 1e-9

RebuildMap = Callable[..., "LinearMap"]
"""From a map's tensors to a map of the same structure that is made of them."""


class LinearMap(ABC):
    """V: from multipliers λ, (B, r), to states, (B, d). Its columns are the equations Vᵀz = β. All samples share it.

    It need not be square, and has no spectrum: a Hessian is a `LinearOperator`. A subclass writes the abstract methods;
    systems with VᵀDV are then solved by conjugate gradients, unless it overrides `inverted_gram`.

    Attributes:
        plan: (n, m), where z is an n × m matrix and the equations are its row sums and its column sums; else None.
    """

    plan: tuple[int, int] | None = None

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(d, r)."""

    @abstractmethod
    def product(self, v: Tensor, adjoint: bool = False) -> Tensor:
        """Vλ, (*, r) → (*, d), or Vᵀz, (*, d) → (*, r), in v's precision.

        Differentiable in v and in the tensors of `pack`.
        """

    @abstractmethod
    def pack(self) -> tuple[tuple[Tensor, ...], RebuildMap]:
        """Its tensors, and a function that makes the same map of such tensors and holds none itself."""

    @abstractmethod
    def magnitude(self) -> LinearMap:
        """|V|, entry by entry, without gradient."""

    @abstractmethod
    def gram_diagonal(self, weights: Float[Tensor, "batch d"]) -> Float[Tensor, "batch r"]:
        """The diagonal of VᵀDV with D = diag(`weights`), without gradient."""

    def inverted_gram(
        self, weights: Float[Tensor, "batch d"], shift: Float[Tensor, "batch #r"]
    ) -> Callable[[Float[Tensor, "batch r"]], Float[Tensor, "batch r"]]:
        """b ↦ a solution of (VᵀDV + diag(shift)) x = b without gradient; NaN for a sample for which it is not found.

        Args:
            weights: D, (B, d), not negative.
            shift: not negative, (B, 1) or (B, r). 0 where VᵀDV is to be taken as it is, perhaps singular.
        """
        diagonal = self.gram_diagonal(weights) + shift
        diagonal = torch.where(diagonal > 0, diagonal, 1.0)

        def operator(u: Tensor) -> Tensor:
            return self.product(weights * self.product(u), adjoint=True) + shift * u

        def solve(b: Tensor) -> Tensor:
            eps = torch.finfo(b.dtype).eps
            found = conjugate_gradient(
                operator, b, lambda r: r / diagonal, _SOLVED * eps, _PRODUCTS * b.shape[-1] + _MORE_PRODUCTS
            )
            # (what rounding leaves of an ill-conditioned system is a solution too)
            return torch.where((found.converged | (found.residual <= eps**0.5))[:, None], found.value, torch.nan)

        return solve

    def shortest(self, multiplier: Float[Tensor, "batch r"]) -> Float[Tensor, "batch r"]:
        """The shortest λ with the same Vλ, without gradient: λ itself where V's columns are independent.

        Here: by conjugate gradients from 0, which do not leave the range of Vᵀ.
        """
        with torch.no_grad():
            right = self.product(self.product(multiplier), adjoint=True)
            most = _PRODUCTS * right.shape[-1] + _MORE_PRODUCTS
            eps = torch.finfo(right.dtype).eps
            found = conjugate_gradient(
                lambda u: self.product(self.product(u), adjoint=True), right, torch.Tensor.clone, _SOLVED * eps, most
            )
            # (where nothing is to be gained, nothing is to be lost by rounding)
            own, new = (torch.linalg.vector_norm(x, dim=-1) for x in (multiplier, found.value))
            shorter = found.converged & (new < (1 - _SHORTER) * own)
            return torch.where(shorter[:, None], found.value, multiplier)

    def inconsistency(self, target: Float[Tensor, "batch r"]) -> Float[Tensor, " batch"]:
        """How much equations that follow from others ask for different things, relative to their size, (B,); here: 0.

        What is not known of it beforehand a solve finds out.
        """
        return target.new_zeros(len(target))

    @property
    def dtype(self) -> torch.dtype | None:
        """The precision of its tensors; None: it has none, and goes with any."""
        return next((tensor.dtype for tensor in self.pack()[0] if tensor.is_floating_point()), None)

    @property
    def device(self) -> torch.device | None:
        """Where its tensors are; None: it has none, and goes anywhere."""
        return next((tensor.device for tensor in self.pack()[0]), None)

    def detach(self) -> LinearMap:
        """The same without gradient."""
        tensors, rebuild = self.pack()
        return rebuild(*(tensor.detach() for tensor in tensors))

    def lengths(self, like: Tensor) -> Float[Tensor, " r"]:
        """The lengths of V's columns, in `like`'s precision and on its device, without gradient; 1 for one of zeros."""
        lengths = self.gram_diagonal(like.new_ones(1, self.shape[0])).squeeze(0).sqrt()
        return torch.where(lengths > 0, lengths, 1.0)

    @abstractmethod
    def squared_norm(self, like: Tensor) -> Tensor:
        """‖V‖² (Frobenius norm), a 0-d tensor of `like`'s precision and device, differentiable."""


class DenseMap(LinearMap):
    """V, a matrix.

    Args:
        matrix: (d, r).
    """

    def __init__(self, matrix: Float[Tensor, "d r"]) -> None:
        self.matrix = matrix

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def product(self, v: Tensor, adjoint: bool = False) -> Tensor:
        return v @ (self.matrix if adjoint else self.matrix.mT)

    def pack(self) -> tuple[tuple[Tensor, ...], RebuildMap]:
        return (self.matrix,), DenseMap

    def magnitude(self) -> DenseMap:
        return DenseMap(self.matrix.detach().abs())

    def gram_diagonal(self, weights: Float[Tensor, "batch d"]) -> Float[Tensor, "batch r"]:
        return weights @ self.matrix.detach().square()

    def inverted_gram(
        self, weights: Float[Tensor, "batch d"], shift: Float[Tensor, "batch #r"]
    ) -> Callable[[Float[Tensor, "batch r"]], Float[Tensor, "batch r"]]:
        vectors = self.matrix.detach()
        gram = vectors.mT @ (weights[:, :, None] * vectors) + torch.diag_embed(shift.expand(-1, vectors.shape[1]))
        # At a unit diagonal saturated samples are as good as any.
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
        scaled, full = scale[:, :, None] * gram * scale[:, None, :], self._has_full_rank

        def solve(b: Tensor) -> Tensor:
            right = (scale * b)[:, :, None]
            if full:
                return scale * torch.linalg.solve_ex(scaled, right).result.squeeze(-1)
            return scale * (torch.linalg.pinv(scaled, hermitian=True) @ right).squeeze(-1)

        return solve

    @property
    def _has_full_rank(self) -> bool:
        return int(torch.linalg.matrix_rank(self.matrix.detach())) == self.matrix.shape[1]

    def shortest(self, multiplier: Float[Tensor, "batch r"]) -> Float[Tensor, "batch r"]:
        if self._has_full_rank:
            return multiplier
        with torch.no_grad():
            return self.product(multiplier) @ torch.linalg.pinv(self.matrix.detach()).mT

    def squared_norm(self, like: Tensor) -> Tensor:
        return self.matrix.square().sum()
