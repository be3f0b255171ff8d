"""A cell that is ready to be solved: what all contenders are given, and what their results are judged by."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.experiments.benchmark.cells import Cell
from implicit_bregman.experiments.reference.optimality import on_host

Gradients = tuple[Tensor, ...]
"""dL/dθ, one for each of a cell's parameters."""

Value = Callable[[], Tensor]
"""From the raw tensors to z with its graph."""


@dataclass(frozen=True, eq=False)
class Prepared(ABC):
    """A problem with the float64 truth about its rounded data, for L = ⟨G, z⟩.

    Attributes:
        cell: What it is.
        parameters: θ, everything that a backward pass has to differentiate for.
        cotangent: G = dL/dz, `(B, ...)`.
        value: The true z in float64.
        gradients: The true dL/dθ in float64.
        method: Where the truth is from.
        excluded: Share of the samples that were left out.
    """

    cell: Cell
    parameters: tuple[Tensor, ...]
    cotangent: Float[Tensor, "batch *event"]
    value: Float[Tensor, "batch *event"]
    gradients: Gradients
    method: str
    excluded: float

    @abstractmethod
    def ours(self, tol: float | None = None) -> Value:
        """This library: its defaults, or `tol` for both passes. What depends on θ alone is computed in every run."""

    @property
    def allowed_bytes(self) -> int | None:
        """What its forward pass may hold for the backward pass beyond θ; None where no target says."""
        return None

    def value_error(self, z: Tensor) -> float:
        """‖z − z*‖ / ‖z*‖ over the batch; infinite for what is not finite."""
        return _relative(z, self.value)

    def gradient_error(self, *gradients: Tensor) -> float:
        """The same for dL/dθ, in the Frobenius norm: the largest of all parameters."""
        return max(_relative(found, true) for found, true in zip(gradients, self.gradients, strict=True))


def _relative(found: Tensor, truth: Tensor) -> float:
    error = float(torch.linalg.vector_norm(on_host(found) - truth) / torch.linalg.vector_norm(truth))
    return error if math.isfinite(error) else math.inf
