"""Has MM entered the basin it will end in? Only then may a faster solver take over where there are several."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.linearization import linearize
from implicit_bregman.objective import Objective, Point

#: How much the log-curvature of a free coordinate may change over the Newton step.
_CURVATURE_CHANGE = 0.5
#: The Newton step's largest entry, relative to the scale of z.
_STEP_SIZE = 0.1


def can_test_basin(objective: Objective) -> bool:
    """Whether the second-order test below exists: it needs an objective and a shared Hessian."""
    return objective.energy.symmetric and objective.energy.shared_hessian is not None


def newton_radius(
    objective: Objective, point: Point
) -> tuple[Bool[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Whether each iterate lies in a strictly convex neighbourhood of a minimum, and how far that minimum is.

    An iterate passes if the Hessian in mirror coordinates is positive definite there, the Newton step is short, and
    the curvature of φ hardly changes over it. MM then contracts towards the minimum that Newton's step points to.

    Returns:
        passed, (B,), and the length ‖Δz‖₂ of the Newton step, (B,).
    """
    model = linearize(
        objective.energy.hessian(point.value),
        objective.geometry,
        objective.regularization,
        point.dual,
        point.next_dual,
        point.step,
    )
    force = -(point.gradient + objective.regularization * point.dual)
    root = model.slope.sqrt()
    length = torch.zeros_like(point.residual)
    passed = torch.zeros_like(point.residual, dtype=torch.bool)
    for rows in model.chunks():
        factor, info = torch.linalg.cholesky_ex(model.dense(True, rows, point.value.dtype))
        p = torch.cholesky_solve((root[rows] * force[rows])[:, :, None], factor).squeeze(-1)
        move = root[rows] * p
        steps = torch.where(root[rows] > 0, p / torch.where(root[rows] > 0, root[rows], 1.0), 0.0)
        there = objective.geometry.log_curvature(point.dual[rows] + steps)
        change = (there - objective.geometry.log_curvature(point.dual[rows])).abs()
        # Coordinates on their way to a bound move by one MM step in the dual: their curvature has to change.
        free = model.shift[rows] * point.step[rows] < 0.1
        short = move.abs().amax(-1) <= _STEP_SIZE * (1 + point.value[rows].abs().amax(-1))
        steady = torch.where(free, change, 0.0).amax(-1) <= _CURVATURE_CHANGE
        passed[rows] = (info == 0) & short & steady
        length[rows] = torch.linalg.vector_norm(move, dim=-1)
    return passed & torch.isfinite(length), length


def next_test(iteration: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """When to test again: at intervals that grow with the iteration, so that tests cost a bounded share."""
    return iteration + (iteration // 2).clamp_min(8)
