"""Rows, findings and figure of the study of the infimum."""

from __future__ import annotations

import statistics
from typing import Any

from implicit_bregman.experiments.grid.report import GridReport
from implicit_bregman.experiments.grid.run import Grid
from implicit_bregman.experiments.study.infimum.figures import SERIES, infimum_figures
from implicit_bregman.experiments.study.infimum.problem import FAMILIES
from implicit_bregman.experiments.study.infimum.run import measure_infimum
from implicit_bregman.experiments.study.infimum.settings import InfimumSettings
from implicit_bregman.experiments.study.infimum.summary import LEAST, Found, differences, fit, floors


def study_infimum(settings: InfimumSettings, grid: Grid) -> GridReport:
    """Find the infima of all families and seeds and compare them.

    Args:
        settings: Families, depths, seeds, effort.
        grid: Computes and keeps the cells.
    """
    found = measure_infimum(settings, grid)
    rows = tuple(
        _row(family, results, index, depth)
        for family, results in found.items()
        for index, depth in enumerate(settings.depths)
    )
    effort = settings.effort
    return GridReport(
        "infimum",
        "inf of Problem 2.2 against L, and inf of Problem 2.1",
        (
            f"{settings.samples} samples, x in R, d = 1 (low rank: 2), loss ½ mean (aᵀz + a₀ − t)², all parameters in "
            "a box, float64.",
            f"{effort.searches} independent searches, each with {effort.starts} starts at each L and in the limit, the "
            f"best of {effort.tries} random ones. The best of each L is handed down and up, and to each depth where it "
            "is better; then all together: the same, restarts and kicks.",
            "Floor: ten times what the last restarts changed of inf_L − inf_∞, and at least "
            f"{LEAST:g}. Gap: by how much the worst search ended above the best, at L or in the limit.",
        ),
        (),
        (*(_finding(family, results, settings.depths) for family, results in found.items()), *_same_limit(found)),
        rows,
        (
            ("layers", ("family",)),
            ("L", ("depth",)),
            ("inf_L − inf_∞, median", ("signed:.2e",)),
            ("F_∞(θ_L) − inf_∞", ("limit_of:.2e",)),
            ("F_L(θ_∞) − inf_∞", ("at_limit:.2e",)),
            ("floor", ("floor:.0e",)),
            ("gap of the searches", ("gap:.0e",)),
            ("below inf_∞", ("below",)),
        ),
        {"depths": settings.depths, "found": found},
        infimum_figures(settings.depths, found),
    )


def _row(family: str, results: list[dict[str, Any]], index: int, depth: int) -> dict[str, Any]:
    middle = {key: statistics.median(differences(item, key)[index] for item in results) for key in SERIES}
    below = sum(differences(item, "inf")[index] < -floors(item)[index] for item in results)
    return {
        "family": FAMILIES[family].text,
        "depth": depth,
        "signed": middle["inf"],
        "limit_of": middle["limit_of"],
        "at_limit": middle["at_limit"],
        "floor": statistics.median(floors(item)[index] for item in results),
        "gap": statistics.median(max(item["gap"][index], item["gap"][-1]) for item in results),
        "below": f"{below}/{len(results)}",
    }


def _finding(family: str, results: list[dict[str, Any]], depths: tuple[int, ...]) -> str:
    fits = [fit(depths, differences(item, "inf"), floors(item)) for item in results]
    told = []
    for law, name in (("geometric", "q"), ("power", "p")):
        values = [item[1] for item in fits if item is not None and item[0] == law]
        if values:
            told.append(f"{law} in {len(values)} (median {name} = {statistics.median(values):.3g})")
    last = [differences(item, "inf")[-1] for item in results]
    resolved = sum(abs(value) > floors(item)[-1] for value, item in zip(last, results, strict=True))
    origins = [origin for item in results for origin in item["origin"]]
    moved = sum(origin not in ("random", "kick") for origin in origins)
    failed, evaluations = (sum(item[key] for item in results) for key in ("failed", "evaluations"))
    return (
        f"{FAMILIES[family].text} (proved: {FAMILIES[family].rate}): |inf_L − inf_∞| at L = {depths[-1]} is "
        f"{statistics.median(map(abs, last)):.1e}, median of {len(results)} seeds, above the floor in {resolved}; "
        f"the better fit is {', '.join(told) or 'not to be had, too few values are above the floor'}. The best start "
        f"was a continuation in {moved} of {len(origins)} cases; {failed} of {evaluations} evaluations had a sample "
        "whose forward or backward solve failed."
    )


def _same_limit(found: Found) -> list[str]:
    """With γ = 0 and convex W one box has one limit in every geometry: two searches for the same number."""
    if not {"convex", "convex-arctan"} <= set(found):
        return []
    pairs = zip(found["convex"], found["convex-arctan"], strict=True)
    off = [abs(one["inf"][-1] - other["inf"][-1]) for one, other in pairs]
    return [
        "tanh and arctan on one box have the same limit problem where W is convex and γ = 0: inf_∞, sought in each, "
        f"differs by {statistics.median(off):.1e} in the median and {max(off):.1e} at most."
    ]
