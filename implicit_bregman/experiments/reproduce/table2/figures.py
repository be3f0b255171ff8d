"""The figure of Table 2."""

from __future__ import annotations

from collections.abc import Sequence

from implicit_bregman.experiments.output.plots import figure_of, png
from implicit_bregman.experiments.output.statistics import mean_and_spread
from implicit_bregman.experiments.reproduce.figures import KIND_STYLES, LABELS
from implicit_bregman.experiments.reproduce.table2.run import Outcome
from implicit_bregman.nn.feedforward import KINDS


def table2_figures(outcomes: Sequence[Outcome]) -> dict[str, tuple[bytes, str]]:
    """File name → PNG file and caption: our means with their spread, filled, and the paper's, hollow.

    There is one line per row of the table.

    Networks far below all that the paper has are arrows at the edge, or they would squeeze the rest into a corner.
    """
    names = list(dict.fromkeys(outcome.row for outcome in outcomes))
    compared = [outcome.mean for outcome in outcomes if outcome.paper is not None]
    left = max(0.0, min(compared or [outcome.mean for outcome in outcomes]) - 5)
    with figure_of(1, 0.5 + 0.32 * len(names), columns=2) as (canvas, (axis,)):
        for outcome in outcomes:
            color, _ = KIND_STYLES[outcome.kind]
            place = names.index(outcome.row) + 0.22 * (KINDS.index(outcome.kind) - 1)
            mean, spread = mean_and_spread(outcome.values)
            first = outcome.row == names[0]
            label = LABELS[outcome.kind] if first else None
            if mean < left:
                axis.plot(left, place, color=color, marker="<", linestyle="", label=label, clip_on=False)
                axis.annotate(f"{mean:.1f}", (left, place), (5, -2.5), textcoords="offset points", fontsize=6)
            else:
                axis.errorbar(mean, place, xerr=spread, color=color, marker="o", capsize=2, linestyle="", label=label)
            if outcome.paper is not None:
                axis.plot(outcome.paper, place, color=color, marker="D", markerfacecolor="none", linestyle="")
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel="test accuracy [%]", xlim=(left, 101), ylim=(len(names) - 0.5, -0.5))
        handles, labels = axis.get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=3)
        caption = "Test accuracy: mean over the seeds and one standard deviation; diamonds are the paper's means"
        return {"table2.png": (png(canvas), caption)}
