"""Critical points of F on C under affine constraints, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.adjoints import adjoint_named
from implicit_bregman.batch import Batch, as_states, in_front
from implicit_bregman.checks import check_energy
from implicit_bregman.compilation import uncompiled, without_autocast
from implicit_bregman.constraints.affine import Constraints
from implicit_bregman.constraints.multipliers import STEPS, Found, MultiplierProblem, Solve, find_multipliers
from implicit_bregman.constraints.tilted import tilted
from implicit_bregman.critical_point import find_critical_point
from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.energy.inputs import Inputs, map_tensors, normal, tensors_of
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.legendre import geometry as lookup
from implicit_bregman.legendre.once import once
from implicit_bregman.objective import Objective
from implicit_bregman.settings import check_nonnegative
from implicit_bregman.solution import Solution
from implicit_bregman.solvers import Solver
from implicit_bregman.status import Status, report_failures
from implicit_bregman.tensors import refuse_transforms
from implicit_bregman.valuation import Values

if TYPE_CHECKING:
    from rich.table import Table

_TWICE = "where constraints are active: one derivative of a constrained point is all there is"
#: Where the eigenvalues of M differ by more, its constraints depend on each other.
_DEPENDENT = 1e-12


@dataclass(frozen=True, repr=False, kw_only=True)
class ConstrainedSolution(Solution):
    """A batch of critical points under constraints.

    `iterations` counts Newton steps for λ, `evaluations` solves for z. `objective` is F(z), with the derivatives of the
    constrained problem.

    Attributes:
        constraint_multiplier: λ, (B, r), with ∇F(z) + Vλ normal to C: positive where u is active, negative where l is,
            else 0. It carries gradient.
        violation: by how much a constraint is missed, relative to the tolerance, (B,); rounding may leave more than 1.
    """

    constraint_multiplier: Float[Tensor, "*batch r"]
    violation: Float[Tensor, "*batch"]

    def detach(self) -> ConstrainedSolution:
        """The same, without gradient."""
        return replace(super().detach(), constraint_multiplier=self.constraint_multiplier.detach())

    def __rich__(self) -> Table:
        table = super().__rich__()
        if self.violation.numel():
            table.add_row("largest violation", f"{float(self.violation.max()):.1e} tolerances")
        return table


@uncompiled
def find_constrained_point(
    energy: Energy,
    geometry: str | MirrorMap,
    x: Float[Tensor, "*batch n"] | Inputs,
    constraints: Constraints,
    initial: Float[Tensor, "*batch *features"] | Solution | None = None,
    regularization: float = 0.0,
    solver: str | Solver = "auto",
) -> ConstrainedSolution:
    """The minimiser of F = f_θ(·; x) + γφ on {z ∈ C : l ≤ Vᵀz ≤ u}: QPs with a few constraints, and their like.

    Newton's method finds the multipliers λ of the constraints. Each of its steps solves the problem without them. The
    gradient is that of the KKT conditions, and needs two backward solves. It flows to x, to the energy's
    parameters, to V, l and u, and to bounds of C that are tensors. It can be taken once.

    Args:
        energy: f, quadratic or your own, such that F has one critical point on C; without symmetry the equilibrium of
            a strongly monotone field.
        geometry: φ and C, as in `find_critical_point`.
        x: as in `find_critical_point`.
        constraints: V, l and u.
        initial: where the first solve starts.
        regularization: γ ≥ 0.
        solver: of the solves without constraints; its tolerance is that of the constraints too, relative to
            |column of V| + |bound|.

    Returns:
        The points. The status is INFEASIBLE where it is proved that no point of C meets the constraints, and MAX_ITER
        where they are not met and nothing is proved; the value is then that of the last λ. It is DEGENERATE where an
        active constraint has a multiplier that cannot be told from 0, or active ones depend on each other, so that the
        gradient is one-sided or λ not unique.

    Raises:
        TypeError: for an energy without such points: low rank, or a field.
        ValueError: for constraints that do not fit, and where F is not known to have one critical point on C.
        RuntimeError: inside torch.func transforms, and if a sample fails and the solver's `on_failure` is "raise".
    """
    phi = lookup(geometry)
    check_energy(energy)
    if not isinstance(constraints, Constraints):
        raise TypeError(f"constraints must be Constraints(V, lower, upper), got {type(constraints).__name__}")
    gamma = check_nonnegative("regularization", regularization)
    bounds = (constraints.V, constraints.lower, constraints.upper)
    refuse_transforms("find_constrained_point", [*tensors_of(x), *bounds, *energy.parameters(), *energy.buffers()])
    if torch.is_inference_mode_enabled():
        # (derivatives are needed on the way)
        with torch.inference_mode(False), torch.no_grad():
            plain = Constraints(*(normal(tensor) for tensor in bounds))
            start = normal(initial) if isinstance(initial, Tensor) else initial
            return find_constrained_point(energy, phi, map_tensors(normal, x), plain, start, gamma, solver)
    method = adjoint_named("implicit").solver_for(solver)
    batch = Batch.of(energy, phi, x, initial)
    with without_autocast(batch.dual.device.type):
        bound = energy.bind(batch.x)
        if not Objective(bound, batch.geometry, gamma).unique:
            raise ValueError(
                "the constrained point needs an F with one critical point on C: use weight='convex' or 'monotone', "
                "convex=True with a regularization > 0, or a larger regularization"
            )
        inner, more = tilted(energy, bound, batch.x, batch.event)
        solve = _Solve(inner, more, phi, gamma, replace(method, on_failure="ignore"))
        v, lower, upper = _rows(constraints, batch)
        lengths = torch.linalg.vector_norm(v.detach(), dim=0)
        lengths = torch.where(lengths > 0, lengths, 1.0)
        problem = MultiplierProblem(
            solve.with_jacobian(v.detach() / lengths),
            v.detach() / lengths,
            lower.detach() / lengths,
            upper.detach() / lengths,
            method.tolerance(batch.dual.dtype),
            _unit(bound, batch.geometry, gamma),
            _size(v.detach() / lengths, batch.geometry),
        )
        known = None
        if isinstance(initial, ConstrainedSolution) and initial.constraint_multiplier.shape[-1] == len(lengths):
            known = lengths * initial.constraint_multiplier.detach().reshape(-1, len(lengths)).to(lengths)
        with torch.no_grad():
            found = find_multipliers(problem, batch.geometry, batch.dual, known)
        return _solution(solve, batch, found, lengths, v, lower, upper, method)


@dataclass(frozen=True)
class _Solve:
    """Solves without constraints, for different linear terms."""

    energy: Energy
    more: tuple[Any, ...]
    geometry: MirrorMap
    regularization: float
    method: Solver

    def __call__(self, tilt: Float[Tensor, "batch d"], start: Solution | Tensor) -> Solution:
        dual = start if isinstance(start, Tensor) else start.dual.flatten(1)
        event = self.energy.features
        assert isinstance(event, tuple)
        return find_critical_point(
            self.energy,
            self.geometry,
            (tilt, *self.more),
            regularization=self.regularization,
            solver=self.method,
            initial_dual=dual.reshape(-1, *event),
        )

    def with_jacobian(self, vectors: Float[Tensor, "d r"]) -> Solve:
        """The same, with VᵀJV."""

        def solve(tilt: Tensor, start: Solution | Tensor) -> tuple[Solution, Tensor]:
            with torch.enable_grad():
                leaf = tilt.detach().requires_grad_()
                solution = self(leaf, start)
                rows = solution.value.flatten(1)
                columns = vectors.mT[:, None, :].expand(-1, *rows.shape).to(rows)
                (pulled,) = torch.autograd.grad(rows, leaf, columns, is_grads_batched=True)
            # (JᵀV)ᵀV, of which the entry i, j is Vᵢᵀ J Vⱼ
            return solution.detach(), torch.einsum("ibd,dj->bij", pulled, vectors)

        return solve


def _rows(constraints: Constraints, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """V, and l and u for each sample, in the precision of the solve."""
    v, dtype = constraints.V, batch.dual.dtype
    if v.device != batch.dual.device:
        raise ValueError(f"V is on {v.device}, but x is on {batch.dual.device}: move one of them")
    if v.dtype != dtype:
        raise ValueError(f"V is {v.dtype}, but the solve is in {dtype}: convert one of them")
    if len(v) != batch.dual.shape[1]:
        raise ValueError(f"V must have {batch.dual.shape[1]} rows, one for each entry of a state, got {len(v)}")
    found = []
    for name, end in (("lower", constraints.lower), ("upper", constraints.upper)):
        if end.dim() > 1 and end.shape[:-1] != batch.shape:
            raise ValueError(
                f"{name} must have shape ({v.shape[1]},) or {(*batch.shape, v.shape[1])}, got {tuple(end.shape)}"
            )
        found.append(end.expand(*batch.shape, v.shape[1]).reshape(-1, v.shape[1]))
    return v, found[0], found[1]


def _unit(bound: BoundEnergy, geometry: MirrorMap, gamma: float) -> float:
    """About what uᵀJu is for a unit vector u where no coordinate is on a bound."""
    known = bound.curvature
    curvature = 1.0 if known is None else float(torch.as_tensor(known).max())
    strong = geometry.strong_convexity if gamma else 0.0
    return 1 / max(curvature + gamma * strong, 1e-12)


def _size(vectors: Float[Tensor, "d r"], geometry: MirrorMap) -> Float[Tensor, " r"]:
    """About how large Vᵀz is: |V|, of coordinates that are 1, or as wide as a narrower C."""
    unit = torch.as_tensor(geometry.unit, dtype=vectors.dtype, device=vectors.device)
    return torch.linalg.vector_norm(vectors * unit.reshape(-1, 1), dim=0)


def _solution(
    solve: _Solve,
    batch: Batch,
    found: Found,
    lengths: Float[Tensor, " r"],
    v: Float[Tensor, "d r"],
    lower: Float[Tensor, "batch r"],
    upper: Float[Tensor, "batch r"],
    method: Solver,
) -> ConstrainedSolution:
    on = found.active != 0
    # (an equation is a bound on both sides: each has half of the derivative)
    bounds = torch.where(lower == upper, 0.5 * lower + 0.5 * upper, torch.where(found.active > 0, upper, lower))
    bounds = torch.where(on, bounds, 0.0)
    inverse, dependent = _inverse(found.jacobian, on)
    multiplier, binds, solves = found.multiplier / lengths, bool(on.any()), found.solves
    at_bounds = (multiplier * bounds).sum(-1)
    fixed = followed = found.solution
    if torch.is_grad_enabled():
        fixed = followed = solve(-(multiplier @ v.mT), found.solution)
        solves += 1 + binds
    if torch.is_grad_enabled() and binds:
        # One Newton step of length 0, which carries the first derivative of λ.
        excess = torch.where(on, fixed.value.flatten(1) @ v - bounds, 0.0) / lengths
        moved = (inverse @ (excess - excess.detach())[:, :, None]).squeeze(-1) / lengths
        multiplier = multiplier + once(moved, _TWICE)
        followed = solve(-(multiplier @ v.mT), found.solution)
    value, status = batch.finish(followed.value.flatten(1), _status(found, followed.status, dependent))
    advice = partial(_advice, method, batch.dual.dtype)
    report_failures("find_constrained_point", status, method.on_failure, advice)
    return ConstrainedSolution(
        value=batch.states(value),
        dual=batch.states(followed.dual.flatten(1)),
        residual=batch.samples(batch.masked(followed.residual)),
        iterations=batch.samples(found.steps),
        evaluations=batch.samples(torch.full_like(found.steps, solves)),
        status=batch.samples(status),
        exact=batch.samples(followed.exact),
        step=batch.samples(followed.step),
        trace=None,
        adjoint=followed.adjoint,
        constraint_multiplier=batch.samples(batch.masked(multiplier)),
        violation=batch.samples(batch.masked(found.missed)),
        _valuation=_Lagrangian(
            fixed._valuation,
            followed._valuation,
            at_bounds,
            binds,
            batch.clean,
            partial(in_front, batch.shape),
            partial(as_states, batch.shape, batch.event),
        ),
        _advice=advice,
    )


def _status(found: Found, solved: Int[Tensor, " batch"], dependent: Bool[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """How each sample ended, given how the solve at its λ did."""
    one_sided = (found.thin | dependent) & (solved == int(Status.CONVERGED))
    status = torch.where(one_sided, int(Status.DEGENERATE), solved)
    status = torch.where(found.solved, status, int(Status.MAX_ITER))
    return torch.where(found.refuted, int(Status.INFEASIBLE), status)


def _inverse(
    jacobian: Float[Tensor, "batch r r"], on: Bool[Tensor, "batch r"]
) -> tuple[Tensor, Bool[Tensor, " batch"]]:
    """The inverse of M for the active constraints, the shortest one where they depend on each other, and where."""
    # In units in which the diagonal is 1.
    diagonal = jacobian.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(on & (diagonal > 0), diagonal, 1.0).rsqrt() * on.to(jacobian.dtype)
    part = torch.nan_to_num(scale[:, :, None] * jacobian * scale[:, None, :])
    eps = max(_DEPENDENT, 4 * torch.finfo(jacobian.dtype).eps)
    sizes = torch.linalg.svdvals(part)
    dependent = (sizes > eps * sizes[:, :1]).sum(-1) < on.sum(-1)
    return scale[:, :, None] * torch.linalg.pinv(part, rtol=eps) * scale[:, None, :], dependent


def _advice(method: Solver, dtype: torch.dtype, status: Status) -> str:
    if status == Status.MAX_ITER:
        return (
            ", or loosen the constraints: they contradict each other or the bounds of C by little, or "
            f"{STEPS} Newton steps for their multipliers were not enough"
        )
    return method.advice(status, dtype)


@dataclass(frozen=True)
class _Lagrangian(Values):
    """F and μ, by F + λᵀ(Vᵀz − bounds), which has the derivatives of the constrained problem.

    Attributes:
        fixed: those of F + λᵀVᵀz at a fixed λ.
        followed: the same where λ follows.
        at_bounds: λᵀ bounds, (B,).
        binds: whether a constraint is active.
        clean: the samples with a usable input; None: all.
        shaped: to the leading shape of the batch.
        states: to that and the shape of the states.
    """

    fixed: Values
    followed: Values
    at_bounds: Float[Tensor, " batch"]
    binds: bool
    clean: Bool[Tensor, " batch"] | None
    shaped: Callable[[Tensor], Tensor]
    states: Callable[[Tensor], Tensor]

    def objective(self) -> Float[Tensor, "*batch"] | None:
        whole = self.fixed.objective()
        if whole is None:
            return None
        value = whole - self.at_bounds
        return self.shaped(once(value, _TWICE) if self.binds and value.requires_grad else value)

    def multiplier(self) -> Float[Tensor, "*batch d"]:
        rows = self.followed.multiplier().flatten(1)
        return self.states(rows if self.clean is None else torch.where(self.clean[:, None], rows, torch.nan))

    def detach(self) -> _Lagrangian:
        return replace(
            self, fixed=self.fixed.detach(), followed=self.followed.detach(), at_bounds=self.at_bounds.detach()
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "at_bounds": self.at_bounds.detach()}
