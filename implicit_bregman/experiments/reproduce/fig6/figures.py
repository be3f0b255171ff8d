"""Figure 6 as a plot."""

from __future__ import annotations

from collections.abc import Sequence

from implicit_bregman.experiments.output.plots import figure_of, png
from implicit_bregman.experiments.output.statistics import mean_and_spread
from implicit_bregman.experiments.reproduce.ensemble import INITS
from implicit_bregman.experiments.reproduce.fig6.run import (
    Measured,
)
from implicit_bregman.experiments.reproduce.figures import KIND_STYLES, band
from implicit_bregman.experiments.reproduce.settings import SpiralSettings
from implicit_bregman.nn.feedforward import KINDS


def fig6_figures(settings: SpiralSettings, measured: Measured) -> dict[str, tuple[bytes, str]]:
    """File name → PNG file and caption of the one figure."""
    layers = list(range(1, settings.deep + 1))
    with figure_of(3, 2.6, columns=2, rows=1) as (figure, axes):
        for kind in KINDS:
            band(axes[0], kind, settings.rates, measured.accuracy[kind], marker="o")
            for axis, init in zip(axes[1:], INITS, strict=True):
                band(axis, kind, layers, measured.movement[init][kind])
                color, _ = KIND_STYLES[kind]
                axis.plot(layers, means_of(measured.untrained[init][kind]), color=color, linestyle=":", linewidth=0.8)
        axes[0].set(xscale="log", xlabel="learning rate", ylabel="training accuracy [%]", ylim=(None, 101))
        for axis, init in zip(axes[1:], INITS, strict=True):
            axis.set(xlabel="layer l", ylim=(0, None))
            axis.set_title(f"{init} initial weights", fontsize=8)
        axes[1].set_ylabel("mean of ‖z⁽ˡ⁾ − z⁽ˡ⁻¹⁾‖")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        caption = (
            f"Training accuracy against the learning rate, and movement of each of {settings.deep} layers, trained "
            "(with one standard deviation over the seeds) and untrained (dotted)"
        )
        return {"fig6.png": (png(figure), caption)}


def means_of(curves: Sequence[Sequence[float]]) -> list[float]:
    """The mean over the seeds at each place."""
    return [mean_and_spread(values)[0] for values in zip(*curves, strict=True)]
