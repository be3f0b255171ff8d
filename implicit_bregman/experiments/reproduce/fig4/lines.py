"""The line that separates two classes of points best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import csr_array, hstack, identity
from torch import Tensor


@dataclass(frozen=True)
class Line:
    """The line that violates the margins of two classes least in sum, {z : normal · z = offset}.

    Attributes:
        normal: Its normal vector.
        offset: Where it lies.
        excess: Mean violation of the margin 1; 0 if and only if the classes are linearly separable.
        accuracy: Share of the points on the right side.
    """

    normal: tuple[float, float]
    offset: float
    excess: float
    accuracy: float

    @property
    def separates(self) -> bool:
        """Whether every point is on the right side."""
        return self.accuracy == 1.0


def best_line(points: Tensor, labels: Tensor) -> Line:
    """A linear program: minimize the mean of s subject to ±(normal · z - offset) ≥ 1 - s, s ≥ 0.

    Args:
        points: `(n, 2)`.
        labels: 0 or 1, `(n,)`.

    Raises:
        RuntimeError: If the solver fails.
    """
    z: npt.NDArray[np.float64] = points.double().cpu().numpy()
    sign = 2.0 * labels.cpu().numpy() - 1.0
    count = len(z)
    plane = csr_array(-sign[:, None] * np.column_stack([z, -np.ones(count)]))
    found = linprog(
        np.concatenate([np.zeros(3), np.full(count, 1 / count)]),
        A_ub=hstack([plane, -identity(count)]),
        b_ub=-np.ones(count),
        bounds=[(None, None)] * 3 + [(0, None)] * count,
        method="highs",
    )
    if found.status != 0:
        raise RuntimeError(f"no line was found: {found.message}")
    normal, offset = found.x[:2], float(found.x[2])
    right = sign * (z @ normal - offset) > 0
    return Line((float(normal[0]), float(normal[1])), offset, float(found.fun), float(right.mean()))
