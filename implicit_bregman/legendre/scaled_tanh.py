"""The scaled hyperbolic tangent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from implicit_bregman.legendre.arguments import positive_float
from implicit_bregman.legendre.box import AffineImage, BoundedLegendreFunction
from implicit_bregman.legendre.sigmoidal import Tanh

_TANH = Tanh()


@dataclass(frozen=True, init=False, repr=False)
class ScaledTanh(AffineImage):
    """ρ(y) = a tanh(b y) on [−a, a] with scale a and slope b.

    The defaults are those of LeCun et al., "Efficient BackProp" (1998); σ = 1/(a b) is then below 1.
    """

    scale: float
    gain: float

    name: ClassVar[str] = "scaled_tanh"

    # Written out because a field called `slope` would hide the method of that name.
    def __init__(self, scale: float = 1.7159, slope: float = 2.0 / 3.0) -> None:
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "gain", positive_float(slope, f"{self.name}: slope"))
        self.__post_init__()

    def __repr__(self) -> str:
        return f"ScaledTanh(scale={self.scale!r}, slope={self.gain!r})"

    @property
    def domain(self) -> tuple[float, float]:
        return -self.scale, self.scale

    @property
    def _source(self) -> BoundedLegendreFunction:
        return _TANH

    @property
    def _dual_scale(self) -> float:
        return self.gain
