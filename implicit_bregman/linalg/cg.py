"""Conjugate gradients for a batch of symmetric positive definite systems, each with its own stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LinearSolution:
    """Result of a batched linear solve.

    Attributes:
        value: the solutions, (B, d).
        residual: ‖b − Ax‖₂ / ‖b‖₂ as the method saw it, (B,); 0 where b = 0.
        iterations: products with A that each sample took, (B,).
        converged: (B,). False, with the solution 0, where b is not finite.
        positive: False where a direction of non-positive curvature was met, (B,). Such a sample has stopped.
    """

    value: Tensor
    residual: Float[Tensor, " batch"]
    iterations: Int[Tensor, " batch"]
    converged: Bool[Tensor, " batch"]
    positive: Bool[Tensor, " batch"]


def conjugate_gradient(
    operator: Callable[[Tensor], Tensor],
    rhs: Float[Tensor, "batch d"],
    preconditioner: Callable[[Tensor], Tensor],
    tol: float | Float[Tensor, " batch"],
    max_iter: int,
) -> LinearSolution:
    """Preconditioned CG on A x = b for each row of `rhs`, starting from 0.

    A sample that has converged, or has met non-positive curvature, is left alone: its later updates are zero.

    Args:
        operator: v ↦ A v for a whole batch.
        rhs: b, (B, d).
        preconditioner: r ↦ M⁻¹ r, symmetric positive definite.
        tol: bound on ‖b − Ax‖₂ / ‖b‖₂, one for all samples or one for each.
        max_iter: bound on the number of products.
    """
    r, unit, usable = normalized(rhs)
    norm_b = torch.linalg.vector_norm(r, dim=-1)
    x = torch.zeros_like(rhs)
    target = tol * norm_b
    # A residual that explodes is the mark of a singular system: leave it before it overflows.
    limit = norm_b * torch.finfo(rhs.dtype).eps ** -0.5
    p = preconditioner(r)
    rz = torch.linalg.vecdot(r, p)
    norm_r = norm_b
    iterations = torch.zeros_like(norm_b, dtype=torch.int64)
    active = norm_r > target
    for _ in range(max_iter):
        if not bool(active.any()):
            break
        product = operator(p)
        curvature = torch.linalg.vecdot(p, product)
        iterations += active
        active = active & (curvature > 0)
        # A quotient of a sample that has stopped may be 0/0; it is not used.
        alpha = torch.where(active, rz / curvature, 0.0)[:, None]
        x.addcmul_(alpha, p)
        r = torch.addcmul(r, alpha, product, value=-1)
        z = preconditioner(r)
        rz_next = torch.linalg.vecdot(r, z)
        beta = torch.where(active, rz_next / rz, 0.0)[:, None]
        p = torch.addcmul(z, beta, p)
        rz = rz_next
        norm_r = torch.linalg.vector_norm(r, dim=-1)
        active = active & (norm_r > target) & (norm_r <= limit)
    converged = norm_r <= target
    # Who has stopped without having converged met a curvature that is not positive, or a singular system.
    positive = active | converged
    relative = norm_r / torch.where(norm_b > 0, norm_b, 1.0)
    return LinearSolution(unit * x, relative, iterations, usable & converged, positive)


def normalized(
    rhs: Float[Tensor, "batch d"],
) -> tuple[Float[Tensor, "batch d"], Float[Tensor, "batch 1"], Bool[Tensor, " batch"]]:
    """Rows divided by their largest entry, so that no square of theirs leaves the range of the precision.

    Returns:
        the rows, 0 where one is not finite; what they were divided by, 1 for such rows and for zeros; which are finite.
    """
    size = torch.linalg.vector_norm(rhs, torch.inf, dim=-1, keepdim=True)
    finite = torch.isfinite(size)
    unit = torch.where(finite & (size > 0), size, 1.0)
    return torch.where(finite, rhs / unit, 0.0), unit, finite.squeeze(-1)
