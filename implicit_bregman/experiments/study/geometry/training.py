"""One training of the geometry study, in one geometry and one regime."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.adjoints import Unrolled
from implicit_bregman.critical_point import find_critical_point
from implicit_bregman.experiments.data import Dataset
from implicit_bregman.experiments.learning.model import Classifier
from implicit_bregman.experiments.learning.training import evaluate, train
from implicit_bregman.experiments.reference.active import active_coordinates
from implicit_bregman.experiments.study.task import Task, without_warnings
from implicit_bregman.nn import CriticalPoint
from implicit_bregman.solution import Solution
from implicit_bregman.solvers import MM
from implicit_bregman.status import Status

# MM is run to this residual on so many test samples to count the steps that the limit takes.
COUNT_TOL = 1e-4
COUNT_SAMPLES = 64
# A training in which more than this share of a batch fails, in so many steps in a row, is given up.
FAILED_SHARE = 0.5
FAILED_STEPS = 5


@dataclass(frozen=True)
class Regime:
    """What is trained, up to the geometry.

    Attributes:
        name: For people.
        regularization: γ ≥ 0.
        weight: Kind of W.
        steps: L; None: the limit, differentiated implicitly.
    """

    name: str
    regularization: float
    weight: str
    steps: int | None = None


REGIMES = (
    Regime("limit, γ=0", 0.0, "convex"),
    Regime("limit, γ=0.1", 0.1, "convex"),
    Regime("limit, γ=0.5, W symmetric", 0.5, "symmetric"),
    Regime("L=10, γ=0", 0.0, "convex", 10),
    Regime("L=2, γ=0", 0.0, "convex", 2),
)


@dataclass(frozen=True)
class Run:
    """Asks for one training.

    Attributes:
        task: Data, width and recipe.
        regime: γ, W and L.
        geometry: Name.
        max_steps: MM steps, at most, when the steps to the limit are counted.
    """

    task: Task
    regime: Regime
    geometry: str
    max_steps: int


def train_once(settings: Run) -> dict[str, Any]:
    """Train one model and measure it at its last parameters.

    Returns:
        "gave_up": None, or why and after how many "steps" the training could not go on; all others are then None,
        except the shares over the steps that were made. "accuracy" on the test set and "loss" on the training set;
        "iterations" of the default solver per sample and the shares of "unsolved" solves and "unsolved_adjoints",
        means over the training (None where nothing is solved); "step_ms"; the share "active" of the coordinates of
        the test samples; "mm_steps", the median number of MM steps to a residual of 1e-4, and the share "mm_short"
        of samples that `max_steps` were too few for; "lowest" and "highest" eigenvalue of W.
    """
    regime = settings.regime
    task = settings.task.with_layer(
        geometry=settings.geometry, regularization=regime.regularization, weight=regime.weight
    )
    data = task.data()
    with without_warnings():
        model = task.model(data, regime.steps)
        watch = _Watch(model)
        result: dict[str, Any] = dict.fromkeys(
            (
                "gave_up",
                "accuracy",
                "loss",
                "iterations",
                "step_ms",
                "active",
                "mm_steps",
                "mm_short",
                "lowest",
                "highest",
            )
        )
        try:
            run = train(model, data, task.recipe(data), watch)
            result |= _measured(model, data, settings.max_steps)
            result |= {"step_ms": run.step_ms, "iterations": None if regime.steps else run.iterations}
        except _GaveUp as reason:
            result["gave_up"] = str(reason)
        except ValueError as refusal:
            if "unbounded below" not in str(refusal):
                raise
            result["gave_up"] = f"refused: {str(refusal).partition(' (along')[0]}"
    return result | watch.shares()


class _GaveUp(Exception):
    """The training cannot go on; the text says why."""


class _Watch:
    """Counts failures after every step, and ends a training that has no solutions any more."""

    def __init__(self, model: Classifier) -> None:
        self._model = model
        self._unrolled = isinstance(model.layer.adjoint, Unrolled)
        self._steps = 0
        self._unsolved: list[float] = []
        self._adjoints: list[float] = []

    def __call__(self, share: float) -> None:
        self._steps += 1
        solution = self._model.layer.last_solution
        assert solution is not None
        status = solution.adjoint.status
        if self._unrolled or status is None:  # after the last step the last solution is an evaluation's
            return
        self._unsolved.append(1.0 - float(solution.converged.float().mean()))
        self._adjoints.append(float((status > int(Status.TRUNCATED)).float().mean()))
        last = self._unsolved[-FAILED_STEPS:]
        if len(last) == FAILED_STEPS and min(last) > FAILED_SHARE:
            raise _GaveUp(f"more than {FAILED_SHARE:.0%} of a batch unsolved in {FAILED_STEPS} steps in a row")

    def shares(self) -> dict[str, Any]:
        """What was counted."""
        return {
            "steps": self._steps,
            "unsolved": statistics.fmean(self._unsolved) if self._unsolved else None,
            "unsolved_adjoints": statistics.fmean(self._adjoints) if self._adjoints else None,
        }


def _measured(model: Classifier, data: Dataset, max_steps: int) -> dict[str, Any]:
    _, accuracy = evaluate(model, data.test_x, data.test_y)
    loss, _ = evaluate(model, data.train_x, data.train_y)
    with torch.no_grad():
        active = active_coordinates(model.layer(data.test_x), model.layer.geometry)
        eigenvalues = torch.linalg.eigvalsh(model.layer.energy.weight.double())
        counted = plain_mm(model.layer, data.test_x[:COUNT_SAMPLES], COUNT_TOL, max_steps)
    return {
        "accuracy": accuracy,
        "loss": loss,
        "active": float(active.double().mean()),
        "mm_steps": float(counted.iterations.double().median()),
        "mm_short": 1.0 - float(counted.converged.double().mean()),
        "lowest": float(eigenvalues[0]),
        "highest": float(eigenvalues[-1]),
    }


@torch.no_grad()
def plain_mm(layer: CriticalPoint, x: Float[Tensor, "batch n"], tol: float, max_steps: int) -> Solution:
    """The layer's critical point by MM steps alone, without exact solve, to a residual of `tol` or for `max_steps`."""
    solver = MM(tol=tol, max_iter=max_steps, exact=False, on_failure="ignore")
    return find_critical_point(layer.energy, layer.geometry, x, regularization=layer.regularization, solver=solver)
