"""The input x of an energy: a tensor, or tuples, lists and dicts of tensors, nested, each with the batch in front."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils import _pytree as pytree

#: A tensor, or a pytree of tensors.
Inputs: TypeAlias = Any


def tensors_of(x: Inputs) -> list[Any]:
    """Its leaves, in order."""
    return [x] if isinstance(x, Tensor) else pytree.tree_leaves(x)


def named_tensors(x: Inputs) -> list[tuple[str, Any]]:
    """Its leaves, each with what it is called in messages: x, or x['image'], x[0]."""
    if isinstance(x, Tensor):
        return [("x", x)]
    return [(f"x{pytree.keystr(path)}", leaf) for path, leaf in pytree.tree_leaves_with_path(x)]


def map_tensors(function: Callable[[Tensor], Tensor], x: Inputs) -> Inputs:
    """The same structure, with `function` of each tensor."""
    return function(x) if isinstance(x, Tensor) else pytree.tree_map(function, x)


def floating_tensors(energy: nn.Module, x: Inputs) -> Iterator[Tensor]:
    """The floating-point tensors of x, then the parameters and buffers: the first says in which precision to solve."""
    own = chain(energy.parameters(), energy.buffers())
    return (tensor for tensor in chain(tensors_of(x), own) if tensor.is_floating_point())


def pack(x: Inputs) -> tuple[tuple[Tensor, ...], Callable[..., Inputs]]:
    """Its tensors, and a function that makes the same structure of such tensors and holds none itself."""
    leaves, structure = pytree.tree_flatten(x)
    return tuple(leaves), partial(_rebuild, structure)


def _rebuild(structure: pytree.TreeSpec, *leaves: Tensor) -> Inputs:
    return pytree.tree_unflatten(leaves, structure)


def normal(tensor: Tensor) -> Tensor:
    """A copy that autograd accepts, if the tensor was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor
