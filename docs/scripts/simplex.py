"""What softmax, sparsemax and entmax cost, forward and backward, beside PyTorch and the package entmax.

Run

    OMP_NUM_THREADS=1 python docs/scripts/simplex.py

It needs the package entmax, from the extra `dev`. Times are processor time in float32, the least of thirty, in ms.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import entmax
import torch
from torch import Tensor

import implicit_bregman as ib

SHAPES = ((64, 10), (64, 100), (128, 1000))
REPETITIONS = 30

Map = Callable[[Tensor], Tensor]


def contenders() -> dict[str, Map]:
    """What is timed, by name."""
    shannon, tsallis = ib.geometry("simplex"), ib.geometry("simplex", order=1.5)
    return {
        "softmax, torch": lambda y: torch.softmax(y, -1),
        "softmax, activation": shannon.activation,
        "sparsemax, entmax": lambda y: entmax.sparsemax(y, -1),
        "sparsemax, project": shannon.project,
        "entmax-1.5, sorted": lambda y: entmax.entmax15(y, -1),
        "entmax-1.5, bisected": lambda y: entmax.entmax_bisect(y, 1.5, -1),
        "entmax-1.5, activation": tsallis.activation,
    }


def clocked(function: Map, y: Tensor, gradient: Tensor) -> float:
    """The least time of a forward and a backward pass, in milliseconds."""
    best = float("inf")
    for _ in range(REPETITIONS):
        start = time.process_time()
        torch.autograd.grad(function(y), y, gradient)
        best = min(best, time.process_time() - start)
    return 1e3 * best


def main() -> None:
    print(f"{'':24}" + "".join(f"{f'{m} x {n}':>12}" for m, n in SHAPES))
    torch.manual_seed(0)
    tensors = [(3 * torch.randn(shape)).requires_grad_() for shape in SHAPES]
    for name, function in contenders().items():
        times = [clocked(function, y, torch.randn(y.shape)) for y in tensors]
        print(f"{name:24}" + "".join(f"{ms:12.3f}" for ms in times))


if __name__ == "__main__":
    main()
