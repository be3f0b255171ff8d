"""torch.func transforms and forward mode: noticing them, looking through them, and a rule for vmap."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_here = threading.local()


def transformed() -> bool:
    """Whether a transform of torch.func or forward mode is at work, each of which sees what `requires_grad` hides."""
    if getattr(_here, "outside", False):
        return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


@contextmanager
def on_numbers() -> Iterator[None]:
    """A context in which tensors are what they are outside all transforms: the forward pass of a custom function."""
    before = getattr(_here, "outside", False)
    _here.outside = True
    try:
        with torch.no_grad():
            yield
    finally:
        _here.outside = before


@contextmanager
def on_plain_tensors() -> Iterator[None]:
    """A context for tensors that no transform has wrapped, in which none wraps what is computed of them."""
    with torch._C._DisableFuncTorch(), torch.no_grad():
        yield


@contextmanager
def primals(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """For a `jvp` staticmethod: saved tensors without their tangents, and a context that follows those of outer levels.

    PyTorch calls it with forward mode switched off, which would lose the tangents of a `jvp` around this one.
    """
    with forward_ad._set_fwd_grad_enabled(True):
        yield [forward_ad.unpack_dual(tensor).primal for tensor in tensors]


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a transform has wrapped something around it, so that it has no memory of its own."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def has_tangent(tensor: Tensor) -> bool:
    """Whether forward mode follows it."""
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def numbers(tensor: Tensor) -> Tensor:
    """The numbers of a tensor, without gradient: what transforms wrap around it is taken off.

    The dimensions that vmap hides come first.
    """
    tensor = tensor.detach()
    if not torch._C._are_functorch_transforms_active():
        return tensor
    while is_wrapped(tensor):
        hidden = torch._C._functorch.maybe_get_bdim(tensor) if torch._C._functorch.is_batchedtensor(tensor) else None
        tensor = torch._C._functorch.get_unwrapped(tensor)
        tensor = tensor if hidden is None else tensor.movedim(hidden, 0)
    return tensor.detach()


def map_over_samples(
    function: Callable[..., Any],
    size: int,
    in_dims: Sequence[int | None],
    arguments: Sequence[Any],
    rows: Sequence[bool],
) -> tuple[Any, Any]:
    """The vmap rule of a function of batches of samples: what vmap adds is more samples.

    Where an argument is mapped that all samples share, the function is called once for each of its values.

    Args:
        function: returns a tensor or a tuple of tensors, (B, …) each, or of Nones.
        size: of the dimension that is mapped.
        in_dims: where each argument has it.
        arguments: what `function` takes.
        rows: which arguments have a row for each sample.

    Returns:
        The outputs, mapped in front, and where they are mapped, as a `vmap` staticmethod returns them.
    """
    front = [value if dim is None else value.movedim(dim, 0) for value, dim in zip(arguments, in_dims, strict=True)]
    mapped = [dim is not None for dim in in_dims]
    if any(is_mapped and not is_rows for is_mapped, is_rows in zip(mapped, rows, strict=True)):
        calls = [
            function(*(v[i] if is_mapped else v for v, is_mapped in zip(front, mapped, strict=True)))
            for i in range(size)
        ]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        stacked = tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*calls, strict=True))
        return stacked, tuple(None if part is None else 0 for part in stacked)
    folded = [
        _fold(value, is_mapped, size) if is_rows and isinstance(value, Tensor) else value
        for value, is_mapped, is_rows in zip(front, mapped, rows, strict=True)
    ]
    found = function(*folded)
    if isinstance(found, Tensor):
        return _unfold(found, size), 0
    unfolded = tuple(None if part is None else _unfold(part, size) for part in found)
    return unfolded, tuple(None if part is None else 0 for part in unfolded)


def _fold(value: Tensor, is_mapped: bool, size: int) -> Tensor:
    return (value if is_mapped else value.expand(size, *value.shape)).flatten(0, 1)


def _unfold(value: Tensor, size: int) -> Tensor:
    return value.reshape(size, len(value) // size, *value.shape[1:])


def is_batched(gradient: Tensor) -> bool:
    """Whether it is a whole batch of cotangents at once: of `vmap`, `is_grads_batched=True` or `vectorize=True`."""
    return torch._C._functorch.is_batchedtensor(gradient) or torch._C._functorch.is_legacy_batchedtensor(gradient)


def batched_again(rule: Callable[..., Any]) -> Callable[..., Any]:
    """A rule for `backward` or `jvp` that knows torch.func's vmap, for the older one that torch.autograd still uses.

    That one (`is_grads_batched=True`, `vectorize=True`) knows no custom functions: its tensors are unpacked, the rule
    is called under the newer one, and what it returns is packed again. No other arguments are looked at.
    """

    @functools.wraps(rule)
    def wrapper(ctx: Any, *arguments: Tensor | None) -> Any:
        old = {n for n, a in enumerate(arguments) if a is not None and torch._C._functorch.is_legacy_batchedtensor(a)}
        if not old:
            return rule(ctx, *arguments)
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        plain = [
            torch._remove_batch_dim(argument, level, 0, 0)
            for number, argument in enumerate(arguments)
            if argument is not None and number in old
        ]
        is_there: list[bool] = []

        def found(*given: Tensor) -> tuple[Tensor, ...]:
            rest = iter(given)
            result = rule(ctx, *(next(rest) if number in old else a for number, a in enumerate(arguments)))
            parts = (result,) if isinstance(result, Tensor) else result
            is_there.extend(part is not None for part in parts)
            return tuple(part for part in parts if part is not None)

        values = iter(torch.func.vmap(found)(*plain))
        packed = tuple(torch._add_batch_dim(next(values), 0, level) if there else None for there in is_there)
        return packed if len(packed) > 1 else packed[0]

    return wrapper


def pull(function: Callable[..., Tensor], at: Sequence[Tensor], cotangent: Tensor) -> tuple[Tensor | None, ...]:
    """The vector-Jacobian product of a function at some tensors, differentiable again; None for integer tensors."""
    real, whole = _real(function, at)
    found = iter(torch.func.vjp(whole, *real)[1](cotangent))
    return tuple(next(found) if tensor.is_floating_point() else None for tensor in at)


def push(function: Callable[..., Tensor], at: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
    """The Jacobian-vector product, differentiable again: the derivative of `pull`, which is linear in the cotangent.

    Forward mode itself cannot be nested in forward mode.
    """
    real, whole = _real(function, at)
    along = [
        torch.zeros_like(t) if tangent is None else tangent
        for t, tangent in zip(at, tangents, strict=True)
        if t.is_floating_point()
    ]
    at_real = torch.func.vjp(whole, *real)
    product: Tensor = torch.func.vjp(at_real[1], torch.zeros_like(at_real[0]))[1](tuple(along))[0]
    return product


def _real(function: Callable[..., Tensor], at: Sequence[Tensor]) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """The floating-point tensors, and the function of these alone."""

    def whole(*given: Tensor) -> Tensor:
        rest = iter(given)
        return function(*(next(rest) if tensor.is_floating_point() else tensor for tensor in at))

    return [tensor for tensor in at if tensor.is_floating_point()], whole


def refuse_unknown(sources: Sequence[tuple[Any, int]], known: Sequence[Tensor], place: int) -> None:
    """Refuse to differentiate a second time what depends on tensors that are out of sight.

    Args:
        sources: nodes of the graph, as `next_functions` lists them.
        known: the tensors that they may depend on.
        place: the memory of the point z, at which ∇f was taken by making it a leaf.

    Raises:
        RuntimeError: naming what to do instead.
    """
    seen = {tensor.grad_fn for tensor in known} | {None}
    variables = {id(tensor) for tensor in known}
    left = [node for node, _ in sources]
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in variables and variable.data_ptr() != place:
            raise RuntimeError(
                f"the energy depends on a tensor of shape {tuple(variable.shape)} that is no parameter, buffer or "
                "attribute of it, so that its gradient cannot be differentiated again: assign it to the module"
            )
        left += [following for following, _ in node.next_functions]
