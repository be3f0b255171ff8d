"""One training of the study of the depth, and its costs: two kinds of cells."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from implicit_bregman.experiments.data import Dataset
from implicit_bregman.experiments.learning.gradients import ReferenceGradient
from implicit_bregman.experiments.learning.measures import exact_gradient, gradient_error, held_bytes, loss_of
from implicit_bregman.experiments.learning.model import Classifier
from implicit_bregman.experiments.learning.training import evaluate, train
from implicit_bregman.experiments.study.task import Task, without_warnings

TIMED_ROUNDS = 15
EVALUATED = 512


@dataclass(frozen=True)
class Costs:
    """Asks for the cost and the gradient error of all depths at the parameters that implicit training ends with."""

    task: Task
    depths: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """Asks for one training.

    Attributes:
        task: What to train.
        depth: L; None: implicit.
        seconds: Budget "equal time".
    """

    task: Task
    depth: int | None
    seconds: float


def measure_costs(settings: Costs, data_dir: str | None = None) -> dict[str, Any]:
    """Train implicitly; then time a step of every method, interleaved, and count what it holds for backward.

    Returns:
        "seconds" that the implicit training took, and one list entry per method, the implicit one first: "step_ms",
        "bytes", "gradient_error", "gradient_cosine" (None where the oracle has no gradient).
    """
    task = settings.task
    data = task.data(data_dir)
    with without_warnings():
        trained = task.model(data, None)
        run = train(trained, data, task.recipe(data))
        rows = [task.model(data, depth, run.state) for depth in (None, *settings.depths)]
        times: list[list[float]] = [[] for _ in rows]
        for _ in range(TIMED_ROUNDS):
            for row, spent in zip(rows, times, strict=True):
                spent.append(_timed_step(row, data, task.batch_size))
        truth = exact_gradient(trained, data)
        checks = [_check(row, data, truth) for row in rows]
        held = [held_bytes(row, data, task.batch_size) for row in rows]
    return {
        "seconds": run.at_steps.seconds,
        "step_ms": [1e3 * statistics.median(spent) for spent in times],
        "bytes": held,
        "gradient_error": [error for error, _ in checks],
        "gradient_cosine": [cosine for _, cosine in checks],
    }


def train_once(settings: Run, data_dir: str | None = None) -> dict[str, Any]:
    """Train one model under both budgets and measure it.

    Returns:
        After equal steps: "accuracy" and "loss" as the model computes its representation, "limit_accuracy" with the
        same parameters at MM's limit, "distance" of the representation to it (median over test samples of
        ‖z_L − z‖ / ‖z‖), "gradient_error" and "gradient_cosine" of the training gradient at these parameters,
        "curvature" λ_max(−W), and the "curve" of (steps, seconds, training loss). After equal time: "time_accuracy",
        "time_loss", "time_steps". Of the training: "iterations", "converged", "step_ms".
    """
    task = settings.task
    data = task.data(data_dir)
    with without_warnings():
        trained = task.model(data, settings.depth)
        run = train(trained, data, task.recipe(data, settings.seconds))
        trained.load_state_dict(run.state)
        error, cosine = _check(trained, data, exact_gradient(trained, data))
        limit = task.model(data, None, run.state)
        _, limit_accuracy = evaluate(limit, data.test_x, data.test_y)
        distance = _distance(trained, limit, data.test_x[:EVALUATED])
        bound = trained.layer.energy.curvature_bound()
    return {
        "accuracy": run.at_steps.test_accuracy,
        "loss": run.at_steps.train_loss,
        "limit_accuracy": limit_accuracy,
        "distance": distance,
        "gradient_error": error,
        "gradient_cosine": cosine,
        "curvature": None if bound is None else float(bound),
        "curve": [(point.steps, point.seconds, point.loss) for point in run.curve],
        "time_accuracy": run.at_time.test_accuracy,
        "time_loss": run.at_time.train_loss,
        "time_steps": run.at_time.steps,
        "iterations": run.iterations,
        "converged": run.converged if settings.depth is None else None,
        "step_ms": run.step_ms,
    }


def _timed_step(model: Classifier, data: Dataset, batch_size: int) -> float:
    started = time.perf_counter()
    model.zero_grad(set_to_none=True)
    loss_of(model, data.train_x[:batch_size], data.train_y[:batch_size]).backward()
    return time.perf_counter() - started


def _check(model: Classifier, data: Dataset, truth: ReferenceGradient | None) -> tuple[float | None, float | None]:
    check = gradient_error(model, data, truth)
    return (None, None) if check is None else (check.error, check.cosine)


@torch.no_grad()
def _distance(model: Classifier, limit: Classifier, x: Tensor) -> float:
    z, exact = model.represent(x).flatten(1), limit.represent(x).flatten(1)
    tiny = torch.finfo(z.dtype).tiny
    return float(((z - exact).norm(dim=-1) / exact.norm(dim=-1).clamp_min(tiny)).median())
