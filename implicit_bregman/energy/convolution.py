"""The quadratic energy of images of any size, whose Hessian is a convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from implicit_bregman.energy.base import Energy
from implicit_bregman.energy.contract import BoundEnergy
from implicit_bregman.energy.kernels import kernel_named
from implicit_bregman.energy.structured import BoundStructured, bounds_of, mm_curvature
from implicit_bregman.operators.convolution import PADDINGS, Convolution, limits_of_the_spectrum
from implicit_bregman.operators.kernels import checked_sizes
from implicit_bregman.settings import check_choice
from implicit_bregman.tensors import check_dense
from implicit_bregman.transforms import transformed

#: The image on which the step is guessed that suits any size, without symmetry.
_SOME_SIZE = 8


class Injection(nn.Conv2d):
    """x ↦ c(x): a `torch.nn.Conv2d` for kernels of any length, with ⌈n/stride⌉ outputs for n inputs.

    Args:
        in_channels: of x.
        channels: of c.
        lengths: of the kernel.
        stride: in both dimensions.
        padding: what surrounds an image, "zeros" or "circular".
        bias: whether there is one.
        device: where the parameters are made.
        dtype: in which precision the parameters are made.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        lengths: tuple[int, int],
        stride: int,
        padding: str,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(in_channels, channels, lengths, stride, bias=bias, device=device, dtype=dtype)
        self.surrounding = "constant" if padding == "zeros" else padding

    def forward(self, x: Float[Tensor, "batch c_in height width"]) -> Float[Tensor, "batch c rows columns"]:
        sides = [side for k in reversed(self.kernel_size) for side in ((k - 1) // 2, k - 1 - (k - 1) // 2)]
        if any(sides):
            x = functional.pad(x, sides, self.surrounding)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.conv2d(x, self.weight.to(x.dtype), bias, self.stride)

    def size_after(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size of the output for an input of this size."""
        return tuple(-(-n // step) for n, step in zip(size, self.stride, strict=True))


class ConvolutionEnergy(Energy):
    """f_θ(z; x) = ½⟨z, Hz⟩ − ⟨c(x), z⟩ for images z of any size, H a convolution and c(x) one of x, with a stride.

    As a module it is called once per solve, with x alone, and returns c(x), (B, c, h, w); called with (z, x) it returns
    f(z; x), (B,).

    Args:
        in_channels: of x.
        channels: c, of z.
        kernel_size: k, or one for each dimension, of both convolutions.
        weight: "convex" (H = margin·I + A*A), "symmetric" or "monotone" (H = margin·I + A*A + B* − B).
        padding: what surrounds an image, "zeros" or "circular".
        stride: of c(x). z is smaller than x by it.
        bias: whether c(x) has one number for each channel besides.
        margin: for "convex" and "monotone", the least eigenvalue that H, or its symmetric part, can have.
        device: where the parameters are made.
        dtype: in which precision the parameters are made.

    Raises:
        TypeError: for sizes that are not whole numbers.
        ValueError: for sizes below 1, unknown names, a margin that is not positive.
    """

    takes_half = True

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int | Sequence[int] = 3,
        weight: str = "convex",
        *,
        padding: str = "zeros",
        stride: int = 1,
        bias: bool = True,
        margin: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(None, convex=weight == "convex")
        for name, value in (("in_channels", in_channels), ("channels", channels), ("stride", stride)):
            checked_sizes(name, value, 1)
        high, wide = checked_sizes("kernel_size", kernel_size, 2)
        lengths = high, wide
        check_choice("padding", padding, PADDINGS)
        self.channels = channels
        self.padding = padding
        self.weight_map = kernel_named(weight, channels, lengths, margin, device, dtype)
        self.injection = Injection(in_channels, channels, lengths, stride, padding, bias, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw c anew, with a bias of 0; H is reset by `weight_map`."""
        self.injection.reset_parameters()
        if self.injection.bias is not None:
            nn.init.zeros_(self.injection.bias)

    @property
    def symmetric(self) -> bool:
        return self.weight_map.symmetric

    def event_shape(self, x: Tensor) -> tuple[int, ...]:
        """(c, h, w) for the x that are given.

        Raises:
            ValueError: if they are no images (B, C_in, H, W).
        """
        channels = self.injection.in_channels
        check_dense("x", x)
        if x.dim() != 4 or x.shape[1] != channels or 0 in x.shape[2:]:
            raise ValueError(f"x must have shape (B, {channels}, H, W), got {tuple(x.shape)}")
        lengths = self.injection.kernel_size
        if self.padding == "circular" and any(k > n for k, n in zip(lengths, x.shape[2:], strict=True)):
            raise ValueError(
                f'x of shape {tuple(x.shape)} is smaller than kernel_size = {lengths}, which padding="circular" does '
                'not allow: use padding="zeros"'
            )
        return self.channels, *self.injection.size_after(x.shape[2:])

    def operator(self, size: Sequence[int]) -> Convolution:
        """H for states of this size (h, w), as a function of the parameters; at least float32."""
        kernel = self.weight_map
        return Convolution(kernel(), tuple(size), self.padding, symmetric=kernel.symmetric, least=kernel.least)

    def linear(self, x: Float[Tensor, "batch c_in height width"]) -> Float[Tensor, "batch c h w"]:
        """c(x)."""
        return self.injection(x)

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """f(z; x), (B,), as `value`; of x alone, what a solver asks for once: c(x)."""
        return self.linear(z) if x is None else self.value(z, x)

    def value(self, z: Float[Tensor, "batch c h w"], x: Tensor) -> Float[Tensor, " batch"]:
        """f(z; x), (B,).

        Raises:
            TypeError: without symmetry: there is no objective.
        """
        if not self.symmetric:
            raise TypeError(
                'weight="monotone" has no objective: use weight="convex", or gradient(z, x), the field whose zero is '
                "the equilibrium"
            )
        return (z * (0.5 * self.hessian_product(z, x, z) - self.linear(x))).sum((1, 2, 3))

    def gradient(self, z: Float[Tensor, "batch c h w"], x: Tensor) -> Float[Tensor, "batch c h w"]:
        return self.hessian_product(z, x, z) - self.linear(x)

    def hessian_product(
        self, z: Float[Tensor, "batch c h w"], x: Tensor, v: Float[Tensor, "batch c h w"]
    ) -> Float[Tensor, "batch c h w"]:
        """Hv."""
        return self.operator(v.shape[2:]).product(v.flatten(1)).reshape(v.shape)

    def curvature_range(self) -> tuple[Tensor | None, Tensor | None]:
        """Numbers between which the eigenvalues of H (of its symmetric part) are for images of any size.

        Without symmetry the second is a guess of the constant that stands for the largest.
        """
        with torch.no_grad():
            kernel = self.weight_map()
            least, largest = limits_of_the_spectrum(kernel)
            least = least if self.weight_map.least is None else self.weight_map.least
            if not self.symmetric:
                return kernel.new_tensor(least), mm_curvature(self.operator((_SOME_SIZE, _SOME_SIZE)), None)
        return kernel.new_tensor(least), kernel.new_tensor(largest)

    def curvature_bound(self) -> Tensor | None:
        return self.curvature_range()[1]

    def bind(self, x: Float[Tensor, "batch c_in height width"]) -> BoundEnergy:
        offset = self._called_with(x)
        operator = self.operator(offset.shape[2:])
        ends = None if transformed() else bounds_of(operator)
        return BoundStructured(operator, offset.flatten(1), ends, self.convex)

    def _called_with(self, x: Tensor) -> Tensor:
        """c(x), hooks and all.

        Raises:
            ValueError: if a hook has changed its shape.
        """
        offset: Tensor = self._call_impl(x)
        shape = (len(x), *self.event_shape(x))
        if tuple(offset.shape) != shape:
            raise ValueError(f"the offset c(x) must have shape {shape}, got {tuple(offset.shape)}")
        return offset

    def extra_repr(self) -> str:
        """Padding and margin, for `print(module)`."""
        least = self.weight_map.least
        return f"padding={self.padding!r}" + ("" if least is None else f", margin={least}")
