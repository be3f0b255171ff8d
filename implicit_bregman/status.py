"""How a solve ended, per sample, and what to do about it."""

from __future__ import annotations

import warnings
from enum import IntEnum

from jaxtyping import Int
from torch import Tensor


class ConvergenceWarning(UserWarning):
    """Some samples of a forward or a backward solve did not converge."""


class Status(IntEnum):
    """The end of one sample's solve."""

    CONVERGED = 0
    DEGENERATE = 1
    TRUNCATED = 2
    MAX_ITER = 3
    STALLED = 4
    DIVERGED = 5
    INVALID_INPUT = 6
    SINGULAR = 7
    INFEASIBLE = 8
    NONUNIQUE = 9

    @property
    def text(self) -> str:
        """What it means and what to do about it."""
        return _TEXTS[self]

    @property
    def failed(self) -> bool:
        """Whether the result should not be trusted."""
        return self not in (Status.CONVERGED, Status.DEGENERATE, Status.TRUNCATED, Status.NONUNIQUE)


_TEXTS = {
    Status.CONVERGED: "converged: the residual is within the tolerance",
    Status.DEGENERATE: (
        "converged, but a coordinate sits on its bound with a multiplier that cannot be told from 0: "
        "the gradient is one-sided there"
    ),
    Status.TRUNCATED: "stopped after the asked-for number of steps (Unrolled); not a failure",
    Status.MAX_ITER: (
        "the tolerance was not reached within max_iter: raise max_iter or tol, leave polish on, or use a faster solver"
    ),
    Status.STALLED: ("neither the residual nor the objective improves any more: raise tol, or compute in float64"),
    Status.DIVERGED: (
        "the iterates are running away, so the objective may have no minimum: use weight='convex', "
        "a larger regularization, or a geometry with a bounded domain"
    ),
    Status.INVALID_INPUT: "x, or the initial point, has NaN or infinite entries: clean the input of this sample",
    Status.SINGULAR: (
        "the adjoint system is singular or indefinite at this point: raise the regularization, "
        "use weight='convex', or solve the forward problem to a smaller tol"
    ),
    Status.INFEASIBLE: (
        "no point inside the domain that solves V'z = beta was found, so the value (with solver='auto') is that of "
        "the softened system: lower the rank, use a regularization > 0, or a geometry with a larger domain"
    ),
    Status.NONUNIQUE: (
        "converged, to one of many minimisers of a convex objective: the one nearest to the start, which is MM's "
        "limit; the gradient is the shortest possible one. Use a regularization > 0 for a unique minimiser"
    ),
}


def report_failures(where: str, status: Int[Tensor, " batch"], on_failure: str) -> None:
    """Warn about, or raise for, the samples that failed.

    The warning's text names the kinds of failure, not their number, so that Python shows it once per place.

    Raises:
        RuntimeError: if `on_failure` is "raise" and a sample failed.
    """
    if on_failure == "ignore" or not bool((status > int(Status.TRUNCATED)).any()):
        return
    kinds = [Status(int(code)) for code in status.unique().tolist()]
    failed = [kind for kind in kinds if kind.failed]
    if not failed:
        return
    reasons = "; ".join(f"{kind.name}: {kind.text}" for kind in failed)
    if on_failure == "raise":
        count = sum(int((status == kind).sum()) for kind in failed)
        raise RuntimeError(f"{where}: {count} of {status.numel()} samples failed. {reasons}")
    warnings.warn(f"{where}: some samples failed. {reasons}", ConvergenceWarning, stacklevel=2)
