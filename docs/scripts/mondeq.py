"""A trained monDEQ as a layer of this library: its accuracy, its residual, and times beside its own algorithm.

Run

    OMP_NUM_THREADS=1 python docs/scripts/mondeq.py mnist_fc.npz DATA

with the arrays of the network that Winston and Kolter published with "Monotone operator equilibrium networks" (2020),
z = relu(Wz + Ux + b) with W = (1 − m)I − AᵀA + B − Bᵀ and m = 1, and the folder in which the library's commands find
MNIST (their `--data-dir`). It needs the extra `experiments`. Times are the least of seven, in milliseconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import implicit_bregman as ib
from implicit_bregman.experiments.data.idx import read_idx_set

SAMPLES = 1024
REPETITIONS = 7


def load(path: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The arrays, and for its own iteration the H with 0 ∈ Hz − (Ux + b) + N(z), z ≥ 0."""
    arrays = {name: torch.from_numpy(array).to(dtype) for name, array in np.load(path).items()}
    a, b = arrays["A_weight"], arrays["B_weight"]
    arrays["H"] = torch.eye(len(a), dtype=dtype) + a.mT @ a - b + b.mT
    return arrays


def layer(net: dict[str, Tensor], solver: str | ib.solvers.Solver = "auto") -> ib.BregmanDEQ:
    """The network as a layer."""
    features, inputs = net["U_weight"].shape
    made = ib.BregmanDEQ(
        inputs, features, "softplus", weight="monotone", margin=1.0, solver=solver, dtype=net["H"].dtype
    )
    weight = made.energy.weight_map
    with torch.no_grad():
        weight.factor.copy_(net["A_weight"])
        weight.skew.copy_(net["B_weight"])
        made.energy.input_weight.copy_(net["U_weight"])
        made.energy.bias.copy_(net["U_bias"])
    return made.requires_grad_(False)


def peaceman_rachford(net: dict[str, Tensor], x: Tensor, alpha: float, tol: float) -> tuple[Tensor, int]:
    """monDEQ's own iteration, until z changes by less than `tol` of its norm."""
    inverse = torch.linalg.inv(torch.eye(len(net["H"]), dtype=x.dtype) + alpha * net["H"]).mT
    offset = alpha * (x @ net["U_weight"].mT + net["U_bias"])
    u = torch.zeros_like(offset)
    z, steps = u, 0
    while steps < 1000:
        steps += 1
        half = (u + offset) @ inverse
        before, z = z, (2 * half - u).clamp_min(0)
        u = u + 2 * (z - half)
        if float(torch.linalg.vector_norm(z - before)) <= tol * float(torch.linalg.vector_norm(z)):
            break
    return z, steps


def least_time(run: Callable[[], object]) -> float:
    """Milliseconds."""
    times = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main(arrays: str, mnist: str) -> None:
    """Print accuracy, residual and times."""
    torch.set_num_threads(1)
    raw = read_idx_set("mnist", Path(mnist))
    labels = torch.from_numpy(raw.test_y[:SAMPLES].astype(np.int64))
    images = torch.from_numpy(raw.test_x[:SAMPLES].reshape(SAMPLES, -1).astype(np.float64))
    pixels = (images / float(raw.test_x.max()) - 0.1307) / 0.3081
    for dtype in (torch.float64, torch.float32):
        net, x = load(arrays, dtype), pixels.to(dtype)
        z = layer(net)(x)
        wide = load(arrays, torch.float64)
        image = z.double() - (z.double() @ wide["H"].mT - pixels @ wide["U_weight"].mT - wide["U_bias"])
        right = (z @ net["Wout_weight"].mT + net["Wout_bias"]).argmax(-1) == labels
        natural = float((image.clamp_min(0) - z).abs().max())
        print(f"{dtype}: {100 * right.double().mean():.2f} % right, natural residual {natural:.1e}")
    exact = layer(load(arrays, torch.float64))(pixels)
    for batch in (128, SAMPLES):
        net, x = load(arrays, torch.float32), pixels[:batch].float()

        def error(z: Tensor, batch: int = batch) -> float:
            return float((z.double() - exact[:batch]).abs().max() / exact[:batch].abs().max())

        for solver in ("auto", ib.solvers.Splitting()):
            made = layer(net, solver)
            print(
                f"B = {batch}, {solver if isinstance(solver, str) else type(solver).__name__}: error "
                f"{error(made(x)):.0e}, forward {least_time(partial(made, x)):.1f} ms"
            )
        best = min((peaceman_rachford(net, x, a, 1e-6)[1], a) for a in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0))
        z, steps = peaceman_rachford(net, x, best[1], 1e-6)
        spent = least_time(partial(peaceman_rachford, net, x, best[1], 1e-6))
        print(f"B = {batch}, plain Peaceman-Rachford, {steps} steps: error {error(z):.0e}, forward {spent:.1f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
