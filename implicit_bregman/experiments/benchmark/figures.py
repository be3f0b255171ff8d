"""The figures of a benchmark, in the style of the other experiments' figures; each says which command made it."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from implicit_bregman.experiments.benchmark.peers.contenders import BOTH, FORWARD, OURS, TUNED, UNROLLED
from implicit_bregman.experiments.benchmark.peers.convolution import OWN
from implicit_bregman.experiments.benchmark.peers.mondeq import PREFIX as MONDEQ
from implicit_bregman.experiments.benchmark.peers.osqp import NAME as OSQP
from implicit_bregman.experiments.benchmark.peers.proxqp import NAME as PROXQP
from implicit_bregman.experiments.benchmark.peers.splitting import NAME as SPLITTING
from implicit_bregman.experiments.benchmark.results import TORCHDEQ, Benchmark, CellResult, contender_order
from implicit_bregman.experiments.benchmark.scaling import AXES, IMPLICIT_MM
from implicit_bregman.experiments.output.plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, figure_of, png

_LOOKS: dict[str, tuple[str, str]] = {
    OURS: (RED, "s"),
    TUNED: (ORANGE, "D"),
    "torchdeq Anderson": (PURPLE, "X"),
    "torchdeq Broyden": (SKY, "P"),
    "torchdeq fixed point": (GREEN, "^"),
    UNROLLED: (BLUE, "o"),
    PROXQP: (BLACK, "v"),
    SPLITTING: (GREEN, "D"),
    f"{MONDEQ} Peaceman–Rachford": (SKY, "o"),
    f"{MONDEQ} forward–backward": (SKY, "<"),
    OSQP: (BLACK, ">"),
    OWN: (BLUE, "*"),
}
_PER_CELL = 0.17  # inches, also of a line of the legend
_LEGEND_COLUMNS = 3
_COMMAND_WIDTH = 130  # characters
_AXIS_LABELS = {"d": "features d", "B": "batch B", "condition": "condition number", "L": "iterations L"}


def benchmark_figures(benchmark: Benchmark) -> dict[str, tuple[bytes, str]]:
    """File name → PNG file and caption, of every figure for which something was measured."""
    figures: dict[str, tuple[bytes, str]] = {}
    ratios = _ratios(benchmark)
    if ratios is not None:
        figures["ratios.png"] = (ratios, "Time of the best peer that reaches the level over that of the defaults")
    for task, accuracy in [(task, accuracy) for task in (BOTH, FORWARD) for accuracy in benchmark.accuracies]:
        times = _times(benchmark, accuracy, task)
        if times is not None:
            name = f"time-{task.replace('+', '-')}-{accuracy:.0e}.png"
            figures[name] = (times, f"Time to a relative error of {accuracy:.0e}, {task}, median and quartiles")
    for task in (BOTH, FORWARD):
        calls = _calls(benchmark, min(benchmark.accuracies), task)
        if calls is not None:
            caption = f"Operator calls (filled) and host synchronisations (open) of one run, {task}"
            figures[f"calls-{task.replace('+', '-')}.png"] = (calls, caption)
    if benchmark.scaling:
        caption = "Time of forward and backward, and memory held for the backward pass, in float32 from the base point"
        figures["scaling.png"] = (_scaling(benchmark), caption)
    return figures


def _ratios(benchmark: Benchmark) -> bytes | None:
    """One point per cell, peer and level."""
    series = [
        (f"{label}, {accuracy:.0e}", [cell.ratio(prefix, accuracy, task) for cell in benchmark.cells], look, filled)
        for label, prefix, task, look in (
            ("torchdeq's best", TORCHDEQ, BOTH, (PURPLE, "X")),
            ("unrolled", UNROLLED, BOTH, (BLUE, "o")),
            (SPLITTING, SPLITTING, BOTH, (GREEN, "D")),
            (f"{SPLITTING}, forward", SPLITTING, FORWARD, (GREEN, "^")),
            ("monDEQ's best", MONDEQ, BOTH, (SKY, "o")),
            ("monDEQ's best, forward", MONDEQ, FORWARD, (SKY, "<")),
            (OWN, OWN, BOTH, (BLUE, "*")),
            ("ProxQP, forward", PROXQP, FORWARD, (BLACK, "v")),
            ("OSQP, forward", OSQP, FORWARD, (BLACK, ">")),
        )
        for accuracy, filled in zip(benchmark.accuracies, (True, *(False for _ in benchmark.accuracies)), strict=False)
    ]
    series = [item for item in series if any(ratio is not None for ratio in item[1])]
    if not series:
        return None
    with figure_of(1, _height(benchmark.cells, len(series)), columns=2) as (figure, (axis,)):
        for label, values, (color, marker), filled in series:
            points = [(ratio, row) for row, ratio in enumerate(values) if ratio is not None]
            axis.plot(
                *zip(*points, strict=True),
                linestyle="",
                marker=marker,
                color=color,
                markerfacecolor=color if filled else "white",
                label=label,
            )
        axis.axvline(1, color=BLACK, linewidth=1)
        _rows(axis, benchmark.cells)
        axis.set(xscale="log", xlabel="times as long as implicit-bregman's defaults (right of 1: slower than them)")
        _plain(axis)
        _legend(figure, axis, benchmark.command)
        return png(figure)


def _times(benchmark: Benchmark, accuracy: float, task: str) -> bytes | None:
    cells = [cell for cell in benchmark.cells if any(e.task == task and e.accuracy == accuracy for e in cell.entries)]
    names = [n for n in contender_order(cells) if any(cell.entry(n, accuracy, task) for cell in cells)]
    if not names:
        return None
    with figure_of(1, _height(cells, len(names)), columns=2) as (figure, (axis,)):
        for number, name in enumerate(names):
            color, marker = _LOOKS.get(name, (BLACK, "."))
            # A little apart within a row, so that no mark hides another.
            shift = 0.6 * ((number + 0.5) / len(names) - 0.5)
            entries = [(row, entry) for row, cell in enumerate(cells) if (entry := cell.entry(name, accuracy, task))]
            medians = [1e3 * entry.median for _, entry in entries]
            spread = [
                [1e3 * (entry.median - entry.quartiles[0]) for _, entry in entries],
                [1e3 * (entry.quartiles[1] - entry.median) for _, entry in entries],
            ]
            axis.errorbar(
                medians,
                [row + shift for row, _ in entries],
                xerr=spread,
                linestyle="",
                marker=marker,
                color=color,
                capsize=1.5,
                elinewidth=0.8,
                label=name,
            )
        _rows(axis, cells)
        axis.set(xscale="log", xlabel=f"time to a relative error of {accuracy:.0e}, {task} [ms]")
        _plain(axis)
        _legend(figure, axis, benchmark.command)
        return png(figure)


def _calls(benchmark: Benchmark, accuracy: float, task: str) -> bytes | None:
    """Calls and synchronisations of what reaches the accuracy, one row per cell."""
    counted = {
        (cell.name, name): entry
        for cell in benchmark.cells
        for name in contender_order(benchmark.cells)
        if (entry := cell.entry(name, accuracy, task)) is not None and entry.operator_calls is not None
    }
    if not counted:
        return None
    names = dict.fromkeys(name for _, name in counted)
    with figure_of(1, _height(benchmark.cells, len(names)), columns=2) as (figure, (axis,)):
        for name in names:
            color, marker = _LOOKS.get(name, (BLACK, "."))
            found = [(row, e) for row, cell in enumerate(benchmark.cells) if (e := counted.get((cell.name, name)))]
            rows = [row for row, _ in found]
            calls = [entry.operator_calls or 0 for _, entry in found]
            axis.plot(calls, rows, linestyle="", marker=marker, color=color, label=name)
            waits = [entry.synchronisations or 0 for _, entry in found]
            axis.plot(waits, rows, linestyle="", marker=marker, color=color, markerfacecolor="white")
        _rows(axis, benchmark.cells)
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlabel(f"operator calls (filled) and host synchronisations (open), {task} to {accuracy:.0e}")
        axis.set_xlim(left=-0.5)
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        _legend(figure, axis, benchmark.command)
        return png(figure)


def _scaling(benchmark: Benchmark) -> bytes:
    """Time above memory, one column per axis."""
    names = [axis for axis in AXES if any(point.axis == axis for point in benchmark.scaling)]
    with figure_of(2 * len(names), 4.6, columns=2, rows=2) as (figure, axes):
        handles: dict[str, Any] = {}
        for number, name in enumerate(names):
            top, bottom = axes[number], axes[len(names) + number]
            points = [point for point in benchmark.scaling if point.axis == name]
            for contender in dict.fromkeys(point.contender for point in points):
                along = sorted((p for p in points if p.contender == contender), key=lambda p: p.at)
                label, color, marker, line = _scaling_look(contender)
                at = [p.at for p in along]
                (handle,) = top.plot(
                    at,
                    [1e3 * statistics.median(p.seconds) for p in along],
                    color=color,
                    marker=marker,
                    linestyle=line,
                )
                bottom.plot(at, [1e-6 * p.held_bytes for p in along], color=color, marker=marker, linestyle=line)
                handles.setdefault(label, handle)
            for axis in (top, bottom):
                axis.set(xscale="log", yscale="log")
                low, high = axis.get_ylim()
                axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 30 * low else (1.0,)))
                axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.yaxis.set_minor_formatter(NullFormatter())
                axis.set_xticks(sorted({p.at for p in points}), minor=False)
                axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.set_xticks([], minor=True)
                axis.tick_params(axis="x", labelrotation=45)
            bottom.set_xlabel(_AXIS_LABELS[name])
        axes[0].set_ylabel("time [ms]")
        axes[len(names)].set_ylabel("memory held [MB]")
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
        _command(figure, benchmark.command)
        return png(figure)


def _scaling_look(contender: str) -> tuple[str, str, str, str]:
    """Label, colour, marker and line of a contender of the scaling plots."""
    if contender == OURS:
        return "implicit-bregman, defaults", RED, "s", "-"
    if contender == IMPLICIT_MM:
        return "implicit-bregman, L plain MM steps", ORANGE, "D", "--"
    if contender.startswith(UNROLLED):
        return "unrolled (100 steps, right: L)", BLUE, "o", "-"
    return "torchdeq Anderson (100 + 100 iterations, right: L + L)", PURPLE, "X", ":"


def _height(cells: Sequence[CellResult], labels: int) -> float:
    return 1.0 + _PER_CELL * (max(4, len(cells)) + math.ceil(labels / _LEGEND_COLUMNS))


def _rows(axis: Axes, cells: Sequence[CellResult]) -> None:
    axis.set_yticks(range(len(cells)), [cell.name for cell in cells])
    axis.set_ylim(len(cells) - 0.4, -0.6)


def _plain(axis: Axes) -> None:
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axis: Axes, command: str) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=_LEGEND_COLUMNS)
    _command(figure, command)


def _command(figure: Figure, command: str) -> None:
    figure.suptitle(textwrap.fill(command, _COMMAND_WIDTH), fontsize=6, family="monospace")
