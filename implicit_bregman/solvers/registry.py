"""Solvers by name."""

from __future__ import annotations

from functools import cache

from implicit_bregman.solvers.anderson import Anderson
from implicit_bregman.solvers.auto import Auto
from implicit_bregman.solvers.base import Solver
from implicit_bregman.solvers.broyden import Broyden
from implicit_bregman.solvers.mm import MM
from implicit_bregman.solvers.newton import Newton
from implicit_bregman.solvers.splitting import Splitting

_SOLVERS: dict[str, type[Solver]] = {
    "auto": Auto,
    "mm": MM,
    "anderson": Anderson,
    "broyden": Broyden,
    "newton": Newton,
    "splitting": Splitting,
}


def solver_named(solver: str | Solver) -> Solver:
    """A solver with its default settings, by name ("auto" is Auto); an instance passes through.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything that is neither a name nor a solver.
    """
    if isinstance(solver, Solver):
        return solver
    if not isinstance(solver, str):
        raise TypeError(f"solver must be a name or an instance such as solvers.Anderson(), got {solver!r}")
    if solver not in _SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(_SOLVERS)}, got {solver!r}")
    return _with_defaults(solver)


@cache
def _with_defaults(name: str) -> Solver:
    """Made once, since settings are checked when they are made."""
    return _SOLVERS[name]()
