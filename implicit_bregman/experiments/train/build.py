"""The parts of a run, made from its settings: devices, model, solver and adjoint."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from implicit_bregman import adjoints, solvers
from implicit_bregman.adjoints.base import Adjoint
from implicit_bregman.experiments.data import Dataset
from implicit_bregman.experiments.data.graphs import load_graph
from implicit_bregman.experiments.learning.methods import TORCHDEQ_MAX_ITER, torchdeq_installed
from implicit_bregman.experiments.learning.model import Classifier, build_classifier, seeded
from implicit_bregman.experiments.train.nodes import NodeClassifier
from implicit_bregman.experiments.train.settings import TrainSettings
from implicit_bregman.settings import check_choice
from implicit_bregman.solvers.base import Solver

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SOLVERS = {
    "auto": solvers.Auto,
    "newton": solvers.Newton,
    "anderson": solvers.Anderson,
    "broyden": solvers.Broyden,
    "mm": solvers.MM,
    "splitting": solvers.Splitting,
}
ADJOINTS = {
    "implicit": adjoints.Implicit,
    "one-step": adjoints.OneStep,
    "phantom": adjoints.Phantom,
    "shine": adjoints.Shine,
}
#: Seconds that the threads of a group of processes get to free what they have sent.
_FREEING = 0.5
_UNROLLED = re.compile(r"unrolled-([1-9]\d*)|truncated-([1-9]\d*)-of-([1-9]\d*)")


def make_solver(name: str, tol: float | None = None, max_iter: int | None = None) -> str | Solver:
    """The solver of that name; "auto" without settings stays the layer's own choice.

    Raises:
        ValueError: For an unknown name, or torchdeq where it is not installed.
    """
    check_choice("solver", name, (*SOLVERS, "torchdeq"))
    given: dict[str, Any] = {key: value for key, value in (("tol", tol), ("max_iter", max_iter)) if value is not None}
    if name == "torchdeq":
        if not torchdeq_installed():
            raise ValueError("solver 'torchdeq' needs the package torchdeq: pip install torchdeq")
        return solvers.TorchDEQ(method="anderson", **{"max_iter": TORCHDEQ_MAX_ITER, **given})
    return name if name == "auto" and not given else SOLVERS[name](**given)


def make_adjoint(name: str, tol: float | None = None) -> Adjoint:
    """The adjoint of that name; `tol` is for "implicit".

    Raises:
        ValueError: For an unknown name, or K > L.
    """
    if match := _UNROLLED.fullmatch(name):
        depth, last, of = match.groups()
        return adjoints.Unrolled(steps=int(depth or of), last=None if last is None else int(last))
    if name not in ADJOINTS:
        raise ValueError(
            f"adjoint must be one of {', '.join(ADJOINTS)}, unrolled-L or truncated-K-of-L with numbers K <= L, "
            f"got {name!r}"
        )
    return adjoints.Implicit(tol=tol) if name == "implicit" and tol is not None else ADJOINTS[name]()


def make_model(settings: TrainSettings, data: Dataset) -> Classifier | NodeClassifier:
    """The model, on the CPU, in float32.

    Raises:
        ValueError: For names or a γ that the layer refuses, or a solver and an adjoint that do not fit.
    """
    solver = make_solver(settings.solver, settings.tol, settings.max_iter)
    adjoint = make_adjoint(settings.adjoint, settings.tol)
    if isinstance(adjoint, adjoints.Shine) and isinstance(solver, solvers.Broyden):
        solver = replace(solver, exact=False)  # Shine needs the estimate at the point where Broyden stops
    model: Classifier | NodeClassifier
    if settings.model == "graph":
        model = _of_nodes(settings)
        model.layer.solver, model.layer.adjoint = solver, adjoint
    else:
        model = build_classifier(settings.architecture(), data, settings.seed, solver, adjoint)
    with torch.no_grad():
        model(data.train_x[:1])
    return model


def _of_nodes(settings: TrainSettings) -> NodeClassifier:
    graph = load_graph(settings.dataset, settings.data_dir)
    return seeded(
        lambda: NodeClassifier(graph, settings.width, settings.geometry, settings.regularization), settings.seed
    )


@dataclass(frozen=True)
class Devices:
    """Where a run computes.

    Attributes:
        on_gpu: On GPUs, or on the CPU.
        here: Processes on this machine.
        machines: Number of machines.
    """

    on_gpu: bool
    here: int
    machines: int


def find_devices(settings: TrainSettings) -> Devices:
    """The devices of the settings; under torchrun, those of the processes that it started.

    Args:
        settings: The settings. "auto" is the CPU only where there is no GPU at all.

    Returns:
        The devices.

    Raises:
        ValueError: If they are not there, or are not as many as torchrun started.
    """
    started, machines = _torchrun_processes()
    here = settings.devices or started or 1
    if started is not None and here != started:
        raise ValueError(f"devices = {here}, but torchrun started {started} processes: leave --devices out")
    available = torch.cuda.device_count()
    if settings.accelerator == "gpu" and available < here:
        raise ValueError(f"accelerator = 'gpu' with devices = {here}, but {available} are there: use --accelerator cpu")
    if settings.accelerator == "auto" and 0 < available < here:
        raise ValueError(
            f"accelerator = 'auto' with devices = {here}, but the number of GPUs is {available}: use --devices "
            f"{available} (with torchrun, --nproc-per-node {available}), or --accelerator cpu"
        )
    on_gpu = settings.accelerator != "cpu" and available >= here
    return Devices(on_gpu, here, machines)


def make_fabric(settings: TrainSettings) -> Fabric:
    """The processes with their devices, not yet launched.

    Raises:
        ValueError: See `find_devices`.
    """
    from lightning_fabric import Fabric

    devices = find_devices(settings)
    several = devices.here * devices.machines > 1
    return Fabric(
        accelerator="cuda" if devices.on_gpu else "cpu",
        devices=devices.here,
        num_nodes=devices.machines,
        strategy="ddp" if several or settings.strategy == "ddp" else "auto",
        precision=settings.precision,  # type: ignore[arg-type]
    )


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


def _torchrun_processes() -> tuple[int | None, int]:
    """Processes that torchrun started on this machine (None: it did not start this one), and machines."""
    if not under_torchrun():
        return None, 1
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return here, int(os.environ["WORLD_SIZE"]) // here


def leave_processes() -> None:
    """Take this process out of its group, if it is in one: threads of the group that outlive Python's end abort it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if torch.__version__ < "2.9":
            # There the group waits for its threads and keeps Python's lock, which one that still frees the tensor of a
            # barrier waits for. While this process sleeps, that thread has the lock.
            time.sleep(_FREEING)
        torch.distributed.destroy_process_group()
