"""One training step as a module, and what is measured on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from implicit_bregman.experiments.learning.model import Classifier
from implicit_bregman.experiments.reference.active import active_coordinates
from implicit_bregman.experiments.train.nodes import NodeClassifier

Reduce = Callable[[Tensor, str], Tensor]
"""Sum ("sum") or largest ("max") of a tensor over all processes."""

# What is summed over the samples of an epoch, one number each.
SUMS = ("samples", "loss", "correct", "iterations", "residual", "converged", "active")


@dataclass(frozen=True)
class Measures:
    """Means over the samples of an epoch, taken while training.

    Attributes:
        loss: Cross entropy, in nats.
        accuracy: Share of correct answers.
        iterations: Solver iterations.
        residual: Relative residual of the solve.
        worst_residual: The largest one.
        converged: Share of the solves that converged; with an unrolled adjoint, which does not solve, 0.
        active: Share of the coordinates of z on a bound (within 1e-6, relative to 1 + |bound|).
    """

    loss: float
    accuracy: float
    iterations: float
    residual: float
    worst_residual: float
    converged: float
    active: float


class Objective(nn.Module):
    """The loss of a batch, with the sums of what is measured kept aside.

    The loss is computed in here, so that it is in the precision of the forward pass, and so that DDP sees one module.

    Args:
        model: The model.
    """

    def __init__(self, model: Classifier | NodeClassifier) -> None:
        super().__init__()
        self.model = model
        self._sums: list[Tensor] = []
        self._worst: list[Tensor] = []

    def forward(self, inputs: Float[Tensor, "batch features"], labels: Int[Tensor, " batch"], share: float) -> Tensor:
        """The summed cross entropy, times `share`."""
        scores = self.model(inputs)
        scores = scores.float() if scores.dtype.itemsize == 2 else scores
        loss = nn.functional.cross_entropy(scores, labels, reduction="sum")
        self._record(scores.detach(), loss.detach(), labels)
        return loss * share

    def measured(self, reduce: Reduce) -> Measures:
        """The means since the last call, over all processes; float64 sums, taken from the device once."""
        sums = reduce(torch.stack(self._sums).sum(0), "sum").tolist()
        worst = float(reduce(torch.stack(self._worst).amax(), "max"))
        self._sums.clear()
        self._worst.clear()
        loss, correct, iterations, residual, converged, active = (total / sums[0] for total in sums[1:])
        return Measures(loss, correct, iterations, residual, worst, converged, active)

    @torch.no_grad()
    def _record(self, scores: Tensor, loss: Tensor, labels: Tensor) -> None:
        solution = self.model.layer.last_solution
        assert solution is not None
        count = torch.tensor(len(labels), dtype=torch.float64, device=labels.device)
        active = active_coordinates(solution.value, self.model.layer.geometry)
        # (a graph is one sample of its layer, however many nodes have labels)
        of_layer = [
            each.double().sum() * (len(labels) / max(each.numel(), 1))
            for each in (solution.iterations, solution.residual, solution.converged, active)
        ]
        self._sums.append(torch.stack([count, loss.double(), (scores.argmax(-1) == labels).sum().double(), *of_layer]))
        worst = solution.residual.double().reshape(-1)
        self._worst.append(torch.cat([worst, worst.new_zeros(1)]).amax())


def evaluate(
    model: Classifier | NodeClassifier, inputs: Tensor, labels: Tensor, batch_size: int, reduce: Reduce
) -> tuple[float, float]:
    """Mean cross entropy (nats) and share of correct answers.

    Args:
        model: The model; it is evaluated without gradient, its factorization kept.
        inputs: This process's share of the samples; in the precision of the parameters.
        labels: Their labels.
        batch_size: Samples at a time.
        reduce: Adds up what the processes found.
    """
    total = torch.zeros(3, dtype=torch.float64, device=inputs.device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), model.layer.frozen():
        for part, truth in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
            scores = model(part)
            scores = scores.float() if scores.dtype.itemsize == 2 else scores
            loss = nn.functional.cross_entropy(scores, truth, reduction="sum")
            found = (loss, (scores.argmax(-1) == truth).sum(), torch.tensor(float(len(truth)), device=inputs.device))
            total += torch.stack([item.double() for item in found])
    model.train(was_training)
    loss, correct, count = reduce(total, "sum").tolist()
    return loss / count, correct / count
