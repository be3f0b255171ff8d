"""monDEQ's layer as a contender: z = relu(Wz + c) by either of its splittings, in its conventions.

Written from the paper: Winston and Kolter, "Monotone operator equilibrium networks" (2020). Its W is I plus ours. The
forward pass iterates without a graph until ‖z⁺ − z‖ / ‖z⁺‖ over the batch is below a tolerance and is followed by one
application of the layer with a graph. The backward pass iterates on the adjoint equation v = J(Wᵀv + g),
J = relu'(Wz + c), with the same step and tolerance. The step is halved from 1 for as long as that takes no more
iterations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from implicit_bregman.experiments.benchmark.peers.contenders import (
    BOTH,
    FORWARD,
    LONGEST,
    Contender,
    Failure,
    Found,
    by_tolerance,
)
from implicit_bregman.experiments.benchmark.prepared import Value
from implicit_bregman.experiments.benchmark.truth import PreparedQuadratic

PREFIX = "monDEQ"
PEACEMAN_RACHFORD, FORWARD_BACKWARD = "Peaceman–Rachford", "forward–backward"
METHODS = (PEACEMAN_RACHFORD, FORWARD_BACKWARD)
_TOLERANCE = 1e-5  # with which the step is chosen
_TOLERANCES = tuple(10 ** (-k / 2) for k in range(2, 16))  # 1e-1 … 3e-8
_HALVINGS = 12


def applies(prepared: PreparedQuadratic) -> bool:
    """Whether the cell is a layer of that kind: z ≥ 0, γ = 0, one equilibrium."""
    return (
        prepared.geometry.domain == (0.0, math.inf)
        and prepared.regularization == 0
        and prepared.cell.kind in ("convex", "general")
    )


@dataclass(frozen=True)
class Setup:
    """How the layer is set up.

    Attributes:
        method: `PEACEMAN_RACHFORD` or `FORWARD_BACKWARD`.
        step: α.
        tol: Of both passes.
    """

    method: str
    step: float
    tol: float = _TOLERANCE

    @property
    def name(self) -> str:
        """Row of the tables."""
        return f"{PREFIX} {self.method}"

    @property
    def text(self) -> str:
        """The settings in words."""
        return f"α = {self.step:g}, tol = {self.tol:.2g}"


class MonDEQ:
    """The layer for given W (ours) and c.

    Args:
        weight: W, `(d, d)`.
        offset: c, `(B, d)`.
        setup: Its settings.
    """

    def __init__(self, weight: Tensor, offset: Tensor, setup: Setup) -> None:
        self.weight, self.offset, self.setup = weight, offset, setup
        with torch.no_grad():
            identity = torch.eye(weight.shape[0], dtype=weight.dtype)
            self.own = identity + weight
            if setup.method == PEACEMAN_RACHFORD:
                self.inverse = torch.linalg.inv(identity - setup.step * weight)
        self.iterations = 0

    def __call__(self) -> Tensor:
        """z, with the graph of its implicit derivative in W."""
        with torch.no_grad():
            z = self._solve(self.own, self._inverse(False), self.offset, torch.relu)
        before = torch.addmm(self.offset, z, (torch.eye(len(self.weight), dtype=z.dtype) + self.weight).mT)
        return _Adjoint.apply(torch.relu(before), before > 0, self)

    def adjoint(self, mask: Tensor, cotangent: Tensor) -> Tensor:
        """v with v = J(Wᵀv + g)."""
        return self._solve(self.own.mT, self._inverse(True), cotangent, lambda u: torch.where(mask, u, 0.0))

    def _inverse(self, adjoint: bool) -> Tensor | None:
        if self.setup.method == FORWARD_BACKWARD:
            return None
        return self.inverse.mT if adjoint else self.inverse

    def _solve(self, own: Tensor, inverse: Tensor | None, offset: Tensor, prox: Callable[[Tensor], Tensor]) -> Tensor:
        """z = prox(own z + offset) by the splitting, until z no longer changes."""
        step, tol = self.setup.step, self.setup.tol
        z = torch.zeros_like(offset)
        u = z
        for self.iterations in range(1, LONGEST + 1):
            if inverse is None:
                after = prox((1 - step) * z + step * (z @ own.mT + offset))
            else:
                half = 2 * z - u
                middle = (half + step * offset) @ inverse.mT
                u = 2 * middle - half
                after = prox(u)
            change = float(torch.linalg.vector_norm(after - z) / torch.linalg.vector_norm(after))
            z = after
            if change < tol:
                break
            if not math.isfinite(change):
                self.iterations = LONGEST
                break
        return z


class _Adjoint(torch.autograd.Function):
    """The identity, whose backward pass turns g into Wᵀv + g; relu' then makes v of it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, mask: Tensor, layer: MonDEQ) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.layer = layer
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        (g,) = cotangents
        return torch.addmm(g, ctx.layer.adjoint(mask, g), ctx.layer.own), None, None


def tuned_step(prepared: PreparedQuadratic, method: str, deadline: float = math.inf) -> float:
    """α, halved from 1 for as long as that takes no more iterations."""
    best, fewest = 1.0, LONGEST
    for halvings in range(_HALVINGS):
        if time.perf_counter() > deadline:
            break
        step = 0.5**halvings
        layer = MonDEQ(prepared.weight.detach(), prepared.offset, Setup(method, step))
        layer()
        if layer.iterations < LONGEST and layer.iterations <= fewest:
            best, fewest = step, layer.iterations
        elif fewest < LONGEST:
            break
    return best


def mondeq_contenders(prepared: PreparedQuadratic, accuracies: Sequence[float], cap: float) -> Found:
    """Each splitting with its own choice of the step and the loosest tolerance that reaches each accuracy.

    Args:
        prepared: The cell; `applies` to it.
        accuracies: The levels to be reached.
        cap: Seconds for the whole search.
    """
    found: list[Contender] = []
    failures: list[Failure] = []
    start = time.perf_counter()
    for number, method in enumerate(METHODS, 1):
        deadline = start + cap * number / len(METHODS)
        setup = Setup(method, tuned_step(prepared, method, deadline))
        for task in (FORWARD, BOTH):
            able, missed = _search(prepared, setup, task, accuracies, deadline)
            found += able
            failures += missed
    return found, failures


def _search(
    prepared: PreparedQuadratic, setup: Setup, task: str, accuracies: Sequence[float], deadline: float
) -> Found:
    def value(tried: Setup) -> Value:
        return lambda: MonDEQ(prepared.weight, prepared.offset, tried)()

    setups = [replace(setup, tol=tol) for tol in _TOLERANCES]
    tried = [(setup.text, value(setup)) for setup in setups]
    return by_tolerance(prepared, setup.name, task, tried, accuracies, deadline)
