"""The tensors that an energy depends on, as they are at one moment: for evaluating it again in the backward pass.

Between the two anything may happen to a module: an optimizer steps, a state dict is loaded, `functional_call` puts the
original parameters back, a hypernetwork sets others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from implicit_bregman.transforms import is_wrapped

#: The dictionaries in which a module keeps tensors.
_KINDS = ("_parameters", "_buffers", "__dict__")


class Place(NamedTuple):
    """Where a tensor is kept: the module, which of its dictionaries, and under which name."""

    owner: nn.Module
    kind: str
    name: str


class Snapshot:
    """Tensors, and where in a module they belong.

    Args:
        places: where they belong.
        tensors: one for each place.
    """

    def __init__(self, places: Sequence[Place], tensors: Sequence[Tensor]) -> None:
        self.places = tuple(places)
        self.tensors = tuple(tensors)
        self._versions = versions(tensors)
        self._found: list[object] = list(tensors)
        """What was found in each place and is the same: it need not be compared again."""

    @classmethod
    def of(cls, module: nn.Module) -> Snapshot:
        """All tensors that a module and its submodules hold now: parameters, buffers and plain attributes."""
        found = [
            (Place(owner, kind, name), tensor)
            for owner in module.modules()
            for kind in _KINDS
            for name, tensor in _dictionary(owner, kind).items()
            if isinstance(tensor, Tensor)
        ]
        return cls([place for place, _ in found], [tensor for _, tensor in found])

    def unchanged(self) -> Snapshot:
        """Those that are still in place and have not been written to.

        The rest is what the evaluations themselves change: caches, running statistics, attributes that a hook makes.
        """
        kept = [
            (place, tensor)
            for place, tensor, version in zip(self.places, self.tensors, self._versions, strict=True)
            if _dictionary(place.owner, place.kind).get(place.name) is tensor and versions([tensor]) == [version]
        ]
        return Snapshot([place for place, _ in kept], [tensor for _, tensor in kept])

    @contextmanager
    def restored(self) -> Iterator[None]:
        """A context in which these tensors are in their places.

        A module that still has them is not touched, so that threads may share it.
        """
        before: list[tuple[dict[str, Any], str, object]] = []
        try:
            for index, (place, tensor) in enumerate(zip(self.places, self.tensors, strict=True)):
                current = _dictionary(place.owner, place.kind).get(place.name)
                if current is self._found[index]:
                    continue
                if _is_same(current, tensor):
                    self._found[index] = current
                    continue
                for kind in _KINDS:  # (a name may have moved from one to another)
                    holder = _dictionary(place.owner, kind)
                    before.append((holder, place.name, holder.get(place.name, _MISSING)))
                    if kind == place.kind:
                        holder[place.name] = tensor
                    else:
                        holder.pop(place.name, None)
            yield
        finally:
            for holder, name, value in reversed(before):
                if value is _MISSING:
                    holder.pop(name, None)
                else:
                    holder[name] = value


def compute_cached(module: nn.Module) -> None:
    """Inside `torch.nn.utils.parametrize.cached()`, where what is computed first is kept: with its graph, not without.

    The first evaluation of a solve records none.
    """
    if not (parametrize._cache_enabled and torch.is_grad_enabled()):
        return
    for part in module.modules():
        if parametrize.is_parametrized(part):
            for name in part.parametrizations:  # type: ignore[union-attr]
                getattr(part, name)


class Again:
    """A context for evaluating something a second time, which may be entered more than once.

    Args:
        tensors: what it depends on; writing to one of them in between makes the second evaluation another one.
        snapshot: what a module has to hold meanwhile.
    """

    def __init__(self, tensors: Sequence[Tensor], snapshot: Snapshot | None = None) -> None:
        self._snapshot = Snapshot((), ()) if snapshot is None else snapshot
        self._tensors = (*tensors, *self._snapshot.tensors)
        self._versions = versions(self._tensors)
        self._entered: list[Any] = []

    def __enter__(self) -> None:
        """Put the tensors in their places.

        Raises:
            RuntimeError: if one of them was changed in place.
        """
        if versions(self._tensors) != self._versions:
            raise RuntimeError(
                "a tensor that the energy depends on has been modified by an inplace operation between the forward and "
                "the backward pass: call backward() first"
            )
        context = self._snapshot.restored()
        context.__enter__()
        self._entered.append(context)

    def __exit__(self, *error: object) -> None:
        """Put back what was there."""
        self._entered.pop().__exit__(*error)


def versions(tensors: Sequence[Tensor]) -> list[int | None]:
    """Autograd's count of in-place changes, for each tensor that has one."""
    return [None if tensor.is_inference() else tensor._version for tensor in tensors]


_MISSING = object()


def _dictionary(owner: nn.Module, kind: str) -> dict[str, Any]:
    found = getattr(owner, kind)
    return found if isinstance(found, dict) else {}  # (those of a scripted module cannot be written to)


def _is_same(current: object, tensor: Tensor) -> bool:
    """Whether two tensors are one: the same object, or two views of the same memory."""
    if current is tensor:
        return True
    return (
        isinstance(current, Tensor)
        and not (is_wrapped(current) or is_wrapped(tensor))
        and current.layout == tensor.layout == torch.strided
        and (current.dtype, current.shape, current.stride(), current.data_ptr())
        == (tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr())
    )
