"""The quadratic energy whose Hessian is any operator: the module, and what the solvers see of it at a fixed input."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from implicit_bregman.energy.base import BoundEnergy, Energy
from implicit_bregman.energy.bound import BoundAffine, BoundQuadratic
from implicit_bregman.energy.quadratic import QuadraticEnergy
from implicit_bregman.energy.snapshot import Again
from implicit_bregman.energy.weights import hold
from implicit_bregman.operators import LinearOperator


class OperatorEnergy(QuadraticEnergy):
    """f(z; x) = ½⟨z, Hz⟩ − ⟨c(x), z⟩; made by `QuadraticEnergy.from_operator`.

    The tensors that H is made of are registered under `weight_map`: parameters as parameters, others as buffers.
    """

    def __init__(self, operator: LinearOperator, offset: nn.Module | None, convex: bool) -> None:
        if not isinstance(operator, LinearOperator):
            raise TypeError(
                f"operator must be a LinearOperator, such as ib.operators.Dense(H), got {type(operator).__name__}"
            )
        if offset is not None and not isinstance(offset, nn.Module):
            raise TypeError(f"offset must be a module from x to c, or None for c = x, got {type(offset).__name__}")
        if operator.shared is None and not operator.symmetric:
            raise ValueError(
                f"{type(operator).__name__} is not symmetric: without symmetry H has to be one matrix for all samples, "
                "ib.operators.Dense(H)"
            )
        Energy.__init__(self, operator.size, convex=convex)
        tensors, self._rebuild = operator.pack()
        self.weight_map = nn.Module()  # type: ignore[assignment]
        self._count = len(tensors)
        for number, tensor in enumerate(tensors):
            hold(self.weight_map, str(number), tensor)
        self.offset = offset
        self.in_features = operator.size if offset is None else None
        self.input_weight, self.bias = None, None

    @property
    def operator(self) -> LinearOperator:
        """H, as a function of the tensors that it is made of."""
        return self._rebuild(*(getattr(self.weight_map, str(number)) for number in range(self._count)))

    def reset_parameters(self) -> None:
        """Nothing: whoever made H knows what to draw it from."""

    @property
    def weight(self) -> Float[Tensor, "d d"]:
        """W = −H as a matrix, (d, d): for small d."""
        return -self.operator.dense()

    @property
    def symmetric(self) -> bool:
        return self.operator.symmetric

    def linear(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """c(x), (B, d)."""
        return x if self.offset is None else self.offset(x)

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """f(z; x), (B,), as `value`; of x alone, what a solver asks for once: c, (B, d)."""
        return self.linear(z) if x is None else self.value(z, x)

    def value(self, z: Float[Tensor, "*batch d"], x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        if not self.symmetric:
            raise TypeError("an operator that is not symmetric has no objective: use gradient(z, x)")
        return torch.linalg.vecdot(z, 0.5 * self.hessian_product(z, x, z) - self.linear(x))

    def gradient(self, z: Float[Tensor, "*batch d"], x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        return self.hessian_product(z, x, z) - self.linear(x)

    def hessian_product(
        self, z: Float[Tensor, "*batch d"], x: Tensor, v: Float[Tensor, "*batch d"]
    ) -> Float[Tensor, "*batch d"]:
        """Hv, (B, d)."""
        return self.operator.product(v.reshape(-1, v.shape[-1])).reshape(v.shape)

    def curvature_range(self) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        """Bounds of the eigenvalues of H, where they are known."""
        ends = self.operator.bounds()
        if ends is None:
            return None, None
        return torch.tensor(ends[0], dtype=torch.float64), torch.tensor(ends[1], dtype=torch.float64)

    def curvature_bound(self) -> Tensor | None:  # type: ignore[override]
        return self.curvature_range()[1]

    def _operator(self) -> LinearOperator:  # type: ignore[override]
        operator = self.operator
        return operator.to(torch.float32) if operator.dtype.itemsize == 2 else operator

    def bind(self, x: Float[Tensor, "batch n"]) -> BoundEnergy:
        operator: LinearOperator = self._held.operator(self) if self._held is not None else self._operator()
        if operator.batch not in (None, len(x)):
            raise ValueError(
                f"x has {len(x)} samples, but there is one matrix for each of {operator.batch}: give as many of both"
            )
        offset = self(x.to(operator.dtype))
        if operator.shared is not None:
            return BoundQuadratic(operator.shared, offset)
        return BoundStructured(operator, offset, operator.bounds(), self.convex)

    def extra_repr(self) -> str:
        """Width and kind of operator, for `print(module)`."""
        return f"features={self.features}, operator={type(self.operator).__name__}"


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
        image = x if self.U is None else nn.functional.linear(x, self.U)
        return image if self.b is None else image + self.b


class BoundStructured(BoundAffine):
    """f(z) = ½⟨z, Hz⟩ − ⟨c, z⟩ for a batch of offsets c, (B, d). No matrix is made of H.

    Args:
        operator: H, with its gradient.
        offset: c, (B, d).
        ends: bounds of H's eigenvalues, where they are known already: those of H itself, not of a rounded twin.
        convex: whether H is declared to be positive semidefinite.
    """

    has_finish = True

    def __init__(
        self, operator: LinearOperator, offset: Tensor, ends: tuple[float, float] | None, convex: bool = False
    ) -> None:
        self.operator = operator
        self.offset = offset
        self.dtype = offset.dtype
        self.symmetric = operator.symmetric
        self.ends = ends
        self.convex = convex

    @property
    def curvature(self) -> Tensor | None:
        # (for a step that is safe without symmetry more has to be known: MM finds it by backtracking)
        if self.ends is None or not self.symmetric:
            return None
        return self.offset.new_tensor(max(self.ends[1], 0.0))

    @property
    def lowest(self) -> Tensor | None:
        return None if self.ends is None else self.offset.new_tensor(self.ends[0])

    def gradient(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return self.operator.product(z) - self.offset

    def value_at(self, z: Float[Tensor, "batch d"]) -> Callable[[], Float[Tensor, " batch"]]:
        # At once, with H as it is now.
        value = torch.linalg.vecdot(z, 0.5 * self.operator.product(z) - self.offset)
        return partial(_identity, value)

    def again(self) -> AbstractContextManager[object]:
        return Again((*self.operator.pack()[0], self.offset))

    def hessian(self, z: Float[Tensor, "batch d"]) -> LinearOperator:
        return self.operator

    def is_strictly_convex(self, curvature: float, strictly: bool) -> bool:
        if not self.symmetric:
            return False
        if self.convex:
            return True
        if self.ends is None:
            return False
        least, size = self.ends[0] + curvature, max(abs(end) for end in self.ends)
        rounding = 16 * torch.finfo(self.operator.dtype).eps * size
        return least >= -rounding if strictly else least > rounding

    def double(self) -> BoundStructured:
        return self._wide

    @cached_property
    def _wide(self) -> BoundStructured:
        operator = self.operator.detach().to(torch.float64)
        return BoundStructured(operator, self.offset.detach().double(), self.ends, self.convex)

    def select(self, index: Int[Tensor, " kept"]) -> BoundStructured:
        return BoundStructured(self.operator.select(index), self.offset[index], self.ends, self.convex)


def _identity(value: Tensor) -> Tensor:
    return value
