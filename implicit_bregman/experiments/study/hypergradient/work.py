"""Arithmetic work of a computation, counted as it runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Result = TypeVar("Result")


def counted(function: Callable[[], Result], batch: int, dim: int) -> tuple[Result, float]:
    """What a function returns, and the work that it did.

    Counted are the floating-point operations of matrix products and of Cholesky and LU factorizations and their use,
    forward and backward. Elementwise operations, matrix-vector products and the small singular value decompositions
    of GMRES are not.

    Args:
        function: What to run.
        batch: B.
        dim: d.

    Returns:
        The result, and the work in units of 2Bd² operations: one product of W with the whole batch.
    """
    with _Counter() as counter:
        result = function()
    return result, counter.operations / (2 * batch * dim * dim)


class _Counter(TorchDispatchMode):
    """Adds up operations; PyTorch's own FlopCounterMode takes ten times as long, and knows no factorizations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func)
        if formula is not None:
            self.operations += formula(*args)
        return result


def _product(left: Tensor, right: Tensor) -> float:
    return 2.0 * left.numel() * right.shape[-1]


def _sum_and_product(start: Tensor, left: Tensor, right: Tensor) -> float:
    return _product(left, right)


def _cubic(share: float) -> Callable[..., float]:
    """A factorization of n × n matrices, `share` n³ each."""
    return lambda matrix, *rest: share * matrix.numel() * matrix.shape[-1]


def _substitution(right: Tensor, factor: Tensor, *rest: Any) -> float:
    """The two triangular solves behind a factorization."""
    return 2.0 * math.prod(right.shape) * right.shape[-2]


def _solve(matrix: Tensor, right: Tensor, *rest: Any, **options: Any) -> float:
    return 2 / 3 * matrix.numel() * matrix.shape[-1] + 2.0 * right.numel() * matrix.shape[-1]


_aten = torch.ops.aten
_FORMULAS: dict[Any, Callable[..., float]] = {
    _aten.mm.default: _product,
    _aten.bmm.default: _product,
    _aten.addmm.default: _sum_and_product,
    _aten.baddbmm.default: _sum_and_product,
    _aten.linalg_cholesky_ex.default: _cubic(1 / 3),
    _aten.cholesky_inverse.default: _cubic(2 / 3),
    _aten.cholesky_solve.default: _substitution,
    _aten._linalg_solve_ex.default: _solve,
    _aten.linalg_lu_factor_ex.default: _cubic(2 / 3),
}
