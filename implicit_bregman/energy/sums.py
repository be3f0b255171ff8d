"""The sum of energies, of the same z and x."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial, reduce
from itertools import accumulate
from operator import add
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from implicit_bregman.energy.autograd import Derivative
from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.bound import BoundAffine, BoundQuadratic
from implicit_bregman.energy.contract import BoundEnergy, Evaluation, Packed
from implicit_bregman.energy.inputs import Inputs
from implicit_bregman.energy.structured import BoundStructured, bounds_of
from implicit_bregman.operators import Dense, LinearOperator, Rebuild, Sum
from implicit_bregman.transforms import transformed


class SumEnergy(Energy):
    """f + g + …, made by `energy + energy`: each part gets the same z and the same x.

    Quadratic parts alone are one quadratic energy. Where others join them, the resolvent (κI + H)⁻¹ of the quadratic
    part preconditions the conjugate gradients of Newton's method and of the backward pass. A `Field` may be a part:
    there is no objective then.

    Args:
        parts: the energies. Of different `features` one may be the number of entries of the others' shape, as that of a
            quadratic energy is.

    Raises:
        ValueError: if the features, or the widths of x, do not fit, or a part has `weight="low_rank"`.
    """

    def __init__(self, *parts: Energy) -> None:
        for part in parts:
            if getattr(part, "low_rank", False):
                raise ValueError(
                    'an energy with weight="low_rank" stands for a projection and cannot be added: make it by '
                    "QuadraticEnergy.from_operator(ib.operators.LowRank(V))"
                )
        super().__init__(_common(parts), convex=all(part.convex for part in parts))
        self.parts = nn.ModuleList(parts)
        self.is_field = not self.symmetric and any(part.is_field for part in parts)

    def __add__(self, other: object) -> Energy:
        return SumEnergy(*self.parts, other) if isinstance(other, Energy) else NotImplemented

    @property
    def input_width(self) -> int | None:
        return next((part.input_width for part in self._each() if part.input_width is not None), None)

    @property
    def symmetric(self) -> bool:
        return all(part.symmetric for part in self._each())

    @property
    def samples(self) -> int | None:
        return next((part.samples for part in self._each() if part.samples is not None), None)

    def curvature_range(self) -> tuple[Tensor | None, Tensor | float | None]:
        ends = [part.curvature_range() for part in self._each()]
        lowest, highest = _total([end[0] for end in ends]), _total([end[1] for end in ends])
        return None if lowest is None else torch.as_tensor(lowest), highest

    def curvature_bound(self) -> Tensor | float | None:
        return self.curvature_range()[1]

    def value(self, z: Float[Tensor, "*batch *features"], x: Inputs) -> Float[Tensor, "*batch"]:
        """f(z; x) + g(z; x) + …, (B,)."""
        return reduce(add, (part.value(self._state(part, z), x) for part in self._each()))

    def gradient(self, z: Float[Tensor, "*batch *features"], x: Inputs) -> Float[Tensor, "*batch *features"]:
        """The sum of the gradients."""
        return reduce(add, (part.gradient(self._state(part, z), x).reshape(z.shape) for part in self._each()))

    def hessian_product(
        self, z: Float[Tensor, "*batch *features"], x: Inputs, v: Float[Tensor, "*batch *features"]
    ) -> Float[Tensor, "*batch *features"]:
        """The sum of the products with the Hessians."""
        pairs = ((part, self._state(part, z), self._state(part, v)) for part in self._each())
        return reduce(add, (part.hessian_product(at, x, along).reshape(z.shape) for part, at, along in pairs))

    def bind(self, x: Inputs) -> BoundEnergy:
        parts = [part.bind(x) for part in self._each()]
        quadratic, others = [p for p in parts if isinstance(p, BoundAffine)], [p for p in parts if not p.affine]
        if not others:
            return _one_quadratic(quadratic)
        return _BoundSum([_one_quadratic(quadratic), *others] if quadratic else others)

    def _derivative(self, z: Tensor, x: Inputs) -> Derivative:
        parts = [(part, part._derivative(self._state(part, z), x)) for part in self._each()]
        return lambda v, adjoint: reduce(
            add, (product(self._state(part, v), adjoint).reshape(v.shape) for part, product in parts)
        )

    def _each(self) -> Sequence[Energy]:
        return tuple(self.parts)  # type: ignore[arg-type]

    def _state(self, part: Energy, z: Tensor) -> Tensor:
        """z in the shape in which a part takes it."""
        flat = isinstance(self.features, tuple) and not isinstance(part.features, tuple)
        return z.flatten(z.dim() - len(self.features)) if flat else z  # type: ignore[arg-type]


def _common(parts: Sequence[Energy]) -> int | tuple[int, ...] | None:
    """The features of a sum: a shape, if one of the parts has one.

    Raises:
        ValueError: if they contradict each other.
    """
    widths = {part.input_width for part in parts} - {None}
    known = [part.features for part in parts if part.features is not None]
    shapes = {features for features in known if isinstance(features, tuple)}
    sizes = {math.prod(features) if isinstance(features, tuple) else features for features in known}
    if len(sizes) > 1 or len(shapes) > 1 or len(widths) > 1:
        raise ValueError(
            f"energies that are added must have the same features and take the same x, got features "
            f"{', '.join(str(part.features) for part in parts)} and widths of x "
            f"{', '.join(str(part.input_width) for part in parts)}"
        )
    return next(iter(shapes)) if shapes else (known[0] if known else None)


def _total(bounds: Sequence[Any]) -> Any:
    """The sum of numbers or tensors, if all are known; else None."""
    return None if any(bound is None for bound in bounds) else reduce(add, bounds)


def _one_quadratic(parts: Sequence[BoundAffine]) -> BoundAffine:
    """Quadratic energies as one, with a matrix where all have one."""
    if len(parts) == 1:
        return parts[0]
    offset, symmetric = reduce(add, (part.offset for part in parts)), all(part.symmetric for part in parts)
    convex = symmetric and all(part.is_convex or part.is_strictly_convex(0.0, False) for part in parts)
    matrices = [part.factored.operator for part in parts if part.factored is not None]
    if len(matrices) == len(parts):
        return BoundQuadratic(Dense(reduce(add, (each.source for each in matrices)), symmetric, convex=convex), offset)
    operator = Sum(*(part.hessian(offset) for part in parts))
    return BoundStructured(operator, offset, None if transformed() else bounds_of(operator), convex)


class _BoundSum(BoundEnergy):
    """The sum of energies at a fixed input: that of the quadratic ones, if there are any, and the others."""

    affine = False

    def __init__(self, parts: Sequence[BoundEnergy]) -> None:
        self.parts = tuple(parts)
        self.dtype = reduce(torch.promote_types, (part.dtype for part in parts))
        self.symmetric = all(part.symmetric for part in parts)

    @property
    def curvature(self) -> Tensor | None:
        return _total([part.curvature for part in self.parts])

    @property
    def lowest(self) -> Tensor | None:
        return _total([part.lowest for part in self.parts])

    def evaluate(self, z: Float[Tensor, "batch d"]) -> Evaluation:
        found = [part.evaluate(z) for part in self.parts]
        return Evaluation(_total([each.value for each in found]), reduce(add, (each.gradient for each in found)))

    def gradient(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return reduce(add, (part.gradient(z) for part in self.parts))

    def value(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        return reduce(add, (part.value(z) for part in self.parts))

    def value_at(self, z: Float[Tensor, "batch d"]) -> Callable[[], Float[Tensor, " batch"]]:
        later = [part.value_at(z) for part in self.parts]
        return lambda: reduce(add, (value() for value in later))

    def pack(self) -> Packed:
        packed = [part.pack() for part in self.parts]
        rows: list[bool] | None = []
        for each in packed:
            rows = None if rows is None or each.rows is None else [*rows, *each.rows]
        counts = [len(each.tensors) for each in packed]
        rebuild = partial(_rebuild, [each.rebuild for each in packed], counts)
        tensors = tuple(tensor for each in packed for tensor in each.tensors)
        return Packed(tensors, None if rows is None else tuple(rows), rebuild)

    def again(self) -> AbstractContextManager[object]:
        return _All([part.again() for part in self.parts])

    def hessian(self, z: Float[Tensor, "batch d"]) -> LinearOperator:
        return _SumOfHessians(*(part.hessian(z) for part in self.parts))

    def is_strictly_convex(self, curvature: float, strictly: bool) -> bool:
        convex = all(part.is_convex or part.is_strictly_convex(0.0, True) for part in self.parts)
        return convex and any(part.is_strictly_convex(curvature, strictly) for part in self.parts)

    def double(self) -> BoundEnergy:
        raise TypeError("only a quadratic energy has a float64 twin")

    def select(self, index: Int[Tensor, " kept"]) -> BoundEnergy:
        return _BoundSum([part.select(index) for part in self.parts])


def _rebuild(rebuilds: Sequence[Callable[..., BoundEnergy]], counts: Sequence[int], *tensors: Tensor) -> BoundEnergy:
    ends = accumulate(counts)
    return _BoundSum([make(*tensors[end - n : end]) for make, n, end in zip(rebuilds, counts, ends, strict=True)])


class _All:
    """Several contexts as one, which may be entered more than once."""

    def __init__(self, contexts: Sequence[AbstractContextManager[object]]) -> None:
        self._contexts = contexts
        self._entered: list[ExitStack] = []

    def __enter__(self) -> None:
        stack = ExitStack()
        for context in self._contexts:
            stack.enter_context(context)
        self._entered.append(stack)

    def __exit__(self, *error: object) -> None:
        self._entered.pop().close()


class _SumOfHessians(Sum):
    """The Hessian of a sum, preconditioned by the resolvent of its first part, that of the quadratic energies."""

    @property
    def gradient_step(self) -> float | None:
        return self.parts[0].gradient_step

    def has_resolvent(self, batch: int) -> bool:
        return self.parts[0].has_resolvent(batch)

    def resolvent(self, shift: float) -> Callable[[Tensor], Tensor] | None:
        """That of the first part, for which the others count as a multiple of the identity: their mean curvature."""
        curvature = 0.0
        for part in self.parts[1:]:
            z = part.pack()[0][0]
            signs = torch.where(torch.arange(z.numel(), device=z.device) * 0.618 % 1 < 0.5, 1.0, -1.0)
            signs = signs.to(z.dtype).reshape(z.shape)
            curvature += float((signs * part.product(signs)).mean())
        return self.parts[0].resolvent(shift + max(curvature, 0.0))

    def at(self, z: Float[Tensor, "batch d"]) -> LinearOperator:
        return _SumOfHessians(*(part.at(z) for part in self.parts))

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        tensors, rebuild = super().pack()
        return tensors, partial(_preconditioned_again, rebuild)

    def select(self, index: Int[Tensor, " kept"]) -> Sum:
        return _SumOfHessians(*(part.select(index) for part in self.parts))


def _preconditioned_again(rebuild: Rebuild, *tensors: Tensor) -> LinearOperator:
    return _SumOfHessians(*cast(Sum, rebuild(*tensors)).parts)
