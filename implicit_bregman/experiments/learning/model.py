"""The models that the experiments train: an implicit layer and a linear read-out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman.energy import Field
from implicit_bregman.energy.weights import present_name
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.nn import BregmanDEQ, BregmanDEQ2d, CriticalPoint
from implicit_bregman.settings import check_choice, check_count, check_nonnegative, check_positive

if TYPE_CHECKING:
    from implicit_bregman.adjoints.base import Adjoint
    from implicit_bregman.experiments.data import Dataset
    from implicit_bregman.solvers.base import Solver

Made = TypeVar("Made", bound=nn.Module)

_OF_IMAGES, _OF_QUADRATICS = ("kernel_size", "stride", "pool"), ("weight", "margin")
#: What the layer can be, and the attributes that have no meaning for it.
_WITHOUT_MEANING: dict[str, tuple[str, ...]] = {
    "dense": _OF_IMAGES,
    "conv": (),
    "field": (*_OF_IMAGES, *_OF_QUADRATICS),
    "graph": (*_OF_IMAGES, *_OF_QUADRATICS),
}
KINDS = tuple(_WITHOUT_MEANING)


class Classifier(nn.Module):
    """An implicit layer followed by a read-out; the loss is the cross entropy of its scores.

    Args:
        layer: takes samples of `shape`.
        head: takes the representation, gives scores.
        shape: of a sample; it comes as a row.
    """

    def __init__(self, layer: CriticalPoint, head: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = layer
        self.head = head
        self.shape = shape

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Scores, one row per sample."""
        scores: Tensor = self.head(self.represent(x))
        return scores

    def represent(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch *state"]:
        """z, the representation."""
        z: Tensor = self.layer(self.shaped(x))
        return z

    def shaped(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch *shape"]:
        """The samples in their shape."""
        return x.view(len(x), *self.shape)


class Network(Field):
    """z = ρ(N(z, x)/γ) with N(z, x) = A tanh(Bz + Ux + b) + a, of any γ ≥ 0 (at 0: z = Π_C(N)).

    Args:
        features: n, the width of x.
        width: d, the width of z.
        regularization: γ.
    """

    def __init__(self, features: int, width: int, regularization: float) -> None:
        super().__init__(width)
        self.inject = nn.Linear(features, width, bias=False)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.moves_itself = regularization == 0

    def network(self, z: Float[Tensor, "batch d"], x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch d"]:
        """N(z, x)."""
        images: Tensor = self.outer(torch.tanh(self.inner(z) + self.inject(x)))
        return images

    def field(self, z: Float[Tensor, "batch d"], x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch d"]:
        return z - self.network(z, x) if self.moves_itself else -self.network(z, x)


@dataclass(frozen=True)
class Architecture:
    """What is trained, apart from how.

    Attributes:
        kind: Of the layer: "dense" (`BregmanDEQ`), "conv" (`BregmanDEQ2d`), "field" (`Network`, its weights normalized)
            or "graph" (`BregmanGraphDEQ`, in a `NodeClassifier`).
        width: d, the width of the representation; of images its channels.
        geometry: φ, by name or instance.
        regularization: γ ≥ 0.
        weight: Kind of W, as in `QuadraticEnergy`. A field has none.
        margin: Of "convex" and "monotone": the least eigenvalue that −W, or its symmetric part, can have.
        kernel_size: Of the convolutions.
        stride: Of the injection of "conv": the representation is smaller than the image by it.
        pool: The read-out of "conv" takes means over squares of so many pixels.

    Raises:
        ValueError: For an unknown kind, or a number out of range.
    """

    kind: str = "dense"
    width: int = 64
    geometry: str | MirrorMap = "tanh"
    regularization: float = 0.0
    weight: str = "convex"
    margin: float = 0.1
    kernel_size: int = 3
    stride: int = 1
    pool: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", present_name(self.weight))
        check_nonnegative("regularization", self.regularization)
        check_choice("model", self.kind, KINDS)
        for name in ("width", "kernel_size", "stride", "pool"):
            check_count(name, getattr(self, name))
        check_positive("margin", self.margin)
        self._refuse_without_meaning(_WITHOUT_MEANING[self.kind])
        if self.weight in ("symmetric", "general"):
            self._refuse_without_meaning(("margin",))

    def _refuse_without_meaning(self, names: tuple[str, ...]) -> None:
        for item in fields(self):
            if item.name in names and getattr(self, item.name) != item.default:
                raise ValueError(
                    f"{item.name} = {getattr(self, item.name)!r} has no meaning for model = {self.kind!r} and weight = "
                    f"{self.weight!r}: leave it out"
                )

    def described(self) -> str:
        """The layer in words."""
        geometry = self.geometry if isinstance(self.geometry, str) else self.geometry.name
        if self.kind == "field":
            return f"a network of {self.width} features ({geometry}, γ = {self.regularization:g})"
        of = f"({geometry}, {self.weight} W, γ = {self.regularization:g})"
        if self.kind == "dense":
            return f"a layer of {self.width} features {of}"
        return (
            f"a convolutional layer of {self.width} channels {of}, margin {self.margin:g}, kernels "
            f"{self.kernel_size} x {self.kernel_size}, stride {self.stride}, pool {self.pool}"
        )

    def classifier(self, shape: tuple[int, ...], classes: int, seed: int = 0) -> Classifier:
        """The untrained model.

        Args:
            shape: Of a sample.
            classes: Number of scores.
            seed: Of the parameters; the global random state is left as it was.

        Raises:
            ValueError: For names, widths or a γ that the layer refuses, samples that are no images for "conv", or
                "graph", whose nodes are no samples by themselves.
        """
        if self.kind == "graph":
            raise ValueError("the nodes of a graph are classified together: use NodeClassifier")
        make = {"dense": self._dense, "conv": self._convolutional, "field": self._field}[self.kind]
        return seeded(lambda: make(shape, classes), seed)

    def _dense(self, shape: tuple[int, ...], classes: int) -> Classifier:
        features = math.prod(shape)
        layer = BregmanDEQ(features, self.width, self.geometry, self.weight, self.regularization, margin=self.margin)
        return Classifier(layer, nn.Linear(self.width, classes), (features,))

    def _field(self, shape: tuple[int, ...], classes: int) -> Classifier:
        features = math.prod(shape)
        layer = CriticalPoint(
            Network(features, self.width, self.regularization), self.geometry, self.regularization, norm="weight"
        )
        return Classifier(layer, nn.Linear(self.width, classes), (features,))

    def _convolutional(self, shape: tuple[int, ...], classes: int) -> Classifier:
        if len(shape) != 3:
            raise ValueError(f"a sample of the shape {shape} is no image: a convolution needs images")
        channels, *size = shape
        rows, columns = (-(-n // self.stride) for n in size)
        if rows % self.pool or columns % self.pool:
            raise ValueError(f"pool = {self.pool} must divide the size of the representation, {rows} x {columns}")
        layer = BregmanDEQ2d(
            channels,
            self.width,
            self.kernel_size,
            self.geometry,
            self.weight,
            self.regularization,
            stride=self.stride,
            margin=self.margin,
        )
        features = self.width * (rows // self.pool) * (columns // self.pool)
        head = nn.Sequential(nn.AvgPool2d(self.pool), nn.Flatten(), nn.Linear(features, classes))
        return Classifier(layer, head, shape)


def build_classifier(
    architecture: Architecture,
    data: Dataset,
    seed: int,
    solver: str | Solver = "auto",
    adjoint: str | Adjoint = "implicit",
    state: Mapping[str, Tensor] | None = None,
) -> Classifier:
    """A model for a data set, where the data are.

    Args:
        architecture: What it is.
        data: Gives the shape of a sample, the number of classes, and the device.
        seed: Of the parameters; the global random state is left as it was.
        solver: Of the layer.
        adjoint: Of the layer.
        state: Parameters instead of the seed's.

    Raises:
        ValueError: See `Architecture.classifier`.
    """
    model = architecture.classifier(data.shape, data.classes, seed).to(data.train_x.device)
    model.layer.solver, model.layer.adjoint = solver, adjoint
    if state is not None:
        model.load_state_dict(dict(state))
    return model


def seeded(make: Callable[[], Made], seed: int) -> Made:
    """A model whose parameters depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
