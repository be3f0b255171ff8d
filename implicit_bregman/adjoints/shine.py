"""The forward solver's inverse estimate, used again in the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.adjoints.base import Adjoint
from implicit_bregman.adjoints.error import or_infinite, quick_estimate
from implicit_bregman.adjoints.implicit import linearize_outcome, relative_residual, without_diverged
from implicit_bregman.adjoints.system import DEFAULT_TOL
from implicit_bregman.adjoints.transforms import refuse_batched, refuse_higher_order
from implicit_bregman.backward import AdjointReport, differentiable, report_backward
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.linalg.cg import LinearSolution, conjugate_gradient, normalized
from implicit_bregman.linalg.gmres import gmres
from implicit_bregman.linalg.updates import apply_updates
from implicit_bregman.linearization import Linearization
from implicit_bregman.objective import Objective, Point
from implicit_bregman.settings import FAILURE_MODES, check_choice, check_count
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.broyden import Broyden
from implicit_bregman.solvers.inverse import InverseEstimate
from implicit_bregman.status import Status

#: Rounds of refinement with a float64 residual.
_ROUNDS = 4


@dataclass(frozen=True)
class Shine(Adjoint):
    """SHINE: the last inverse estimate of `Broyden`, transposed, in place of the adjoint solve.

    Ramzi, Mannel, Bai, Starck, Ciuciu and Moreau, "SHINE: SHaring the INverse Estimate from the forward pass for
    bi-level optimization and implicit models" (2022). Biased; with `refine` → ∞ it is the implicit gradient.

    What is estimated. With D = ρ'(y), D₊ = ρ'(y⁺) and H = ∇²f, r(y) = ρ(y⁺) − ρ(y) has the derivative

        J = D₊(I − τHD)/(1 + τγ) − D = −κ (shift + D₊H) D,    κ = τ/(1 + τγ),

    with the shift of `Linearization`, whose system for g = dL/dz is (shift + HᵀD₊) u = g, v = dL/dc = D₊u. So

        v = D₊u,    u = −κ J⁻ᵀ D g ≈ κ Bᵀ D g

    at any iterate, for B ≈ −J⁻¹ as Broyden builds it.

    With γ = 0, D and D₊ tend to 0 at an active bound, and v with them. The estimate is wrong there: y moves towards
    infinity however small r has become, and the updates grow without bound. It is used on the other coordinates.

    B is the MM step r ↦ y⁺ − y plus rank-one updates Σ left ⟨right, ·⟩. The MM step divides by
    (ρ(y⁺) − ρ(y))/(y⁺ − y), which tends to D; its transpose is taken as D⁻¹, so that it stands for v = κD₊g, which is
    `OneStep`. In p = √D₊ u and b = √D₊ g, where the system is symmetric if H is, and with D₊ = D as at the limit,

        p ≈ κb + Σ κ√D right ⟨√D left, b⟩,

    of which the symmetric part is taken where H is symmetric: the inverse is symmetric, the estimate is not.

    How it is used. The paper falls back to the Jacobian-free direction, here κb, where the estimate's is out of
    proportion. Here the two are combined, per sample, with the weights that bring them nearest to the solution, in
    the norm in which CG measures the error (for a general W: in the residual). It costs the two products with the
    operator that a comparison would cost, makes ⟨v, g⟩ > 0 where the operator is positive, and where the estimate is
    useless or not finite a multiple of `OneStep` is left.

    Only `Broyden` without `exact` has an estimate at the point where it stops. solver="auto" and "broyden" mean
    Broyden(memory=100, exact=False, max_iter=1000): a full memory starts anew and forgets what it has learned. A sample
    that starts at its solution has no estimate. Nor has a sample that makes only MM steps, as `Broyden` does where an
    energy of your own is not declared convex.

    The report's status is CONVERGED for every sample whose v is finite. Its `residual` tells how good v is: it is the
    relative residual of the adjoint system, in the scaling of v. `iterations` counts the products, those two included.

    Args:
        refine: steps of CG on the adjoint system that follow, from the estimate on; of GMRES for a general W and where
            F may have several critical points.
        on_failure: "warn" (once), "raise" or "ignore" where the estimate is not finite.

    Raises:
        TypeError: for an unknown setting.
        ValueError: for an impossible one.
    """

    default_solver: ClassVar[str | Solver] = Broyden(memory=100, exact=False, max_iter=1000)

    refine: int = 0
    on_failure: str = "warn"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        super().__post_init__()
        check_count("refine", self.refine, least=0)
        check_choice("on_failure", self.on_failure, FAILURE_MODES)

    def solver_for(self, solver: str | Solver) -> Solver:
        """As of any adjoint; "broyden" stands for the same as "auto"."""
        return super().solver_for("auto" if isinstance(solver, str) and solver == "broyden" else solver)

    def accepts(self, solver: Solver, energy: BoundEnergy) -> None:
        if not solver.estimates_inverse:
            raise ValueError(
                "adjoint Shine uses the inverse estimate of Broyden: "
                f'use solver="auto" or Broyden(exact=False), got {type(solver).__name__}'
            )
        if solver.ends_exactly:
            raise ValueError(
                "adjoint Shine needs the estimate at the point where Broyden stops, which an exact solve leaves "
                'behind: use solver="auto" or Broyden(exact=False)'
            )
        if energy.own is not None:
            raise ValueError(f'adjoint Shine has no form for {energy.own.name}: use adjoint="implicit"')

    def solve(
        self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver
    ) -> tuple[Outcome, Float[Tensor, "batch d"], AdjointReport]:
        """Find the critical point from y⁰ = `dual`, and keep the solver's estimate for the backward pass."""
        if objective.geometry.coupling is not None:
            name = objective.geometry.name
            raise ValueError(f'adjoint Shine has no form for {name}, which couples coordinates: use adjoint="implicit"')
        if objective.geometry.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "adjoint Shine has no gradient to the bounds lo and hi: give to_box detached ones, or use "
                'adjoint="implicit"'
            )
        found = solver.solve_with_inverse if torch.is_grad_enabled() else solver.solve
        outcome = found(objective, dual)
        value, report = self.attach(objective, outcome, dual)
        return outcome, value, report

    def attach(
        self, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, "batch d"], AdjointReport]:
        """The value of `outcome`, with the gradient of the estimate that belongs to it.

        Raises:
            TypeError: if `outcome` has none.
        """
        report = AdjointReport()
        z, inverse = outcome.point.value.detach(), outcome.inverse
        if not torch.is_grad_enabled():
            return z, report
        usable = differentiable(outcome)
        kept = outcome if usable is None else without_diverged(objective, outcome, usable)
        # −∇f at fixed z: its derivatives in x and θ are all that the chain rule needs besides v.
        force = -objective.energy.gradient(kept.point.value.detach())
        if not (force.requires_grad or dual.requires_grad):
            return z, report
        if inverse is None:
            raise TypeError("Shine differentiates its own solve, whose inverse estimate it needs, not a given iterate")
        system = linearize_outcome(objective, kept)
        backward = _Backward(
            self,
            system,
            _Transposed.of(objective, kept.point, inverse, _leaving(system, not objective.regularization)),
            relative_residual(objective, kept.point),
            usable,
            not objective.regularization,
            objective.unique and objective.energy.symmetric,
            report,
        )
        return _AttachShine.apply(z, force, dual, backward), report


def _leaving(system: Linearization, bounds_attract: bool) -> Bool[Tensor, "batch d"]:
    """The coordinates that are on their way to a bound, where v is 0 in the limit."""
    return (system.shift > system.slope) & bounds_attract


@dataclass(frozen=True)
class _Transposed:
    """b ↦ κb + Σ right_i ⟨left_i, b⟩, the transposed estimate in the coordinates of the symmetric form.

    Attributes:
        scale: κ, (B, 1).
        left: √D left_i, (B, m, d).
        right: κ√D right_i, (B, m, d).
    """

    scale: Tensor
    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, objective: Objective, point: Point, inverse: InverseEstimate, leaving: Tensor) -> _Transposed:
        """From Broyden's estimate at `point`, without the coordinates that are `leaving` for a bound."""
        with torch.no_grad():
            scale = point.step / (1 + point.step * objective.regularization)
            root = objective.geometry.slope(point.dual).sqrt()
            root = torch.where(leaving, 0.0, root)[:, None]
            return cls(scale, root * inverse.left, scale[:, :, None] * root * inverse.right)

    def __call__(self, b: Tensor, symmetrize: bool) -> Tensor:
        """In b's precision; `symmetrize` takes the symmetric part."""
        narrow = b.to(self.left.dtype)
        update = apply_updates(self.right, self.left, narrow)
        if symmetrize:
            update = 0.5 * (update + apply_updates(self.left, self.right, narrow))
        return self.scale * b + update.to(b.dtype)


@dataclass(frozen=True)
class _Backward:
    """What the backward pass needs besides tensors."""

    adjoint: Shine
    system: Linearization
    estimate: _Transposed
    leftover: Tensor
    usable: Tensor | None
    bounds_attract: bool
    positive: bool
    report: AdjointReport


class _AttachShine(torch.autograd.Function):
    """z ↦ z, whose backward turns dL/dz into an estimate of v = dL/d(−∇f)."""

    @staticmethod
    def forward(value: Tensor, force: Tensor, initial: Tensor, backward: _Backward) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        backward: _Backward = inputs[3]
        system, estimate = backward.system, backward.estimate
        ctx.adjoint, ctx.report, ctx.bounds_attract = backward.adjoint, backward.report, backward.bounds_attract
        ctx.positive = backward.positive
        # Saved, not just held, so that autograd counts, offloads and frees these tensors as its own.
        tensors, ctx.rebuild_hessian = system.hessian.pack()
        ctx.save_for_backward(
            system.slope,
            system.shift,
            backward.leftover,
            backward.usable,
            estimate.scale,
            estimate.left,
            estimate.right,
            *tensors,
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_higher_order("shine")
        refuse_batched("shine", gradient)
        slope, shift, leftover, usable, scale, left, right, *rest = ctx.saved_tensors
        system = Linearization(ctx.rebuild_hessian(*rest), slope, shift)
        adjoint: Shine = ctx.adjoint
        g = gradient if usable is None else torch.where(usable[:, None], gradient, 0.0)
        with torch.autocast(gradient.device.type, enabled=False):
            estimate = _Transposed(scale, left, right)
            v, status, residual, iterations = _solve(system, estimate, g, adjoint.refine, ctx.positive)
        error = or_infinite(quick_estimate(g, v, residual, leftover, _leaving(system, ctx.bounds_attract)))
        ctx.report.fill(status, residual, iterations, error, usable)
        report_backward("shine adjoint", ctx.report.status, adjoint.on_failure)
        initial = torch.zeros_like(gradient) if ctx.needs_input_grad[2] else None
        return None, v, initial, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        raise RuntimeError("the shine adjoint has no forward mode (jvp): use backward() or torch.autograd.grad")


def _solve(
    system: Linearization,
    estimate: _Transposed,
    gradient: Float[Tensor, "batch d"],
    refine: int,
    positive: bool,
) -> tuple[Float[Tensor, "batch d"], Int[Tensor, " batch"], Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """v, its status, relative residual and products with the operator; rows of g that are not finite give v = NaN."""
    g, unit, usable = normalized(gradient)
    form = _Scaled.of(system, g)
    found = form.combined(estimate.scale * form.right, estimate(form.right, system.hessian.symmetric))
    # Each of the two has cost a product.
    iterations = torch.full_like(usable, 2, dtype=torch.int64)
    if refine:
        found, more = form.refined(found, refine, positive)
        iterations = iterations + more
    v, residual = form.root * found.point, form.relative(found, form.root)
    finite = torch.isfinite(v.sum(-1))
    status = torch.where(finite, int(Status.CONVERGED), int(Status.SINGULAR))
    status = torch.where(usable, status, int(Status.INVALID_INPUT))
    v = torch.where(finite[:, None], v, 0.0).to(gradient.dtype)
    v = torch.where(usable[:, None], unit * v, torch.nan)
    return v, status, residual.to(gradient.dtype), iterations


@dataclass(frozen=True)
class _Candidate:
    """p and A p."""

    point: Tensor
    image: Tensor


@dataclass(frozen=True)
class _Scaled:
    """The adjoint system as A p = b with A = diag(shift) + S Hᵀ S, S = √D₊, p = S u and b = S g; v = S p.

    Coordinates at a bound weigh nothing in it.

    Attributes:
        system: the linearization.
        root: S, (B, d).
        right: b, (B, d); like S in float64 where H `factorizes`.
        narrow: the precision of the iterations.
    """

    system: Linearization
    root: Tensor
    right: Tensor
    narrow: torch.dtype

    @classmethod
    def of(cls, system: Linearization, g: Tensor) -> _Scaled:
        wide = torch.float64 if system.hessian.factorizes else g.dtype
        root = system.slope.to(wide).sqrt()
        return cls(system, root, root * g.to(wide), g.dtype)

    def combined(self, plain: Tensor, estimated: Tensor) -> _Candidate:
        """The combination of two p that is nearest to the solution: two steps of conjugate directions."""
        usable = torch.isfinite(estimated.sum(-1))
        zero = torch.zeros_like(plain)
        first = self._at(plain)
        second = self._at(torch.where(usable[:, None], estimated, plain))
        found = self._advanced(_Candidate(zero, zero), first, otherwise=1.0)
        # What `second` adds: its part conjugate to `first`.
        tested = self._tested(first)
        share = _ratio(torch.linalg.vecdot(tested, second.image), torch.linalg.vecdot(tested, first.image), 0.0)
        rest = _Candidate(second.point - share * first.point, second.image - share * first.image)
        return self._advanced(found, rest, otherwise=0.0, least=torch.linalg.vecdot(self._tested(second), second.image))

    def refined(self, found: _Candidate, steps: int, positive: bool) -> tuple[_Candidate, Int[Tensor, " batch"]]:
        """At most `steps` iterations on from `found`, fewer where the residual gets small; and their number.

        What ends before that by the rounding errors of its own precision goes on from a residual in float64.
        """
        iterations = torch.zeros(len(self.right), dtype=torch.int64, device=self.right.device)
        tol = DEFAULT_TOL[self.narrow]
        running = torch.ones_like(iterations, dtype=torch.bool)
        for _ in range(_ROUNDS):
            running = running & (self.relative(found) > tol)
            if not bool(running.any()):
                break
            residual = self.right - found.image
            size = torch.linalg.vector_norm(residual, dim=-1, keepdim=True)
            size = torch.where(size > 0, size, 1.0)
            part = self._correction(torch.where(running[:, None], residual / size, 0.0), steps, positive)
            point = found.point + size * part.value.to(self.right.dtype)
            found = _Candidate(point, self._apply(point))
            iterations = iterations + part.iterations
            running = running & (part.iterations < steps) & part.converged
        return found, iterations

    def relative(self, candidate: _Candidate, weight: Tensor | float = 1.0) -> Float[Tensor, " batch"]:
        """‖b − Ap‖ / ‖b‖ with weighted coordinates, or the numerator where b is 0."""
        size = torch.linalg.vector_norm(weight * self.right, dim=-1)
        left = torch.linalg.vector_norm(weight * (self.right - candidate.image), dim=-1)
        return left / torch.where(size > 0, size, 1.0)

    def _correction(self, residual: Tensor, steps: int, positive: bool) -> LinearSolution:
        """A p = residual, in the problem's precision."""
        tol, right = max(DEFAULT_TOL[self.narrow], 64 * torch.finfo(self.narrow).eps), residual.to(self.narrow)
        # Not the system's own preconditioner, which depends on the whole batch: after a few steps it would show.
        diagonal = self.system.diagonal()
        solve = conjugate_gradient if positive else gmres
        return solve(self._apply, right, lambda r: r / diagonal, tol, steps)

    def _advanced(
        self, found: _Candidate, along: _Candidate, otherwise: float, least: Tensor | None = None
    ) -> _Candidate:
        """The best point on a line; `otherwise` is the step where the curvature along it is not positive.

        Args:
            found: where the line starts.
            along: its direction.
            otherwise: see above.
            least: a curvature in comparison with which that along the line must not be a rounding error.
        """
        tested = self._tested(along)
        curvature = torch.linalg.vecdot(tested, along.image)
        if least is not None:
            curvature = torch.where(curvature > torch.finfo(curvature.dtype).eps * least, curvature, 0.0)
        weight = _ratio(torch.linalg.vecdot(tested, self.right - found.image), curvature, otherwise)
        return _Candidate(found.point + weight * along.point, found.image + weight * along.image)

    def _tested(self, candidate: _Candidate) -> Tensor:
        """What the residual is made orthogonal to: p for the energy norm of a symmetric A, A p for the residual."""
        return candidate.point if self.system.hessian.symmetric else candidate.image

    def _at(self, point: Tensor) -> _Candidate:
        return _Candidate(point, self._apply(point))

    def _apply(self, p: Tensor) -> Tensor:
        root = self.root.to(p.dtype)
        return self.system.shift.to(p.dtype) * p + root * self.system.hessian.product(root * p, adjoint=True)


def _ratio(top: Tensor, bottom: Tensor, otherwise: float) -> Float[Tensor, "batch 1"]:
    """top / bottom, or `otherwise` where bottom is not positive."""
    good = bottom > 0
    return torch.where(good, top / torch.where(good, bottom, 1.0), otherwise)[:, None]
