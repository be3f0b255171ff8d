"""Photographs, blurs, and what a photon counter sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

#: Pictures that scikit-image carries: of these the regularizer is learned and the references are tuned ...
TRAINING = ("coffee", "rocket", "coins", "stereo_motorcycle", "moon", "gravel")
#: ... and on these everything is judged.
HELD_OUT = ("camera", "astronaut", "chelsea")
#: Names of the blurs.
BLURS = ("gaussian", "uniform", "motion")
#: Light that reaches every pixel beside the picture's, as a share of white.
BACKGROUND = 0.01
#: Size of a kernel, in pixels, and by how much pictures are reduced, so that a pixel has little noise of its own.
KERNEL, REDUCTION = 9, 2


@dataclass(frozen=True)
class Observed:
    """Pictures and their noisy, blurred observations.

    Attributes:
        clean: The pictures, in 0 … 1, (B, H, W).
        counts: Photons relative to those of a white pixel, (B, H, W).
        kernel: The blurs, each with the sum 1, (B, k, k).
        peak: Photons of a white pixel, (B,).
    """

    clean: Float[Tensor, "batch high wide"]
    counts: Float[Tensor, "batch high wide"]
    kernel: Float[Tensor, "batch k k"]
    peak: Float[Tensor, " batch"]

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the energy sees: counts, kernels and peaks."""
        return self.counts, self.kernel, self.peak

    def select(self, index: Int[Tensor, " some"]) -> Observed:
        """Some of them."""
        return Observed(*(tensor[index] for tensor in (self.clean, *self.inputs)))

    def to(self, dtype: torch.dtype) -> Observed:
        """The same in another precision."""
        return Observed(*(tensor.to(dtype) for tensor in (self.clean, *self.inputs)))

    def start(self) -> Float[Tensor, "batch high wide"]:
        """Where every iteration begins: the counts, moved into the interior of [0, 1]."""
        return (self.counts - BACKGROUND).clamp(0.02, 0.98)


@lru_cache(maxsize=len(TRAINING) + len(HELD_OUT))
def load_picture(name: str) -> Float[Tensor, "high wide"]:
    """A picture in grey, reduced in size, with values in 0 … 1, in float64."""
    from skimage import color, data, transform, util

    found = getattr(data, name)()
    picture = found[0] if isinstance(found, tuple) else found  # (of a stereo pair the left one)
    grey = color.rgb2gray(picture) if picture.ndim == 3 else util.img_as_float64(picture)
    whole = grey[: grey.shape[0] // REDUCTION * REDUCTION, : grey.shape[1] // REDUCTION * REDUCTION]
    return torch.from_numpy(transform.downscale_local_mean(whole, (REDUCTION, REDUCTION)))


def blur_kernel(name: str) -> Float[Tensor, "k k"]:
    """A blur: Gaussian with a standard deviation of 1.6 pixels, the mean over 5 × 5, or a diagonal motion of 9.

    Raises:
        ValueError: For another name.
    """
    place = torch.arange(KERNEL, dtype=torch.float64) - KERNEL // 2
    if name == "gaussian":
        line = torch.exp(-place.square() / (2 * 1.6**2))
        kernel = torch.outer(line, line)
    elif name == "uniform":
        line = (place.abs() <= 2).double()
        kernel = torch.outer(line, line)
    elif name == "motion":
        kernel = torch.eye(KERNEL, dtype=torch.float64)
    else:
        raise ValueError(f"blur must be one of {', '.join(BLURS)}, got {name!r}")
    return kernel / kernel.sum()


def blurred(picture: Float[Tensor, "batch high wide"], kernel: Float[Tensor, "batch k k"]) -> Tensor:
    """Each picture by its kernel, mirrored at its border, with the light of the background."""
    reach = kernel.shape[-1] // 2
    padded = functional.pad(picture[None], (reach,) * 4, mode="reflect")
    return functional.conv2d(padded, kernel[:, None], groups=len(kernel))[0] + BACKGROUND


def observe(clean: Tensor, kernel: Tensor, peak: Tensor, generator: torch.Generator) -> Observed:
    """Blur pictures and count photons."""
    light = blurred(clean, kernel) * peak[:, None, None]
    return Observed(clean, torch.poisson(light, generator) / peak[:, None, None], kernel, peak)


def held_out(blurs: Sequence[str], peaks: Sequence[float], size: int, pictures: Sequence[str] = HELD_OUT) -> Observed:
    """The middle of every picture under every blur and every peak, in this order, with noise of its own."""
    clean, kernels, photons = [], [], []
    for name in pictures:
        picture = load_picture(name)
        top, left = ((side - size) // 2 for side in picture.shape)
        for blur in blurs:
            for peak in peaks:
                clean.append(picture[top : top + size, left : left + size])
                kernels.append(blur_kernel(blur))
                photons.append(float(peak))
    white = torch.tensor(photons, dtype=torch.float64)
    return observe(torch.stack(clean), torch.stack(kernels), white, torch.Generator().manual_seed(1))


def training_batch(
    blurs: Sequence[str], peaks: Sequence[float], size: int, count: int, generator: torch.Generator
) -> Observed:
    """Random parts of the training pictures, turned and mirrored, each under a random blur and peak."""

    def draw(choices: Sequence[object]) -> int:
        return int(torch.randint(len(choices), (), generator=generator))

    clean = []
    for _ in range(count):
        picture = load_picture(TRAINING[draw(TRAINING)])
        top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in picture.shape)
        part = picture[top : top + size, left : left + size].rot90(draw(range(4)), (0, 1))
        clean.append(part.flip(0) if draw(range(2)) else part)
    kernel = torch.stack([blur_kernel(blurs[draw(blurs)]) for _ in range(count)])
    peak = torch.tensor([float(peaks[draw(peaks)]) for _ in range(count)], dtype=torch.float64)
    return observe(torch.stack(clean), kernel, peak, generator)


def largest_size(pictures: Sequence[str]) -> int:
    """The side of the largest square that fits into each picture."""
    return min(min(load_picture(name).shape) for name in pictures)


def decibels(restored: Float[Tensor, "batch high wide"], clean: Float[Tensor, "batch high wide"]) -> list[float]:
    """PSNR of each picture, by scikit-image, with 1 as the peak."""
    from skimage.metrics import peak_signal_noise_ratio

    pairs = zip(clean.numpy(), restored.numpy(), strict=True)
    return [float(peak_signal_noise_ratio(one, other, data_range=1.0)) for one, other in pairs]


def similarity(restored: Float[Tensor, "batch high wide"], clean: Float[Tensor, "batch high wide"]) -> list[float]:
    """SSIM of each picture, by scikit-image."""
    from skimage.metrics import structural_similarity

    pairs = zip(clean.numpy(), restored.numpy(), strict=True)
    return [float(structural_similarity(one, other, data_range=1.0)) for one, other in pairs]
