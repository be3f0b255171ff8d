"""Base of the objects that hold the settings of a solver or an adjoint."""

from __future__ import annotations

import inspect
import math
import numbers
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

FAILURE_MODES = ("warn", "raise", "ignore")


class _TakesOldNames(type):
    """Constructors take renamed settings by their old names as well: an `__init__` could not, without more fields."""

    aliases: Mapping[str, str]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        for old in [name for name in kwargs if name in cls.aliases]:
            new, value = cls.aliases[old], kwargs.pop(old)
            if kwargs.setdefault(new, value) != value:
                raise ValueError(
                    f"{new}={kwargs[new]!r} and {old}={value!r} contradict each other: "
                    f"{old} is the old name of the setting, give {new} alone"
                )
            _warn(f"{cls.__name__}({old}=...)", f"the setting is now called {new}")
        return super().__call__(*args, **kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of `__init__`, which `__call__` would hide."""
        own = inspect.signature(cls.__init__)  # type: ignore[misc]
        return own.replace(parameters=list(own.parameters.values())[1:])


@dataclass(frozen=True)
class Settings(metaclass=_TakesOldNames):
    """A frozen dataclass of settings that names the valid ones when it is given an unknown one.

    Attributes:
        aliases: old names of settings, with the present ones. They are accepted, with a `DeprecationWarning`.
    """

    aliases: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the old names attributes that can be read."""
        super().__init_subclass__(**kwargs)
        for old, new in cls.aliases.items():
            if old in vars(cls):
                raise TypeError(f"{cls.__name__} cannot define {old!r}: it is the old name of the setting {new!r}")
            if not hasattr(cls, old):
                setattr(cls, old, renamed(old, new))

    def __new__(cls, *args: Any, **kwargs: Any) -> Settings:
        """Refuse unknown settings by name, with the list of the known ones."""
        known = [field.name for field in fields(cls)]
        for name in kwargs:
            if name not in known:
                raise TypeError(f"{cls.__name__} has no setting {name!r}; its settings are {', '.join(known)}")
        return super().__new__(cls)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read pickles that have old names too."""
        self.__dict__.update({self.aliases.get(name, name): value for name, value in state.items()})

    def __post_init__(self) -> None:
        """Keep numbers as Python's own: NumPy's compute by rules of their own, also with tensors."""
        for field in fields(self):
            value = getattr(self, field.name)
            if is_number(value, numbers.Real):
                plain = int(value) if is_number(value, numbers.Integral) else float(value)
                object.__setattr__(self, field.name, plain)


def renamed(old: str, new: str) -> property:
    """A deprecated attribute `old`, which is the attribute `new`."""

    def read(self: object) -> Any:
        _warn(f"{type(self).__name__}.{old}", f"it is now called {new}")
        return getattr(self, new)

    return property(read, doc=f"Deprecated: the old name of `{new}`.")


def _warn(name: str, remedy: str) -> None:
    """Warn whoever has called the caller."""
    warnings.warn(f"{name} is deprecated: {remedy}", DeprecationWarning, stacklevel=3)


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
