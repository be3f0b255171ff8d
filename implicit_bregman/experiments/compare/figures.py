"""The figures of a comparison."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from implicit_bregman.experiments.compare.results import Comparison, Row
from implicit_bregman.experiments.output.plots import (
    BLUE,
    STYLES,
    figure_of,
    plain_numbers,
    png,
)


def comparison_figures(comparison: Comparison) -> dict[str, tuple[bytes, str]]:
    """The figures of a comparison.

    Returns:
        File name → PNG file and caption. The figures over L are there only if rows are unrolled.
    """
    steps = f"{comparison.facts['steps']} training steps"
    figures: dict[str, tuple[bytes, str]] = {}
    if any(row.family == "unrolled" for row in comparison.rows):
        # All solvers end at the same point, so that only their cost differs.
        learned, all_rows = _levels(comparison, all_solvers=False), _levels(comparison, all_solvers=True)
        with figure_of(2, 4.3, sharex=True) as (figure, axes):
            _against_depth(comparison, axes[0], "accuracy_at_steps", 100.0, learned)
            _against_depth(comparison, axes[1], "gradient_error", 1.0, learned)
            axes[0].set_ylabel("test accuracy [%]")
            axes[1].set(ylabel="relative gradient error", yscale="log")
            _finish_depth(figure, axes)
            caption = f"Test accuracy after {steps}, and relative error of the gradient, against L"
            figures["accuracy_and_gradient.png"] = (png(figure), caption)
        with figure_of(2, 4.6, sharex=True) as (figure, axes):
            _against_depth(comparison, axes[0], "activation_bytes", 1e-3, all_rows)
            _against_depth(comparison, axes[1], "step_ms", 1.0, all_rows)
            axes[0].set(ylabel="activation memory [kB]")
            axes[1].set(ylabel="time per training step [ms]")
            for axis in axes:
                axis.set_yscale("log")
                plain_numbers(axis.yaxis)
            _finish_depth(figure, axes)
            caption = "Memory held for the backward pass, and time of a training step, against L"
            figures["memory_and_time.png"] = (png(figure), caption)
    with figure_of(2, 4.6) as (figure, axes):
        _training(comparison, axes)
        _legend(figure, axes[0])
        caption = f"Training loss against steps and against seconds, up to {steps}; mean over the seeds"
        figures["training.png"] = (png(figure), caption)
    return figures


def _levels(comparison: Comparison, all_solvers: bool) -> list[Row]:
    """The rows without an L, which are drawn as levels."""
    return [
        row
        for row in comparison.rows
        if row.depth is None and (all_solvers or row.family != "implicit" or row.name == comparison.reference)
    ]


def _style(row: Row, comparison: Comparison) -> tuple[Any, Any, str]:
    """Colour, line and marker of a row; the reference stands out."""
    return STYLES["implicit" if row.name == comparison.reference else row.name]


def _against_depth(comparison: Comparison, axis: Axes, key: str, factor: float, levels: Sequence[Row]) -> None:
    """One quantity against L: a line for unrolled rows, markers for truncated ones, levels for the others."""
    for row in levels:
        mean, spread = row.mean(key), row.spread(key)
        if mean is not None:
            color, line, _ = _style(row, comparison)
            axis.axhline(factor * mean, color=color, linestyle=line, label=row.name)
            if row.name == comparison.reference and spread is not None:
                lower, upper = factor * (mean - spread), factor * (mean + spread)
                axis.axhspan(lower, upper, color=color, alpha=0.15, linewidth=0)
    unrolled = [row for row in comparison.rows if row.family == "unrolled" and row.mean(key) is not None]
    unrolled.sort(key=lambda row: row.depth or 0)
    _points(axis, unrolled, "unrolled", key, factor, "unrolled, L steps")
    for row in comparison.rows:
        if row.family == "truncated" and row.mean(key) is not None:
            # A little to the left, so that error bars do not hide each other.
            _points(axis, [row], "truncated", key, factor, row.name, shift=0.92)


def _points(
    axis: Axes, rows: Sequence[Row], style: str, key: str, factor: float, label: str, shift: float = 1.0
) -> None:
    color, line, marker = STYLES[style]
    means = [factor * (row.mean(key) or 0.0) for row in rows]
    spreads = [factor * (row.spread(key) or 0.0) for row in rows]
    axis.errorbar(
        [shift * (row.depth or 0) for row in rows],
        means,
        # On a logarithmic axis a bar must not reach 0.
        yerr=[[min(s, 0.9 * m) for m, s in zip(means, spreads, strict=True)], spreads],
        color=color,
        linestyle=line,
        marker=marker,
        capsize=2,
        label=label,
        zorder=3,
    )


def _finish_depth(figure: Figure, axes: Sequence[Axes]) -> None:
    for axis in axes:
        axis.set_xscale("log")
        plain_numbers(axis.xaxis)
    axes[-1].set_xlabel("number of unrolled MM steps L")
    _legend(figure, axes[0])


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)


def _training(comparison: Comparison, axes: Sequence[Axes]) -> None:
    depths = _some_depths(comparison)
    unrolled = [row for row in comparison.rows if row.family == "unrolled" and row.depth in depths]
    for row in [*_levels(comparison, all_solvers=False), *sorted(unrolled, key=lambda row: row.depth or 0)]:
        if row.depth is None:
            (color, line, _), alpha = _style(row, comparison), 1.0
        else:
            color, line, alpha = BLUE, "-", 0.25 + 0.75 * (depths.index(row.depth) + 1) / len(depths)
        points = list(zip(*row.curves, strict=True))
        steps = [at[0].steps for at in points]
        seconds = [statistics.fmean(point.seconds for point in at) for at in points]
        losses = [statistics.fmean(point.loss for point in at) for at in points]
        for axis, horizontal in zip(axes, (steps, seconds), strict=True):
            axis.plot(horizontal, losses, color=color, linestyle=line, alpha=alpha, label=row.name)
    axes[0].set_xlabel("training steps")
    axes[1].set(xlabel="training time [s]", xscale="log")
    axes[1].xaxis.set_minor_formatter("")  # (of less than a decade the labels in between would run together)
    for axis in axes:
        axis.set(ylabel="training loss [nats]", yscale="log")


def _some_depths(comparison: Comparison) -> list[int]:
    """At most four depths, evenly spread, so that the lines can be told apart."""
    depths = sorted(row.depth or 0 for row in comparison.rows if row.family == "unrolled")
    if len(depths) <= 4:
        return depths
    return [depths[i * (len(depths) - 1) // 3] for i in range(4)]
