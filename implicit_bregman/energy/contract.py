"""What the solvers and the adjoints see of an energy at a fixed input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from implicit_bregman.energy.own import OwnMethods
from implicit_bregman.operators import LinearOperator
from implicit_bregman.operators.costs import DEFAULT_COSTS, Costs

if TYPE_CHECKING:
    from implicit_bregman.energy.bound import BoundQuadratic

PullBack = Callable[[Tensor, Tensor, tuple[bool, ...]], tuple[Tensor | None, ...]]
"""From v = dL/d(−∇f), z and what is needed to the gradients of an energy's `leaves`."""


@dataclass(frozen=True)
class Evaluation:
    """f and ∇f at one batch of points.

    Attributes:
        value: f(z; x), (B,), or None for a field that is no gradient.
        gradient: ∇f(z; x), (B, d).
    """

    value: Tensor | None
    gradient: Tensor


class Packed(NamedTuple):
    """What an energy at a fixed input is made of.

    Attributes:
        tensors: everything that it depends on, with its graph.
        rows: which of them have a row for each sample; None: one sample cannot be repeated, nor the batch.
        rebuild: the same energy of such tensors; it holds none itself.
    """

    tensors: tuple[Tensor, ...]
    rows: tuple[bool, ...] | None
    rebuild: Callable[..., BoundEnergy]


class BoundEnergy(ABC):
    """An energy at a fixed input x: what the solvers and the adjoints see. All batches are (B, d).

    Attributes:
        dtype: the precision of the samples.
        symmetric: whether the Hessian is symmetric, that is, whether there is an objective.
        affine: whether the gradient is affine in z (a quadratic energy), so that one linear solve on the free
            block of coordinates gives a critical point exactly.
        exact_by_newton: whether, where it is not `factored`, Newton's method makes an iterate exact.
        costs: what decides between routes.
    """

    dtype: torch.dtype
    symmetric: bool
    affine: bool
    exact_by_newton: bool = False
    costs: Costs = DEFAULT_COSTS

    @property
    def is_field(self) -> bool:
        """Whether it is a nonlinear field without a potential: there is nothing to descend, and nothing to certify.

        Any of its equilibria will do, not MM's limit alone, and MM's step is 1 where no bound of its slope is known.
        """
        return not (self.symmetric or self.affine)

    @property
    def factored(self) -> BoundQuadratic | None:
        """This energy, where it is quadratic and its `operator`, one for all samples, `factorizes`; else None."""
        return None

    @property
    def own(self) -> OwnMethods | None:
        """Methods of its own, where its critical points are not isolated and the usual ones do not fit; else None."""
        return None

    @property
    def stiffness(self) -> Float[Tensor, " d"] | None:
        """How much the entries of ∇f change at most when no entry of z changes by more than 1; None: not known."""
        return None

    @property
    @abstractmethod
    def curvature(self) -> Tensor | None:
        """An upper bound of the largest eigenvalue of the Hessian (a 0-d tensor), or None if none is known.

        For an unsymmetric Hessian, the reciprocal of its cocoercivity constant.
        """

    @property
    def is_convex(self) -> bool:
        """Whether f is known to be convex up to rounding, though perhaps not strictly: asked where it is not."""
        return False

    @property
    def lowest(self) -> Tensor | None:
        """The least eigenvalue of the Hessian (of its symmetric part), or None if it is not known."""
        return None

    @abstractmethod
    def evaluate(self, z: Float[Tensor, "batch d"]) -> Evaluation:
        """f, ∇f and the size of its terms at z."""

    @abstractmethod
    def gradient(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """∇f(z; x), differentiable in z and in the parameters where grad mode is on."""

    def terms(self, gradient: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The largest term in each entry of ∇f, in size, (B, d), given ∇f; |∇f| where the terms are not known."""
        return gradient.abs()

    def value_with(
        self, z: Float[Tensor, "batch d"], gradient: Float[Tensor, "batch d"]
    ) -> Float[Tensor, " batch"] | None:
        """f(z), (B,), where it follows from ∇f(z) without an evaluation; else None."""
        return None

    def leaves(self, z: Float[Tensor, "batch d"]) -> tuple[Tensor, ...]:
        """Tensors through which −∇f(z) at a fixed z depends on x and θ; by default −∇f(z) itself, with its graph."""
        return (-self.gradient(z),)

    @staticmethod
    def pull_back(
        v: Float[Tensor, "batch d"], z: Float[Tensor, "batch d"], needed: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        """The gradients of `leaves`, where they are needed, from v = dL/d(−∇f)."""
        return (v,)

    @abstractmethod
    def value(self, z: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """f(z; x), differentiable in z and in the parameters where grad mode is on."""

    @abstractmethod
    def pack(self) -> Packed:
        """The tensors that f depends on, with their graphs, and what makes the same energy of such tensors."""

    @abstractmethod
    def value_at(self, z: Float[Tensor, "batch d"]) -> Callable[[], Float[Tensor, " batch"]]:
        """f(z; x) up to a constant at a fixed z, differentiable (once) in x and θ as they are now, on demand."""

    @abstractmethod
    def again(self) -> AbstractContextManager[object]:
        """A context in which a later evaluation finds everything as it is now; it may be entered repeatedly.

        Entering it raises a RuntimeError if a tensor was changed in place meanwhile.
        """

    @abstractmethod
    def hessian(self, z: Float[Tensor, "batch d"]) -> LinearOperator:
        """∇²f(z; x), as a linear map."""

    @abstractmethod
    def is_strictly_convex(self, curvature: float, strictly: bool) -> bool:
        """Whether f + γφ is known to be strictly convex, where φ adds at least `curvature` = γσ.

        Args:
            curvature: γσ ≥ 0.
            strictly: whether γφ'' > `curvature` almost everywhere, so that f + curvature/2‖·‖² may be just convex.
        """

    @abstractmethod
    def double(self) -> BoundEnergy:
        """The same energy in float64, where it can be had (`affine`)."""

    def apart(self) -> list[BoundEnergy] | None:
        """The samples' energies one by one, without gradient, where each has a matrix of its own; else None."""
        return None

    @abstractmethod
    def select(self, index: Int[Tensor, " kept"]) -> BoundEnergy:
        """The same energy for some of the samples."""
