"""One training of a regularizer, and how well it then restores pictures that it has not seen."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman import solvers
from implicit_bregman.adjoints import Implicit
from implicit_bregman.adjoints.base import Adjoint
from implicit_bregman.experiments.study.imaging.energy import LearnedRegularizer, PoissonEnergy
from implicit_bregman.experiments.study.imaging.pictures import (
    Observed,
    decibels,
    held_out,
    similarity,
    training_batch,
)
from implicit_bregman.experiments.study.imaging.settings import ImagingSettings, Problem
from implicit_bregman.experiments.study.task import without_warnings
from implicit_bregman.experiments.train.build import make_adjoint
from implicit_bregman.nn import CriticalPoint

#: A look at held-out pictures after each of so many equal parts of the time; they are small for it.
LOOKS, LOOK_SIZE = 5, 48
#: Tolerance of what a gradient is compared with, in float64, and the seed of the batch.
REFERENCE_TOL, REFERENCE_SEED = 1e-8, 12345


@dataclass(frozen=True)
class RestorationRun:
    """Asks for one training.

    Attributes:
        method: How the gradient is had, see `ImagingSettings`.
        seed: Of the first parameters and of the batches.
        settings: The problem and the recipe.
    """

    method: str
    seed: int
    settings: ImagingSettings


def make_layer(problem: Problem, size: int, regularizer: nn.Module, adjoint: Adjoint, tol: float) -> CriticalPoint:
    """The layer that restores pictures of a size."""
    energy = PoissonEnergy((size, size), regularizer)
    solver = solvers.Auto(tol=tol) if adjoint.follows_limit else "auto"
    return CriticalPoint(energy, problem.geometry, problem.regularization, solver, adjoint)


def restored(
    problem: Problem, regularizer: nn.Module, seen: Observed, adjoint: Adjoint | None = None
) -> Float[Tensor, "batch high wide"]:
    """The pictures that the layer makes of the counts, in their precision; with an `Unrolled` adjoint its last step."""
    size = seen.clean.shape[-1]
    layer = make_layer(problem, size, regularizer, adjoint or Implicit(), problem.tol)
    with torch.no_grad():
        return layer(seen.inputs, seen.start())


def train_restoration(run: RestorationRun) -> dict[str, Any]:
    """Train one regularizer by one method for its processor time, and judge it.

    Returns:
        "steps", "step_ms" (processor time, mean), "converged" (share of the training's solves), "curve" ([seconds,
        PSNR] on small held-out pictures), "psnr" and "ssim" of every held-out picture as the method restores it,
        "equilibrium" (PSNR of the critical points at the same parameters), "gradient_error" and "cosine" (at the last
        parameters, against the gradient to 1e-8), "parameters".
    """
    settings, problem = run.settings, run.settings.problem
    regularizer = LearnedRegularizer(settings.filters, settings.kernel_size, run.seed)
    adjoint = make_adjoint(run.method, problem.tol)
    layer = make_layer(problem, settings.patch, regularizer, adjoint, problem.tol)
    glance = held_out(problem.blurs, problem.peaks[-1:], min(LOOK_SIZE, problem.size)).to(torch.float32)
    with without_warnings():
        training = _Training(run, layer)
        curve = [[0.0, _mean_decibels(problem, regularizer, glance, adjoint)]]
        for look in range(1, LOOKS + 1):
            training.advance_to(settings.seconds * look / LOOKS)
            curve.append([training.spent, _mean_decibels(problem, regularizer, glance, adjoint)])
        seen = held_out(problem.blurs, problem.peaks, problem.size)
        made = restored(problem, regularizer, seen.to(torch.float32), adjoint).double()
        limit = made
        if not adjoint.follows_limit:
            limit = restored(problem, regularizer, seen.to(torch.float32)).double()
        error, cosine = gradient_check(run, regularizer)
    return {
        "steps": training.steps,
        "step_ms": 1e3 * training.spent / training.steps,
        "converged": training.converged / training.steps if adjoint.follows_limit else None,
        "curve": curve,
        "psnr": decibels(made, seen.clean),
        "ssim": similarity(made, seen.clean),
        "equilibrium": decibels(limit, seen.clean),
        "gradient_error": error,
        "cosine": cosine,
        "parameters": {name: value.tolist() for name, value in regularizer.state_dict().items()},
    }


class _Training:
    """Steps of Adam on random parts of pictures, against a budget of processor time.

    Attributes:
        steps: Made so far.
        spent: Seconds of processor time that they took.
        converged: Sum over the steps of the share of solves that converged.
    """

    def __init__(self, run: RestorationRun, layer: CriticalPoint) -> None:
        self.run, self.layer = run, layer
        self.steps, self.spent, self.converged = 0, 0.0, 0.0
        self._random = torch.Generator().manual_seed(run.seed)
        self._optimizer = torch.optim.Adam(layer.parameters(), run.settings.learning_rate)

    def advance_to(self, seconds: float) -> None:
        """Make at least one step, and go on until so much time is spent."""
        start, before = time.process_time(), self.spent
        while True:
            self._step()
            self.spent = before + time.process_time() - start
            if self.spent >= seconds:
                return

    def _step(self) -> None:
        settings = self.run.settings
        share = min(1.0, self.spent / settings.seconds)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        batch = _batch(settings, self._random).to(torch.float32)
        self._optimizer.zero_grad()
        (self.layer(batch.inputs, batch.start()) - batch.clean).square().mean().backward()
        self._optimizer.step()
        self.steps += 1
        solution = self.layer.last_solution
        self.converged += float(solution.converged.float().mean()) if solution is not None else 0.0


def gradient_check(run: RestorationRun, regularizer: LearnedRegularizer) -> tuple[float, float]:
    """Relative error and cosine of the method's gradient at these parameters, against one to 1e-8, in float64."""
    settings, problem = run.settings, run.settings.problem
    batch = _batch(settings, torch.Generator().manual_seed(REFERENCE_SEED))
    exact = LearnedRegularizer(settings.filters, settings.kernel_size).double()
    exact.load_state_dict(regularizer.state_dict())

    def gradient(adjoint: Adjoint, tol: float) -> Tensor:
        layer = make_layer(problem, settings.patch, exact, adjoint, tol)
        loss = (layer(batch.inputs, batch.start()) - batch.clean).square().mean()
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(exact.parameters()))])

    true = gradient(Implicit(tol=REFERENCE_TOL), REFERENCE_TOL)
    own = gradient(make_adjoint(run.method, problem.tol), problem.tol)
    return float((own - true).norm() / true.norm()), float(torch.cosine_similarity(own, true, dim=0))


def _batch(settings: ImagingSettings, generator: torch.Generator) -> Observed:
    problem = settings.problem
    return training_batch(problem.blurs, problem.peaks, settings.patch, settings.batch_size, generator)


def _mean_decibels(problem: Problem, regularizer: nn.Module, seen: Observed, adjoint: Adjoint) -> float:
    found = decibels(restored(problem, regularizer, seen, adjoint).double(), seen.clean.double())
    return sum(found) / len(found)
