"""Parametrizations of the kernel of a convolution H."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from implicit_bregman.energy.weights import at_least_single, checked_margin
from implicit_bregman.operators.kernels import gram_kernel
from implicit_bregman.settings import check_choice


class Kernel(nn.Module):
    """A parametrization of H = −W, a convolution of states of c channels. Called, it returns H's kernel.

    What it computes from half-precision parameters is computed, and returned, in float32.

    Attributes:
        symmetric: whether H is symmetric.
        least: a number that no eigenvalue of H's symmetric part is below; None: not known.
    """

    symmetric: bool
    least: float | None = None

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""


class ConvexKernel(Kernel):
    """H = A*A + margin·I, positive definite by construction.

    Args:
        channels: c.
        lengths: k, of A, in each dimension.
        margin: the least eigenvalue that H can have.
    """

    symmetric = True

    def __init__(
        self,
        channels: int,
        lengths: tuple[int, ...],
        margin: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.least = checked_margin(margin)
        self.factor = _parameter(channels, lengths, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """H ≈ 0.5·I: well conditioned, within reach of every geometry's step τ = 1."""
        assert self.least is not None
        _noise_and_identity(self.factor, max(0.5 - self.least, 0.0) ** 0.5)

    def forward(self) -> Float[Tensor, "c c *taps"]:
        """The kernel of H, of 2k − 1 taps."""
        assert self.least is not None
        return gram_kernel(at_least_single(self.factor), self.least)


class SymmetricKernel(Kernel):
    """H = (P + P*)/2: symmetric, possibly indefinite. k has to be odd."""

    symmetric = True

    def __init__(
        self,
        channels: int,
        lengths: tuple[int, ...],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if any(k % 2 == 0 for k in lengths):
            raise ValueError(
                f'kernel_size = {lengths} has no middle, and weight="symmetric" needs one: use odd lengths'
            )
        self.entries = _parameter(channels, lengths, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """0.5·I and noise small enough that H starts positive definite."""
        _noise_and_identity(self.entries, 0.5)

    def forward(self) -> Float[Tensor, "c c *k"]:
        """The kernel of H."""
        entries = at_least_single(self.entries)
        return 0.5 * (entries + entries.transpose(0, 1).flip(*range(2, entries.dim())))


class MonotoneKernel(Kernel):
    """H = margin·I + A*A + B* − B, as in monDEQ: its symmetric part is positive definite by construction.

    Args:
        channels: c.
        lengths: k, of A and B, in each dimension.
        margin: the least eigenvalue that the symmetric part of H can have; m in monDEQ.
    """

    symmetric = False

    def __init__(
        self,
        channels: int,
        lengths: tuple[int, ...],
        margin: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.least = checked_margin(margin)
        self.factor = _parameter(channels, lengths, device, dtype)
        self.skew = _parameter(channels, lengths, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A and B as monDEQ starts them: uniform between ±1/√(c k²), as the kernels of `torch.nn.Conv2d`."""
        reach = self.factor[0].numel() ** -0.5
        for entries in (self.factor, self.skew):
            nn.init.uniform_(entries, -reach, reach)

    def forward(self) -> Float[Tensor, "c c *taps"]:
        """The kernel of H, of 2k − 1 taps."""
        assert self.least is not None
        return gram_kernel(at_least_single(self.factor), self.least, at_least_single(self.skew))


#: The kinds of H, by the name of the weight.
KERNELS = ("convex", "symmetric", "monotone")


def kernel_named(
    weight: str,
    channels: int,
    lengths: tuple[int, ...],
    margin: float,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Kernel:
    """The parametrization of that name.

    Raises:
        ValueError: for an unknown name, and see the classes.
    """
    check_choice("weight", weight, KERNELS)
    if weight == "symmetric":
        return SymmetricKernel(channels, lengths, device, dtype)
    kind = ConvexKernel if weight == "convex" else MonotoneKernel
    return kind(channels, lengths, margin, device, dtype)


def _parameter(
    channels: int, lengths: tuple[int, ...], device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Parameter:
    return nn.Parameter(torch.empty(channels, channels, *lengths, device=device, dtype=dtype))


def _noise_and_identity(entries: nn.Parameter, size: float) -> None:
    with torch.no_grad():
        entries.normal_(std=0.1 * entries[0].numel() ** -0.5)
        middle: Tensor = entries
        for k in entries.shape[2:]:
            middle = middle.select(2, (k - 1) // 2)
        middle.diagonal().add_(size)
