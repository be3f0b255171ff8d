"""Convolutions in one and two dimensions, by FFT."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional

from implicit_bregman.operators.base import ROUNDING_ERRORS, Dilation, LinearOperator, Rebuild
from implicit_bregman.operators.kernels import (
    checked_sizes,
    cropped,
    fast_length,
    for_rows,
    gram_kernel,
    phase_kernel,
    shuffle,
    spectral_bound,
    unshuffle,
    waves,
)
from implicit_bregman.settings import check_choice
from implicit_bregman.tensors import check_dense
from implicit_bregman.transforms import numbers, transformed

PADDINGS = ("zeros", "circular")
#: Points in each dimension, and at least so many, at which the limits of all spectra are looked for.
_POINTS, _LEAST_POINTS = 16, 16
#: Numbers on the grid that are transformed at a time on a CPU: in float32 2 MB, as much again for their transforms.
_CACHED = 2**19
#: Steps of the power method behind a guess of a norm.
_POWER_STEPS = 6


class Convolution(LinearOperator):
    """H, a convolution (a cross-correlation, as in `torch.nn.Conv2d`) of states of c channels on a grid.

    A state is (c, n) or (c, h, w), flattened. (Hz)_p is the sum over the taps t of K_t z_{p + t − ⌊(k − 1)/2⌋}: what
    `torch.nn.functional.conv2d(z, kernel, padding="same")` computes. By FFT it is one c × c matrix for each
    frequency, which all samples share, as they do its inverse.

    With zeros around the grid it is a part (a compression, see `dilation`) of the circular convolution on a grid so
    much larger that nothing wraps round. The inverse of that serves operator splitting as it is, and conjugate
    gradients (GMRES) as preconditioner, by which `solve` then iterates.

    A convolution from C_in to C_out channels, or with a stride, changes the shape of its input: off the diagonal of
    `Blocks` it joins states of several resolutions. Of it an H is made by `gram`.

    Args:
        kernel: K, (C_out, C_in, k) or (C_out, C_in, k₁, k₂).
        size: the shape of the grid, n or (h, w); one number for a square.
        padding: what surrounds the grid: "zeros", or the grid again ("circular").
        stride: every so many positions of the grid there is an output, ⌈n/stride⌉ of them.
        symmetric: whether H = Hᵀ; None: it is looked at.
        least: a number that no eigenvalue of (H + Hᵀ)/2 is below, if one is known.

    Raises:
        TypeError: for sizes or strides that are not whole numbers.
        ValueError: for shapes that do not fit, or an unknown padding.
    """

    def __init__(
        self,
        kernel: Float[Tensor, "c_out c_in *k"],
        size: int | Sequence[int],
        padding: str = "zeros",
        stride: int = 1,
        symmetric: bool | None = None,
        least: float | None = None,
    ) -> None:
        check_dense("kernel", kernel)
        if kernel.dim() not in (3, 4) or 0 in kernel.shape or not kernel.is_floating_point():
            raise ValueError(
                "kernel must be floating point of the shape (C_out, C_in, k) or (C_out, C_in, k1, k2), got "
                f"{kernel.dtype} of shape {tuple(kernel.shape)}"
            )
        grid = checked_sizes("size", size, kernel.dim() - 2)
        check_choice("padding", padding, PADDINGS)
        (step,) = checked_sizes("stride", stride, 1)
        self._set(kernel, grid, padding, step, 1, False, least)
        if self.shape[0] == self.shape[1] and step == 1:
            self.symmetric = self._is_symmetric() if symmetric is None else symmetric
        elif symmetric:
            raise ValueError(f"a convolution from {self.shape[1]} to {self.shape[0]} numbers is not symmetric")

    def _set(
        self,
        kernel: Tensor,
        grid: tuple[int, ...],
        padding: str,
        stride: int,
        phases: int,
        symmetric: bool,
        least: float | None,
    ) -> Convolution:
        self.kernel = kernel
        self.grid = grid
        self.padding = padding
        self.stride = stride
        self.phases = phases
        self.symmetric = symmetric
        self.least = least
        return self

    @classmethod
    def gram(
        cls,
        kernel: Float[Tensor, "c_out c *k"],
        size: int | Sequence[int],
        padding: str = "zeros",
        *,
        margin: float = 0.0,
        skew: Float[Tensor, "c c *k"] | None = None,
        stride: int = 1,
    ) -> Convolution:
        """H = margin·I + A*A + B* − B, with the convolutions A and B of `kernel` and `skew`, for states of c channels.

        (H + Hᵀ)/2 ⪰ margin·I. With zeros around the grid Az is taken wherever the kernel meets the grid, also beside
        it, as monDEQ does: H is then a convolution as well.

        Args:
            kernel: that of A, (C_out, c, k) or (C_out, c, k₁, k₂), with any C_out.
            size: the shape of the grid, n or (h, w).
            padding: "zeros" or "circular".
            margin: ≥ 0.
            skew: the kernel of B, (c, c, …); None: B = 0, and H is symmetric. Not with a stride.
            stride: that of A. It has to divide the size.

        Raises:
            ValueError: for shapes that do not fit, a negative margin, or a stride that does not divide the size.
        """
        grid = cls(kernel, size, padding, stride).grid  # (checks them)
        if not margin >= 0:
            raise ValueError(f"margin must not be negative, got {margin}")
        if any(n % stride for n in grid):
            raise ValueError(f"stride = {stride} must divide the size {grid}")
        if skew is not None and (stride != 1 or skew.dim() != kernel.dim() or skew.shape[:2] != (kernel.shape[1],) * 2):
            raise ValueError(
                f"skew must have as many channels as the states, ({kernel.shape[1]}, {kernel.shape[1]}, …), and there "
                f"is none with a stride: got shape {tuple(skew.shape)} and stride = {stride}"
            )
        taps = gram_kernel(phase_kernel(kernel, stride), margin, skew)
        return cls.__new__(cls)._set(taps, grid, padding, 1, stride, skew is None, float(margin))

    @property
    def channels(self) -> int:
        """C_in."""
        return self.kernel.shape[1] // self.phases ** len(self.grid)

    @property
    def size(self) -> int:
        return self.channels * math.prod(self.grid)

    @property
    def shape(self) -> tuple[int, int]:
        rows = self.kernel.shape[0] * math.prod(-(-n // (self.stride * self.phases)) for n in self.grid)
        return rows, self.size

    # In the frequency domain ------------------------------------------------------------------------------------------

    @property
    def _dims(self) -> int:
        return len(self.grid)

    @cached_property
    def _coarse(self) -> tuple[int, ...]:
        """The grid of the phases."""
        return tuple(n // self.phases for n in self.grid)

    @cached_property
    def _lags(self) -> list[tuple[int, int]]:
        """The least and the largest p of the taps of each dimension."""
        return [(-((k - 1) // 2), k - 1 - (k - 1) // 2) for k in self.kernel.shape[2:]]

    @cached_property
    def _around(self) -> tuple[int, ...]:
        """The grid on which the convolution is circular."""
        if self.padding == "circular":
            return self._coarse
        return tuple(
            n if k == 1 else fast_length(n + max(-low, high))
            for n, (low, high), k in zip(self._coarse, self._lags, self.kernel.shape[2:], strict=True)
        )

    @property
    def _is_circular(self) -> bool:
        return self._around == self._coarse

    def _symbol(self, dtype: torch.dtype) -> Complex[Tensor, "frequencies c_out c_in"]:
        """The matrix of each frequency, with its gradient."""
        kernel = self.kernel.to(dtype)
        rows, columns = kernel.shape[:2]
        taps = kernel.reshape(rows * columns, -1).mT
        cos, sin = waves(self._around, self._lags, dtype, kernel.device)
        return torch.complex(cos @ taps, sin @ taps).reshape(-1, rows, columns)

    @cached_property
    def _known_symbols(self) -> dict[torch.dtype, Tensor]:
        return {}

    def _symbol_without_gradient(self, dtype: torch.dtype) -> Complex[Tensor, "frequencies c_out c_in"]:
        if dtype not in self._known_symbols:
            with torch.no_grad():
                self._known_symbols[dtype] = self._symbol(dtype)
        return self._known_symbols[dtype]

    def _right(self, dtype: torch.dtype, adjoint: bool) -> Complex[Tensor, "frequencies c_in c_out"]:
        """The matrices, or their adjoints, as they multiply rows; with a gradient only where one is needed."""
        if transformed() or (torch.is_grad_enabled() and self.kernel.requires_grad):
            symbol = self._symbol(dtype)
            return symbol.conj() if adjoint else symbol.mT
        if (dtype, adjoint) not in self._known_right:
            symbol = self._symbol_without_gradient(dtype)
            self._known_right[dtype, adjoint] = for_rows(symbol.mH if adjoint else symbol)
        return self._known_right[dtype, adjoint]

    @cached_property
    def _known_right(self) -> dict[tuple[torch.dtype, bool], Tensor]:
        return {}

    def _filter(
        self, right: Complex[Tensor, "frequencies c_in c_out"], states: Float[Tensor, "batch c_in *coarse"]
    ) -> Float[Tensor, "batch c_out *around"]:
        """The convolution that has these matrices, of states on the coarse grid or any up to the one around it."""
        if not len(states):  # (which some FFTs refuse; the sum keeps the graph)
            return (right.real.sum() + states.sum()).expand(0, right.shape[2], *self._around)
        # On a CPU, parts of the batch whose transforms stay in its caches take half the time.
        of_sample = max(right.shape[1:]) * math.prod(self._around)
        parts = -(-len(states) * of_sample // _CACHED) if states.device.type == "cpu" else 1
        if parts == 1:
            return self._filter_part(right, states)
        return torch.cat([self._filter_part(right, part) for part in states.chunk(parts)])

    def _filter_part(
        self, right: Complex[Tensor, "frequencies c_in c_out"], states: Float[Tensor, "batch c_in *coarse"]
    ) -> Float[Tensor, "batch c_out *around"]:
        dims = tuple(range(-self._dims, 0))
        waves = torch.fft.rfftn(states, s=self._around, dim=dims)
        batch, channels, *half = waves.shape
        # (a transposition of two dimensions is the fastest way to other layouts)
        rows = waves.reshape(batch * channels, -1).t().contiguous().reshape(-1, batch, channels)
        images = (rows @ right).flatten(1).t().contiguous()
        return torch.fft.irfftn(images.reshape(batch, right.shape[2], *half), s=self._around, dim=dims)

    def _states(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch channels *grid"]:
        return unshuffle(v.reshape(len(v), self.channels, *self.grid), self.phases)

    def _rows(self, states: Float[Tensor, "batch channels *around"]) -> Float[Tensor, "batch d"]:
        return shuffle(cropped(states, self._coarse), self.phases).flatten(1)

    # The contract -----------------------------------------------------------------------------------------------------

    def product(self, v: Float[Tensor, "batch d"], adjoint: bool = False) -> Float[Tensor, "batch d"]:
        right = self._right(v.dtype, adjoint)
        if not adjoint:
            image = self._filter(right, self._states(v))
            if self.stride == 1:
                return self._rows(image)
            return cropped(image, self.grid, self.stride).reshape(len(v), -1)
        if self.stride == 1:
            rows = v.reshape(len(v), -1, *self._coarse) if self.phases == 1 else self._states(v)
        else:
            rows = self._spread(v)
        return self._rows(self._filter(right, rows))

    def _spread(self, v: Tensor) -> Tensor:
        """The outputs at their places on the grid, with zeros between."""
        outputs = tuple(-(-n // self.stride) for n in self.grid)
        spread = v.reshape(len(v), -1, *outputs)
        for dim, n in enumerate(self.grid, 2):
            spread = torch.stack([spread, *[torch.zeros_like(spread)] * (self.stride - 1)], dim + 1)
            spread = spread.flatten(dim, dim + 1).narrow(dim, 0, n)
        return spread

    def pack(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        of = self.grid, self.padding, self.stride, self.phases, self.symmetric, self.least
        return (self.kernel,), partial(_rebuild, of)

    def pack_known(self, splits: bool = False) -> tuple[tuple[Tensor, ...], Rebuild]:
        """The inverse that splitting used last is kept."""
        tensors, rebuild = super().pack_known(splits)
        known = self._inverted
        if not known:
            return tensors, rebuild
        (shift, adjoint), inverse = list(known.items())[-1]
        return (*tensors, inverse), partial(_rebuild_known, rebuild, shift, adjoint)

    def diagonal(self) -> Float[Tensor, " d"]:
        kernel = self.kernel.detach()
        lags = [torch.arange(low, high + 1) for low, high in self._lags]
        if self.padding == "circular":
            lags = [lag % n for lag, n in zip(lags, self._coarse, strict=True)]
        here = torch.stack(torch.meshgrid(*[lag == 0 for lag in lags], indexing="ij")).all(0)
        entries = kernel.diagonal().flatten(0, -2).mT @ here.flatten().to(kernel)
        every = entries.reshape(1, -1, *[1] * self._dims).expand(1, -1, *self._coarse)
        return self._rows(every)[0]

    def bounds(self) -> tuple[float, float]:
        """Of all matrices in the frequency domain: the ends of their spectra, or `least`, if known, and a norm."""
        return self._bounds

    @cached_property
    def _bounds(self) -> tuple[float, float]:
        symbol = self._symbol_without_gradient(self.kernel.dtype)
        symbol = 0.5 * (symbol + symbol.mH)
        if self.least is not None:
            return self.least, spectral_bound(symbol)
        ends = torch.linalg.eigvalsh(symbol)
        return float(ends.min()), float(ends.max())

    def skew_guess(self) -> float:
        """By a few steps of the power method for each frequency."""
        return 0.0 if self.symmetric else self._skew

    @cached_property
    def _skew(self) -> float:
        symbol = self._symbol_without_gradient(self.kernel.dtype)
        v = symbol.new_ones(*symbol.shape[:-1], 1)
        v = (
            v
            + 1j
            * torch.sin(1.7 * torch.arange(symbol.shape[-1], dtype=symbol.real.dtype, device=symbol.device))[:, None]
        )
        skew = 0.5 * (symbol - symbol.mH)
        for _ in range(_POWER_STEPS):
            before = torch.linalg.vector_norm(v, dim=-2, keepdim=True)
            v = skew @ (v / torch.where(before > 0, before, 1.0))
        return float(torch.linalg.vector_norm(v, dim=-2).amax())

    def step_bound_guess(self) -> float:
        """Of the circular convolution around, of which both constants are bounds."""
        if not self.bounds()[0] > 0:
            return self.norm()
        symbol = self._symbol_without_gradient(self.kernel.dtype)
        root = torch.linalg.cholesky_ex(0.5 * (symbol + symbol.mH)).L
        # ‖Hz‖²/⟨z, Hz⟩ is that of S at each frequency, with M = (S + Sᴴ)/2 in the denominator.
        scaled = torch.linalg.solve_triangular(root, symbol.mH, upper=False)
        return spectral_bound(scaled @ scaled.mH)

    def inverted(self, shift: float, adjoint: bool = False) -> Callable[[Tensor], Tensor]:
        return self._by_frequencies(shift, adjoint) if self._is_circular else super().inverted(shift, adjoint)

    def _by_frequencies(self, shift: float, adjoint: bool = False) -> Callable[[Tensor], Tensor]:
        """(shift·I + H)⁻¹ of the circular convolution around, from and to the grid itself."""
        inverse = self._inverse(shift, adjoint)
        known = {self.kernel.dtype: inverse}

        def apply(v: Tensor) -> Tensor:
            if v.dtype not in known:
                known[v.dtype] = inverse.to(torch.complex128 if v.dtype == torch.float64 else torch.complex64)
            with torch.no_grad():
                return self._rows(self._filter(known[v.dtype], self._states(v)))

        return apply

    @cached_property
    def _inverted(self) -> dict[tuple[float, bool], Tensor]:
        return {}

    def _inverse(self, shift: float, adjoint: bool) -> Complex[Tensor, "frequencies c c"]:
        """The inverses of all matrices in the frequency domain, as they multiply rows."""
        known = self._inverted
        if (shift, not adjoint) in known:
            known[shift, adjoint] = known[shift, not adjoint].mH.resolve_conj().contiguous()
        if (shift, adjoint) not in known:
            with torch.no_grad():
                symbol = self._symbol_without_gradient(self.kernel.dtype)
                eye = torch.eye(symbol.shape[-1], dtype=symbol.dtype, device=symbol.device)
                known[shift, adjoint] = for_rows(
                    _inverses((symbol.mH if adjoint else symbol) + shift * eye, self.symmetric)
                )
        return known[shift, adjoint]

    def _preconditioner(self, shift: float, like: Float[Tensor, "batch d"]) -> Callable[[Tensor], Tensor]:
        return self.resolvent(shift) or super()._preconditioner(shift, like)

    def has_resolvent(self, batch: int) -> bool:
        return True

    def resolvent(self, shift: float) -> Callable[[Tensor], Tensor] | None:
        """The inverse of the circular convolution around, from and to the grid itself."""
        return self._by_frequencies(shift) if self.bounds()[0] + shift > 0 else None

    def splits(self, batch: int) -> bool:
        return True

    def dilation(self) -> Dilation | None:
        """The circular convolution around."""
        return None if self._is_circular else self._dilation

    @cached_property
    def _dilation(self) -> Dilation:
        grid = tuple(n * self.phases for n in self._around)
        around = Convolution.__new__(Convolution)._set(
            self.kernel, grid, "circular", 1, self.phases, self.symmetric, self.least
        )
        # (its frequencies are the same)
        around._known_symbols, around._known_right = self._known_symbols, self._known_right
        around._inverted = self._inverted
        missing = [n - own for n, own in zip(grid, self.grid, strict=True)]
        margins = [side for more in reversed(missing) for side in (0, more)]

        def embed(v: Tensor) -> Tensor:
            return functional.pad(v.reshape(len(v), self.channels, *self.grid), margins).flatten(1)

        def restrict(v: Tensor) -> Tensor:
            return cropped(v.reshape(len(v), self.channels, *grid), self.grid).flatten(1)

        return Dilation(around, embed, restrict)

    def rounding(self, v: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """A transform spreads its rounding errors over the whole state."""
        with torch.no_grad():
            size = self.kernel.detach().to(v.dtype).abs().flatten(2).sum((1, 2)).max()
            spread = torch.linalg.vector_norm(v, dim=-1, keepdim=True) / v.shape[-1] ** 0.5
            return ROUNDING_ERRORS * torch.finfo(v.dtype).eps * (self.product(v).abs() + size * spread)

    def coupling(self, other: LinearOperator) -> float | None:
        """Sharp where the other is the adjoint of a convolution on the same grid."""
        twin = getattr(other, "of", other)
        if not isinstance(twin, Convolution) or (twin is other and not twin.symmetric) or not self._is_like(twin):
            return super().coupling(other)
        total = Convolution.__new__(Convolution)._set(
            self.kernel.detach() + twin.kernel.detach(), self.grid, self.padding, self.stride, self.phases, False, None
        )
        return 0.5 * total.norm()

    def _is_like(self, other: Convolution) -> bool:
        return (self.grid, self.padding, self.stride, self.phases, self.kernel.shape) == (
            *(other.grid, other.padding, other.stride, other.phases),
            other.kernel.shape,
        )

    def norm(self) -> float:
        return self._norm

    @cached_property
    def _norm(self) -> float:
        symbol = self._symbol_without_gradient(self.kernel.dtype)
        return spectral_bound(symbol @ symbol.mH) ** 0.5

    def _is_symmetric(self) -> bool:
        """Whether each tap is the transpose of the opposite one."""
        with torch.no_grad():
            kernel = numbers(self.kernel)
            if any(k % 2 == 0 for k in kernel.shape[2:]):
                # (its taps are not opposite; what differs may be 0)
                kernel = functional.pad(kernel, [n for k in reversed(kernel.shape[2:]) for n in (1 - k % 2, 0)])
            opposite = kernel.transpose(0, 1).flip(*range(2, kernel.dim()))
            rounding = 4 * torch.finfo(kernel.dtype).eps * kernel.abs().max()
            return bool(((kernel - opposite).abs() <= rounding).all())


def _inverses(matrices: Complex[Tensor, "frequencies c c"], symmetric: bool) -> Complex[Tensor, "frequencies c c"]:
    """Their inverses; NaN where there is none."""
    if symmetric:
        # (half the work where they are definite, as they nearly always are)
        root, info = torch.linalg.cholesky_ex(matrices)
        if not bool(info.any()):
            return torch.cholesky_inverse(root)
    inverse, info = torch.linalg.inv_ex(matrices)
    return torch.where((info == 0)[:, None, None], inverse, torch.nan)


def _rebuild(of: tuple[tuple[int, ...], str, int, int, bool, float | None], kernel: Tensor) -> Convolution:
    return Convolution.__new__(Convolution)._set(kernel, *of)


def limits_of_the_spectrum(kernel: Float[Tensor, "c c *k"]) -> tuple[float, float]:
    """Numbers between which the eigenvalues of (H + Hᵀ)/2 are, whatever the size of the grid and its padding.

    By the matrices of all frequencies: ⟨u, Su⟩ is a trigonometric polynomial of degree K = ⌊k/2⌋, which between N > 2K
    equidistant points exceeds its largest size there by a factor of 1/cos(πK/N) at most (Ehlich and Zeller, 1964).
    """
    degrees = [k // 2 for k in kernel.shape[2:]]
    grid = [max(_LEAST_POINTS, _POINTS * degree) for degree in degrees]
    symbol = Convolution(kernel.detach(), grid, "circular", symmetric=False)._symbol(kernel.dtype)
    ends = torch.linalg.eigvalsh(0.5 * (symbol + symbol.mH))
    middle, half = 0.5 * float(ends.max() + ends.min()), 0.5 * float(ends.max() - ends.min())
    # (the size of S − middle·I is `half` on the grid)
    half /= math.prod(math.cos(math.pi * degree / n) for degree, n in zip(degrees, grid, strict=True))
    return middle - half, middle + half


def _rebuild_known(
    rebuild: Rebuild, shift: float, adjoint: bool, kernel: Tensor, inverse: Complex[Tensor, "frequencies c c"]
) -> LinearOperator:
    made = rebuild(kernel)
    made._inverted[shift, adjoint] = inverse  # type: ignore[attr-defined]
    return made
