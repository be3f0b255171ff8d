"""Restarted GMRES for a batch of general systems, each with its own stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.linalg.cg import LinearSolution, normalized

#: A new basis vector is made orthogonal a second time where the first left less than this share of it.
_CANCELLED = 0.1
#: What is left over is known without a product where so many times its rounding errors are within the tolerance.
_SURE = 30.0
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
        cycle = _cycle(operator, preconditioner, r, norm_r, torch.where(active, target, torch.inf), steps)
        x = torch.where(active[:, None], x + cycle.update, x)
        iterations = iterations + torch.where(active, cycle.taken, 0)
        used += cycle.taken
        r = rhs - operator(x) if cycle.residual is None else cycle.residual
        before, norm_r = norm_r, torch.linalg.vector_norm(r, dim=-1)
        # A cycle that gains nothing will gain nothing again: stop such a sample instead of turning in a circle.
        active = active & (norm_r > target) & (norm_r < 0.999 * before)
    return LinearSolution(unit * x, norm_r / safe_b, iterations, usable & (norm_r <= target), torch.ones_like(active))


class _Cycle(NamedTuple):
    """What a cycle found: the change of x, the products it took, and what is left of r; None: to be computed."""

    update: Tensor
    taken: int
    residual: Tensor | None


def _cycle(
    operator: Callable[[Tensor], Tensor],
    preconditioner: Callable[[Tensor], Tensor],
    r: Tensor,
    norm_r: Tensor,
    target: Tensor,
    steps: int,
) -> _Cycle:
    """One Arnoldi cycle of at most `steps` products, fewer where they are enough.

    The least-squares problem is solved once at its end. Before, the norm of its residual is known from the vector u
    with uᵀH = 0 and u₁ = 1, which grows by one entry with each column: it is ‖r‖/‖u‖.
    """
    eps = torch.finfo(r.dtype).eps
    basis = r.new_empty(len(r), steps + 1, r.shape[-1])
    _put_divided(basis[:, 0], r, norm_r, norm_r > 0)
    hessenberg, null = r.new_zeros(len(r), steps + 1, steps), r.new_zeros(len(r), steps + 1)
    null[:, 0] = 1.0
    length = torch.ones_like(norm_r)
    taken = steps
    for j in range(steps):
        w, norm_w, projection, size = _orthogonal(operator(preconditioner(basis[:, j])), basis[:, : j + 1])
        hessenberg[:, : j + 1, j], hessenberg[:, j + 1, j] = projection, norm_w
        # At a breakdown the space is invariant; a zero vector then adds nothing.
        _put_divided(basis[:, j + 1], w, norm_w, norm_w > eps * size)
        entry = torch.linalg.vecdot(null[:, : j + 1], projection) / norm_w
        null[:, j + 1] = -entry
        length = torch.hypot(length, entry)
        # (not a number: a breakdown, or a sample whose products are not finite)
        if not bool((length * target < norm_r / _ENOUGH).any()):
            taken = j + 1
            break
    hessenberg = hessenberg[:, : taken + 1, :taken]
    weights, usable = _least_squares(hessenberg, norm_r)
    combined = (weights[:, None, :] @ basis[:, :taken]).squeeze(1)
    if not bool(usable.all()):
        # (0 times what is not finite)
        combined = torch.where(usable[:, None], combined, 0.0)
    left = _left_over(hessenberg, weights, basis[:, : taken + 1], norm_r, target)
    return _Cycle(preconditioner(combined), taken, left)


def _left_over(
    hessenberg: Tensor, weights: Tensor, basis: Tensor, norm_r: Tensor, target: Tensor
) -> Float[Tensor, "batch d"] | None:
    """r − A M⁻¹ V c = V(‖r‖e₁ − Hc), to rounding however orthogonal V is; None where that is not enough."""
    eps = torch.finfo(basis.dtype).eps
    rounding = eps * hessenberg.abs().amax((-2, -1)) * torch.linalg.vector_norm(weights, dim=-1)
    if not bool((_SURE * rounding <= target).all()):
        return None
    left = -(hessenberg @ weights[:, :, None]).squeeze(-1)
    left[:, 0] += norm_r
    return (left[:, None] @ basis).squeeze(1)


def _orthogonal(w: Tensor, basis: Float[Tensor, "batch m d"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What of w is orthogonal to the basis, its length, the rest in the basis, (B, m), and the largest of it."""
    row, projection = w[:, None], torch.zeros_like(basis[:, None, :, 0])
    for _ in range(2):
        part = row @ basis.mT
        row, projection = torch.baddbmm(row, part, basis, alpha=-1), projection + part
        norm, size = _norm(row.squeeze(1)), projection.abs().amax((1, 2))
        # Where much of it has cancelled the rest has lost digits, and the basis its orthogonality. (False for a NaN,
        # which no second pass would mend.)
        if not bool((norm < _CANCELLED * size).any()):
            break
    return row.squeeze(1), norm, projection.squeeze(1), size


def _norm(rows: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
    """Their lengths, whose squares may leave the range of the precision."""
    if rows.dtype == torch.float32:
        return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64).to(rows.dtype)
    part, unit, _ = normalized(rows)
    return unit.squeeze(-1) * torch.linalg.vector_norm(part, dim=-1)


def _put_divided(place: Tensor, rows: Tensor, norm: Tensor, usable: Tensor) -> None:
    """Rows of length 1, or 0 where the norm is not usable; what is not finite stays so."""
    torch.div(rows, torch.where(usable, norm, torch.inf)[:, None], out=place)


def _least_squares(
    hessenberg: Float[Tensor, "batch m n"], norm: Float[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch n"], Bool[Tensor, " batch"]]:
    """The shortest c that minimises ‖norm·e₁ − Hc‖, and the samples that have one: 0 where H is not finite."""
    size = hessenberg.abs().amax((-2, -1))
    usable = torch.isfinite(size)
    known = usable & (size > 0)
    matrix = torch.where(known[:, None, None], hessenberg / torch.where(known, size, 1.0)[:, None, None], 0.0)
    first = _by_factor(matrix) if bool((matrix.diagonal(-1, 1, 2) != 0).all()) else None
    if first is None or not bool(torch.isfinite(first).all()):
        # The pseudo-inverse copes with the zero columns that follow a breakdown.
        first = torch.linalg.pinv(matrix)[:, :, 0]
    return torch.where(known, norm / size, 0.0)[:, None] * first, usable


def _by_factor(matrix: Float[Tensor, "batch m n"]) -> Float[Tensor, "batch n"]:
    """The first column of the pseudo-inverse, where the rank is n; not finite where that is not certain."""
    if matrix.dtype == torch.float32:
        # In float64 the square of the condition number does no harm to what is known in float32.
        wide = matrix.double()
        factor, failed = torch.linalg.cholesky_ex(wide.mT @ wide)
        found = torch.cholesky_solve(wide[:, :1].mT, factor).squeeze(-1)
        return torch.where(failed[:, None] == 0, found, torch.nan).to(matrix.dtype)
    q, r = torch.linalg.qr(matrix)
    return torch.linalg.solve_triangular(r, q[:, :1].mT, upper=True).squeeze(-1)
