"""Points drawn at random, for any geometry."""

from __future__ import annotations

from torch import Tensor

from implicit_bregman import LegendreFunction


def dual_of(phi: LegendreFunction, draw: Tensor) -> Tensor:
    """A dual for every real number: itself, or, where φ' has one sign only (burg), its exponential with that sign."""
    return draw if phi.has_every_dual else phi.middle * draw.exp()
