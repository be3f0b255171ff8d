"""How a solve ended, per sample, and what to do about it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from enum import IntEnum

from jaxtyping import Int
from torch import Tensor


class ConvergenceWarning(UserWarning):
    """Some samples of a forward or a backward solve did not converge."""


class Status(IntEnum):
    """How the solve of one sample went."""

    CONVERGED = 0
    DEGENERATE = 1
    TRUNCATED = 2
    MAX_ITER = 3
    STALLED = 4
    DIVERGED = 5
    INVALID_INPUT = 6
    SINGULAR = 7
    INFEASIBLE = 8
    OVERFLOW = 9
    NONUNIQUE = 10

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
        "converged, but a coordinate sits on its bound, or a constraint is active, with a multiplier that cannot be "
        "told from 0, or active constraints follow from others: the gradient is one-sided there"
    ),
    Status.TRUNCATED: "stopped after the asked-for number of steps (Unrolled); not a failure",
    Status.MAX_ITER: "the tolerance was not reached within max_iter: raise max_iter or tol",
    Status.STALLED: (
        "neither the residual nor the objective improves any more: raise tol if the residual is small enough for you, "
        "else raise the regularization or start elsewhere (initial=)"
    ),
    Status.DIVERGED: (
        "the iterates are running away, so the objective may have no minimum: use weight='convex', "
        "a larger regularization, or a geometry with a bounded domain"
    ),
    Status.INVALID_INPUT: (
        "x, the initial point or, in a backward solve, dL/dz has NaN or infinite entries: clean the input of this "
        "sample, or look for an overflow in the loss. Or the initial point has an entry on a bound of the domain, to "
        "which its precision may have rounded it: give it in the dual, where it stays finite (initial_dual=)"
    ),
    Status.SINGULAR: (
        "the adjoint system is singular or indefinite at this point: raise the regularization, "
        "use weight='convex', or solve the forward problem to a smaller tol"
    ),
    Status.INFEASIBLE: (
        "no point inside the domain meets the constraints within the tolerance (with V'z = beta and solver='auto' the "
        "value is that of the softened system): loosen lower and upper, or lower the rank, use a regularization > 0, "
        "or a geometry with a larger domain"
    ),
    Status.OVERFLOW: (
        "the value exceeds the range of the precision in which it is returned: use bfloat16 or float32 instead of "
        "float16, and float64 instead of float32"
    ),
    Status.NONUNIQUE: (
        "converged, to one of many minimisers of a convex objective: the one nearest to the start, which is MM's "
        "limit; the gradient is the shortest possible one. Use a regularization > 0 for a unique minimiser"
    ),
}


def no_advice(status: Status) -> str:
    """Nothing to add to the text of a status."""
    return ""


def report_failures(
    where: str, status: Int[Tensor, " batch"], on_failure: str, advice: Callable[[Status], str] = no_advice
) -> None:
    """Warn about, or raise for, the samples that failed.

    The warning's text names the kinds of failure, not their number, so that Python shows it once per place.

    Args:
        where: what has failed.
        status: (B,).
        on_failure: "warn", "raise" or "ignore".
        advice: what to add to the text of a status: a remedy that helps here.

    Raises:
        RuntimeError: if `on_failure` is "raise" and a sample failed.
    """
    if on_failure == "ignore" or not bool((status > int(Status.TRUNCATED)).any()):
        return
    kinds = [Status(int(code)) for code in status.unique().tolist()]
    failed = [kind for kind in kinds if kind.failed]
    if not failed:
        return
    reasons = "; ".join(f"{kind.name}: {kind.text}{advice(kind)}" for kind in failed)
    if on_failure == "raise":
        count = sum(int((status == kind).sum()) for kind in failed)
        raise RuntimeError(f"{where}: {count} of {status.numel()} samples failed. {reasons}")
    warnings.warn(f"{where}: some samples failed. {reasons}", ConvergenceWarning, stacklevel=2)
