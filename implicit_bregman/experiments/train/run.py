"""The training run: epochs on one or several processes, from the start or from a checkpoint."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from implicit_bregman.experiments.data import Dataset, load_dataset
from implicit_bregman.experiments.data.download import files_at
from implicit_bregman.experiments.data.graphs import GRAPHS, load_graph
from implicit_bregman.experiments.data.load import FROM_FILES
from implicit_bregman.experiments.learning.model import Classifier
from implicit_bregman.experiments.learning.training import EVALUATION_BATCH, cpu_threads, steps_per_epoch
from implicit_bregman.experiments.machine.memory import keep_freed_memory
from implicit_bregman.experiments.train import checkpoint as checkpoints
from implicit_bregman.experiments.train.augment import make_augmentation
from implicit_bregman.experiments.train.build import make_fabric, make_model, under_torchrun
from implicit_bregman.experiments.train.checkpoint import Checkpoint, best_row
from implicit_bregman.experiments.train.lock import locked
from implicit_bregman.experiments.train.logs import EpochRow, TensorBoard
from implicit_bregman.experiments.train.measures import Objective, evaluate
from implicit_bregman.experiments.train.nodes import NodeClassifier, nodes_of
from implicit_bregman.experiments.train.settings import TrainSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer

EVENTS = "tensorboard"


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        rows: Its epochs, those before a resumption included.
        best: The epoch with the smallest validation loss, whose parameters are in `model.pt`; without a validation set,
            the last one.
        stopped_early: Whether `patience` ended it.
        parameters: Number of trained parameters of the model.
        main: Whether this is the process that writes and reports.
    """

    rows: tuple[EpochRow, ...]
    best: EpochRow
    stopped_early: bool
    parameters: int
    main: bool


class Watch:
    """Told how a run goes, in the main process only. This one does nothing."""

    def started(self, start: Checkpoint | None, fabric: Fabric, parameters: int) -> None:
        """The run begins, from this checkpoint or from nothing, on these devices, with so many parameters."""

    def progress(self, share: float, text: str) -> None:
        """The share of the run that is done, in 0 … 1, and what is being done."""

    def epoch(self, row: EpochRow) -> None:
        """An epoch has been trained and saved."""


def load_data(settings: TrainSettings) -> Dataset:
    """The data set of the settings, limited to `train_size`, on the CPU.

    Raises:
        ValueError: For an unknown name or bad files, or if the processes of torchrun would all fetch them.
        OSError: For missing files.
    """
    if settings.download and under_torchrun():
        _refuse_shared_download(settings)
    if settings.dataset in GRAPHS:
        data = nodes_of(load_graph(settings.dataset, settings.data_dir), settings.seed)
        return data.limited(settings.train_size)
    data = load_dataset(settings.dataset, settings.data_dir, settings.seed, settings.download)
    return data.limited(settings.train_size)


def _refuse_shared_download(settings: TrainSettings) -> None:
    name, root = settings.dataset, settings.data_dir
    if name in FROM_FILES and root is not None and files_at(name, root) is None:
        raise ValueError(
            f"download of {name!r} under torchrun: every process would fetch it into {root}; fetch it first with one "
            f"process (implicit-bregman train --dataset {name} --data-dir {root} --download --epochs 1)"
        )


def find_start(settings: TrainSettings, folder: Path, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from, or None for a new run.

    Raises:
        ValueError: If the folder holds a run and `resume` is off; or if that run has other settings, or is damaged.
    """
    start = checkpoints.load(folder)
    if start is None:
        return None
    if not resume:
        raise ValueError(
            f"{folder} holds a run of {len(start.rows)} epochs: continue it with --resume, or choose another --out"
        )
    settings.check_resumable(start.settings)
    return start


def _refuse_other_data(start: Checkpoint, fingerprint: str) -> None:
    if start.data != fingerprint:
        raise ValueError(
            f"the run to be resumed has other data (fingerprint {start.data} there, {fingerprint} here): "
            "give the folder with the same files as --data-dir, or choose another --out"
        )


def run_training(
    settings: TrainSettings,
    folder: Path,
    resume: bool = False,
    data: Dataset | None = None,
    watch: Watch | None = None,
) -> TrainResult:
    """Train a model, epoch by epoch, and write checkpoint, best model and logs after each.

    The order of the batches, and what is random in them, depends on the seed alone; a batch is divided among the
    processes, and the gradients are averaged by sample: the number of processes changes nothing but rounding. On the
    CPU, in one process, a run that was interrupted at any moment and resumed gives bit for bit what it would have
    given.

    Args:
        settings: What to train.
        folder: Where the files go; it exists.
        resume: Whether to go on from the checkpoint in `folder`; if there is none, the run starts from the beginning.
        data: The data; None: `load_data(settings)`.
        watch: Told how it goes.

    Returns:
        The result.

    Raises:
        ValueError: For names that are not known, devices that are not there, files that do not fit, data that cannot
            be shifted, rotated or zoomed, a folder that holds another run or to which one is writing, or a training
            that diverges.
        OSError: For files that cannot be read or written.
    """
    keep_freed_memory()
    data = load_data(settings) if data is None else data
    fingerprint = data.fingerprint()
    data, held_x, held_y = data.held_out(settings.validation)
    with warnings.catch_warnings(), cpu_threads(settings.threads):
        # Failed solves are counted in the column `converged`.
        warnings.simplefilter("ignore", UserWarning)
        model = make_model(settings, data)
        fabric = make_fabric(settings)
        with locked(folder, wanted=fabric.is_global_zero):
            start = find_start(settings, folder, resume)
            if start is not None:
                _refuse_other_data(start, fingerprint)
            fabric.launch()
            fabric.barrier()  # every process has read the checkpoint before the first one writes
            run = _Run(settings, fabric, model, data.to(fabric.device), (held_x, held_y), start, fingerprint)
            told = watch if watch is not None and fabric.is_global_zero else Watch()
            told.started(start, fabric, run.parameters)
            return run.finish(folder, told)


class _Run:
    """A run on its devices, between two epochs."""

    def __init__(
        self,
        settings: TrainSettings,
        fabric: Fabric,
        model: Classifier | NodeClassifier,
        data: Dataset,
        held: tuple[Tensor, Tensor],
        start: Checkpoint | None,
        fingerprint: str,
    ) -> None:
        self.settings, self.fabric, self.model, self.data = settings, fabric, model, data
        self.fingerprint = fingerprint
        self.steps = steps_per_epoch(len(data.train_y), settings.batch_size)
        self.rows: tuple[EpochRow, ...] = () if start is None else start.rows
        self.objective = Objective(model)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.augmentation = make_augmentation(settings, data)
        self.adam = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.trained: _FabricModule
        self.optimizer: _FabricOptimizer
        self.trained, self.optimizer = fabric.setup(self.objective, self.adam)
        if start is not None:  # only now are the parameters in the precision of the checkpoint
            model.load_state_dict(start.model)
            self.adam.load_state_dict(start.optimizer)
        self.dtype = next(model.parameters()).dtype
        self.wide = torch.promote_types(self.dtype, data.train_x.dtype)
        self.part = slice(fabric.global_rank, None, fabric.world_size)
        self.held = self._share(*held)
        self.tested = self._share(data.test_x, data.test_y)
        self.order = torch.Generator().manual_seed(settings.seed)
        for _ in self.rows:
            torch.randperm(len(data.train_y), generator=self.order)

    def finish(self, folder: Path, watch: Watch) -> TrainResult:
        """Train the epochs that are left."""
        main = self.fabric.is_global_zero
        with ExitStack() as stack:
            if main:
                checkpoints.clear_leftovers(folder)
                board = stack.enter_context(TensorBoard(folder / EVENTS, self.rows))
                if self.rows:
                    checkpoints.save(folder, self._checkpoint())
            while len(self.rows) < self.settings.epochs and not self._out_of_patience():
                row = self._checked_epoch(watch)
                self.rows = (*self.rows, row)
                if main:
                    checkpoints.save(folder, self._checkpoint())
                    board.add(row)
                watch.epoch(row)
                self.fabric.barrier()
        stopped = len(self.rows) < self.settings.epochs
        return TrainResult(self.rows, best_row(self.rows), stopped, self.parameters, main)

    def _checked_epoch(self, watch: Watch) -> EpochRow:
        """An epoch, with a message of its own for a training that diverges in it."""
        number = len(self.rows) + 1
        try:
            row = self._epoch(watch)
        except ValueError as error:
            if self._has_usable_weight():
                raise
            raise self._diverged(f"W of epoch {number} is not finite, or too large to decompose", number) from error
        if not math.isfinite(row.train_loss):
            raise self._diverged(f"the training loss of epoch {number} is {row.train_loss}", number)
        return row

    def _has_usable_weight(self) -> bool:
        # (W is at most as large as the square of its parameters)
        return all(bool(parameter.detach().norm().square().isfinite()) for parameter in self.model.parameters())

    def _diverged(self, what: str, epoch: int) -> ValueError:
        other = "" if self.settings.weight in ("convex", "monotone") else ", or --weight convex"
        kept = ", in another --out: the epochs before it are kept" if epoch > 1 else ""
        return ValueError(f"{what}: use a smaller --learning-rate{other}{kept}")

    def _epoch(self, watch: Watch) -> EpochRow:
        """Train one epoch and measure."""
        number = len(self.rows) + 1
        began = time.perf_counter()
        for step, (index, count) in enumerate(self._batches()):
            self._step(index, count, (number - 1) * self.steps + step)
            done = (number - 1 + (step + 1) / self.steps) / self.settings.epochs
            watch.progress(done, f"epoch {number} of {self.settings.epochs}")
        measures = self.objective.measured(self._reduce)
        seconds = time.perf_counter() - began
        validation = self._evaluate(*self.held) if self.settings.validation > 0 else (None, None)
        test = self._evaluate(*self.tested)
        bound = self.model.layer.energy.curvature_bound()
        return EpochRow(
            epoch=number,
            steps=number * self.steps,
            learning_rate=self._learning_rate(number * self.steps - 1),
            train_loss=measures.loss,
            train_accuracy=measures.accuracy,
            validation_loss=validation[0],
            validation_accuracy=validation[1],
            test_loss=test[0],
            test_accuracy=test[1],
            iterations=measures.iterations,
            residual=measures.residual,
            worst_residual=measures.worst_residual,
            converged=measures.converged,
            active=measures.active,
            spectral_bound=None if bound is None else float(bound),
            seconds=seconds,
            finished=time.time(),
        )

    def _batches(self) -> Iterator[tuple[Tensor, int]]:
        """This process's part of every batch of the next epoch, and the number of samples in the whole batch."""
        order = torch.randperm(len(self.data.train_y), generator=self.order)
        for batch in order.split(self.settings.batch_size):
            yield batch[self.part], len(batch)

    def _step(self, index: Tensor, count: int, step: int) -> None:
        """One update. DDP averages over the processes: each loss is scaled so that this is the mean over the batch."""
        for group in self.adam.param_groups:
            group["lr"] = self._learning_rate(step)
        index = index.to(self.data.train_x.device)
        self.optimizer.zero_grad()
        inputs = self.augmentation(self.data.train_x[index].to(self.wide), step, count, self.part)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1_000_003 * self.settings.seed + step)  # (dropout draws the same in a resumed run)
            loss = self.trained(inputs, self.data.train_y[index], self.fabric.world_size / count)
        self.fabric.backward(loss)
        self.optimizer.step()

    def _learning_rate(self, step: int) -> float:
        if self.settings.schedule == "constant":
            return self.settings.learning_rate
        share = step / (self.steps * self.settings.epochs)
        return self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))

    def _share(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """This process's part of samples that are evaluated, on its device, in the precision of the parameters."""
        device = self.fabric.device
        return inputs[self.part].to(device, self.dtype), labels[self.part].to(device)

    def _evaluate(self, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
        with self.fabric.autocast():
            return evaluate(self.model, inputs, labels, EVALUATION_BATCH, self._reduce)

    def _reduce(self, tensor: Tensor, operation: str) -> Tensor:
        reduced = self.fabric.all_reduce(tensor, reduce_op=operation)
        assert isinstance(reduced, Tensor)
        return reduced

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and bool(self.rows) and len(self.rows) - best_row(self.rows).epoch >= patience

    def _checkpoint(self) -> Checkpoint:
        model, optimizer = self.model.state_dict(), self.adam.state_dict()
        return Checkpoint(self.settings.shown(), self.rows, model, optimizer, self.fingerprint)
