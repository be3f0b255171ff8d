"""Rows, findings and figures of the study of Poisson imaging."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from implicit_bregman.experiments.grid.report import GridReport
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.output.statistics import mean_and_spread
from implicit_bregman.experiments.study.imaging.figures import curves_figure, pictures_figure
from implicit_bregman.experiments.study.imaging.pictures import HELD_OUT, TRAINING
from implicit_bregman.experiments.study.imaging.run import Imaging, Learned, Reference, measure_imaging
from implicit_bregman.experiments.study.imaging.settings import ImagingSettings


def study_imaging(settings: ImagingSettings, grid: Grid) -> GridReport:
    """Learn a regularizer by every method, and compare what the restored pictures are worth.

    Args:
        settings: The problem, the methods and the recipe.
        grid: Computes and keeps the cells.
    """
    found = measure_imaging(settings, grid)
    problem = settings.problem
    return GridReport(
        "imaging",
        "Poisson imaging: a regularizer learned through the critical point, and by other gradients",
        (
            f"f(z; y) = Σ (Az − y log Az) + R(z)/p on [0, {'1' if problem.geometry == 'double_burg' else '∞'}), "
            f"geometry {problem.geometry}, γ = {problem.regularization:g}; R: {settings.filters} filters of "
            f"{settings.kernel_size} × {settings.kernel_size} pixels and a smooth convex penalty.",
            f"Blurs: {', '.join(problem.blurs)}; photons of a white pixel: p = "
            f"{', '.join(f'{peak:g}' for peak in problem.peaks)}. "
            "Pictures of scikit-image, in grey, at half their size.",
            f"Learned from parts of {settings.patch} × {settings.patch} pixels of {', '.join(TRAINING)}: Adam on the "
            f"mean squared error, {settings.batch_size} parts a step, {settings.seconds:g} s of processor time for "
            f"each training, {settings.seeds} seeds; solves and implicit adjoints to {problem.tol:g}.",
            f"Judged on {problem.size} × {problem.size} pixels of {', '.join(HELD_OUT)}; mean over all pictures, "
            "blurs and peaks; ± is the standard deviation of the seeds.",
            "An unrolled method restores by its L steps from the counts, as it was trained; the column at the critical "
            "point solves its objective instead.",
            "Richardson–Lucy and total variation: iterations and weight with the best mean PSNR on the training "
            "pictures, for each blur and peak.",
        ),
        (),
        _findings(found),
        (*map(_row, found.references), *map(_row, found.learned)),
        (
            ("method", ("method",)),
            ("PSNR [dB]", ("psnr:.2f", "psnr_spread:.2f")),
            ("SSIM", ("ssim:.3f", "ssim_spread:.3f")),
            ("PSNR at the critical point", ("equilibrium:.2f",)),
            ("gradient error", ("gradient_error:.1e",)),
            ("cosine", ("cosine:.3f",)),
            ("steps", ("steps:.0f",)),
            ("step [ms]", ("step_ms:.0f",)),
        ),
        {"found": asdict(found)},
        {
            "imaging.png": pictures_figure(settings, found),
            "imaging-curves.png": curves_figure(found),
        },
    )


def _row(one: Learned | Reference) -> dict[str, Any]:
    row: dict[str, Any] = {"method": one.method}
    if isinstance(one, Reference):
        learned = ("psnr_spread", "ssim_spread", "equilibrium", "gradient_error", "cosine", "steps", "step_ms")
        return {**row, "psnr": statistics.mean(one.psnr), "ssim": statistics.mean(one.ssim), **dict.fromkeys(learned)}
    for name in ("psnr", "ssim"):
        row[name], row[f"{name}_spread"] = mean_and_spread([statistics.mean(run[name]) for run in one.runs])
    row["equilibrium"] = statistics.mean(statistics.mean(run["equilibrium"]) for run in one.runs)
    for name in ("gradient_error", "cosine", "steps", "step_ms"):
        row[name] = statistics.mean(run[name] for run in one.runs)
    return row


def _findings(found: Imaging) -> tuple[str, ...]:
    """Each method against the implicit one, paired over the seeds, and that against the references."""
    implicit = next((one for one in found.learned if one.method == "implicit"), None)
    if implicit is None:
        return ()
    own = _by_seed(implicit)
    others = [
        f"{_gap([a - b for a, b in zip(own, _by_seed(one), strict=True)])} over {one.method}"
        for one in found.learned
        if one is not implicit
    ]
    against = [
        f"{_gap([value - statistics.mean(one.psnr) for value in own])} over {one.method}" for one in found.references
    ]
    texts = [f"Implicit training reaches {statistics.mean(own):.2f} dB: {', '.join(against)}."]
    if others:
        texts.append(f"At equal processor time, paired over the seeds, it gains {', '.join(others)}.")
    failed = [run for run in implicit.runs if run["converged"] < 1]
    solved = (
        "All of its solves converged." if not failed else f"In {len(failed)} of {len(own)} trainings a solve failed."
    )
    return (*texts, solved)


def _by_seed(one: Learned) -> list[float]:
    return [statistics.mean(run["psnr"]) for run in one.runs]


def _gap(values: Sequence[float]) -> str:
    mean, spread = mean_and_spread(values)
    return f"{mean:+.2f} dB" + ("" if spread is None else f" ± {spread:.2f}")
