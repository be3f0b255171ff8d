"""Richardson's steps on a batch of general systems, with the residual minimised over all of them every few steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.linalg.cg import LinearSolution, normalized
from implicit_bregman.linalg.gmres import gmres

#: Steps that are remembered.
_MEMORY = 12
#: Steps from one minimisation to the next, as long as each brings the largest residual below this share of itself.
_EVERY, _NEARER = 3, 0.9
#: Where minimising has twice left more than this share of the largest residual, the next is so many steps away.
_POOR, _SELDOM = 0.7, 9
#: Within one round of so many steps the largest residual has to fall to a half, or else GMRES takes over.
_ROUND = 6
#: The damping of the weights, relative to the squares of the products, in rounding errors.
_RIDGE = 10
#: Tolerances below so many rounding errors of the largest residual on the way are judged by the residual itself, not by
#: what was subtracted from it.
_SURE = 32.0


def gcr(
    operator: Callable[[Tensor], Tensor],
    rhs: Float[Tensor, "batch d"],
    preconditioner: Callable[[Tensor], Tensor],
    tol: float | Float[Tensor, " batch"],
    max_iter: int,
) -> LinearSolution:
    """The same as `gmres`, in less time where M⁻¹A is not far from 1; what does not converge soon is left to that.

    With p = M⁻¹r, r is replaced by r − Ap; and every few steps by the least r − Σ w_i Ap_i over all p_i so far. These
    span the Krylov space of GMRES, in as many products, but are not made orthogonal: the weights are those of the
    generalized conjugate residuals (Eisenstat, Elman and Schultz, 1983), solved for by their Gram matrix.

    Args:
        operator: v ↦ A v for a whole batch.
        rhs: b, (B, d).
        preconditioner: r ↦ M⁻¹ r.
        tol: bound on ‖b − Ax‖₂ / ‖b‖₂, one for all samples or one for each.
        max_iter: bound on the number of products.
    """
    rhs, unit, usable = normalized(rhs)
    steps = _Steps(operator, preconditioner, rhs, tol)
    worst = before = steps.worst()
    waited, every, rate = 0, _EVERY, 1.0
    least, mark, poor = worst, 0, 0
    while worst > 1 and steps.count < max_iter:
        steps.make()
        waited, previous, worst = waited + 1, worst, steps.worst()
        if worst > _NEARER * previous:
            every = 1
        # (also where it is likely to be the last)
        due = every if poor < 2 or every == 1 else _SELDOM
        if worst > 1 and (waited >= due or before * rate**waited <= 1):
            steps.minimise()
            without, worst = worst, steps.worst()
            poor = poor + 1 if worst > _POOR * without else 0
            before, rate, waited = worst, (worst / before) ** (1 / waited), 0
        if worst <= 0.5 * least:
            least, mark = worst, steps.count
        elif steps.count - mark >= _ROUND:
            break
    if not steps.is_sure():
        steps.recompute()
    found = _finished(steps, max_iter)
    return replace(found, value=unit * found.value, converged=usable & found.converged)


def _finished(steps: _Steps, max_iter: int) -> LinearSolution:
    """What the steps have found, with the rest left to GMRES."""
    size = torch.linalg.vector_norm(steps.left, dim=-1)
    converged = size <= steps.tol * steps.norm
    safe = torch.where(steps.norm > 0, steps.norm, 1.0)
    residual = (size + torch.finfo(size.dtype).eps * steps.largest) / safe
    found = LinearSolution(steps.value, residual, steps.taken, converged, torch.ones_like(converged))
    if steps.count >= max_iter or bool(converged.all()):
        return found
    # (a sample that went astray starts anew)
    astray = ~(size <= steps.norm)
    value = torch.where(astray[:, None], 0.0, steps.value)
    left = torch.where(astray[:, None], steps.rhs, steps.left)
    left = torch.where(converged[:, None], 0.0, left)
    share = torch.where(astray, 1.0, size / safe)
    target = steps.tol / torch.where(share > 0, share, 1.0)
    rest = gmres(steps.operator, left, steps.preconditioner, target, max_iter - steps.count)
    return replace(
        found,
        value=value + rest.value,
        residual=torch.where(converged, found.residual, rest.residual * share),
        iterations=steps.taken + rest.iterations,
        converged=converged | rest.converged,
    )


class _Steps:
    """x, what is left of b − Ax, and the last steps p with their Ap. Samples that have converged are left alone."""

    def __init__(
        self,
        operator: Callable[[Tensor], Tensor],
        preconditioner: Callable[[Tensor], Tensor],
        rhs: Tensor,
        tol: float | Tensor,
    ) -> None:
        self.operator = operator
        self.preconditioner = preconditioner
        self.rhs = rhs
        self.tol = torch.as_tensor(tol, dtype=rhs.dtype, device=rhs.device)
        self.norm = torch.linalg.vector_norm(rhs, dim=-1)
        self.value, self.left = torch.zeros_like(rhs), rhs
        self.largest = self.norm
        self.count = self.known = 0
        self.taken = torch.zeros_like(self.norm, dtype=torch.int64)
        target = (self.tol * self.norm).clamp_min(torch.finfo(rhs.dtype).tiny)
        self._share = 1 / target
        self._steps, self._images = rhs.new_empty(2, len(rhs), _MEMORY, rhs.shape[-1])
        self._gram = rhs.new_zeros(len(rhs), _MEMORY, _MEMORY, dtype=torch.float64)

    def worst(self) -> float:
        """The largest residual relative to what is asked for; not a number if one is not finite."""
        if len(self.rhs) == 0:
            return 0.0
        size = torch.linalg.vector_norm(self.left, dim=-1)
        self.largest = torch.maximum(self.largest, size)
        relative = size * self._share
        self._active = (relative > 1).to(size.dtype)
        return float(relative.amax())

    def is_sure(self) -> bool:
        """Whether what was subtracted on the way, with its rounding errors, still is the residual within the tolerance.

        A step may make the residual larger by ‖M⁻¹A − 1‖, and only the next minimisation makes it small again.
        """
        rounding = _SURE * torch.finfo(self.rhs.dtype).eps * self.largest
        return bool((rounding <= self.tol * self.norm).all())

    def recompute(self) -> None:
        """What is left, from the value."""
        self.left = self.rhs - self.operator(self.value)
        self.largest = torch.linalg.vector_norm(self.left, dim=-1)

    def make(self) -> None:
        """One step of length 1."""
        step = self.preconditioner(self.left * self._active[:, None])
        image = self.operator(step)
        slot = self.count % _MEMORY
        self._steps[:, slot], self._images[:, slot] = step, image
        self.value, self.left = self.value + step, self.left - image
        self.count += 1
        self.taken = self.taken + (self._active > 0)

    def minimise(self) -> None:
        """The shortest residual over all steps that are remembered."""
        filled = min(self.count, _MEMORY)
        steps, images, gram = self._steps[:, :filled], self._images[:, :filled], self._gram[:, :filled, :filled]
        for slot in {count % _MEMORY for count in range(self.known, self.count)}:
            products = (images[:, slot, None] @ images.mT).squeeze(1).double()
            gram[:, slot], gram[:, :, slot] = products, products
        self.known = self.count
        matrix = gram.clone()
        size = matrix.diagonal(dim1=1, dim2=2)
        size.add_(torch.add(size == 0, size, alpha=_RIDGE * torch.finfo(steps.dtype).eps))
        factor, failed = torch.linalg.cholesky_ex(matrix)
        right = (self.left[:, None] @ images.mT).to(factor.dtype)
        weights = torch.cholesky_solve(right.mT, factor).mT.to(steps.dtype)
        usable = (failed == 0) * self._active
        weights = weights.nan_to_num(0.0, 0.0, 0.0) * usable[:, None, None]
        self.left = torch.baddbmm(self.left[:, None], weights, images, alpha=-1).squeeze(1)
        self.value = torch.baddbmm(self.value[:, None], weights, steps).squeeze(1)
