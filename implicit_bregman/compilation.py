"""Keeping torch.compile and autocast out of code that they would break."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """`torch.compiler.disable`, without importing the compiler where nobody uses it (it takes as long as torch)."""
    disabled: Callable[P, R] | None = None

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal disabled
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if disabled is None:
            disabled = torch.compiler.disable(function)
        return disabled(*args, **kwargs)

    # The mark by which the compiler knows, while it traces a caller, to break the graph here.
    wrapper._torchdynamo_disable = True  # type: ignore[attr-defined]
    wrapper._torchdynamo_disable_msg = "how many steps it makes depends on the data"  # type: ignore[attr-defined]
    return wrapper


def uncompiled_before_2_11(function: Callable[P, R]) -> Callable[P, R]:
    """A function of a geometry, which `torch.compile` records; before PyTorch 2.11 the graph breaks there.

    PyTorch 2.6 fails to rebuild a frozen dataclass some of whose fields its constructor does not take.
    """
    return function if torch.__version__ >= "2.11" else uncompiled(function)


def without_autocast(device_type: str) -> AbstractContextManager[None]:
    """A context in which autocast is off; it costs nothing where it is off already."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
