"""How a pass of a convolutional layer grows with the size of its images.

Run

    OMP_NUM_THREADS=1 python docs/scripts/images.py

A pass is everything from the kernels to the gradients of all parameters and of x: 16 channels, 32 images, float32, to
1e-5. Times are processor time, the least of several. What rivals take is measured by
`implicit-bregman benchmark --cells 'conv-*'`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

import implicit_bregman as ib
from implicit_bregman.experiments.benchmark.convolution import draw_layer
from implicit_bregman.experiments.benchmark.layer_cells import ConvolutionCell

TOLERANCE, REPETITIONS, ENOUGH = 1e-5, 3, 4.0  # seconds after which nothing is repeated


def one_pass(cell: ConvolutionCell) -> Callable[[], object]:
    """Forward and backward."""
    layer, cotangent = draw_layer(cell)
    module = ib.CriticalPoint(
        layer.energy,
        layer.geometry,
        layer.regularization,
        ib.solvers.Auto(tol=TOLERANCE),
        ib.adjoints.Implicit(tol=TOLERANCE),
    )
    return lambda: torch.autograd.grad(module(layer.x), layer.parameters, cotangent)


def clocked(run: Callable[[], object]) -> float:
    """The least time, in seconds."""
    times: list[float] = []
    while len(times) < REPETITIONS and sum(times) <= ENOUGH:
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    for gamma in (0.0, 1.0):
        for size in (16, 32, 64, 128):
            cell = ConvolutionCell("grown", size=size, regularization=gamma)
            seconds = clocked(one_pass(cell))
            each = 1e9 * seconds / (cell.batch * size * size)
            print(f"γ = {gamma:g} {size:4d} × {size:<4d} {1e3 * seconds:9.1f} ms {each:9.0f} ns/pixel", flush=True)


if __name__ == "__main__":
    main()
