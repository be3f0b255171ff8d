"""Does the infimum of training L unrolled steps converge to that of training the implicit layer, and how fast?

Small full-batch problems, trained to optimality from several starts. The paper leaves the question open.
"""

from __future__ import annotations

from typing import Any

from implicit_bregman.experiments.grid.cells import Cell
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.study.infimum.search import (
    Sought,
    find_infima,
)
from implicit_bregman.experiments.study.infimum.settings import InfimumSettings


def measure_infimum(settings: InfimumSettings, grid: Grid) -> dict[str, list[dict[str, Any]]]:
    """What `find_infima` returned, per family one entry per seed."""
    cells = [
        Cell(
            f"{family} seed {seed}",
            find_infima,
            Sought(family, seed, settings.depths, settings.samples, settings.effort),
        )
        for seed in range(settings.seed, settings.seed + settings.seeds)
        for family in settings.families
    ]
    results = grid.run(cells)
    found: dict[str, list[dict[str, Any]]] = {family: [] for family in settings.families}
    for cell, result in zip(cells, results, strict=True):
        found[cell.settings.family].append(result)
    return found
