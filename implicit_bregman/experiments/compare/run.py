"""Implicit versus unrolled: one model, one budget, one row per way to solve and to differentiate."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch

from implicit_bregman.experiments.compare.results import COLUMNS, Comparison, Row
from implicit_bregman.experiments.compare.settings import CompareSettings
from implicit_bregman.experiments.data import Dataset, load_dataset
from implicit_bregman.experiments.learning.gradients import (
    GradientCheck,
    ReferenceGradient,
)
from implicit_bregman.experiments.learning.measures import (
    GRADIENT_SAMPLES,
    exact_gradient,
    gradient_error,
    held_bytes,
    loss_of,
)
from implicit_bregman.experiments.learning.methods import Method
from implicit_bregman.experiments.learning.model import Classifier, build_classifier
from implicit_bregman.experiments.learning.training import (
    LOSS_SAMPLES,
    Recipe,
    State,
    TrainingRun,
    cpu_threads,
    steps_per_epoch,
    train,
)
from implicit_bregman.experiments.machine.devices import device_name, find_device
from implicit_bregman.experiments.machine.memory import peak_bytes
from implicit_bregman.experiments.machine.versions import versions
from implicit_bregman.experiments.output.statistics import statistic

Progress = Callable[[float, str], None]
"""Called with the share of all the work that is done, in 0 … 1, and what is being done."""


@dataclass
class _Measured:
    """What one method gave, one entry per seed."""

    runs: list[TrainingRun] = field(default_factory=list)
    checks: list[GradientCheck | None] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    peaks: list[int | None] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """Progress of one part of many equal ones."""

    progress: Progress
    before: int
    total: int
    text: str

    def __call__(self, share: float) -> None:
        self.progress((self.before + share) / self.total, self.text)


def check(settings: CompareSettings) -> Dataset:
    """Find out, before any work, what stands in the way: names, device, data files.

    Returns:
        The data, on the device.

    Raises:
        ValueError: For unknown names, bad data files or an unavailable device.
        FileNotFoundError: For missing data files.
    """
    device = find_device(settings.device)
    settings.architecture().classifier((2,), 2)
    data = load_dataset(settings.dataset, settings.data_dir, settings.seed, settings.download)
    return data.limited(settings.train_size).to(device)


def run_comparison(
    settings: CompareSettings,
    data: Dataset | None = None,
    progress: Progress = lambda share, text: None,
) -> Comparison:
    """Train one model per method and seed, from the same parameters on the same batches, and measure.

    Every row has two budgets. *Equal steps*: `epochs` epochs. *Equal time*: the same number of seconds spent
    in training steps (evaluations and measurements not counted) for all rows of a seed, `seconds` or else
    what the reference row took for its steps; a faster row trains on, a slower one is judged at its last step
    that ended in time.

    Gradients, memory and peak memory are measured for all rows at the same parameters: those of the reference
    row after the budget of steps.

    Args:
        settings: What to compare.
        data: The data, on the device; None: `check(settings)`.
        progress: Told about the progress.

    Returns:
        The results.

    Raises:
        ValueError: For unknown names, bad data files or an unavailable device.
        FileNotFoundError: For missing data files.
    """
    data = check(settings) if data is None else data
    methods = settings.methods()
    reference = next((method for method in methods if method.family == "implicit"), methods[0])
    ordered = [reference, *(method for method in methods if method is not reference)]
    measured = {method.name: _Measured() for method in methods}
    budgets: list[float] = []
    steps = settings.epochs * steps_per_epoch(len(data.train_y), settings.batch_size)

    with warnings.catch_warnings(), cpu_threads(settings.threads):
        # Failed solves are counted in the column `converged`; of the settings, `check` has warned already.
        warnings.simplefilter("ignore", UserWarning)
        for number, seed in enumerate(range(settings.seed, settings.seed + settings.seeds)):
            seconds = settings.seconds
            for position, method in enumerate(ordered):
                before = number * len(methods) + position
                part = _Part(progress, before, settings.seeds * len(methods), f"seed {seed}, {method.name}")
                part(0.0)
                recipe = Recipe(steps, seconds, settings.batch_size, settings.learning_rate, seed)
                run = train(_model(settings, data, method, seed), data, recipe, part)
                measured[method.name].runs.append(run)
                if position == 0:
                    seconds = run.at_steps.seconds if seconds is None else seconds
                    budgets.append(seconds)
            state = measured[reference.name].runs[-1].state
            truth = exact_gradient(_model(settings, data, reference, seed, state), data)
            for method in ordered:
                model = _model(settings, data, method, seed, state)
                _measure(model, data, settings.batch_size, truth, measured[method.name])
    progress(1.0, "done")
    return Comparison(
        settings=_shown_settings(settings),
        environment=_environment(data.train_x.device, settings.threads),
        facts=_facts(settings, data, steps, budgets),
        reference=reference.name,
        rows=tuple(_row(method, measured[method.name]) for method in methods),
    )


def _model(
    settings: CompareSettings, data: Dataset, method: Method, seed: int, state: State | None = None
) -> Classifier:
    return build_classifier(settings.architecture(), data, seed, method.solver, method.adjoint, state)


def _measure(
    model: Classifier, data: Dataset, batch_size: int, truth: ReferenceGradient | None, measured: _Measured
) -> None:
    """Gradient, memory and peak memory of a method at the parameters of `model`."""
    measured.checks.append(gradient_error(model, data, truth))
    measured.held.append(held_bytes(model, data, batch_size))
    x, y = data.train_x[:batch_size], data.train_y[:batch_size]
    measured.peaks.append(peak_bytes(lambda: loss_of(model, x, y).backward(), x.device))


def _row(method: Method, measured: _Measured) -> Row:
    runs, checks = measured.runs, measured.checks
    per_seed: dict[str, Sequence[float | None]] = {
        "accuracy_at_steps": [run.at_steps.test_accuracy for run in runs],
        "loss_at_steps": [run.at_steps.train_loss for run in runs],
        "accuracy_at_time": [run.at_time.test_accuracy for run in runs],
        "loss_at_time": [run.at_time.train_loss for run in runs],
        "steps_at_time": [run.at_time.steps for run in runs],
        "gradient_error": [None if check is None else check.error for check in checks],
        "gradient_cosine": [None if check is None else check.cosine for check in checks],
        "iterations": [run.iterations for run in runs],
        "converged": [run.converged if method.solves else None for run in runs],
        "step_ms": [run.step_ms for run in runs],
        "activation_bytes": measured.held,
        "peak_bytes": measured.peaks,
    }
    columns = {column.key: statistic(per_seed[column.key]) for column in COLUMNS}
    return Row(method.name, method.family, method.depth, columns, tuple(run.curve for run in runs))


def _shown_settings(settings: CompareSettings) -> dict[str, object]:
    shown = asdict(settings)
    shown["data_dir"] = None if settings.data_dir is None else str(settings.data_dir)
    shown["rows"] = list(settings.rows)
    return shown


def _environment(device: torch.device, threads: int) -> dict[str, object]:
    software = versions("implicit_bregman", "python", "torch", "platform")
    return {**software, "device": device_name(device), "threads": threads}


def _facts(settings: CompareSettings, data: Dataset, steps: int, budgets: Sequence[float]) -> dict[str, object]:
    return {
        "train_samples": len(data.train_y),
        "test_samples": len(data.test_y),
        "features": data.features,
        "classes": data.classes,
        "note": data.note,
        "steps": steps,
        "seconds_per_seed": list(budgets),
        "seconds_mean": statistics.fmean(budgets),
        "loss_samples": min(LOSS_SAMPLES, len(data.train_y)),
        "gradient_samples": min(GRADIENT_SAMPLES, len(data.train_y)),
    }
