"""How many operators a run calls, and how often it waits for a value: what a GPU, or a small problem, pays for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# Their results are values, or checked: on a GPU the host waits for them.
_READ = {
    _aten._local_scalar_dense,
    _aten._linalg_check_errors,
    _aten._linalg_eigh,
    _aten._linalg_svd,
    _aten.allclose,
    _aten.equal,
    _aten.linalg_eig,
}
# The shapes of their results depend on values: the host waits for these, and no CUDA graph can record them.
_SHAPED = {_aten._unique2, _aten.masked_select, _aten.nonzero, _aten.unique_consecutive, _aten.unique_dim}
_INDEXED = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_COPIED = {Tensor.tolist, Tensor.numpy}  # they read the storage, past the dispatcher


@dataclass
class Calls:
    """What one run calls.

    Attributes:
        operators: Calls of operators that reach PyTorch's dispatcher, views and the backward pass included.
        synchronisations: How many of them make the host wait on a GPU: a value is read, or decides on a shape.
        shapes: How many of these have a result whose shape depends on values.
    """

    operators: int = 0
    synchronisations: int = 0
    shapes: int = 0


class _Operators(TorchDispatchMode):
    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.operators += 1
        shaped = _is_shaped(func.overloadpacket, args)
        self.calls.shapes += shaped
        self.calls.synchronisations += shaped or func.overloadpacket in _READ
        return func(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.synchronisations += func in _COPIED
        return func(*args, **(kwargs or {}))


def _is_shaped(operator: Any, args: Any) -> bool:
    if operator in _INDEXED:
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return operator in _SHAPED


def count_calls(run: Callable[[], object]) -> Calls:
    """Run it once and count. It takes longer so: time it without."""
    calls = Calls()
    with _Copies(calls), _Operators(calls):
        run()
    return calls
