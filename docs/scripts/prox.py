"""How accurately the proximal map of γφ is found, for the table of docs/splitting.md.

Run

    python docs/scripts/prox.py

It needs mpmath. The error is that of the equation ρ(y) + wy = v, with ρ by mpmath at the y that was found, in rounding
errors of the largest of its terms; the largest over both signs of v and the weights w.
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import torch

import implicit_bregman as ib
from implicit_bregman.legendre.prox import prox_dual

ACTIVATIONS: dict[str, Callable[[mpmath.mpf], mpmath.mpf]] = {
    "isru": lambda y: y / mpmath.sqrt(1 + y * y),
    "sigmoid": lambda y: 1 / (1 + mpmath.exp(-y)),
    "softplus": lambda y: mpmath.log1p(mpmath.exp(y)),
    "arctan": mpmath.atan,
    "tanh": mpmath.tanh,
    "sin": lambda y: mpmath.sin(min(max(y, -mpmath.pi / 2), mpmath.pi / 2)),
    "arcsinh": mpmath.asinh,
    "identity": lambda y: y,
    "exp": mpmath.exp,
}
SIZES = (1e-30, 1e-3, 1.0, 1e4, 1e30)
WEIGHTS = (1e-6, 0.3, 50.0)


def error(name: str, size: float, dtype: torch.dtype) -> float:
    """The largest error at |v| = `size`, in rounding errors."""
    worst, phi = 0.0, ib.geometry(name)
    for weight in WEIGHTS:
        v = torch.tensor([-size, size], dtype=dtype)
        for y, target in zip(prox_dual(phi, v, weight).tolist(), v.tolist(), strict=True):
            with mpmath.workdps(80):
                z, pull, at = ACTIVATIONS[name](mpmath.mpf(y)), mpmath.mpf(weight) * mpmath.mpf(y), mpmath.mpf(target)
                terms = max(abs(z), abs(pull), abs(at))
                worst = max(worst, float(abs(z + pull - at) / terms) / torch.finfo(dtype).eps)
    return worst


def main() -> None:
    """Print the table."""
    columns = [(dtype, size) for dtype in (torch.float32, torch.float64) for size in SIZES]
    heads = [f"{str(dtype).removeprefix('torch.')}, {size:g}" for dtype, size in columns]
    print("| geometry | " + " | ".join(heads) + " |")
    print("| --- |" + " ---: |" * len(columns))
    for name in ACTIVATIONS:
        print(f"| {name} | " + " | ".join(f"{error(name, size, dtype):.1f}" for dtype, size in columns) + " |")


if __name__ == "__main__":
    main()
