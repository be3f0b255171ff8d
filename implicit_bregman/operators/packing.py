"""From things made of tensors to a flat tuple of these, and back: for autograd's context, and for functions of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from itertools import islice
from typing import Any

from torch import Tensor

#: Types of what holds no tensors.
_PLAIN = frozenset({type(None), bool, int, float, str})

Make = Callable[[Iterator[Tensor]], Any]


def packed(part: Any) -> tuple[tuple[Tensor, ...], Callable[..., Any]]:
    """All tensors in `part`, in order, and a function that makes the same of such tensors and holds none itself.

    `part` may be a tensor, something with a `pack` of its own, a list, tuple or dataclass of such parts, or whatever
    else holds no tensors.
    """
    tensors: list[Tensor] = []
    make = _taken_apart(part, tensors)
    return tuple(tensors), partial(_made, make)


def _made(make: Make, *tensors: Tensor) -> Any:
    return make(iter(tensors))


def _taken_apart(part: Any, into: list[Tensor]) -> Make:
    # (first what needs no look: this is done in every call)
    if type(part) in _PLAIN:
        return partial(_as_it_is, part)
    if isinstance(part, Tensor):
        into.append(part)
        return next
    if hasattr(part, "pack"):
        own, rebuild = part.pack()
        into += own
        return partial(_by_itself, rebuild, len(own))
    if isinstance(part, (list, tuple)):
        return partial(_sequence, type(part), [_taken_apart(one, into) for one in part])
    if is_dataclass(part):
        values = {field.name: _taken_apart(getattr(part, field.name), into) for field in fields(part)}
        return partial(_dataclass, type(part), values)
    return partial(_as_it_is, part)


def _by_itself(rebuild: Callable[..., Any], count: int, tensors: Iterator[Tensor]) -> Any:
    return rebuild(*islice(tensors, count))


def _sequence(kind: Callable[[Any], Any], makes: list[Make], tensors: Iterator[Tensor]) -> Any:
    return kind(make(tensors) for make in makes)


def _dataclass(kind: Callable[..., Any], makes: dict[str, Make], tensors: Iterator[Tensor]) -> Any:
    return kind(**{name: make(tensors) for name, make in makes.items()})


def _as_it_is(part: Any, tensors: Iterator[Tensor]) -> Any:
    return part
