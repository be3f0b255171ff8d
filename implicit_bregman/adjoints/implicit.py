"""Implicit differentiation at the critical point (Problem 2.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.adjoints.base import Adjoint
from implicit_bregman.adjoints.differentiable import Jacobian, attach, left_over, pull_back
from implicit_bregman.adjoints.error import Iterate, is_worth_refining, quick_estimate, refined_estimate
from implicit_bregman.adjoints.system import METHODS, AdjointSolution, check_method, solve_adjoint_system
from implicit_bregman.backward import AdjointReport, differentiable, report_backward
from implicit_bregman.compilation import without_autocast
from implicit_bregman.energy.contract import Packed, PullBack
from implicit_bregman.legendre.once import never
from implicit_bregman.linalg.norms import norm, ratio
from implicit_bregman.linearization import Linearization, UpdatedIdentity, linearize, linearize_on_free_set
from implicit_bregman.objective import Objective, Point
from implicit_bregman.settings import FAILURE_MODES, check_choice, check_count, check_positive
from implicit_bregman.solvers.base import DEFAULT_TOL, Outcome, Solver
from implicit_bregman.status import Status
from implicit_bregman.transforms import batched_again, is_batched, refuse_unknown

#: Broyden's updates from which on its estimate saves GMRES more products than it costs.
_WORTH_USING = 40


@dataclass(frozen=True)
class Implicit(Adjoint):
    """dL/dθ = −vᵀ ∂_θ∇f(z; x), where v solves the (symmetric) adjoint system at the critical point.

    The gradient with respect to z⁰ is 0: an isolated critical point does not move with the start. With
    `weight="low_rank"` and γ = 0 the critical points are not isolated: the gradient is then that of the Bregman
    projection, for V, β and z⁰, from r × r systems (see `implicit_bregman.projection`), which only "auto" and "dense"
    solve.

    Args:
        method: "cg" (symmetric W), "gmres" (any W, and a `Field`), "dense" (one factorization per sample or per free
            set), or "auto": dense for small d and at exact points; else Chebyshev steps where γ > 0 makes them few, CG,
            or GMRES where W is not symmetric. GMRES for a `Field` is preconditioned by what `Broyden(memory=...)` has
            learned, where that is 40 updates or more.
        tol: relative residual of the adjoint system. Default 1e-12 in float64, 1e-6 in float32.
        max_iter: bound on products with the operator.
        on_failure: "warn" (once), "raise" or "ignore" when a backward solve fails.

    Raises:
        TypeError: for an unknown setting.
        ValueError: for an impossible one.
    """

    is_one_solve: ClassVar[bool] = True
    method: str = "auto"
    tol: float | None = None
    max_iter: int = 5000
    on_failure: str = "warn"

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        super().__post_init__()
        check_choice("method", self.method, METHODS)
        if self.tol is not None:
            check_positive("tol", self.tol)
        check_count("max_iter", self.max_iter)
        check_choice("on_failure", self.on_failure, FAILURE_MODES)

    def accepts_iterate(self, objective: Objective) -> None:
        own = objective.energy.own
        if own is not None and own.needs_start(objective.regularization):
            raise ValueError(
                f"with {own.name} and regularization=0 the implicit gradient depends on the start, which a given "
                "iterate does not tell: use find_critical_point(..., initial=...)"
            )

    def uses_inverse(self, objective: Objective, solver: Solver) -> bool:
        return objective.energy.is_field and solver.estimates_inverse and torch.is_grad_enabled()

    def attach(
        self, objective: Objective, outcome: Outcome, dual: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, "batch d"], AdjointReport]:
        """The value of `outcome` with the implicit gradient at that point, converged or not.

        Raises:
            ValueError: if `method` does not go with the energy.
        """
        own = objective.energy.own
        if own is not None:
            if objective.geometry.requires_grad and torch.is_grad_enabled():
                raise ValueError(
                    f"with {own.name} there is no gradient to the bounds lo and hi: give to_box detached ones"
                )
            return own.attach(objective, outcome, dual, self.method, self.on_failure)
        check_method(self.method, objective.energy)
        report = AdjointReport()
        z = outcome.point.value.detach()
        if not torch.is_grad_enabled():
            return z, report
        z = objective.geometry.followed(z, outcome.point.dual)
        energy, usable = objective.energy, differentiable(outcome)
        kept = outcome if usable is None else without_diverged(objective, outcome, usable)
        leaves = energy.leaves(kept.point.value.detach())
        if not (z.requires_grad or dual.requires_grad or any(leaf.requires_grad for leaf in leaves)):
            return z, report
        packed = energy.pack()
        backward = _Backward(
            self,
            self.jacobian(objective, packed),
            _with_estimate(objective, kept, linearize_outcome(objective, kept)),
            # The digits of a factorization, or a splitting, need no second Newton step to be judged; nor is a network
            # evaluated so often for it.
            not (
                energy.is_field
                or (kept.complete and kept.without_steps and (energy.factored is not None or kept.splitter is not None))
            ),
            *_error_state(objective, kept),
            usable,
            report,
            energy.pull_back,
            len(leaves),
            kept.point.dual if objective.regularization else None,
        )
        value: Tensor = _AttachImplicit.apply(z, kept.point.value, dual, backward, *leaves, *packed.tensors)
        return value, report

    def record(
        self, objective: Objective, dual: Float[Tensor, "batch d"], solver: Solver
    ) -> tuple[Outcome, tuple[Tensor, ...]]:
        """z, y, D₊, the shift, and which samples have a derivative."""
        outcome = self.outcome(objective, dual, solver)
        own = objective.energy.own
        if own is not None:
            return outcome, own.record(objective, outcome, dual)
        check_method(self.method, objective.energy)
        usable = differentiable(outcome)
        kept = outcome if usable is None else without_diverged(objective, outcome, usable)
        system = linearize_outcome(objective, kept)
        every = torch.ones_like(outcome.exact) if usable is None else usable
        return outcome, (kept.point.value, kept.point.dual, system.slope, system.shift, every)

    def replay(
        self, objective: Objective, record: tuple[Tensor, ...], dual: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch d"]:
        """The critical point by its differentiable solve."""
        own = objective.energy.own
        if own is not None:
            return own.replay(objective, record, dual)
        *at, usable = record
        packed = objective.energy.pack()
        value = attach(self.jacobian(objective, packed), *at, *packed.tensors)
        return torch.where(usable[:, None], value, at[0])

    def jacobian(self, objective: Objective, packed: Packed) -> Jacobian:
        """The adjoint system as a function of the tensors that the energy is made of."""
        return Jacobian(
            packed.rebuild,
            packed.rows,
            objective.geometry,
            objective.regularization,
            self.method,
            self.tol,
            self.max_iter,
        )


def linearize_outcome(objective: Objective, outcome: Outcome) -> Linearization:
    """The adjoint system where a solver stopped: that of the free set of exact samples, scaled elsewhere."""
    point = outcome.point
    hessian = objective.energy.hessian(point.value)
    gamma, smooth, coupling = objective.regularization, objective.geometry.is_legendre, objective.geometry.coupling
    ends = None if outcome.splitter is None else outcome.splitter.ends
    if outcome.without_steps and not gamma:
        # An exact point: its next MM iterate is itself.
        return linearize_on_free_set(hessian, outcome.free, point.value.dtype, outcome.blocks, ends, coupling)
    if gamma and (outcome.without_steps or (outcome.complete and smooth)):
        # (within the tolerance, where there are no bounds, that goes for all)
        slope = objective.geometry.slope(point.dual)
        return Linearization(
            hessian, slope, torch.full_like(slope, gamma), damping=gamma, splitting=ends, coupling=coupling
        )
    scaled = linearize(hessian, objective.geometry, objective.regularization, point)
    on_free_set = linearize_on_free_set(hessian, outcome.free, point.value.dtype)
    exact = outcome.exact[:, None]
    return Linearization(
        hessian,
        torch.where(exact, on_free_set.slope, scaled.slope),
        torch.where(exact, on_free_set.shift, scaled.shift),
        coupling=coupling,
    )


def _with_estimate(objective: Objective, outcome: Outcome, system: Linearization) -> Linearization:
    """The same system, with what Broyden's method has learned of its inverse where that is worth it (see `Shine`)."""
    inverse, point = outcome.inverse, outcome.point
    if inverse is None or inverse.left.shape[1] < _WORTH_USING:
        return system
    scale = point.step / (1 + point.step * objective.regularization)
    left = objective.geometry.slope(point.dual)[:, None] * inverse.left
    return replace(system, estimate=UpdatedIdentity(scale, left, inverse.right))


def relative_residual(objective: Objective, point: Point) -> Tensor:
    """‖Π_C(z − ∇f − γy) − z‖₂ / ‖z‖₂, (B,): to the order of magnitude, the forward error of a well conditioned H."""
    z = point.value
    left = objective.total(point.gradient, point.dual)
    if not (objective.regularization and objective.geometry.is_legendre):
        left = objective.geometry.project(z - left) - z
    elif objective.geometry.pinned is not None:
        left = left.masked_fill(objective.geometry.pinned, 0.0)
    return ratio(norm(left), norm(z))


def without_diverged(objective: Objective, outcome: Outcome, usable: Bool[Tensor, " batch"]) -> Outcome:
    """The outcome with samples that have no derivative moved to the middle of C, where nothing overflows."""
    point = outcome.point
    middle = objective.evaluate(torch.full_like(point.dual, objective.geometry.middle), point.step)
    return replace(outcome, point=point.where(usable, replace(middle, objective=point.objective)))


def _error_state(objective: Objective, outcome: Outcome) -> tuple[Iterate | None, Tensor]:
    """The iterate, where more than the residual is needed to judge the gradient, and that residual relative to z."""
    point, gamma = outcome.point, objective.regularization
    all_exact = outcome.without_steps and not gamma
    if all_exact and outcome.complete and (objective.energy.factored is not None or outcome.splitter is not None):
        return None, point.residual
    if objective.geometry.coupling is not None:
        return None, relative_residual(objective, point)
    exact = torch.ones_like(outcome.exact) if all_exact else outcome.exact & (gamma == 0)
    tol = DEFAULT_TOL[point.value.dtype]
    return Iterate.of(objective, point, exact, tol), relative_residual(objective, point)


@dataclass(frozen=True)
class _Backward:
    """What the backward pass needs besides tensors."""

    adjoint: Implicit
    jacobian: Jacobian
    system: Linearization
    refinable: bool
    iterate: Iterate | None
    leftover: Tensor
    usable: Tensor | None
    report: AdjointReport
    pull_back: PullBack
    leaves: int
    """The number of tensors through which −∇f depends on x and θ; those that the energy is made of follow them."""
    dual: Tensor | None
    """y, where the Jacobian depends on it: for γ > 0."""


def _leaving(iterate: Iterate | None, system: Linearization) -> Bool[Tensor, "batch d"] | None:
    """The coordinates that are on their way to a bound, where v is 0 in the limit."""
    # At an exact point v is 0 on the bounds already; for γ > 0 no coordinate leaves for one.
    return None if iterate is None or iterate.regularization else system.shift > system.slope


class _AttachImplicit(torch.autograd.Function):
    """z ↦ z, whose backward turns dL/dz into v = dL/d(−∇f), and v into the gradients of what ∇f depends on.

    What v leaves of dL/dz goes to `value`, which depends on the tensors that C is made of: g − Hᵀv, which is γφ''v
    inside C, and on a bound all that moving it does.

    Those are the energy's leaves, by its own rule, or where the gradient is to be differentiated again, or comes with a
    whole batch of cotangents, the tensors that the energy is made of.
    """

    # (With `setup_context` PyTorch inspects the signature at every call, which takes longer than all of this.)
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, point: Tensor, initial: Tensor, backward: _Backward, *leaves: Tensor
    ) -> Tensor:
        ctx.adjoint, ctx.report, ctx.pull_back = backward.adjoint, backward.report, backward.pull_back
        ctx.refinable, ctx.jacobian, ctx.leaves = backward.refinable, backward.jacobian, backward.leaves
        # Saved, not just held, so that autograd counts, offloads and frees these tensors as its own.
        tensors, ctx.rebuild = backward.system.pack()
        iterate, ctx.rebuild_iterate = ((), None) if backward.iterate is None else backward.iterate.pack()
        ctx.count = len(iterate)
        ctx.count_system, ctx.place = len(tensors), point.data_ptr()
        made_of = leaves[backward.leaves :]
        z = value.clone()
        # (where all samples have a derivative, the point is z itself)
        apart = None if backward.usable is None else point
        moving = value if value.requires_grad and backward.dual is not None else None
        ctx.save_for_backward(
            apart, moving, backward.leftover, backward.usable, *iterate, *tensors, z, backward.dual, *made_of
        )
        return z

    @staticmethod
    @batched_again
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        point, moving, leftover, usable, *tensors = ctx.saved_tensors
        end = ctx.count + ctx.count_system
        (z, dual, *made_of), tensors = tensors[end:], tensors[:end]
        point = z.detach() if point is None else point
        dual = point if dual is None else dual
        system: Linearization = ctx.rebuild(*tensors[ctx.count :])
        iterate: Iterate | None = ctx.rebuild_iterate and ctx.rebuild_iterate(point, *tensors[: ctx.count])
        adjoint: Implicit = ctx.adjoint
        g = gradient if usable is None else torch.where(usable[:, None], gradient, 0.0)
        none = [None] * ctx.leaves
        follows = ctx.needs_input_grad[0]
        if is_batched(gradient):
            # (there is no report for so many)
            at = (point, dual, system.slope, system.shift, *made_of)
            left = left_over(ctx.jacobian, g, *at) if follows else None
            return left, None, None, None, *none, *pull_back(ctx.jacobian, g, *at)

        def solve(system: Linearization, g: Tensor) -> AdjointSolution:
            return solve_adjoint_system(system, g, adjoint.method, adjoint.tol, adjoint.max_iter)

        again = torch.is_grad_enabled()
        with torch.no_grad(), without_autocast(gradient.device.type):
            v, status, residual, iterations = solve(system, g)
            leaves = none if again else ctx.pull_back(v, point, ctx.needs_input_grad[4 : 4 + ctx.leaves])
            left = g - system.hessian.product(v, adjoint=True) if follows and not again else None
            spread = None if iterate is None or not iterate.regularization else iterate.spread(system.slope)
            error = quick_estimate(g, v, residual, leftover, _leaving(iterate, system), spread)
            if iterate is not None and ctx.refinable and is_worth_refining(error, system):
                error, grows = refined_estimate(iterate, system, g, v, residual, lambda *of: solve(*of)[0])
                status = torch.where(grows & (status == int(Status.CONVERGED)), int(Status.SINGULAR), status)
        ctx.report.fill(status, residual, iterations, error, usable)
        report_backward("implicit adjoint", ctx.report.status, adjoint.on_failure)
        initial = torch.zeros_like(gradient) if ctx.needs_input_grad[2] else None
        if not again:
            return left, None, initial, None, *leaves, *(None for _ in made_of)
        # (listed for tensors alone, of which the leaves are the fourth and following)
        refuse_unknown(ctx.next_functions[3 : 3 + ctx.leaves], made_of, ctx.place)
        z = z if usable is None else torch.where(usable[:, None], z, point)
        jacobian = replace(ctx.jacobian, known=v)
        with without_autocast(gradient.device.type):
            if moving is not None:
                # (φ'' depends on the bounds, which the derivative of this does not know of)
                z = attach(ctx.jacobian, z.detach(), dual, system.slope, system.shift, *made_of)
                z = z + never(moving - moving.detach())
            at = (z, dual, system.slope, system.shift, *made_of)
            left = left_over(jacobian, g, *at) if follows else None
            parts = pull_back(jacobian, g, *at)
        return left, None, initial, None, *none, *parts
