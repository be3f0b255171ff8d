"""Which coordinates of a representation sit on a bound of the domain."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from implicit_bregman.legendre import MirrorMap

# A coordinate this close to a bound, relative to 1 + |bound|, counts as active.
ACTIVE = 1e-6


def active_coordinates(value: Float[Tensor, "*batch d"], geometry: MirrorMap) -> Bool[Tensor, "*batch d"]:
    """Whether each coordinate is within 1e-6, relative to 1 + |bound|, of a bound; an infinite bound has none.

    Args:
        value: z, (B, d).
        geometry: φ.
    """
    lo, hi = geometry.domain
    return (value <= lo + ACTIVE * (1 + abs(lo))) | (value >= hi - ACTIVE * (1 + abs(hi)))


def has_bound(geometry: MirrorMap) -> bool:
    """Whether the domain has a finite end."""
    return not geometry.is_everything
