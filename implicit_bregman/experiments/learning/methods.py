"""The rows of the comparison: a solver and an adjoint each."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from implicit_bregman.adjoints import Implicit, OneStep, Phantom, Unrolled
from implicit_bregman.solvers import MM, Anderson, Broyden, Newton, TorchDEQ

Solver = MM | Anderson | Broyden | Newton | TorchDEQ | str
Adjoint = Implicit | OneStep | Phantom | Unrolled

UNROLLED_DEPTHS = (1, 2, 5, 10, 20, 50, 100)
TRUNCATED = (5, 50)  # differentiate the last 5 of 50 steps
TORCHDEQ_MAX_ITER = 50  # torchdeq's own default

_UNROLLED = re.compile(r"unrolled-([1-9]\d*)")
_TRUNCATED = re.compile(r"truncated-([1-9]\d*)-of-([1-9]\d*)")
_SOLVERS = {
    "implicit-newton": Newton,
    "implicit-anderson": Anderson,
    "implicit-broyden": Broyden,
    "implicit-mm": MM,
}
_FIXED = ("implicit", *_SOLVERS, "implicit-torchdeq", "one-step", "phantom")


@dataclass(frozen=True)
class Method:
    """One way to compute the representation and its gradient.

    Attributes:
        name: Name of the row.
        family: "implicit", "one-step", "phantom", "unrolled" or "truncated".
        solver: Solver of the forward pass.
        adjoint: Gradient rule of the backward pass.
        depth: L, the number of MM steps; None where a solver decides.
    """

    name: str
    family: str
    solver: Solver
    adjoint: Adjoint
    depth: int | None = None

    @property
    def solves(self) -> bool:
        """Whether the forward pass goes on until a solver has converged."""
        return self.depth is None


def default_rows() -> tuple[str, ...]:
    """Names of the rows of the whole comparison; the torchdeq row only where torchdeq is installed.

    "implicit" is left out: the layer's own choice of solver is one of the named ones.
    """
    last, of = TRUNCATED
    known = [name for name in _FIXED[1:] if name != "implicit-torchdeq" or torchdeq_installed()]
    return (*known, f"truncated-{last}-of-{of}", *(f"unrolled-{depth}" for depth in UNROLLED_DEPTHS))


def make_methods(names: Sequence[str], tol: float | None = None, max_iter: int | None = None) -> tuple[Method, ...]:
    """Build rows from their names.

    Args:
        names: "implicit" (the layer's own choice of solver), "implicit-newton", "implicit-mm",
            "implicit-anderson", "implicit-broyden", "implicit-torchdeq" (torchdeq's Anderson, without an exact
            solve and by default within torchdeq's own 50 iterations), "one-step", "phantom", "unrolled-L" or
            "truncated-K-of-L" with whole numbers K ≤ L.
        tol: Tolerance of the named solvers; None: the solvers' default.
        max_iter: Largest number of iterations of the named solvers; None: the solvers' default.

    Returns:
        One method per name, in the same order.

    Raises:
        ValueError: For an unknown or repeated name, no name at all, or settings that a solver refuses.
    """
    if not names:
        raise ValueError("no rows: name at least one, for example implicit,unrolled-10")
    if len(set(names)) != len(names):
        raise ValueError(f"a row is named twice in {','.join(names)}")
    settings: dict[str, Any] = {
        key: value for key, value in (("tol", tol), ("max_iter", max_iter)) if value is not None
    }
    return tuple(_make(name, settings) for name in names)


def _make(name: str, settings: dict[str, Any]) -> Method:
    if name == "implicit":
        return Method(name, "implicit", "auto", Implicit())
    if name in _SOLVERS:
        return Method(name, "implicit", _SOLVERS[name](**settings), Implicit())
    if name == "implicit-torchdeq":
        if not torchdeq_installed():
            raise ValueError("row 'implicit-torchdeq' needs the package torchdeq: pip install torchdeq")
        # As torchdeq runs it: within its own number of iterations, without this library's exact solve.
        settings = {"max_iter": TORCHDEQ_MAX_ITER, **settings}
        return Method(name, "implicit", TorchDEQ(method="anderson", exact=False, **settings), Implicit())
    if name == "one-step":
        return Method(name, "one-step", "auto", OneStep())
    if name == "phantom":
        return Method(name, "phantom", "auto", Phantom())
    if match := _UNROLLED.fullmatch(name):
        depth = int(match[1])
        return Method(name, "unrolled", "auto", Unrolled(steps=depth), depth)
    if match := _TRUNCATED.fullmatch(name):
        last, depth = int(match[1]), int(match[2])
        return Method(name, "truncated", "auto", Unrolled(steps=depth, last=last), depth)
    raise ValueError(
        f"unknown row {name!r}; the known ones are {', '.join(_FIXED)}, unrolled-L and truncated-K-of-L "
        "with numbers K <= L"
    )


def torchdeq_installed() -> bool:
    """Whether the optional package torchdeq is there."""
    return importlib.util.find_spec("torchdeq") is not None
