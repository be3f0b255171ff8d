"""Keeping torch.compile out of code that it cannot follow."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """`torch.compiler.disable`, without importing the compiler where nobody uses it (it takes as long as torch)."""
    disabled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    # The mark by which the compiler knows, while it traces a caller, to break the graph here.
    wrapper._torchdynamo_disable = True  # type: ignore[attr-defined]
    return wrapper
