"""Figure 5 as a plot."""

from __future__ import annotations

from implicit_bregman.experiments.output.plots import figure_of, png
from implicit_bregman.experiments.reproduce.ensemble import INITS
from implicit_bregman.experiments.reproduce.fig5.run import of_kind
from implicit_bregman.experiments.reproduce.figures import band
from implicit_bregman.experiments.reproduce.spirals import Trained
from implicit_bregman.nn.feedforward import KINDS


def fig5_figures(trained: Trained) -> dict[str, tuple[bytes, str]]:
    """File name → PNG file and caption of the one figure."""
    titles = {"random": "random initial weights", "deterministic": "deterministic initial weights"}
    with figure_of(2, 2.6, columns=2) as (figure, axes):
        for axis, init in zip(axes, INITS, strict=True):
            for kind in KINDS:
                band(axis, kind, trained.epochs, of_kind(trained, trained.losses, kind, init))
            axis.set(xlabel="epoch", ylabel="training loss [nats]", ylim=(0, 0.85))
            axis.set_title(titles[init], fontsize=8)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        caption = "Training loss against epochs: mean over the seeds, and one standard deviation around it"
        return {"fig5.png": (png(figure), caption)}
