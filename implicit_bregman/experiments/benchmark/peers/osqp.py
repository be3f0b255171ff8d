"""OSQP as a contender where there is one problem: it has no batch, and with γ = 0 a convex energy is one QP."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from implicit_bregman.experiments.benchmark.peers import proxqp
from implicit_bregman.experiments.benchmark.peers.contenders import (
    FORWARD,
    Contender,
    Failure,
    Found,
    Run,
    raised,
    timed,
)
from implicit_bregman.experiments.benchmark.peers.proxqp import TOLERANCES, loosest
from implicit_bregman.experiments.benchmark.truth import PreparedQuadratic
from implicit_bregman.experiments.reference.optimality import on_host

NAME = "OSQP"
_MOST = 100_000  # iterations
_INFINITE = 1e30  # OSQP's word for no bound


def applies(prepared: PreparedQuadratic) -> bool:
    """Whether the cell is one convex QP."""
    return proxqp.applies(prepared) and len(prepared.offset) == 1


def osqp(prepared: PreparedQuadratic, eps: float, polishing: bool) -> Run:
    """From the raw tensors to z, set-up included.

    Args:
        prepared: The cell; `applies` to it.
        eps: OSQP's eps_abs; eps_rel is 0.
        polishing: Whether it solves for the active set that it ends with.
    """

    def run() -> tuple[Tensor, None]:
        import numpy
        from osqp import OSQP
        from scipy.sparse import csc_matrix, identity, triu

        hessian = -on_host(prepared.weight).numpy()
        dim = len(hessian)
        low, high = (max(-_INFINITE, min(_INFINITE, end)) for end in prepared.geometry.domain)
        problem = OSQP()
        problem.setup(
            P=triu(csc_matrix(hessian), format="csc"),
            q=-on_host(prepared.offset[0]).numpy(),
            A=identity(dim, format="csc"),
            l=numpy.full(dim, low),
            u=numpy.full(dim, high),
            eps_abs=eps,
            eps_rel=0.0,
            max_iter=_MOST,
            polishing=polishing,
            verbose=False,
        )
        return torch.from_numpy(numpy.asarray(problem.solve(raise_error=False).x)).unsqueeze(0), None

    return run


def osqp_contenders(prepared: PreparedQuadratic, accuracies: Sequence[float], cap: float) -> Found:
    """The loosest tolerance that reaches each accuracy, with and without polishing.

    Args:
        prepared: The cell; `applies` to it.
        accuracies: Levels for z.
        cap: Seconds for the search.
    """
    deadline = time.perf_counter() + cap
    found: list[Contender] = []
    nearest: dict[float, Failure] = {}
    for polishing in (True, False):
        errors: dict[int, float] = {}

        def error(index: int, polishing: bool = polishing, errors: dict[int, float] = errors) -> float:
            if index not in errors:
                errors[index] = prepared.value_error(osqp(prepared, TOLERANCES[index], polishing)()[0])
            return errors[index]

        word = "polishing" if polishing else "no polishing"
        for level in accuracies:
            try:
                index = loosest(error, level, deadline)
            except RuntimeError as failed:
                nearest.setdefault(level, Failure(NAME, FORWARD, level, raised(failed), None, None))
                continue
            if index is None:
                closest = min(errors, key=lambda known: errors[known])
                old = nearest.get(level)
                if old is None or old.value_error is None or errors[closest] < old.value_error:
                    text = f"{word}, eps_abs = {TOLERANCES[closest]:g}"
                    nearest[level] = Failure(NAME, FORWARD, level, text, errors[closest], None)
                continue
            run = osqp(prepared, TOLERANCES[index], polishing)
            text = f"{word}, eps_abs = {TOLERANCES[index]:g}"
            found.append(Contender(NAME, FORWARD, text, run, (level,), timed(run)[0], in_torch=False))
    reached = {level for contender in found for level in contender.accuracies}
    return found, [failure for level, failure in nearest.items() if level not in reached]
