"""Anderson's steps on a field without a potential, with nothing around them: as far as they get by themselves.

The usual solver of deep-equilibrium layers (Walker and Ni, "Anderson acceleration for fixed-point iterations", 2011) on
y ↦ y − tE(y), E(y) = F(ρ(y)) + γy, with dual iterates mixed and the weights chosen on the primal residual, as in
`Anderson`. With the longest step, t = min(1, 1/γ), this is for γ ≥ 1 the fixed-point map y ↦ −F(ρ(y))/γ itself. There
is no safeguard: what fails is left to solvers that have one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.objective import Objective, Point, RowsOfTensors
from implicit_bregman.solvers.base import Outcome
from implicit_bregman.status import Status

#: Iterates mixed.
_MEMORY = 6
#: The damping of the weights, relative to the squares of the residuals' changes, in rounding errors.
_RIDGE = 10
#: Steps within which a sample has to bring its residual to a half.
_PATIENCE = 12
#: The batch shrinks where more than this share of the samples has stopped.
_CROWD = 0.5


@dataclass(frozen=True)
class _Course(RowsOfTensors):
    """The samples that are under way; rows of differences that are not yet filled are 0.

    Attributes:
        index: their rows in the whole batch, (b,).
        residual, image: the last ρ(y⁺) − ρ(y) and y⁺, (b, d).
        residual_steps, image_steps: the last differences of these, (b, m, d).
        gram: the inner products of the former in float64, (b, m, m).
        best: the dual with the least residual, (b, d).
        least: that residual, (b,).
        mark: the residual to be halved, (b,).
        idle: steps since that was done, (b,).
        stopped: the samples that have converged, or failed, (b,).
    """

    index: Tensor
    residual: Tensor
    image: Tensor
    residual_steps: Tensor
    image_steps: Tensor
    gram: Tensor
    best: Tensor
    least: Tensor
    mark: Tensor
    idle: Tensor
    stopped: Tensor


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
    found = at = objective.evaluate(dual, objective.initial_step(dual))
    course, part = _start(objective, at), objective
    evaluations = torch.ones_like(course.index)
    best = dual
    for count in range(max_steps + 1):
        converged = at.residual <= tol
        ends = converged & ~course.stopped
        if bool(ends.any()):
            found = found.replace_rows(course.index[ends], at.select(ends.nonzero().squeeze(-1)))
        failed = (course.idle >= _PATIENCE) | ~torch.isfinite(at.residual)
        course = replace(course, stopped=course.stopped | converged | failed)
        if int(course.stopped.sum()) > _CROWD * len(course.index):
            best = best.index_copy(0, course.index, course.best)
            kept = (~course.stopped).nonzero().squeeze(-1)
            course, part, at = course.select(kept), part.select(kept), at.select(kept)
        if len(course.index) == 0 or count == max_steps:
            break
        course = _advanced(part, course, at, count)
        evaluations = evaluations.index_add(0, course.index, (~course.stopped).to(torch.int64))
        at = part.evaluate(part.geometry.project_dual(_mixed(course)), at.step)
        course = _judged(course, at)
    best = best.index_copy(0, course.index, course.best)
    rows = (~(found.residual <= tol)).nonzero().squeeze(-1)
    if len(rows) == 0:
        return found, evaluations
    part = objective.select(rows)
    left = part.evaluate(best[rows], part.initial_step(best[rows]))
    return found.replace_rows(rows, left), evaluations.index_add(0, rows, torch.ones_like(rows))


def path_outcome(objective: Objective, point: Point, evaluations: Tensor, tol: float) -> Outcome:
    """The outcome of such steps: CONVERGED or DEGENERATE within the tolerance, else MAX_ITER."""
    solved = point.residual <= tol
    status = torch.where(solved & objective.degenerate(point, 10 * tol), int(Status.DEGENERATE), int(Status.CONVERGED))
    status = torch.where(solved, status, int(Status.MAX_ITER))
    every, none = torch.ones_like(point.dual, dtype=torch.bool), torch.zeros_like(solved)
    return Outcome(point, status, evaluations - 1, evaluations, none, every, None, complete=bool(solved.all()))


def _start(objective: Objective, at: Point) -> _Course:
    zero, none = torch.zeros_like(at.dual), torch.zeros_like(at.residual, dtype=torch.int64)
    empty = at.dual.new_zeros(len(none), _MEMORY, at.dual.shape[-1])
    return _Course(
        index=torch.arange(len(none), device=none.device),
        residual=zero,
        image=zero,
        residual_steps=empty,
        image_steps=empty.clone(),
        gram=empty.new_zeros(len(none), _MEMORY, _MEMORY, dtype=torch.float64),
        best=at.dual,
        least=at.residual,
        mark=at.residual,
        idle=none,
        stopped=none > 0,
    )


def _advanced(objective: Objective, course: _Course, at: Point, count: int) -> _Course:
    """The course with the step from an iterate; `count` of them have been made before."""
    gamma = objective.regularization
    length = min(1.0, 1 / gamma) if gamma else 1.0
    image = torch.add(at.dual, torch.add(at.gradient, at.dual, alpha=gamma) if gamma else at.gradient, alpha=-length)
    residual = objective.geometry.activation(objective.geometry.project_dual(image)) - at.value
    if count:
        slot = (count - 1) % _MEMORY
        course.residual_steps[:, slot] = residual - course.residual
        course.image_steps[:, slot] = image - course.image
        products = (course.residual_steps @ course.residual_steps[:, slot, :, None]).squeeze(-1).double()
        course.gram[:, slot], course.gram[:, :, slot] = products, products
    return replace(course, residual=residual, image=image)


def _mixed(course: _Course) -> Float[Tensor, "batch d"]:
    """The next dual: y⁺ − Σ w_i Δy⁺_i with ‖r − Σ w_i Δr_i‖ least."""
    size = course.gram.diagonal(dim1=1, dim2=2)
    # (rows that are not filled get the weight 0)
    ridge = torch.add(size == 0, size, alpha=_RIDGE * torch.finfo(course.image.dtype).eps)
    factor, failed = torch.linalg.cholesky_ex(course.gram + torch.diag_embed(ridge))
    right = (course.residual_steps @ course.residual[:, :, None]).to(factor.dtype)
    weights = torch.cholesky_solve(right, factor).mT.to(course.image.dtype)
    # (what is not finite, of a residual that underflows or overflows, ends here)
    weights = torch.where((failed == 0)[:, None, None], weights.nan_to_num(0.0, 0.0, 0.0), 0.0)
    return torch.baddbmm(course.image[:, None], weights, course.image_steps, alpha=-1).squeeze(1)


def _judged(course: _Course, at: Point) -> _Course:
    """The course after a new iterate."""
    better: Bool[Tensor, " b"] = at.residual < course.least
    halved = at.residual <= 0.5 * course.mark
    return replace(
        course,
        best=torch.where(better[:, None], at.dual, course.best),
        least=torch.where(better, at.residual, course.least),
        mark=torch.where(halved, at.residual, course.mark),
        idle=torch.where(halved, 0, course.idle + 1),
    )
