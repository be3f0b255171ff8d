"""Restored pictures side by side, and quality against processor time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from implicit_bregman.experiments.output.plots import BLACK, BLUE, GREEN, ORANGE, RED, SKY, figure_of, mean_band, png
from implicit_bregman.experiments.study.imaging.energy import LearnedRegularizer
from implicit_bregman.experiments.study.imaging.pictures import HELD_OUT, Observed, decibels
from implicit_bregman.experiments.study.imaging.references import METHODS, held_out_under
from implicit_bregman.experiments.study.imaging.settings import ImagingSettings
from implicit_bregman.experiments.study.imaging.training import restored
from implicit_bregman.experiments.study.task import without_warnings
from implicit_bregman.experiments.train.build import make_adjoint

if TYPE_CHECKING:
    from implicit_bregman.experiments.study.imaging.run import Imaging, Learned

COLORS = (RED, BLACK, GREEN, SKY, BLUE, ORANGE)


def pictures_figure(settings: ImagingSettings, found: Imaging) -> tuple[bytes, str]:
    """Every held-out picture as it was, as counted and as each method restores it, at the first blur and peak."""
    problem = settings.problem
    blur, peak = problem.blurs[0], problem.peaks[0]
    seen = held_out_under(problem, blur, peak)
    shown = {"original": seen.clean}
    for reference in found.references:
        chosen = reference.chosen.get(f"{blur}, {peak:g}", 0.0)
        with without_warnings():
            shown[reference.method] = METHODS[reference.method][0](problem, seen, chosen)
    for one in found.learned:
        shown[one.method] = _made_by(settings, one, seen)
    rows = len(HELD_OUT)
    with figure_of(len(shown) * rows, 2.6, columns=2, rows=rows) as (figure, axes):
        panels = [(picture, name, made) for picture in range(rows) for name, made in shown.items()]
        for axis, (picture, name, made) in zip(axes, panels, strict=True):
            axis.imshow(made[picture].numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
            axis.spines[:].set_visible(False)
            if picture == 0:
                axis.set_title(name.replace("-", "\n", 1), fontsize=6)
            if name != "original":
                quality = decibels(made[picture : picture + 1], seen.clean[picture : picture + 1])[0]
                axis.set_xlabel(f"{quality:.2f} dB", fontsize=6, labelpad=1)
        return png(figure), f"Pictures that were not learned from, {blur} blur, {peak:g} photons for white"


def _made_by(settings: ImagingSettings, one: Learned, seen: Observed) -> Tensor:
    """What the first seed's regularizer makes of the counts."""
    regularizer = LearnedRegularizer(settings.filters, settings.kernel_size)
    regularizer.load_state_dict({name: torch.tensor(value) for name, value in one.runs[0]["parameters"].items()})
    adjoint = make_adjoint(one.method, settings.problem.tol)
    with without_warnings():
        return restored(settings.problem, regularizer, seen.to(torch.float32), adjoint).double()


def curves_figure(found: Imaging) -> tuple[bytes, str]:
    """PSNR on small held-out pictures against processor time, mean and spread of the seeds."""
    with figure_of(1, 2.6) as (figure, axes):
        for color, one in zip(COLORS * len(found.learned), found.learned, strict=False):
            curves = [run["curve"] for run in one.runs]
            times = [sum(point[0] for point in at) / len(at) for at in zip(*curves, strict=True)]
            mean_band(
                axes[0], times, [[point[1] for point in curve] for curve in curves], color=color, label=one.method
            )
        axes[0].set(xlabel="processor time of the training [s]", ylabel="PSNR [dB]")
        axes[0].legend()
        return png(figure), "PSNR of held-out pictures against the processor time of the training"
