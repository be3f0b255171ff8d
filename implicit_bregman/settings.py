"""Base of the objects that hold the settings of a solver or an adjoint."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

FAILURE_MODES = ("warn", "raise", "ignore")


@dataclass(frozen=True)
class Settings:
    """A frozen dataclass of settings that names the valid ones when it is given an unknown one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Settings:
        """Refuse unknown settings by name, with the list of the known ones."""
        known = [field.name for field in fields(cls)]
        for name in kwargs:
            if name not in known:
                raise TypeError(f"{cls.__name__} has no setting {name!r}; its settings are {', '.join(known)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Keep numbers as Python's own: NumPy's compute by rules of their own, also with tensors."""
        for field in fields(self):
            value = getattr(self, field.name)
            if is_number(value, numbers.Real):
                plain = int(value) if is_number(value, numbers.Integral) else float(value)
                object.__setattr__(self, field.name, plain)


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises:
        ValueError: naming the setting and the value.
    """
    if not (is_number(value, numbers.Integral) and value >= least):  # type: ignore[operator]
        raise ValueError(f"{name} must be a whole number of at least {least}, got {_shown(value)}")


def check_positive(name: str, value: object) -> None:
    """Refuse what is not a finite positive number.

    Raises:
        ValueError: naming the setting and the value.
    """
    if not (is_number(value, numbers.Real) and 0 < value < math.inf):  # type: ignore[operator]
        raise ValueError(f"{name} must be positive and finite, got {_shown(value)}")


def check_nonnegative(name: str, value: object) -> float:
    """A finite number ≥ 0 as a float.

    Raises:
        ValueError: naming the setting and the value.
    """
    if not (is_number(value, numbers.Real) and 0 <= value < math.inf):  # type: ignore[operator]
        raise ValueError(f"{name} must be a finite number >= 0, got {_shown(value)}")
    return float(value)  # type: ignore[arg-type]


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is not one of `choices`.

    Raises:
        ValueError: naming the setting, the value and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def is_number(value: object, kind: type) -> bool:
    """Whether it is a number of that kind, NumPy's included; a bool is none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _shown(value: object) -> str:
    """A refused value; a tensor is a number to those who know that no gradient flows to it."""
    return f"{value!r}: it has no gradient here, give float(...)" if isinstance(value, Tensor) else repr(value)
