"""Dense solves for a batch of general systems."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

#: From this width on a batch of LU factorizations is computed one by one: with several threads some builds of
#: PyTorch hand the batched LAPACK routine wrong pivots there (seen with 2.13 on a CPU, from width 102 in float32).
_ONE_BY_ONE = 64


def solve_general(
    matrix: Float[Tensor, "batch d d"], rhs: Float[Tensor, "batch d k"]
) -> tuple[Float[Tensor, "batch d k"], Bool[Tensor, " batch"]]:
    """x with A x = b by LU factorization, and whether each A could be factorized."""
    if matrix.shape[-1] < _ONE_BY_ONE or matrix.device.type != "cpu" or matrix.dim() == 2:
        found = torch.linalg.solve_ex(matrix, rhs)
        return found.result, found.info == 0
    if len(matrix) == 0:
        return rhs.clone(), torch.ones(0, dtype=torch.bool)
    parts = [torch.linalg.solve_ex(a, b) for a, b in zip(matrix, rhs, strict=True)]
    return torch.stack([part.result for part in parts]), torch.stack([part.info for part in parts]) == 0
