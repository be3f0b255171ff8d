"""What restores the pictures without learning: Richardson–Lucy and total variation, tuned on the training pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from implicit_bregman.experiments.study.imaging.energy import TotalVariation
from implicit_bregman.experiments.study.imaging.pictures import (
    BACKGROUND,
    HELD_OUT,
    TRAINING,
    Observed,
    decibels,
    held_out,
    similarity,
)
from implicit_bregman.experiments.study.imaging.settings import Problem
from implicit_bregman.experiments.study.imaging.training import restored
from implicit_bregman.experiments.study.task import without_warnings

#: Their settings: Richardson and Lucy's iterations, and the weight of total variation.
ITERATIONS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0, 40.0)
WEIGHTS = (1.0, 2.0, 4.0, 6.0, 9.0, 13.0)
#: Mirrored pixels around a picture, so that Richardson and Lucy's convolution sees no black border.
_BORDER = 8


@dataclass(frozen=True)
class ReferenceRun:
    """Asks for one reference under one blur and one peak.

    Attributes:
        method: "observed", "richardson-lucy" or "total-variation".
        blur: Name of the blur.
        peak: Photons of a white pixel.
        problem: Pictures and noise; of the layer nothing matters but C.
    """

    method: str
    blur: str
    peak: float
    problem: Problem


def judge_reference(run: ReferenceRun) -> dict[str, Any]:
    """Choose the setting with the best mean PSNR on the training pictures, and judge it on those held out.

    Returns:
        "setting" (None: there is none to choose), "psnr" and "ssim" of the held-out pictures under this blur and peak.
    """
    problem = replace(run.problem, blurs=(run.blur,), peaks=(run.peak,), regularization=0.0)
    restore, choices = METHODS[run.method]
    with without_warnings():
        setting = _chosen(run, problem, restore, choices) if choices else None
        seen = held_out_under(run.problem, run.blur, run.peak)
        made = restore(problem, seen, setting or 0.0)
    return {"setting": setting, "psnr": decibels(made, seen.clean), "ssim": similarity(made, seen.clean)}


def _chosen(run: ReferenceRun, problem: Problem, restore: Restore, choices: tuple[float, ...]) -> float:
    tuning = held_out((run.blur,), (run.peak,), problem.size, TRAINING)

    def quality(setting: float) -> float:
        return sum(decibels(restore(problem, tuning, setting), tuning.clean))

    return max(choices, key=quality)


def places(problem: Problem, blur: str, peak: float, pictures: int) -> list[int]:
    """Where the pictures under a blur and a peak are among all held-out ones."""
    blurs, peaks = len(problem.blurs), len(problem.peaks)
    first = problem.blurs.index(blur) * peaks + problem.peaks.index(peak)
    return [number * blurs * peaks + first for number in range(pictures)]


def held_out_under(problem: Problem, blur: str, peak: float) -> Observed:
    """The held-out pictures of one blur and one peak, with the same noise as among all."""
    index = torch.tensor(places(problem, blur, peak, len(HELD_OUT)))
    return held_out(problem.blurs, problem.peaks, problem.size).select(index)


def _observed(problem: Problem, seen: Observed, setting: float) -> Float[Tensor, "batch high wide"]:
    """The counts themselves."""
    return (seen.counts - BACKGROUND).clamp(0, 1)


def richardson_lucy(problem: Problem, seen: Observed, iterations: float) -> Float[Tensor, "batch high wide"]:
    """Richardson and Lucy's iteration, by scikit-image."""
    from skimage.restoration import richardson_lucy as iterate

    light = functional.pad((seen.counts - BACKGROUND).clamp_min(0)[:, None], (_BORDER,) * 4, mode="reflect")[:, 0]
    inner = slice(_BORDER, -_BORDER)
    made = [
        torch.as_tensor(iterate(counts.numpy(), kernel.numpy(), num_iter=int(iterations)))
        for counts, kernel in zip(light, seen.kernel, strict=True)
    ]
    return torch.stack(made)[:, inner, inner].clamp(0, 1)


def total_variation(problem: Problem, seen: Observed, weight: float) -> Float[Tensor, "batch high wide"]:
    """The minimiser with total variation as the regularizer."""
    return restored(problem, TotalVariation(weight), seen.to(torch.float32)).double()


Restore = Callable[[Problem, Observed, float], Tensor]
METHODS: dict[str, tuple[Restore, tuple[float, ...]]] = {
    "observed": (_observed, ()),
    "richardson-lucy": (richardson_lucy, ITERATIONS),
    "total-variation": (total_variation, WEIGHTS),
}
