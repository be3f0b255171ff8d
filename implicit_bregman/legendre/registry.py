"""Lookup of mirror maps by name."""

from __future__ import annotations

import inspect

from implicit_bregman.legendre.halfline import Bent, Exp, Softplus
from implicit_bregman.legendre.line import Arcsinh, Identity
from implicit_bregman.legendre.mirror import MirrorMap
from implicit_bregman.legendre.scaled_tanh import ScaledTanh
from implicit_bregman.legendre.sigmoidal import ISRU, Sigmoid, Tanh
from implicit_bregman.legendre.simplex import Simplex
from implicit_bregman.legendre.trigonometric import Arctan, Sin

_CATALOGUE: dict[str, type[MirrorMap]] = {
    function.name: function
    for function in (
        ISRU,
        Sigmoid,
        Softplus,
        Arctan,
        Tanh,
        Sin,
        Arcsinh,
        Identity,
        ScaledTanh,
        Exp,
        Bent,
        Simplex,
    )
}
#: With default parameters: what they have computed of themselves is kept from call to call.
_DEFAULTS = {name: function() for name, function in _CATALOGUE.items()}


def geometries() -> tuple[str, ...]:
    """The names that `geometry` knows."""
    return tuple(_CATALOGUE)


def separable_geometries() -> tuple[str, ...]:
    """Those of the geometries in which every coordinate is on its own."""
    return tuple(name for name, phi in _DEFAULTS.items() if phi.coupling is None)


def geometry(name_or_instance: str | MirrorMap, **parameters: float) -> MirrorMap:
    """The mirror map of that name.

    Args:
        name_or_instance: One of `geometries()`, or a mirror map, which is returned as it is.
        **parameters: Parameters of the named function: `scale` (isru, default 1), `sharpness` (softplus, 1),
            `scale` and `slope` (scaled_tanh, 1.7159 and 2/3), `smoothness` (bent, 1), `total`, `lo`, `hi`, `order`
            and `size` (simplex, 1, 0, None, 1 and None).

    Returns:
        The function, an immutable value.

    Raises:
        ValueError: For an unknown name, an unknown parameter, or a parameter out of its range.
        TypeError: If `name_or_instance` is neither a string nor a mirror map.
    """
    if isinstance(name_or_instance, MirrorMap):
        if parameters:
            raise ValueError(
                f"parameters {sorted(parameters)} have no effect on the instance {name_or_instance!r}; "
                "give them when you construct it"
            )
        return name_or_instance
    if not isinstance(name_or_instance, str):
        kind = type(name_or_instance).__name__
        raise TypeError(f"geometry: got {kind}; give a LegendreFunction or one of {geometries()}")
    if name_or_instance not in _CATALOGUE:
        raise ValueError(f"unknown geometry {name_or_instance!r}; known: {', '.join(geometries())}")
    if not parameters:
        return _DEFAULTS[name_or_instance]
    function = _CATALOGUE[name_or_instance]
    known = tuple(inspect.signature(function).parameters)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(
            f"geometry {name_or_instance!r} has no parameter {', '.join(map(repr, unknown))}; "
            f"known: {', '.join(known) or 'none'}"
        )
    return function(**parameters)
