"""H, the Hessian of an energy, as a linear map of a batch of states: what solvers and adjoints ask of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.linalg.cg import conjugate_gradient
from implicit_bregman.linalg.gmres import gmres
from implicit_bregman.operators.inverse import Invertible, inverse
from implicit_bregman.transforms import transformed

if TYPE_CHECKING:
    from implicit_bregman.operators.dense import Dense

#: So many rounding errors of the terms of a sum are those of the sum.
ROUNDING_ERRORS = 16
#: Lengths of the runs of equal signs in the patterns of rounding errors.
_PATTERNS = (1, 2, 4)
#: Up to so many entries a matrix is made of an operator where it says more: one of width 512 for all samples.
_MATRIX_ENTRIES = 2**18
#: Steps of the power method behind a guess of a norm.
_POWER_STEPS = 20
#: The relative residual of `solve` in rounding errors, and its products for each coordinate.
_SOLVED, _PRODUCTS = 16, 10

Rebuild = Callable[..., "LinearOperator"]
"""From an operator's tensors to an operator of the same structure that is made of them."""


class Dilation(NamedTuple):
    """An operator H̃ on a larger space, with H = EᵀH̃E, and the way there and back: see `LinearOperator.dilation`.

    Attributes:
        operator: H̃, whose inverse is cheap. Its bounds are those of H too.
        embed: E, (B, d) → (B, d̃): zeros where there are more coordinates.
        restrict: Eᵀ, (B, d̃) → (B, d): without these.
    """

    operator: LinearOperator
    embed: Callable[[Tensor], Tensor]
    restrict: Callable[[Tensor], Tensor]


class LinearOperator(ABC):
    """H: a linear map of states z, (B, d), the same for all samples or one for each.

    A subclass says what it is made of (`pack`), how wide it is and whether it is symmetric, and writes `product`. All
    else has a default that is made of products; a structure that allows better overrides it.

    Attributes:
        symmetric: whether H = Hᵀ.
        shared: H as one matrix that all samples share; None where there is no such matrix, or it should not be made.
    """

    symmetric: bool
    shared: Dense | None = None

    @abstractmethod
    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        """H v, or Hᵀ v, (B, d); differentiable in v and in the tensors of `pack` where grad mode is on."""

    @abstractmethod
    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        """Its tensors, and a function that makes the same operator of such tensors and holds none itself."""

    @property
    @abstractmethod
    def size(self) -> int:
        """d, the width of a state."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns: (d, d), but for a part of others that changes the width of a state."""
        return self.size, self.size

    @property
    def batch(self) -> int | None:
        """The number of samples that it is for; None: all share it."""
        return None

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its tensors."""
        return self.pack()[0][0].dtype

    def bounds(self) -> tuple[float, float] | None:
        """Numbers between which all eigenvalues of (H + Hᵀ)/2 lie, or None if none are known."""
        return None

    def bounds_guess(self) -> tuple[float, float]:
        """About the least and the largest eigenvalue of (H + Hᵀ)/2: for the choice of a step, not for proofs."""
        return self.bounds() or (0.0, 1 / (self.gradient_step or 1.0))

    def norm_bound(self) -> float | None:
        """A bound of ‖H‖₂, or None if none is known."""
        ends = self.bounds() if self.symmetric else None
        return None if ends is None else max(map(abs, ends))

    def coupling(self, other: LinearOperator) -> float | None:
        """A bound of the norm of (H + Kᵀ)/2, K the other, or None: how far H and K at opposite places move a spectrum.

        Here: by their norms. An operator that sees K to be −Hᵀ, or near to it, says less.
        """
        norms = self.norm_bound(), other.norm_bound()
        return None if None in norms else 0.5 * sum(norm for norm in norms if norm)

    def diagonal(self) -> Float[Tensor, "#batch d"] | None:
        """The diagonal of H, (d,) or (B, d), or None if it is not to be had cheaply."""
        return None

    def solve(self, v: Float[Tensor, "batch d"], shift: float = 0.0, adjoint: bool = False) -> Float[Tensor, "batch d"]:
        """(shift·I + H)⁻¹ v, or with Hᵀ, (B, d), to rounding; NaN for a sample for which it is not found.

        Differentiable in v and in the tensors of `pack`, to every order and in every mode.
        """
        tensors, rebuild = self.pack()
        if not transformed() and not (torch.is_grad_enabled() and any(t.requires_grad for t in (v, *tensors))):
            return self.inverted(shift, adjoint)(v)
        # (of an operator with a part for each sample, all samples would have to be multiplied)
        rows = (False,) * len(tensors) if self.batch is None else None
        return inverse(_Shifted(rebuild, shift, adjoint, rows), v, *tensors)

    def inverted(self, shift: float, adjoint: bool = False) -> Callable[[Tensor], Tensor]:
        """v ↦ `solve(v, shift, adjoint)` without gradient, for many v: what it takes of H is computed once.

        Here: by iteration. What a structure that allows better overrides.
        """
        known: dict[int, Callable[[Tensor], Tensor]] = {}

        def solve(v: Tensor) -> Tensor:
            if len(v) not in known:
                known[len(v)] = self._preconditioner(shift, v)
            return self._iterate(v, shift, adjoint, known[len(v)])

        return solve

    def _preconditioner(self, shift: float, like: Float[Tensor, "batch d"]) -> Callable[[Tensor], Tensor]:
        """About (shift·I + H)⁻¹, for `_iterate`. Here: that of the diagonal."""
        diagonal = self.diagonal()
        scale = torch.ones_like(like) if diagonal is None else shift + diagonal.expand_as(like)
        return torch.where(scale > 0, scale, 1.0).reciprocal().detach().mul

    def _iterate(self, v: Tensor, shift: float, adjoint: bool, precondition: Callable[[Tensor], Tensor]) -> Tensor:
        """By conjugate gradients, or GMRES where H is not symmetric."""
        with torch.no_grad():
            tol, most = _SOLVED * torch.finfo(v.dtype).eps, 50 + _PRODUCTS * v.shape[-1]

            def operator(u: Tensor) -> Tensor:
                return torch.add(self.product(u, adjoint), u, alpha=shift)

            method = conjugate_gradient if self.symmetric else gmres
            found = method(operator, v, precondition, tol, most)
            # (what rounding leaves of an ill-conditioned system is a solution too)
            near = found.residual <= torch.finfo(v.dtype).eps ** 0.5
            return torch.where((found.converged | near)[:, None], found.value, torch.nan)

    @property
    def gradient_step(self) -> float | None:
        """A length at which a gradient step neither overshoots nor creeps, about 1/λ_max; None: not known."""
        ends = self.bounds()
        return None if ends is None or ends[1] <= 0 else 1 / ends[1]

    def has_resolvent(self, batch: int) -> bool:
        """Whether `resolvent` costs less, for so many samples, than the products that it saves."""
        return False

    def resolvent(self, shift: float) -> Callable[[Tensor], Tensor] | None:
        """About v ↦ (shift·I + H)⁻¹ v, to precondition with; None if that is not positive definite.

        Asked for where `has_resolvent`. Here: `inverted`.
        """
        return self.inverted(shift)

    def dilation(self) -> Dilation | None:
        """An operator on a larger space of which this is a part and whose inverse is cheaper; None: there is none.

        Operator splitting then works there, with C = {0} for the coordinates that are more.
        """
        return None

    def rounding(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """About what rounding v and the sums in Hv may make of its entries, (B, d), in the precision of v.

        Here: the largest of what a few patterns of rounding errors make of them.
        """
        index = torch.arange(v.shape[-1], device=v.device)
        products = [self.product(torch.where(index % (2 * n) < n, v, -v)).abs() for n in _PATTERNS]
        return ROUNDING_ERRORS * torch.finfo(v.dtype).eps * torch.stack(products).amax(0)

    def dense(self) -> Float[Tensor, "*#batch d d"]:
        """H as a matrix, (d, d) or (B, d, d): for tests and where it `fits_a_matrix`."""
        identity = torch.eye(self.size, dtype=self.dtype, device=self.pack()[0][0].device)
        if self.batch is None:
            return self.product(identity).mT
        return torch.stack([self.product(column.expand(self.batch, -1)) for column in identity], -1)

    @property
    def fits_a_matrix(self) -> bool:
        """Whether it is small enough for `dense` and factorizations of it to cost little."""
        return (self.batch or 1) * self.size**2 <= _MATRIX_ENTRIES

    def step_bound_guess(self) -> float:
        """About the constant L by which MM's step σ/L is found without symmetry, the largest for any sample: no proof.

        By the power method. Where the bounds prove H monotone, it is the reciprocal of its cocoercivity constant, the
        largest ‖Hz‖²/⟨z, Hz⟩; else ‖H‖₂.
        """
        ends = self.bounds()
        monotone = ends is not None and ends[0] > 0
        with torch.no_grad():
            count = torch.arange((self.batch or 1) * self.size, dtype=self.dtype, device=self.pack()[0][0].device)
            v, found = torch.sin(1.7 * count + 0.3).reshape(-1, self.size), count.new_zeros(())

            def twice_symmetric(u: Tensor) -> Tensor:
                return self.product(u) + self.product(u, adjoint=True)

            for _ in range(_POWER_STEPS if len(v) else 0):
                v = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
                image = self.product(v)
                square = torch.linalg.vecdot(image, image)
                found = (square / torch.linalg.vecdot(v, image) if monotone else square.sqrt()).amax()
                v = self.product(image, adjoint=True)
                if monotone:
                    v = conjugate_gradient(twice_symmetric, v, torch.Tensor.clone, 1e-2, self.size).value
        return float(found)

    def at(self, z: Float[Tensor, "batch d"]) -> LinearOperator:
        """The Hessian at other points: the same, where f is quadratic."""
        return self

    def select(self, index: Int[Tensor, " kept"]) -> LinearOperator:
        """The operator for some of the samples: the same, where all share it."""
        return self

    def to(self, dtype: torch.dtype) -> LinearOperator:
        """The operator in another precision."""
        tensors, rebuild = self.pack()
        return rebuild(*(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors))

    def detach(self) -> LinearOperator:
        """The operator without gradient."""
        tensors, rebuild = self.pack()
        return rebuild(*(tensor.detach() for tensor in tensors))

    def transposed(self) -> LinearOperator:
        """Hᵀ."""
        return self if self.symmetric else _Transposed(self)


class _Transposed(LinearOperator):
    """Hᵀ of an operator that has no better one."""

    symmetric = False

    def __init__(self, of: LinearOperator) -> None:
        self.of = of

    def product(self, v: Tensor, adjoint: bool = False) -> Tensor:
        return self.of.product(v, not adjoint)

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        tensors, rebuild = self.of.pack()
        return tensors, lambda *tensors: _Transposed(rebuild(*tensors))

    @property
    def size(self) -> int:
        return self.of.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.of.shape
        return columns, rows

    @property
    def batch(self) -> int | None:
        return self.of.batch

    def bounds(self) -> tuple[float, float] | None:
        return self.of.bounds()

    def norm_bound(self) -> float | None:
        return self.of.norm_bound()

    def coupling(self, other: LinearOperator) -> float | None:
        return self.of.coupling(other.transposed())

    def dilation(self) -> Dilation | None:
        found = self.of.dilation()
        return None if found is None else found._replace(operator=found.operator.transposed())

    def diagonal(self) -> Tensor | None:
        return self.of.diagonal()

    def inverted(self, shift: float, adjoint: bool = False) -> Callable[[Tensor], Tensor]:
        return self.of.inverted(shift, not adjoint)

    def at(self, z: Tensor) -> LinearOperator:
        return _Transposed(self.of.at(z))

    def select(self, index: Tensor) -> LinearOperator:
        return _Transposed(self.of.select(index))

    def transposed(self) -> LinearOperator:
        return self.of


@dataclass(frozen=True)
class _Shifted(Invertible):
    """shift·I + H, or with Hᵀ, of the tensors that H is made of."""

    rebuild: Rebuild
    shift: float
    adjoint: bool
    rows: tuple[bool, ...] | None

    def product(self, v: Tensor, *tensors: Tensor) -> Tensor:
        return torch.add(self.rebuild(*tensors).product(v, self.adjoint), v, alpha=self.shift)

    def solve(self, right: Tensor, *tensors: Tensor) -> Tensor:
        return self.rebuild(*tensors).inverted(self.shift, self.adjoint)(right)

    def transposed(self) -> _Shifted:
        return replace(self, adjoint=not self.adjoint)
