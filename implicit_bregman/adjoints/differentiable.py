"""The critical point as a function of everything that it depends on, with derivatives of every order.

Where K(z; t) = ∇f(z; t) + γ∇φ(z) = 0 on the coordinates off the bounds, dz = −M⁻¹ dK with the Jacobian
M = H(z; t) + γφ''(z), which depends on z and t in turn. One application of M⁻¹ whose own derivatives are made of M⁻¹
again gives all orders, in reverse and forward mode and under vmap. The numbers are those of the first-order adjoint:
the same system, solved in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.adjoints.system import solve_adjoint_system
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre.known_dual import dual_at, moves
from implicit_bregman.linearization import Linearization
from implicit_bregman.operators.inverse import Invertible, inverse
from implicit_bregman.transforms import batched_again, map_over_samples, primals, pull, push


@dataclass(frozen=True)
class Jacobian(Invertible):
    """M = H + γφ'' at a critical point, or its transpose, of the tensors (D₊, shift, z, y, *those of the energy).

    D₊ and the shift are the numbers of the `Linearization` at the point, which say which coordinates are on a bound.

    Attributes:
        rebuild: the energy of its tensors.
        energy_rows: which of those have a row for each sample; None: the samples must stay as they are.
        geometry: φ.
        regularization: γ.
        method: how a system is solved: "auto", "cg", "gmres" or "dense".
        tol: relative residual of a solve, or None for the precision's own.
        max_iter: bound on products with the operator.
        adjoint: whether this is Mᵀ.
        known: M⁻ᵀ of the first right-hand side, if it has been computed.
    """

    rebuild: Callable[..., BoundEnergy]
    energy_rows: tuple[bool, ...] | None
    geometry: MirrorMap
    regularization: float
    method: str = "auto"
    tol: float | None = None
    max_iter: int = 5000
    adjoint: bool = True
    known: Tensor | None = field(default=None, compare=False)

    @property
    def rows(self) -> tuple[bool, ...] | None:  # type: ignore[override]
        return None if self.energy_rows is None else (True, True, True, True, *self.energy_rows)

    def product(self, v: Float[Tensor, "batch d"], *tensors: Tensor) -> Float[Tensor, "batch d"]:
        slope, _, z, y, *tensors = tensors  # type: ignore[assignment]
        image = self.rebuild(*tensors).hessian(z).product(v, self.adjoint)
        if not self.regularization:
            # (what the linearization adds for coordinates that leave for a bound does not depend on anything)
            return image
        steep = self.geometry.slope(y)
        inside = moves(slope)
        return image + torch.where(inside, self.regularization * v / torch.where(inside, steep, 1.0), 0.0)

    def solve(self, right: Float[Tensor, "batch d"], *tensors: Tensor) -> Float[Tensor, "batch d"]:
        if self.known is not None:
            return self.known
        slope, shift, z, _, *tensors = tensors  # type: ignore[assignment]
        hessian = self.rebuild(*tensors).hessian(z)
        system = Linearization(
            hessian if self.adjoint else hessian.transposed(), slope, shift, coupling=self.geometry.coupling
        )
        return solve_adjoint_system(system, right, self.method, self.tol, self.max_iter)[0]

    def transposed(self) -> Jacobian:
        return replace(self, adjoint=not self.adjoint, known=None)

    def force(self, z: Tensor, *tensors: Tensor) -> Float[Tensor, "batch d"]:
        """−∇f(z), differentiable in z and the tensors."""
        return -self.rebuild(*tensors).gradient(z)


def attach(
    jacobian: Jacobian,
    value: Float[Tensor, "batch d"],
    dual: Float[Tensor, "batch d"],
    slope: Float[Tensor, "batch d"],
    shift: Float[Tensor, "batch d"],
    *tensors: Tensor,
) -> Float[Tensor, "batch d"]:
    """z, (B, d), as a function of the energy's tensors."""
    attached: Tensor = _Attach.apply(jacobian, value, dual, slope, shift, *tensors)
    return attached


def pull_back(
    jacobian: Jacobian, gradient: Tensor, z: Tensor, dual: Tensor, slope: Tensor, shift: Tensor, *tensors: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of the energy's tensors from dL/dz, as functions of z, dL/dz and the tensors."""
    y = _dual(jacobian, z, dual)
    v = inverse(jacobian, gradient, slope, shift, z, y, *tensors)
    return pull(lambda *t: jacobian.force(z, *t), tensors, v)


def left_over(
    jacobian: Jacobian, gradient: Tensor, z: Tensor, dual: Tensor, slope: Tensor, shift: Tensor, *tensors: Tensor
) -> Float[Tensor, "batch d"]:
    """g − Hᵀv, what the gradients of the energy's tensors leave of g = dL/dz for those that C is made of."""
    v = inverse(jacobian, gradient, slope, shift, z, _dual(jacobian, z, dual), *tensors)
    return gradient - jacobian.rebuild(*tensors).hessian(z).product(v, True)


def _dual(jacobian: Jacobian, z: Tensor, dual: Tensor) -> Float[Tensor, "batch d"]:
    """y as a function of z where it matters: for γ > 0."""
    return dual_at(jacobian.geometry, z, dual) if jacobian.regularization else dual


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(
        jacobian: Jacobian, value: Tensor, dual: Tensor, slope: Tensor, shift: Tensor, *tensors: Tensor
    ) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.jacobian = inputs[0]
        ctx.save_for_backward(output, *inputs[2:])
        ctx.save_for_forward(output, *inputs[2:])

    @staticmethod
    @batched_again
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, None, *pull_back(ctx.jacobian, gradient, *ctx.saved_tensors)

    @staticmethod
    @batched_again
    def jvp(ctx: Any, _: None, __: None, ___: None, ____: None, _____: None, *tangents: Tensor | None) -> Tensor:
        jacobian: Jacobian = ctx.jacobian
        with primals(ctx.saved_tensors) as (z, dual, slope, shift, *tensors):
            moved = push(lambda *t: jacobian.force(z, *t), tensors, tangents)
            return inverse(jacobian.transposed(), moved, slope, shift, z, _dual(jacobian, z, dual), *tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], jacobian: Jacobian, *tensors: Tensor) -> tuple[Any, Any]:
        every = jacobian.energy_rows
        rows = (False,) * len(in_dims) if every is None else (False, True, True, True, True, *every)
        return map_over_samples(_Attach.apply, info.batch_size, in_dims, (jacobian, *tensors), rows)
