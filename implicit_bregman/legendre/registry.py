"""Lookup of Legendre functions by name."""

from __future__ import annotations

import inspect

from implicit_bregman.legendre.base import LegendreFunction
from implicit_bregman.legendre.halfline import Bent, Burg, Exp, Softplus
from implicit_bregman.legendre.line import Arcsinh, Identity
from implicit_bregman.legendre.scaled_tanh import ScaledTanh
from implicit_bregman.legendre.sigmoidal import ISRU, DoubleBurg, Sigmoid, Tanh
from implicit_bregman.legendre.trigonometric import Arctan, Sin

_CATALOGUE: dict[str, type[LegendreFunction]] = {
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
        Burg,
        DoubleBurg,
    )
}
#: With default parameters: what they have computed of themselves is kept from call to call.
_DEFAULTS = {name: function() for name, function in _CATALOGUE.items()}


def geometries() -> tuple[str, ...]:
    """The names that `geometry` knows."""
    return tuple(_CATALOGUE)


def geometry(name_or_instance: str | LegendreFunction, **parameters: float) -> LegendreFunction:
    """The Legendre function of that name.

    Args:
        name_or_instance: One of `geometries()`, or a Legendre function, which is returned as it is.
        **parameters: Parameters of the named function: `scale` (isru, default 1), `sharpness` (softplus, 1),
            `scale` and `slope` (scaled_tanh, 1.7159 and 2/3), `smoothness` (bent, 1).

    Returns:
        The function, an immutable value.

    Raises:
        ValueError: For an unknown name, an unknown parameter, or a parameter that is not positive and finite.
        TypeError: If `name_or_instance` is neither a string nor a Legendre function.
    """
    if isinstance(name_or_instance, LegendreFunction):
        if parameters:
            raise ValueError(
                f"parameters {sorted(parameters)} have no effect on the instance {name_or_instance!r}; "
                "give them when you construct it"
            )
        return name_or_instance
    if not isinstance(name_or_instance, str):
        raise TypeError(
            f"geometry: got {type(name_or_instance).__name__}; give a LegendreFunction or one of {geometries()}"
        )
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
