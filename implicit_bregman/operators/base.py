"""H, the Hessian of an energy, as a linear map of a batch of states: what solvers and adjoints ask of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.linalg.cg import LinearSolution, conjugate_gradient
from implicit_bregman.linalg.gmres import gmres
from implicit_bregman.operators.costs import DEFAULT_COSTS, Costs
from implicit_bregman.operators.inverse import Shifted, inverse
from implicit_bregman.transforms import transformed

if TYPE_CHECKING:
    from implicit_bregman.operators.dense import Dense
    from implicit_bregman.operators.factor import Damped
    from implicit_bregman.operators.free import FreeBlocks, FreeSolution
    from implicit_bregman.operators.systems import Systems

#: So many rounding errors of the terms of a sum are those of the sum.
ROUNDING_ERRORS = 16
#: Lengths of the runs of equal signs in the patterns of rounding errors.
_PATTERNS = (1, 2, 4)
#: Steps of the power method behind a guess of a norm.
_POWER_STEPS = 20
#: The relative residual of `solve` in rounding errors, and its products for each coordinate.
_SOLVED, _PRODUCTS = 16, 10
#: Those of a free block, and those for each coordinate of one that is damped.
_SOLVED_ON, _PRODUCTS_ON, _PRODUCTS_DAMPED = 64, 20, 3

Operator = TypeVar("Operator", bound="LinearOperator")
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
        convex: whether it is declared, or known, to be positive semidefinite.
        factorizes: whether its systems can be factorized: the methods of "Factorizations" below.
        damped: what `damped_inverse` returned last, or None.
        shared: itself, where it is one matrix that all samples share: for energies and operators made of others.
        costs: what decides between routes.
    """

    symmetric: bool
    convex: bool = False
    factorizes: bool = False
    costs: Costs = DEFAULT_COSTS

    @property
    def shared(self) -> Dense | None:
        return None

    @property
    def damped(self) -> Damped | None:
        return None

    @abstractmethod
    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        """H v, or Hᵀ v, (B, d); differentiable in v and in the tensors of `pack` where grad mode is on."""

    @abstractmethod
    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        """Its tensors, and a function that makes the same operator of such tensors and holds none itself."""

    def pack_known(self, splits: bool = False) -> tuple[tuple[Tensor, ...], Rebuild]:
        """The same without gradient, with what has been computed of it: for the backward pass of this solve.

        Args:
            splits: whether that pass is a splitting, and wants what `reflected` has computed.
        """
        tensors, rebuild = self.pack()
        return tuple(tensor.detach() for tensor in tensors), rebuild

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

    def add_product(
        self, b: Float[Tensor, "batch d"], v: Float[Tensor, "batch d"], beta: float = 1.0, alpha: float = 1.0
    ) -> Float[Tensor, "batch d"]:
        """beta·b + alpha·Hv, (B, d), as `product` differentiable."""
        image = self.product(v)
        return torch.add(image if alpha == 1.0 else alpha * image, b, alpha=beta)

    def bounds(self) -> tuple[float, float] | None:
        """Numbers between which all eigenvalues of (H + Hᵀ)/2 lie, or None if none are known."""
        return None

    def bounds_guess(self) -> tuple[float, float]:
        """About the least and the largest eigenvalue of (H + Hᵀ)/2: for the choice of a step, not for proofs."""
        return self.bounds() or (0.0, 1 / (self.gradient_step or 1.0))

    def sizes_guess(self) -> tuple[float, float]:
        """About the least and the largest singular value of H: for the choice of a step, not for proofs."""
        least, largest = self.bounds_guess()
        return least, largest if self.symmetric else max(largest, self.step_bound_guess())

    def skew_guess(self) -> float | None:
        """About the norm of (H − Hᵀ)/2: for the choice of a step, not for proofs; None: not known by itself."""
        return 0.0 if self.symmetric else None

    def norm(self) -> float | None:
        """A bound of ‖H‖₂, or None if none is known."""
        ends = self.bounds() if self.symmetric else None
        return None if ends is None else max(map(abs, ends))

    def coupling(self, other: LinearOperator) -> float | None:
        """A bound of the norm of (H + Kᵀ)/2, K the other, or None: how far H and K at opposite places move a spectrum.

        Here: by their norms. An operator that sees K to be −Hᵀ, or near to it, says less.
        """
        norms = self.norm(), other.norm()
        return None if None in norms else 0.5 * sum(norm for norm in norms if norm)

    def diagonal(self) -> Float[Tensor, "#batch d"] | None:
        """The diagonal of H, (d,) or (B, d), or None if it is not to be had cheaply."""
        return None

    def row_sizes(self) -> Float[Tensor, " d"] | None:
        """The sums of |H| over each row, which bound the entries of Hz where no |z| exceeds 1; None: not known."""
        return None

    def column_sizes(self) -> Float[Tensor, " d"] | None:
        """The lengths of H's columns, in float64; None: not known."""
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
        return inverse(Shifted(rebuild, shift, adjoint, rows), v, *tensors)

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

    def reflected(self, step: float, adjoint: bool = False, more: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
        """(u, b) ↦ (2(I + α(H + μI))⁻¹ − I)u + b, or with Hᵀ, without gradient: an operator splitting's share of H.

        Args:
            step: α.
            adjoint: whether it is Hᵀ.
            more: μ.
        """
        solve = self.inverted(1 / step + more, adjoint)
        return lambda u, b: torch.add(b - u, solve(u), alpha=2 / step)

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

    def splits(self, batch: int) -> bool:
        """Whether `reflected`, of itself or its `dilation`, costs about as much as a product.

        Operator splitting is then the method of choice for a quadratic f with one critical point.
        """
        return False

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
        return (self.batch or 1) * self.size**2 <= self.costs.matrix_entries

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
        return self._remade(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def detach(self) -> LinearOperator:
        """The operator without gradient."""
        return self._remade(torch.Tensor.detach)

    def with_costs(self: Operator, costs: Costs) -> Operator:
        """The same with other costs, by which a route can be chosen."""
        other = copy(self)
        other.costs = costs
        return other

    def _remade(self, change: Callable[[Tensor], Tensor]) -> LinearOperator:
        tensors, rebuild = self.pack()
        return rebuild(*map(change, tensors)).with_costs(self.costs)

    def transposed(self) -> LinearOperator:
        """Hᵀ."""
        from implicit_bregman.operators.transposed import Transposed  # (which is made of this class)

        return self if self.symmetric else Transposed(self)

    # On free sets ---------------------------------------------------------------------------------------------------

    def solve_on(
        self,
        free: Bool[Tensor, "batch d"],
        rhs: Float[Tensor, "batch d"],
        definite: bool = False,
        adjoint: bool = False,
    ) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
        """x with x_A = 0 and (H x)_F = b_F, and whether it was found, (B,): here by iteration.

        Args:
            free: F, (B, d); A is the rest.
            rhs: b, (B, d); its entries outside F do not matter.
            definite: whether to refuse blocks that are not positive definite (of a symmetric H), as iterations do.
            adjoint: whether to solve with Hᵀ.
        """
        mask, diagonal = free.to(rhs.dtype), self._positive_diagonal(free, rhs)
        method = conjugate_gradient if self.symmetric else gmres
        found = method(
            lambda v: mask * self.product(mask * v, adjoint) + (1 - mask) * v,
            torch.where(free, rhs, 0.0),
            lambda r: r / diagonal,
            _SOLVED_ON * torch.finfo(rhs.dtype).eps,
            _PRODUCTS_ON * rhs.shape[-1],
        )
        return mask * found.value, found.converged

    def solve_damped_on(
        self,
        free: Bool[Tensor, "batch d"],
        rhs: Float[Tensor, "batch d"],
        damping: Float[Tensor, "batch d"],
        tol: Float[Tensor, " batch"],
        at_once: bool = False,
    ) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
        """x with x_A = 0 and (H x)_F + damping·x_F ≈ b_F, and whether no negative curvature was met, (B,).

        Args:
            free: F, (B, d).
            rhs: b, (B, d), 0 outside F.
            damping: (B, d), not negative.
            tol: the relative residual that is enough where iterations are made.
            at_once: whether curvature is to be judged on all of F: by a factorization, where H has one.
        """
        found = self._iterate_damped_on(free, rhs, damping, tol, _PRODUCTS_DAMPED * rhs.shape[-1] + 20)
        return found.value, found.positive

    def _iterate_damped_on(self, free: Tensor, rhs: Tensor, damping: Tensor, tol: Tensor, most: int) -> LinearSolution:
        mask, diagonal = free.to(rhs.dtype), self._positive_diagonal(free, rhs, damping)
        inverse = self.resolvent(float(damping.mean())) if self.has_resolvent(len(rhs)) else None
        return conjugate_gradient(
            lambda v: mask * (self.product(mask * v) + damping * v) + (1 - mask) * v,
            rhs,
            (lambda r: r / diagonal) if inverse is None else (lambda r: mask * inverse(mask * r) + (1 - mask) * r),
            tol,
            most,
        )

    def _positive_diagonal(self, free: Tensor, like: Tensor, damping: Tensor | float = 0.0) -> Tensor:
        """The entries of the diagonal, with the damping, where they are positive; 1 elsewhere, and off F."""
        entries = self.diagonal()
        if entries is None:
            return torch.ones_like(like)
        entries = damping + entries.to(like.dtype)
        return torch.where(free & (entries > 0), entries, 1.0)

    def has_inverse(self, batch: int) -> bool:
        """Whether H is proved definite, and its inverse saves more than it costs for so many samples."""
        return False

    def free_blocks(self, free: Bool[Tensor, "batch d"]) -> FreeBlocks | None:
        """The factors behind `refine_on`; None where it has no inverse."""
        return None

    def refine_on(
        self,
        free: Bool[Tensor, "batch d"],
        rhs: Float[Tensor, "batch d"],
        fixed: Float[Tensor, "batch d"] | None = None,
        tol: float = 1e-13,
        blocks: FreeBlocks | None = None,
        floor: Tensor | float | None = None,
    ) -> FreeSolution | None:
        """z with z_A = fixed_A and (H z)_F = rhs_F to the last digits; None where no inverse has been found so far.

        Args:
            free: F, (B, d); A is the rest.
            rhs: (B, d); its entries outside F do not matter but for the scale.
            fixed: values outside F, (B, d); None: 0.
            tol: bound on the entries of (H z − b)_F, relative to the size of b and Hz.
            blocks: what `free_blocks` made; None: it is made here.
            floor: see `solve_free_blocks`.
        """
        return None

    # Factorizations: what can be asked where `factorizes` ---------------------------------------------------------

    def damped_inverse(self, shift: float) -> Damped | None:
        """(H + s·I)⁻¹, s within a factor of 2 of `shift`, of a symmetric H; None if that is not definite."""
        return None

    def inverted_scaled(self, shift: float, slope: Float[Tensor, " d"], batch: int) -> LinearOperator | None:
        """(shift·I + H·diag(slope))⁻¹; None where it costs more than it saves for so many samples; NaN if singular."""
        return None

    def systems(
        self,
        shift: Float[Tensor, "batch d"],
        left: Float[Tensor, "batch #d"] | None = None,
        right: Float[Tensor, "batch d"] | None = None,
        adjoint: bool = False,
    ) -> Systems:
        """diag(shift) + diag(left) H diag(right) of each sample, to be factorized in float64; `adjoint`: with Hᵀ.

        Raises:
            TypeError: unless it `factorizes`, as the following do.
        """
        self._refuse()

    def solve_definite_on(
        self, free: Bool[Tensor, "batch d"], rhs: Float[Tensor, "batch d"], eps: float
    ) -> tuple[Float[Tensor, "batch d"], Bool[Tensor, " batch"]]:
        """x with x_A = 0 and (H x)_F = b_F where H_FF is definite beyond rounding, else 0; and where it is, (B,).

        Args:
            free: F, (B, d).
            rhs: b, (B, d).
            eps: the rounding error of the precision in which H was given.
        """
        self._refuse()

    def solve_shortest_on(
        self, free: Bool[Tensor, "batch d"], rhs: Float[Tensor, "batch d"], eps: float
    ) -> Float[Tensor, "batch d"]:
        """The shortest x with x_A = 0 that minimises ‖(H x − b)_F‖, of a positive semidefinite H."""
        self._refuse()

    def solve_in_range(
        self, coordinates: Int[Tensor, " n"], rhs: Float[Tensor, "batch n"], eps: float
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "batch k"]]:
        """An orthonormal basis Q of the range of the block on some coordinates, and x with QᵀH_NN Q x = Qᵀb."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} has no factorizations: ask whether it `factorizes` first")
