"""The quadratic energy whose Hessian is any operator: the module, and what the solvers see of it at a fixed input."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.bound import BoundAffine, BoundQuadratic
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.energy.inputs import Inputs
from implicit_bregman.energy.quadratic import QuadraticEnergy
from implicit_bregman.energy.weights import Weight, affine, hold
from implicit_bregman.linalg.spectrum import Spectrum
from implicit_bregman.operators import Dense, LinearOperator
from implicit_bregman.transforms import transformed

#: A constant that was guessed from below is multiplied by this.
_CAUTION = 1.1


class OperatorEnergy(QuadraticEnergy):
    """f(z; x) = ½⟨z, Hz⟩ − ⟨c(x), z⟩; made by `QuadraticEnergy.from_operator`.

    The tensors that H is made of are registered under `weight_map`: parameters as parameters, others as buffers.
    """

    def __init__(self, operator: LinearOperator, offset: nn.Module | None, convex: bool) -> None:
        if not isinstance(operator, LinearOperator):
            raise TypeError(
                f"operator must be a LinearOperator, such as ib.operators.Dense(H), got {type(operator).__name__}"
            )
        if operator.shape != (operator.size, operator.size):
            raise ValueError(
                f"operator has the shape {operator.shape}, and an H must be square: use Convolution.gram, or place it "
                "off the diagonal of Blocks"
            )
        if not isinstance(getattr(operator, "symmetric", None), bool):
            raise TypeError(
                f"{type(operator).__name__}.symmetric must be True or False, got "
                f"{getattr(operator, 'symmetric', 'nothing')}: say whether H = Hᵀ"
            )
        if offset is not None and not isinstance(offset, nn.Module):
            raise TypeError(f"offset must be a module from x to c, or None for c = x, got {type(offset).__name__}")
        if convex:
            _check_convex(operator)
        Energy.__init__(self, operator.size, convex=convex)
        tensors, self._rebuild = operator.pack()
        self._costs = operator.costs
        self.weight_map = Weight()
        self._count = len(tensors)
        for number, tensor in enumerate(tensors):
            hold(self.weight_map, str(number), tensor)
        self.offset = offset
        self.in_features = operator.size if offset is None else None
        self.input_weight, self.bias = None, None

    @property
    def operator(self) -> LinearOperator:
        """H, as a function of the tensors that it is made of."""
        operator = self._rebuild(*(getattr(self.weight_map, str(number)) for number in range(self._count)))
        return operator if operator.costs is self._costs else operator.with_costs(self._costs)

    @property
    def has_matrix(self) -> bool:
        return False

    @property
    def samples(self) -> int | None:
        return self.operator.batch

    def reset_parameters(self) -> None:
        """Nothing: whoever made H knows what to draw it from."""

    @property
    def weight(self) -> Float[Tensor, "d d"]:
        """W = −H as a matrix, (d, d): for small d."""
        return -self.operator.dense()

    @property
    def symmetric(self) -> bool:
        return self.operator.symmetric

    def linear(self, x: Inputs) -> Float[Tensor, "*batch d"]:
        """c(x), (B, d)."""
        return x if self.offset is None else self.offset(x)

    def forward(self, z: Inputs, x: Inputs | None = None) -> Tensor:
        """f(z; x), (B,), as `value`; of x alone, what a solver asks for once: c, (B, d)."""
        return self.linear(z) if x is None else self.value(z, x)

    def value(self, z: Float[Tensor, "*batch d"], x: Inputs) -> Float[Tensor, "*batch"]:
        if not self.symmetric:
            raise TypeError("an operator that is not symmetric has no objective: use gradient(z, x)")
        return torch.linalg.vecdot(z, 0.5 * self.hessian_product(z, x, z) - self.linear(x))

    def gradient(self, z: Float[Tensor, "*batch d"], x: Inputs) -> Float[Tensor, "*batch d"]:
        return self.hessian_product(z, x, z) - self.linear(x)

    def hessian_product(
        self, z: Float[Tensor, "*batch d"], x: Inputs, v: Float[Tensor, "*batch d"]
    ) -> Float[Tensor, "*batch d"]:
        """Hv, (B, d)."""
        return self.operator.product(v.reshape(-1, v.shape[-1])).reshape(v.shape)

    def curvature_range(self) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        """Bounds of the eigenvalues of H (of its symmetric part) from below and, as `curvature_bound`, from above."""
        operator = self._operator()
        if operator.shared is not None:
            spectrum = operator.shared.factor.spectrum
            return spectrum.lowest, spectrum.curvature
        ends = bounds_of(operator)
        return None if ends is None else ends.lowest, mm_curvature(operator, ends)

    def curvature_bound(self) -> Tensor | None:  # type: ignore[override]
        return self.curvature_range()[1]

    def _operator(self) -> LinearOperator:  # type: ignore[override]
        """H, at least float32: as a matrix where it is small and this says more of it than its own bounds."""
        operator = self.operator
        operator = operator.to(torch.float32) if operator.dtype.itemsize == 2 else operator
        if operator.shared is not None or operator.batch is not None or not operator.fits_a_matrix:
            return operator
        if operator.symmetric and not transformed():
            ends = bounds_of(operator)
            if ends is not None and ends.is_definite():
                return operator
        return Dense(operator.dense(), operator.symmetric, convex=self.convex, costs=self._costs)

    def bind(self, x: Inputs) -> BoundEnergy:
        operator: LinearOperator = self._held.operator(self) if self._held is not None else self._operator()
        offset = self(x)
        if offset.shape[1:] != (operator.size,):
            raise ValueError(
                f"the offset c(x) must have shape (B, {operator.size}), as wide as H, got {tuple(offset.shape)} for a "
                "batch of B samples"
            )
        if operator.batch not in (None, len(offset)):
            raise ValueError(
                f"x has {len(offset)} samples, but there is one matrix for each of {operator.batch}: give as many of "
                "both"
            )
        if operator.shared is not None:
            return BoundQuadratic(self._declared(operator.shared), offset)
        return BoundStructured(operator, offset, None if transformed() else bounds_of(operator), self.convex)

    def _declared(self, matrix: Dense) -> Dense:
        if matrix.convex or not self.convex:
            return matrix
        return Dense(matrix.source, matrix.symmetric, convex=True, costs=matrix.costs)

    def extra_repr(self) -> str:
        """Width and kind of operator, for `print(module)`."""
        return f"features={self.features}, operator={type(self.operator).__name__}"


def _check_convex(operator: LinearOperator) -> None:
    """Refuse a declaration that H itself contradicts.

    Raises:
        ValueError: if it is not symmetric, or its diagonal has an entry below 0.
    """
    if not operator.symmetric:
        raise ValueError("convex=True needs a symmetric H: without symmetry there is no objective to be convex")
    diagonal = operator.diagonal()
    if diagonal is not None and bool((diagonal < 0).any()):
        raise ValueError(
            f"the energy was declared convex, but the diagonal of H has the entry {float(diagonal.min()):.3g}: leave "
            "out convex=True"
        )


def bounds_of(operator: LinearOperator) -> Spectrum | None:
    """The bounds of the spectrum of (H + Hᵀ)/2 in H's own precision, where they are known."""
    bounds, like = operator.bounds(), operator.pack()[0][0]
    if bounds is None:
        return None
    lowest, highest = like.new_tensor(bounds[0]), like.new_tensor(bounds[1])
    return Spectrum(lowest, highest, highest.clamp_min(0))


def mm_curvature(operator: LinearOperator, ends: Spectrum | None) -> Tensor | None:
    """What MM's step is made of: λ_max, or without symmetry a guess of what stands for it."""
    if operator.symmetric:
        return None if ends is None else ends.curvature
    return operator.pack()[0][0].new_tensor(_CAUTION * operator.step_bound_guess())


class Affine(nn.Module):
    """x ↦ Ux + b with tensors that somebody else owns; None stands for the identity and for 0."""

    U: Tensor | None
    b: Tensor | None

    def __init__(self, U: Float[Tensor, "d n"] | None, b: Float[Tensor, " d"] | None) -> None:
        super().__init__()
        hold(self, "U", U)
        hold(self, "b", b)

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """Ux + b, (B, d)."""
        return affine(x, self.U, self.b)


class BoundStructured(BoundAffine):
    """f(z) = ½⟨z, Hz⟩ − ⟨c, z⟩ for a batch of offsets c, (B, d). No matrix is made of H.

    Args:
        operator: H, with its gradient.
        offset: c, (B, d).
        ends: bounds of the spectrum of (H + Hᵀ)/2, where they are known: those of H itself, not of a rounded twin.
        convex: whether H is declared to be positive definite.
    """

    def __init__(self, operator: LinearOperator, offset: Tensor, ends: Spectrum | None, convex: bool = False) -> None:
        super().__init__(operator, offset)
        self.exact_by_newton = operator.symmetric
        self.ends = ends
        self.convex = convex

    @property
    def curvature(self) -> Tensor | None:
        return mm_curvature(self.operator, self.ends)

    @property
    def is_convex(self) -> bool:
        return self.symmetric and self.ends is not None and self.ends.is_definite(or_semidefinite=True)

    @property
    def lowest(self) -> Tensor | None:
        return None if self.ends is None else self.ends.lowest

    def remake(self) -> Callable[..., BoundStructured]:
        return partial(BoundStructured, ends=self.ends, convex=self.convex)

    def value_at(self, z: Float[Tensor, "batch d"]) -> Callable[[], Float[Tensor, " batch"]]:
        # At once, with H as it is now.
        value = torch.linalg.vecdot(z, 0.5 * self.operator.product(z) - self.offset)
        return lambda: value

    def is_strictly_convex(self, curvature: float, strictly: bool) -> bool:
        return self.convex or (self.ends is not None and self.ends.is_definite(curvature, strictly))

    def double(self) -> BoundStructured:
        return self._wide

    @cached_property
    def _wide(self) -> BoundStructured:
        operator = self.operator.detach().to(torch.float64)
        return BoundStructured(operator, self.offset.detach().double(), self.ends, self.convex)

    def apart(self) -> list[BoundEnergy] | None:
        if self.operator.batch is None or not self.operator.fits_a_matrix:
            return None
        matrices, convex, costs = self.operator.detach().dense(), self.convex, self.costs
        parts = [Dense(matrix, self.symmetric, convex=convex, costs=costs) for matrix in matrices]
        offsets = self.offset.detach().split(1)
        return [BoundQuadratic(part, offset) for part, offset in zip(parts, offsets, strict=True)]

    def select(self, index: Int[Tensor, " kept"]) -> BoundStructured:
        return BoundStructured(self.operator.select(index), self.offset[index], self.ends, self.convex)
