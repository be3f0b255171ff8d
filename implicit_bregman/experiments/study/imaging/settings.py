"""What the study of Poisson imaging is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from implicit_bregman.experiments.study.imaging.pictures import BLURS, HELD_OUT, KERNEL, TRAINING, largest_size
from implicit_bregman.experiments.train.build import make_adjoint
from implicit_bregman.settings import check_choice, check_count, check_nonnegative, check_positive

GEOMETRIES = ("double_burg", "burg")
#: How the gradient is had.
METHODS = ("implicit", "one-step", "phantom", "unrolled-10", "unrolled-50")


@dataclass(frozen=True)
class Problem:
    """Pictures, noise and the layer.

    Attributes:
        blurs: Names, see `blur_kernel`.
        peaks: Photons of a white pixel.
        size: Side of the pictures that are judged, in pixels.
        geometry: φ: "double_burg" for z in 0 … 1, "burg" for z ≥ 0.
        regularization: γ.
        tol: Tolerance of the solver and of the implicit adjoint.
    """

    blurs: tuple[str, ...] = BLURS
    peaks: tuple[float, ...] = (40.0, 60.0, 100.0)
    size: int = 96
    geometry: str = "double_burg"
    regularization: float = 0.0
    tol: float = 1e-2

    def __post_init__(self) -> None:
        for name in self.blurs:
            check_choice("blurs", name, BLURS)
        for peak in self.peaks:
            check_positive("peaks", peak)
        check_choice("geometry", self.geometry, GEOMETRIES)
        check_nonnegative("regularization", self.regularization)
        check_positive("tol", self.tol)
        _check_distinct("blurs", self.blurs)
        _check_distinct("peaks", self.peaks)
        _check_size("size", self.size, HELD_OUT)


@dataclass(frozen=True)
class ImagingSettings:
    """The problem, and how long each method learns.

    Attributes:
        problem: Pictures, noise and the layer.
        methods: "implicit", "one-step", "phantom", "unrolled-L" or "truncated-K-of-L".
        seeds: Number of seeds.
        seconds: Processor time of a training, without what is measured.
        patch: Side of the parts that are learned from, in pixels.
        batch_size: Parts per step.
        filters: Of the regularizer.
        kernel_size: Of its filters.
        learning_rate: Adam's at the start; it falls to 0 as the time runs out, as half a cosine.

    Raises:
        ValueError: For an unknown name, one that is given twice, or a number out of range.
    """

    problem: Problem = field(default_factory=Problem)
    methods: tuple[str, ...] = METHODS
    seeds: int = 3
    seconds: float = 60.0
    patch: int = 32
    batch_size: int = 4
    filters: int = 16
    kernel_size: int = 5
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        for name in self.methods:
            make_adjoint(name)
        _check_distinct("methods", self.methods)
        for name in ("seeds", "batch_size", "filters"):
            check_count(name, getattr(self, name))
        check_positive("seconds", self.seconds)
        check_positive("learning_rate", self.learning_rate)
        _check_size("patch", self.patch, TRAINING)
        check_count("kernel_size", self.kernel_size)
        if self.kernel_size % 2 == 0 or self.kernel_size < 3:
            raise ValueError(f"kernel_size must be odd and at least 3, got {self.kernel_size}")

    @classmethod
    def quick(cls) -> ImagingSettings:
        """A subset for a look: a Gaussian blur, one peak, three methods, one seed, two seconds."""
        problem = Problem(("gaussian",), (60.0,), 48)
        return cls(problem, ("implicit", "one-step", "unrolled-10"), 1, 2.0)


def _check_distinct(name: str, values: tuple[object, ...]) -> None:
    if not values:
        raise ValueError(f"{name} must name at least one, got none")
    if len(set(values)) != len(values):
        raise ValueError(f"{name} must be different, got {', '.join(map(str, values))}")


def _check_size(name: str, size: int, pictures: tuple[str, ...]) -> None:
    check_count(name, size)
    most = largest_size(pictures)
    if not KERNEL <= size <= most:
        raise ValueError(f"{name} must be between {KERNEL} and {most} pixels, the size of the pictures, got {size}")
