"""The cells that are no single dense matrix: convolutional layers, and networks as fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class ConvolutionCell:
    """A convolutional layer of images, from the kernels to the gradients of all parameters and of x.

    Attributes:
        name: Name, as `--cells` takes it.
        channels: c, of x and of z.
        size: Height and width of the images.
        weight: "convex", or "monotone" (not symmetric).
        regularization: γ.
        scale: How much larger the kernels are than monDEQ draws them.
        condition: Condition number of H, or of its symmetric part, about.
        batch: B.
        geometry: Name of φ.
        margin: The least eigenvalue of H's symmetric part.
        dtype: "float32" or "float64".
    """

    name: str
    channels: int = 16
    size: int = 14
    weight: str = "convex"
    regularization: float = 0.0
    scale: float = 1.0
    condition: float = 14.0
    batch: int = 32
    geometry: str = "softplus"
    margin: float = 0.1
    dtype: str = "float32"
    family: ClassVar[str] = "convolution"

    @property
    def text(self) -> str:
        """What it is, in one line."""
        return (
            f"{self.weight} convolution, {self.geometry}, {self.channels} × {self.size} × {self.size}, "
            f"B = {self.batch}, condition about {self.condition:g}, γ = {self.regularization:g}, {self.dtype}"
        )

    @property
    def facts(self) -> dict[str, object]:
        """The same for tables and verdicts."""
        return {
            "family": self.family,
            "name": self.name,
            "kind": self.weight,
            "geometry": self.geometry,
            "dim": self.channels * self.size**2,
            "batch": self.batch,
            "condition": self.condition,
            "active": None,
            "regularization": self.regularization,
            "dtype": self.dtype,
            "margin": self.margin,
        }


@dataclass(frozen=True)
class FieldCell:
    """A network N as a field: z = N(z, x), differentiated for its parameters and for x.

    Attributes:
        name: Name, as `--cells` takes it.
        network: "mlp", "transformer" or "resnet".
        event: Shape of z: features, or tokens and channels, or channels, height and width.
        batch: B.
        dtype: "float32" or "float64".
    """

    name: str
    network: str
    event: tuple[int, ...]
    batch: int
    dtype: str = "float32"
    family: ClassVar[str] = "field"

    @property
    def text(self) -> str:
        """What it is, in one line."""
        return f"z = N(z, x), {self.network}, {' × '.join(map(str, self.event))}, B = {self.batch}, {self.dtype}"

    @property
    def facts(self) -> dict[str, object]:
        """The same for tables and verdicts."""
        return {
            "family": self.family,
            "name": self.name,
            "kind": self.network,
            "geometry": "identity",
            "dim": torch.Size(self.event).numel(),
            "batch": self.batch,
            "condition": None,
            "active": None,
            "regularization": 1.0,
            "dtype": self.dtype,
            "margin": None,
        }


def _convolutions() -> tuple[ConvolutionCell, ...]:
    """Two sizes, with and without symmetry, γ = 0 and 1, and one that is worse conditioned."""
    cells = [
        ConvolutionCell(f"conv-{channels}x{size}-{weight}-gamma{gamma:g}", channels, size, weight, gamma)
        for channels, size in ((16, 14), (32, 16))
        for weight in ("convex", "monotone")
        for gamma in (0.0, 1.0)
    ]
    return (*cells, ConvolutionCell("conv-16x14-convex-gamma0-cond122", scale=3.0, condition=122.0))


CONVOLUTIONS = _convolutions()
FIELDS = (
    FieldCell("field-mlp", "mlp", (256,), 64),
    FieldCell("field-transformer", "transformer", (16, 64), 16),
    FieldCell("field-resnet", "resnet", (32, 16, 16), 8),
)
