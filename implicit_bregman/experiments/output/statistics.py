"""Means and spreads over seeds, and numbers that JSON can hold."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Statistic:
    """A quantity measured once per seed.

    Attributes:
        values: One value per seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds, NaN if one of them is not finite."""
        return statistics.fmean(self.values) if self._finite else math.nan

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single seed or if one is not finite."""
        return statistics.stdev(self.values) if len(self.values) > 1 and self._finite else None

    @property
    def _finite(self) -> bool:
        return all(map(math.isfinite, self.values))


def statistic(values: Sequence[float | None]) -> Statistic | None:
    """The statistic of one value per seed, or None if a seed has none."""
    present = [value for value in values if value is not None]
    return Statistic(tuple(present)) if present and len(present) == len(values) else None


def finite(value: object) -> object:
    """The same, containers included, with None for the NaN and infinities that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def median_of(values: Sequence[float | None]) -> float | None:
    """The median of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation of the seeds, see `Statistic`."""
    statistic = Statistic(tuple(values))
    return statistic.mean, statistic.spread
