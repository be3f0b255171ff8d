"""The figure of a convergence run."""

from __future__ import annotations

from implicit_bregman.experiments.convergence.run import UNROLLED, Convergence
from implicit_bregman.experiments.output.plots import (
    STYLES,
    figure_of,
    png,
)


def convergence_figures(result: Convergence) -> dict[str, tuple[bytes, str]]:
    """File name → PNG file and caption of the one figure: a panel per quantity, a line per solver."""
    with figure_of(3, 2.7, columns=2) as (figure, axes):
        for curves in result.solvers:
            color, line, _ = STYLES[curves.name if curves.name == UNROLLED else f"implicit-{curves.name}"]
            for axis, curve in zip(axes, (curves.residual, curves.objective, curves.gradient_error), strict=True):
                shown = [(k, value) for k, value in curve if value > 0]
                if shown:
                    axis.plot(*zip(*shown, strict=True), color=color, linestyle=line, label=curves.name)
        labels = ("relative residual", "objective above the best", "relative gradient error")
        for axis, label in zip(axes, labels, strict=True):
            axis.set_xscale("symlog", linthresh=1)  # the start, iteration 0, has a place
            axis.set_xlim(left=-0.05)
            axis.set(yscale="log", xlabel="iteration", ylabel=label)
        handles = {
            label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
        caption = "Residual, objective and gradient error against the iteration"
        return {"convergence.png": (png(figure), caption)}
