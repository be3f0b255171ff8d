"""The backward pass of a solve: which samples have a derivative, and how it went."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.solvers.base import Outcome
from implicit_bregman.status import Status, report_failures


@dataclass
class AdjointReport:
    """How the backward solve went; filled in by `backward()`.

    Attributes:
        status: `Status` values, (B,), or None before the backward pass: DIVERGED where the forward solve was, or where
            z is beyond the range of its precision, and the gradient is 0; INVALID_INPUT where dL/dz is not finite, and
            the gradient is NaN.
        residual: relative residual of the adjoint system, (B,).
        iterations: products with the operator, (B,); 0 for a direct solve.
        error: estimated relative error of the gradient, (B,); see `Solution.gradient_error`.
        batch: the leading shape B, where it is not flat.
    """

    status: Int[Tensor, " batch"] | None = None
    residual: Float[Tensor, " batch"] | None = None
    iterations: Int[Tensor, " batch"] | None = None
    error: Float[Tensor, " batch"] | None = None
    batch: torch.Size | None = None

    def fill(
        self, status: Tensor, residual: Tensor, iterations: Tensor, error: Tensor, usable: Tensor | None = None
    ) -> None:
        """Enter the result of a backward solve of the flat batch.

        Args:
            status: see the attribute.
            residual: see the attribute.
            iterations: see the attribute.
            error: see the attribute.
            usable: the samples that have a derivative, (B,); the others have diverged. None: all.
        """
        shape = status.shape if self.batch is None else self.batch
        if usable is not None:
            # (of a sample that diverged the gradient is 0, and tells nothing)
            status = torch.where(usable, status, int(Status.DIVERGED))
            error = torch.where(usable, error, torch.inf)
        self.status, self.residual = status.reshape(shape), residual.reshape(shape)
        self.iterations, self.error = iterations.reshape(shape), error.reshape(shape)


def differentiable(outcome: Outcome) -> Bool[Tensor, " batch"] | None:
    """Which samples have a derivative, (B,): not those that have diverged or are on their way to it. None: all."""
    if outcome.complete:
        return None
    point, status = outcome.point, outcome.status
    usable = point.finite & (status != int(Status.DIVERGED)) & (status != int(Status.OVERFLOW))
    unsolved = (status == int(Status.STALLED)) | (status == int(Status.MAX_ITER))
    if bool(unsolved.any()):
        # The square of such a z overflows, and with it dL/dW of the whole batch.
        usable &= ~unsolved | (point.value.abs().amax(-1) < torch.finfo(point.value.dtype).max ** 0.5)
    return None if bool(usable.all()) else usable


def report_backward(where: str, status: Int[Tensor, " batch"], on_failure: str) -> None:
    """Warn about, or raise for, the samples whose backward solve failed.

    There is no warning of a cotangent that is not finite, as of a loss that overflowed: the gradient is NaN, which a
    `GradScaler` looks for. Nor of a sample that diverged, which the forward solve has reported.

    Raises:
        RuntimeError: if `on_failure` is "raise" and a sample failed, or its cotangent is not finite.
    """
    if not bool((status > int(Status.TRUNCATED)).any()):
        return
    known = status == int(Status.DIVERGED)
    if on_failure != "raise":
        known = known | (status == int(Status.INVALID_INPUT))
    report_failures(where, torch.where(known, int(Status.CONVERGED), status), on_failure)
