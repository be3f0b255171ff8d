"""Anderson acceleration in mirror coordinates."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.objective import Objective, Point, RowsOfTensors
from implicit_bregman.settings import check_count, check_positive
from implicit_bregman.solvers.base import Outcome, Solver
from implicit_bregman.solvers.loop import run


@dataclass(frozen=True)
class Anderson(Solver):
    """Anderson acceleration that mixes dual iterates with weights chosen on the primal residual.

    The next dual is Σ α_i y_i⁺, Σ α_i = 1, with α minimising ‖Σ α_i (ρ(y_i⁺) − ρ(y_i))‖² + λ‖α‖² over the last
    `memory` iterates. Weights from the dual residual would stall as soon as a coordinate sits on the boundary,
    where the dual residual never vanishes; mixing primal iterates could leave C. Proposals that raise the objective
    (without one: the residual) above the last few are replaced by MM steps.

    Args:
        memory: number of iterates mixed.
        ridge: λ, relative to the mean squared residual; keeps a singular Gram matrix harmless.
        tol: see `Solver`.
        max_iter: see `Solver`.
        exact: see `Solver`.
        trace: see `Solver`.
        on_failure: see `Solver`.
    """

    memory: int = 10
    ridge: float = 1e-12

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        super().__post_init__()
        check_count("memory", self.memory)
        check_positive("ridge", self.ridge)

    def solve(self, objective: Objective, dual: Float[Tensor, "batch d"]) -> Outcome:
        """Iterate from `dual` until each sample has stopped."""
        return run(self, objective, dual, _Mixing(self.memory, self.ridge))


@dataclass(frozen=True)
class _Past(RowsOfTensors):
    """Differences of successive residuals and MM iterates, newest last; rows not yet filled are 0.

    Attributes:
        residual: the last ρ(y⁺) − ρ(y), (b, d).
        image: the last y⁺, (b, d).
        residual_steps, image_steps: their differences, (b, m, d).
    """

    residual: Tensor
    image: Tensor
    residual_steps: Tensor
    image_steps: Tensor


class _Mixing:
    """Anderson's proposals, in the form that mixes differences (type II)."""

    def __init__(self, memory: int, ridge: float) -> None:
        self.memory = memory
        self.ridge = ridge

    def start(self, objective: Objective, point: Point) -> _Past:
        empty = point.value.new_zeros(len(point.value), self.memory, point.value.shape[-1])
        return _Past(torch.zeros_like(point.value), torch.zeros_like(point.value), empty, empty)

    def propose(
        self, objective: Objective, memory: _Past, point: Point, fresh: Bool[Tensor, " batch"]
    ) -> tuple[_Past, Tensor]:
        residual, noise = objective.primal_step(point)
        image = point.next_dual
        keep = ~fresh[:, None, None]
        past = replace(
            memory,
            residual=residual,
            image=image,
            residual_steps=keep * torch.cat([memory.residual_steps[:, 1:], (residual - memory.residual)[:, None]], 1),
            image_steps=keep * torch.cat([memory.image_steps[:, 1:], (image - memory.image)[:, None]], 1),
        )
        weights = least_squares_weights(past.residual_steps, residual, self.ridge, noise)
        mixed = image - (weights[:, None, :] @ past.image_steps).squeeze(1)
        return past, objective.geometry.project_dual(mixed)


def least_squares_weights(
    columns: Float[Tensor, "batch m d"], target: Float[Tensor, "batch d"], ridge: float, noise: Float[Tensor, " batch"]
) -> Float[Tensor, "batch m"]:
    """argmin_w ‖target − Σ w_i column_i‖² with columns scaled to unit length and a small relative ridge.

    A column that hardly exceeds its rounding error is damped by a ridge of its own, the squared share of the error:
    a weight that fits noise would amplify it. Columns that are 0 get the weight 0. The Gram matrix is factorized in
    float64 whatever the input: its condition number is the square of the columns'.
    """
    length = torch.linalg.vector_norm(columns, dim=-1)
    scale = torch.where(length > 0, length, 1.0)
    unit = (columns / scale[:, :, None]).double()
    gram = unit @ unit.mT
    empty = (length == 0).double()
    damping = (noise[:, None] / scale).double().square()
    gram = gram + torch.diag_embed(empty + ridge + torch.finfo(columns.dtype).eps + damping)
    right = unit @ target.double()[:, :, None]
    factor, info = torch.linalg.cholesky_ex(gram)
    weights = torch.cholesky_solve(right, factor).squeeze(-1)
    usable = (info == 0)[:, None] & torch.isfinite(weights)
    return torch.where(usable, weights, 0.0).to(columns.dtype) / scale
