"""Sinkhorn's iterations with a continuation in ε: where Newton's method for a transport plan begins.

A plan is exp(f ⊕ g + y⁰), y⁰ = −C/ε. The iterations are made of products with the matrix exp(f ⊕ g + y⁰) as it was when
the logarithms were last taken (Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized transport
problems", 2019), which costs a tenth of a sweep in logarithms. They go on while they are worth more than Newton steps.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: The logarithm of no mass: exp of it is 0, and duals that contain it keep their digits.
NO_MASS = -800.0
#: The range of s·y⁰ at which the continuation begins, and the factor by which s grows.
_FIRST_RANGE, _FACTOR = 10.0, 4.0
#: Sweeps at each s, and after which it is asked whether to go on.
_SWEEPS = 10
#: By how much those have to reduce the error so that more of them are made, and how often at most.
_WORTH, _ROUNDS = 0.1, 30
#: The error, relative to the mass, from which on no continuation is needed.
_NEAR = 1e-2


def log_masses(masses: Float[Tensor, "batch k"]) -> Float[Tensor, "batch k"]:
    """The logarithms of masses, with `NO_MASS` for 0."""
    return torch.where(masses > 0, masses, 1.0).log().where(masses > 0, NO_MASS)


def balanced(masses: Float[Tensor, "batch r"], rows: int) -> Float[Tensor, "batch r"]:
    """Masses whose sums differ by rounding, with one sum: that of the rows."""
    of_rows, of_columns = masses[:, :rows], masses[:, rows:]
    total = of_columns.sum(-1, keepdim=True)
    return torch.cat([of_rows, of_columns * (of_rows.sum(-1, keepdim=True) / torch.where(total > 0, total, 1.0))], -1)


def scaled_to_marginals(
    start: Float[Tensor, "batch n m"], masses: Float[Tensor, "batch r"], tol: float
) -> Float[Tensor, "batch r"]:
    """(f, g) with which exp(f ⊕ g + y⁰) has about these row and column sums.

    Args:
        start: y⁰.
        masses: the row sums and the column sums, with one total.
        tol: the error of the column sums, relative to the mass, at which they are right.
    """
    if not start.numel():
        return torch.zeros_like(masses)
    n = start.shape[1]
    scaling = _Scaling(start, masses[:, :n], masses[:, n:])
    spread = float((start.amax((1, 2)) - start.amin((1, 2))).amax())
    f, g = scaling.logarithmic(torch.zeros_like(masses[:, n:]), 1.0)
    f, g, error = scaling.sweeps(f, g, 1.0)
    if spread > _FIRST_RANGE and float(error.amax()) > _NEAR:
        s = _FIRST_RANGE / spread
        g = torch.zeros_like(g)
        while s < 1:
            f, g = scaling.logarithmic(g, s)
            f, g, _ = scaling.sweeps(f, g, s)
            grown = min(1.0, _FACTOR * s)
            g, s = g * (grown / s), grown
        f, g = scaling.logarithmic(g, 1.0)
        f, g, error = scaling.sweeps(f, g, 1.0)
    for _ in range(_ROUNDS):
        before = float(error.amax())
        if before <= tol:
            break
        f, g, error = scaling.again(f, g)
        if not float(error.amax()) <= _WORTH * before:
            break
    return torch.cat([f, g], -1)


class _Scaling:
    """The iterations for a batch of plans."""

    def __init__(self, start: Float[Tensor, "batch n m"], of_rows: Tensor, of_columns: Tensor) -> None:
        self.start, self.of_rows, self.of_columns = start, of_rows, of_columns
        self.log_rows, self.log_columns = log_masses(of_rows), log_masses(of_columns)
        total = of_rows.sum(-1)
        self.total = torch.where(total > 0, total, 1.0)

    def logarithmic(self, g: Tensor, s: float) -> tuple[Tensor, Tensor]:
        """One sweep in logarithms from g, for s·y⁰."""
        y = self.start if s == 1.0 else s * self.start
        f = self.log_rows - torch.logsumexp(y + g[:, None, :], -1)
        y = y + f[:, :, None]
        top = y.amax(1, keepdim=True)
        plan = torch.exp(y - top)
        total = plan.sum(1, keepdim=True)
        self.plan = plan.mul_((self.of_columns[:, None, :] / total))
        return f, self.log_columns - (top + total.log()).squeeze(1)

    def sweeps(self, f: Tensor, g: Tensor, s: float) -> tuple[Tensor, Tensor, Tensor]:
        """Sweeps from (f, g), whose plan `logarithmic` has just made; and the error of the column sums, (B,)."""
        self.u, self.v = torch.ones_like(f), torch.ones_like(g)
        return self.again(f, g)

    def again(self, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """More of them."""
        before = self.u.log(), self.v.log()
        u, v = self.u[:, :, None], self.v[:, None, :]
        for _ in range(_SWEEPS):
            v = _ratio(self.of_columns[:, None, :], u.mT @ self.plan)
            u = _ratio(self.of_rows[:, :, None], self.plan @ v.mT)
        error = ((u.mT @ self.plan * v).squeeze(1) - self.of_columns).abs().sum(-1) / self.total
        self.u, self.v = u.squeeze(2), v.squeeze(1)
        move = self.u.log() - before[0], self.v.log() - before[1]
        good = torch.isfinite(move[0].sum(-1) + move[1].sum(-1))
        if not bool(good.all()):
            # What underflows leaves (f, g) as it is, and the rest to Newton's method.
            error = torch.where(good, error, torch.inf)
            move = tuple(torch.where(good[:, None], part, 0.0) for part in move)  # type: ignore[assignment]
            self.u, self.v = (torch.where(good[:, None], part, 1.0) for part in (self.u, self.v))
        return f + move[0], g + move[1], error


def _ratio(masses: Tensor, sums: Tensor) -> Tensor:
    """The factor that gives sums their masses; 1 where there is no mass."""
    return torch.where(masses > 0, masses / sums, 1.0)
