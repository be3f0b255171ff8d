"""One training run under a budget of steps and of seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from implicit_bregman.experiments.data import Dataset

if TYPE_CHECKING:
    from implicit_bregman.experiments.learning.model import Classifier

WARM_UP_STEPS = 2
EVALUATION_BATCH = 512
LOSS_SAMPLES = 512
CURVE_POINTS = 25

State = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How to train: Adam with a constant learning rate on shuffled mini-batches.

    Attributes:
        steps: Training steps of the budget "equal steps".
        seconds: Seconds of training of the budget "equal time"; None: whatever the steps take.
        batch_size: Samples per step; the last batch of an epoch may be smaller.
        learning_rate: Adam's learning rate.
        seed: Seed of the order of the batches.
    """

    steps: int
    seconds: float | None
    batch_size: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Point:
    """State of a run after `steps` steps and `seconds` seconds of training (evaluations not included).

    Attributes:
        steps: Training steps done.
        seconds: Seconds that these steps took.
        train_loss: Mean cross entropy, in nats, over the first `LOSS_SAMPLES` training samples of one fixed shuffle.
        test_accuracy: Share of the test set that is classified correctly, in 0 … 1.
    """

    steps: int
    seconds: float
    train_loss: float
    test_accuracy: float


@dataclass(frozen=True)
class CurvePoint:
    """A point of a training curve.

    Attributes:
        steps: Training steps done.
        seconds: Seconds that these steps took.
        loss: Mean cross entropy, in nats, of the batches since the point before, measured while training.
    """

    steps: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class TrainingRun:
    """What one run gave.

    Attributes:
        at_steps: The model after the budget of steps.
        at_time: The model at the last step that ended within the budget of seconds.
        curve: About `CURVE_POINTS` evenly spaced points of the budget of steps, its last step among them.
        step_ms: Median time of a training step (forward, backward, update), in milliseconds.
        iterations: Solver iterations per sample, mean over the steps of the budget of steps.
        converged: Share of the samples, over the same steps, whose solver converged.
        state: Parameters at `at_steps`.
    """

    at_steps: Point
    at_time: Point
    curve: tuple[CurvePoint, ...]
    step_ms: float
    iterations: float
    converged: float
    state: State


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def epoch_batches(samples: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Index batches of an endless sequence of shuffled epochs; equal for equal arguments."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(samples, generator=generator).split(batch_size)


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Number of batches in an epoch."""
    return -(-samples // batch_size)


def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean cross entropy (nats) and share of correct answers on all samples, in evaluation mode."""
    was_training = model.training
    model.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for inputs, labels in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
            scores = model(inputs)
            loss += float(nn.functional.cross_entropy(scores, labels, reduction="sum"))
            correct += int((scores.argmax(-1) == labels).sum())
    model.train(was_training)
    return loss / len(y), correct / len(y)


def train(
    model: Classifier,
    data: Dataset,
    recipe: Recipe,
    on_step: Callable[[float], None] = lambda share: None,
) -> TrainingRun:
    """Train `model` in place until both budgets are used up.

    A row that is faster than the budget of seconds goes on after the budget of steps, with the same batches
    order and learning rate; a slower one is evaluated for "equal time" at the last step that ended in time.

    Args:
        model: The model, on the data's device, with its solver and adjoint set.
        data: The data.
        recipe: Budgets and settings.
        on_step: Called after every step with the share of the run that is done, in 0 … 1.

    Returns:
        The run; the model is left with the parameters of its last step.
    """
    _warm_up(model, data, recipe)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    spacing = -(-recipe.steps // CURVE_POINTS)
    index_batches = epoch_batches(len(data.train_y), recipe.batch_size, recipe.seed)
    clock = _Clock(data.train_x.device)

    times: list[float] = []
    iterations: list[Tensor] = []
    converged: list[Tensor] = []
    elapsed = 0.0
    losses: list[Tensor] = []
    curve: list[CurvePoint] = []
    at_steps: Point | None = None
    at_time: Point | None = None
    state: State = {}
    while at_steps is None or (recipe.seconds is not None and at_time is None):
        index = next(index_batches).to(data.train_x.device)
        inputs, labels = data.train_x[index], data.train_y[index]
        before = _snapshot(model) if at_time is None else {}
        started = clock()
        loss = _step(model, optimizer, inputs, labels)
        times.append(clock() - started)
        elapsed += times[-1]
        done = len(times)
        if at_steps is None:
            losses.append(loss)
            solution = model.layer.last_solution
            assert solution is not None
            iterations.append(solution.iterations.float().mean())
            converged.append(solution.converged.float().mean())
        if recipe.seconds is not None and at_time is None and elapsed > recipe.seconds:
            at_time = _point_of(model, before, data, done - 1, elapsed - times[-1])
        if at_steps is None and (done % spacing == 0 or done == recipe.steps):
            curve.append(CurvePoint(done, elapsed, float(torch.stack(losses).mean())))
            losses.clear()
        if done == recipe.steps:
            at_steps, state = _point(model, data, done, elapsed), _snapshot(model)
        on_step(_share(recipe, done, elapsed))
    return TrainingRun(
        at_steps=at_steps,
        at_time=at_time or at_steps,
        curve=tuple(curve),
        step_ms=1e3 * statistics.median(times[: recipe.steps]),
        iterations=float(torch.stack(iterations).mean()),
        converged=float(torch.stack(converged).mean()),
        state=state,
    )


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _warm_up(model: Classifier, data: Dataset, recipe: Recipe) -> None:
    """A few steps of a copy, so that what PyTorch sets up once is not timed."""
    copy = deepcopy(model)
    optimizer = torch.optim.Adam(copy.parameters(), lr=recipe.learning_rate)
    for _ in range(WARM_UP_STEPS):
        _step(copy, optimizer, data.train_x[: recipe.batch_size], data.train_y[: recipe.batch_size])


def _snapshot(model: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _point(model: nn.Module, data: Dataset, steps: int, seconds: float) -> Point:
    few = data.limited(LOSS_SAMPLES)
    train_loss, _ = evaluate(model, few.train_x, few.train_y)
    _, test_accuracy = evaluate(model, data.test_x, data.test_y)
    return Point(steps, seconds, train_loss, test_accuracy)


def _point_of(model: nn.Module, state: State, data: Dataset, steps: int, seconds: float) -> Point:
    current = _snapshot(model)
    model.load_state_dict(state)
    point = _point(model, data, steps, seconds)
    model.load_state_dict(current)
    return point


def _share(recipe: Recipe, done: int, elapsed: float) -> float:
    by_steps = done / recipe.steps
    by_time = 1.0 if recipe.seconds is None else elapsed / recipe.seconds
    return min(by_steps, by_time, 1.0)


class _Clock:
    """Seconds, read after the device has finished its queue."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None

    def __call__(self) -> float:
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        return time.perf_counter()
