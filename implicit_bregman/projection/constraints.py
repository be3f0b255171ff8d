"""½‖Vᵀz − β‖² for V a linear map: what a projection with structured equations minimises."""

from __future__ import annotations

from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.contract import Packed
from implicit_bregman.energy.weights import hold
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.operators import LinearOperator
from implicit_bregman.operators.base import Rebuild
from implicit_bregman.operators.linear_map import LinearMap, RebuildMap
from implicit_bregman.projection.energy import BoundEquations, is_inside
from implicit_bregman.projection.map_methods import MapMethods
from implicit_bregman.projection.map_problem import is_plan, map_problem, plan_problem
from implicit_bregman.projection.problem import ProjectionProblem
from implicit_bregman.projection.weight import checked_softening


class BoundConstraints(BoundEquations):
    """The energy for a batch of targets: nothing of the size of V is made."""

    @property
    def own(self) -> MapMethods:
        return MapMethods(self)

    @property
    def curvature(self) -> Tensor:
        """A bound of the largest eigenvalue of VVᵀ: the largest row sum of |V||V|ᵀ."""
        return self.stiffness.amax()

    @property
    def lowest(self) -> Tensor:
        return self.target.new_zeros(())

    @cached_property
    def lengths(self) -> Float[Tensor, " r"]:
        return self.exact.lengths(self._exact_target)

    @cached_property
    def _exact_target(self) -> Float[Tensor, "batch r"]:
        return self.target.detach().double()

    @cached_property
    def _inconsistency(self) -> Float[Tensor, " batch"]:
        return self.exact.inconsistency(self._exact_target)

    def problem(
        self, geometry: MirrorMap, start: Float[Tensor, "batch d"], softness: float, tol: float
    ) -> ProjectionProblem:
        beta, lengths = self._exact_target, self.lengths
        if softness or not is_plan(self.equations, geometry):
            return map_problem(self.exact, lengths, beta, geometry, start, softness, tol)
        none = self.is_inconsistent(tol) | self.is_impossible(geometry)
        return plan_problem(self.exact, lengths, beta, ~none, geometry, start, tol)

    def is_inconsistent(self, tol: float) -> Bool[Tensor, " batch"]:
        return ~(self._inconsistency <= tol)

    def is_impossible(self, geometry: MirrorMap) -> Bool[Tensor, " batch"]:
        if not is_plan(self.equations, geometry):
            return super().is_impossible(geometry)
        return (self.target < 0).any(-1)

    def is_thin(self, geometry: MirrorMap, z: Float[Tensor, "batch d"], tol: float) -> Bool[Tensor, " batch"]:
        """Of a plan: whether its rows and columns fall into parts that hardly anything connects. Else: by equations.

        That is, by equations none of whose coordinates is off its bounds.
        """
        if self.equations.plan is None:
            inside = is_inside(geometry, z, tol)
            left, all_of = (self.exact.gram_diagonal(part.double()) for part in (inside, torch.ones_like(z)))
            return ((left == 0) & (all_of > 0)).any(-1)
        n, m = self.equations.plan
        if is_plan(self.equations, geometry):
            # (masses have units, and one of n m entries may be small)
            masses = self.target.detach()
            least = torch.minimum(masses[:, :n, None], masses[:, None, n:])
            inside = (z.unflatten(-1, (n, m)) > 10 * tol * least.clamp_min(0)).to(torch.float32)
        else:
            inside = is_inside(geometry, z, tol).unflatten(-1, (n, m)).to(torch.float32)
        return ~_is_connected(inside)

    def pack(self) -> Packed:
        tensors, rebuild = self.equations.pack()
        return Packed(
            (*tensors, self.target), (*(False for _ in tensors), True), partial(_rebuild, self.softening, rebuild)
        )

    def hessian(self, z: Float[Tensor, "batch d"]) -> OuterProduct:
        return OuterProduct(self.equations.detach(), self.dtype)

    def is_strictly_convex(self, curvature: float, strictly: bool) -> bool:
        return curvature > 0 or strictly

    def double(self) -> BoundConstraints:
        return BoundConstraints(self.exact, self.target.detach().double(), self.softening)

    def select(self, index: Int[Tensor, " kept"]) -> BoundConstraints:
        return BoundConstraints(self.equations, self.target[index], self.softening)


def _rebuild(softening: float, rebuild: RebuildMap, *tensors: Tensor) -> BoundConstraints:
    return BoundConstraints(rebuild(*tensors[:-1]), tensors[-1], softening)


def _is_connected(graph: Float[Tensor, "batch n m"]) -> Bool[Tensor, " batch"]:
    """Whether a bipartite graph, given by its edges (1 or 0), is connected."""
    if bool((graph.amin((1, 2)) > 0).all()):
        return torch.ones(len(graph), dtype=torch.bool, device=graph.device)
    rows = torch.zeros_like(graph[:, :, :1])
    rows[:, 0] = 1.0
    reached = -1.0
    while True:
        columns = (graph.mT @ rows > 0).to(graph.dtype)
        rows = torch.maximum(rows, (graph @ columns > 0).to(graph.dtype))
        count = float(rows.sum())
        if count == reached:
            return (rows > 0).flatten(1).all(-1) & (columns > 0).flatten(1).all(-1)
        reached = count


class OuterProduct(LinearOperator):
    """VVᵀ.

    Args:
        equations: V.
        dtype: the precision of the samples.
    """

    symmetric = True
    convex = True

    def __init__(self, equations: LinearMap, dtype: torch.dtype) -> None:
        self.equations, self._dtype = equations, dtype

    @property
    def size(self) -> int:
        return self.equations.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        return self.equations.product(self.equations.product(v, adjoint=True))

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        tensors, rebuild = self.equations.pack()
        return tensors, partial(_outer, rebuild, self._dtype)


def _outer(rebuild: RebuildMap, dtype: torch.dtype, *tensors: Tensor) -> OuterProduct:
    return OuterProduct(rebuild(*tensors), dtype)


class ConstraintsEnergy(Energy):
    """½‖Vᵀz − β‖² up to a constant, as a function of z and its input β, (B, r); V is a linear map.

    Args:
        equations: V; gradients flow to its tensors.
        softening: see `BregmanProjection`.
    """

    def __init__(self, equations: LinearMap, softening: float | None) -> None:
        super().__init__(equations.shape[0], convex=True)
        self.softening = checked_softening(softening)
        self._width = equations.shape[1]
        tensors, self._rebuild = equations.pack()
        self._names = tuple(f"tensor{number}" for number in range(len(tensors)))
        for name, tensor in zip(self._names, tensors, strict=True):
            hold(self, name, tensor)

    @property
    def equations(self) -> LinearMap:
        """V."""
        return self._rebuild(*(getattr(self, name) for name in self._names))

    def redraw(self) -> bool:
        """Whether V was drawn anew: it is given."""
        return False

    @property
    def input_width(self) -> int:
        return self._width

    def value(self, z: Float[Tensor, "*batch d"], x: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch"]:
        image = self.equations.product(z, adjoint=True)
        return (image * (0.5 * image - x)).sum(-1)

    def bind(self, x: Float[Tensor, "batch r"]) -> BoundConstraints:
        return BoundConstraints(self.equations, x, self.softening)
