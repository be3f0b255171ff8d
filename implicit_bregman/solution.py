"""What `find_critical_point` returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.backward import AdjointReport
from implicit_bregman.printing import as_table, counted, in_a_line
from implicit_bregman.settings import renamed
from implicit_bregman.solvers.base import Trace
from implicit_bregman.status import Status, no_advice
from implicit_bregman.valuation import Values

if TYPE_CHECKING:
    from rich.table import Table

Found = TypeVar("Found", bound="Solution")


@dataclass(frozen=True)
class Solution:
    """A batch of critical points, and how they were found.

    Attributes:
        value: z, (B, d), or (B, C, H, W) where states have this shape, in C. It, `objective` and `multiplier` carry
            gradient. NaN for samples with the status INVALID_INPUT.
        dual: y with z = ρ(y), of the shape of `value`; always finite.
        residual: how far z is from critical in the coordinate where it is farthest, each relative to its own terms,
            (B,): see "When to stop" in the documentation's mathematics.
        iterations: steps of the solver, (B,).
        evaluations: evaluations of ∇f, the exact solve's included, (B,).
        status: `Status` values, (B,).
        exact: whether the point was found by the exact solve on its free coordinates (γ = 0), (B,).
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
    exact: Bool[Tensor, "*batch"]
    step: Float[Tensor, "*batch"]
    trace: Trace | None
    adjoint: AdjointReport
    _valuation: Values
    _advice: Callable[[Status], str] = no_advice

    @property
    def objective(self) -> Float[Tensor, "*batch"] | None:
        """F(z), (B,), differentiable in x and θ; None where W is not symmetric.

        At a critical point the first derivatives of F are those at a fixed z (the envelope theorem), so that
        `backward()` solves nothing.
        """
        return self._valuation.objective()

    @property
    def multiplier(self) -> Float[Tensor, "*batch d"]:
        """μ = −(∇f(z) + γ∇φ(z)) of the bounds that hold z back, (B, d), differentiable; 0 on all other coordinates.

        Positive at an upper bound and negative at a lower one: how much F falls if the bound gives way.
        """
        return self._valuation.multiplier()

    polished = renamed("polished", "exact")

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
        """How many samples have which status, and what to do about the failed ones."""
        return "\n".join(
            f"{count} x {status.name}: {status.text}{self._advice(status)}"
            for status, count in counted(self.status).items()
        )

    def detach(self: Found) -> Found:
        """The same, without gradient."""
        return replace(self, value=self.value.detach(), _valuation=self._valuation.detach())

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read pickles that say `polished` too."""
        self.__dict__.update({"exact" if name == "polished" else name: value for name, value in state.items()})

    def __repr__(self) -> str:
        return in_a_line(self)

    def __rich__(self) -> Table:
        return as_table(self)
