"""What is minimised: how badly a picture explains the photons, and how unlike a photograph it is."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from implicit_bregman.energy import Energy
from implicit_bregman.experiments.study.imaging.pictures import blurred

#: Of the smoothed absolute value of total variation.
_SMOOTHING = 1e-2


class LearnedRegularizer(nn.Module):
    """R(z) = Σₖ wₖδₖ Σ (√(1 + (Fₖz/δₖ)²) − 1): one convolution and a smooth, convex penalty of its outputs.

    For small outputs it is quadratic, beyond δₖ linear with the slope wₖ. The filters Fₖ have the mean 0 and the norm
    1, so that the weight of each is its wₖ alone.

    Args:
        filters: Their number.
        kernel_size: Their size.
        seed: Of their first values.
    """

    def __init__(self, filters: int = 16, kernel_size: int = 5, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(filters, 1, kernel_size, kernel_size, generator=generator))
        self.log_weight = nn.Parameter(torch.zeros(filters))
        self.log_threshold = nn.Parameter(torch.full((filters,), -3.0))

    @property
    def filters(self) -> Float[Tensor, "filters 1 k k"]:
        """Fₖ."""
        centred = self.weight - self.weight.mean((-2, -1), keepdim=True)
        return centred / torch.linalg.vector_norm(centred, dim=(-2, -1), keepdim=True)

    def forward(self, z: Float[Tensor, "batch high wide"]) -> Float[Tensor, " batch"]:
        """R(z) of each picture, mirrored at its border."""
        reach = self.weight.shape[-1] // 2
        padded = functional.pad(z[:, None], (reach,) * 4, mode="reflect")
        out = functional.conv2d(padded, self.filters)
        threshold = self.log_threshold.exp()[:, None, None]
        penalty = torch.sqrt(out.square() + threshold.square()) - threshold
        return (penalty.sum((-2, -1)) * self.log_weight.exp()).sum(-1)


class TotalVariation(nn.Module):
    """R(z) = w Σ √(|∇z|² + ε²): isotropic, smoothed by ε = 0.01.

    Args:
        weight: w.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.strength = weight

    def forward(self, z: Float[Tensor, "batch high wide"]) -> Float[Tensor, " batch"]:
        """R(z) of each picture."""
        down, right = z.diff(dim=1)[:, :, :-1], z.diff(dim=2)[:, :-1]
        return self.strength * torch.sqrt(down.square() + right.square() + _SMOOTHING**2).sum((1, 2))


class PoissonEnergy(Energy):
    """f(z; x) = Σ (Az − y log Az) + R(z)/p for photon counts y of the blurred picture Az, whose white has p photons.

    Times p this is the negative logarithm of the posterior density for a prior exp(−R), up to a constant.

    Args:
        size: (H, W) of the pictures.
        regularizer: R, a module; several energies may share it.
    """

    def __init__(self, size: tuple[int, int], regularizer: nn.Module) -> None:
        super().__init__(features=size, convex=True)
        self.regularizer = regularizer

    def value(self, z: Float[Tensor, "batch high wide"], x: tuple[Tensor, Tensor, Tensor]) -> Float[Tensor, " batch"]:
        """f(z; x) with x = (y, kernel, p), see `Observed`."""
        counts, kernel, peak = x
        light = blurred(z, kernel)
        return (light - torch.xlogy(counts, light)).sum((1, 2)) + self.regularizer(z) / peak
