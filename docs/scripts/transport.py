"""Entropic transport plans by `BregmanProjection` and by POT: time, error of the marginals, agreement.

Run

    OMP_NUM_THREADS=1 python docs/scripts/transport.py

It prints the tables of docs/transport.md. n random points of the unit square against n others, squared distances
divided by the largest, random masses; float64. Both get their defaults: POT stops at an error of 1e-9, the library goes
on to about 1e-13. "Both" is the plan and the gradient of ⟨C, P⟩ in C, which POT has by differentiating its iterations
(PyTorch). Times are the least of several, in milliseconds of processor time.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
import ot
import torch
from torch import Tensor

import implicit_bregman as ib

SIZES, EPSILONS = (10, 50, 100, 500), (1.0, 0.1, 0.01, 0.001)
#: Sweeps that POT may make, and the numbers that its graph may hold.
MOST, GRAPH = {10: 100_000, 50: 20_000, 100: 10_000, 500: 2_000}, 4e8
BATCH = 64


def problem(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """C, a and b."""
    random = np.random.default_rng(seed)
    x, y = random.random((n, 2)), random.random((n, 2))
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    a, b = random.random(n) + 0.1, random.random(n) + 0.1
    return torch.from_numpy(cost / cost.max()), torch.from_numpy(a / a.sum()), torch.from_numpy(b / b.sum())


def least(call: Callable[[], object], budget: float = 2.0) -> float:
    """Milliseconds."""
    best, spent = float("inf"), 0.0
    while spent < budget:
        before = time.process_time()
        call()
        took = time.process_time() - before
        best, spent = min(best, took), spent + max(took, budget / 30)
    return 1e3 * best


def ours(cost: Tensor, a: Tensor, b: Tensor, epsilon: float) -> Tensor:
    v = ib.operators.Marginals(*cost.shape[-2:])
    layer = ib.BregmanProjection.from_matrix(v, torch.cat([a, b], -1), "exp")
    return layer.solve(initial_dual=-cost.flatten(-2) / epsilon).value.unflatten(-1, cost.shape[-2:])


def pot(cost: Tensor, a: Tensor, b: Tensor, epsilon: float) -> tuple[Tensor, dict[str, list[float]]]:
    return ot.bregman.sinkhorn_log(a, b, cost, epsilon, numItermax=MOST[len(a)], stopThr=1e-9, log=True, warn=False)


def backward(plan: Callable[[Tensor], Tensor], cost: Tensor) -> Tensor:
    leaf = cost.clone().requires_grad_()
    (plan(leaf) * leaf).sum().backward()
    return leaf.grad


def error(plan: Tensor, a: Tensor, b: Tensor) -> float:
    return max(float((plan.sum(1) - a).abs().max()), float((plan.sum(0) - b).abs().max()))


def row(n: int, epsilon: float) -> list[str]:
    cost, a, b = problem(n)
    with torch.no_grad():
        plan, (other, log) = ours(cost, a, b, epsilon), pot(cost, a, b, epsilon)
        arrays = [part.numpy() for part in (cost, a, b)]
        cells = [f"{n}", f"{epsilon:g}", f"{least(lambda: ours(cost, a, b, epsilon)):.1f}"]
        cells += [f"{least(lambda: pot(*arrays, epsilon)):.1f}", f"{least(lambda: pot(cost, a, b, epsilon)):.1f}"]
    sweeps = 1 + log["niter"]
    cells.append(f"{least(lambda: backward(lambda c: ours(c, a, b, epsilon), cost)):.1f}")
    if 3 * sweeps * n * n <= GRAPH:
        cells.append(f"{least(lambda: backward(lambda c: pot(c, a, b, epsilon)[0], cost)):.1f}")
        own = backward(lambda c: ours(c, a, b, epsilon), cost)
        differs = backward(lambda c: pot(c, a, b, epsilon)[0], cost) - own
        cells.append(f"{float(differs.abs().max() / own.abs().max()):.0e}")
    else:
        cells += ["(memory)", ""]
    return [
        *cells,
        f"{sweeps}",
        f"{error(plan, a, b):.0e}",
        f"{error(other, a, b):.0e}",
        f"{float((plan - other).abs().max()):.0e}",
    ]


def batched(n: int, epsilon: float) -> list[str]:
    problems = [problem(n, seed) for seed in range(BATCH)]
    cost, a, b = (torch.stack(parts) for parts in zip(*problems, strict=True))

    def others() -> Tensor:
        return ot.solve_batch(
            cost, epsilon, a, b, max_iter=MOST[n], tol=1e-9, method="log_sinkhorn", grad="detach"
        ).plan

    with torch.no_grad():
        errors = [
            (plan.sum(-1) - a).abs().amax().maximum((plan.sum(-2) - b).abs().amax())
            for plan in (ours(cost, a, b, epsilon), others())
        ]
        together, theirs = (least(call) / BATCH for call in (lambda: ours(cost, a, b, epsilon), others))
    return [f"{n}", f"{epsilon:g}", f"{together:.2f}", f"{theirs:.2f}", *(f"{float(worst):.0e}" for worst in errors)]


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(
        "| n | ε | forward | POT, NumPy | POT, PyTorch | both | POT, both | gradients differ by | POT's sweeps | "
        "error | POT's error | plans differ by |\n" + "| --- " * 12 + "|"
    )
    for n in SIZES:
        for epsilon in EPSILONS:
            print("| " + " | ".join(row(n, epsilon)) + " |", flush=True)
    print(
        f"\nBatches of {BATCH}, milliseconds per plan\n\n"
        "| n | ε | forward | POT, `solve_batch` | error | POT's error |\n" + "| --- " * 6 + "|"
    )
    for n in SIZES[:2]:
        for epsilon in EPSILONS[:3]:
            print("| " + " | ".join(batched(n, epsilon)) + " |", flush=True)


if __name__ == "__main__":
    main()
