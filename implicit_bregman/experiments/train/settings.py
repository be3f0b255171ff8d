"""What a training run is asked to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from implicit_bregman.energy.weights import present_name
from implicit_bregman.experiments.data.graphs import GRAPHS
from implicit_bregman.experiments.learning.model import KINDS, Architecture
from implicit_bregman.settings import check_choice, check_count, check_nonnegative, check_positive

ACCELERATORS = ("auto", "cpu", "gpu")
STRATEGIES = ("auto", "ddp")
# float16 is left out: its loss scaling would be one more thing to resume, and bfloat16 needs none.
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true")
SCHEDULES = ("constant", "cosine")
# AdamW's first step is ten times as long, and has to be a number in float32.
LARGEST_RATE = 1e37

# Where and for how long a run computes, which may change when it is resumed; everything else is what it computes.
MAY_CHANGE = ("data_dir", "download", "accelerator", "devices", "strategy", "threads", "epochs", "patience")


@dataclass(frozen=True)
class TrainSettings:
    """Everything that a training run depends on. The defaults are those of `implicit-bregman train`.

    Attributes:
        dataset: Name of the data set, see `load_dataset`; or of a graph, see `load_graph`.
        data_dir: Folder with the files of "mnist", "fashion", "cifar10" and the graphs.
        download: Whether to fetch these from OpenML if they are not there.
        train_size: Number of training samples to use, the validation set included; None: all.
        validation: Share of them that is held out to choose the best epoch, in [0, 1). 0: none; the last epoch counts.
        seed: Seed of the initial parameters and of the order of the batches.
        model: "dense", "conv" or "field" (see `Architecture`), or "graph" (see `NodeClassifier`), which goes with the
            data sets "cora" and "citeseer".
        geometry: Name of the geometry.
        regularization: γ ≥ 0.
        weight: Kind of W: "convex", "symmetric", "monotone" or "general".
        margin: Of "convex" and "monotone": the least eigenvalue that −W, or its symmetric part, can have.
        width: d, the width of the representation; of "conv" its channels.
        kernel_size: Of "conv".
        stride: Of the injection of "conv".
        pool: The read-out of "conv" takes means over squares of so many pixels.
        solver: Name of the solver: "auto", "newton", "anderson", "broyden", "mm", "splitting" or "torchdeq".
        adjoint: How to differentiate: "implicit", "one-step", "phantom", "shine", "unrolled-L" or "truncated-K-of-L".
        tol: Tolerance of the solver, and of the implicit adjoint; None: their defaults.
        max_iter: Largest number of the solver's iterations; None: its default.
        epochs: Largest number of epochs.
        batch_size: Samples per step, of all processes together; the last batch of an epoch may be smaller.
        learning_rate: AdamW's learning rate, at the start.
        schedule: "constant", or "cosine": from there to 0 in `epochs` epochs.
        weight_decay: AdamW's decoupled weight decay, of all parameters; 0 is plain Adam.
        patience: Epochs without a smaller validation loss after which to stop; None: never.
        input_dropout: Share of the features, in [0, 1), that are replaced by their means in each training sample, while
            the others are divided by the share that is left.
        shift: Largest shift of a training image, in pixels, in each direction; 0: none.
        rotation: Largest rotation of a training image, in degrees, either way.
        zoom: Largest change of a training image's size, as a share in [0, 1): by a factor between 1 - zoom and
            1 + zoom.
        accelerator: "cpu", "gpu", or "auto": GPUs if there are any.
        devices: Number of processes on this machine, each with its device; None: one, or those that torchrun started.
        strategy: "ddp", or "auto": DDP where there are several processes.
        precision: "32-true", "64-true", "bf16-mixed" or "bf16-true": format of the parameters, or mixed.
        threads: CPU threads of PyTorch in each process; one is fastest for small layers.

    Raises:
        ValueError: For an impossible value. Names of data sets, geometries and weights are tested where they are used.
    """

    dataset: str = "digits"
    data_dir: Path | None = None
    download: bool = False
    train_size: int | None = None
    validation: float = 0.1
    seed: int = 0
    model: str = "dense"
    geometry: str = "tanh"
    regularization: float = 0.0
    weight: str = "convex"
    margin: float = 0.1
    width: int = 64
    kernel_size: int = 3
    stride: int = 1
    pool: int = 1
    solver: str = "auto"
    adjoint: str = "implicit"
    tol: float | None = None
    max_iter: int | None = None
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 5e-3
    schedule: str = "constant"
    weight_decay: float = 0.0
    patience: int | None = None
    input_dropout: float = 0.0
    shift: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    accelerator: str = "auto"
    devices: int | None = None
    strategy: str = "auto"
    precision: str = "32-true"
    threads: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", present_name(self.weight))
        check_choice("model", self.model, KINDS)
        if (self.dataset in GRAPHS) != (self.model == "graph"):
            raise ValueError(
                f"dataset = {self.dataset!r} does not go with model = {self.model!r}: 'graph' is the model of "
                f"{' and '.join(GRAPHS)}, the others are those of the other data sets"
            )
        if self.model == "graph" and self.precision.startswith("bf16"):
            raise ValueError(f"precision = {self.precision!r} cannot be used with model = 'graph': use '32-true'")
        self.architecture()
        for name in ("epochs", "batch_size", "threads"):
            check_count(name, getattr(self, name))
        for name in ("train_size", "max_iter", "patience", "devices"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_count("seed", self.seed, least=0)
        check_positive("learning_rate", self.learning_rate)
        if self.learning_rate > LARGEST_RATE:
            raise ValueError(
                f"learning_rate must be at most {LARGEST_RATE:g}, got {self.learning_rate}: use a smaller one"
            )
        if self.tol is not None:
            check_positive("tol", self.tol)
        for name in ("regularization", "weight_decay", "shift", "rotation"):
            check_nonnegative(name, getattr(self, name))
        for name in ("validation", "input_dropout", "zoom"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be a share in [0, 1), got {getattr(self, name)}")
        if self.patience is not None and self.validation == 0:
            raise ValueError(f"patience = {self.patience} needs a validation set: use validation > 0")
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("accelerator", self.accelerator, ACCELERATORS)
        check_choice("strategy", self.strategy, STRATEGIES)
        check_choice("precision", self.precision, PRECISIONS)

    def architecture(self) -> Architecture:
        """The model."""
        return Architecture(
            self.model,
            self.width,
            self.geometry,
            self.regularization,
            self.weight,
            self.margin,
            self.kernel_size,
            self.stride,
            self.pool,
        )

    def shown(self) -> dict[str, str | int | float | bool | None]:
        """The settings by name, in types that JSON and a checkpoint can hold."""
        return {**asdict(self), "data_dir": None if self.data_dir is None else str(self.data_dir)}

    def check_resumable(self, before: dict[str, str | int | float | bool | None]) -> None:
        """Refuse to continue a run that computes something else.

        Args:
            before: What `shown` gave for the run that is to be continued.

        Raises:
            ValueError: Naming the settings that differ.
        """
        free = [name for name in MAY_CHANGE if name != "epochs" or self.schedule == "constant"]
        now = self.shown()
        # A run from before a setting existed did what the setting's default does.
        before = {**TrainSettings().shown(), **before}
        before["weight"] = present_name(str(before["weight"]))
        differing = [name for name in now if name not in free and now[name] != before[name]]
        if differing:
            changes = ", ".join(f"{name} = {before[name]} there, {now[name]} here" for name in differing)
            raise ValueError(f"the run to be resumed has other settings ({changes}): use the same, or another --out")
