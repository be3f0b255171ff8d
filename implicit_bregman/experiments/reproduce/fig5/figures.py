"""Figure 5 as a plot."""

from __future__ import annotations

from implicit_bregman.experiments.output.plots import figure_of, png
from implicit_bregman.experiments.reproduce.ensemble import INITS
from implicit_bregman.experiments.reproduce.fig5.report import _of
from implicit_bregman.experiments.reproduce.figures import band
from implicit_bregman.experiments.reproduce.spirals import Trained
from implicit_bregman.nn.feedforward import KINDS


def _figure(trained: Trained) -> tuple[bytes, str]:
    titles = {"random": "random initial weights", "deterministic": "deterministic initial weights"}
    with figure_of(2, 2.6, columns=2) as (figure, axes):
        for axis, init in zip(axes, INITS, strict=True):
            for kind in KINDS:
                band(axis, kind, trained.epochs, _of(trained, trained.losses, kind, init))
            axis.set(xlabel="epoch", ylabel="training loss [nats]", ylim=(0, 0.85))
            axis.set_title(titles[init], fontsize=8)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return png(figure), "Training loss against epochs: mean over the seeds, and one standard deviation around it"
