"""What is made of the kernel of a convolution: its Gram kernel, its phases, and waves for its transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional

#: Squarings of a matrix S whose Frobenius norm then bounds its spectral norm: ‖S^p‖_F^(1/p), p = 16, within c^(1/32).
_SQUARINGS = 4
#: A transform is as fast as its length is even and has small prime factors.
_FAST_FACTORS = (2, 3, 5, 7)


def gram_kernel(
    kernel: Float[Tensor, "c_out c *k"], margin: float, skew: Float[Tensor, "c c *k"] | None = None
) -> Float[Tensor, "c c *taps"]:
    """The kernel of margin·I + A*A + B* − B, of odd lengths."""
    convolve = functional.conv1d if kernel.dim() == 3 else functional.conv2d
    lengths = tuple(kernel.shape[2:])
    own = kernel.transpose(0, 1)
    # The tap at a distance p is the sum over all pairs of taps of A that are p apart.
    taps = convolve(own, own, padding=tuple(k - 1 for k in lengths)).transpose(0, 1)
    middle = torch.zeros(taps.shape[2:], dtype=taps.dtype, device=taps.device)
    middle[tuple(k - 1 for k in lengths)] = margin
    eye = torch.eye(len(taps), dtype=taps.dtype, device=taps.device)
    taps = taps + eye.reshape(*eye.shape, *[1] * len(lengths)) * middle
    if skew is None:
        return taps
    # (an even kernel has one tap more after its middle than before)
    even = functional.pad(skew, [n for k in reversed(skew.shape[2:]) for n in (1 - k % 2, 0)])
    difference = even.transpose(0, 1).flip(*range(2, even.dim())) - even
    wide = [max(a, b) for a, b in zip(taps.shape[2:], difference.shape[2:], strict=True)]
    return centred(taps, wide) + centred(difference, wide)


def spectral_bound(matrices: Complex[Tensor, "*many c c"]) -> float:
    """A number that no eigenvalue of these Hermitian matrices exceeds, and the largest in size comes near to."""
    # (at the size 1, where no square overflows)
    unit = float(torch.view_as_real(matrices).abs().amax()) if matrices.numel() else 0.0
    if not 0 < unit < math.inf:
        return unit if unit > 0 else 0.0
    power = matrices.flatten(0, -3) / unit
    size = _frobenius(power).amax()
    power = power / size
    for _ in range(_SQUARINGS):
        # A matrix has at least 1/√c of its Frobenius norm: what is smaller by more has not the largest eigenvalue.
        norms = _frobenius(power)
        power = power[norms >= 0.99 * matrices.shape[-1] ** -0.5 * norms.amax()]
        power = power @ power
    largest = float(_frobenius(power).double().amax())
    # (of what is smaller than the largest by so much that its power is 0 nothing is lost)
    slack = 1 + 4 * torch.finfo(matrices.real.dtype).eps * matrices.shape[-1]
    return slack * unit * float(size) * largest ** (0.5**_SQUARINGS)


def _frobenius(matrices: Complex[Tensor, "many c c"]) -> Float[Tensor, " many"]:
    """Their Frobenius norms."""
    return torch.linalg.vector_norm(torch.view_as_real(matrices).flatten(-3), dim=-1)


def checked_sizes(name: str, value: Any, count: int) -> tuple[int, ...]:
    """Whole numbers from 1 up, one for each dimension.

    Raises:
        TypeError: for other than whole numbers.
        ValueError: for other numbers of them, and below 1.
    """
    sizes = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * count
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in sizes):
        raise TypeError(f"{name} must be a whole number, or one for each dimension, got {value!r}")
    if len(sizes) != count or min(sizes) < 1:
        raise ValueError(f"{name} must be at least 1 in each of {count} dimensions, got {value!r}")
    return sizes


def fast_length(least: int) -> int:
    """The next even length whose transform is fast."""

    def rest(n: int) -> int:
        for factor in _FAST_FACTORS:
            while n % factor == 0:
                n //= factor
        return n

    return next(n for n in range(least + least % 2, 2 * least + 2, 2) if rest(n) == 1)


def waves(
    grid: tuple[int, ...], lags: list[tuple[int, int]], dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, "frequencies taps"], Float[Tensor, "frequencies taps"]]:
    """cos and sin of ω·p for the frequencies of a real transform and the places p of the taps."""
    counts = [*grid[:-1], grid[-1] // 2 + 1]
    angles = torch.zeros((), dtype=torch.float64, device=device)
    for dim, (n, count, (low, high)) in enumerate(zip(grid, counts, lags, strict=True)):
        frequency = torch.arange(count, dtype=torch.float64, device=device) * (2 * math.pi / n)
        angle = torch.outer(frequency, torch.arange(low, high + 1, dtype=torch.float64, device=device))
        place = [1] * (2 * len(grid))
        place[dim], place[len(grid) + dim] = angle.shape
        angles = angles + angle.reshape(place)
    angles = angles.reshape(math.prod(counts), -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def for_rows(symbol: Complex[Tensor, "frequencies c_out c_in"]) -> Complex[Tensor, "frequencies c_in c_out"]:
    """The symbol as rows are multiplied with it."""
    return symbol.mT.resolve_conj().contiguous()


def cropped(states: Tensor, grid: tuple[int, ...], stride: int = 1) -> Tensor:
    """The states on this part of their grid, or at every so many positions of it."""
    index: Any = (..., *(slice(None, n, stride) for n in grid))
    part: Tensor = states[index]
    return part


def centred(kernel: Tensor, lengths: list[int]) -> Tensor:
    """A kernel of odd lengths with zeros around."""
    more = [(n - k) // 2 for n, k in zip(lengths, kernel.shape[2:], strict=True)]
    return functional.pad(kernel, [n for n in reversed(more) for _ in range(2)])


def phase_kernel(kernel: Tensor, stride: int) -> Float[Tensor, "c_out phases *k"]:
    """The kernel of a strided convolution as one without a stride of the state's phases (z_{s·P + a})_P, a < s."""
    if stride == 1:
        return kernel
    for dim, k in enumerate(kernel.shape[2:], 2):
        before = -(-((k - 1) // 2) // stride)  # whole strides before the middle
        front = before * stride - (k - 1) // 2
        # (as many after it as before, for `Convolution` to find the middle)
        length = (2 * before + 1) * stride
        while length - front < k:
            front, length = front + stride, length + 2 * stride
        sides = [0] * (2 * kernel.dim())
        sides[2 * (kernel.dim() - 1 - dim)] = front
        sides[2 * (kernel.dim() - 1 - dim) + 1] = length - front - k
        kernel = functional.pad(kernel, sides)
    return unshuffle(kernel, stride)


def unshuffle(states: Float[Tensor, "batch c *grid"], stride: int) -> Float[Tensor, "batch phases *coarse"]:
    """Each phase of the grid as a channel of its own."""
    if stride == 1:
        return states
    batch, channels, *grid = states.shape
    split = states.reshape(batch, channels, *[part for n in grid for part in (n // stride, stride)])
    coarse, phase = range(2, split.dim(), 2), range(3, split.dim(), 2)
    return split.permute(0, 1, *phase, *coarse).flatten(1, 1 + len(grid))


def shuffle(states: Float[Tensor, "batch phases *coarse"], stride: int) -> Float[Tensor, "batch c *grid"]:
    """The way back."""
    if stride == 1:
        return states
    batch, phases, *coarse = states.shape
    dims = len(coarse)
    split = states.reshape(batch, phases // stride**dims, *[stride] * dims, *coarse)
    order = [place for dim in range(dims) for place in (2 + dims + dim, 2 + dim)]
    return split.permute(0, 1, *order).reshape(batch, -1, *[n * stride for n in coarse])
