"""Base of the objects that hold the settings of a solver or an adjoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

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


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises:
        ValueError: naming the setting and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_positive(name: str, value: object) -> None:
    """Refuse what is not a finite positive number.

    Raises:
        ValueError: naming the setting and the value.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 < value < math.inf):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")


def check_nonnegative(name: str, value: object) -> float:
    """A finite number ≥ 0 as a float.

    Raises:
        ValueError: naming the setting and the value.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value < math.inf):
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
    return float(value)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is not one of `choices`.

    Raises:
        ValueError: naming the setting, the value and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
