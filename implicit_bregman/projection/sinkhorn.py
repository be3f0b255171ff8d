"""Sinkhorn's iterations with a continuation in ε: where Newton's method for a transport plan begins.

A plan is exp(f ⊕ g + y⁰), y⁰ = −C/ε. The iterations are made of products with the matrix exp(f ⊕ g + y⁰) as it was when
the logarithms were last taken (Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized transport
problems", 2019), which costs a tenth of a sweep in logarithms. They go on while they are worth more than Newton steps,
and leave what is slow, at every ε, to these.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

#: The logarithm of no mass: exp of it is 0, and duals that contain it keep their digits.
NO_MASS = -800.0
#: The range of s·y⁰ at which the continuation begins, and the factor by which s grows.
_FIRST_RANGE, _FACTOR = 10.0, 4.0
#: Sweeps at each s, and after which it is asked whether to go on.
_SWEEPS = 6
#: By how much those have to reduce the error so that more of them are made, and how often at most.
_WORTH, _ROUNDS = 0.2, 50
#: The error, relative to the mass, from which on no continuation is needed.
_NEAR = 1e-2
#: That from which on Newton's method is asked to take over before s grows.
_FAR = 3e-2


def log_masses(masses: Float[Tensor, "batch k"]) -> Float[Tensor, "batch k"]:
    """The logarithms of masses, with `NO_MASS` for 0."""
    return torch.where(masses > 0, masses, 1.0).log().where(masses > 0, NO_MASS)


def balanced(masses: Float[Tensor, "batch r"], rows: int) -> Float[Tensor, "batch r"]:
    """Masses whose sums differ by rounding, with one sum: that of the rows."""
    of_rows, of_columns = masses[:, :rows], masses[:, rows:]
    total = of_columns.sum(-1, keepdim=True)
    return torch.cat([of_rows, of_columns * (of_rows.sum(-1, keepdim=True) / torch.where(total > 0, total, 1.0))], -1)


def scaled_to_marginals(
    start: Float[Tensor, "batch n m"],
    masses: Float[Tensor, "batch r"],
    logs: Float[Tensor, "batch r"],
    tol: float,
    improve: Callable[[float, Tensor], Tensor],
) -> Float[Tensor, "batch r"]:
    """(f, g) with which exp(f ⊕ g + y⁰) has about these row and column sums.

    Args:
        start: y⁰.
        masses: the row sums and the column sums, with one total.
        logs: their `log_masses`.
        tol: the error of the column sums, relative to the mass, at which they are right.
        improve: (s, (f, g)) ↦ better ones for s·y⁰, where a few sweeps leave a large error.
    """
    if not start.numel():
        return torch.zeros_like(masses)
    scaling = _Scaling(start, masses, logs)
    error = scaling.sweeps(torch.zeros_like(masses[:, start.shape[1] :]), 1.0)
    if error > _NEAR:
        spread = float((start.amax((1, 2)) - start.amin((1, 2))).amax())
        g, s = torch.zeros_like(scaling.g), min(1.0, _FIRST_RANGE / max(spread, _FIRST_RANGE))
        while s < 1:
            far = scaling.sweeps(g, s) > _FAR
            found = torch.cat(scaling.multipliers(), -1)
            g = (improve(s, found) if far else found)[:, start.shape[1] :]
            grown = min(1.0, _FACTOR * s)
            g, s = g * (grown / s), grown
        error = scaling.sweeps(g, 1.0)
    for _ in range(_ROUNDS):
        if error <= tol:
            break
        before, error = error, scaling.again()
        if not error <= _WORTH * before:
            break
    return torch.cat(scaling.multipliers(), -1)


class _Scaling:
    """The iterations for a batch of plans: f + log u and g + log v, where exp(f ⊕ g + y⁰) is at hand."""

    def __init__(self, start: Float[Tensor, "batch n m"], masses: Tensor, logs: Tensor) -> None:
        n = start.shape[1]
        self.start, self.log_rows, self.log_columns = start, logs[:, :n], logs[:, n:]
        self.of_columns = masses[:, None, n:]
        # A line without mass keeps its factor 1: its sum underflows to 0.
        empty = masses == 0
        spare = empty.to(masses.dtype) if bool(empty.any()) else torch.zeros_like(masses)
        self.some = bool(empty.any())
        self.rows, self.columns = (masses + spare)[:, :n, None], (masses + spare)[:, None, n:]
        self.spare_rows, self.spare_columns = spare[:, :n, None], spare[:, None, n:]
        total = masses[:, :n].sum(-1)
        self.total = torch.where(total > 0, total, 1.0)

    def sweeps(self, g: Float[Tensor, "batch m"], s: float) -> float:
        """Sweeps from g for s·y⁰, the first in logarithms; and the largest error of a sample's column sums."""
        y = self.start if s == 1.0 else s * self.start
        self.f = self.log_rows - torch.logsumexp(y + g[:, None, :], -1)
        y = y + self.f[:, :, None]
        top = y.amax(1, keepdim=True)
        plan = torch.exp(y - top)
        total = plan.sum(1, keepdim=True)
        self.plan = plan.mul_(self.log_columns.exp()[:, None, :] / total)
        self.g = self.log_columns - (top + total.log()).squeeze(1)
        self.u, self.v = torch.ones_like(self.rows), torch.ones_like(self.columns)
        return self.again()

    def again(self) -> float:
        """More of them."""
        before = self.u, self.v
        sums = self.u.mT @ self.plan
        for _ in range(_SWEEPS):
            self.v = self.columns / (sums + self.spare_columns if self.some else sums)
            across = self.plan @ self.v.mT
            self.u = self.rows / (across + self.spare_rows if self.some else across)
            sums = self.u.mT @ self.plan
        error = (sums * self.v - self.of_columns).abs().sum((1, 2)) / self.total
        worst = float(error.amax())
        if not math.isfinite(worst):
            # What underflows stays as it is, and the rest is left to Newton's method.
            bad = ~torch.isfinite(error)[:, None, None]
            self.u, self.v = torch.where(bad, before[0], self.u), torch.where(bad, before[1], self.v)
            return math.inf
        return worst

    def multipliers(self) -> tuple[Float[Tensor, "batch n"], Float[Tensor, "batch m"]]:
        """(f, g) as they are now."""
        return self.f + self.u.squeeze(2).log(), self.g + self.v.squeeze(1).log()
