"""Restarted GMRES for a batch of general systems, each with its own stop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.linalg.cg import LinearSolution, normalized

#: A cycle ends where its own residual, which the true one may exceed by rounding, is this part of what is asked for.
_ENOUGH = 0.9


def gmres(
    operator: Callable[[Tensor], Tensor],
    rhs: Float[Tensor, "batch d"],
    preconditioner: Callable[[Tensor], Tensor],
    tol: float | Float[Tensor, " batch"],
    max_iter: int,
    restart: int = 50,
) -> LinearSolution:
    """Right-preconditioned GMRES(restart) on A x = b for each row of `rhs`, starting from 0.

    Args:
        operator: v ↦ A v for a whole batch.
        rhs: b, (B, d).
        preconditioner: r ↦ M⁻¹ r.
        tol: bound on ‖b − Ax‖₂ / ‖b‖₂, one for all samples or one for each.
        max_iter: bound on the number of products, restarts included.
        restart: number of basis vectors kept, each (B, d).
    """
    rhs, unit, usable = normalized(rhs)
    norm_b = torch.linalg.vector_norm(rhs, dim=-1)
    safe_b = torch.where(norm_b > 0, norm_b, 1.0)
    target = tol * norm_b
    x = torch.zeros_like(rhs)
    r, norm_r = rhs, norm_b
    iterations = torch.zeros_like(norm_b, dtype=torch.int64)
    active = norm_r > target
    used = 0
    while used < max_iter and bool(active.any()):
        steps = min(restart, max_iter - used, rhs.shape[-1])
        update, taken = _cycle(operator, preconditioner, r, norm_r, torch.where(active, target, torch.inf), steps)
        x = torch.where(active[:, None], x + update, x)
        iterations = iterations + torch.where(active, taken, 0)
        used += taken
        r = rhs - operator(x)
        before, norm_r = norm_r, torch.linalg.vector_norm(r, dim=-1)
        # A cycle that gains nothing will gain nothing again: stop such a sample instead of turning in a circle.
        active = active & (norm_r > target) & (norm_r < 0.999 * before)
    return LinearSolution(unit * x, norm_r / safe_b, iterations, usable & (norm_r <= target), torch.ones_like(active))


def _cycle(
    operator: Callable[[Tensor], Tensor],
    preconditioner: Callable[[Tensor], Tensor],
    r: Tensor,
    norm_r: Tensor,
    target: Tensor,
    steps: int,
) -> tuple[Tensor, int]:
    """One Arnoldi cycle of at most `steps` products, fewer where they are enough, and how many were made.

    The least-squares problem is solved once at its end. Before, the norm of its residual is known from the vector u
    with uᵀH = 0 and u₁ = 1, which grows by one entry with each column: it is ‖r‖/‖u‖.
    """
    basis = r.new_empty(len(r), steps + 1, r.shape[-1])
    basis[:, 0] = _divided(r, norm_r, norm_r > 0)
    hessenberg, null = r.new_zeros(len(r), steps + 1, steps), r.new_zeros(len(r), steps + 1)
    null[:, 0] = 1.0
    taken = steps
    for j in range(steps):
        known = basis[:, : j + 1]
        w = operator(preconditioner(basis[:, j]))[:, None]
        projection = torch.zeros_like(hessenberg[:, None, : j + 1, j])
        for _ in range(2):  # a second pass of Gram-Schmidt keeps the basis orthogonal in single precision
            part = w @ known.mT
            w, projection = torch.baddbmm(w, part, known, alpha=-1), projection + part
        w, norm_w = w.squeeze(1), _norm(w.squeeze(1))
        hessenberg[:, : j + 1, j], hessenberg[:, j + 1, j] = projection.squeeze(1), norm_w
        # At a breakdown the space is invariant; a zero vector then adds nothing.
        column = hessenberg[:, : j + 2, j].abs().amax(-1)
        basis[:, j + 1] = _divided(w, norm_w, norm_w > torch.finfo(r.dtype).eps * column)
        null[:, j + 1] = -torch.linalg.vecdot(null[:, : j + 1], hessenberg[:, : j + 1, j]) / norm_w
        left = norm_r / torch.linalg.vector_norm(null[:, : j + 2], dim=-1)
        # (not a number: a breakdown, or a sample whose products are not finite)
        if not bool((left > _ENOUGH * target).any()):
            taken = j + 1
            break
    hessenberg = hessenberg[:, : taken + 1, :taken]
    combined = (_least_squares(hessenberg, norm_r)[:, None, :] @ basis[:, :taken]).squeeze(1)
    return preconditioner(combined), taken


def _norm(rows: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
    """Their lengths, whose squares may leave the range of the precision."""
    if rows.dtype == torch.float32:
        return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64).to(rows.dtype)
    part, unit, _ = normalized(rows)
    return unit.squeeze(-1) * torch.linalg.vector_norm(part, dim=-1)


def _divided(rows: Tensor, norm: Tensor, usable: Tensor) -> Tensor:
    """Rows of length 1, or 0 where the norm is not usable."""
    return torch.where(usable[:, None], rows / torch.where(usable, norm, 1.0)[:, None], 0.0)


def _least_squares(hessenberg: Float[Tensor, "batch m n"], norm: Float[Tensor, " batch"]) -> Float[Tensor, "batch n"]:
    """The shortest c that minimises ‖norm·e₁ − Hc‖; 0 for a sample whose H is not finite, which would fail for all."""
    size = hessenberg.abs().amax((-2, -1))
    usable = torch.isfinite(size) & (size > 0)
    matrix = torch.where(usable[:, None, None], hessenberg / torch.where(usable, size, 1.0)[:, None, None], 0.0)
    first = _by_qr(matrix) if bool((matrix.diagonal(-1, 1, 2) != 0).all()) else None
    if first is None or not bool(torch.isfinite(first).all()):
        # The pseudo-inverse copes with the zero columns that follow a breakdown.
        first = torch.linalg.pinv(matrix)[:, :, 0]
    return torch.where(usable, norm / size, 0.0)[:, None] * first


def _by_qr(matrix: Float[Tensor, "batch m n"]) -> Float[Tensor, "batch n"]:
    """The first column of the pseudo-inverse, where the rank is n."""
    q, r = torch.linalg.qr(matrix)
    return torch.linalg.solve_triangular(r, q[:, :1].mT, upper=True).squeeze(-1)
