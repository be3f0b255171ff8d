"""The command `train`: its options."""

import importlib
import warnings
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from implicit_bregman.experiments.output.files import writable_folder
from implicit_bregman.experiments.output.terminal import Interrupted
from implicit_bregman.experiments.train.settings import TrainSettings

DEFAULTS = TrainSettings()
# Asked for before any work is done.
NEEDED = ("lightning_fabric", "tensorboardX")


def train(
    dataset: Annotated[
        str, typer.Option(help="digits, spirals, mnist, fashion or cifar10; cora or citeseer.")
    ] = DEFAULTS.dataset,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the files of all but digits and spirals.")
    ] = DEFAULTS.data_dir,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch them into --data-dir from OpenML.")
    ] = DEFAULTS.download,
    train_size: Annotated[int | None, typer.Option(help="Use only so many training samples.")] = DEFAULTS.train_size,
    validation: Annotated[
        float, typer.Option(help="Share of them held out to choose the best epoch; 0: none.")
    ] = DEFAULTS.validation,
    seed: Annotated[int, typer.Option(help="Of the initial parameters and the batches.")] = DEFAULTS.seed,
    model: Annotated[
        str, typer.Option(help="Kind of the layer: dense, conv or field; of cora and citeseer graph.")
    ] = DEFAULTS.model,
    geometry: Annotated[str, typer.Option(help="Name of the geometry.")] = DEFAULTS.geometry,
    regularization: Annotated[
        float, typer.Option(help="γ, the weight of φ in the objective.")
    ] = DEFAULTS.regularization,
    weight: Annotated[str, typer.Option(help="Kind of W: convex, symmetric, monotone or general.")] = DEFAULTS.weight,
    margin: Annotated[
        float, typer.Option(help="Of convex and monotone: the least eigenvalue of −W (of its symmetric part).")
    ] = DEFAULTS.margin,
    width: Annotated[int, typer.Option(help="Width of the representation; of conv its channels.")] = DEFAULTS.width,
    kernel_size: Annotated[int, typer.Option(help="Of conv: size of the kernels.")] = DEFAULTS.kernel_size,
    stride: Annotated[int, typer.Option(help="Of conv: how much smaller z is than the image.")] = DEFAULTS.stride,
    pool: Annotated[
        int, typer.Option(help="Of conv: the read-out takes means over squares of so many pixels.")
    ] = DEFAULTS.pool,
    solver: Annotated[
        str, typer.Option(help="auto, newton, anderson, broyden, mm, splitting or torchdeq.")
    ] = DEFAULTS.solver,
    adjoint: Annotated[
        str, typer.Option(help="implicit, one-step, phantom, shine, unrolled-L or truncated-K-of-L.")
    ] = DEFAULTS.adjoint,
    tol: Annotated[
        float | None, typer.Option(help="Tolerance of the solver and of the implicit adjoint; default: their own.")
    ] = DEFAULTS.tol,
    max_iter: Annotated[
        int | None, typer.Option(help="Largest number of the solver's iterations; default: its own.")
    ] = DEFAULTS.max_iter,
    epochs: Annotated[int, typer.Option(help="Largest number of epochs.")] = DEFAULTS.epochs,
    batch_size: Annotated[
        int, typer.Option(help="Samples per training step, of all processes together.")
    ] = DEFAULTS.batch_size,
    learning_rate: Annotated[float, typer.Option(help="AdamW's learning rate.")] = DEFAULTS.learning_rate,
    schedule: Annotated[str, typer.Option(help="constant, or cosine: down to 0 in --epochs.")] = DEFAULTS.schedule,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = DEFAULTS.weight_decay,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a smaller validation loss.")
    ] = DEFAULTS.patience,
    input_dropout: Annotated[
        float, typer.Option(help="Share of the features dropped at random from each training sample.")
    ] = DEFAULTS.input_dropout,
    shift: Annotated[float, typer.Option(help="Largest random shift of training images, in pixels.")] = DEFAULTS.shift,
    rotation: Annotated[
        float, typer.Option(help="Largest random rotation of training images, in degrees.")
    ] = DEFAULTS.rotation,
    zoom: Annotated[
        float, typer.Option(help="Largest random change of the size of training images, a share.")
    ] = DEFAULTS.zoom,
    accelerator: Annotated[str, typer.Option(help="cpu, gpu or auto.")] = DEFAULTS.accelerator,
    devices: Annotated[
        int | None, typer.Option(help="Processes, each with its device; default: 1, or as torchrun started.")
    ] = DEFAULTS.devices,
    strategy: Annotated[str, typer.Option(help="ddp or auto.")] = DEFAULTS.strategy,
    precision: Annotated[str, typer.Option(help="32-true, 64-true, bf16-mixed or bf16-true.")] = DEFAULTS.precision,
    threads: Annotated[int, typer.Option(help="CPU threads of each process.")] = DEFAULTS.threads,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in --out, if there is one.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, model and logs.")] = Path("train-results"),
) -> None:
    """Train one model, with logs and checkpoints after every epoch, on one or several devices."""
    given = locals()
    settings = TrainSettings(**{item.name: given[item.name] for item in fields(TrainSettings)})
    _run(settings, out, resume)


def _run(settings: TrainSettings, out: Path, resume: bool) -> None:
    for package in NEEDED:
        importlib.import_module(package)
    from implicit_bregman.experiments.train.augment import make_augmentation
    from implicit_bregman.experiments.train.build import find_devices, leave_processes, make_model
    from implicit_bregman.experiments.train.report import Terminal, report
    from implicit_bregman.experiments.train.run import find_start, load_data, run_training

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        find_devices(settings)
        find_start(settings, out, resume)
        data = load_data(settings)
        data.held_count(settings.validation)
        make_augmentation(settings, data)
        make_model(settings, data)
    remarks = [*dict.fromkeys(str(warning.message) for warning in caught), *([data.note] if data.note else [])]
    folder = writable_folder(out)
    with ExitStack() as stack:
        try:
            result = run_training(settings, folder, resume, data, Terminal(settings, folder, resume, remarks, stack))
        except KeyboardInterrupt:
            raise Interrupted(f"{folder} holds all up to the last whole epoch: go on with --resume") from None
    if result.main:
        report(result, settings, folder)
    leave_processes()
