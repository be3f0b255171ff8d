"""Figure 6 as a plot."""

from __future__ import annotations

from implicit_bregman.experiments.output.plots import figure_of, png
from implicit_bregman.experiments.reproduce.ensemble import INITS
from implicit_bregman.experiments.reproduce.fig6.report import (
    Measured,
    _means,
)
from implicit_bregman.experiments.reproduce.figures import KIND_STYLES, band
from implicit_bregman.experiments.reproduce.settings import SpiralSettings
from implicit_bregman.nn.feedforward import KINDS


def _figure(settings: SpiralSettings, measured: Measured) -> tuple[bytes, str]:
    layers = list(range(1, settings.deep + 1))
    with figure_of(3, 2.6, columns=2, rows=1) as (figure, axes):
        for kind in KINDS:
            band(axes[0], kind, settings.rates, measured.accuracy[kind], marker="o")
            for axis, init in zip(axes[1:], INITS, strict=True):
                band(axis, kind, layers, measured.movement[init][kind])
                color, _ = KIND_STYLES[kind]
                axis.plot(layers, _means(measured.untrained[init][kind]), color=color, linestyle=":", linewidth=0.8)
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
        return png(figure), caption
