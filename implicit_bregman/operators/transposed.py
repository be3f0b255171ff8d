"""The transpose of an operator that has no better one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from implicit_bregman.operators.base import Dilation, LinearOperator, Rebuild
from implicit_bregman.operators.costs import Costs


class Transposed(LinearOperator):
    """Hᵀ of an operator that has no better one."""

    symmetric = False

    def __init__(self, of: LinearOperator) -> None:
        self.of = of
        self.costs = of.costs

    def product(self, v: Tensor, adjoint: bool = False) -> Tensor:
        return self.of.product(v, not adjoint)

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        tensors, rebuild = self.of.pack()
        return tensors, partial(_rebuild, rebuild)

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

    def norm(self) -> float | None:
        return self.of.norm()

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
        return Transposed(self.of.at(z))

    def select(self, index: Tensor) -> LinearOperator:
        return Transposed(self.of.select(index))

    def with_costs(self, costs: Costs) -> Transposed:
        return Transposed(self.of.with_costs(costs))

    def transposed(self) -> LinearOperator:
        return self.of


def _rebuild(rebuild: Rebuild, *tensors: Tensor) -> Transposed:
    return Transposed(rebuild(*tensors))
