"""Does torch.compile pay? One MM step, and the pointwise functions of a geometry, as they are and compiled.

Run

    python docs/scripts/compiled.py

It needs a C++ compiler, prints the table that docs/benchmarks.md quotes, and takes a minute or two, most of it in the
compiler. Medians of interleaved repeats on the threads that PyTorch chooses.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.majorization import mm_step

WIDTH, REPEATS = 128, 400
GEOMETRIES = ("tanh", "softplus", "arctan")


def seconds(functions: list[Callable[[], object]]) -> list[float]:
    """Median seconds of each, in turns."""
    for function in functions:
        for _ in range(5):
            function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS):
        for function, own in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    print("| function | geometry | samples | plain [µs] | compiled [µs] | ratio | compilation [s] |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    weight = -torch.eye(WIDTH) / 2
    for name in GEOMETRIES:
        phi = ib.geometry(name)

        def step(y: Tensor, c: Tensor, phi: ib.LegendreFunction = phi) -> Tensor:
            tau = y.new_ones(1)
            return mm_step(phi, y, -(phi.activation(y) @ weight + c), tau, 0.1)

        for title, function, arity in (("MM step", step, 2), ("curvature", phi.curvature, 1)):
            compiled = torch.compile(function, dynamic=False)
            for batch in (64, 4096):
                inputs = tuple(torch.randn(batch, WIDTH) for _ in range(arity))
                with torch.no_grad():
                    start = time.perf_counter()
                    same = compiled(*inputs)
                    took = time.perf_counter() - start
                    torch.testing.assert_close(same, function(*inputs), rtol=1e-5, atol=1e-5)
                    plain, fast = seconds([lambda f=function, x=inputs: f(*x), lambda f=compiled, x=inputs: f(*x)])
                cells = f"{plain * 1e6:.0f} | {fast * 1e6:.0f} | {plain / fast:.2f} | {took:.1f}"
                print(f"| {title} | {name} | {batch} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
