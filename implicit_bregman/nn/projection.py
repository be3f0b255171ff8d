"""The Bregman projection layer."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman.adjoints import Adjoint, adjoint_named
from implicit_bregman.critical_point import find_critical_point
from implicit_bregman.energy.weights import hold
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre import geometry as lookup
from implicit_bregman.operators import LinearMap
from implicit_bregman.operators.sparse_map import SparseMap
from implicit_bregman.projection.constraints import ConstraintsEnergy
from implicit_bregman.projection.methods import check_projection
from implicit_bregman.projection.weight import ConstraintWeight, ProjectionEnergy, middle
from implicit_bregman.settings import check_count
from implicit_bregman.solution import Solution
from implicit_bregman.solvers import Solver
from implicit_bregman.tensors import check_dense


class BregmanProjection(nn.Module):
    """The Bregman projection z of z⁰ onto {z ∈ C : Vᵀz = β}: the minimiser of D_φ(z, z⁰) there.

    V and β are learned, or given to `from_matrix`. The gradient flows to V, β and z⁰. Where no z in C solves the
    system (softened form), z is the minimiser of D_φ(z, z⁰) + ‖Vᵀz − β‖²/(2ε) with ε = softening · ‖V‖²/r, and the
    sample has the status INFEASIBLE.

    It is the limit of MM on ½‖Vᵀz − β‖², and the same as `BregmanDEQ(d, d, weight="low_rank", rank=r,
    injection="initial")`. Sources: Bauschke and Borwein, "Legendre functions and the method of random Bregman
    projections" (1997); for `exp` and the sums of rows and columns it is what Sinkhorn's iterations tend to.

    Args:
        features: d, the width of z.
        constraints: r, the number of equations, 1 ≤ r ≤ d.
        geometry: φ, by name or instance; a Legendre one, unless the adjoint is `Unrolled`.
        solver: a name or an instance from `implicit_bregman.solvers`.
        adjoint: a name or an instance from `implicit_bregman.adjoints`.
        softening: the ε of a system without a solution, relative to ‖V‖²/r (Frobenius norm). Default 1e-3.
        device: where the parameters are made.
        dtype: in which precision the parameters are made.

    Attributes:
        beta: β, (r,), or given per sample, (*, r). It starts at Vᵀρ(0), so that the middle of C solves the system.
        solver: may be assigned at any time.
        adjoint: may be assigned at any time.
        last_solution: the `Solution` of the last call, detached; None before the first.

    Shape:
        `(…, d)` → `(…, d)`.

    Raises:
        ValueError: for unknown names, a number of equations that does not fit, a softening that is not positive, or a
            geometry without a projection.
    """

    beta: Tensor

    def __init__(
        self,
        features: int,
        constraints: int,
        geometry: str | MirrorMap = "tanh",
        solver: str | Solver = "auto",
        adjoint: str | Adjoint = "implicit",
        *,
        softening: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_count("features", features)
        _check_constraints(constraints, features)
        weight = ConstraintWeight(features, constraints, softening, device, dtype)
        beta = nn.Parameter(torch.empty(weight.rank, device=device, dtype=dtype))
        self._assemble(ProjectionEnergy(weight), beta, geometry, solver, adjoint)
        self._start_feasible()

    @classmethod
    def from_matrix(
        cls,
        V: Float[Tensor, "d r"] | LinearMap,
        beta: Float[Tensor, " r"] | Float[Tensor, "*batch r"],
        geometry: str | MirrorMap = "tanh",
        solver: str | Solver = "auto",
        adjoint: str | Adjoint = "implicit",
        *,
        softening: float | None = None,
    ) -> BregmanProjection:
        """The projection onto {z ∈ C : Vᵀz = β} of given tensors, to which gradients flow.

        A V that is not dense is never made so: `operators.Marginals(n, m)`, the row sums and column sums of an n × m
        matrix, and sparse tensors. With `Marginals` and `exp`, a start whose dual is −C/ε gives the entropic transport
        plan of the costs C; a mass of 0 is allowed there, and makes the sample DEGENERATE, with the derivative for
        masses that grow.

        Args:
            V: (d, r), a tensor, or a linear map from `operators`; r ≤ d for a dense tensor. Columns may depend on
                others, as long as β agrees with it: the row sums and the column sums of `Marginals` must have the same
                total, to the tolerance, or the status is INFEASIBLE. Gradients flow to its tensors.
            beta: β, (r,) for all samples, or one for each, (*, r).
            geometry: see the class.
            solver: see the class.
            adjoint: see the class.
            softening: see the class.

        Raises:
            TypeError: if V is neither a floating-point tensor nor an `operators.LinearMap`, or β is no floating-point
                tensor.
            ValueError: for shapes, layouts, dtypes or devices that do not fit; else as the class does.
        """
        layer = cls.__new__(cls)
        if isinstance(V, Tensor) and V.layout == torch.strided:
            _check_tensors(V, beta)
            layer._assemble(ProjectionEnergy(ConstraintWeight.of(V, softening)), beta, geometry, solver, adjoint)
        else:
            equations = _as_map(V)
            _check_beta(beta, equations.shape, equations.dtype, equations.device)
            layer._assemble(ConstraintsEnergy(equations, softening), beta, geometry, solver, adjoint)
        return layer

    def _assemble(
        self,
        energy: ProjectionEnergy | ConstraintsEnergy,
        beta: Tensor,
        geometry: str | MirrorMap,
        solver: str | Solver,
        adjoint: str | Adjoint,
    ) -> None:
        super().__init__()
        self.geometry = lookup(geometry)
        self.solver: str | Solver = solver
        self.adjoint: str | Adjoint = adjoint
        how = adjoint_named(adjoint)
        how.solver_for(solver)  # (refuses unknown names)
        if how.follows_limit:
            check_projection(self.geometry, 0.0)
        self.energy = energy
        hold(self, "beta", beta)
        self.last_solution: Solution | None = None

    @property
    def V(self) -> Float[Tensor, "d r"] | LinearMap:
        """V, (d, r), the columns of which are the equations: a dense tensor, or an operator."""
        return self.energy.equations

    def forward(self, z0: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The projection of z⁰."""
        return self.solve(z0).value

    def solve(
        self,
        initial: Float[Tensor, "*batch d"] | Solution | None = None,
        initial_dual: Float[Tensor, "*batch d"] | None = None,
    ) -> Solution:
        """The same as calling the layer, with everything known about the solve.

        A start without a batch serves every β, and a β without a batch every start.

        Args:
            initial: z⁰, (*, d), in int C, or a `Solution` to start from. Default ρ(0), the middle of C.
            initial_dual: y⁰ = ρ⁻¹(z⁰), (*, d), instead of `initial`: for a z⁰ that would be rounded to a bound.

        Raises:
            ValueError: for a start that does not fit, or is given twice; see `find_critical_point`.
        """
        batch = self.beta.shape[:-1]
        for name, start in (("initial", initial), ("initial_dual", initial_dual)):
            self._check_precision(name, start)
            self._check_flat(name, start)
            batch = _joint_batch(batch, name, start)
        solution = find_critical_point(
            self.energy,
            self.geometry,
            self.beta.expand(*batch, self.beta.shape[-1]),
            _for_all(initial, batch),
            solver=self.solver,
            adjoint=self.adjoint,
            initial_dual=_for_all(initial_dual, batch),
        )
        self.last_solution = solution.detach()
        return solution

    def _check_flat(self, name: str, start: object) -> None:
        plan = getattr(self.energy.equations, "plan", None)
        if plan is None or not isinstance(start, Tensor) or start.dim() < 2 or start.shape[-1] == plan[0] * plan[1]:
            return
        if tuple(start.shape[-2:]) == plan:
            raise ValueError(
                f"{name} has the shape {tuple(start.shape)} of a matrix for each sample: give its entries row by row, "
                f"{name}.flatten(-2)"
            )

    def _check_precision(self, name: str, start: object) -> None:
        own = self.beta.dtype
        if not isinstance(start, Tensor) or not start.is_floating_point() or start.dtype == own:
            return
        # (under autocast half precision is a matter of the layer before)
        if not torch.is_autocast_enabled(start.device.type):
            raise ValueError(f"{name} is {start.dtype}, but V is {own}: convert one of them")

    def reset_parameters(self) -> None:
        """Draw V anew, and set β to Vᵀρ(0), as the constructor does. Given tensors stay as they are."""
        if self.energy.redraw():
            self._start_feasible()

    def _start_feasible(self) -> None:
        vectors = self.V
        assert isinstance(vectors, Tensor)  # (what is learned is dense)
        with torch.no_grad():
            self.beta.copy_(middle(vectors, self.geometry))

    def extra_repr(self) -> str:
        """Everything that is not a submodule."""
        features, constraints = self.V.shape
        return (
            f"features={features}, constraints={constraints}, geometry={self.geometry!r}, solver={self.solver!r}, "
            f"adjoint={self.adjoint!r}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the last solution behind: it belongs to a call, not to the layer."""
        return {**self.__dict__, "last_solution": None}


def _joint_batch(batch: torch.Size, name: str, start: object) -> torch.Size:
    """The leading shape of β and of a start, one of which may have none.

    Raises:
        ValueError: if there are different ones.
    """
    dual = start.dual if isinstance(start, Solution) else start
    if not isinstance(dual, Tensor) or dual.dim() <= 1:
        return batch
    own = dual.shape[:-1]
    if len(batch) and own != batch:
        raise ValueError(
            f"{name} has the batch {tuple(own)}, but beta has {tuple(batch)}: give as many of both, or one of them "
            "without a batch"
        )
    return own


def _for_all(start: Any, batch: torch.Size) -> Any:
    """A start without a batch, once for each sample; any other as it is."""
    if isinstance(start, Tensor) and start.dim() == 1:
        return start.expand(*batch, start.shape[-1])
    return start


def _check_constraints(constraints: int, features: int) -> None:
    try:
        check_count("constraints", constraints)
        fits = constraints <= features
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"constraints must be a whole number from 1 to features = {features}, got {constraints!r}")


def _check_tensors(V: Tensor, beta: Tensor) -> None:
    if not isinstance(V, Tensor):
        raise TypeError(
            f"V must be a tensor, got {type(V).__name__}: an operator or anything else has to be given as a dense "
            "tensor of shape (d, r)"
        )
    check_dense("V", V)
    if not V.is_floating_point():
        raise TypeError(f"V must be a floating-point tensor, got {V.dtype}: call .float() or .double()")
    if V.dim() != 2 or V.shape[1] == 0:
        raise ValueError(f"V must have shape (d, r) with r of at least 1, got {tuple(V.shape)}")
    d, r = V.shape
    if r > d:
        raise ValueError(
            f"V has {r} columns, equations in {d} unknowns: drop the equations that follow from others, so that there "
            f"are at most {d}"
        )
    _check_beta(beta, (d, r), V.dtype, V.device)


def _as_map(V: object) -> LinearMap:
    """V as a linear map.

    Raises:
        TypeError: if it is none.
    """
    if isinstance(V, LinearMap):
        return V
    if not isinstance(V, Tensor) or V.is_nested:
        raise TypeError(
            f"V must be a tensor of shape (d, r) or a linear map such as operators.Marginals(n, m), got "
            f"{type(V).__name__}: a Hessian (operators.LinearOperator) is square and no V"
        )
    return SparseMap(V)


def _check_beta(beta: Tensor, shape: tuple[int, int], dtype: torch.dtype | None, device: torch.device | None) -> None:
    check_dense("beta", beta)
    if not beta.is_floating_point():
        raise TypeError(f"beta must be a floating-point tensor, got {beta.dtype}: call .float() or .double()")
    if beta.dim() == 0 or beta.shape[-1] != shape[1]:
        raise ValueError(
            f"beta must have shape ({shape[1]},) or (*batch, {shape[1]}) to go with V of shape {shape}, got "
            f"{tuple(beta.shape)}"
        )
    if (dtype is not None and beta.dtype != dtype) or (device is not None and beta.device != device):
        raise ValueError(f"beta is {beta.dtype} on {beta.device}, but V is {dtype} on {device}: convert one of them")
