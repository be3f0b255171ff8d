"""How much memory a forward pass holds for its backward pass, counted exactly, the peak on a GPU, and what is freed."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks

#: The names of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for what it allocates next.

    By default glibc gives every large tensor back to the system at once and gets it anew, page by page and set to
    zero, for the next. A run of `train --model conv` on a CPU spent half of its time on that.

    Returns:
        Whether the C library can do it: glibc, that is Linux.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


class _Storages:
    """A set of distinct storages. It keeps them alive, so that no address is used twice while it counts."""

    def __init__(self) -> None:
        self._held: dict[int, Tensor] = {}

    def add(self, tensor: Tensor) -> None:
        self._held.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())

    def bytes_without(self, excluded: Iterable[Tensor]) -> int:
        known = {tensor.untyped_storage().data_ptr() for tensor in excluded}
        return sum(held.untyped_storage().nbytes() for key, held in self._held.items() if key not in known)


def bytes_held_for_backward(forward: Callable[[], Tensor], excluded: Iterable[Tensor] = ()) -> int:
    """Bytes that stay allocated between a forward pass and its backward pass because the graph holds them.

    Counted are the distinct storages of all tensors that autograd saved, and of all tensors that custom
    `torch.autograd.Function`s keep on their context. A storage that several tensors share counts once, and in
    full.

    Args:
        forward: Runs the forward pass and returns its loss. Its backward pass is not run.
        excluded: Tensors whose storage is not counted: the parameters, which exist anyway.

    Returns:
        Number of bytes.
    """
    storages = _Storages()

    def pack(tensor: Tensor) -> Tensor:
        storages.add(tensor)
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    for node in _nodes(loss.grad_fn):
        for tensor in _tensors_in(getattr(node, "__dict__", {}), set()):
            storages.add(tensor)
    return storages.bytes_without(excluded)


def activation_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """`bytes_held_for_backward` of a model's loss, its parameters and buffers excluded."""
    return bytes_held_for_backward(forward, [*model.parameters(), *model.buffers()])


def peak_bytes(step: Callable[[], object], device: torch.device) -> int | None:
    """Peak memory on a CUDA device while `step` runs, above what was allocated before, in bytes.

    Returns:
        Number of bytes, or None on other devices, which keep no such count.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _nodes(root: Node | None) -> Iterator[Node]:
    stack, seen = [root], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(parent for parent, _ in node.next_functions)


def _tensors_in(value: object, seen: set[int]) -> Iterator[Tensor]:
    """All tensors reachable from a context: in containers and in the attributes of plain objects."""
    if isinstance(value, Tensor):
        yield value
        return
    if id(value) in seen or isinstance(value, (str, bytes, int, float, type, torch.dtype, torch.device)):
        return
    seen.add(id(value))
    if isinstance(value, dict):
        children: Iterable[object] = value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        children = value
    elif callable(value) and hasattr(value, "__closure__"):
        children = [cell.cell_contents for cell in value.__closure__ or ()]
    else:
        children = list(getattr(value, "__dict__", {}).values())
    for child in children:
        yield from _tensors_in(child, seen)
