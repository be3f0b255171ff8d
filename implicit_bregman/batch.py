"""The frame of a batch: from what a user gives to the rows that are solved, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.inputs import Inputs, floating_tensors, map_tensors, named_tensors, tensors_of
from implicit_bregman.half import round_into
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.solution import Solution
from implicit_bregman.solvers.base import Trace
from implicit_bregman.starts import Start, from_dual, from_point, from_solution
from implicit_bregman.status import Status
from implicit_bregman.tensors import check_dense, check_numbers

Leaves = list[tuple[str, Tensor]]
"""The tensors of x, each with its name in messages."""


@dataclass(frozen=True)
class Batch:
    """A batch as it is solved, N samples of width d, and the way back to the shapes and the precision of the caller.

    Attributes:
        geometry: φ.
        x: the inputs, each tensor with the N samples in front, at least float32; 0 where a sample is not `clean`.
        dual: y⁰, (N, d), in the precision of the solve.
        clean: which samples have a finite input and a usable start, (N,); None: all.
        shape: the leading shape.
        event: the shape of one state.
        half: the half precision in which the value is returned; None: that of the solve.
    """

    geometry: MirrorMap
    x: Inputs
    dual: Float[Tensor, "N d"]
    clean: Bool[Tensor, " N"] | None
    shape: torch.Size
    event: tuple[int, ...]
    half: torch.dtype | None

    @classmethod
    def of(
        cls,
        energy: Energy,
        geometry: MirrorMap,
        x: Inputs,
        initial: Tensor | Solution | None = None,
        initial_dual: Tensor | None = None,
        called: str = "initial_dual",
    ) -> Batch:
        """Check, lift, flatten and clean an input and a start.

        The batch is `x.shape[:-1]` where x is one tensor and a state a vector (`features` an int or None). Where states
        have a shape, or x is a pytree, it is the first dimension of every tensor of x.

        Args:
            energy: f.
            geometry: φ.
            x: the inputs.
            initial: z⁰, or a `Solution`.
            initial_dual: y⁰.
            called: the name of `initial_dual` in messages.

        Raises:
            TypeError: for what is no tensor, or not floating point where it has to be.
            ValueError: for shapes, dtypes, layouts or devices that do not fit, two starts, and points outside C.
        """
        batch = cls.framed(energy, geometry, x)
        start = _start(batch.geometry, initial, initial_dual, called, (*batch.shape, *batch.event), batch.dual)
        inputs, dual, clean = _cleaned(batch.x, start, geometry.middle)
        return replace(batch, x=inputs, dual=dual, clean=clean)

    @classmethod
    def framed(cls, energy: Energy, geometry: MirrorMap, x: Inputs) -> Batch:
        """The same without a start and before cleaning: what can be said without looking at any number."""
        leaves = _leaves(energy, x)
        shape, event = _shapes(energy, x, leaves)
        like = _check_tensors(energy, leaves)
        geometry = geometry.for_states(event, like)
        count, dtype = shape.numel(), _precision(energy, x, like)
        x = map_tensors(partial(_lifted, dtype), x)
        if not _is_batch_first(energy, x):
            x = x.reshape(count, x.shape[-1])
        origin = geometry.project_dual(like.new_full((count, math.prod(event)), geometry.middle, dtype=dtype))
        half = like.dtype if like.dtype.itemsize == 2 and not _is_lifted(like) else None
        return cls(geometry, x, origin, None, shape, event, half)

    def start_rows(self, name: str, start: Tensor) -> Float[Tensor, "N d"]:
        """A start that fits, as rows; called `name` in messages."""
        return _start_rows(name, start, (*self.shape, *self.event), self.dual)

    def kept(self, clean: Bool[Tensor, " N"]) -> Batch:
        """The batch with zeros in x for the samples that are not clean."""
        return replace(self, x=map_tensors(partial(_zeroed, clean), self.x), clean=clean)

    def followed_dual(self, name: str, rows: Float[Tensor, "N d"] | None) -> Float[Tensor, "N d"]:
        """y⁰ as a function of the start that was given, which has been looked at before."""
        if rows is None or self.clean is None:
            return self.dual
        if name == "initial_dual":
            kept = torch.where(_column(self.clean, rows), rows, self.geometry.middle)
            return self.geometry.project_dual(kept.to(self.dual.dtype))
        middle = self.geometry.activation(self.dual).to(rows.dtype)
        inside = torch.where(_column(self.clean, rows), rows, middle)
        return self.geometry.inverse_activation(inside.double()).to(self.dual.dtype)

    @property
    def is_flat(self) -> bool:
        """Whether the leading shape is that of the rows."""
        return len(self.shape) == 1

    def finish(
        self, value: Float[Tensor, "N d"], status: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, "N d"], Int[Tensor, " N"]]:
        """The value in the caller's precision and the statuses: NaN and INVALID_INPUT where a sample is not clean."""
        if self.clean is not None:
            status = torch.where(self.clean, status, int(Status.INVALID_INPUT))
            value = self.masked(value)
        return (value, status) if self.half is None else round_into(self.geometry, value, self.half, status)

    def masked(self, rows: Float[Tensor, "N *of_each"]) -> Float[Tensor, "N *of_each"]:
        """NaN for the samples that are not clean."""
        return rows if self.clean is None else torch.where(_column(self.clean, rows), rows, torch.nan)

    def samples(self, rows: Float[Tensor, "N *of_each"]) -> Tensor:
        """Something of each sample in the leading shape."""
        return in_front(self.shape, rows)

    def states(self, rows: Float[Tensor, "N d"]) -> Tensor:
        """States in the leading shape and their own."""
        return as_states(self.shape, self.event, rows)

    def trace(self, trace: Trace | None) -> Trace | None:
        """A trace in the leading shape and that of the states, behind the iterations."""
        if trace is None:
            return None
        steps, shape = len(trace.residual), tuple(self.shape)
        return Trace(
            trace.residual.reshape((steps, *shape)),
            trace.objective.reshape((steps, *shape)),
            trace.dual.reshape((steps, *shape, *self.event)),
        )


def only_start(initial: Tensor | Solution | None, initial_dual: Tensor | None) -> tuple[str, Tensor | None]:
    """The start that is given, and what it is: a point, or a dual, as that of a `Solution` is.

    Raises:
        ValueError: if two are given.
    """
    if initial is not None and initial_dual is not None:
        raise ValueError("initial and initial_dual both give the start: give one of them")
    if isinstance(initial, Solution):
        return "initial_dual", initial.dual.detach()
    return ("initial", initial) if initial is not None else ("initial_dual", initial_dual)


def in_front(shape: torch.Size, rows: Float[Tensor, "N *of_each"]) -> Tensor:
    """Something of each sample, with this leading shape in place of N."""
    return rows if len(shape) == 1 else rows.reshape((*shape, *rows.shape[1:]))


def as_states(shape: torch.Size, event: tuple[int, ...], rows: Float[Tensor, "N d"]) -> Tensor:
    """States, with this leading shape and this one of their own."""
    return in_front(shape, rows if len(event) == 1 else rows.reshape((len(rows), *event)))


def _is_batch_first(energy: Energy, x: Inputs) -> bool:
    """Whether the batch is the first dimension of every tensor, not all dimensions but the last."""
    return isinstance(energy.event_shape(x), tuple) or not isinstance(x, Tensor)


def _leaves(energy: Energy, x: Inputs) -> Leaves:
    """The tensors of x and what they are called in messages, after checking that they are tensors."""
    if energy.input_width is not None:
        check_dense("x", x)
    leaves = named_tensors(x)
    if not leaves:
        raise TypeError(f"x must be a tensor, or contain one, got {x!r}")
    for name, leaf in leaves:
        check_dense(name, leaf)
    if isinstance(x, Tensor) and not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {x.dtype}: call x.float()")
    return leaves


def _shapes(energy: Energy, x: Inputs, leaves: Leaves) -> tuple[torch.Size, tuple[int, ...]]:
    """The leading shape of an input that fits, and the shape of a state."""
    width, features = energy.input_width, energy.event_shape(x)
    if not _is_batch_first(energy, x):
        assert not isinstance(features, tuple)
        if x.dim() == 0:
            raise ValueError("x must have at least one dimension, the features; got a 0-d tensor")
        if width not in (None, x.shape[-1]):
            raise ValueError(f"x must have {width} features in its last dimension, got shape {tuple(x.shape)}")
        return x.shape[:-1], (x.shape[-1] if features is None else features,)
    if features is None:
        raise ValueError(
            f"x is a {type(x).__name__}, which does not say how wide z is: give the energy its features, such as "
            "super().__init__(features=64)"
        )
    event = features if isinstance(features, tuple) else (features,)
    _check_batch_first(x, leaves, event)
    return leaves[0][1].shape[:1], event


def _check_batch_first(x: Inputs, leaves: Leaves, event: tuple[int, ...]) -> None:
    first, like = leaves[0]
    for name, leaf in leaves:
        if leaf.dim() == 0:
            raise ValueError(f"{name} must have the batch as its first dimension, got a 0-d tensor: one entry each")
        if len(leaf) != len(like):
            raise ValueError(
                f"{name} must have the batch as its first dimension, as {first} of shape {tuple(like.shape)} has; got "
                f"shape {tuple(leaf.shape)}"
            )
    if isinstance(x, Tensor) and tuple(x.shape) == event:
        raise ValueError(
            f"x must have the batch as its first dimension, got shape {event}, that of one state: give one sample as "
            f"x[None]; and {len(x)} samples of shape {event[1:]} as x[:, None]"
        )


def _check_tensors(energy: Energy, leaves: Leaves) -> Tensor:
    """The tensor of x that says where and in which precision to solve, after checking that all others go with it."""
    name, like = next((pair for pair in leaves if pair[1].is_floating_point()), leaves[0])
    if not like.is_floating_point():
        own = next(floating_tensors(energy, ()), None)
        like = like.new_empty((), dtype=torch.get_default_dtype() if own is None else own.dtype)
    for other, tensor in leaves:
        _check_alike(name, like, other, tensor, _is_lifted(like) or _is_lifted(tensor))
    for other, tensor in [*energy.named_parameters(), *energy.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if tensor.dtype.itemsize == 2 and not energy.takes_half:
            raise ValueError(f"{other} of the energy is {tensor.dtype}: only a QuadraticEnergy can be half precision")
        _check_alike(name, like, f"{other} of the energy", tensor, _is_lifted(like))
    for other, tensor in leaves:
        check_numbers(other, tensor)
    return like


def _is_lifted(tensor: Tensor) -> bool:
    """Whether autocast is on, and a half-precision tensor is therefore a matter of the layer before."""
    return tensor.dtype.itemsize == 2 and torch.is_autocast_enabled(tensor.device.type)


def _check_alike(name: str, like: Tensor, other: str, tensor: Tensor, lifted: bool) -> None:
    """Refuse another device and, unless it is lifted, another precision."""
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {like.device}, but {other} is on {tensor.device}: move one of them")
    if tensor.is_floating_point() and tensor.dtype != like.dtype and not lifted:
        raise ValueError(f"{name} is {like.dtype}, but {other} is {tensor.dtype}: convert one of them")


def _precision(energy: Energy, x: Inputs, like: Tensor) -> torch.dtype:
    """That of the solve: the parameters' under autocast, never less than float32."""
    if like.dtype.itemsize > 2:
        return like.dtype
    wide = (tensor.dtype for tensor in floating_tensors(energy, x) if tensor.dtype.itemsize > 2)
    return next(wide, torch.float32)


def _lifted(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _start(
    geometry: MirrorMap,
    initial: Tensor | Solution | None,
    initial_dual: Tensor | None,
    called: str,
    shape: tuple[int, ...],
    origin: Float[Tensor, "N d"],
) -> Start:
    """y⁰, (N, d), of a start that has to have this shape, and which samples have a usable one; `origin` without one."""
    only_start(initial, initial_dual)
    if initial_dual is not None:
        return from_dual(geometry, _start_rows(called, initial_dual, shape, origin), origin.dtype, called)
    if isinstance(initial, Solution):
        return from_solution(geometry, _start_rows("initial", initial.dual, shape, origin), origin.dtype)
    if initial is not None:
        return from_point(geometry, _start_rows("initial", initial, shape, origin), origin.dtype)
    return origin, None


def _start_rows(name: str, start: object, shape: tuple[int, ...], origin: Tensor) -> Float[Tensor, "N d"]:
    """A start that fits, as rows."""
    if not isinstance(start, Tensor) or not start.is_floating_point():
        kind = start.dtype if isinstance(start, Tensor) else type(start).__name__
        kinds = "a floating-point tensor or a Solution" if name == "initial" else "a floating-point tensor"
        raise TypeError(f"{name} must be {kinds}, got {kind}")
    check_dense(name, start)
    if tuple(start.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(start.shape)}")
    if start.device != origin.device:
        raise ValueError(f"{name} is on {start.device}, but x is on {origin.device}: move one of them")
    return start.reshape(origin.shape)


def _cleaned(x: Inputs, start: Start, middle: float) -> tuple[Inputs, Tensor, Tensor | None]:
    """x with zeros, y⁰ with `middle` for the samples in which one of them cannot be used, and the others; None: all."""
    dual, usable = start
    numbers = [tensor.detach() for tensor in tensors_of(x) if tensor.is_floating_point() or tensor.is_complex()]
    if usable is None and _are_surely_finite(numbers):
        return x, dual, None
    clean = torch.ones_like(dual[:, 0], dtype=torch.bool) if usable is None else usable
    for tensor in numbers:
        finite = torch.isfinite(tensor)
        clean = clean & (finite.flatten(1).all(-1) if tensor.dim() > 1 else finite)
    if bool(clean.all()):
        return x, dual, None
    return map_tensors(partial(_zeroed, clean), x), torch.where(clean[:, None], dual, middle), clean


def _are_surely_finite(tensors: list[Tensor]) -> bool:
    """Whether all entries are known to be finite, at the price of one synchronisation."""
    # (the sum of finite entries may overflow: then each is looked at)
    sums = [(torch.view_as_real(tensor) if tensor.is_complex() else tensor).sum() for tensor in tensors]
    total = sums[0] if len(sums) == 1 else sum(sums)
    return math.isfinite(float(total))


def _zeroed(clean: Tensor, rows: Tensor) -> Tensor:
    exact = not (rows.is_floating_point() or rows.is_complex())
    return rows if exact else torch.where(_column(clean, rows), rows, 0.0)


def _column(mask: Tensor, rows: Tensor) -> Tensor:
    """One entry per sample, against what each has."""
    return mask.reshape(-1, *[1] * (rows.dim() - 1))
