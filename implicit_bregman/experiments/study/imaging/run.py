"""All trainings and references of the study of Poisson imaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from implicit_bregman.experiments.grid.cells import Cell
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.study.imaging.pictures import HELD_OUT
from implicit_bregman.experiments.study.imaging.references import METHODS, ReferenceRun, judge_reference, places
from implicit_bregman.experiments.study.imaging.settings import ImagingSettings
from implicit_bregman.experiments.study.imaging.training import RestorationRun, train_restoration

#: Of the work, for the progress: the references.
REFERENCE_SHARE = 0.2


@dataclass(frozen=True)
class Learned:
    """What one method gave.

    Attributes:
        method: How the gradient is had.
        runs: What `train_restoration` returned, by seed.
    """

    method: str
    runs: list[dict[str, Any]]


@dataclass(frozen=True)
class Reference:
    """What one reference gave.

    Attributes:
        method: Its name.
        chosen: The setting that was chosen for each "blur, peak"; empty where there is none to choose.
        psnr, ssim: Of the held-out pictures, in the order of `held_out`.
    """

    method: str
    chosen: dict[str, float]
    psnr: list[float]
    ssim: list[float]


@dataclass(frozen=True)
class Imaging:
    """What the study found.

    Attributes:
        learned: By method.
        references: By method.
    """

    learned: list[Learned]
    references: list[Reference]


def measure_imaging(settings: ImagingSettings, grid: Grid) -> Imaging:
    """Tune the references, train every method with every seed, and judge all on the held-out pictures."""
    problem = settings.problem
    conditions = [(blur, peak) for blur in problem.blurs for peak in problem.peaks]
    asked = [ReferenceRun(method, blur, peak, problem) for method in METHODS for blur, peak in conditions]
    cells = [Cell(f"{run.method} {run.blur} {run.peak:g}", judge_reference, run) for run in asked]
    judged = dict(zip(asked, grid.run(cells, 0.0, REFERENCE_SHARE), strict=True))
    runs = [RestorationRun(method, seed, settings) for method in settings.methods for seed in range(settings.seeds)]
    cells = [Cell(f"{run.method} seed {run.seed}", train_restoration, run) for run in runs]
    trained = iter(grid.run(cells, REFERENCE_SHARE, 1.0))
    learned = [Learned(method, [next(trained) for _ in range(settings.seeds)]) for method in settings.methods]
    return Imaging(learned, [_joined(method, judged) for method in METHODS])


def _joined(method: str, judged: dict[ReferenceRun, dict[str, Any]]) -> Reference:
    """The results under all blurs and peaks as one list, in the order of the held-out pictures."""
    mine = {run: result for run, result in judged.items() if run.method == method}
    count = len(HELD_OUT) * len(mine)
    psnr, ssim = [0.0] * count, [0.0] * count
    for run, result in mine.items():
        for number, place in enumerate(places(run.problem, run.blur, run.peak, len(HELD_OUT))):
            psnr[place], ssim[place] = result["psnr"][number], result["ssim"][number]
    chosen = {f"{run.blur}, {run.peak:g}": result["setting"] for run, result in mine.items() if result["setting"]}
    return Reference(method, chosen, psnr, ssim)
