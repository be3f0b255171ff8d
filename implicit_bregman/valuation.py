"""The objective and the multipliers at a critical point, with their derivatives, when they are asked for.

Where z is critical, F does not change with z to first order (the envelope theorem): ∂F/∂θ at a fixed z is all, and
`backward()` solves nothing. The second derivative, and the multiplier μ = −(∇f + γy) of a bound, follow z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.energy.contract import Packed
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre.known_dual import dual_at
from implicit_bregman.legendre.once import once
from implicit_bregman.objective import potential, total
from implicit_bregman.transforms import pull, refuse_unknown


class Values(Protocol):
    """What a solution knows of F and μ."""

    def objective(self) -> Float[Tensor, "*batch"] | None:
        """F, or None where there is no objective."""
        ...

    def multiplier(self) -> Float[Tensor, "*batch d"]:
        """μ."""
        ...

    def detach(self) -> Values:
        """The same, without gradient."""
        ...


@dataclass(frozen=True)
class Dependence:
    """How f and z depend on x and θ.

    Attributes:
        solution: z with its gradient, (B, d), of the flat batch.
        value: f(z; x) at a fixed z, with its graph, (B,); None where there is no objective.
        moves: the samples for which z is not critical, (B,), so that F changes with z; None: there are none.
        packed: what f is made of.
    """

    solution: Float[Tensor, "batch d"]
    value: Callable[[], Float[Tensor, " batch"]] | None
    moves: Bool[Tensor, " batch"] | None
    packed: Packed


@dataclass(frozen=True)
class Valuation:
    """F and μ at the points of a solution. All tensors are those of the flat batch.

    Attributes:
        geometry: φ.
        regularization: γ.
        point: z without gradient, (B, d).
        dual: y, (B, d).
        gradient: ∇f(z; x), (B, d).
        known: F, (B,), without the part that is left out; None where there is no objective.
        left_out: γ, if γΣφ(z) is still to be added to it, else 0.
        shaped: to the leading shape of the batch.
        states: to that and the shape of the states.
        dependence: where anybody can ask for derivatives.
    """

    geometry: MirrorMap
    regularization: float
    point: Float[Tensor, "batch d"]
    dual: Float[Tensor, "batch d"]
    gradient: Float[Tensor, "batch d"]
    known: Float[Tensor, " batch"] | None
    left_out: float
    shaped: Callable[[Tensor], Tensor]
    states: Callable[[Tensor], Tensor]
    dependence: Dependence | None = None

    def objective(self) -> Float[Tensor, "*batch"] | None:
        """F, with its gradient where grad mode is on."""
        known, how = self._objective, self.dependence
        if known is None:
            return None
        if how is None or how.value is None or not torch.is_grad_enabled():
            return self.shaped(known)
        z = self.geometry.followed(self.point, self.dual)
        carried = _Objective.apply(known, how.value(), self, how.solution, self.dual, z, *how.packed.tensors)
        if self.regularization and self.geometry.requires_grad:
            carried = carried + once(self.regularization * self.geometry.followed_potential(self.dual))
        return self.shaped(carried)

    @cached_property
    def _objective(self) -> Float[Tensor, " batch"] | None:
        if self.known is None or not self.left_out:
            return self.known
        whole = self.known + potential(self.geometry, self.left_out, self.dual)
        # Where both are beyond the precision their sum says nothing.
        return torch.where(torch.isnan(whole), self.known, whole)

    def multiplier(self) -> Float[Tensor, "*batch d"]:
        """μ, with its gradient where grad mode is on."""
        how = self.dependence
        with torch.no_grad():
            total = self._total(self.gradient, self.geometry.project_dual(self.dual))
            active = held_back(self.geometry, self.regularization, self.point, total)
            known = torch.where(active, -total, 0.0)
        if how is None or not torch.is_grad_enabled():
            return self.states(known)
        y = dual_at(self.geometry, how.solution, self.dual) if self.regularization else self.dual
        total = self._total(how.packed.rebuild(*how.packed.tensors).gradient(how.solution), y)
        followed = torch.where(active, -total, 0.0)
        # (the numbers are those of the solve, whatever the parameters hold by now)
        return self.states(known + (followed - followed.detach()))

    def _total(self, gradient: Tensor, dual: Tensor) -> Tensor:
        return total(self.geometry, self.regularization, gradient, dual)

    def detach(self) -> Valuation:
        """The same, without gradient."""
        return replace(self, geometry=self.geometry.detach(), dependence=None)

    def __getstate__(self) -> dict[str, Any]:
        """A graph stays in the process that made it."""
        return {**self.__dict__, "geometry": self.geometry.detach(), "dependence": None}


def held_back(
    geometry: MirrorMap, regularization: float, z: Float[Tensor, "batch d"], total: Float[Tensor, "batch d"]
) -> Bool[Tensor, "batch d"]:
    """The coordinates that ∇F drives out of C, where the multiplier μ = −∇F is not 0.

    Args:
        geometry: φ.
        regularization: γ: with γ > 0 a Legendre φ keeps all of them inside, but where lo = hi.
        z: the point.
        total: ∇f + γy there.
    """
    if regularization and geometry.is_legendre:
        nothing, pinned = torch.zeros_like(total, dtype=torch.bool), geometry.pinned
        return nothing if pinned is None else nothing | pinned
    lo, hi = geometry.bounds(total.dtype)
    aim = z - total
    return (aim >= hi) | (aim <= lo)


class _Objective(torch.autograd.Function):
    """F as it is known, with the first derivatives of f at a fixed z, and where they are differentiated, of f at z."""

    @staticmethod
    def forward(
        ctx: Any,
        known: Tensor,
        carrier: Tensor,
        of: Valuation,
        solution: Tensor,
        dual: Tensor,
        followed: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.of = of
        ctx.save_for_backward(solution, dual, *tensors)
        return known.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, dual, *tensors = ctx.saved_tensors
        of: Valuation = ctx.of
        assert of.dependence is not None
        rebuild, moves = of.dependence.packed.rebuild, of.dependence.moves
        by_z = by_bounds = None
        if ctx.needs_input_grad[5]:
            # C moves z at a fixed y: see `MirrorMap.followed`.
            slope = rebuild(*tensors).gradient(z)
            slope = slope if moves is None else torch.where(moves[:, None], -of.regularization * dual, slope)
            by_bounds = gradient[:, None] * slope
        if moves is not None and ctx.needs_input_grad[3]:
            y = dual_at(of.geometry, z, dual) if of.regularization else dual
            slope = of._total(rebuild(*tensors).gradient(z), y)
            by_z = torch.where(moves[:, None], gradient[:, None] * slope, 0.0)
        if not torch.is_grad_enabled():
            return None, gradient, None, by_z, None, by_bounds, *(None for _ in tensors)
        refuse_unknown(ctx.next_functions[1:2], tensors, of.point.data_ptr())
        parts = pull(lambda *t: rebuild(*t).value(z), tensors, gradient)
        return None, None, None, by_z, None, by_bounds, *parts
