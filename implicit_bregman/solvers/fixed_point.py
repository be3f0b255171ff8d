"""Anderson's steps on a field without a potential, with nothing around them: as far as they get by themselves.

The usual solver of deep-equilibrium layers (Walker and Ni, "Anderson acceleration for fixed-point iterations", 2011) on
y ↦ y − tE(y), E(y) = F(ρ(y)) + γy, with dual iterates mixed and the weights chosen on the primal residual, as in
`Anderson`. With the longest step, t = min(1, 1/γ), this is for γ ≥ 1 the fixed-point map y ↦ −F(ρ(y))/γ itself. There
is no safeguard: what fails is left to solvers that have one.

As long as plain steps come nearer, only every third is mixed, over the plain ones between: that takes about as many
evaluations and less time around them (Pratapa, Suryanarayana and Pask, "Anderson acceleration of the Jacobi iterative
method", 2016).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.objective import Objective, Point, RowsOfTensors
from implicit_bregman.per_sample import Running, all_rows, iterate
from implicit_bregman.solvers.base import Outcome
from implicit_bregman.status import Status

#: Iterates mixed.
_MEMORY = 6
#: The damping of the weights, relative to the squares of the residuals' changes, in rounding errors.
_RIDGE = 10
#: Steps from one mixing to the next, as long as each plain step brings the largest residual below this share of itself.
_EVERY, _NEARER = 3, 0.9
#: Where mixing has twice left more than this share of the residual's square, the next is so many steps away.
_POOR, _SELDOM = 0.65, 9
#: Steps within which a sample has to bring its residual to a half.
_PATIENCE = 12
#: The batch shrinks where more than this share of the samples has stopped.
_CROWD = 0.5


@dataclass(frozen=True)
class _Past(RowsOfTensors):
    """The last plain steps of some samples. Their tensors with m rows are written to in place, in a circle.

    Attributes:
        residual, image: ρ(y⁺) − ρ(y) and y⁺ of the last, (b, d).
        residual_steps, image_steps: the last differences of these, (b, m, d).
        count: steps made.
        every: steps from one mixing to the next.
        waited: those since the last.
        poor: mixings in a row that hardly helped.
    """

    residual: Tensor
    image: Tensor
    residual_steps: Tensor
    image_steps: Tensor
    count: int = 0
    every: int = _EVERY
    waited: int = 0
    poor: int = 0

    @classmethod
    def empty(cls, like: Float[Tensor, "b d"]) -> _Past:
        """Before the first."""
        steps = like.new_empty(2, len(like), _MEMORY, like.shape[-1])
        return cls(like, like, *steps)

    def with_step(self, residual: Float[Tensor, "b d"], image: Float[Tensor, "b d"]) -> _Past:
        """One step more, in place of the oldest."""
        if self.count:
            slot = (self.count - 1) % _MEMORY
            torch.sub(residual, self.residual, out=self.residual_steps[:, slot])
            torch.sub(image, self.image, out=self.image_steps[:, slot])
        count, waited = self.count + 1, self.waited + 1
        return replace(self, residual=residual, image=image, count=count, waited=waited)

    @property
    def is_due(self) -> bool:
        """Whether the next step is mixed."""
        wait = self.every if self.poor < 2 or self.every == 1 else _SELDOM
        return self.waited >= wait and self.count > 1


@dataclass(frozen=True)
class _Course(Running):
    """The samples that are under way.

    Attributes:
        objective: F, for them.
        dual, value, gradient: y, ρ(y) and F(ρ(y)), (b, d).
        total: E(y), (b, d).
        residual: how far y is from an equilibrium, (b,).
        best: the dual with the least residual, (b, d).
        least: that residual, (b,).
        mark: the residual to be halved, (b,).
        idle: steps since that was done, (b,).
        past: the steps before.
    """

    objective: Objective
    dual: Tensor
    value: Tensor
    gradient: Tensor
    total: Tensor
    residual: Tensor
    best: Tensor
    least: Tensor
    mark: Tensor
    idle: Tensor
    past: _Past

    def leaving(self, index: Int[Tensor, " stopped"]) -> _Course:
        needed = ("rows", "dual", "value", "gradient", "residual", "best")
        return replace(self, **{name: getattr(self, name)[index] for name in needed})


@dataclass(frozen=True)
class _End(RowsOfTensors):
    """Where samples have ended: at an iterate within the tolerance, or else at their best.

    Attributes:
        dual, value, gradient: y, ρ(y) and F(ρ(y)), (b, d); the latter two of another iterate where it is the best.
        converged: whether it is within the tolerance, (b,).
        evaluations: of F, (b,).
    """

    dual: Tensor
    value: Tensor
    gradient: Tensor
    converged: Tensor
    evaluations: Tensor


def anderson_steps(
    objective: Objective, dual: Float[Tensor, "batch d"], tol: float, max_steps: int
) -> tuple[Point, Float[Tensor, " batch"]]:
    """For each sample the first iterate within the tolerance, or else the best one, and the evaluations made, (B,).

    Args:
        objective: F, without a potential.
        dual: y⁰.
        tol: bound on the residual.
        max_steps: bound on the number of steps.
    """

    def going(course: _Course, count: int) -> Bool[Tensor, " b"]:
        goes = (course.residual > tol) & (course.idle < _PATIENCE)
        return goes if count < max_steps else torch.zeros_like(goes)

    def end(course: _Course, count: int) -> _End:
        converged = course.residual <= tol
        dual = torch.where(converged[:, None], course.dual, course.best)
        evaluations = torch.full_like(course.rows, count + 1)
        return _End(dual, course.value, course.gradient, converged, evaluations)

    ends = iterate(_start(objective, dual), _stepped, going, end, crowd=_CROWD)
    rows = (~ends.converged).nonzero().squeeze(-1)
    if len(rows):
        part, again = objective.select(rows), ends.select(rows)
        value = part.geometry.activation(again.dual)
        again = replace(again, value=value, gradient=part.energy.evaluate(value).gradient)
        ends = ends.replace_rows(rows, replace(again, evaluations=again.evaluations + 1))
    step = objective.initial_step(ends.dual)
    return objective.point(ends.dual, ends.value, ends.gradient, None, step), ends.evaluations


def path_outcome(objective: Objective, point: Point, evaluations: Tensor, tol: float) -> Outcome:
    """The outcome of such steps: CONVERGED or DEGENERATE within the tolerance, else MAX_ITER."""
    solved = point.residual <= tol
    status = torch.where(solved & objective.degenerate(point, 10 * tol), int(Status.DEGENERATE), int(Status.CONVERGED))
    status = torch.where(solved, status, int(Status.MAX_ITER))
    every, none = torch.ones_like(point.dual, dtype=torch.bool), torch.zeros_like(solved)
    return Outcome(point, status, evaluations - 1, evaluations, none, every, None, complete=bool(solved.all()))


def _start(objective: Objective, dual: Tensor) -> _Course:
    value = objective.geometry.activation(dual)
    gradient, total, residual = _evaluated(objective, dual, value)
    idle = torch.zeros_like(residual, dtype=torch.int64)
    rows, past = all_rows(dual), _Past.empty(dual)
    return _Course(rows, objective, dual, value, gradient, total, residual, dual, residual, residual, idle, past)


def _evaluated(objective: Objective, dual: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F(z), E(y) and the residual at z = `value`."""
    gradient = objective.energy.evaluate(value).gradient
    total = objective.total(gradient, dual)
    return gradient, total, objective.residual(value, total, objective.scale(objective.energy.terms(gradient)))


def _stepped(course: _Course, _: int) -> _Course:
    """The next iterates."""
    objective = course.objective
    geometry, gamma = objective.geometry, objective.regularization
    image = torch.sub(course.dual, course.total, alpha=min(1.0, 1 / gamma) if gamma else 1.0)
    dual = geometry.project_dual(image)
    value = geometry.activation(dual)
    past = course.past.with_step(value - course.value, image)
    is_plain = not past.is_due
    if not is_plain:
        mixed, left = _mixed(past)
        dual = geometry.project_dual(mixed)
        value = geometry.activation(dual)
        past = replace(past, waited=0, poor=past.poor + 1 if bool(left.mean() > _POOR) else 0)
    gradient, total, residual = _evaluated(objective, dual, value)
    better, halved = residual < course.least, residual <= 0.5 * course.mark
    nearer = residual.amax() <= _NEARER * course.residual.amax()
    all_better, is_nearer = torch.stack((better.all(), nearer)).tolist()
    # (of the first step the residual says little: that of the start may be any)
    if is_plain and past.count > 1 and not is_nearer:
        past = replace(past, every=1)
    return _Course(
        rows=course.rows,
        objective=objective,
        dual=dual,
        value=value,
        gradient=gradient,
        total=total,
        residual=residual,
        best=dual if all_better else torch.where(better[:, None], dual, course.best),
        least=torch.where(better, residual, course.least),
        mark=torch.where(halved, residual, course.mark),
        idle=torch.where(halved, 0, course.idle + 1),
        past=past,
    )


def _mixed(past: _Past) -> tuple[Float[Tensor, "batch d"], Float[Tensor, " batch"]]:
    """The next dual, y⁺ − Σ w_i Δy⁺_i with ‖r − Σ w_i Δr_i‖ least, and the share of ‖r‖² that this is."""
    filled = min(past.count - 1, _MEMORY)
    changes, moves = past.residual_steps[:, :filled], past.image_steps[:, :filled]
    gram = (changes @ changes.mT).double()
    size = gram.diagonal(dim1=1, dim2=2)
    # (a residual that did not change gets the weight 0)
    size.add_(torch.add(size == 0, size, alpha=_RIDGE * torch.finfo(changes.dtype).eps))
    factor, failed = torch.linalg.cholesky_ex(gram)
    # (a row times a matrix takes a tenth of the time of a matrix times a column)
    right = (past.residual[:, None] @ changes.mT).to(factor.dtype)
    exact = torch.cholesky_solve(right.mT, factor).mT
    left = 1 - (right * exact).sum((1, 2)) / torch.linalg.vecdot(past.residual, past.residual)
    weights = exact.to(changes.dtype)
    # (what is not finite, of a residual that underflows or overflows, ends here)
    weights = torch.where((failed == 0)[:, None, None], weights.nan_to_num(0.0, 0.0, 0.0), 0.0)
    return torch.baddbmm(past.image[:, None], weights, moves, alpha=-1).squeeze(1), left
