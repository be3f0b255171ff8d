"""Adjoints by name."""

from __future__ import annotations

from functools import cache

from implicit_bregman.adjoints.base import Adjoint
from implicit_bregman.adjoints.implicit import Implicit
from implicit_bregman.adjoints.phantom import OneStep, Phantom
from implicit_bregman.adjoints.shine import Shine
from implicit_bregman.adjoints.unrolled import Unrolled

_ADJOINTS: dict[str, type[Adjoint]] = {
    "implicit": Implicit,
    "unrolled": Unrolled,
    "phantom": Phantom,
    "one_step": OneStep,
    "shine": Shine,
}


def adjoint_named(adjoint: str | Adjoint) -> Adjoint:
    """An adjoint with its default settings, by name; an instance passes through.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything that is neither a name nor an adjoint.
    """
    if isinstance(adjoint, Adjoint):
        return adjoint
    if not isinstance(adjoint, str):
        raise TypeError(f"adjoint must be a name or an instance such as adjoints.Implicit(), got {adjoint!r}")
    if adjoint not in _ADJOINTS:
        raise ValueError(f"adjoint must be one of {', '.join(_ADJOINTS)}, got {adjoint!r}")
    return _with_defaults(adjoint)


@cache
def _with_defaults(name: str) -> Adjoint:
    """Made once, since settings are checked when they are made."""
    return _ADJOINTS[name]()
