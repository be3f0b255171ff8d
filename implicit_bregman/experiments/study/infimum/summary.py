"""Differences to the limit's infimum, how far they can be trusted, and their rate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

LEAST = 1e-10


def differences(result: dict[str, Any], key: str) -> list[float]:
    """What a series is above inf_∞, one per depth."""
    return [value - result["inf"][-1] for value in result[key][:-1]]


def floors(result: dict[str, Any]) -> list[float]:
    """Below what a difference may be an optimization gap, one per depth."""
    *before, limit = result["before"]
    earlier = [value - limit for value in before]
    return [max(10 * abs(now - was), LEAST) for now, was in zip(differences(result, "inf"), earlier, strict=True)]


def fit(depths: tuple[int, ...], values: list[float], floor: list[float]) -> tuple[str, float] | None:
    """The law that fits log |value| better, "geometric" (C q^L) or "power" (C L^-p), and q or p.

    None if fewer than four values are above the floor.
    """
    kept = [(L, abs(v)) for L, v, f in zip(depths, values, floor, strict=True) if abs(v) > f]
    if len(kept) < 4:
        return None
    places, logs = np.array([L for L, _ in kept], dtype=float), np.log([v for _, v in kept])
    errors = {}
    for law, at in (("geometric", places), ("power", np.log(places))):
        slope, offset = np.polyfit(at, logs, 1)
        parameter = math.exp(slope) if law == "geometric" else -slope
        errors[law] = (float(np.square(slope * at + offset - logs).sum()), float(parameter))
    law = min(errors, key=lambda name: errors[name][0])
    return law, errors[law][1]


Found = dict[str, list[dict[str, Any]]]
