"""ProxQP as a contender: with γ = 0 and a convex energy the forward pass is a batch of box-constrained QPs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from implicit_bregman.experiments.benchmark.peers.contenders import (
    FORWARD,
    Contender,
    Failure,
    Found,
    Run,
    timed,
    worth_timing,
)
from implicit_bregman.experiments.benchmark.truth import PreparedQuadratic
from implicit_bregman.experiments.reference.optimality import on_host

NAME = "ProxQP"
LAYOUTS = ("rows", "box, PrimalLDLT", "box")
TOLERANCES = tuple(10.0**-power for power in range(2, 12))
_INFINITE = 1e20  # ProxQP's word for no bound


def applies(prepared: PreparedQuadratic) -> bool:
    """Whether the cell is a convex QP."""
    return prepared.regularization == 0 and prepared.cell.kind == "convex"


class Batch:
    """One QP per sample: min ½zᵀ(−W)z − cᵀz over the box.

    Args:
        prepared: The cell.
        layout: "box" (ProxQP's box constraints), "box, PrimalLDLT" (the same with its other factorization) or
            "rows" (the box as d rows of a constraint matrix, in ProxQP's `BatchQP`).
        eps: ProxQP's absolute tolerance.
        threads: Of its parallel loop over the batch.
        samples: How many of the samples; None: all.
    """

    def __init__(
        self, prepared: PreparedQuadratic, layout: str, eps: float, threads: int, samples: int | None = None
    ) -> None:
        import numpy

        self.layout, self.eps, self.threads = layout, eps, threads
        self.offset = prepared.offset[:samples]
        self.weight = prepared.weight
        low, high = (max(-_INFINITE, min(_INFINITE, end)) for end in prepared.geometry.domain)
        dim = self.offset.shape[1]
        self.low, self.high = numpy.full(dim, low), numpy.full(dim, high)
        self.batch: Any = None

    def setup(self) -> None:
        """From the raw tensors to problems that are ready to be solved; they equilibrate and copy W each."""
        import numpy
        import proxsuite

        dense = proxsuite.proxqp.dense
        hessian = numpy.ascontiguousarray(-on_host(self.weight).numpy())
        linear = -on_host(self.offset).numpy()
        dim = len(hessian)
        self.batch = dense.BatchQP() if self.layout == "rows" else dense.VectorQP()
        backend = getattr(dense.DenseBackend, "PrimalLDLT" if self.layout.endswith("PrimalLDLT") else "Automatic")
        identity = numpy.eye(dim) if self.layout == "rows" else None
        for g in linear:
            if self.layout == "rows":
                problem = self.batch.init_qp_in_place(dim, 0, dim)
            else:
                problem = dense.QP(dim, 0, 0, True, dense.HessianType.Dense, backend)
            problem.settings.eps_abs, problem.settings.eps_rel = self.eps, 0.0
            if identity is not None:
                problem.init(hessian, g, None, None, identity, self.low, self.high)
            else:
                problem.init(hessian, g, None, None, None, None, None, self.low, self.high)
                self.batch.append(problem)  # a copy: there is no batch of problems with boxes in place

    def solve(self) -> Tensor:
        """Z, in float64."""
        import numpy
        import proxsuite

        proxsuite.proxqp.dense.solve_in_parallel(self.batch, self.threads)
        count = len(self.offset)
        found = [(self.batch.get(i) if self.layout == "rows" else self.batch[i]).results.x for i in range(count)]
        return torch.from_numpy(numpy.stack(found))


def proxqp(prepared: PreparedQuadratic, layout: str, eps: float, threads: int) -> Run:
    """From the raw tensors to z."""

    def run() -> tuple[Tensor, None]:
        batch = Batch(prepared, layout, eps, threads)
        batch.setup()
        return batch.solve(), None

    return run


def solve_only(prepared: PreparedQuadratic, layout: str, eps: float, threads: int) -> float:
    """Seconds of the solves alone, on problems that were set up before."""
    batch = Batch(prepared, layout, eps, threads)
    batch.setup()
    start = time.perf_counter()
    batch.solve()
    return time.perf_counter() - start


def proxqp_contenders(prepared: PreparedQuadratic, accuracies: Sequence[float], cap: float, threads: int) -> Found:
    """The loosest tolerance that reaches each accuracy, in each layout.

    Args:
        prepared: The cell; `applies` to it.
        accuracies: Levels for z.
        cap: Seconds for the search.
        threads: As many as the other contenders have.
    """
    deadline = time.perf_counter() + cap
    found: list[Contender] = []
    nearest: dict[float, Failure] = {}
    for layout in LAYOUTS:
        start = time.perf_counter()
        one = Batch(prepared, layout, TOLERANCES[0], threads, samples=1)
        one.setup()
        one.solve()
        expected = (time.perf_counter() - start) * len(prepared.offset) / threads
        if expected > deadline - time.perf_counter():
            text = f"{layout}: the cap is too small for one run of about {expected:.0f} s"
            for level in accuracies:
                nearest.setdefault(level, Failure(NAME, FORWARD, level, text, None, None))
            continue
        errors: dict[int, tuple[float, float]] = {}

        def error(index: int, layout: str = layout, errors: dict[int, tuple[float, float]] = errors) -> float:
            if index not in errors:
                seconds, z, _ = timed(proxqp(prepared, layout, TOLERANCES[index], threads))
                errors[index] = (prepared.value_error(z), seconds)
            return errors[index][0]

        for level in accuracies:
            index = loosest(error, level, deadline)
            if index is None:
                index = min(errors, key=lambda known: errors[known][0])
                text = f"{layout}, eps_abs = {TOLERANCES[index]:g}"
                old = nearest.get(level)
                if old is None or old.value_error is None or errors[index][0] < old.value_error:
                    nearest[level] = Failure(NAME, FORWARD, level, text, errors[index][0], None)
                continue
            eps = TOLERANCES[index]
            alone = 1e3 * solve_only(prepared, layout, eps, threads)
            text = f"{layout}, eps_abs = {eps:g} (solve only: {alone:.3g} ms)"
            run = proxqp(prepared, layout, eps, threads)
            found.append(Contender(NAME, FORWARD, text, run, (level,), errors[index][1], in_torch=False))
    reached = {level for contender in found for level in contender.accuracies}
    return worth_timing(found), [failure for level, failure in nearest.items() if level not in reached]


def loosest(error: Callable[[int], float], level: float, deadline: float) -> int | None:
    """The first of `TOLERANCES` with which the error is at most `level`, from a guess in the middle."""
    index = max(0, min(len(TOLERANCES) - 1, round(-math.log10(level)) - 1))
    while error(index) > level:
        index += 1
        if index == len(TOLERANCES) or time.perf_counter() > deadline:
            return None
    while index > 0 and time.perf_counter() <= deadline and error(index - 1) <= level:
        index -= 1
    return index
