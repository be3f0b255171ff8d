"""The figure of the study of the infimum."""

from __future__ import annotations

import math
import statistics

from implicit_bregman.experiments.output.plots import BLUE, GREEN, RED, figure_of, plain_numbers, png
from implicit_bregman.experiments.study.infimum.problem import FAMILIES
from implicit_bregman.experiments.study.infimum.summary import Found, differences, floors

SERIES = {
    "inf": ("|inf_L − inf_∞|", BLUE, "o"),
    "limit_of": ("F_∞(θ_L) − inf_∞", RED, "s"),
    "at_limit": ("F_L(θ_∞) − inf_∞", GREEN, "^"),
}


def infimum_figures(depths: tuple[int, ...], found: Found) -> dict[str, tuple[bytes, str]]:
    """File name → PNG file and caption of the one figure: a panel per family."""
    high = math.ceil(len(found) / 2)
    with figure_of(2 * high, 0.4 + 1.7 * high, columns=2, sharex=True, rows=high) as (figure, axes):
        for axis, (family, results) in zip(axes, found.items(), strict=False):
            for key, (label, color, marker) in SERIES.items():
                curves = [[max(abs(value), 1e-14) for value in differences(item, key)] for item in results]
                for curve in curves:
                    axis.plot(depths, curve, color=color, alpha=0.2, linewidth=0.6)
                middle = [statistics.median(values) for values in zip(*curves, strict=True)]
                axis.plot(depths, middle, color=color, marker=marker, label=label)
            floor = [statistics.median(values) for values in zip(*map(floors, results), strict=True)]
            axis.fill_between(depths, [1e-14] * len(depths), floor, color="#999999", alpha=0.2, linewidth=0)
            axis.set(xscale="log", yscale="log", ylim=(1e-11, 2))
            plain_numbers(axis.xaxis)
            axis.set_title(FAMILIES[family].text, fontsize=8)
        for axis in axes[len(found) :]:
            axis.set_visible(False)
        for axis in axes[-2:]:
            axis.set_xlabel("L")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        caption = "Differences to inf_∞ against L, median and single seeds; grey: below the floor"
        return {"infimum.png": (png(figure), caption)}
