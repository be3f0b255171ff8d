"""What `find_critical_point` returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.adjoints.base import AdjointReport
from implicit_bregman.legendre import LegendreFunction
from implicit_bregman.objective import potential
from implicit_bregman.solvers.base import Trace
from implicit_bregman.status import Status, no_advice


@dataclass(frozen=True)
class Envelope:
    """How F(z) depends on x, θ and z, to first order.

    Where z is critical, F does not change with z to first order (the envelope theorem), and that z moves with x and θ
    does not matter: ∂F/∂θ at a fixed z is all.

    Attributes:
        value: f(z; x) at a fixed z, with its graph, (B,).
        solution: z with its gradient, (B, d).
        slope: ∇F(z), (B, d), 0 for samples for which z is critical; None: for all.
        shaped: to the leading shape of the batch.
    """

    value: Callable[[], Float[Tensor, " batch"]]
    solution: Float[Tensor, "batch d"]
    slope: Float[Tensor, "batch d"] | None
    shaped: Callable[[Tensor], Tensor]

    def carried_by(self, known: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """F as it is known, with this gradient."""
        change = self.value()
        if self.slope is not None:
            change = change + (self.slope * self.solution).sum(-1)
        carried: Tensor = _Carry.apply(known, self.shaped(change))
        return carried


class _Carry(torch.autograd.Function):
    """One tensor, with the first derivatives of another."""

    @staticmethod
    def forward(ctx: Any, known: Tensor, carrier: Tensor) -> Tensor:
        return known.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        if torch.is_grad_enabled():
            raise RuntimeError("Solution.objective can be differentiated once only: not with create_graph=True")
        return None, gradient

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        raise RuntimeError("Solution.objective has no forward mode (jvp): use backward() or torch.autograd.grad")


@dataclass(frozen=True)
class LazyObjective:
    """F, completed when it is asked for.

    Attributes:
        known: F without the part that is left out, (B,), or None where there is no objective.
        geometry: φ.
        left_out: γ, if γΣφ(z) is still to be added, else 0.
        dual: y, (B, d).
        envelope: its derivatives, where there are any.
    """

    known: Float[Tensor, "*batch"] | None
    geometry: LegendreFunction
    left_out: float
    dual: Float[Tensor, "*batch d"]
    envelope: Envelope | None = None

    def now(self) -> Float[Tensor, "*batch"] | None:
        """F, (B,), with its gradient where grad mode is on."""
        known = self.value
        if known is None or self.envelope is None or not torch.is_grad_enabled():
            return known
        return self.envelope.carried_by(known)

    @cached_property
    def value(self) -> Float[Tensor, "*batch"] | None:
        """F, (B,), without gradient."""
        if self.known is None or not self.left_out:
            return self.known
        whole = self.known + potential(self.geometry, self.left_out, self.dual)
        # Where both are beyond the precision their sum says nothing.
        return torch.where(torch.isnan(whole), self.known, whole)

    def __getstate__(self) -> dict[str, Any]:
        """A graph stays in the process that made it."""
        return {**self.__dict__, "envelope": None}


@dataclass(frozen=True)
class Solution:
    """A batch of critical points, and how they were found.

    Attributes:
        value: z, (B, d), or (B, C, H, W) where states have this shape, in C. It and `objective` alone carry gradient.
            NaN for samples with the status INVALID_INPUT.
        dual: y with z = ρ(y), of the shape of `value`; always finite.
        residual: how far z is from critical in the coordinate where it is farthest, each relative to its own terms,
            (B,): see "When to stop" in the documentation's mathematics.
        iterations: steps of the solver, (B,).
        evaluations: evaluations of ∇f, the polish's included, (B,).
        status: `Status` values, (B,).
        polished: whether the point was found exactly by the KKT polish, (B,).
        step: τ, (B,); NaN where the solver made no MM steps.
        trace: residual, objective and dual per iteration, if the solver was asked for it.
        adjoint: how the backward solve went; filled in by `backward()`.
    """

    value: Float[Tensor, "*batch *features"]
    dual: Float[Tensor, "*batch *features"]
    residual: Float[Tensor, "*batch"]
    iterations: Int[Tensor, "*batch"]
    evaluations: Int[Tensor, "*batch"]
    status: Int[Tensor, "*batch"]
    polished: Bool[Tensor, "*batch"]
    step: Float[Tensor, "*batch"]
    trace: Trace | None
    adjoint: AdjointReport
    _objective: LazyObjective
    _advice: Callable[[Status], str] = no_advice

    @property
    def objective(self) -> Float[Tensor, "*batch"] | None:
        """F(z), (B,), differentiable once in x and θ; None where W is not symmetric.

        At a critical point the derivatives of F are those at a fixed z (the envelope theorem), so that `backward()`
        solves nothing.
        """
        return self._objective.now()

    @property
    def converged(self) -> Bool[Tensor, "*batch"]:
        """Whether the residual is within the tolerance, (B,): CONVERGED, DEGENERATE or NONUNIQUE."""
        return (self.status <= Status.DEGENERATE) | (self.status == Status.NONUNIQUE)

    @property
    def gradient_error(self) -> Float[Tensor, "*batch"] | None:
        """The estimated relative error of dL/dθ for each sample, (B,), once `backward()` has run; None before.

        With v = dL/dc, and z₂ and v₂ the same after one more Newton step from z, it is ‖v₂ − v‖/‖v₂‖ +
        ‖v‖/‖v₂‖ · ‖z₂ − z‖/‖z₂‖ plus the backward solve's relative residual: what the forward error, the change of φ''
        and of the active set within it, and the backward error make of dL/dW = v zᵀ. After an exact solve, and where
        the residuals show that only rounding is left, they are used instead, with ‖v‖/‖dL/dz‖ for the size of the
        inverse Hessian; so does `Shine`. For a low-rank weight dL/dβ and dL/dy⁰ stand for v. An estimate to the order
        of magnitude, not a bound. inf where nothing is known.
        """
        return self.adjoint.error

    @property
    def message(self) -> str:
        """How many samples ended how, and what to do about the failed ones."""
        counts = Counter(self.status.flatten().tolist())
        return "\n".join(
            f"{count} x {Status(code).name}: {Status(code).text}{self._advice(Status(code))}"
            for code, count in sorted(counts.items())
        )

    def detach(self) -> Solution:
        """The same, without gradient."""
        return replace(self, value=self.value.detach(), _objective=replace(self._objective, envelope=None))

    def __repr__(self) -> str:
        counts = Counter(self.status.flatten().tolist())
        ends = ", ".join(f"{Status(code).name} {count}" for code, count in sorted(counts.items()))
        worst = float(self.residual.max()) if self.residual.numel() else 0.0
        most = int(self.iterations.max()) if self.iterations.numel() else 0
        return (
            f"Solution(value={tuple(self.value.shape)} {self.value.dtype}, status=[{ends}], "
            f"largest residual={worst:.2e}, most iterations={most})"
        )
