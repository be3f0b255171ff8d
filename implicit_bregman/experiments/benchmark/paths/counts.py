"""What the main paths ask of a device, counted on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from implicit_bregman.experiments.benchmark.calls import count_calls
from implicit_bregman.experiments.benchmark.paths.layers import Path

_PRODUCTS = {
    *("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "_sparse_addmm", "convolution", "convolution_backward"),
    *("_fft_r2c", "_fft_c2r", "_fft_c2c", "linalg_cholesky_ex", "cholesky_solve", "cholesky_inverse"),
    *("linalg_solve_triangular", "triangular_solve", "linalg_inv_ex", "linalg_lu_factor_ex", "linalg_lu_solve"),
    *("_linalg_solve_ex", "_linalg_eigh", "linalg_ldl_factor_ex", "linalg_ldl_solve"),
}


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
    products = _Products()

    def watched() -> None:
        with products:
            run()

    calls = count_calls(watched)
    return Counts(calls.operators, products.count, calls.synchronisations, calls.shapes)


class _Products(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in _PRODUCTS
        return func(*args, **(kwargs or {}))
