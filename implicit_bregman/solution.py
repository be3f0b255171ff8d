"""What `find_critical_point` returns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.adjoints.base import AdjointReport
from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.objective import potential
from implicit_bregman.solvers.base import Trace
from implicit_bregman.status import Status


@dataclass(frozen=True)
class LazyObjective:
    """F, completed when it is asked for.

    Attributes:
        known: F without the part that is left out, (B,), or None where there is no objective.
        geometry: φ.
        left_out: γ, if γΣφ(z) is still to be added, else 0.
        dual: y, (B, d).
    """

    known: Float[Tensor, "*batch"] | None
    geometry: LegendreFunction
    left_out: float
    dual: Float[Tensor, "*batch d"]

    @cached_property
    def value(self) -> Float[Tensor, "*batch"] | None:
        """F, (B,)."""
        if self.known is None or not self.left_out:
            return self.known
        return self.known + potential(self.geometry, self.left_out, self.dual)


@dataclass(frozen=True)
class Solution:
    """A batch of critical points, and how they were found.

    Attributes:
        value: z, (B, d), in C; the only field that carries gradient. NaN for samples with the status INVALID_INPUT.
        dual: y with z = ρ(y), (B, d); always finite.
        residual: ‖Π_C(z − ∇f − γy) − z‖∞, relative to 1 + the size of the terms of ∇f, (B,).
        iterations: steps of the solver, (B,).
        evaluations: evaluations of ∇f, the polish's included, (B,).
        status: `Status` values, (B,).
        polished: whether the point was found exactly by the KKT polish, (B,).
        step: τ, (B,); NaN where the solver made no MM steps.
        trace: residual, objective and dual per iteration, if the solver was asked for it.
        adjoint: how the backward solve went; filled in by `backward()`.
    """

    value: Float[Tensor, "*batch d"]
    dual: Float[Tensor, "*batch d"]
    residual: Float[Tensor, "*batch"]
    iterations: Int[Tensor, "*batch"]
    evaluations: Int[Tensor, "*batch"]
    status: Int[Tensor, "*batch"]
    polished: Bool[Tensor, "*batch"]
    step: Float[Tensor, "*batch"]
    trace: Trace | None
    adjoint: AdjointReport
    _objective: LazyObjective

    @property
    def objective(self) -> Float[Tensor, "*batch"] | None:
        """F(z), (B,); None where W is not symmetric."""
        return self._objective.value

    @property
    def converged(self) -> Bool[Tensor, "*batch"]:
        """Whether the residual is within the tolerance, (B,): CONVERGED, DEGENERATE or NONUNIQUE."""
        return (self.status <= Status.DEGENERATE) | (self.status == Status.NONUNIQUE)

    @property
    def gradient_error(self) -> Float[Tensor, "*batch"] | None:
        """The estimated relative error of dL/dθ for each sample, (B,), once `backward()` has run; None before.

        From what was left over, forward and backward: with v = dL/dc, g = dL/dz and s = ‖v‖/‖g‖ for the size of the
        inverse Hessian, it is the sum of the backward solve's relative residual, of s‖r‖/‖z‖ with r the forward
        residual, and of the share of v on coordinates that are on their way to a bound, where it has to vanish. An
        estimate to the order of magnitude, not a bound; what φ'' changes within the forward error is left out.
        """
        return self.adjoint.error

    @property
    def message(self) -> str:
        """How many samples ended how, and what to do about the failed ones."""
        counts = Counter(self.status.flatten().tolist())
        return "\n".join(
            f"{count} x {Status(code).name}: {Status(code).text}" for code, count in sorted(counts.items())
        )

    def detach(self) -> Solution:
        """The same, without gradient."""
        return replace(self, value=self.value.detach())

    def __repr__(self) -> str:
        counts = Counter(self.status.flatten().tolist())
        ends = ", ".join(f"{Status(code).name} {count}" for code, count in sorted(counts.items()))
        worst = float(self.residual.max()) if self.residual.numel() else 0.0
        most = int(self.iterations.max()) if self.iterations.numel() else 0
        return (
            f"Solution(value={tuple(self.value.shape)} {self.value.dtype}, status=[{ends}], "
            f"largest residual={worst:.2e}, most iterations={most})"
        )
