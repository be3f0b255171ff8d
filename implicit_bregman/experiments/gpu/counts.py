"""What the main paths ask of a device, counted on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from implicit_bregman.experiments.benchmark.calls import count_calls
from implicit_bregman.experiments.gpu.paths import Path

_PRODUCTS = {
    *("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "_sparse_addmm", "convolution", "convolution_backward"),
    *("_fft_r2c", "_fft_c2r", "_fft_c2c", "linalg_cholesky_ex", "cholesky_solve", "cholesky_inverse"),
    *("linalg_solve_triangular", "triangular_solve", "linalg_inv_ex", "linalg_lu_factor_ex", "linalg_lu_solve"),
    *("_linalg_solve_ex", "_linalg_eigh", "linalg_ldl_factor_ex", "linalg_ldl_solve"),
}
_SHAPES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


@dataclass(frozen=True)
class Counts:
    """Of one run, forward and backward.

    Attributes:
        operators: calls of operators, views included.
        products: how many of them are matrix products, convolutions, Fourier transforms, factorizations and solves.
        synchronisations: how many of them would make the host wait for a GPU.
        shapes: how many of these have a result whose shape depends on values, which no CUDA graph can record.
    """

    operators: int
    products: int
    synchronisations: int
    shapes: int


def counts_of(path: Path) -> Counts:
    """Count one run, after another that fills what is kept over calls."""
    run = path.make(torch.device("cpu"))
    run()
    kinds = _Kinds()

    def watched() -> None:
        with kinds:
            run()

    calls = count_calls(watched)
    return Counts(calls.operators, kinds.products, calls.synchronisations, kinds.shapes)


class _Kinds(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products = self.shapes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.products += name in _PRODUCTS
        self.shapes += name in _SHAPES or (name in _INDEXED and _by_mask(args[1]))
        return func(*args, **(kwargs or {}))


def _by_mask(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)
