"""The deep-equilibrium layer of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from implicit_bregman.adjoints import Adjoint
from implicit_bregman.energy.convolution import ConvolutionEnergy
from implicit_bregman.legendre import MirrorMap
from implicit_bregman.nn.critical_point import CriticalPoint
from implicit_bregman.solution import Solution
from implicit_bregman.solvers import Solver


class BregmanDEQ2d(CriticalPoint):
    """The convolutional deep-equilibrium layer z = h(x; θ), a critical point of ½⟨z, Hz⟩ − ⟨c(x), z⟩ + γφ(z) on C.

    H and c are convolutions, and images may have any size, another one at each call: see `operators.Convolution`. With
    `geometry="softplus"`, γ = 0 and `weight="monotone"` it is the convolutional layer of monDEQ (z ≥ 0).

    Args:
        in_channels: of x.
        channels: c, of z.
        kernel_size: k, or (k₁, k₂), of both convolutions.
        geometry: φ, by name or instance.
        weight: "convex" (H = margin·I + A*A, one critical point), "symmetric" (there may be several) or "monotone"
            (H = margin·I + A*A + B* − B as in monDEQ: one equilibrium, no objective); A and B are convolutions.
        regularization: γ ≥ 0.
        solver: a name or an instance from `implicit_bregman.solvers`.
        adjoint: a name or an instance from `implicit_bregman.adjoints`.
        padding: what surrounds an image, "zeros" or "circular".
        stride: of c(x); z is smaller than x by this factor.
        bias: whether c(x) adds a learned number to each channel.
        margin: for "convex" and "monotone", the least eigenvalue that H, or its symmetric part, can have.
        device: where the parameters are made.
        dtype: in which precision the parameters are made.

    Attributes:
        energy: f.
        solver: may be assigned at any time, as may `adjoint` and `regularization`; see `CriticalPoint`.
        last_solution: the `Solution` of the last call, detached; None before the first.

    Shape:
        `(B, in_channels, H, W)` → `(B, channels, ⌈H/stride⌉, ⌈W/stride⌉)`.

    Raises:
        TypeError: for sizes that are not whole numbers.
        ValueError: for unknown names, sizes below 1, γ < 0, or a margin that is not positive.
    """

    energy: ConvolutionEnergy

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int | Sequence[int] = 3,
        geometry: str | MirrorMap = "softplus",
        weight: str = "convex",
        regularization: float = 0.0,
        solver: str | Solver = "auto",
        adjoint: str | Adjoint = "implicit",
        *,
        padding: str = "zeros",
        stride: int = 1,
        bias: bool = True,
        margin: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        energy = ConvolutionEnergy(
            in_channels,
            channels,
            kernel_size,
            weight,
            padding=padding,
            stride=stride,
            bias=bias,
            margin=margin,
            device=device,
            dtype=dtype,
        )
        super().__init__(energy, geometry, regularization, solver, adjoint)
        self.in_channels = in_channels
        self.channels = channels
        self.kernel_size = energy.injection.kernel_size
        self.padding = padding
        self.stride = stride
        self._warn_of_linear_map("H^-1 c(x)")

    def solve(
        self,
        x: Float[Tensor, "batch in_channels height width"],
        initial: Float[Tensor, "batch channels h w"] | Solution | None = None,
        initial_dual: Float[Tensor, "batch channels h w"] | None = None,
    ) -> Solution:
        """The same as calling the layer, with everything known about the solve; see `CriticalPoint.solve`.

        An image alone, (in_channels, H, W), is given as x[None].
        """
        return super().solve(x, initial, initial_dual)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as the constructor does."""
        for module in (self.energy.weight_map, self.energy):
            module.reset_parameters()

    def extra_repr(self) -> str:
        """Everything that is not a submodule."""
        return (
            f"{self.in_channels}, {self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding!r}, {super().extra_repr()}"
        )
